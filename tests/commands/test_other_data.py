"""Data that is not that of the run any more: what is tested, what labels mean, and where a run goes on."""

import shutil

import pytest
import torch

from perceiver.training.checkpoint import read_checkpoint
from tests.runs import image_tree, metrics, script, train, trained

FOLDERS = ["data=image_folder", "data.image_size=8", "data.channels=1", "data.val_fraction=0.2", "data.augment=null"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    root = image_tree(folder / "root", per_class=17)
    return root, trained(folder / "run", *FOLDERS, f"data.root={root}", "data.test_fraction=0.3")


@pytest.fixture
def copied(photos, tmp_path):
    root, run = photos
    shutil.copytree(root, tmp_path / "root")
    shutil.copytree(run, tmp_path / "run")
    return tmp_path / "root", tmp_path / "run"


def evaluated(run, *overrides, more=()):
    names = ",".join(f'"{override}"' for override in overrides)
    return script("experiments/evaluate.py", f"run={run}", f"overrides=[{names}]", *more)


def test_pictures_that_are_added_do_not_move_the_test_set_and_are_not_trained_on(copied):
    root, run = copied
    image_tree(root / "more", per_class=1)
    for name in ("cat", "dog", "eel"):
        (root / "more" / name / "0.png").rename(root / name / "new.png")
    shutil.rmtree(root / "more")
    ended = evaluated(run, f"data.root={root}")
    assert ended.ok, ended.err


@pytest.mark.parametrize("change", ["data.test_fraction=0.6", "data.fold=2"])
def test_samples_that_were_trained_on_are_not_tested_but_on_demand(copied, change):
    _, run = copied
    ended = evaluated(run, change)
    assert not ended.ok
    assert ended.err.startswith("error: ")
    assert "trained on" in ended.err
    assert "allow_trained" in ended.err
    ended = evaluated(run, change, more=["allow_trained=true"])
    assert ended.ok, ended.err
    assert "trained on" in ended.out + ended.err


def test_files_that_are_gone_or_renamed_are_told(copied):
    root, run = copied
    for path in sorted((root / "cat").iterdir())[:11]:
        path.rename(path.with_stem(f"renamed {path.stem}"))
    ended = evaluated(run, f"data.root={root}")
    assert "are missing" in ended.out + ended.err
    ended = script("experiments/train.py", f"run={run}", f"data.root={root}", "trainer.max_epochs=3")
    assert not ended.ok
    assert ended.err.strip().splitlines()[-1].startswith("error: ckpt_path=")
    assert "gone" in ended.err


def test_other_classes_are_refused_with_both_lists(copied):
    root, run = copied
    for old, new in (("cat", "apple"), ("dog", "grass"), ("eel", "sky")):
        (root / old).rename(root / new)
    for ended in (
        evaluated(run, f"data.root={root}"),
        script("experiments/inspect_attention.py", f"run={run}", f'overrides=["data.root={root}"]'),
        script("experiments/train.py", f"run={run}", f"data.root={root}", "trainer.max_epochs=3"),
    ):
        assert not ended.ok
        assert "cat, dog, eel" in ended.err
        assert "apple, grass, sky" in ended.err


def test_classes_in_another_order_are_told_apart_by_their_names(photos, tmp_path):
    """The checkpoint has them, and the weights of its head, in another order than the disk."""
    _, run = photos
    shutil.copytree(run, tmp_path / "run")
    path = tmp_path / "run" / "checkpoints" / "best.ckpt"
    content = torch.load(path, weights_only=True)
    order = [2, 0, 1]
    content["description"]["class_names"] = [content["description"]["class_names"][label] for label in order]
    heads = [
        name for name, value in content["state_dict"].items() if name.startswith("model.decoder") and len(value) == 3
    ]
    assert heads
    for name in heads:
        content["state_dict"][name] = content["state_dict"][name][order]
    torch.save(content, path)
    assert evaluated(run).ok
    assert evaluated(tmp_path / "run").ok
    assert metrics(tmp_path / "run", "evaluation") == pytest.approx(metrics(run, "evaluation"))


def test_what_was_trained_on_is_in_the_checkpoint_whatever_the_root_is_called(copied):
    root, run = copied
    again = root.parent / "again"
    assert train(again, *FOLDERS, f"data.root={root}", "data.test_fraction=0.3").ok
    one, other = (read_checkpoint(folder / "checkpoints" / "last.ckpt").trained_on for folder in (run, again))
    assert torch.equal(one, other)
    assert len(one) > 20
