"""Class folders of images and sounds: one model reads both modalities, of which samples may lack one."""

from collections import Counter

import numpy as np
import pytest
import soundfile
from PIL import Image

from perceiver.commands.finished_run import load
from tests.runs import assert_refused, checkpoint, metrics, script, table, train, trained

RATE = 16_000
NUM_SAMPLES = 23
BOTH = [
    *("data=image_folder", "data.image_size=8", "data.num_classes=2", "data.val_fraction=0.2"),
    *("data.test_fraction=0.3", "+reader@data.readers.audio=audio", "+encoder@model.encoders.audio=audio_log_mel"),
    *("data.clips.seconds=0.2", "data.clips.hop_seconds=0.1", "loader.batch_size=5", "optimizer.lr=0.01"),
    *("model.modality_dropout=0.3", "trainer.max_epochs=7", "trainer.limit_train_batches=null"),
]


def modalities(number: int) -> set[str]:
    has_image = number % 5 != 2
    return ({"image"} if has_image else set()) | ({"audio"} if number % 3 != 1 or not has_image else set())


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Bright and loud, dark and soft: `7.png` and `7.wav`, of which some samples lack one."""
    root, random = tmp_path_factory.mktemp("pairs"), np.random.default_rng(0)
    for number in range(2 * NUM_SAMPLES):
        loud = number % 2
        folder = root / ("soft", "loud")[loud]
        folder.mkdir(exist_ok=True)
        if "image" in modalities(number):
            Image.new("RGB", (13, 11), (30 + 190 * loud,) * 3).save(folder / f"{number}.png")
        if "audio" in modalities(number):
            wave = (0.01, 0.3)[loud] * random.standard_normal(RATE // (3 + number % 3))
            soundfile.write(folder / f"{number}.wav", wave, RATE)
    return root


@pytest.fixture(scope="module")
def run(root, tmp_path_factory):
    return trained(tmp_path_factory.mktemp("run") / "pairs", *BOTH, f"data.root={root}")


def test_one_model_learns_from_both_and_predicts_from_either(run, root):
    assert metrics(run)["test/accuracy"] == 1.0
    encoders = {name.split(".")[2] for name in checkpoint(run)["state_dict"] if name.startswith("model.encoders.")}
    assert encoders == {"image", "audio"}
    files = [next(root.glob(f"loud/*.{suffix}")) for suffix in ("png", "wav")]
    ended = script("experiments/predict.py", f"run={run}", f"inputs=[{files[0]},{files[1]}]")
    assert ended.ok, ended.err


def test_a_sample_has_the_modalities_of_its_files_and_their_name_and_is_tested_once(run):
    data = load(str(run)).parts.data
    kinds, names = Counter(), {}
    for stage, split in data.splits.items():
        assert split.modalities == ["image", "audio"]
        names[stage] = [split.sample_name(index) for index in range(len(split))]
        for index in range(len(split)):
            sample = split[index]
            assert sample.inputs.keys() == modalities(int(sample.id.rpartition("/")[2]))
            assert all(len(values) == len(sample.windows) for values in sample.inputs.values() if sample.windows)
            kinds[tuple(sample.inputs)] += 1
    assert min(kinds.values()) > 3
    every = [name for of_stage in names.values() for name in of_stage]
    assert kinds.total() == len(every) == len(set(every)) == 2 * NUM_SAMPLES
    assert {name.partition("/")[0] for name in every} == {"soft", "loud"}
    (header, *rows) = table(run / "predictions.csv")
    assert sorted(row[header.index("id")] for row in rows) == sorted(names["test"])


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (["~encoder@model.encoders.image"], ["data.readers.image", "'image'"]),
        (["+encoder@model.encoders.text=text", "tokenizer=bytes"], ["model.encoders.text", "'text'"]),
        (["~data.readers.audio"], ["model.encoders.audio", "data.readers.audio"]),
    ],
    ids=["a reader without an encoder", "an encoder without a reader", "a reader that its encoder needs"],
)
def test_readers_and_encoders_that_do_not_match_are_refused(root, tmp_path, overrides, parts):
    assert_refused(train(tmp_path / "run", *BOTH, f"data.root={root}", *overrides), *parts)


def test_an_encoder_without_files_is_refused(root, tmp_path):
    for name in ("soft", "loud"):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for path in (root / name).glob("*.png"):
            (tmp_path / "pictures" / name / path.name).symlink_to(path)
    ended = train(tmp_path / "run", *BOTH, f"data.root={tmp_path}/pictures")
    assert_refused(ended, "model.encoders.audio", "'audio'")


def test_two_files_of_one_kind_for_one_sample_are_refused(tmp_path):
    folder = tmp_path / "twice" / "a"
    folder.mkdir(parents=True)
    for name in ("0.png", "0.jpg", "0.wav"):
        (folder / name).touch()
    ended = train(tmp_path / "run", *BOTH, f"data.root={tmp_path}/twice", "data.num_classes=1")
    assert_refused(ended, *(f"{folder}/0.{suffix}" for suffix in ("png", "jpg")))
