"""Images as the published image classifiers read them: cropped, then resized."""

from jaxtyping import UInt8
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from perceiver.data.readers.image import ImageReader


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
        center = F.crop(image, (height - rows) // 2, (width - columns) // 2, rows, columns)
        return F.resize(center, list(self.size), interpolation=InterpolationMode.BICUBIC, antialias=True)
