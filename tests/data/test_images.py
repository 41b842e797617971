"""Image files of all kinds, their ranges of values, resizing and augmentation."""

import os
import struct
import zlib
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as F
from torchvision.tv_tensors import Mask

from perceiver.data.files import UnreadableError
from perceiver.data.readers import pixels
from perceiver.data.readers.image import MAX_PIXELS, Affine, ImageAugment, ImageReader, RandAugment, read_image
from tests.data.datasets import built

WIDTH, HEIGHT = 13, 11


def image_reader(image_size=7, **options) -> ImageReader:
    return built(ImageReader, image_size=image_size, **options)


def train(reader: ImageReader, image: torch.Tensor) -> torch.Tensor:
    return reader.read(image, train=True).values


def uniform(mode: str, color) -> Image.Image:
    return Image.new(mode, (WIDTH, HEIGHT), color)


def palette(color: tuple[int, int, int]) -> Image.Image:
    image = uniform("P", 0)
    image.putpalette(color)
    return image


def assert_unreadable(path: Path, message: str = ".", channels=3, max_value=None):
    """Reading fails, and the error names the file once and matches the message."""
    with pytest.raises(UnreadableError, match=message) as error:
        read_image(path, channels, max_value)
    assert str(error.value).count(str(path)) == 1


GRAY_16 = np.full((HEIGHT, WIDTH), 2**15, dtype=np.uint16)
FORMATS = {
    "L.png": (uniform("L", 71), {}, (71, 71, 71)),
    "RGB.png": (uniform("RGB", (255, 0, 0)), {}, (255, 0, 0)),
    "RGBA-opaque.png": (uniform("RGBA", (7, 11, 13, 255)), {}, (7, 11, 13)),
    "RGBA-half.png": (uniform("RGBA", (0, 0, 0, 128)), {}, (127, 127, 127)),
    "LA.png": (uniform("LA", (0, 0)), {}, (255, 255, 255)),
    "L-transparent.png": (uniform("L", 5), {"transparency": 5}, (255, 255, 255)),
    "RGB-transparent.png": (uniform("RGB", (5, 7, 11)), {"transparency": (5, 7, 11)}, (255, 255, 255)),
    "P.png": (palette((17, 19, 23)), {}, (17, 19, 23)),
    "P-transparent.png": (palette((17, 19, 23)), {"transparency": 0}, (255, 255, 255)),
    "1.png": (uniform("1", 1), {}, (255, 255, 255)),
    "16-bit.png": (Image.fromarray(GRAY_16), {}, (127.5,) * 3),
    "16-bit-big-endian.tif": (Image.fromarray(GRAY_16.astype(">u2")), {}, (127.5,) * 3),
    "32-bit.tif": (uniform("I", 2**16 - 1), {}, (255, 255, 255)),
    "float.tif": (uniform("F", 0.5), {}, (127.5,) * 3),
    "CMYK.jpg": (uniform("CMYK", (0, 255, 255, 0)), {"quality": 100}, (255, 0, 0)),
    "YCbCr.jpg": (uniform("YCbCr", (71, 128, 128)), {"quality": 100}, (71, 71, 71)),
    "bmp.bmp": (uniform("RGB", (3, 5, 7)), {}, (3, 5, 7)),
    "webp-transparent.webp": (uniform("RGBA", (31, 37, 41, 0)), {"lossless": True}, (255, 255, 255)),
    "ppm.ppm": (uniform("RGB", (3, 5, 7)), {}, (3, 5, 7)),
    "pgm.pgm": (uniform("L", 5), {}, (5, 5, 5)),
    "png-by-content.jpg": (uniform("RGB", (3, 5, 7)), {"format": "PNG"}, (3, 5, 7)),
}
"""Name -> image, options of `save`, and the RGB values of every pixel."""


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.filterwarnings("error")
def test_formats_are_decoded_to_gray_and_rgb(tmp_path, name):
    image, options, rgb = FORMATS[name]
    image.save(tmp_path / name, **options)
    for channels, color in ((3, rgb), (1, [np.dot(rgb, (0.299, 0.587, 0.114))])):
        decoded = read_image(tmp_path / name, channels)
        assert decoded.dtype == torch.uint8
        assert decoded.shape == (channels, HEIGHT, WIDTH)
        torch.testing.assert_close(
            decoded.float(), torch.tensor(color).float()[:, None, None].expand(decoded.shape), rtol=0, atol=2.0
        )


def test_exif_rotation_is_applied(tmp_path):
    image = uniform("RGB", "black")
    image.paste("white", (0, 0, WIDTH, 2))  # the upper edge
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate clockwise
    image.save(tmp_path / "x.png", exif=exif)
    decoded = read_image(tmp_path / "x.png", 1)
    assert decoded.shape == (1, WIDTH, HEIGHT)
    assert (decoded[:, :, -2:] == 255).all()
    assert (decoded[:, :, :-2] == 0).all()
    tiff(tmp_path / "x.tif", np.tile(np.arange(3, dtype="<u2") * 32767, (5, 1)), tags={274: 6})
    assert read_image(tmp_path / "x.tif", 1)[0, :, 0].tolist() == [0, 127, 255]


def test_the_first_frame_of_an_animation_is_read(tmp_path):
    frames = [uniform("RGB", color) for color in ("red", "blue")]
    frames[0].save(tmp_path / "x.webp", save_all=True, append_images=frames[1:], lossless=True)
    assert read_image(tmp_path / "x.webp", 3)[:, 0, 0].tolist() == [255, 0, 0]


def noise_bytes(path: Path) -> bytes:
    pixels = np.random.default_rng(0).integers(256, size=(HEIGHT, WIDTH, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path.read_bytes()


def png_chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png_header(width: int, height: int, bits: int = 8, color_type: int = 0) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, color_type, 0, 0, 0))


BROKEN = {
    "empty.jpg": lambda path: b"",
    "text.jpg": lambda path: b"<html>not found</html>",
    "half.jpg": lambda path: (data := noise_bytes(path))[: len(data) // 2],
    "headless.jpg": lambda path: noise_bytes(path)[23:],
    "half.png": lambda path: (data := noise_bytes(path))[: len(data) // 2],
    "header-only.png": lambda path: png_header(WIDTH, HEIGHT) + struct.pack(">I", 997) + b"IDAT",
}


@pytest.mark.parametrize("name", BROKEN)
def test_damaged_files_are_unreadable(tmp_path, name):
    (tmp_path / name).write_bytes(BROKEN[name](tmp_path / name))
    assert_unreadable(tmp_path / name)


def test_what_is_not_an_image_file_is_unreadable(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    assert_unreadable(tmp_path / "pipe.png", "a pipe or a device")
    assert_unreadable(tmp_path / "missing.png", "no such file$")
    assert_unreadable(tmp_path, "Is a directory")
    uniform("LAB", (255, 128, 128)).save(tmp_path / "LAB.tif")  # PIL has no conversion
    assert_unreadable(tmp_path / "LAB.tif", channels=1)
    for kind in ("EPS", "ICO", "PCX", "TGA"):  # formats of no data set
        uniform("RGB", (3, 5, 7)).save(tmp_path / "x.png", format=kind)
        assert_unreadable(tmp_path / "x.png", "not an image$")


@pytest.mark.parametrize("size", [(60_000, 60_000), (10_000, MAX_PIXELS // 10_000 + 1)], ids=str)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_decompression_bombs_are_rejected_by_their_header(tmp_path, size):
    (tmp_path / "bomb.png").write_bytes(png_header(*size) + struct.pack(">I", 997) + b"IDAT")
    assert_unreadable(tmp_path / "bomb.png", r"bomb\.png: .* pixels")


def tiff(
    path: Path, values: np.ndarray, *, bits: int = 0, photometric: int = 1, tags: dict[int, int] | None = None
) -> Path:
    """Write a gray, uncompressed TIFF; with `bits=12`, samples are packed."""
    kinds = {"u": 1, "i": 2, "f": 3}
    data = values.tobytes()
    if bits == 12:
        text = "".join(f"{value:012b}" for value in values.flatten().tolist())
        data = int(text, 2).to_bytes(len(text) // 8, "big")
    height, width = values.shape
    entries = {256: width, 257: height, 258: bits or 8 * values.itemsize, 259: 1, 262: photometric, 277: 1}
    entries |= {278: height, 279: len(data), 339: kinds[values.dtype.kind]} | (tags or {})
    entries[273] = 8 + 2 + 12 * (len(entries) + 1) + 4
    fields = b"".join(struct.pack("<HHIHH", tag, 3, 1, value, 0) for tag, value in sorted(entries.items()))
    path.write_bytes(b"II*\0" + struct.pack("<IH", 8, len(entries)) + fields + struct.pack("<I", 0) + data)
    return path


def row(kind: str, *values: float) -> np.ndarray:
    return np.tile(np.array(values, np.dtype(kind)), (5, 2))


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        *(("<f4", (0.25, value), "not finite") for value in (np.nan, np.inf, -np.inf)),
        ("<f4", (-0.5, 0.25), "from -0.5 to 0.25, which are not from 0 to 1;.*data.max_value"),
        ("<f4", (0.25, 256), "from 0.25 to 256, which are not from 0 to 255;.*data.max_value"),
        ("i1", (5, -1), "from -1 to 5"),
        ("<i4", (-1, -1), "from -1 to -1, which are not from 0 to 255"),
        ("<i4", (2**16, 0), "from 0 to 65536, which are not from 0 to 65535"),
    ],
)
def test_values_outside_of_any_range_are_refused(tmp_path, kind, values, message):
    assert_unreadable(tiff(tmp_path / "x.tif", row(kind, *values)), message)


DEPTHS = {
    # declared by bits, sign or tag
    "16 bits": (row("<u2", 0, 65535, 257, 25700), {}, None, [0, 255, 1, 100], None),
    "12 bits": (row("<u2", 0, 4095, 803, 0), {"bits": 12}, None, [0, 255, 50, 0], None),
    "signed 16 bits": (row("<i2", 0, 32767, 12850, 0), {}, None, [0, 255, 100, 0], None),
    "signed 8 bits": (row("i1", 0, 127, 1, 50), {}, None, [0, 255, 2, 100], None),
    "white is zero": (row("<u2", 0, 65535, 257, 25700), {"photometric": 0}, None, [255, 0, 254, 155], None),
    "8 bits, white is zero": (row("u1", 0, 255, 1, 100), {"photometric": 0}, None, [255, 0, 254, 155], None),
    "a tag": (row("<u2", 0, 4095, 16, 803), {"tags": {281: 4095}}, None, [0, 255, 1, 50], None),
    "a tag of floats": (row("<f4", 0, 0.5, 0.25, 1), {"tags": {341: 255}}, None, [0, 0, 0, 1], None),
    # a tag with the largest value of this file declares nothing
    "a statistic": (row("<u2", 0, 40000, 257, 0), {"tags": {281: 40000}}, None, [0, 156, 1, 0], None),
    # `max_value` has precedence
    "max_value": (row("<u2", 0, 1023, 401, 0), {}, 1023, [0, 255, 100, 0], None),
    "max_value of floats": (row("<f4", 0, 0.5, 51, 255), {}, 255, [0, 0, 51, 255], None),
    "max_value, white is zero": (row("<u2", 0, 1023, 401, 0), {"photometric": 0}, 1023, [255, 0, 155, 255], None),
    # guesses, with a warning
    "8 bits in signed 32": (row("<i4", 0, 255, 200, 1), {}, None, [0, 255, 200, 1], "0 to 255"),
    "8 bits in unsigned 32": (row("<u4", 0, 255, 200, 1), {}, None, [0, 255, 200, 1], "0 to 255"),
    "16 bits in 32": (row("<i4", 0, 65535, 257, 4095), {}, None, [0, 255, 1, 16], "0 to 65535"),
    "floats to 1": (row("<f4", 0, 1, 0.2, 0), {}, None, [0, 255, 51, 0], "0 to 1 "),
    "floats to 255": (row("<f4", 0, 200, 1, 0), {}, None, [0, 200, 1, 0], "0 to 255"),
    "8 bits in 16": (row("<u2", 0, 255, 200, 1), {}, None, [0, 1, 1, 0], "data.max_value=255 "),
    "12 bits in 16": (row("<u2", 0, 4093, 257, 0), {}, None, [0, 16, 1, 0], "data.max_value=4095 "),
    "14 bits in 16": (row("<u2", 0, 16383, 257, 0), {}, None, [0, 64, 1, 0], "data.max_value=16383 "),
}  # fmt: skip
"""Kind of TIFF -> values, options of `tiff`, `max_value`, 8-bit values, and a part of the warning."""


@pytest.mark.parametrize("kind", DEPTHS)
def test_gray_values_are_scaled_by_the_declared_range_and_guesses_are_warned_of_once(tmp_path, warnings, kind):
    values, options, max_value, expected, warning = DEPTHS[kind]
    path = tiff(tmp_path / "x.tif", values, **options)
    assert read_image(path, 1, max_value)[0, 2].tolist() == expected * 2
    read_image(path, 3, max_value)
    assert len(warnings.messages) == (warning is not None)
    assert all(str(path) in text and warning in text and "data.max_value" in text for text in warnings.messages)


def test_dark_files_are_warned_of_once_per_format_and_depth(tmp_path, warnings):
    for largest, white in ((211, 255), (1013, 1023), (4093, 4095), (239, 255)):
        for ending in ("png", "tif"):
            path = tmp_path / f"{largest}.{ending}"
            Image.fromarray(np.full((5, 7), largest, np.uint16)).save(path)
            read_image(path, 1)
            about_this = [f"data.max_value={white} " in text for text in warnings.messages if str(path) in text]
            assert about_this == [True] * (largest != 239)


@pytest.mark.parametrize(("color_type", "channels"), [(0, 1), (2, 3), (4, 2), (6, 4)])
def test_a_png_of_16_bits_that_uses_only_the_lower_ones_is_warned_of(tmp_path, warnings, color_type, channels):
    path = tmp_path / "x.png"
    for value, num_warnings in ((30000, 0), (255, 1)):
        pixels = np.full((5, 7, channels), value)
        if color_type in (4, 6):
            pixels[..., -1] = 65535  # opaque
        data = zlib.compress(b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels))
        path.write_bytes(png_header(7, 5, 16, color_type) + png_chunk(b"IDAT", data) + png_chunk(b"IEND", b""))
        assert read_image(path, 1).unique().item() == pytest.approx(value / 257, abs=1)
        assert [str(path) in text and "nearly black" in text for text in warnings.messages] == [True] * num_warnings
    if color_type:
        assert_unreadable(path, "max_value=255 ", max_value=255)
    else:
        assert read_image(path, 1, 255).unique().item() == 255


SIZES = [((101, 101), (31, 47)), ((103, 211), 31), ((211, 103), (53, 29)), ((1009, 13), 31), ((13, 1009), (53, 29))]


@pytest.mark.parametrize(("source", "target"), SIZES, ids=str)
def test_resizing_keeps_the_center_and_the_aspect_ratio(source, target):
    reader = image_reader(target, channels=1)
    height, width = source
    scale = max(reader.size[0] / height, reader.size[1] / width)
    side = max(round(min(height, width) / 5) // 2 * 2 + 1, 1)
    image = torch.zeros(1, height, width, dtype=torch.uint8)
    top, left = (height - side) // 2, (width - side) // 2
    image[:, top : top + side, left : left + side] = 255
    resized = reader.resize(image)
    assert resized.dtype == torch.uint8
    assert resized.shape == (1, *reader.size)
    weights = resized[0].double()
    assert weights.sum() / 255 == pytest.approx((side * scale) ** 2, rel=0.15)
    for axis in (0, 1):
        profile = weights.sum(dim=1 - axis)
        position = (profile * torch.arange(len(profile))).sum() / profile.sum()
        assert position == pytest.approx((len(profile) - 1) / 2, abs=1.0)
        assert (profile / profile.max()).sum() == pytest.approx(side * scale, abs=1.1)


@pytest.mark.parametrize("layout", ["planar", "interleaved", "crop"])
@pytest.mark.parametrize("channels", [1, 3])
def test_pixels_are_those_of_torchvision(channels, layout):
    shape = (61, 43, channels)
    picture = torch.randint(256, shape, dtype=torch.uint8).permute(2, 0, 1)
    picture = {"planar": picture.contiguous(), "interleaved": picture, "crop": picture[:, 3:-2, 5:]}[layout]
    for image, size in product((picture, pixels.to_float(picture)), ((17, 13), (97, 89), picture.shape[1:])):
        assert torch.equal(pixels.resize(image, size), F.resize(image, list(size), antialias=True))
        cubic = F.resize(image, list(size), interpolation=F.InterpolationMode.BICUBIC, antialias=True)
        assert torch.equal(pixels.resize(image, size, mode="bicubic"), cubic)
    for image in (picture, pixels.to_float(picture)):
        assert torch.equal(pixels.center_crop(image, (17, 14)), F.center_crop(image, [17, 14]))
        if channels == 3:
            assert torch.equal(pixels.to_gray(image), F.rgb_to_grayscale(image))
    assert torch.equal(pixels.to_float(picture), F.to_dtype(picture, torch.float32, scale=True))
    assert torch.equal(
        pixels.resize_mask(picture[0], (17, 97)), F.resize(Mask(picture[0]), [17, 97]).as_subclass(Tensor)
    )
    drawn = Image.fromarray(picture.permute(1, 2, 0).squeeze().numpy())
    assert torch.equal(pixels.pil_to_tensor(drawn), F.pil_to_tensor(drawn))


def test_images_of_any_shape_are_resized_to_the_size():
    sources = [(1, 1), (1, 2), (2, 1), (1, 97), (3, 7), (7, 3)]
    for source, target in product(sources, (1, 5, (3, 7))):
        resized = image_reader(target).resize(torch.full((3, *source), 131, dtype=torch.uint8))
        assert resized.shape == (3, *image_reader(target).size)
        assert (resized == 131).all()
    image = torch.randint(256, (3, 5, 7), dtype=torch.uint8)
    assert torch.equal(image_reader((5, 7)).resize(image), image)
    strip = torch.zeros(1, 1, 50_000_000, dtype=torch.uint8)  # must not be enlarged as a whole
    assert image_reader(997, channels=1).resize(strip).shape == (1, 997, 997)


@pytest.mark.parametrize("target", [31, (31, 47), 128], ids=str)
def test_eval_crop_keeps_the_center_in_evaluation_only(target):
    reader = image_reader(target, channels=1, augment=ImageAugment(), eval_crop=0.5)
    image = torch.zeros(1, 128, 128, dtype=torch.uint8)
    image[:, 30:98, 30:98] = 255  # a little more than the half of each side
    evaluated = reader.read(image, train=False).values
    assert evaluated.shape[1:] == reader.size
    assert evaluated.min() > 0.99
    assert train(reader, image).mean() < 0.6


AUGMENTS = {
    "crop_padding": {"crop_padding": 3},
    "min_scale": {"min_scale": 0.3},
    "horizontal_flip": {"horizontal_flip": 1.0},
    "rotation": {"affine": Affine(rotation=45.0, translation=0.0, scaling=0.0)},
    "translation": {"affine": Affine(rotation=0.0, translation=0.4, scaling=0.0)},
    "scaling": {"affine": Affine(rotation=0.0, translation=0.0, scaling=0.5)},
    "rand_augment": {"rand_augment": RandAugment(num_ops=2, magnitude=20)},
    "erasing": {"erasing": 1.0},
}
AUGMENTS["all"] = {name: value for options in AUGMENTS.values() for name, value in options.items()}


@pytest.mark.parametrize("name", AUGMENTS)
@pytest.mark.parametrize(("channels", "source"), [(1, (37, 19)), (3, (29, 31))])
def test_augmentation_changes_training_images_only_and_follows_torchs_generator(name, channels, source):
    image = torch.randint(256, (channels, *source), dtype=torch.uint8)
    plain = image_reader((29, 31), channels=channels)
    augmented = image_reader((29, 31), channels=channels, augment=ImageAugment(**AUGMENTS[name]))
    evaluated = augmented.read(image, train=False).values
    assert torch.equal(evaluated, plain.read(image, train=False).values)
    runs = []
    for seed in (3, 3, 5):
        torch.manual_seed(seed)
        runs.append([train(augmented, image) for _ in range(7)])
    for output in runs[0]:
        assert output.dtype == torch.float32
        assert output.shape == (channels, 29, 31)
        assert 0.0 <= output.min() <= output.max() <= 1.0
    assert any(not torch.equal(output, evaluated) for output in runs[0])
    first, again, other = ([output.numpy().tobytes() for output in run] for run in runs)
    assert first == again
    if name != "horizontal_flip":
        assert len(set(first)) > 3
        assert first != other


OFF = ImageAugment(
    affine=Affine(rotation=0.0, translation=0.0, scaling=0.0), rand_augment=RandAugment(num_ops=0, magnitude=9)
)


@pytest.mark.parametrize("augment", [None, OFF], ids=["none", "all off"])
def test_without_augmentation_training_images_equal_those_of_evaluation(augment):
    image = torch.randint(256, (3, 29, 31), dtype=torch.uint8)
    reader = image_reader(13, augment=augment)
    before = torch.get_rng_state()
    assert torch.equal(train(reader, image), reader.read(image, train=False).values)
    assert torch.equal(torch.get_rng_state(), before)


def test_flipping_mirrors_left_and_right():
    image = torch.randint(256, (3, 5, 7), dtype=torch.uint8)
    flipped = train(image_reader((5, 7), augment=ImageAugment(horizontal_flip=1.0)), image)
    torch.testing.assert_close(flipped, image.flip(-1) / 255)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: image_reader(channels=2), "channels=2"),
        (lambda: image_reader(0), "image_size=0"),
        (lambda: image_reader((7, 0)), r"image_size=\(7, 0\)"),
        (lambda: image_reader(eval_crop=1.5), "eval_crop=1.5"),
        (lambda: image_reader(max_value=0), "max_value=0"),
        (lambda: image_reader((5, 7), augment=ImageAugment(crop_padding=5)), "crop_padding=5"),
        (lambda: ImageAugment(min_scale=0.0), "min_scale=0"),
        (lambda: ImageAugment(horizontal_flip=1.5), "interval"),
        (lambda: ImageAugment(erasing=-0.1), "interval"),
        (lambda: RandAugment(num_ops=1, magnitude=31), "magnitude=31"),
        (lambda: Affine(rotation=0.0, translation=2.0, scaling=0.0), "translation"),
    ],
)
def test_invalid_settings_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
