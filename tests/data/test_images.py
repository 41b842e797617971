import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from perceiver.data import files
from perceiver.data.dataset import Dataset
from perceiver.data.files import UnreadableError
from perceiver.data.readers.image import ImageAugment, ImageReader
from perceiver.data.readers.image_file import MAX_PIXELS, read_image
from perceiver.data.sources.base import Source
from tests.data.datasets import built

WIDTH, HEIGHT = 13, 11
WHITE = 255.0


class Nothing(Source):
    def items(self, stage, roles):
        return None


def pictures(image_size=7, **options) -> ImageReader:
    return built(ImageReader, image_size=image_size, **options)


def flat(mode: str, colour) -> Image.Image:
    return Image.new(mode, (WIDTH, HEIGHT), colour)


def palette(*colours: tuple[int, int, int]) -> Image.Image:
    image = flat("P", 0)
    image.putpalette([value for colour in colours for value in colour])
    return image


GREY16 = np.full((HEIGHT, WIDTH), 2**15, dtype=np.uint16)
RED_AS_GREY = 76.0  # 0.299 * 255

# name -> (image, options of save, what every pixel is as RGB)
ZOO = {
    "L.png": (flat("L", 71), {}, (71, 71, 71)),
    "RGB.png": (flat("RGB", (255, 0, 0)), {}, (255, 0, 0)),
    "RGBA-opaque.png": (flat("RGBA", (7, 11, 13, 255)), {}, (7, 11, 13)),
    "RGBA-transparent.png": (flat("RGBA", (0, 0, 0, 0)), {}, (255, 255, 255)),
    "RGBA-half.png": (flat("RGBA", (0, 0, 0, 128)), {}, (127, 127, 127)),
    "LA.png": (flat("LA", (0, 0)), {}, (255, 255, 255)),
    "L-transparent.png": (flat("L", 5), {"transparency": 5}, (255, 255, 255)),
    "RGB-transparent.png": (flat("RGB", (5, 7, 11)), {"transparency": (5, 7, 11)}, (255, 255, 255)),
    "P.png": (palette((17, 19, 23)), {}, (17, 19, 23)),
    "P-transparent.png": (palette((17, 19, 23)), {"transparency": 0}, (255, 255, 255)),
    "1-white.png": (flat("1", 1), {}, (255, 255, 255)),
    "1-black.png": (flat("1", 0), {}, (0, 0, 0)),
    "16-bit.png": (Image.fromarray(GREY16), {}, (127.5,) * 3),
    "16-bit.tif": (Image.fromarray(GREY16), {}, (127.5,) * 3),
    "16-bit-big-endian.tif": (Image.fromarray(GREY16.astype(">u2")), {}, (127.5,) * 3),
    "32-bit.tif": (flat("I", 2**16 - 1), {}, (255, 255, 255)),
    "float-unit.tif": (flat("F", 0.5), {}, (127.5,) * 3),
    "float-bytes.tif": (flat("F", 131.0), {}, (131, 131, 131)),
    "CMYK.jpg": (flat("CMYK", (0, 255, 255, 0)), {"quality": 100}, (255, 0, 0)),
    "YCbCr.jpg": (flat("YCbCr", (71, 128, 128)), {"quality": 100}, (71, 71, 71)),
    "bmp.bmp": (flat("RGB", (3, 5, 7)), {}, (3, 5, 7)),
    "webp.webp": (flat("RGB", (31, 37, 41)), {"lossless": True}, (31, 37, 41)),
    "webp-transparent.webp": (flat("RGBA", (31, 37, 41, 0)), {"lossless": True}, (255, 255, 255)),
    "ppm.ppm": (flat("RGB", (3, 5, 7)), {}, (3, 5, 7)),
    "pgm.pgm": (flat("L", 5), {}, (5, 5, 5)),
    "named-wrongly.jpg": (flat("RGB", (3, 5, 7)), {"format": "PNG"}, (3, 5, 7)),
}


@pytest.mark.parametrize("name", ZOO)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.filterwarnings("error")
def test_any_kind_of_image_file_is_read_as_what_it_shows(tmp_path, name, channels):
    image, options, rgb = ZOO[name]
    image.save(tmp_path / name, **options)
    read = read_image(tmp_path / name, channels)
    assert read.dtype == torch.uint8
    assert read.shape == (channels, HEIGHT, WIDTH)
    grey = np.dot(rgb, (0.299, 0.587, 0.114))
    wanted = torch.tensor(rgb if channels == 3 else [grey], dtype=torch.float32)[:, None, None].expand(read.shape)
    torch.testing.assert_close(read.float(), wanted, rtol=0, atol=2.0)


def test_what_pil_cannot_convert_is_unreadable(tmp_path):
    flat("LAB", (255, 128, 128)).save(tmp_path / "LAB.tif")
    with pytest.raises(UnreadableError, match=r"LAB\.tif"):
        read_image(tmp_path / "LAB.tif", 1)


def test_exif_rotation_is_applied(tmp_path):
    image = flat("RGB", "black")
    image.paste("white", (0, 0, WIDTH, 2))  # the upper edge
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera lay on its side: turn clockwise
    image.save(tmp_path / "x.png", exif=exif)
    read = read_image(tmp_path / "x.png", 1)
    assert read.shape == (1, WIDTH, HEIGHT)
    assert (read[:, :, -2:] == 255).all()
    assert (read[:, :, :-2] == 0).all()


def test_of_an_animation_the_first_frame_is_read(tmp_path):
    frames = [flat("RGB", colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "x.webp", save_all=True, append_images=frames[1:], lossless=True)
    assert read_image(tmp_path / "x.webp", 3)[:, 0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("size", [(1, 1), (1, 997), (997, 1)], ids=str)
def test_images_of_extreme_shape_are_read(tmp_path, size):
    Image.new("RGB", size, "white").save(tmp_path / "x.png")
    assert read_image(tmp_path / "x.png", 3).shape == (3, *size[::-1])


def picture_bytes(path: Path) -> bytes:
    noise = np.random.default_rng(0).integers(256, size=(HEIGHT, WIDTH, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    return path.read_bytes()


def png_header(width: int, height: int) -> bytes:
    """The beginning of a grey PNG, up to where its pixels would come."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    header = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
    return header + struct.pack(">I", 997) + b"IDAT"


BROKEN = {
    "empty.jpg": lambda path: b"",
    "text.jpg": lambda path: b"<html>not found</html>",
    "half.jpg": lambda path: (data := picture_bytes(path))[: len(data) // 2],
    "headless.jpg": lambda path: picture_bytes(path)[23:],
    "half.png": lambda path: (data := picture_bytes(path))[: len(data) // 2],
    "header-only.png": lambda path: png_header(WIDTH, HEIGHT),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_unreadable_and_named(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(BROKEN[name](path))
    with pytest.raises(UnreadableError, match=name):
        read_image(path, 3)


@pytest.mark.parametrize("size", [(60_000, 60_000), (10_000, MAX_PIXELS // 10_000 + 1)], ids=str)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_file_that_claims_too_many_pixels_is_refused_by_its_header(tmp_path, size):
    (tmp_path / "bomb.png").write_bytes(png_header(*size))
    with pytest.raises(UnreadableError, match=r"bomb\.png: .* pixels"):
        read_image(tmp_path / "bomb.png", 3)


@pytest.mark.parametrize("place", [(0, 0), (5, 7), (-1, -1)])
@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.nan, "holds values that are not finite"),
        (np.inf, "holds values that are not finite"),
        (-np.inf, "holds values that are not finite"),
        (-0.5, r"holds values from -0\.5 to 0\.25, which are not from 0 to 1"),
        (256, "holds values from 0.25 to 256, which are not from 0 to 255"),
    ],
)
def test_a_value_that_no_image_has_is_refused_wherever_it_is(tmp_path, place, value, message):
    pixels = np.full((HEIGHT, WIDTH), 0.25, np.float32)
    pixels[place] = value
    Image.fromarray(pixels).save(tmp_path / "x.tif")
    with pytest.raises(UnreadableError, match=rf"x\.tif: {message}"):
        read_image(tmp_path / "x.tif", 3)


def tiff(
    path: Path, values: np.ndarray, *, bits: int = 0, photometric: int = 1, tags: dict[int, int] | None = None
) -> Path:
    """A TIFF written by hand, grey and uncompressed; `bits` are those of a sample, packed, where they are 12."""
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


def ramp(kind: str, *values: float) -> np.ndarray:
    return np.tile(np.array(values, np.dtype(kind)), (5, 2))


DEPTHS = {
    # what is declared, by bits, by sign or by a tag, is the range
    "16 bits": (ramp("<u2", 0, 65535, 257, 25700), {}, None, [0, 255, 1, 100], None),
    "12 bits": (ramp("<u2", 0, 4095, 803, 0), {"bits": 12}, None, [0, 255, 50, 0], None),
    "signed 16 bits": (ramp("<i2", 0, 32767, 12850, 0), {}, None, [0, 255, 100, 0], None),
    "signed 8 bits": (ramp("i1", 0, 127, 1, 50), {}, None, [0, 255, 2, 100], None),
    "white is zero": (ramp("<u2", 0, 65535, 257, 25700), {"photometric": 0}, None, [255, 0, 254, 155], None),
    "8 bits, white is zero": (ramp("u1", 0, 255, 1, 100), {"photometric": 0}, None, [255, 0, 254, 155], None),
    "a tag": (ramp("<u2", 0, 4095, 16, 803), {"tags": {281: 4095}}, None, [0, 255, 1, 50], None),
    "a tag of floats": (ramp("<f4", 0, 0.5, 0.25, 1), {"tags": {341: 255}}, None, [0, 0, 0, 1], None),
    # what no tag may declare: the largest value of just this file
    "a statistic": (ramp("<u2", 0, 40000, 257, 0), {"tags": {281: 40000}}, None, [0, 156, 1, 0], None),
    # what the user declares goes before all
    "max_value": (ramp("<u2", 0, 1023, 401, 0), {}, 1023, [0, 255, 100, 0], None),
    "max_value of floats": (ramp("<f4", 0, 0.5, 51, 255), {}, 255, [0, 0, 51, 255], None),
    "max_value where white is zero": (ramp("<u2", 0, 1023, 401, 0), {"photometric": 0}, 1023, [255, 0, 155, 255], None),
    # what is doubtful is told
    "8 bits in signed 32": (ramp("<i4", 0, 255, 200, 1), {}, None, [0, 255, 200, 1], "0 to 255"),
    "8 bits in unsigned 32": (ramp("<u4", 0, 255, 200, 1), {}, None, [0, 255, 200, 1], "0 to 255"),
    "16 bits in 32": (ramp("<i4", 0, 65535, 257, 4095), {}, None, [0, 255, 1, 16], "0 to 65535"),
    "floats to 1": (ramp("<f4", 0, 1, 0.2, 0), {}, None, [0, 255, 51, 0], "0 to 1,"),
    "floats to 255": (ramp("<f4", 0, 200, 1, 0), {}, None, [0, 200, 1, 0], "0 to 255"),
    "8 bits in 16": (ramp("<u2", 0, 255, 200, 1), {}, None, [0, 1, 1, 0], "nearly black"),
    "12 bits in 16": (ramp("<u2", 0, 4095, 257, 0), {}, None, [0, 16, 1, 0], "nearly black"),
    "14 bits in 16": (ramp("<u2", 0, 16383, 257, 0), {}, None, [0, 64, 1, 0], "nearly black"),
}  # fmt: skip
"""What a TIFF is -> its values, what else is in it, `max_value`, the values read, and what the warning holds."""


@pytest.fixture
def nothing_told(monkeypatch):
    monkeypatch.setattr(files, "_told", set())


@pytest.mark.parametrize("kind", DEPTHS)
def test_the_range_of_values_is_what_is_declared_and_a_doubtful_one_is_told(tmp_path, caplog, nothing_told, kind):
    values, options, max_value, wanted, warning = DEPTHS[kind]
    path = tiff(tmp_path / "x.tif", values, **options)
    assert read_image(path, 1, max_value)[0, 2].tolist() == wanted * 2
    assert [str(path) in text and str(warning) in text and "data.max_value" in text for text in caplog.messages] == (
        [] if warning is None else [True]
    )
    read_image(path, 3, max_value)
    assert len(caplog.messages) == (warning is not None), "it is told once"


def test_each_depth_that_a_dark_file_may_have_is_told_with_the_value_that_helps(tmp_path, caplog, nothing_told):
    for largest, white in ((211, 255), (1013, 1023), (4093, 4095), (239, 255)):
        for ending in ("png", "tif"):
            path = tmp_path / f"{largest}.{ending}"
            Image.fromarray(np.full((5, 7), largest, np.uint16)).save(path)
            read_image(path, 1)
            told = [f"data.max_value={white} " in text for text in caplog.messages if str(path) in text]
            assert told == [True] * (largest != 239)


def png16(path: Path, *, colours: int, values: np.ndarray) -> Path:
    """A PNG of 16 bits written by hand; `colours` as in its header."""
    height, width, _ = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, colours, 0, 0, 0)), (b"IDAT", zlib.compress(rows))]
    content = b"\x89PNG\r\n\x1a\n"
    for name, data in [*chunks, (b"IEND", b"")]:
        content += struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(("colours", "channels"), [(0, 1), (2, 3), (4, 2), (6, 4)])
@pytest.mark.parametrize(("bright", "is_told"), [(255, True), (4095, True), (30000, False)])
def test_a_png_that_leaves_its_upper_bits_unused_is_told(
    tmp_path, caplog, nothing_told, colours, channels, bright, is_told
):
    values = np.full((5, 7, channels), bright)
    if colours in (4, 6):
        values[..., -1] = 65535
    path = png16(tmp_path / "x.png", colours=colours, values=values)
    assert read_image(path, 1).unique().item() == pytest.approx(bright / 257, abs=1)
    assert [str(path) in text and "nearly black" in text for text in caplog.messages] == [True] * is_told
    if colours:
        with pytest.raises(UnreadableError, match=r"x\.png: max_value=255 "):
            read_image(path, 1, 255)
    else:
        assert read_image(path, 1, bright).unique().item() == 255


def test_a_rotated_file_of_many_bits_is_turned(tmp_path):
    path = tiff(tmp_path / "x.tif", np.tile(np.arange(3, dtype="<u2") * 32767, (5, 1)), tags={274: 6})
    assert read_image(path, 1)[0, :, 0].tolist() == [0, 127, 255]


def test_signed_bytes_below_zero_are_refused(tmp_path):
    with pytest.raises(UnreadableError, match="from -1 to 5"):
        read_image(tiff(tmp_path / "x.tif", ramp("i1", -1, 5)), 1)


@pytest.mark.parametrize(("value", "white"), [(-1, 255), (2**16, 65535)])
def test_whole_numbers_beyond_16_bits_are_refused(tmp_path, value, white):
    flat("I", value).save(tmp_path / "x.tif")
    with pytest.raises(UnreadableError, match=rf"from {value} to {value}, which are not from 0 to {white}"):
        read_image(tmp_path / "x.tif", 3)


@pytest.mark.parametrize("kind", ["EPS", "ICO", "PCX", "TGA"])
def test_kinds_that_no_data_set_has_are_not_opened(tmp_path, kind):
    flat("RGB", (3, 5, 7)).save(tmp_path / "x.png", format=kind)
    with pytest.raises(UnreadableError, match=r"x\.png: not an image"):
        read_image(tmp_path / "x.png", 3)


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "x.png")
    with pytest.raises(UnreadableError, match=r"x\.png: a pipe or a device, and no file$"):
        read_image(tmp_path / "x.png", 3)


def test_a_missing_file_and_a_folder_are_unreadable_and_named(tmp_path):
    for path in (tmp_path / "missing.png", tmp_path):
        with pytest.raises(UnreadableError, match=path.name):
            read_image(path, 3)


def test_reading_gives_a_sample_without_targets_as_for_evaluation(tmp_path):
    picture_bytes(tmp_path / "x.png")
    augment = ImageAugment(horizontal_flip=1.0)
    plain, other = (
        Dataset(source=Nothing(), readers={"image": pictures(augment=choice)}, on_error="raise").read(
            tmp_path / "x.png"
        )
        for choice in (None, augment)
    )
    assert (plain.targets, plain.id) == ({}, str(tmp_path / "x.png"))
    torch.testing.assert_close(other.inputs, plain.inputs, rtol=0, atol=0)


SOURCES = [(101, 101), (103, 211), (211, 103), (23, 29), (1009, 13), (13, 1009)]


@pytest.mark.parametrize("source", SOURCES, ids=str)
@pytest.mark.parametrize("target", [31, (31, 47), (53, 29)], ids=str)
def test_resizing_keeps_the_centre_and_the_aspect_ratio(source, target):
    data = pictures(target, channels=1)
    height, width = source
    scale = max(data.size[0] / height, data.size[1] / width)
    side = max(round(min(height, width) / 5) // 2 * 2 + 1, 1)
    image = torch.zeros(1, height, width, dtype=torch.uint8)
    top, left = (height - side) // 2, (width - side) // 2
    image[:, top : top + side, left : left + side] = 255
    resized = data.resize(image)
    assert resized.dtype == torch.uint8
    assert resized.shape == (1, *data.size)
    weights = resized[0].double()
    assert weights.sum() / 255 == pytest.approx((side * scale) ** 2, rel=0.15)
    for axis in (0, 1):
        profile = weights.sum(dim=1 - axis)
        position = (profile * torch.arange(len(profile))).sum() / profile.sum()
        assert position == pytest.approx((len(profile) - 1) / 2, abs=1.0)
        extent = (profile / profile.max()).sum()
        assert extent == pytest.approx(side * scale, abs=1.1)


@pytest.mark.parametrize("target", [31, (31, 47), 128], ids=str)
def test_evaluation_keeps_a_share_of_the_side_at_the_centre_and_training_all(target):
    data = pictures(target, channels=1, augment=ImageAugment(), eval_crop=0.5)
    image = torch.zeros(1, 128, 128, dtype=torch.uint8)
    image[:, 30:98, 30:98] = 255  # a little more than the half of each side
    evaluated = data.read(image, train=False).values
    assert evaluated.shape[1:] == data.size
    assert evaluated.min() > 0.99
    assert data.read(image, train=True).values.mean() < 0.6
    with pytest.raises(ValueError, match=r"eval_crop=1\.5"):
        pictures(eval_crop=1.5)


@pytest.mark.parametrize("target", [1, 5, (3, 7)], ids=str)
@pytest.mark.parametrize("source", [(1, 1), (1, 2), (2, 1), (1, 97), (3, 7), (7, 3)], ids=str)
def test_any_size_becomes_the_size_asked_for_and_one_colour_stays_one(source, target):
    resized = pictures(target).resize(torch.full((3, *source), 131, dtype=torch.uint8))
    assert resized.shape == (3, *pictures(target).size)
    assert (resized == 131).all()


def test_an_image_of_the_right_size_is_left_as_it_is():
    image = torch.randint(256, (3, 5, 7), dtype=torch.uint8)
    assert torch.equal(pictures((5, 7)).resize(image), image)


def test_a_thin_strip_is_not_enlarged_as_a_whole():
    strip = torch.zeros(1, 1, 50_000_000, dtype=torch.uint8)
    assert pictures(997, channels=1).resize(strip).shape == (1, 997, 997)


@pytest.mark.parametrize("wrong", [{"channels": 2}, {"image_size": 0}, {"image_size": (7, 0)}], ids=str)
def test_sizes_that_make_no_image_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        pictures(**wrong)


CHANGES = {
    "crop_padding": {"crop_padding": 3},
    "min_scale": {"min_scale": 0.3},
    "horizontal_flip": {"horizontal_flip": 1.0},
    "rotation": {"rotation": 45.0},
    "translation": {"translation": 0.4},
    "scaling": {"scaling": 0.5},
    "rand_augment": {"rand_augment_ops": 2, "rand_augment_magnitude": 20},
    "erasing": {"erasing": 1.0},
}
CHANGES["everything"] = {name: value for options in CHANGES.values() for name, value in options.items()}


def train(data: ImageReader, image: torch.Tensor) -> torch.Tensor:
    return data.read(image, train=True).values


@pytest.mark.parametrize("option", CHANGES)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("source", [(29, 31), (37, 19)], ids=["of the right size", "resized"])
def test_every_augmentation_changes_training_images_and_no_others(option, channels, source):
    image = torch.randint(256, (channels, *source), dtype=torch.uint8)
    plain = pictures((29, 31), channels=channels)
    augmented = pictures((29, 31), channels=channels, augment=ImageAugment(**CHANGES[option]))
    evaluated = augmented.read(image, train=False).values
    assert torch.equal(evaluated, plain.read(image, train=False).values)
    trained = [train(augmented, image) for _ in range(11)]
    for output in trained:
        assert output.dtype == torch.float32
        assert output.shape == (channels, 29, 31)
        assert 0.0 <= output.min() <= output.max() <= 1.0
    assert any(not torch.equal(output, evaluated) for output in trained)
    if option != "horizontal_flip":
        assert len({output.numpy().tobytes() for output in trained}) > 5


@pytest.mark.parametrize("augment", [None, ImageAugment()], ids=["none", "all off"])
def test_without_augmentation_training_images_are_those_of_evaluation(augment):
    image = torch.randint(256, (3, 29, 31), dtype=torch.uint8)
    data = pictures(13, augment=augment)
    before = torch.get_rng_state()
    assert torch.equal(train(data, image), data.read(image, train=False).values)
    assert torch.equal(torch.get_rng_state(), before)


def test_flipping_mirrors_left_and_right():
    image = torch.randint(256, (3, 5, 7), dtype=torch.uint8)
    flipped = train(pictures((5, 7), augment=ImageAugment(horizontal_flip=1.0)), image)
    torch.testing.assert_close(flipped, image.flip(-1) / 255)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"crop_padding": 5}, "crop_padding=5"),
        ({"min_scale": 0.0}, "min_scale=0"),
        ({"rand_augment_magnitude": 31}, "rand_augment_magnitude=31"),
        ({"horizontal_flip": 1.5}, "interval"),
        ({"translation": 2.0}, "translation"),
        ({"erasing": -0.1}, "interval"),
    ],
    ids=str,
)
def test_augmentations_that_cannot_work_are_refused_when_built(options, message):
    with pytest.raises(ValueError, match=message):
        pictures((5, 7), augment=ImageAugment(**options))


def test_augmentation_draws_from_torchs_generator_only():
    image = torch.randint(256, (3, 29, 31), dtype=torch.uint8)
    data = pictures((29, 31), augment=ImageAugment(**CHANGES["everything"]))
    outputs = []
    for seed in (3, 3, 5):
        torch.manual_seed(seed)
        outputs.append([train(data, image).tolist() for _ in range(5)])
    assert outputs[0] == outputs[1] != outputs[2]
