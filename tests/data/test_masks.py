"""Images with masks: folders of pairs, one crop and flip for both, and masks of scenes by brute force."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from perceiver.data.dataset import Dataset
from perceiver.data.files import IMAGES, Segmented
from perceiver.data.readers.image import Affine, ImageAugment, RandAugment
from perceiver.data.readers.segmented_image import SegmentedImageReader
from perceiver.data.sources.masks import ImageMasks
from perceiver.data.synthetic.shape_masks import CLASSES, ShapeMasks
from perceiver.data.synthetic.shape_scenes import PairSampler
from perceiver.data.synthetic.shapes import OUTLINES, SHAPES, ObjectSampler, SceneObject, render_mask
from perceiver.types import UNLABELED, Sample
from tests.data.datasets import check_error, names, samples, splits

NUM_CLASSES, WIDTH, HEIGHT = 5, 13, 11


def reader(size=(HEIGHT, WIDTH), **options) -> SegmentedImageReader:
    defaults = {"num_classes": NUM_CLASSES, "ignore_label": 255, "channels": 1, "augment": None}
    return SegmentedImageReader(image_size=size, **defaults | {"max_value": None, "eval_crop": 1.0} | options)


def folders(root: Path, **options) -> Dataset:
    fractions = {"val_fraction": 0.2, "test_fraction": 0.2}
    source = ImageMasks(root=str(root), num_classes=NUM_CLASSES, **fractions)
    return Dataset(source=source, readers={"image": reader(**options)}, on_error="raise")


def write_pair(root: Path, name: str, ending=".jpg", *, mode="P") -> np.ndarray:
    """Write an image, and a mask of classes and 255, which is returned."""
    values = np.random.default_rng(len(name)).choice([0, 1, 2, 3, 4, 255], (HEIGHT, WIDTH)).astype(np.uint8)
    for folder, path in (("images", f"{name}{ending}"), ("masks", f"{name}.png")):
        (root / folder / path).parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (WIDTH, HEIGHT), "red").save(root / "images" / f"{name}{ending}")
    mask = Image.fromarray(values)
    if mode == "P":
        mask.putpalette(range(255, -1, -1))
    mask.save(root / "masks" / f"{name}.png")
    return values


class TestFolders:
    def test_pairs_are_split_by_name_and_masks_are_read_as_numbers_of_classes(self, tmp_path):
        expected = {
            name: write_pair(tmp_path, name, ending, mode=mode)
            for number in range(7)
            for name, ending, mode in (("x" * (number + 1), ".jpg", "P"), (f"city/{number}{'y' * number}", ".png", "L"))
        }
        data = folders(tmp_path)
        found = {sample.id: sample for split in splits(data).values() for sample in samples(split)}
        assert found.keys() == expected.keys()
        assert all(splits(data).values())
        for name, sample in found.items():
            assert np.array_equal(sample.targets["mask"].numpy(), expected[name])
            assert sample.targets["mask"].dtype == torch.long
            assert sample.inputs["image"].shape == (1, HEIGHT, WIDTH)
        assert data.class_names == ["0", "1", "2", "3", "4"]

    def test_stages_may_have_folders_of_their_own_and_classes_names(self, tmp_path):
        for stage in ("train", "val", "test"):
            write_pair(tmp_path / stage, f"in_{stage}")
        (tmp_path / "classes.txt").write_text("road\ncar\ntree\n\nsky\nsea\n")
        data = folders(tmp_path)
        assert {stage: names(split) for stage, split in splits(data).items()} == {
            stage: [f"{stage}/in_{stage}"] for stage in ("train", "val", "test")
        }
        assert data.class_names == ["road", "car", "tree", "sky", "sea"]

    def test_an_image_of_a_user_needs_no_mask(self, tmp_path):
        write_pair(tmp_path, "a")
        sample = folders(tmp_path).read(tmp_path / "images" / "a.jpg")
        assert sample.inputs["image"].shape == (1, HEIGHT, WIDTH)
        assert sample.targets == {}

    @pytest.mark.parametrize(
        ("spoil", "parts"),
        [
            (lambda mask: mask.unlink(), ["a.png", "no such file"]),
            (lambda mask: mask.write_bytes(b"nothing"), ["a.png", "not an image"]),
            (lambda mask: mask.write_bytes(mask.read_bytes()[:-30]), ["a.png"]),
            (lambda mask: Image.new("L", (WIDTH, 7)).save(mask), ["a.png", "a.jpg", f"{WIDTH}×7", f"{WIDTH}×{HEIGHT}"]),
            (lambda mask: Image.new("L", (WIDTH, HEIGHT), 7).save(mask), ["a.png", "7", "0 to 4"]),
            (lambda mask: Image.new("RGB", (WIDTH, HEIGHT)).save(mask), ["a.png", "RGB"]),
            (lambda mask: Image.new("I;16", (WIDTH, HEIGHT)).save(mask), ["a.png", "I;16"]),
        ],
        ids=["missing", "no image", "truncated", "size", "unknown class", "color", "16 bits"],
    )
    def test_a_malformed_mask_is_named(self, tmp_path, spoil, parts):
        for name in ("a", "bb"):
            write_pair(tmp_path, name)
        spoil(tmp_path / "masks" / "a.png")
        data = folders(tmp_path)
        check_error(lambda: [samples(split) for split in splits(data).values()], *parts)

    def test_without_an_ignore_label_255_is_no_class(self, tmp_path):
        for name in ("a", "bb"):
            write_pair(tmp_path, name)
        data = folders(tmp_path, ignore_label=None)
        check_error(lambda: [samples(split) for split in splits(data).values()], ".png", "255")

    @pytest.mark.parametrize(
        ("prepare", "parts", "error"),
        [
            (lambda root: (root / "other").mkdir(), ["images"], FileNotFoundError),
            (lambda root: (root / "images").mkdir(), ["masks"], FileNotFoundError),
            (lambda root: (write_pair(root, "a"), write_pair(root, "a", ".png")), ["a.jpg", "a.png"], ValueError),
        ],
        ids=["no folders", "no masks or images", "two of one name"],
    )
    def test_a_malformed_folder_is_named(self, tmp_path, prepare, parts, error):
        prepare(tmp_path)
        check_error(lambda: splits(folders(tmp_path)), *parts, error=error)

    @pytest.mark.parametrize(("text", "parts"), [("a\nb\n", ["num_classes=5", "2"]), ("a\nb\nc\nd\na\n", ["twice"])])
    def test_malformed_names_of_classes_are_named(self, tmp_path, text, parts):
        write_pair(tmp_path, "a")
        (tmp_path / "classes.txt").write_text(text)
        check_error(lambda: folders(tmp_path).class_names, "classes.txt", *parts, error=Exception)


class TestReader:
    @pytest.mark.parametrize(
        "augment",
        [
            None,
            ImageAugment(horizontal_flip=0.5, crop_padding=3),
            ImageAugment(min_scale=0.2),
            ImageAugment(affine=Affine(rotation=0.0, translation=0.2, scaling=0.0)),
        ],
        ids=["none", "flip and crop", "zoom", "affine"],
    )
    def test_image_and_mask_are_changed_together(self, augment):
        mask = torch.zeros(32, 48, dtype=torch.uint8)
        mask[8:, 5:30] = 4  # far larger than a pixel that is resampled
        changed = reader((32, 24), augment=augment, eval_crop=0.9)
        for _ in range(7):
            reading = changed.read(Segmented(mask[None] * 50, mask), train=True)
            found = reading.targets["mask"]
            shown = (reading.values[0] * 255 / 50).round()
            known = found != UNLABELED
            assert found.shape == (32, 24)
            assert ((shown == found) | (shown % 4 != 0))[known].all(), "between two classes"
            assert ((shown == found) & known).float().mean() > 0.7
            if augment is None or not augment.transforms:
                assert known.all()
        assert {*found.unique().tolist()} <= {0, 4, UNLABELED}

    @pytest.mark.parametrize(
        ("options", "named"),
        [
            ({"num_classes": 256}, "num_classes=256"),
            ({"ignore_label": 4}, "ignore_label=4"),
            ({"ignore_label": 256}, "ignore_label=256"),
            ({"augment": ImageAugment(rand_augment=RandAugment(num_ops=2, magnitude=9))}, "num_ops"),
        ],
    )
    def test_options_that_do_not_fit_are_named(self, options, named):
        with pytest.raises(ValueError, match=named):
            reader(**options)


def inside(x: float, y: float, corners) -> bool:
    """Return whether a point is in a polygon, by the number of edges on its right."""
    crossings = 0
    for (ax, ay), (bx, by) in zip(corners, [*corners[1:], corners[0]], strict=True):
        if (ay > y) != (by > y) and x < ax + (y - ay) / (by - ay) * (bx - ax):
            crossings += 1
    return crossings % 2 == 1


class TestScenes:
    @pytest.mark.parametrize("shape", SHAPES)
    def test_the_mask_of_a_shape_is_where_it_covers_most_of_a_pixel(self, shape):
        one, size, steps = SceneObject("large", "red", shape, 0.47, 0.53, 0.61, (0, 0, 0)), 19, 8
        mask = render_mask([one], size)
        corners = [((one.x + one.diameter * x) * size, (one.y + one.diameter * y) * size) for x, y in OUTLINES[shape]]
        label, parts_of_a_pixel = CLASSES.index(shape), [(step + 0.5) / steps for step in range(steps)]
        for row in range(size):
            for column in range(size):
                points = [(column + x, row + y) for x in parts_of_a_pixel for y in parts_of_a_pixel]
                share = np.mean([inside(x, y, corners) for x, y in points])
                if abs(share - 0.5) > 0.2:  # the rendering has a precision of a quarter of a pixel
                    assert mask[row, column] == (label if share > 0.5 else 0), (row, column, share)

    def data(self, **options) -> ShapeMasks:
        objects = ObjectSampler(num_objects=(1, 4), small=(0.14, 0.2), large=(0.28, 0.38))
        pairs = PairSampler(held_out=["red square"], unseen_fraction=0.5)
        numbers = {"num_samples": {"train": 7, "val": 5, "test": 11}, "image_size": 37, "num_classes": 7, "seed": 3}
        numbers["redrawn"] = True
        return ShapeMasks(**{"objects": objects, "pairs": pairs} | numbers | options)

    def test_masks_have_the_objects_in_the_boxes_and_nothing_else(self):
        items = self.data().items("test", {"image": IMAGES})
        for index in range(len(items)):
            item = items[index]
            mask, rest = item.parts["image"].mask.clone(), torch.ones(37, 37, dtype=torch.bool)
            for box in item.targets["boxes"]:
                (x0, x1), (y0, y1) = ([round(end) for end in box.ranges[axis]] for axis in "xy")
                region = mask[max(y0 - 1, 0) : y1 + 1, max(x0 - 1, 0) : x1 + 1]
                assert (region == box.label).sum() > 0.2 * (x1 - x0) * (y1 - y0)
                rest[max(y0 - 1, 0) : y1 + 1, max(x0 - 1, 0) : x1 + 1] = False
            assert mask[rest].sum() == 0

    def test_scenes_of_training_are_new_and_others_the_same_each_time_at_any_resolution(self):
        train, fine = self.data().items("train", {}), self.data(image_size=74).items("val", {})
        val = self.data().items("val", {})
        assert not train[0].parts["image"].mask.equal(train[0].parts["image"].mask)
        for index in range(5):
            mask = val[index].parts["image"].mask
            assert mask.equal(val[index].parts["image"].mask)
            assert (fine[index].parts["image"].mask[::2, ::2] == mask).float().mean() > 0.93

    def test_classes_are_the_background_and_the_shapes(self):
        assert self.data().class_names == ["background", *SHAPES]
        with pytest.raises(ValueError, match="num_classes=6"):
            self.data(num_classes=6)


def test_a_mask_is_relabelled_apart_from_pixels_without_a_class():
    mask = torch.tensor([[0, 1, 2], [UNLABELED, 2, 0]])
    sample = Sample({}, {"mask": mask}, "x").relabel([4, 0, 3])
    assert sample.targets["mask"].tolist() == [[4, 0, 3], [UNLABELED, 3, 4]]
