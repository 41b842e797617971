"""Sounds in tars, each of one class or of any number; their layout is told in `perceiver.data.shard_dataset`."""

from collections.abc import Sequence
from typing import Any

from perceiver.data.audio import AudioDataset, Clips, multi_hot
from perceiver.data.base import OnError
from perceiver.data.shard_dataset import ShardDataset
from perceiver.data.shards import ShardSample
from perceiver.data.sound_file import SOUND_EXTENSIONS


class SoundShards(ShardDataset, AudioDataset):
    """Sounds in tars.

    Args:
        root, num_classes, val_fraction, test_fraction: see `ShardDataset`.
        on_error, clips: see `AudioDataset`.
        multi_label: whether a sound has any number of classes, the target `tags`, instead of one, the target `label`.
    """

    def __init__(
        self,
        *,
        root: str,
        num_classes: int,
        on_error: OnError,
        multi_label: bool,
        val_fraction: float,
        test_fraction: float,
        clips: Clips,
    ) -> None:
        super().__init__(
            root=root,
            num_classes=num_classes,
            on_error=on_error,
            clips=clips,
            val_fraction=val_fraction,
            test_fraction=test_fraction,
            endings=SOUND_EXTENSIONS,
            kind="sound",
        )
        self.multi_label = multi_label

    def labels(self, sample: ShardSample) -> Sequence[int]:
        return self.tags(sample) if self.multi_label else [self.label(sample)]

    def targets(self, sample: ShardSample) -> dict[str, Any]:
        if self.multi_label:
            return {"tags": multi_hot(self.tags(sample), self.num_classes)}
        return {"label": self.label(sample)}
