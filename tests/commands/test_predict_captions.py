"""A finished run of captioning, asked about files: pictures, and sounds of any length."""

import json

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from perceiver.commands.finished_run import load
from perceiver.commands.predict import predict_samples
from perceiver.data.synthetic.shape_captions import WORDS
from perceiver.inspection.drawing.contact_sheet import BAR_WIDTH, GAP, TILE, TITLE_HEIGHT
from perceiver.tokenizer import split_words
from scripts.data_trees import clotho
from tests.runs import script

SMALL_TEXT = [
    *(
        "model.memory.num_latents=5",
        "model.memory.dim=14",
        "model.memory.cross_attention.num_heads=1",
        "model.memory.self_attention.num_heads=2",
    ),
    *(
        "model.decoder.num_layers=1",
        "model.decoder.queries.dim=12",
        "model.decoder.cross_attention.num_heads=3",
        "tokenizer.max_length=13",
    ),
    *("loader.batch_size=11", "loader.num_workers=0", "trainer=cpu", "trainer.max_epochs=1", "logger.mode=disabled"),
    *("trainer.precision=32-true", "attention.every_n_epochs=0", "attention.num_latents=2"),
]
SMALL_SCENES = [
    *("experiment=image_captioning", "data.image_size=32", "data.num_samples={train: 20, val: 5, test: 7}"),
    *("model.encoders.image.stem.dims=[3,5,7]", *SMALL_TEXT),
]
SMALL_CLOTHO = [
    *("experiment=audio_tagging", "data=clotho", "task=captioning", "tokenizer=words_small"),
    *("decoder@model.decoder=text", "data.clips.seconds=0.7", "data.clips.hop_seconds=0.3"),
    *("model.encoders.audio.stem.dims=[3,5,7]", "model.encoders.audio.log_mel.n_mels=23", *SMALL_TEXT),
]


@pytest.fixture(scope="module")
def scenes_run(tmp_path_factory):
    """A finished run on made-up scenes, which has learned next to nothing. Only read it."""
    run_dir = tmp_path_factory.mktemp("scenes") / "run"
    ended = script("experiments/train.py", f"hydra.run.dir={run_dir}", *SMALL_SCENES)
    assert ended.ok, ended.err
    return run_dir


def asked(run, paths, output, *overrides):
    """How it ended, and the answers."""
    inputs = ",".join(f'"{path}"' for path in paths)
    ended = script("experiments/predict.py", f"run={run}", f"inputs=[{inputs}]", f"output={output}", *overrides)
    assert ended.ok, ended.err
    return ended, json.loads((output / "predictions.json").read_text())


def check_strip(answer):
    """The strip of words has a tile of the picture and one for each word of the best caption, in even rows."""
    tiles = 1 + len(split_words(answer["predictions"][0]["caption"]))
    rows = -(-tiles // 8)
    with Image.open(answer["attention"]["caption/words"]) as strip:
        assert strip.width == -(-tiles // rows) * (TILE + GAP) + BAR_WIDTH
        assert strip.height == rows * (TILE + TITLE_HEIGHT + GAP)


def check_caption(one):
    """Some words that are known, and how likely they are together."""
    assert list(one) == ["caption", "log_probability"]
    assert one["log_probability"] < 0.0
    assert set(split_words(one["caption"])) <= {*WORDS, "."}


class TestPictures:
    def test_each_has_one_caption_and_maps(self, scenes_run, pictures, tmp_path):
        ended, answers = asked(scenes_run, pictures, tmp_path)
        assert [answer["input"] for answer in answers] == [str(path) for path in pictures]
        for number, answer in enumerate(answers):
            assert answer.keys() == {"input", "predictions", "attention"}
            (one,) = answer["predictions"]
            check_caption(one)
            assert one["caption"].split()[0] in ended.out
            assert f"{one['log_probability']:.4f}" in ended.out
            stem = tmp_path / f"{number:03d}_{pictures[number].stem}"
            assert answer["attention"]["caption/words"] == f"{stem}_caption_words.png"
            assert set(answer["attention"]) == {"caption/words", *(f"image/cross{k}" for k in range(3))}
            for path in answer["attention"].values():
                with Image.open(path) as sheet:
                    assert sheet.mode == "RGB"
                    assert np.asarray(sheet).std() > 10
            check_strip(answer)
        _, (alone,) = asked(scenes_run, pictures[1:], tmp_path / "alone")  # as among others
        (one,), (other,) = alone["predictions"], answers[1]["predictions"]
        assert one == {**other, "log_probability": pytest.approx(other["log_probability"], abs=1e-4)}

    def test_candidates_differ_and_the_likeliest_come_first(self, scenes_run, pictures, tmp_path):
        overrides = 'overrides=["task.generation.length_penalty=0.0"]'  # which ranks by more than likelihood
        _, answers = asked(scenes_run, pictures, tmp_path, "top=3", overrides)
        for answer in answers:
            assert len(answer["predictions"]) == len({one["caption"] for one in answer["predictions"]}) == 3
            likely = [one["log_probability"] for one in answer["predictions"]]
            assert likely == sorted(likely, reverse=True)
            for one in answer["predictions"]:
                check_caption(one)
            check_strip(answer)


@pytest.fixture(scope="module")
def clotho_run(tmp_path_factory):
    """A finished run on a few sounds with captions. Only read it."""
    folder = tmp_path_factory.mktemp("clotho")
    run_dir, root = folder / "run", clotho(folder / "data").root
    ended = script("experiments/train.py", f"hydra.run.dir={run_dir}", f"data.root={root}", *SMALL_CLOTHO)
    assert ended.ok, ended.err
    return run_dir


@pytest.fixture(scope="module")
def sounds(tmp_path_factory):
    """Shorter than a window, and six windows."""
    folder, random = tmp_path_factory.mktemp("sounds"), np.random.default_rng(1)
    for name, seconds in (("short.wav", 0.31), ("long.wav", 2.03)):
        soundfile.write(folder / name, 0.1 * random.standard_normal(round(seconds * 16_000)), 16_000)
    return [folder / name for name in ("short.wav", "long.wav")]


class TestSounds:
    def test_a_sound_of_several_windows_has_a_caption_as_a_whole_and_one_for_each(self, clotho_run, sounds, tmp_path):
        ended, (short, long) = asked(clotho_run, sounds, tmp_path, "top=2")
        assert short.keys() == {"input", "predictions", "attention"}
        assert long.keys() == {"input", "predictions", "attention", "windows"}, "captions have no timeline"
        names = [f"{start:.2f}-{start + 0.7:.2f} s" for start in (0.0, 0.3, 0.6, 0.9, 1.2, 1.33)]
        assert [row["window"] for row in long["windows"]] == names
        for answers, count in ((short, 2), (long, 2), *((row, 1) for row in long["windows"])):
            assert [list(one) for one in answers["predictions"]] == [["caption", "log_probability"]] * count
            assert all(one["caption"] and one["log_probability"] < 0.0 for one in answers["predictions"])
        assert all(name in ended.out for name in names)
        for answer in (short, long):
            layers = {f"audio/cross{number}" for number in range(3)}
            assert set(answer["attention"]) == {"caption/words", "alignment/audio", *layers}
            assert answer["attention"]["caption/words"].endswith("_caption_words.png")
            for path in answer["attention"].values():
                with Image.open(path) as sheet:
                    assert np.asarray(sheet).std() > 10
        assert not list(tmp_path.glob("*timeline*"))

    def test_the_strip_is_that_of_the_window_whose_caption_is_likeliest(self, clotho_run, sounds, tmp_path):
        _, (long,) = asked(clotho_run, sounds[1:], tmp_path / "long")
        likely = [row["predictions"][0]["log_probability"] for row in long["windows"]]
        samples, rate = soundfile.read(sounds[1])
        clearest = likely.index(max(likely))
        start = (0.0, 0.3, 0.6, 0.9, 1.2, 1.33)[clearest]
        soundfile.write(tmp_path / "window.wav", samples[round(start * rate) : round((start + 0.7) * rate)], rate)
        _, (alone,) = asked(clotho_run, [tmp_path / "window.wav"], tmp_path / "alone")
        assert alone["predictions"][0]["caption"] == long["windows"][clearest]["predictions"][0]["caption"]
        one, other = (Image.open(answer["attention"]["caption/words"]).tobytes() for answer in (alone, long))
        assert one == other

    def test_no_more_windows_than_a_batch_are_shown_to_the_model_at_once(self, clotho_run, sounds):
        shown, found = [], []
        for size in (2, 11):
            parts = load(str(clotho_run), "last", [f"loader.batch_size={size}"]).parts
            parts.module.eval()
            encoder = parts.model.encoders["audio"]
            encoder.register_forward_pre_hook(lambda module, args, rows=shown: rows.append(len(args[0])))
            with torch.no_grad():
                found.append(predict_samples(parts, [parts.data.dataset.read(sounds[1])], 2)[0])
        assert shown == [2, 2, 2, 6]
        for one, other in zip(*found, strict=True):
            assert one == {**other, "log_probability": pytest.approx(other["log_probability"], abs=1e-4)}
