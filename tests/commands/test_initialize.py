"""`init.from=RUN` starts with the weights of an earlier run, part by part, and says which."""

import logging

import pytest
import torch

from perceiver.commands.initialize import initialize_from
from perceiver.runtime.config import resolved
from perceiver.runtime.errors import ConfigError
from perceiver.training.build import build
from tests.runs import SMALL, assert_refused, checkpoint, composed, script, train, trained

OTHER_DECODER = ["decoder@model.decoder=queries", "model.decoder.attention.num_heads=2"]


@pytest.fixture(scope="module")
def earlier(tmp_path_factory):
    """A finished run. Read-only."""
    return trained(tmp_path_factory.mktemp("earlier") / "run")


def parts_of(*overrides):
    with composed(*SMALL, *overrides) as cfg:
        return build(resolved(cfg))


def table_rows(text):
    """Part -> what the table says of its weights."""
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in text.splitlines() if line.startswith("│")]
    return {row[0]: row[1].split(";")[0] for row in cells if len(row) == 3 and row[0]}


def changed(before, after):
    return {name for name, value in after.items() if not value.equal(before[name])}


def test_parts_that_fit_are_loaded_and_the_others_stay_as_they_are(earlier, capsys):
    parts = parts_of(*OTHER_DECODER)
    before = {name: value.clone() for name, value in parts.model.state_dict().items()}
    initialize_from(parts, str(earlier))
    after, stored = parts.model.state_dict(), checkpoint(earlier, "best")["state_dict"]
    loaded = {name for name in after if not name.startswith("decoder.")}
    assert loaded
    assert all(after[name].equal(stored[f"model.{name}"]) for name in loaded)
    assert changed(before, after) <= loaded
    assert table_rows(capsys.readouterr().out) == {"encoders.image": "loaded", "memory": "loaded", "decoder": "new"}


def test_a_part_that_does_not_fit_is_new_with_a_warning(earlier, caplog, capsys):
    parts = parts_of("model.memory.num_latents=7")
    before = {name: value.clone() for name, value in parts.model.state_dict().items()}
    with caplog.at_level(logging.WARNING):
        initialize_from(parts, f"{earlier}/checkpoints/last.ckpt")
    assert not any(name.startswith("memory.") for name in changed(before, parts.model.state_dict()))
    assert "memory does not fit" in caplog.text
    assert "array is [7," in caplog.text
    rows = table_rows(capsys.readouterr().out)
    assert (rows["memory"], rows["encoders.image"]) == ("new", "loaded")


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


def test_what_cannot_be_loaded_is_refused(earlier, tmp_path):
    other = parts_of("model.memory.num_latents=7", "model.encoders.image.stem.dim=11")
    with pytest.raises(ConfigError, match=r"init.from=.*neither an encoder nor the memory.*memory: array is \[7"):
        initialize_from(other, str(earlier))
    for wrong, problem in ((tmp_path / "nothing", "no such run"), (tmp_path, "no checkpoints")):
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
