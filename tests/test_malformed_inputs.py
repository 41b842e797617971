"""The script that tests malformed data finds no failure, and detects faults that are not reported."""

import pytest

from scripts import data_trees, malformed_trials
from tests.runs import assert_refused, script


@pytest.mark.slow
def test_every_fault_is_reported_in_one_sentence(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ended = script("scripts/malformed_inputs.py", "seed=7", "count=101")
    assert ended.ok, ended.out
    assert "101 passed" in ended.out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_fault_that_is_not_reported_is_a_failure(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("perceiver.data.readers.image.np.isfinite", lambda values: True)
    monkeypatch.setattr(malformed_trials, "CHECKPOINT", {"nothing": lambda path, random: None})
    for name in data_trees.DATA_SETS.keys() - {"image_folder", "audio_folder", "text_pairs"}:
        monkeypatch.delitem(data_trees.DATA_SETS, name)
    ended = script("scripts/malformed_inputs.py", "seed=7", "count=127")
    assert ended.code == 1
    assert "checkpoint: nothing: no error" in ended.out
    assert "image_folder: a value of nan: no error" in ended.out


def test_a_wrong_setting_is_reported_in_one_sentence(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ended = script("scripts/malformed_inputs.py", "count=0")
    assert_refused(ended, "error: count=0: ")
