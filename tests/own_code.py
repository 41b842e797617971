"""A user's package outside of this repository: source, encoder, schedule, callback, and their configs."""

from pathlib import Path

CODE = '''
import torch
from lightning.pytorch import Callback
from perceiver.data.sources.base import ItemTable, Source
from perceiver.encoders.image import ImageEncoder


class Bars(Source):
    """Upright and lying bars."""

    class_names = ["upright", "lying"]

    def items(self, stage, roles):
        number = {"train": 53, "val": 11, "test": 13}[stage]
        images = torch.zeros(number, 1, 8, 8, dtype=torch.uint8)
        for index, image in enumerate(images[:, 0]):
            (image if index % 2 else image.T)[index % 7] = 255
        names = [f"bar{index}" for index in range(number)]
        return ItemTable(parts={"image": images}, labels=[index % 2 for index in range(number)], ids=names)


class Inverted(ImageEncoder):
    def forward(self, raw, mask=None):
        return super().forward(1 - raw, mask)


class Steps(Callback):
    """Counts them; kept in checkpoints."""

    def __init__(self, *, start: int) -> None:
        self.count = start

    def on_train_batch_end(self, *args, **kwargs):
        self.count += 1

    def state_dict(self):
        return {"count": self.count}

    def load_state_dict(self, state):
        self.count = state["count"]


def halved(step: int, total_steps: int, *, at: float) -> float:
    return 1.0 if step < at * total_steps else 0.5
'''
CONFIGS = {
    "data/bars": """
defaults: [/reader@readers.image: image, _self_]
_target_: perceiver.data.dataset.Dataset
on_error: skip
source: {_target_: NAME.parts.Bars, num_classes: 2}
readers: {image: {image_size: 8, channels: 1, augment: null}}
""",
    "encoder/inverted": "{defaults: [image_patches, _self_], _target_: NAME.parts.Inverted}",
    "callbacks/steps": "{steps: {_target_: NAME.parts.Steps, start: 3}}",
    "schedule/halved": "{_target_: NAME.parts.halved, _partial_: true, at: 0.5}",
}
CHOICES = ["data=bars", "encoder@model.encoders.image=inverted", "callbacks=[steps]", "schedule=halved"]


def write_package(folder: Path, name: str) -> Path:
    """Write the package into a folder, and its configs into `conf` beside it."""
    (folder / name).mkdir(parents=True)
    (folder / name / "parts.py").write_text(CODE)
    for path, config in CONFIGS.items():
        file = folder / "conf" / f"{path}.yaml"
        file.parent.mkdir(parents=True)
        file.write_text(config.replace("NAME", name))
    return folder
