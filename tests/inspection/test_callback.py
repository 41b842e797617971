import csv
import logging
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import EarlyStopping, EMAWeightAveraging
from lightning.pytorch.loggers import CSVLogger
from PIL import Image

from perceiver.attention import BlockSpec
from perceiver.data.base import Dataset, UnreadableError
from perceiver.data.module import DataModule
from perceiver.decoders.queries import QueryDecoder
from perceiver.inspection import callback as callback_module
from perceiver.inspection.callback import AttentionCallback
from perceiver.inspection.truth import mean_scores, truth_scores
from perceiver.tasks.classification import Classification
from perceiver.training.loggers import WandbMirror
from perceiver.training.module import TrainingModule
from perceiver.training.optimization import constant
from perceiver.types import Box, Sample
from tests.inspection.models import look, perceiver_io
from tests.inspection.wandb_file import rows, run_folders
from tests.models import DIM, image_encoder

DROPPING = BlockSpec(num_heads=1, attention_dropout=0.3, residual_dropout=0.2)


class Noise(Dataset):
    """Thirteen images of noise a stage, those for training augmented by more noise, those for validation with boxes."""

    def __init__(self, stages: str, *, boxes: bool = False) -> None:
        super().__init__(num_classes=3, on_error="raise")
        self.stages = stages.split()
        self.boxes = boxes

    @property
    def class_names(self) -> list[str]:
        return ["a", "b", "c"]

    def split(self, stage):
        return NoiseSplit(stage, boxes=self.boxes) if stage in self.stages else None

    def read(self, path: Path) -> Sample:
        raise UnreadableError(str(path))


class NoiseSplit:
    def __init__(self, stage: str, *, boxes: bool = False) -> None:
        self.stage = stage
        self.boxes = boxes
        self.images = torch.rand(13, 3, 11, 13, generator=torch.Generator().manual_seed(len(stage)))

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Sample:
        image = self.images[index]
        if self.stage == "train":
            image = (image + 0.1 * torch.rand_like(image)).clamp(0, 1)
        targets = {"label": index % 3}
        if self.boxes and self.stage == "val":
            targets["boxes"] = [
                Box(label, "image", {"y": (0.0, 2.0 + label), "x": (float(index % 5), 7.0)})
                for label in range(index % 4)
            ]
        return Sample({"image": image}, targets, f"{self.stage}/{index}")


def attention(every_n_epochs: int = 1, **options) -> AttentionCallback:
    defaults = {"num_samples": 3, "num_scored_samples": 7, "num_latents": 2, "rollout_alpha": 0.5, "max_megabytes": 1.0}
    return AttentionCallback(every_n_epochs=every_n_epochs, **(defaults | options))


def fit(
    folder: Path,
    *callbacks: Callback,
    stages: str = "train val",
    boxes: bool = False,
    query_per_class: bool = False,
    description: dict[str, Any] | None = None,
    **options,
) -> tuple[Trainer, TrainingModule]:
    """A short training: three steps an epoch."""
    torch.manual_seed(0)
    decoder = QueryDecoder(
        dim=DIM, num_classes=3, query_dim=13, attention=BlockSpec(num_heads=1), query_per_class=query_per_class
    )
    module = TrainingModule(
        model=perceiver_io(encoders={"image": image_encoder()}, decoder=decoder, self_attention=DROPPING).train(),
        task=Classification(num_classes=3, label_smoothing=0.0, mixup=0.0, cutmix=0.0),
        optimizer=partial(torch.optim.AdamW, lr=0.03),
        schedule=constant,
        description=description or {},
    )
    dataset = Noise(stages, boxes=boxes)
    options_of_data = {"num_workers": 0, "drop_last": False, "pin_memory": False, "class_balanced": False, "seed": 0}
    data = DataModule(dataset=dataset, batch_size=5, **options_of_data)
    defaults = {
        "accelerator": "cpu",
        "max_epochs": 5,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "log_every_n_steps": 1,
        "use_distributed_sampler": False,
    }
    trainer = Trainer(callbacks=list(callbacks), default_root_dir=folder, **(defaults | options))
    trainer.fit(module, datamodule=data)
    return trainer, module


def events(folder: Path) -> list[dict[str, np.ndarray]]:
    """All files that were written, in order."""
    return [dict(np.load(path)) for path in sorted((folder / "attention").glob("*.npz"))]


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


@pytest.mark.parametrize("stages", ["train val", "train"])
def test_training_with_looks_is_bit_for_bit_training_without(tmp_path, stages):
    _, without = fit(tmp_path / "without", stages=stages)
    _, looking = fit(tmp_path / "looking", attention(), stages=stages)
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
    # When training ends, the averages become the module's weights.
    np.testing.assert_allclose(found[-1]["cross0/weights"], map_of(module, found[-1]), atol=1e-3)
    _, raw = fit(tmp_path / "raw", **options)
    assert np.abs(found[-1]["cross0/weights"] - map_of(raw, found[-1])).max() > 0.01
    if "stages" not in options:
        module.load_state_dict(spy.validated)
        np.testing.assert_allclose(found[0]["cross0/weights"], map_of(module, found[0]), atol=1e-3)


def test_maps_of_a_training_in_mixed_precision_are_those_of_its_precision(tmp_path):
    _, module = fit(tmp_path, attention(), max_epochs=1, precision="bf16-mixed")
    (event,) = events(tmp_path)
    event["input/image"] = NoiseSplit("val").images[[0, 4, 8]].numpy()  # unrounded
    with torch.autocast("cpu", dtype=torch.bfloat16):
        np.testing.assert_allclose(event["cross0/weights"], map_of(module, event), atol=5e-4)
    assert 1e-3 < np.abs(event["cross0/weights"] - map_of(module, event)).max() < 0.03


def test_after_three_failures_it_is_off_with_a_warning_and_training_goes_on(tmp_path, monkeypatch, caplog):
    calls = []

    def broken(*args, **options):
        calls.append(args)
        raise RuntimeError("no maps today")

    monkeypatch.setattr(callback_module, "event_arrays", broken)
    caplog.set_level(logging.WARNING)
    trainer, module = fit(tmp_path, attention())
    assert trainer.global_step == 15
    assert len(calls) == 3
    messages = [record.getMessage() for record in caplog.records if record.name == callback_module.__name__]
    assert ["off" in message for message in messages] == [False, False, True]
    assert all("no maps today" in message for message in messages)
    assert all(part.training for part in module.model.modules())


@pytest.mark.parametrize("options", [{"every_n_epochs": -1}, {"num_samples": 0}, {"num_scored_samples": -1}], ids=str)
def test_numbers_that_make_no_sense_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        attention(**options)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_panels_reach_wandb_as_pictures_at_the_step_of_the_validation(tmp_path, accumulate, monkeypatch):
    for name in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR"):  # set by the logger, and to be undone
        monkeypatch.setenv(name, str(tmp_path))
    logger = WandbMirror(
        project="p", name=None, group=None, tags=[], mode="offline", run_dir=str(tmp_path), run_config={}
    )
    options = {"max_epochs": 4, "accumulate_grad_batches": accumulate, "num_sanity_val_steps": 2}
    fit(tmp_path, attention(2), logger=logger, **options)
    logger.close(0)
    (folder,) = run_folders(tmp_path)
    logged = rows(folder)
    panels = [row for row in logged if any(key.startswith("attention/") for key in row)]
    validation_steps = [row["trainer/global_step"] for row in logged if "val/loss" in row]
    assert [row["trainer/global_step"] for row in panels] == validation_steps[1::2]
    for row, epoch in zip(panels, (1, 3), strict=True):
        assert [key for key in row if key.startswith("attention/")] == ["attention/image/cross0"]
        media = row["attention/image/cross0"]
        for id, caption, name in zip(("val/0", "val/4", "val/8"), media["captions"], media["filenames"], strict=True):
            assert caption == f"{id} · step {row['trainer/global_step']} · epoch {epoch}"
            with Image.open(folder / "files" / name) as picture:
                assert picture.mode == "RGB"
                pixels = np.asarray(picture)
            assert np.ptp(pixels) > 60
            assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 20


SCORES = ["energy_in_box", "energy_in_box_chance", "pointing_game", "pointing_game_chance"]
CLASSES = {"class_names": ["a", "b", "c"]}


def scores_of(module: TrainingModule, num_samples: int) -> dict[str, float]:
    """The scores of the module's present weights for a probe set."""
    split = NoiseSplit("val", boxes=True)
    samples = [split[index * len(split) // num_samples] for index in range(num_samples)]
    captured = look(module.model, {"image": torch.stack([sample.inputs["image"] for sample in samples])})
    boxes = [sample.targets["boxes"] for sample in samples]
    return mean_scores([truth_scores(captured, boxes, num_classes=len(module.description.get("class_names", ())))])


@pytest.mark.parametrize("num_samples", [2, 3, 11])
@pytest.mark.parametrize("options", [{}, {"query_per_class": True, "description": CLASSES}], ids=["whole", "classes"])
def test_scores_are_those_of_the_larger_probe_set_however_large_its_parts(tmp_path, num_samples, options):
    callback = attention(2, num_samples=num_samples)
    _, module = fit(tmp_path, callback, boxes=True, max_epochs=3, **options)
    expected = {f"attention/{name}": value for name, value in scores_of(module, 7).items()}
    assert sorted(expected) == [f"attention/{name}" for name in SCORES]
    assert callback.scores == pytest.approx(expected, abs=1e-5)
    last = events(tmp_path)[-1]
    assert {name: float(last[f"score/{name}"]) for name in SCORES} == pytest.approx(
        {name: expected[f"attention/{name}"] for name in SCORES}, abs=1e-5
    )


@pytest.mark.parametrize(("boxes", "num_scored_samples"), [(False, 7), (True, 0)])
def test_nothing_is_scored_without_boxes_or_samples(tmp_path, boxes, num_scored_samples):
    callback = attention(num_scored_samples=num_scored_samples)
    fit(tmp_path, callback, boxes=boxes, max_epochs=1)
    assert callback.scores == {}
    assert not [name for event in events(tmp_path) for name in event if name.startswith("score/")]


@pytest.mark.parametrize(("boxes", "asked"), [(False, [3]), (True, [3, 7])])
def test_each_probe_set_is_read_once(tmp_path, boxes, asked, monkeypatch):
    found, original = [], DataModule.probe
    monkeypatch.setattr(DataModule, "probe", lambda data, count: found.append(count) or original(data, count))
    fit(tmp_path, attention(), boxes=boxes, max_epochs=3)
    assert found == asked
    assert len(events(tmp_path)) == 3


def test_scores_of_a_look_that_failed_are_not_those_of_the_one_before(tmp_path, monkeypatch):
    callback, original = attention(), callback_module.event_arrays

    def broken_in_the_end(*args, **options):
        if len(events(tmp_path)) == 2:
            raise RuntimeError("no maps today")
        return original(*args, **options)

    monkeypatch.setattr(callback_module, "event_arrays", broken_in_the_end)
    fit(tmp_path, callback, boxes=True, max_epochs=3)
    assert callback.scores == {}


def test_scores_reach_csv_and_wandb_with_the_panels_in_one_row(tmp_path, monkeypatch):
    for name in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR"):  # set by the logger, and to be undone
        monkeypatch.setenv(name, str(tmp_path))
    mirror = WandbMirror(
        project="p", name=None, group=None, tags=[], mode="offline", run_dir=str(tmp_path), run_config={}
    )
    table = CSVLogger(save_dir=tmp_path, name="", version="")
    callback = attention(2)
    fit(tmp_path, callback, boxes=True, max_epochs=4, logger=[table, mirror])
    mirror.close(0)
    (folder,) = run_folders(tmp_path)
    logged = [row for row in rows(folder) if any(key.startswith("attention/") for key in row)]
    keys = sorted([f"attention/{name}" for name in SCORES] + ["attention/image/cross0"])
    assert [sorted(key for key in row if key.startswith("attention/")) for row in logged] == [keys, keys]
    assert {key: logged[-1][key] for key in callback.scores} == pytest.approx(callback.scores)
    with (tmp_path / "metrics.csv").open() as file:
        lines = [line for line in csv.DictReader(file) if line["attention/energy_in_box"]]
    assert [int(line["step"]) for line in lines] == [row["trainer/global_step"] for row in logged] == [5, 11]
    assert {key: float(lines[-1][key]) for key in callback.scores} == pytest.approx(callback.scores)


@pytest.mark.parametrize(
    ("options", "shown"),
    [
        ({"query_per_class": True, "description": CLASSES}, 3),
        ({"query_per_class": True}, 0),
        ({"description": CLASSES}, 0),
    ],
    ids=["classes", "nameless", "one query"],
)
def test_sheets_show_the_best_classes_of_each_sample_where_they_ask_for_themselves(
    tmp_path, monkeypatch, options, shown
):
    answers, original = [], callback_module.contact_sheets

    def contact_sheets(*args, **kwargs):
        answers.append(kwargs["answers"])
        return original(*args, **kwargs)

    monkeypatch.setattr(callback_module, "contact_sheets", contact_sheets)
    _, module = fit(tmp_path, attention(), max_epochs=1, **options)
    if not shown:
        assert answers == [[]]
        return
    images = NoiseSplit("val").images[[0, 4, 8]]
    best = module.eval().model({"image": images}).argsort(dim=1, descending=True)
    assert [[answer.query for answer in row] for row in answers[0]] == best.tolist()
    assert all(answer.name == CLASSES["class_names"][answer.query] for row in answers[0] for answer in row)


@pytest.mark.parametrize("precision", ["bf16-true", "bf16-mixed", "64-true"])
def test_boxes_are_scored_in_any_precision(tmp_path, precision):
    callback = attention()
    fit(tmp_path, callback, boxes=True, max_epochs=1, precision=precision, limit_val_batches=0)
    assert sorted(callback.scores) == [f"attention/{name}" for name in SCORES]
