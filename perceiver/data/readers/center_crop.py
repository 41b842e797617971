"""Images as the published image classifiers read them: cropped, then resized."""

from jaxtyping import UInt8
from torch import Tensor

from perceiver.data.readers.image import ImageReader
from perceiver.data.readers.pixels import resize


class CenterCropReader(ImageReader):
    """Images whose center is cropped in the original resolution and resized by bicubic interpolation.

    Source: `PerceiverImageProcessor` of transformers 5.23, with torchvision, whose pixels these are. DeepMind's code
    resizes with OpenCV, without antialiasing.

    Args:
        image_size, channels, augment, max_value: see `ImageReader`.
        eval_crop: longer side of the center, which has the shape of `image_size`, as a fraction of the shorter side of
            the image; 224/256 in the published models, whose images are squares.
    """

    def resize(self, image: UInt8[Tensor, "channels _ _"], crop: float = 1.0) -> UInt8[Tensor, "channels height width"]:
        height, width = image.shape[-2:]
        rows, columns = (max(int(crop * min(height, width) * (side / max(self.size))), 1) for side in self.size)
        top, left = (height - rows) // 2, (width - columns) // 2
        return resize(image[:, top : top + rows, left : left + columns], self.size, mode="bicubic")
