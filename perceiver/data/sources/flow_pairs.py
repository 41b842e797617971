"""Folders of pairs of frames and their optical flow, as published data sets store them.

    root/*_img1.ppm  root/*_img2.ppm  root/*_flow.flo                             FlyingChairs
    root/…/im0.png  root/…/im1.png  root/…/forward.flo                            AutoFlow
    root/flow/SCENE/frame_0001.flo  root/clean/SCENE/frame_0001.png  …_0002.png   Sintel, root being its folder training
    root/flow_occ/000000_10.png  root/image_2/000000_10.png  …_11.png             KITTI, likewise

The second frame is that whose last number is one more. There is no split: whole scenes, the folders of flow below
`flow_folder`, are held out, and pairs by their names where there are none.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from perceiver.data.files import FLOWS, IMAGES, FramePair, following
from perceiver.data.sources.base import Item, Roles, Source
from perceiver.data.sources.folders import files_below
from perceiver.data.splits import HeldOut
from perceiver.types import Stage

FIRST_FRAMES = {"_flow": "_img1", "forward": "im0"}
"""Ending of the name of a flow -> that of its first frame in the same folder."""


class FlowPairs(Source):
    """Pairs of frames with their flow, as parts of the role `video`.

    Args:
        root: the folder that contains everything.
        flow_folder, image_folder: names of the folders of flow and of first frames, where they are not in one.
        val_fraction, test_fraction: see `HeldOut`.
    """

    def __init__(
        self, *, root: str, flow_folder: str, image_folder: str, val_fraction: float, test_fraction: float
    ) -> None:
        super().__init__()
        self.root = Path(root).expanduser()
        self.flow_folder = flow_folder
        self.image_folder = image_folder
        self.held_out = HeldOut(val_fraction=val_fraction, test_fraction=test_fraction)

    def items(self, stage: Stage, roles: Roles) -> "FlowItems | None":
        """Return the pairs of a stage; a missing frame raises when its pair is read.

        Raises:
            FileNotFoundError: there is no flow below `root`.
        """
        if not self.root.is_dir():
            raise FileNotFoundError(f"root={self.root}: no such folder")
        pairs = {}
        for path in files_below(self.root):
            flow = Path(os.path.relpath(path, self.root))
            if (first := self._first_frame(flow)) is not None:
                pairs[str(flow.with_suffix(""))] = (flow, first)
        if not pairs:
            layouts = f"*_flow.flo, forward.flo, or {self.flow_folder}/ (data.source.flow_folder)"
            raise FileNotFoundError(f"root={self.root}: no flow; there must be {layouts}")
        scenes = {name: self._scene(name) for name in pairs}
        distinct = sorted(set(scenes.values()))
        chosen = {distinct[index] for index in self.held_out.split(distinct)[stage]}
        names = [name for name in sorted(pairs) if scenes[name] in chosen]
        return FlowItems(self.root, names, [pairs[name] for name in names]) if names else None

    def _first_frame(self, flow: Path) -> Path | None:
        """Return the first frame of a flow, or that it should have; None for a file that is no flow."""
        if flow.suffix.lower() == ".flo":
            for ending, first in FIRST_FRAMES.items():
                if flow.stem.endswith(ending):
                    return self._image(flow.with_name(flow.stem.removesuffix(ending) + first))
        places = [place for place, name in enumerate(flow.parts[:-1]) if name == self.flow_folder]
        if not places or not FLOWS.has(flow.name):
            return None
        below = flow.parts[: places[0]], flow.parts[places[0] + 1 :]
        return self._image(Path(*below[0], self.image_folder, *below[1]).with_suffix(""))

    def _image(self, path: Path) -> Path:
        """Return the image of a name without ending."""
        found = (path.with_name(path.name + ending) for ending in sorted(IMAGES.endings))
        return next((one for one in found if (self.root / one).exists()), path.with_name(path.name + ".png"))

    def _scene(self, name: str) -> str:
        """Return the folder of a flow below `flow_folder`, or else the name of the flow itself."""
        parts = Path(name).parts
        if self.flow_folder in parts[:-2]:
            return str(Path(*parts[:-1]))
        return name


@dataclass(frozen=True)
class FlowItems:
    """Pairs of frames: names, and the paths of flow and first frame below a root."""

    root: Path
    names: Sequence[str]
    paths: Sequence[tuple[Path, Path]]

    roles = ("video",)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Item:
        flow, first = (self.root / path for path in self.paths[index])
        return Item({"video": FramePair(first, following(first), flow)}, {}, self.names[index])

    def sample_classes(self, index: int) -> Sequence[int]:
        return ()

    def sample_name(self, index: int) -> str:
        return self.names[index]
