import pytest
import torch
from PIL import Image

from perceiver.data.base import UnreadableError
from perceiver.data.image_augment import ImageAugment
from perceiver.data.image_folder import ImageFolder

STAGES = ("train", "val", "test")
COLOURS = {"ants": "red", "bees": "blue"}


@pytest.fixture
def root(tmp_path):
    """Folders of images, each of the colour of its class, of as many widths as there are images."""
    for stage, count in (("train", 5), ("val", 3), ("test", 2)):
        for name, colour in COLOURS.items():
            folder = tmp_path / "root" / stage / name
            folder.mkdir(parents=True)
            for number in range(count):
                Image.new("RGB", (5 + number, 7), colour).save(folder / f"{number}.png")
    return tmp_path / "root"


def dataset(root, **options) -> ImageFolder:
    defaults = {"num_classes": 2, "on_error": "raise", "image_size": 7, "channels": 3, "augment": None}
    return ImageFolder(
        root=str(root),
        **(defaults | {"val_fraction": 0.2, "test_fraction": 0.1, "fold": None, "num_folds": 5} | options),
    )


def test_images_come_with_the_label_of_their_folder_and_its_name_in_their_id(root):
    data = dataset(root)
    assert data.class_names == ["ants", "bees"]
    for stage, count in zip(STAGES, (5, 3, 2), strict=True):
        split = data.split(stage)
        samples = [split[index] for index in range(len(split))]
        assert [sample.id for sample in samples] == [f"{stage}/{c}/{n}.png" for c in COLOURS for n in range(count)]
        for index, sample in enumerate(samples):
            label = sample.targets["label"]
            assert split.classes_of(index) == [label]
            assert data.class_names[label] in sample.id
            colour = torch.eye(3)[2 * label][:, None, None].expand(3, 7, 7)
            torch.testing.assert_close(sample.inputs["image"], colour, atol=0.01, rtol=0)


@pytest.mark.parametrize("name", ["x.PNG", "y.JpEg", "z.tif", "z.webp"])
def test_any_image_is_read_whatever_its_ending(root, name):
    Image.new("RGB", (11, 13), "red").convert("L").save(root / "train/ants" / name)
    split = dataset(root, channels=1).split("train")
    samples = {split[index].id: split[index] for index in range(len(split))}
    assert samples[f"train/ants/{name}"].inputs["image"].shape == (1, 7, 7)


def test_files_that_are_no_images_are_left_out_and_named(root, caplog):
    (root / "train/ants/x.gif").touch()
    dataset(root).split("train")
    assert caplog.messages == [f"{root}/train: ignored files that are not images: 1 × .gif"]


def test_folders_without_any_image_are_refused(tmp_path):
    (tmp_path / "a").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no image with one of the endings .*\.jpg"):
        dataset(tmp_path, num_classes=1).split("train")


def test_a_stage_without_files_has_no_split(root):
    for stage in ("val", "test"):
        for path in sorted((root / stage).rglob("*"), reverse=True):
            path.unlink() if path.is_file() else path.rmdir()
        (root / stage).rmdir()
    data = dataset(root, val_fraction=0.0)
    assert [data.split(stage) is None for stage in STAGES] == [False, True, True]


def test_what_cannot_be_read_is_named_when_it_is_read(root):
    (root / "train/ants/0.png").write_text("not an image")
    split = dataset(root).split("train")
    with pytest.raises(UnreadableError, match=r"train/ants/0\.png: "):
        split[0]
    assert split[1].id == "train/ants/1.png"


def test_only_training_images_are_augmented(root):
    augment = ImageAugment(erasing=1.0)
    plain, changed = dataset(root), dataset(root, augment=augment)
    for stage in STAGES:
        same = torch.equal(plain.split(stage)[0].inputs["image"], changed.split(stage)[0].inputs["image"])
        assert same == (stage != "train")


def test_building_one_touches_no_disk(tmp_path):
    dataset(tmp_path / "nowhere")
