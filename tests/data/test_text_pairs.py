from pathlib import Path

import pytest
import torch

from perceiver.data.collate import collate
from perceiver.data.dataset import Dataset
from perceiver.data.files import UnreadableError
from perceiver.data.sources.text_pairs import TextPairs
from perceiver.tokenizer import PAD, ByteTokenizer, WordTokenizer
from tests.data.caption_trees import lines, numbers, samples, text_pairs_tree
from tests.data.datasets import dataset

STAGES = ("train", "val", "test")
BYTES = ByteTokenizer(vocab_size=262, max_length=53)


@pytest.fixture
def root(tmp_path) -> Path:
    return text_pairs_tree(tmp_path)


def data(root: Path, **options) -> Dataset:
    defaults = {"tokenizer": BYTES, "endings": None, "val_fraction": 0.0, "test_fraction": 0.0}
    return dataset(TextPairs, "text", root=str(root), **(defaults | options))


def pairs(split) -> list[tuple[str, str]]:
    """Sources, as the ids tell them, and targets."""
    return [(BYTES.decode(s.inputs["text"][0].tolist()), s.targets["caption"]) for s in samples(split)]


def sources(split) -> set[str]:
    return {source for source, _ in pairs(split)}


def test_building_it_touches_no_disk():
    data(Path("/nowhere"))


def test_a_sample_has_the_ids_of_its_source_and_all_targets_of_that(root):
    made = data(root)
    assert [len(sources(made.split(stage))) for stage in STAGES] == [len(numbers(stage)) for stage in STAGES]
    first, second, third = [made.split("val")[index] for index in range(3)]
    assert (first.id, second.id) == ("val.tsv:1", "val.tsv:2")
    assert first.inputs["text"].dtype == torch.long
    assert torch.equal(first.inputs["text"], BYTES.encode("What is number 11?")[None])
    assert torch.equal(second.inputs["text"], first.inputs["text"])
    assert first.targets == {"caption": "It is red.", "references": ["It is red.", "It is green."]}
    assert second.targets == {"caption": "It is green.", "references": ["It is green.", "It is red."]}
    assert third.targets == {"caption": "It is red.", "references": ["It is red."]}
    assert list(made.split("val").classes_of(0)) == made.class_names == []


def test_a_pair_that_is_there_twice_is_one_reference(root):
    lines(root / "val.tsv", ["a\tb", "a\tc", "a\tb"])
    found = [sample.targets["references"] for sample in samples(data(root).split("val"))]
    assert found == [["b", "c"], ["c", "b"], ["b", "c"]]


def test_batches_are_padded_with_a_mask(root):
    lines(root / "val.tsv", ["a\tb", "abc\tc"])
    batch = collate(samples(data(root).split("val")))
    assert batch.inputs["text"].shape == (2, 1, 5)
    assert batch.inputs["text"][0, 0, 3:].tolist() == [PAD, PAD]
    assert batch.masks["text"].tolist() == [[True] * 3 + [False] * 2, [True] * 5]


def test_texts_are_sources_and_targets_of_training_and_need_no_trained_tokenizer(root):
    words = WordTokenizer(vocab_size=101, max_length=13, lowercase=True, min_frequency=1)
    made = data(root, tokenizer=words)
    texts = list(made.texts())
    assert texts[:4] == ["What is number 0?", "It is red.", "What is number 1?", "It is red."]
    assert len(texts) == 2 * len(made.split("train"))
    words.train(texts)
    assert made.split("train")[0].inputs["text"].shape == (1, 7)


def test_further_columns_and_white_space_do_not_count(root):
    lines(root / "train.tsv", ["  a  b \t c\u00a0d\tCC-BY 2.0\tmore", "", "e\tf"])
    assert pairs(data(root).split("train")) == [("a b", "c d"), ("e", "f")]
    assert data(root).split("train")[1].id == "train.tsv:3"


def test_quotes_are_letters(root):
    lines(root / "train.tsv", ['"Go.\t"Va !" dit-il', "'\t''"])
    assert pairs(data(root).split("train")) == [('"Go.', '"Va !" dit-il'), ("'", "''")]


@pytest.mark.parametrize("name", ["val", "valid", "dev"])
def test_validation_has_several_names(root, name):
    expected = pairs(data(root).split("val"))
    (root / "val.tsv").rename(root / f"{name}.tsv")
    assert pairs(data(root).split("val")) == expected


def many(path: Path) -> Path:
    return lines(path, (f"source {nth % 89}\ttarget {nth}" for nth in range(211)))


@pytest.mark.parametrize("name", ["eng-fra.txt", "train.tsv"])
class TestFractions:
    """What has no file of its own is split off, whether the root is a file or a folder."""

    def test_they_are_shares_of_the_sources_and_keep_their_targets_together(self, tmp_path, name):
        path = many(tmp_path / name)
        options = {"val_fraction": 0.25, "test_fraction": 0.5}
        made = data(path if name == "eng-fra.txt" else tmp_path, **options)
        parts = {stage: sources(made.split(stage)) for stage in STAGES}
        assert len(parts["test"]) > len(parts["train"]) > len(parts["val"]) > 3
        assert len(set.union(*parts.values())) == 89
        for stage in STAGES:
            for sample in samples(made.split(stage)):
                assert len(sample.targets["references"]) in (2, 3)
                assert sample.id.startswith(f"{name}:")
        assert set(made.texts()) & sources(made.split("train")) == sources(made.split("train"))
        assert not set(made.texts()) & sources(made.split("test"))

    def test_they_are_the_same_each_time_and_not_the_last(self, tmp_path, name):
        path = many(tmp_path / name)
        first, again = (data(path, test_fraction=0.1).split("test") for _ in range(2))
        assert pairs(first) == pairs(again)
        assert sources(first) != {f"source {nth}" for nth in range(80, 89)}

    def test_without_any_there_is_training_only(self, tmp_path, name):
        made = data(many(tmp_path / name))
        assert [made.split(stage) is None for stage in STAGES] == [False, True, True]
        assert len(made.split("train")) == 211


def test_fractions_do_not_touch_what_has_files_of_its_own(root):
    counts = [len(data(root).split(stage)) for stage in STAGES]
    assert [len(data(root, val_fraction=0.5, test_fraction=0.5).split(stage)) for stage in STAGES] == counts


class TestAlignedFiles:
    @pytest.fixture
    def aligned(self, tmp_path) -> Path:
        for stage in ("train", "dev"):
            for language in ("en", "de", "fr"):
                lines(tmp_path / f"{stage}.{language}", (f"{stage} {nth}\tin {language}" for nth in range(7)))
        return tmp_path

    def test_lines_belong_together(self, aligned):
        made = data(aligned, endings=("de", "en"))
        assert pairs(made.split("train")) == [(f"train {nth} in de", f"train {nth} in en") for nth in range(7)]
        assert made.split("train")[2].id == "train.de:3"
        assert len(made.split("val")) == 7
        assert made.split("test") is None

    def test_pairs_that_lack_a_text_are_left_out_and_the_others_stay_together(self, aligned, caplog):
        lines(aligned / "train.en", ["a", "", "c", "d"])
        lines(aligned / "train.de", ["A", "B", " ", "D"])
        train = data(aligned, endings=("en", "de")).split("train")
        assert pairs(train) == [("a", "A"), ("d", "D")]
        assert train[1].id == "train.en:4"
        assert caplog.messages == [f"{aligned}/train.en: left out 2 of 4 that lack a text: train.en:2, train.en:3"]

    def test_files_of_two_lengths(self, aligned):
        lines(aligned / "train.en", ["a", "b"])
        refused(aligned, "ROOT/train.en: 2 lines, but ROOT/train.de has 7", endings=("en", "de"))

    def test_one_file_without_the_other(self, aligned):
        (aligned / "train.de").unlink()
        refused(aligned, "ROOT/train.de: no such file", FileNotFoundError, endings=("en", "de"))

    def test_none_of_the_two(self, aligned):
        message = "root=ROOT: neither a file nor a folder with train.en and train.cs in it"
        for language in ("en", "fr"):
            (aligned / f"train.{language}").unlink()
        refused(aligned, message, FileNotFoundError, endings=("en", "cs"))

    def test_none_is_named(self, aligned):
        message = "root=ROOT: neither a file nor a folder with train.tsv in it"
        refused(aligned, message + "; there are train.{de,en,fr}: two of them may be endings=", FileNotFoundError)

    def test_endings_for_a_root_that_is_a_file(self, aligned):
        message = "root=ROOT/train.en is one file, but endings=.* are those of two"
        with pytest.raises(ValueError, match=message.replace("ROOT", str(aligned))):
            data(aligned / "train.en", endings=("en", "de")).split("train")


class TestRead:
    def test_a_users_file_is_one_source(self, root):
        path = lines(root / "mine.txt", ["", "A first line", "  and a second.", ""])
        sample = data(root).read(path)
        assert torch.equal(sample.inputs["text"], BYTES.encode("A first line and a second.")[None])
        assert sample.targets == {}
        assert sample.id == str(path)

    @pytest.mark.parametrize(
        ("content", "message"),
        [(None, "no such file"), (b"\xff\xfe\x00", "not text in UTF-8"), (b" \n", "there is no text in it")],
    )
    def test_what_cannot_be_read(self, root, content, message):
        path = root / "mine.txt"
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(UnreadableError, match=f"^{path}: {message}$"):
            data(root).read(path)


def refused(root: Path, message: str, error: type[Exception] = UnreadableError, **options) -> None:
    """Some split cannot be had; the message is that one, with the root left out."""
    with pytest.raises(error) as raised:
        data(root, **options).split("train")
    assert str(raised.value).replace(str(root), "ROOT") == message


class TestMistakes:
    def test_a_root_that_is_not_there_or_has_no_file(self, tmp_path):
        message = "root=ROOT: neither a file nor a folder with train.tsv in it"
        refused(tmp_path, message, FileNotFoundError)
        refused(tmp_path / "nowhere", message, FileNotFoundError)

    def test_a_line_without_a_tab(self, root):
        lines(root / "train.tsv", ["a\tb", "", "c d"])
        refused(root, "ROOT/train.tsv: line 3: no tab between source and target")

    def test_a_pair_without_one_of_its_texts(self, root, caplog):
        lines(root / "train.tsv", ["a\t", "b\tc", "\td"])
        assert pairs(data(root).split("train")) == [("b", "c")]
        assert caplog.messages == [f"{root}/train.tsv: left out 2 of 3 that lack a text: train.tsv:1, train.tsv:3"]

    def test_a_file_without_pairs(self, root):
        (root / "train.tsv").write_text("\n")
        refused(root, "ROOT/train.tsv: there is no pair in it")

    def test_another_encoding(self, root):
        (root / "train.tsv").write_bytes("ä\tb\n".encode("latin1"))
        refused(root, "ROOT/train.tsv: not text in UTF-8")

    @pytest.mark.parametrize("name", ["val_fraction", "test_fraction"])
    @pytest.mark.parametrize("value", [-0.1, 1.0])
    def test_a_fraction_that_is_none(self, root, name, value):
        with pytest.raises(ValueError, match=rf"^{name}={value} must be in \[0, 1\)$"):
            data(root, **{name: value})


def test_each_place_of_a_source_stands_for_a_piece_of_it(root):
    lines(root / "val.tsv", ["a bc\tb"])
    made = data(root)
    (sample,) = samples(made.split("val"))
    assert made.pieces("text", sample.inputs["text"]) == ["<bos>", "a", " ", "b", "c", "<eos>"]
