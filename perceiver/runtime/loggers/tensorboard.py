"""TensorBoard's event files, in `tensorboard/` of the run directory: `tensorboard --logdir outputs`."""

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from perceiver.runtime.loggers.base import RunInfo, RunLogger
from perceiver.runtime.nodes import leaves


class TensorBoard(RunLogger):
    """Writes scalars, images, tables as text without images, and paths of HTML pages.

    A resumed run writes another file, which makes TensorBoard discard what was logged after the checkpoint.
    """

    def __init__(self) -> None:
        if find_spec("tensorboard") is None:
            install = "uv run --extra tensorboard …, or pip install -e '.[tensorboard]'"
            raise ModuleNotFoundError(f"the package tensorboard is not installed: {install}")
        self._writer: Any = None

    def start(self, run: RunInfo) -> None:
        from torch.utils.tensorboard import SummaryWriter  # needs the extra package

        self._writer = SummaryWriter(str(run.folder / "tensorboard"), purge_step=run.step)
        self.table("config", ["key", "value"], list(leaves(dict(run.config))), run.step)

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def images(self, images: Mapping[str, Sequence[Image.Image]], captions: Sequence[str], step: int) -> None:
        for key, pictures in images.items():
            for number, picture in enumerate(pictures):
                pixels = np.asarray(picture.convert("RGB"))
                self._writer.add_image(f"{key}/{number}", pixels, step, dataformats="HWC")
            self.table(f"{key}/captions", ["sample", "caption"], list(enumerate(captions)), step)

    def html(self, key: str, page: Path, step: int) -> None:
        self._writer.add_text(key, f"`{page.absolute()}`", step)

    def table(self, key: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], step: int) -> None:
        shown = [
            number for number in range(len(columns)) if not any(isinstance(row[number], Image.Image) for row in rows)
        ]
        lines = [columns, ["---"] * len(columns), *rows]
        text = "\n".join("|".join(["", *(_cell(line[number]) for number in shown), ""]) for line in lines)
        self._writer.add_text(key, text, step)

    def flush(self) -> None:
        self._writer.flush()

    def close(self, exit_code: int) -> None:
        self._writer.close()


def _cell(value: Any) -> str:
    """Return a value as a cell of a Markdown table."""
    return "" if value is None else " ".join(str(value).replace("|", "\\|").split())
