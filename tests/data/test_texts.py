"""Passages of plain texts."""

import gzip

import pytest

from perceiver.data.sources.texts import Texts
from perceiver.data.splits import HeldOut
from perceiver.tokenizer import ByteTokenizer
from tests.data.datasets import HELD_OUT, check_error, check_split_error, dataset, names, samples, splits

BYTES = ByteTokenizer(vocab_size=262, max_length=53)
ALL_FOR_TRAINING = HeldOut(val_fraction=0.0, test_fraction=0.0)


def data(root, held_out=ALL_FOR_TRAINING, **options):
    defaults = {"unit": "paragraph", "max_words": 7, "tokenizer": BYTES}
    return dataset(Texts, "text", root=str(root), held_out=held_out, **(defaults | options))


@pytest.mark.parametrize(
    ("unit", "expected"),
    [
        ("paragraph", ["one two three", "four five six seven", "eight nine", "ten"]),
        ("line", ["one two", "three", "four five six seven", "eight nine", "ten"]),
    ],
)
def test_a_sample_is_a_passage_of_a_file(tmp_path, unit, expected):
    path = tmp_path / "story.md"
    path.write_text("one\ttwo\n three \n\n  \nfour five six seven eight  nine\n\nten")
    found = data(path, unit=unit, max_words=4)
    split = found.split("train")
    assert [BYTES.decode(sample.inputs["text"][0].tolist()) for sample in samples(split)] == expected
    assert list(found.texts()) == names(split) == expected
    assert [sample.id for sample in samples(split)] == [f"story.md:{n}" for n in range(1, len(expected) + 1)]
    assert all(sample.targets == {} for sample in samples(split))


def test_a_folder_has_files_at_any_depth(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "a.txt").write_text("first")
    (tmp_path / "b" / "c.txt.gz").write_bytes(gzip.compress(b"second"))
    (tmp_path / "notes.csv").write_text("other")
    assert [sample.id for sample in samples(data(tmp_path).split("train"))] == ["a.txt:1", "b/c.txt.gz:1"]


def test_equal_passages_are_in_one_split_and_only_training_texts_are_given_to_the_tokenizer(tmp_path):
    path = tmp_path / "x.txt"
    path.write_text("\n".join(f"sentence {number % 97}" for number in range(211)))
    found = data(path, HeldOut(**HELD_OUT), unit="line")
    of_stages = {stage: set(names(split)) for stage, split in splits(found).items()}
    assert sum(map(len, of_stages.values())) == 97
    assert min(map(len, of_stages.values())) > 1
    assert set(found.texts()) == of_stages["train"]


def test_what_cannot_be_read_is_named(tmp_path):
    check_split_error(data(tmp_path), f"root={tmp_path}", "*.txt", error=FileNotFoundError)
    check_split_error(data(tmp_path / "none.txt"), "none.txt", error=FileNotFoundError)
    for content, problem in ((b" \n\n", "no text"), (b"\xff\xfe\xfa", "UTF-8"), (b"good\n\nb\x00d", "paragraph 2")):
        (tmp_path / "x.txt").write_bytes(content)
        check_split_error(data(tmp_path), "x.txt", problem)
    for key, value in (("unit", "word"), ("max_words", 0)):
        check_error(lambda key=key, value=value: data(tmp_path, **{key: value}), f"{key}=", error=ValueError)
