"""Data that has changed since the training: which samples are tested, their labels, and resuming."""

import shutil

import pytest
import torch

from perceiver.training.checkpoint import read_checkpoint
from tests.runs import assert_refused, image_tree, metrics, script, train, trained

FOLDERS = ["data=image_folder", "data.image_size=8", "data.channels=1", "data.val_fraction=0.2", "data.augment=null"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    root = image_tree(folder / "root", per_class=17)
    return root, trained(folder / "run", *FOLDERS, f"data.root={root}", "data.test_fraction=0.3")


@pytest.fixture
def copied(photos, tmp_path):
    """Copies of the data and the run."""
    return tuple(shutil.copytree(path, tmp_path / path.name) for path in photos)


def evaluate(run, *overrides, more=()):
    names = ",".join(f'"{override}"' for override in overrides)
    return script("experiments/evaluate.py", f"run={run}", f"overrides=[{names}]", *more)


def test_training_samples_are_recorded_and_added_images_do_not_move_the_test_set(copied, tmp_path):
    root, run = copied
    again = trained(tmp_path / "again", *FOLDERS, f"data.root={root}", "data.test_fraction=0.3")
    one, other = (read_checkpoint(folder / "checkpoints" / "last.ckpt").trained_on for folder in (run, again))
    assert torch.equal(one, other), "whatever the name of the root"
    assert len(one) > 20
    for name in ("cat", "dog", "eel"):
        shutil.copy(root / name / "0.png", root / name / "new.png")
    ended = evaluate(run, f"data.root={root}")
    assert ended.ok, ended.err


@pytest.mark.parametrize("change", ["data.test_fraction=0.6", "data.fold=2"])
def test_training_samples_are_tested_only_with_allow_trained(copied, change):
    _, run = copied
    assert_refused(evaluate(run, change), "trained on", "allow_trained")
    ended = evaluate(run, change, more=["allow_trained=true"])
    assert ended.ok, ended.err
    assert "trained on" in ended.out + ended.err


def test_missing_or_renamed_files_are_warned_of_and_not_resumed(copied):
    root, run = copied
    for path in sorted((root / "cat").iterdir())[:11]:
        path.rename(path.with_stem(f"renamed {path.stem}"))
    ended = evaluate(run, f"data.root={root}")
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
        evaluate(run, f"data.root={root}"),
        script("experiments/inspect_attention.py", f"run={run}", f'overrides=["data.root={root}"]'),
        train(run, *FOLDERS, f"data.root={root}", f"ckpt_path={run}/checkpoints/last.ckpt"),
    ):
        assert not ended.ok
        assert "cat, dog, eel" in ended.err
        assert "apple, grass, sky" in ended.err


def test_classes_in_another_order_are_matched_by_name(photos, copied):
    """The checkpoint lists them, and the weights of its head, in another order than the data set."""
    (_, run), (_, other) = photos, copied
    path = other / "checkpoints" / "best.ckpt"
    content = torch.load(path, weights_only=True)
    order = [2, 0, 1]
    content["description"]["class_names"] = [content["description"]["class_names"][label] for label in order]
    state = content["state_dict"]
    heads = [name for name, value in state.items() if name.startswith("model.decoder") and len(value) == 3]
    assert heads
    for name in heads:
        state[name] = state[name][order]
    torch.save(content, path)
    for folder in (run, other):
        ended = evaluate(folder)
        assert ended.ok, ended.err
    assert metrics(other, "evaluation") == pytest.approx(metrics(run, "evaluation"))
