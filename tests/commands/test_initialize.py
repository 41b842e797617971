"""`init.from=RUN` starts with the weights of an earlier run, all that fit, and lists them."""

import logging
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from perceiver.commands.finished_run import load
from perceiver.commands.initialize import initialize_from
from perceiver.queries.text import Text
from perceiver.runtime.config import resolved
from perceiver.runtime.errors import ConfigError
from perceiver.training.build import build
from perceiver.training.checkpoint import read_checkpoint, weight_problem
from perceiver.training.run_folder import write_run_folder
from tests.runs import SMALL, assert_refused, checkpoint, composed, script, train, trained
from tests.training.test_build import Malicious

OTHER_DECODER = ["decoder@model.decoder=queries", "model.decoder.attention.num_heads=2"]


@pytest.fixture(scope="module")
def earlier(tmp_path_factory):
    """A finished run. Read-only."""
    return trained(tmp_path_factory.mktemp("earlier") / "run")


def parts_of(*overrides):
    with composed(*SMALL, *overrides) as cfg:
        return build(resolved(cfg))


def origins(weights):
    """Origin -> names of weights."""
    return {
        origin: {w.name for w in weights if w.origin == origin} for origin in ("loaded", "resized", "new", "unused")
    }


def changed(before, after):
    return {name for name, value in after.items() if not value.equal(before[name])}


def test_what_fits_is_loaded_and_all_else_stays_as_it_is_and_is_listed(earlier, capsys, caplog):
    parts = parts_of(*OTHER_DECODER, "model.memory.num_latents=7", "model.memory.schedule.num_blocks=2")
    before = {name: value.clone() for name, value in parts.model.state_dict().items()}
    with caplog.at_level(logging.WARNING):
        found = origins(initialize_from(parts, f"{earlier}/checkpoints/last.ckpt"))
    after, stored = parts.model.state_dict(), checkpoint(earlier)["state_dict"]
    assert found["loaded"] == {
        name for name in after if f"model.{name}" in stored and stored[f"model.{name}"].shape == after[name].shape
    }
    assert all(after[name].equal(stored[f"model.{name}"]) for name in found["loaded"])
    assert changed(before, after) <= found["loaded"]
    assert found["new"] == after.keys() - found["loaded"]
    assert "memory.array" in found["new"]
    assert found["unused"] == {f"{name.removeprefix('model.')}" for name in stored if name[6:] not in after} != set()
    assert not found["resized"]
    assert "memory.array, which is [7, 14], not [5, 14]" in caplog.text
    shown = [line for line in capsys.readouterr().out.splitlines() if line.startswith("│")]
    for name, origin in (
        ("encoders.image ", "loaded"),
        ("memory.array", "new"),
        ("memory.self_blocks", "unused"),
        ("decoder.queries.array", "new"),
    ):
        assert any(name in line and origin in line for line in shown), (name, shown)


def test_learned_positions_of_another_grid_are_interpolated(tmp_path, capsys):
    learned = ["encoder@model.encoders.image=image_pixels_learned", "loader.batch_size=3", "trainer.max_epochs=1"]
    run = trained(tmp_path / "run", *learned)
    parts = parts_of(*learned, "model.encoders.image.positions.shape=[5,11]")
    found = origins(initialize_from(parts, str(run)))
    assert found["resized"] == {"encoders.image.positions.embedding"}
    assert not found["new"] | found["unused"]
    stored = checkpoint(run, "best")["state_dict"]["model.encoders.image.positions.embedding"]
    resized = F.interpolate(stored.movedim(-1, 0)[None], size=(5, 11), mode="bicubic", align_corners=False)
    torch.testing.assert_close(parts.model.encoders["image"].positions.embedding.data, resized[0].movedim(0, -1))
    assert "resized" in capsys.readouterr().out


def test_positions_of_longer_or_shorter_texts_are_those_of_the_same_tokens():
    positions = [Text(vocab_size=3, max_length=length, dim=5) for length in (7, 11)]
    short, long = (one.positions.data for one in positions)
    assert positions[0].resized("positions", long).equal(long[:7])
    assert positions[1].resized("positions", short).equal(torch.cat([short, long[7:]]))
    assert positions[0].resized("embedding.weight", long) is None


def test_an_encoder_that_the_earlier_model_lacks_is_named(earlier, caplog):
    parts = parts_of()
    parts.model.encoders["depth"] = parts_of().model.encoders["image"]
    with caplog.at_level(logging.WARNING):
        found = origins(initialize_from(parts, str(earlier)))
    assert {name.rpartition(".stem")[0] for name in found["new"]} == {"encoders.depth"}
    assert "it has no encoders.depth" in caplog.text


def test_with_strict_every_difference_is_an_error_that_names_keys(earlier):
    initialize_from(parts_of(), str(earlier), strict=True)
    other = parts_of("model.memory.num_latents=7")
    before = {name: value.clone() for name, value in other.model.state_dict().items()}
    with pytest.raises(
        ConfigError, match=r"init.strict=true.*init.from=.*memory.array \(new: \[7, 14\], not \[5, 14\]\)"
    ):
        initialize_from(other, str(earlier), strict=True)
    assert not changed(before, other.model.state_dict())


def test_a_malicious_checkpoint_executes_nothing(earlier, tmp_path):
    marker, path = tmp_path / "marker", tmp_path / "other.ckpt"
    content = checkpoint(earlier, "best")
    content["description"]["config"]["model"] = {"_target_": "os.system", "command": f"touch {marker}"}
    torch.save(content, path)
    initialize_from(parts_of(), str(path))  # its config is not built
    content["state_dict"]["model.memory.array"] = Malicious(marker)
    torch.save(content, path)
    with pytest.raises(ConfigError, match="not a readable checkpoint") as refused:
        initialize_from(parts_of(), str(path))
    assert "weights_only" not in str(refused.value), "as torch recommends to execute it"
    assert not marker.exists()


def test_a_run_starts_with_them_and_a_resumed_one_does_not_load_them_again(earlier, tmp_path):
    # With a learning rate of 0, weights stay as they were at the start.
    ended = train(tmp_path / "run", *OTHER_DECODER, f"init.from={earlier}", "optimizer.lr=0.0", "callbacks=[default]")
    assert ended.ok, ended.err
    stored, found = (checkpoint(run, "best")["state_dict"] for run in (earlier, tmp_path / "run"))
    assert all(
        found[name].equal(stored[name]) for name in stored if name.startswith(("model.memory", "model.encoders"))
    )
    assert "initialization" in (tmp_path / "run" / "train.log").read_text()
    ended = script("experiments/train.py", f"run={tmp_path / 'run'}", "trainer.max_epochs=2")
    assert ended.ok, ended.err
    assert "initialization" not in ended.out


@pytest.mark.parametrize(
    ("overrides", "first"),
    [
        (["freeze=[latents]", "model.memory.num_latents=7"], "memory.array"),
        (["freeze=[latents]", "model.memory.num_latents=7", "unfreeze_at_epoch=1"], None),
        (["freeze=[latents]"], None),
    ],
)
def test_new_weights_that_are_never_trained_are_warned_of(earlier, caplog, overrides, first):
    with caplog.at_level(logging.WARNING):
        initialize_from(parts_of(*overrides), str(earlier))
    assert [first in message for message in caplog.messages if "freeze=[latents]" in message] == [True] * bool(first)


def test_frozen_weights_that_start_from_nothing_are_warned_of(tmp_path):
    ended = train(tmp_path / "run", "freeze=[encoders]", "trainer.max_steps=1")
    assert ended.ok, ended.err
    assert "freeze=[encoders]: 2 parameters" in (tmp_path / "run" / "train.log").read_text()


@pytest.mark.parametrize(
    "change",
    [
        lambda array: array.to_sparse(),
        lambda array: array.to("meta"),
        lambda array: torch.nested.nested_tensor([array[0], array[1, :3]]),
        lambda array: torch.quantize_per_tensor(array, 0.1, 0, torch.qint8),
        lambda array: array.long(),
        lambda array: array.to(torch.complex64),
        lambda array: array.where(torch.arange(len(array))[:, None] > 0, torch.nan),
    ],
)
def test_weights_that_are_no_plain_finite_numbers_are_refused_by_name(earlier, tmp_path, change):
    path, content = tmp_path / "other.ckpt", checkpoint(earlier, "best")
    content["state_dict"]["model.memory.array"] = change(content["state_dict"]["model.memory.array"])
    torch.save(content, path)
    with pytest.raises(ConfigError, match=rf"{path}.*memory\.array"):
        initialize_from(parts_of(), str(path))


@pytest.mark.parametrize("kind", [torch.int64, torch.complex64], ids=str)
def test_weights_of_another_kind_of_number_are_refused_in_a_run_of_its_own_as_well(earlier, tmp_path, kind):
    path, content = tmp_path / "other.ckpt", checkpoint(earlier, "best")
    content["state_dict"]["model.memory.array"] = content["state_dict"]["model.memory.array"].to(kind)
    torch.save(content, path)
    with pytest.raises(ConfigError, match=rf"{path}.*memory\.array.*{str(kind).removeprefix('torch.')}"):
        load(str(path))


@pytest.mark.parametrize(
    ("stored", "own", "fits"),
    [
        *((torch.float16, torch.float32, True), (torch.int32, torch.int64, True)),
        *((torch.bool, torch.int64, False), (torch.uint8, torch.bool, False), (torch.bool, torch.float32, False)),
    ],
    ids=str,
)
def test_precision_may_differ_but_not_the_kind_of_number(stored, own, fits):
    problem = weight_problem(torch.zeros(3, dtype=stored), torch.zeros(3, dtype=own))
    assert (problem == "") == fits
    assert fits or all(str(one).removeprefix("torch.") in problem for one in (stored, own))


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_run_with_weights_that_are_not_finite_is_refused(earlier, tmp_path, value):
    path, content = tmp_path / "other.ckpt", checkpoint(earlier, "best")
    content["state_dict"]["model.memory.array"][1, 2] = value
    torch.save(content, path)
    with pytest.raises(ConfigError, match=rf"{path}.*memory\.array.*NaN or infinite"):
        load(str(path))


def test_a_name_that_would_control_the_terminal_is_refused(earlier, tmp_path):
    path, content = tmp_path / "other.ckpt", checkpoint(earlier, "best")
    content["state_dict"]["model.\x1b[31mred"] = torch.zeros(3)
    torch.save(content, path)
    with pytest.raises(ConfigError) as refused:
        initialize_from(parts_of(), str(path))
    assert str(path) in str(refused.value)
    assert "\x1b" not in str(refused.value)


def test_the_weights_of_an_exported_run_of_own_code_are_loaded_and_its_config_is_not_built(earlier, tmp_path):
    folder = tmp_path / "exported"
    content = read_checkpoint(earlier / "checkpoints" / "best.ckpt")
    content.config["model"] = {"_target_": "ownlab.Model", "decoder": content.config["model"]["decoder"]}
    write_run_folder(folder, content)
    assert not origins(initialize_from(parts_of(), str(folder), strict=True))["new"]
    # As `pretrained=` its model would be built.
    assert_refused(train(tmp_path / "run", f"pretrained={folder}"), f"pretrained={folder}", "ownlab.Model", "init.from")


def test_what_cannot_be_loaded_is_refused(earlier, tmp_path, capsys):
    foreign = tmp_path / "foreign.ckpt"
    content = checkpoint(earlier, "best")
    content["state_dict"] = {"model.memory.array": torch.zeros(3, 5)}
    torch.save(content, foreign)
    with pytest.raises(
        ConfigError, match=r"init.from=.*neither an encoder nor the memory.*encoders.image.* more; choose .*experiment="
    ) as refused:
        initialize_from(parts_of(), str(foreign))
    assert str(refused.value).count(": [") == 3, "the table above has all of them"
    assert "memory.array" in capsys.readouterr().out
    write_run_folder(tmp_path / "folder", replace(read_checkpoint(earlier / "checkpoints/best.ckpt"), state={}))
    with pytest.raises(ConfigError, match=f"; pretrained={tmp_path / 'folder'}"):
        initialize_from(parts_of(), str(tmp_path / "folder"))
    for wrong, problem in ((tmp_path / "nothing", "no such run"), (tmp_path, "neither checkpoints/")):
        with pytest.raises(ConfigError, match=f"init.from={wrong}: .*{problem}"):
            initialize_from(parts_of(), str(wrong))
    assert_refused(train(tmp_path / "run", "init.from=/nothing"), "init.from=/nothing")


def test_other_token_ids_are_refused(earlier, tmp_path):
    path = tmp_path / "other.ckpt"
    content = checkpoint(earlier, "best")
    content["description"]["vocabulary"] = "one"
    torch.save(content, path)
    parts = parts_of()
    parts.module.description["vocabulary"] = "another"
    with pytest.raises(ConfigError, match=r"init.from=.*tokenizer"):
        initialize_from(parts, str(path))
