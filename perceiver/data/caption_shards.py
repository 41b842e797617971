"""Images and sounds with captions in tars; how these are laid out is told in `perceiver.data.shard_dataset`."""

from collections.abc import Sequence

from perceiver.data.audio import AudioDataset, Clips
from perceiver.data.base import OnError
from perceiver.data.image_augment import ImageAugment
from perceiver.data.images import EXTENSIONS, ImageDataset
from perceiver.data.shard_dataset import ShardCaptions
from perceiver.data.sound_file import SOUND_EXTENSIONS


class CaptionShards(ShardCaptions, ImageDataset):
    """Images with captions in tars.

    Args:
        root, val_fraction, test_fraction: see `ShardDataset`.
        on_error, image_size, channels, augment, max_value: see `ImageDataset`.
    """

    def __init__(
        self,
        *,
        root: str,
        on_error: OnError,
        image_size: int | Sequence[int],
        channels: int,
        augment: ImageAugment | None,
        max_value: float | None = None,
        val_fraction: float,
        test_fraction: float,
    ) -> None:
        super().__init__(
            root=root,
            on_error=on_error,
            image_size=image_size,
            channels=channels,
            augment=augment,
            max_value=max_value,
            val_fraction=val_fraction,
            test_fraction=test_fraction,
            endings=EXTENSIONS,
            kind="image",
        )


class SoundCaptionShards(ShardCaptions, AudioDataset):
    """Sounds with captions in tars.

    Args:
        root, val_fraction, test_fraction: see `ShardDataset`.
        on_error, clips: see `AudioDataset`.
    """

    def __init__(
        self, *, root: str, on_error: OnError, val_fraction: float, test_fraction: float, clips: Clips
    ) -> None:
        super().__init__(
            root=root,
            on_error=on_error,
            clips=clips,
            val_fraction=val_fraction,
            test_fraction=test_fraction,
            endings=SOUND_EXTENSIONS,
            kind="sound",
        )
