"""Features of a finished run: its latents, in the order of samples, whatever the batch size."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import perceiver
from perceiver.commands.embed import embeddings
from perceiver.commands.finished_run import load
from perceiver.data.collate import collate
from perceiver.runtime.errors import ConfigError
from perceiver.types import Batch, Memory
from tests.runs import assert_refused, image_tree, script


def embedded(run: Path, out: Path, *overrides: str) -> dict[str, np.ndarray]:
    ended = script("experiments/embed.py", f"run={run}", f"out={out}", *overrides)
    assert ended.ok, ended.err
    with np.load(out, allow_pickle=False) as found:
        return dict(found)


@torch.no_grad()
def latents(run: Path, stage: str) -> tuple[torch.Tensor, list[str], list[int]]:
    """The memory of each sample of a split alone."""
    parts = load(str(run), augment=False).parts
    split = parts.data.splits[stage]
    samples = [split[index] for index in range(len(split))]
    batches = [collate([sample]) for sample in samples]
    values = torch.cat([parts.model.encode(batch.inputs, batch.masks).values for batch in batches])
    return values, [sample.id for sample in samples], [sample.targets["label"] for sample in samples]


def test_a_split_has_the_latents_of_its_samples_in_order_with_their_labels(run, tmp_path):
    values, ids, labels = latents(run, "val")
    all_ = embedded(run, tmp_path / "all.npz", "split=val", "pool=none", 'overrides=["loader.batch_size=59"]')
    assert all_["features"].dtype == np.float32
    np.testing.assert_allclose(all_["features"], values, rtol=0, atol=1e-5)
    mean = embedded(run, tmp_path / "new" / "mean.npz", "split=val", 'overrides=["loader.batch_size=7"]')
    np.testing.assert_allclose(mean["features"], values.mean(dim=1), rtol=0, atol=1e-5)
    for found in (all_, mean):
        assert found["ids"].tolist() == ids
        assert found["label"].tolist() == labels
        assert found["class_names"].tolist() == [str(digit) for digit in range(10)]
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["mean.npz"]


def test_files_have_features_in_their_order_as_in_python(run, pictures, tmp_path):
    paths = ",".join(f'"{path}"' for path in reversed(pictures))
    found = embedded(run, tmp_path / "files.npz", f"inputs=[{paths}]")
    assert found["ids"].tolist() == [str(path) for path in reversed(pictures)]
    assert found.keys() == {"ids", "features"}
    loaded = perceiver.load(run)
    np.testing.assert_allclose(found["features"], loaded.embed(pictures[::-1]), rtol=0, atol=1e-5)
    all_ = loaded.embed(pictures[0], pool="none")
    assert all_.shape == (1, *loaded.model.memory.array.shape)
    np.testing.assert_allclose(found["features"][1], all_.mean(dim=1)[0], rtol=0, atol=1e-5)


def test_another_data_set_keeps_its_own_labels(run, tmp_path):
    root = image_tree(tmp_path / "animals")
    found = embedded(run, tmp_path / "a.npz", "data=image_folder", f"data.root={root}", "split=train")
    assert found["class_names"].tolist() == ["cat", "dog", "eel"]
    assert [Path(id).parts[0] for id in found["ids"]] == [found["class_names"][label] for label in found["label"]]


def test_what_can_be_read_is_written_before_a_bad_file_is_named(run, pictures, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"no image")
    inputs, out = f'["{tmp_path / "bad.png"}","{pictures[0]}"]', tmp_path / "some.npz"
    ended = script("experiments/embed.py", f"run={run}", f"inputs={inputs}", f"out={out}")
    assert_refused(ended, "bad.png", "not an image")
    with np.load(out) as found:
        assert found["ids"].tolist() == [str(pictures[0])]


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["split=tset"], ["split=tset", "test"]),
        (["pool=max"], ["pool=max", "mean"]),
        (["inputs=[]"], ["inputs=[]"]),
        (["inputs=x.png", "data=digits"], ["data=", "inputs="]),
        (["inputs=missing.png"], ["missing.png"]),
        (["out=."], ["out=."]),
    ],
)
def test_a_wrong_setting_is_named(run, tmp_path, monkeypatch, arguments, parts):
    monkeypatch.chdir(tmp_path)
    out = [] if any(one.startswith("out=") for one in arguments) else ["out=never.npz"]
    assert_refused(script("experiments/embed.py", f"run={run}", *out, *arguments), *parts)
    assert not list(tmp_path.iterdir())


def test_features_are_means_over_real_elements_and_over_the_windows_of_a_sample():
    values, mask = torch.randn(5, 3, 7), torch.tensor([[1, 1, 1], [1, 0, 1], [1, 1, 0], [0, 0, 1], [0, 0, 0]]).bool()
    values[~mask] = torch.nan

    def encode(inputs, masks, hidden):
        rows = inputs["row"]
        return Memory(values[rows], mask[rows])

    parts = SimpleNamespace(
        model=SimpleNamespace(encode=encode), data=SimpleNamespace(batch_size=2), device=torch.device("cpu")
    )
    windows = [("a", "b"), ("c", "d", "e")]
    batch = Batch({"row": torch.arange(5)}, {}, ["x", "y"], windows=windows)
    rows = [of_row[real].mean(dim=0) for of_row, real in zip(values[:4], mask[:4], strict=True)] + [torch.zeros(7)]
    expected = torch.stack([torch.stack(rows[:2]).mean(dim=0), torch.stack(rows[2:]).mean(dim=0)])
    torch.testing.assert_close(embeddings(parts, batch, "mean"), expected)
    with pytest.raises(ConfigError, match="pool=none"):
        embeddings(parts, batch, "none")
