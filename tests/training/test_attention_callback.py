import logging

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EarlyStopping, EMAWeightAveraging
from PIL import Image

from perceiver.inspection import faithfulness as deletion_module
from perceiver.training import attention_callback as callback_module
from perceiver.training.module import TrainingModule
from tests.inspection.models import look
from tests.noise import NoiseItems, attention, events, fit
from tests.wandb_file import offline_mirror, rows, run_folders


@pytest.mark.parametrize(
    ("every_n_epochs", "options", "epochs", "steps"),
    [
        (1, {"max_epochs": 3}, [0, 1, 2], [2, 5, 8]),
        (2, {}, [1, 3, 4], [5, 11, 14]),
        (7, {"max_epochs": 2}, [1], [5]),
        (0, {}, [], []),
        (2, {"max_steps": 7}, [1, 2], [5, 6]),
        (1, {"max_steps": 6}, [0, 1], [2, 5]),
        (5, {"stages": "train"}, [4], [14]),
        (2, {"check_val_every_n_epoch": 3, "max_epochs": 4}, [1, 3], [5, 11]),
        (2, {"val_check_interval": 1, "max_epochs": 3}, [1, 2], [5, 8]),
        (2, {"accumulate_grad_batches": 2, "max_epochs": 3}, [1, 2], [3, 5]),
        (2, {"limit_val_batches": 0, "max_epochs": 3}, [1, 2], [5, 8]),
    ],
    ids=str,
)
def test_the_due_epochs_and_the_end_are_looked_at_once(tmp_path, every_n_epochs, options, epochs, steps):
    fit(tmp_path, attention(every_n_epochs), **options)
    found = events(tmp_path)
    assert [int(event["epoch"]) for event in found] == epochs
    assert [int(event["step"]) for event in found] == steps


def test_the_end_is_looked_at_when_it_comes_early(tmp_path):
    fit(tmp_path, attention(5), EarlyStopping(monitor="val/loss", min_delta=1e9, patience=2))
    assert [int(event["epoch"]) for event in events(tmp_path)] == [2]


@pytest.mark.parametrize("stages", ["train val", "train test", "train"])
def test_the_probe_set_is_the_same_at_every_event_and_from_outside_training_where_possible(tmp_path, stages):
    fit(tmp_path, attention(), stages=stages, max_epochs=3)
    first, *others = events(tmp_path)
    assert first["ids"].tolist() == [f"{stages.split()[-1]}/{index}" for index in (0, 4, 8)]
    assert len(others) == 2
    for other in others:
        assert all((other[name] == first[name]).all() for name in ("ids", "input/image", "target/label"))
        assert (other["cross0/weights"] != first["cross0/weights"]).any()


@pytest.mark.parametrize("options", [{}, {"stages": "train"}, {"texts": True}], ids=str)
def test_training_with_looks_is_bit_for_bit_training_without(tmp_path, options):
    _, without = fit(tmp_path / "without", **options)
    _, looking = fit(tmp_path / "looking", attention(), **options)
    assert len(events(tmp_path / "looking")) == 5
    expected, found = without.state_dict(), looking.state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


class Spy(Callback):
    """Remembers the weights that were validated last."""

    def on_validation_batch_start(self, trainer, pl_module, *args) -> None:
        self.validated = {name: value.clone() for name, value in pl_module.state_dict().items()}


def map_of(module: TrainingModule, event: dict[str, np.ndarray]) -> np.ndarray:
    """What the model of `module` attends to in the images of an event."""
    captured = look(module.model, {"image": torch.from_numpy(event["input/image"]).float()})
    return captured.layers["cross0"].weights().numpy()


@pytest.mark.parametrize("first", ["attention", "averaging"])
@pytest.mark.parametrize("options", [{"max_epochs": 2}, {"max_steps": 7}, {"max_steps": 7, "stages": "train"}], ids=str)
def test_maps_are_those_of_averaged_weights_where_these_are_validated_and_saved(tmp_path, first, options):
    spy, averaging = Spy(), EMAWeightAveraging(decay=0.95)
    callbacks = (attention(2), averaging) if first == "attention" else (averaging, attention(2))
    _, module = fit(tmp_path, *callbacks, spy, **options)
    found = events(tmp_path)
    # When training ends, the averages become the module's weights. The images of an event are in half precision.
    np.testing.assert_allclose(found[-1]["cross0/weights"], map_of(module, found[-1]), atol=2e-3)
    _, raw = fit(tmp_path / "raw", **options)
    assert np.abs(found[-1]["cross0/weights"] - map_of(raw, found[-1])).max() > 0.01
    if "stages" not in options:
        module.load_state_dict(spy.validated)
        np.testing.assert_allclose(found[0]["cross0/weights"], map_of(module, found[0]), atol=2e-3)


def test_maps_of_a_training_in_mixed_precision_are_those_of_its_precision(tmp_path):
    _, module = fit(tmp_path, attention(), max_epochs=1, precision="bf16-mixed")
    (event,) = events(tmp_path)
    event["input/image"] = NoiseItems("val").images[[0, 4, 8]].numpy()  # unrounded
    with torch.autocast("cpu", dtype=torch.bfloat16):
        np.testing.assert_allclose(event["cross0/weights"], map_of(module, event), atol=5e-4)
    assert 1e-3 < np.abs(event["cross0/weights"] - map_of(module, event)).max() < 0.03


def warnings_in(caplog) -> list[str]:
    """What the callback has warned of."""
    return [record.getMessage() for record in caplog.records if record.name == callback_module.__name__]


@pytest.mark.parametrize(
    ("part", "texts"),
    [
        ("event_arrays", False),
        ("event_arrays", True),
        ("samples_of", False),
        ("page_of", False),
        ("contact_sheets", False),
        ("log_explanation", True),
    ],
)
def test_after_three_failures_it_is_off_with_a_warning_and_training_goes_on(tmp_path, monkeypatch, caplog, part, texts):
    calls = []

    def broken(*args, **options):
        calls.append(args)
        raise RuntimeError("no maps today")

    monkeypatch.setattr(callback_module, part, broken)
    caplog.set_level(logging.WARNING)
    callback = attention()
    trainer, module = fit(tmp_path, callback, texts=texts)
    assert trainer.global_step == 15
    assert len(calls) == 3
    assert callback.scores == {}
    messages = warnings_in(caplog)
    assert ["off" in message for message in messages] == [False, False, True]
    assert all("no maps today" in message for message in messages)
    assert all(part.training for part in module.model.modules())


def test_a_test_that_fails_is_warned_of_and_the_last_look_is_there(tmp_path, monkeypatch, caplog):
    def broken(*args, **options):
        raise RuntimeError("nothing can be hidden")

    monkeypatch.setattr(callback_module, "together", broken)
    caplog.set_level(logging.WARNING)
    callback = attention(2)
    trainer, module = fit(tmp_path, callback, boxes=True, max_epochs=3)
    assert trainer.global_step == 9
    (message,) = warnings_in(caplog)
    assert "deletion test" in message
    assert "nothing can be hidden" in message
    assert "off" not in message
    assert "attention/energy_in_box" in callback.scores
    assert [int(event["step"]) for event in events(tmp_path)] == [5, 8]
    assert all(part.training for part in module.model.modules())


def test_a_last_look_that_fails_is_warned_of_once_and_its_test_is_logged_all_the_same(tmp_path, monkeypatch, caplog):
    original = callback_module.event_arrays

    def broken_in_the_end(*args, **options):
        if len(events(tmp_path)) == 2:
            raise RuntimeError("no maps today")
        return original(*args, **options)

    monkeypatch.setattr(callback_module, "event_arrays", broken_in_the_end)
    monkeypatch.setattr(deletion_module, "LEAST_LOSS", -1.0)
    caplog.set_level(logging.WARNING)
    callback = attention()
    fit(tmp_path, callback, max_epochs=3)
    (message,) = warnings_in(caplog)
    assert "no maps today" in message
    assert len(events(tmp_path)) == 2
    assert sorted(callback.scores) == [f"attention/deletion/{name}" for name in ("mean_map", "relevance", "rollout")]


def test_without_any_look_there_is_no_page(tmp_path, monkeypatch, caplog):
    def broken(*args, **options):
        raise RuntimeError("no maps today")

    monkeypatch.setattr(callback_module, "event_arrays", broken)
    caplog.set_level(logging.WARNING)
    fit(tmp_path, attention(), max_epochs=1)
    assert len(warnings_in(caplog)) == 1
    assert list((tmp_path / "attention").iterdir()) == []


def test_a_look_that_takes_too_long_leaves_out_sheets_alone_and_says_so_once(tmp_path, monkeypatch, caplog):
    drawn = []
    monkeypatch.setattr(callback_module, "contact_sheets", lambda *args, **options: drawn.append(args) or {})
    caplog.set_level(logging.WARNING)
    callback = attention(max_seconds=0.0)
    fit(tmp_path, callback, boxes=True, max_epochs=3)
    assert not drawn
    (message,) = warnings_in(caplog)
    assert "max_seconds=0" in message
    assert "num_samples" in message
    assert len(events(tmp_path)) == 3
    assert (tmp_path / "attention" / "index.html").exists()
    assert "attention/energy_in_box" in callback.scores


@pytest.mark.parametrize(
    "options",
    [
        {"every_n_epochs": -1},
        {"num_samples": 0},
        {"num_scored_samples": -1},
        {"rollout_alpha": 1.1},
        {"rollout_alpha": -0.1},
        {"rollout_alpha": "norms"},
    ],
    ids=str,
)
def test_numbers_that_make_no_sense_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        attention(**options)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_panels_reach_wandb_as_pictures_at_the_step_of_the_validation(tmp_path, accumulate, monkeypatch):
    logger = offline_mirror(tmp_path, monkeypatch)
    options = {"max_epochs": 4, "accumulate_grad_batches": accumulate, "num_sanity_val_steps": 2}
    fit(tmp_path, attention(2), logger=logger, **options)
    logger.end(0)
    (folder,) = run_folders(tmp_path)
    logged = rows(folder)
    contact_sheets = [row for row in logged if any(key.startswith("attention/image") for key in row)]
    validation_steps = [row["trainer/global_step"] for row in logged if "val/loss" in row]
    assert [row["trainer/global_step"] for row in contact_sheets] == validation_steps[1::2]
    for row, epoch in zip(contact_sheets, (1, 3), strict=True):
        media = [key for key, value in row.items() if key.startswith("attention/") and isinstance(value, dict)]
        assert media == ["attention/image/cross0"]
        media = row["attention/image/cross0"]
        for id, caption, name in zip(("val/0", "val/4", "val/8"), media["captions"], media["filenames"], strict=True):
            assert caption == f"{id} · step {row['trainer/global_step']} · epoch {epoch}"
            with Image.open(folder / "files" / name) as picture:
                assert picture.mode == "RGB"
                pixels = np.asarray(picture)
            assert np.ptp(pixels) > 60
            assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 20


@pytest.mark.parametrize("num_queries", [3, 1], ids=["classes", "one query"])
def test_sheets_show_the_best_classes_of_each_sample_where_they_ask_for_themselves(tmp_path, monkeypatch, num_queries):
    answers, original = [], callback_module.contact_sheets

    def contact_sheets(look, pictures, **options):
        answers.append(look.own)
        return original(look, pictures, **options)

    monkeypatch.setattr(callback_module, "contact_sheets", contact_sheets)
    _, module = fit(tmp_path, attention(), max_epochs=1, num_queries=num_queries)
    if num_queries == 1:
        assert answers == [[[], [], []]]
        return
    images = NoiseItems("val").images[[0, 4, 8]]
    best = module.eval().model({"image": images})["logits"].argsort(dim=1, descending=True)
    assert [[answer.queries for answer in row] for row in answers[0]] == [[(k,) for k in row] for row in best.tolist()]
    assert all(answer.name == "abc"[answer.label] for row in answers[0] for answer in row)
