"""Class folders of pictures and sounds that belong together: one model reads both, also where one is missing."""

from collections import Counter

import numpy as np
import pytest
import soundfile
from PIL import Image

from perceiver.commands.finished_run import load
from tests.runs import checkpoint, metrics, script, table, train, trained

RATE = 16_000
NUM_SAMPLES = 23
BOTH = [
    *(
        "data=image_folder",
        "data.image_size=8",
        "data.num_classes=2",
        "data.val_fraction=0.2",
        "data.test_fraction=0.3",
    ),
    *("+reader@data.readers.audio=audio", "+encoder@model.encoders.audio=audio_log_mel"),
    *("data.clips.seconds=0.2", "data.clips.hop_seconds=0.1", "loader.batch_size=5", "optimizer.lr=0.01"),
    *("model.modality_dropout=0.3", "trainer.max_epochs=7", "trainer.limit_train_batches=null"),
]


def has_picture(number: int) -> bool:
    return number % 5 != 2


def has_sound(number: int) -> bool:
    return number % 3 != 1 or not has_picture(number)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Bright and loud, dark and soft: `7.png` and `7.wav`, of which some samples lack one."""
    root = tmp_path_factory.mktemp("pairs")
    random = np.random.default_rng(0)
    for number in range(2 * NUM_SAMPLES):
        loud = number % 2
        folder = root / ("soft", "loud")[loud]
        folder.mkdir(exist_ok=True)
        if has_picture(number):
            Image.new("RGB", (13, 11), (30 + 190 * loud,) * 3).save(folder / f"{number}.png")
        if has_sound(number):
            wave = (0.01, 0.3)[loud] * random.standard_normal(RATE // (3 + number % 3))
            soundfile.write(folder / f"{number}.wav", wave, RATE)
    return root


@pytest.fixture(scope="module")
def run(root, tmp_path_factory):
    return trained(tmp_path_factory.mktemp("run") / "pairs", *BOTH, f"data.root={root}")


def test_one_model_learns_from_both(run):
    assert metrics(run)["test/accuracy"] == 1.0
    encoders = {name.split(".")[2] for name in checkpoint(run)["state_dict"] if name.startswith("model.encoders.")}
    assert encoders == {"image", "audio"}


def test_a_sample_has_what_there_is_of_it_and_is_called_as_its_files_without_their_endings(run):
    data = load(str(run)).parts.data
    kinds, names = Counter(), set()
    for split in data.splits.values():
        assert split.modalities == ["image", "audio"]
        for index in range(len(split)):
            sample = split[index]
            number = int(sample.id.rpartition("/")[2])
            assert sample.inputs.keys() == {
                name for name, has in (("image", has_picture), ("audio", has_sound)) if has(number)
            }
            assert all(len(values) == len(sample.windows) for values in sample.inputs.values() if sample.windows)
            kinds[tuple(sample.inputs)] += 1
            names.add(split.name_of(index))
    assert min(kinds.values()) > 3
    assert kinds.total() == len(names) == 2 * NUM_SAMPLES
    assert {name.partition("/")[0] for name in names} == {"soft", "loud"}


def test_each_sample_is_tested_once_and_a_file_of_either_kind_is_answered(run, root):
    split = load(str(run)).parts.data.splits["test"]
    (header, *rows) = table(run / "predictions.csv")
    assert sorted(row[header.index("id")] for row in rows) == sorted(
        split.name_of(index) for index in range(len(split))
    )
    files = [next(root.glob(f"loud/*.{ending}")) for ending in ("png", "wav")]
    ended = script("experiments/predict.py", f"run={run}", f"inputs=[{files[0]},{files[1]}]")
    assert ended.ok, ended.err


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["~encoder@model.encoders.image"], ["data.readers.image", "'image'"]),
        (["+encoder@model.encoders.text=text", "tokenizer=bytes"], ["model.encoders.text", "'text'"]),
        (["~data.readers.audio"], ["model.encoders.audio", "data.readers.audio"]),
    ],
    ids=["a reader without an encoder", "an encoder without a reader", "a reader that its encoder needs"],
)
def test_an_encoder_whose_modality_no_sample_has_and_a_modality_without_one_are_refused(
    root, tmp_path, overrides, named
):
    ended = train(tmp_path / "run", *BOTH, f"data.root={root}", *overrides)
    assert (ended.code, ended.err.count("\n")) == (1, 1)
    assert all(name in ended.err for name in named), ended.err


def test_an_encoder_of_files_that_are_not_there_is_refused(root, tmp_path):
    for name in ("soft", "loud"):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for path in (root / name).glob("*.png"):
            (tmp_path / "pictures" / name / path.name).symlink_to(path)
    ended = train(tmp_path / "run", *BOTH, f"data.root={tmp_path}/pictures")
    assert (ended.code, ended.err.count("\n")) == (1, 1)
    assert "model.encoders.audio" in ended.err
    assert "'audio'" in ended.err


def test_two_files_of_one_kind_for_one_sample_are_refused(root, tmp_path):
    folder = tmp_path / "twice" / "a"
    folder.mkdir(parents=True)
    for name in ("0.png", "0.jpg", "0.wav"):
        (folder / name).touch()
    ended = train(tmp_path / "run", *BOTH, f"data.root={tmp_path}/twice", "data.num_classes=1")
    assert (ended.code, ended.err.count("\n")) == (1, 1)
    assert all(f"{folder}/0.{ending}" in ended.err for ending in ("png", "jpg"))
