import gzip
from pathlib import Path

import pytest
import torch

from perceiver.data.collate import collate
from perceiver.data.dataset import Dataset
from perceiver.data.files import UnreadableError
from perceiver.data.sources.text_pairs import TextPairs
from perceiver.tokenizer import PAD, ByteTokenizer, WordTokenizer
from scripts import data_trees
from scripts.data_trees import write_lines
from tests.data.datasets import STAGES, check_error, check_split_error, dataset, names, samples, sizes

BYTES = ByteTokenizer(vocab_size=262, max_length=53)


@pytest.fixture
def root(tmp_path) -> Path:
    return data_trees.text_pairs(tmp_path).root


def data(root: Path, **options) -> Dataset:
    defaults = {"tokenizer": BYTES, "endings": None, "val_fraction": 0.0, "test_fraction": 0.0}
    return dataset(TextPairs, "text", root=str(root), **(defaults | options))


def pairs(split) -> list[tuple[str, str]]:
    return [(BYTES.decode(s.inputs["text"][0].tolist()), s.targets["caption"]) for s in samples(split)]


def sources(split) -> set[str]:
    return {source for source, _ in pairs(split)}


def test_a_sample_has_the_ids_of_its_source_and_all_targets_of_that(root):
    made = data(root)
    assert [len(sources(made.split(stage))) for stage in STAGES] == [11, 5, 3]
    first, second, third = (made.split("val")[index] for index in range(3))
    assert [sample.id for sample in (first, second, third)] == ["val.tsv:1", "val.tsv:2", "val.tsv:3"]
    assert first.inputs["text"].dtype == torch.long
    assert torch.equal(first.inputs["text"], BYTES.encode("What is number 11?")[None])
    assert torch.equal(second.inputs["text"], first.inputs["text"])
    assert first.targets == {"caption": "It is a cat.", "references": ["It is a cat.", "It is a dog."]}
    assert second.targets == {"caption": "It is a dog.", "references": ["It is a dog.", "It is a cat."]}
    assert third.targets == {"caption": "It is a cat.", "references": ["It is a cat."]}
    assert list(made.split("val").sample_classes(0)) == made.class_names == []
    assert names(made.split("val"))[:2] == ["val.tsv:What is number 11?"] * 2
    data(Path("/nowhere"))


def test_repeated_pairs_are_one_reference_and_further_columns_ignored(root):
    write_lines(root / "val.tsv", ["a\tb", "  a \tc\u00a0 d\tCC-BY 2.0\tmore", "", "a\tb"])
    found = samples(data(root).split("val"))
    assert [sample.targets["references"] for sample in found] == [["b", "c d"], ["c d", "b"], ["b", "c d"]]
    assert found[2].id == "val.tsv:4"


def test_batches_are_padded_and_positions_correspond_to_pieces(root):
    write_lines(root / "val.tsv", ["a\tb", "a b\tc"])
    made = data(root)
    batch = collate(samples(made.split("val")))
    assert batch.inputs["text"].shape == (2, 1, 5)
    assert batch.inputs["text"][0, 0, 3:].tolist() == [PAD, PAD]
    assert batch.masks["text"].tolist() == [[True] * 3 + [False] * 2, [True] * 5]
    assert made.pieces("text", batch.inputs["text"][1]) == ["<bos>", "a", " ", "b", "<eos>"]


def test_texts_are_those_of_the_training_pairs_and_need_no_trained_tokenizer(root):
    words = WordTokenizer(vocab_size=101, max_length=13, lowercase=True, min_frequency=1)
    made = data(root, tokenizer=words)
    texts = list(made.texts())
    assert texts[:4] == ["What is number 0?", "It is a cat.", "What is number 1?", "It is a cat."]
    assert len(texts) == 2 * len(made.split("train"))
    words.train(texts)
    assert made.split("train")[0].inputs["text"].shape == (1, 7)


@pytest.mark.parametrize("name", ["valid", "dev"])
def test_the_validation_file_may_have_other_names(root, name):
    expected = pairs(data(root).split("val"))
    (root / "val.tsv").rename(root / f"{name}.tsv")
    assert pairs(data(root).split("val")) == expected


@pytest.mark.parametrize("name", ["eng-fra.txt", "train.tsv"])
class TestFractions:
    """Stages without a file are held out, whether the root is a file or a folder."""

    @pytest.fixture
    def path(self, tmp_path, name) -> Path:
        write_lines(tmp_path / name, (f"source {nth % 89}\ttarget {nth}" for nth in range(211)))
        return tmp_path / name if name == "eng-fra.txt" else tmp_path

    def test_they_are_shares_of_the_sources_and_deterministic(self, path, name):
        made = data(path, val_fraction=0.25, test_fraction=0.5)
        parts = {stage: sources(made.split(stage)) for stage in STAGES}
        assert len(parts["test"]) > len(parts["train"]) > len(parts["val"]) > 3
        assert sum(map(len, parts.values())) == len(set.union(*parts.values())) == 89
        for sample in (sample for stage in STAGES for sample in samples(made.split(stage))):
            assert len(sample.targets["references"]) in (2, 3)
            assert sample.id.startswith(f"{name}:")
        texts = set(made.texts())
        assert texts >= parts["train"]
        assert not texts & (parts["test"] | parts["val"])
        again = data(path, val_fraction=0.25, test_fraction=0.5)
        assert {stage: sources(again.split(stage)) for stage in STAGES} == parts

    def test_fractions_of_zero_leave_training_only(self, path, name):
        assert sizes(data(path)) == [211, 0, 0]


def test_stages_with_a_file_ignore_the_fractions_which_are_checked(root):
    assert sizes(data(root, val_fraction=0.5, test_fraction=0.5)) == sizes(data(root))
    for name, value in (("val_fraction", -0.1), ("test_fraction", 1.0)):
        check_error(lambda n=name, v=value: data(root, **{n: v}), f"{name}={value} must be in [0, 1)", error=ValueError)


class TestAlignedFiles:
    @pytest.fixture
    def root(self, tmp_path) -> Path:
        for stage in ("train", "dev"):
            for language in ("en", "de", "fr"):
                write_lines(tmp_path / f"{stage}.{language}", (f"{stage} {nth}\tin {language}" for nth in range(7)))
        return tmp_path

    def test_lines_are_paired_and_those_without_a_text_left_out(self, root, caplog):
        made = data(root, endings=("de", "en"))
        assert pairs(made.split("train")) == [(f"train {nth} in de", f"train {nth} in en") for nth in range(7)]
        assert made.split("train")[2].id == "train.de:3"
        assert sizes(made) == [7, 7, 0]
        write_lines(root / "train.en", ["a", "", "c", "d"])
        write_lines(root / "train.de", ["A", "B", " ", "D"])
        train = data(root, endings=("en", "de")).split("train")
        assert pairs(train) == [("a", "A"), ("d", "D")]
        assert train[1].id == "train.en:4"
        (message,) = caplog.messages
        assert all(part in message for part in (f"{root}/train.en: ", "2 of 4", "train.en:2, train.en:3"))

    def test_files_that_do_not_match_are_named(self, root):
        write_lines(root / "train.en", ["a", "b"])
        check_split_error(data(root, endings=("en", "de")), f"{root}/train.en: 2 lines", f"{root}/train.de has 7")
        (root / "train.de").unlink()
        missing = {"error": FileNotFoundError}
        check_split_error(data(root, endings=("en", "de")), f"{root}/train.de: no such file", **missing)
        check_split_error(data(root, endings=("cs", "da")), f"root={root}", "train.cs and train.da", **missing)
        check_split_error(data(root), f"root={root}", "train.tsv", "train.{en,fr}", "endings", **missing)
        check_split_error(data(root / "train.en", endings=("en", "de")), "root=", "endings=", error=ValueError)


class TestErrors:
    def test_a_missing_root_is_named(self, tmp_path):
        for root in (tmp_path, tmp_path / "nowhere"):
            check_split_error(data(root), f"root={root}", "train.tsv", error=FileNotFoundError)

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"a\tb\n\nc d\n", "line 3: no tab between source and target"),
            (b"a\tb\nc\t\x1b\n", "line 2: character 1, U+001B"),
            (b"\n", "no pairs"),
            ("ä\tb\n".encode("latin1"), "not UTF-8 text"),
        ],
    )
    def test_errors_name_the_file_and_the_line(self, root, content, message):
        (root / "train.tsv").write_bytes(content)
        check_split_error(data(root), f"{root}/train.tsv: {message}")

    def test_a_users_file_is_one_source(self, root):
        path = write_lines(root / "mine.txt", ["", "A first line", "  and a second.", ""])
        sample = data(root).read(path)
        assert torch.equal(sample.inputs["text"], BYTES.encode("A first line and a second.")[None])
        assert (sample.targets, sample.id) == ({}, str(path))
        for content in (b"\xff\xfe\x00", b" \n", b"a \0"):
            path.write_bytes(content)
            check_error(lambda: data(root).read(path), f"{path}: ")
        path.unlink()
        check_error(lambda: data(root).read(path), f"{path}: no such file")


def test_files_may_be_compressed_and_those_for_testing_have_any_name(tmp_path):
    texts = {"train": ["a b", "c"], "val": ["d"], "test_2016": ["e f g"]}
    for stage, lines in texts.items():
        for language in ("en", "fr"):
            content = "".join(f"{language} {line}\n" for line in lines).encode()
            (tmp_path / f"{stage}.{language}.gz").write_bytes(gzip.compress(content))
    made = data(tmp_path, endings=("en", "fr"), test_name="test_2016")
    assert [pairs(made.split(stage)) for stage in STAGES] == [
        [(f"en {line}", f"fr {line}") for line in lines] for lines in texts.values()
    ]
    assert made.split("test")[0].id == "test_2016.en.gz:1"
    assert [made.split("train").items.sample_length(index) for index in range(2)] == [12, 8]
    assert list(made.source.text_pairs()) == [("en a b", "fr a b"), ("en c", "fr c")]
    with pytest.raises(FileNotFoundError, match="test_name=test_2017"):
        data(tmp_path, endings=("en", "fr"), test_name="test_2017").split("test")
    (tmp_path / "val.en.gz").write_bytes(gzip.compress(b"x" * 101)[:-9])
    with pytest.raises(UnreadableError, match=r"val\.en\.gz"):
        data(tmp_path, endings=("en", "fr")).split("val")
