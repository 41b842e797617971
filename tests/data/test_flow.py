"""Optical flow: files of two formats, folders of four layouts, pairs changed together, and generated pairs."""

import struct
import zlib
from math import nan
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F
from torch.testing import assert_close

from perceiver.data.dataset import Dataset
from perceiver.data.files import FramePair
from perceiver.data.readers.flow_file import read_flow
from perceiver.data.readers.frame_pair import FramePairReader
from perceiver.data.sources.flow_pairs import FlowPairs
from perceiver.data.synthetic.moving_textures import Affine, Motion, MovingTextures, TextureSampler
from perceiver.tasks.optical_flow import flo_content
from tests.data.datasets import check_error, samples, sizes, splits

HEIGHT, WIDTH = 7, 11


def field(seed=0, height=HEIGHT, width=WIDTH) -> torch.Tensor:
    """A flow in steps of 1/64, which both formats can store."""
    return torch.randint(-700, 700, (2, height, width), generator=torch.Generator().manual_seed(seed)) / 64


def kitti_png(flow: torch.Tensor, channels: int = 3, bits: int = 16) -> bytes:
    """A PNG of KITTI, written by the format's definition."""
    height, width = flow.shape[1:]
    known = ~flow.isnan().any(dim=0)
    values = torch.cat([flow.nan_to_num() * 64 + 2**15, known[None]])[:channels].permute(1, 2, 0).numpy()
    lines = b"".join(b"\0" + row.astype(f">u{bits // 8}").tobytes() for row in values)

    def chunk(kind: bytes, content: bytes) -> bytes:
        checked = kind + content
        return struct.pack(">I", len(content)) + checked + struct.pack(">I", zlib.crc32(checked))

    header = struct.pack(">IIBBBBB", width, height, bits, {1: 0, 3: 2}[channels], 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("content", [flo_content, kitti_png], ids=["flo", "png"])
def test_what_is_written_is_read_and_what_is_not_known_is_nan(tmp_path, content):
    flow = field()
    flow[:, 2, 5] = nan
    (tmp_path / "flow").write_bytes(content(flow))
    assert_close(read_flow(tmp_path / "flow"), flow, rtol=0, atol=0, equal_nan=True)


def test_large_components_of_a_flo_file_are_not_known(tmp_path):
    (tmp_path / "a.flo").write_bytes(b"PIEH" + struct.pack("<2i4f", 2, 1, 1.666666752e9, 0.0, -3.0, 2.5))
    found = read_flow(tmp_path / "a.flo")
    assert found[:, 0, 0].isnan().all()
    assert found[:, 0, 1].tolist() == [-3.0, 2.5]


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        (None, ["no such file"]),
        (b"", ["PIEH"]),
        (b"PIEH\1\0", ["header"]),
        (b"PIEH" + struct.pack("<2i", 3, -5), ["3×-5"]),
        (b"PIEH" + struct.pack("<2i", 2**20, 2**20), ["1048576×1048576"]),
        (flo_content(field())[:-1], [f"{8 * HEIGHT * WIDTH - 1}", f"{WIDTH}×{HEIGHT}"]),
        (flo_content(field()) + b"\0", [f"{8 * HEIGHT * WIDTH + 1}"]),
        (kitti_png(field())[:60], []),
        (kitti_png(field(), channels=1), ["gray16"]),
        (kitti_png(torch.zeros(2, 3, 5), bits=8), ["rgb24"]),
    ],
)
def test_a_malformed_file_is_named(tmp_path, content, parts):
    if content is not None:
        (tmp_path / "bad.flo").write_bytes(content)
    check_error(lambda: read_flow(tmp_path / "bad.flo"), "bad.flo", *parts)


def reader(size=(HEIGHT, WIDTH), **options) -> FramePairReader:
    defaults = {"channels": 3, "frames_per_second": 25.0, "seconds": 0.08, "hop_seconds": 0.04, "flip": 0.0}
    return FramePairReader(image_size=size, **defaults | options)


def write_image(path: Path, seed: int, size=(WIDTH, HEIGHT)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(seed).integers(256, size=(size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(values).save(path)
    return path


def write_flow(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes((flo_content if path.suffix == ".flo" else kitti_png)(field(seed)))


LAYOUTS = {
    "FlyingChairs": ([(f"{n:05d}_img1.ppm", f"{n:05d}_img2.ppm", f"{n:05d}_flow.flo") for n in range(1, 14)], {}),
    "AutoFlow": ([(f"table_{n}/im0.png", f"table_{n}/im1.png", f"table_{n}/forward.flo") for n in range(13)], {}),
    "Sintel": (
        [
            (
                f"clean/{scene}/frame_{n:04d}.png",
                f"clean/{scene}/frame_{n + 1:04d}.png",
                f"flow/{scene}/frame_{n:04d}.flo",
            )
            for scene in ("alley_1", "bamboo_2", "cave_3", "market_4", "temple_5")
            for n in (8, 9)
        ],
        {},
    ),
    "KITTI": (
        [(f"image_2/{n:06d}_10.png", f"image_2/{n:06d}_11.png", f"flow_occ/{n:06d}_10.png") for n in range(13)],
        {"flow_folder": "flow_occ", "image_folder": "image_2"},
    ),
}


def pairs(root: Path, **options) -> Dataset:
    defaults = {"flow_folder": "flow", "image_folder": "clean", "val_fraction": 0.2, "test_fraction": 0.2}
    source = FlowPairs(root=str(root), **defaults | options)
    return Dataset(source=source, readers={"video": reader()}, on_error="raise")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_pairs_of_published_layouts_are_read_with_their_flow(tmp_path, layout):
    files, options = LAYOUTS[layout]
    for number, (first, second, flow) in enumerate(files):
        for seed, path in ((number, first), (number + 1, second)):
            write_image(tmp_path / path, seed)
        write_flow(tmp_path / flow, number)
    data = pairs(tmp_path, **options)
    found = {sample.id: sample for split in splits(data).values() for sample in samples(split)}
    assert found.keys() == {str(Path(flow).with_suffix("")) for *_, flow in files}
    assert sum(sizes(data)) == len(files)
    assert all(sizes(data))
    for number, (first, second, flow) in enumerate(files):
        sample = found[str(Path(flow).with_suffix(""))]
        for frame, path in enumerate((first, second)):
            pixels = torch.from_numpy(np.array(Image.open(tmp_path / path))).permute(2, 0, 1) / 255
            assert_close(sample.inputs["video"][:, frame], pixels)
        assert_close(sample.targets["flow"], field(number), rtol=0, atol=0)
    if layout == "Sintel":
        scenes = [{Path(sample.id).parent for sample in samples(split)} for split in splits(data).values()]
        assert sum(map(len, scenes)) == len(set.union(*scenes)) == 5


@pytest.mark.parametrize(
    ("spoil", "parts"),
    [
        (lambda root: (root / "1_img2.png").unlink(), ["1_img2.png", "no such file"]),
        (lambda root: (root / "1_img1.png").unlink(), ["1_img1.png", "no such file"]),
        (lambda root: write_image(root / "1_img2.png", 0, (5, 3)), ["1_img2.png", "1_img1.png", "5×3", f"{WIDTH}×"]),
        (lambda root: write_image(root / "1_img1.png", 0, (5, 3)), ["1_img2.png", "5×3"]),
        (lambda root: (root / "1_flow.flo").write_bytes(flo_content(field(0, 3, 5))), ["1_flow.flo", "5×3"]),
        (lambda root: (root / "1_flow.flo").write_bytes(b"PIEH"), ["1_flow.flo"]),
    ],
    ids=["no second", "no first", "second size", "first size", "flow size", "flow"],
)
def test_a_malformed_pair_is_named(tmp_path, spoil, parts):
    for number in (1, 2, 3):
        for frame in (1, 2):
            write_image(tmp_path / f"{number}_img{frame}.png", number)
        write_flow(tmp_path / f"{number}_flow.flo", number)
    spoil(tmp_path)
    check_error(lambda: [samples(split) for split in splits(pairs(tmp_path)).values()], *parts)


def test_folders_without_flow_are_named(tmp_path):
    check_error(lambda: splits(pairs(tmp_path)), str(tmp_path), "flow_folder", error=FileNotFoundError)
    check_error(lambda: splits(pairs(tmp_path / "x")), str(tmp_path / "x"), error=FileNotFoundError)


class TestReader:
    def test_frames_and_flow_are_cropped_and_flipped_together(self):
        columns = torch.arange(2 * WIDTH, dtype=torch.uint8).expand(3, HEIGHT, -1)
        flow = torch.stack([columns[0].float(), -columns[0].float()])
        flips = set()
        for _ in range(11):
            reading = reader(flip=0.5).read(FramePair(columns, columns + 1, flow), train=True)
            shown = (reading.values * 255).round()
            sign = 1.0 if shown[0, 0, 0, 1] > shown[0, 0, 0, 0] else -1.0
            assert_close(reading.targets["flow"], torch.stack([sign * shown[0, 0], -shown[0, 0]]))
            assert_close(shown[:, 1], shown[:, 0] + 1)
            flips.add(sign)
        assert flips == {1.0, -1.0}

    def test_flow_is_scaled_with_the_frames_and_what_is_not_known_stays_so(self):
        frame = torch.zeros(3, 2 * HEIGHT, 3 * WIDTH, dtype=torch.uint8)  # of which the sides are cut off
        flow = torch.tensor([6.0, -4.0])[:, None, None].expand(-1, *frame.shape[1:]).clone()
        flow[:, : HEIGHT // 2] = nan
        found = reader().read(FramePair(frame, frame, flow), train=False).targets["flow"]
        rows = HEIGHT // 4
        assert found[:, :rows].isnan().all()
        assert_close(found[:, rows + 1 :], torch.tensor([6.0 * 16 / 33, -2.0])[:, None, None].expand(-1, 5, WIDTH))

    def test_an_image_of_a_user_is_read_with_the_frame_after_it(self, tmp_path):
        first, second = (write_image(tmp_path / f"frame_{n:04d}.png", n) for n in (9, 10))
        data = Dataset(source=pairs(tmp_path).source, readers={"video": reader(channels=1)}, on_error="raise")
        sample = data.read(first)
        assert sample.inputs["video"].shape == (1, 2, HEIGHT, WIDTH)
        assert sample.targets == {}
        check_error(lambda: data.read(second), "frame_0010.png", "frame_0011.png")
        check_error(lambda: data.read(write_image(tmp_path / "a.png", 0)), "a.png", "number")

    def test_clips_must_have_two_frames(self):
        with pytest.raises(ValueError, match=r"seconds=0\.12.*3 frames"):
            reader(seconds=0.12)


def textures(**options) -> MovingTextures:
    defaults = {
        **{"image_size": 37, "num_shapes": (1, 3), "radii": (0.15, 0.35), "noise": 0.0, "seed": 3},
        "motion": Motion(translation=3.0, rotation=5.0, scaling=0.05),
        "textures": TextureSampler(wavelengths=(10.0, 30.0), num_waves=7, contrast=0.2),
        "num_samples": {"train": 5, "val": 3, "test": 7},
    }
    return MovingTextures(**defaults | options)


class TestMovingTextures:
    def test_a_texture_is_its_waves_at_transformed_points(self):
        random = np.random.default_rng(0)
        texture = TextureSampler(wavelengths=(3.0, 9.0), num_waves=5, contrast=0.3).draw(random)
        where, line = Affine(random.normal(size=(2, 2)), random.normal(size=2)), np.arange(5) + 0.5
        found = texture.at(where, line)
        for row, y in enumerate(line):
            for column, x in enumerate(line):
                point = where.matrix @ [x, y] + where.offset
                waves = np.cos(point @ texture.frequencies + np.angle(texture.amplitudes))
                expected = texture.mean + (np.abs(texture.amplitudes) * waves).sum(axis=1)
                assert found[:, row, column] == pytest.approx(expected)

    def test_the_second_frame_has_at_the_end_of_each_vector_what_the_first_has_at_its_start(self):
        items = textures().items("test", {})
        for index in range(len(items)):
            pair = items[index].parts["video"]
            size = pair.flow.shape[-1]
            centers = torch.stack(torch.meshgrid(torch.arange(size), torch.arange(size), indexing="xy"))
            ends = ((centers + pair.flow + 0.5) * 2 / size - 1).permute(1, 2, 0)
            sampled = F.grid_sample(pair.second[None].float(), ends[None], align_corners=False)[0]
            wrong = (sampled - pair.first).abs().amax(dim=0)
            inside = (ends.abs() < 1 - 1 / size).all(dim=-1)
            assert wrong[inside].median() < 3.0
            assert (wrong[inside] < 12.0).float().mean() > 0.75  # others are covered, or at an edge
            still = (pair.second.float() - pair.first).abs().amax(dim=0)
            assert still[inside].median() > 5 * wrong[inside].median()

    def test_pairs_of_training_are_new_and_others_the_same_each_time(self):
        train, val = (textures().items(stage, {}) for stage in ("train", "val"))
        assert not train[0].parts["video"].flow.equal(train[0].parts["video"].flow)
        again = textures().items("val", {})
        for index in range(3):
            one, other = (items[index].parts["video"] for items in (val, again))
            assert one.flow.equal(other.flow)
            assert one.second.equal(other.second)
        assert not val[0].parts["video"].flow.equal(textures(seed=4).items("val", {})[0].parts["video"].flow)

    def test_motion_is_as_large_as_it_may_be(self):
        still = textures(motion=Motion(translation=0.0, rotation=0.0, scaling=0.0)).items("val", {})[0].parts["video"]
        assert_close(still.flow, torch.zeros_like(still.flow))
        assert_close(still.first, still.second)
        shifts = textures(motion=Motion(translation=5.0, rotation=0.0, scaling=0.0)).items("test", {})
        largest = [float(shifts[index].parts["video"].flow.abs().max()) for index in range(7)]
        assert 3.0 < max(largest) <= 5.0
        assert all(
            2 <= len(shifts[index].parts["video"].flow.flatten(1).unique(dim=1).T) + 1 <= 5 for index in range(7)
        )

    @pytest.mark.parametrize(
        ("problem", "named"),
        [
            (lambda: Motion(translation=-1.0, rotation=0.0, scaling=0.0), "translation=-1"),
            (lambda: Motion(translation=1.0, rotation=0.0, scaling=1.0), "scaling=1"),
            (lambda: TextureSampler(wavelengths=(1.0, 3.0), num_waves=2, contrast=0.1), "wavelengths"),
            (lambda: TextureSampler(wavelengths=(3.0, 5.0), num_waves=0, contrast=0.1), "num_waves=0"),
            (lambda: TextureSampler(wavelengths=(3.0, 5.0), num_waves=2, contrast=0.0), r"contrast=0\.0"),
            (lambda: textures(num_shapes=(2, 1)), "num_shapes"),
            (lambda: textures(radii=(0.0, 0.2)), "radii"),
            (lambda: textures(noise=-0.1), "noise"),
            (lambda: textures(image_size=1), "image_size=1"),
        ],
    )
    def test_options_out_of_range_are_named(self, problem, named):
        with pytest.raises(ValueError, match=named):
            problem()
