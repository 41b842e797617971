"""The gallery of a run: by the callback at the end of training on any number of processes, and by the command."""

import json
from collections import Counter

import numpy as np
import pytest

from tests.processes import trained_on
from tests.runs import assert_refused, metrics, script, table, trained
from tests.wandb_file import files_of_artifact, rows, run_folders

pytestmark = pytest.mark.slow
CALLBACK = ["callbacks=[gallery]", "callbacks.gallery.top=7"]


def arrays(path):
    with np.load(path) as file:
        return dict(file)


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        if values.dtype.kind == "f":
            np.testing.assert_allclose(found[name], values, rtol=1e-3, atol=1e-5, err_msg=name)
        else:
            np.testing.assert_array_equal(found[name], values, err_msg=name)


def test_callback_and_command_give_the_same_gallery_and_wandb_has_its_tables(tmp_path):
    run = trained(tmp_path / "run", *CALLBACK, "logger.mode=offline")
    at_end = arrays(run / "attention" / "gallery.npz")
    counts = at_end["logits/confusion"]
    assert counts.sum() == at_end["num_samples"] > 100
    assert counts.trace() / counts.sum() == pytest.approx(metrics(run)["val/accuracy"], abs=1e-6)
    assert (run / "attention" / "gallery.html").stat().st_size < 4_000_000

    (folder,) = run_folders(run)
    path = "val/predictions.table.json"
    shown = json.loads(files_of_artifact(folder, path)[path].read_text())
    assert shown["columns"] == ["image", "id", "truth", "answer", "confidence", "loss"]
    (row,) = [row for row in rows(folder) if "val/predictions" in row]
    assert {"attention/gallery", "val/confusion_matrix"} <= {key.removesuffix("_table") for key in row}
    wrong = [one[2] != one[3] for one in shown["data"]]
    assert wrong == sorted(wrong, reverse=True)
    path = "val/confusion_matrix_table.table.json"
    cells = json.loads(files_of_artifact(folder, path)[path].read_text())
    assert [row[2] for row in cells["data"]] == counts.flatten().tolist()

    options = ["checkpoint=last", "gallery=true", "gallery_top=7"]
    ended = script("experiments/inspect_attention.py", f"run={run}", *options, f"output={tmp_path}/again.html")
    assert ended.ok, ended.err
    assert_same(arrays(tmp_path / "again.npz"), at_end)
    ended = script("experiments/inspect_attention.py", f"run={run}", "gallery=true", "gallery_split=test")
    assert ended.ok, ended.err
    tested = arrays(run / "attention" / "gallery.npz")
    header, *lines = table(run / "predictions.csv")
    of_file = Counter((int(line[1]), int(line[2])) for line in lines)
    assert Counter({cell: int(count) for cell, count in np.ndenumerate(tested["logits/confusion"])}) == of_file
    losses = {line[0]: float(line[header.index("loss")]) for line in lines}
    assert list(tested["logits/loss"]) == pytest.approx([losses[id] for id in tested["logits/ids"]], rel=1e-3)
    for wrong in ("gallery_top=0", "gallery_split=all", "gallery_samples=x", "inputs=[a.png]", "atlas=true"):
        refused = script("experiments/inspect_attention.py", f"run={run}", "gallery=true", wrong)
        assert_refused(refused, wrong.partition("=")[0])


def test_two_processes_share_the_samples(tmp_path):
    alone, together = (
        arrays(trained_on(count, tmp_path / f"{count}", *CALLBACK, "optimizer.lr=0") / "attention" / "gallery.npz")
        for count in (1, 2)
    )
    assert_same(together, alone)
