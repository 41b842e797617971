"""What is spoiled is found out by the script that spoils it, and a check that would find nothing is, too."""

import pytest

from scripts.malformed_trees import WRITERS
from tests.runs import script


@pytest.mark.slow
def test_whatever_is_spoiled_ends_in_a_sentence_or_is_left_out(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ended = script("scripts/malformed_inputs.py", "seed=7", "count=101")
    assert ended.ok, ended.out
    assert "101 as it must be" in ended.out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_what_is_not_found_out_fails_with_the_number_of_its_case(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("perceiver.data.readers.image.np.isfinite", lambda values: True)
    monkeypatch.setattr("scripts.malformed_archives.CHECKPOINT", {"nothing": lambda path, random: None})
    for name in WRITERS.keys() - {"image_folder", "audio_folder", "text_pairs"}:
        monkeypatch.delitem(WRITERS, name)
    ended = script("scripts/malformed_inputs.py", "seed=7", "count=127")
    assert ended.code == 1
    assert "checkpoint: nothing: accepted, without a word" in ended.out
    assert "image_folder: NaN: accepted, without a word" in ended.out


def test_a_setting_that_makes_no_cases_is_answered_in_one_sentence(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ended = script("scripts/malformed_inputs.py", "count=0")
    assert (ended.code, ended.err) == (1, "error: count=0: must be a whole number from 1 on\n")
