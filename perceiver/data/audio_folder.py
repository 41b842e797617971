"""Sounds in class folders; how these may lie on disk is told in `perceiver.data.folders`."""

from perceiver.data.audio import AudioDataset, ClipFiles, Clips
from perceiver.data.base import HeldOut, OnError, Split
from perceiver.data.folders import ClassFolders
from perceiver.data.sound_file import SOUND_EXTENSIONS
from perceiver.types import Stage


class AudioFolder(AudioDataset):
    """Class folders of sounds, of any length, format and sample rate.

    Args:
        root, num_classes: see `ClassFolders`.
        val_fraction, test_fraction, fold, num_folds: see `HeldOut`; those of testing are for a root without `test`.
        on_error, clips: see `AudioDataset`.
    """

    def __init__(
        self,
        *,
        root: str,
        num_classes: int,
        on_error: OnError,
        val_fraction: float,
        test_fraction: float,
        fold: int | None,
        num_folds: int,
        clips: Clips,
    ) -> None:
        super().__init__(num_classes=num_classes, on_error=on_error, clips=clips)
        self.folders = ClassFolders(
            root=root,
            num_classes=num_classes,
            held_out=HeldOut(val_fraction=val_fraction, test_fraction=test_fraction, fold=fold, num_folds=num_folds),
            extensions=SOUND_EXTENSIONS,
            kind="sound",
        )

    @property
    def class_names(self) -> list[str]:
        return self.folders.class_names

    def split(self, stage: Stage) -> Split | None:
        files = self.folders.files(stage)
        if files is None:
            return None
        return ClipFiles(
            clips=self.clips,
            root=self.folders.root,
            paths=files.paths,
            labels=[(label,) for label in files.labels],
            num_classes=None,
            train=stage == "train",
        )
