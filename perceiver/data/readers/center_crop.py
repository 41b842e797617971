"""Images as the published image classifiers read them: cropped, then resized."""

from jaxtyping import UInt8
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from perceiver.data.readers.image import ImageReader


class CenterCropReader(ImageReader):
    """Images whose central square is cropped in the original resolution and resized by bicubic interpolation.

    Source: `PerceiverImageProcessor` of transformers 5.23, with torchvision, whose pixels these are. DeepMind's code
    resizes with OpenCV, without antialiasing.

    Args:
        image_size, channels, augment, max_value: see `ImageReader`.
        eval_crop: side of the square as a fraction of the shorter side; 224/256 in the published models.
    """

    def resize(self, image: UInt8[Tensor, "channels _ _"], crop: float = 1.0) -> UInt8[Tensor, "channels height width"]:
        height, width = image.shape[-2:]
        side = max(int(crop * min(height, width)), 1)
        square = F.crop(image, (height - side) // 2, (width - side) // 2, side, side)
        return F.resize(square, list(self.size), interpolation=InterpolationMode.BICUBIC, antialias=True)
