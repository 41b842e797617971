"""The script that writes shards, as it is called."""

import shlex

import pytest

from perceiver.data.sources.shards import Shards
from tests.data.caption_trees import flickr8k_tree
from tests.data.datasets import dataset
from tests.runs import image_tree, script, train

SCENES = ["data=shape_scenes", "data.num_samples={train: 5, val: 2, test: 0}", "data.image_size=31"]


def write(tmp_path, *overrides: str):
    return script("scripts/write_shards.py", f"out={tmp_path}/out", *overrides)


def test_it_writes_all_stages_and_says_what_it_did_and_what_is_next(tmp_path):
    ended = write(tmp_path, *SCENES, "samples_per_shard=2")
    assert ended.ok, ended.err
    assert ended.out.splitlines() == [
        "train: 5 samples in 3 shards",
        "val: 2 samples in 1 shards",
        "not kept: boxes, facts, group",
        f"uv run experiments/train.py … data=caption_shards data.source.root={tmp_path}/out "
        "data.readers.image.image_size=31 data.readers.image.channels=3 data.source.test_fraction=0",
    ]
    tars = [f"train-{number:06d}.tar" for number in range(3)] + ["val-000000.tar"]
    assert sorted(path.name for path in (tmp_path / "out").glob("*")) == sorted(
        [*tars, *(f"{name}.index.npz" for name in tars)]
    )


def test_what_it_says_to_be_next_works(tmp_path):
    root = image_tree(tmp_path / "in", per_class=20)
    ended = write(tmp_path, "data=image_folder", f"data.root={root}", "check=false")
    assert ended.ok, ended.err
    *_, command = ended.out.splitlines()
    overrides = shlex.split(command.partition("…")[2])
    ended = train(tmp_path / "run", *overrides)
    assert ended.ok, ended.err


@pytest.mark.parametrize("num_workers", [0, 1])
def test_what_cannot_be_read_ends_it_or_is_left_out_and_named(tmp_path, num_workers):
    root = flickr8k_tree(tmp_path / "in")
    (root / "Images" / "3.jpg").write_text("no image")
    (root / "Images" / "12.jpg").unlink()
    overrides = ["data=flickr8k", f"data.root={root}", f"loader.num_workers={num_workers}"]
    ended = write(tmp_path, *overrides)
    assert (ended.code, ended.err) == (1, f"error: {root}/Images/3.jpg: not an image\n")
    assert list((tmp_path / "out").iterdir()) == []
    ended = write(tmp_path, *overrides, "data.on_error=skip")
    assert ended.ok, ended.err
    assert f"left out, number 1: {root}/Images/3.jpg: not an image" in ended.out
    assert f"left out, number 2: {root}/Images/12.jpg: no such file" in ended.out
    options = {"target": "references", "val_fraction": 0.0, "test_fraction": 0.0}
    data = dataset(Shards, "image", root=f"{tmp_path}/out", **options)
    assert [len(data.split(stage)) for stage in ("train", "val", "test")] == [10, 4, 3]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([*SCENES, "samples_per_shard=0"], "samples_per_shard=0 must be at least 1"),
        ([*SCENES, "samples_per_shard=many"], "samples_per_shard=many: must be a whole number"),
        (
            ["data=text_pairs", "data.root=x"],
            "data.readers.text: texts are not written to shards; choose data of images or sounds",
        ),
        (["data=image_folder"], "data.source.root must be given: data.source.root=…"),
        ([*SCENES, "data.num_samples={train: 0, val: 1, test: 0}"], "data: there are no training samples"),
        ([*SCENES, "data.image_sizes=3"], "data.image_sizes: no such key; did you mean data.image_size?"),
    ],
)
def test_a_mistake_ends_it_in_one_sentence(tmp_path, overrides, message):
    ended = write(tmp_path, *overrides)
    assert (ended.code, ended.err) == (1, f"error: {message}\n")
    assert not (tmp_path / "out").exists() or list((tmp_path / "out").iterdir()) == []


def test_a_folder_with_shards_is_left_alone(tmp_path):
    assert write(tmp_path, *SCENES).ok
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    ended = write(tmp_path, *SCENES)
    names = "train-000000.tar, val-000000.tar"
    assert (ended.code, ended.err) == (1, f"error: out={tmp_path}/out: there are shards already: {names}\n")
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()} == before
