"""Published models in a folder are given files and data like runs; their answers are those of transformers."""

import json

import av
import numpy as np
import pytest
import torch
from PIL import Image

import perceiver
from perceiver.data.readers.flow_file import read_flow
from perceiver.decoders.text import TextDecoder
from perceiver.pretrained import from_transformers
from perceiver.runtime.config import check_parts, resolved
from perceiver.training.build import check_queries, construct, insert_tokenizers
from perceiver.training.published import with_published_model
from perceiver.types import Batch
from tests.pretrained.small import (
    CONV,
    FLOW,
    LEARNED,
    MASKED_LM,
    MULTIMODAL,
    SEQUENCE,
    SMALL,
    neighborhoods,
    small,
    transformers,
)
from tests.runs import assert_refused, composed, script

NAMES = [f"kind {label}" for label in range(7)]


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "picture.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (61, 97, 3), dtype=np.uint8)).save(path)
    return path


def saved(hf_class, folder, **overrides):
    hf_model = small(hf_class, **overrides)
    hf_model.config.id2label = dict(enumerate(NAMES))
    hf_model.save_pretrained(folder)
    return hf_model


def write_video(path, num_frames, size=(8, 8)):
    """Noise with sound, 25 frames a second."""
    random = np.random.default_rng(0)
    with av.open(path, "w") as container:
        video, audio = container.add_stream("ffv1", rate=25), container.add_stream("pcm_s16le", rate=48_000)
        video.height, video.width = size
        video.pix_fmt = "bgr0"
        for _ in range(num_frames):
            pixels = random.integers(0, 256, (*size, 3), dtype=np.uint8)
            container.mux(video.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(format="bgr0")))
        container.mux(video.encode())
        wave = random.integers(-20_000, 20_000, (1, num_frames * 1920), dtype=np.int16)
        frame = av.AudioFrame.from_ndarray(wave, format="s16", layout="mono")
        frame.sample_rate = 48_000
        container.mux(audio.encode(frame))
        container.mux(audio.encode())


def predicted(folder, file, output):
    ended = script("experiments/predict.py", f"pretrained={folder}", f"inputs={file}", f"output={output}", "top=7")
    assert ended.ok, ended.err
    (answer,) = json.loads((output / "predictions.json").read_text())
    assert all((output / path).exists() for path in answer["attention"].values())
    return answer["predictions"]


@torch.no_grad()
def assert_same_classes(found, hf_model, inputs):
    expected = hf_model(inputs).logits[0].softmax(dim=0)
    order = expected.argsort(descending=True).tolist()
    assert [one["class"] for one in found] == [NAMES[label] for label in order]
    assert [one["probability"] for one in found] == pytest.approx(expected[order].tolist(), abs=1e-5)


class TestPredict:
    @pytest.mark.parametrize("hf_class", [CONV, LEARNED], ids=["conv", "learned"])
    def test_an_image_has_the_classes_of_transformers(self, tmp_path, picture, hf_class):
        hf_model = saved(hf_class, tmp_path / "model")
        processor = transformers.PerceiverImageProcessor()
        if hf_class is LEARNED:
            processor = transformers.PerceiverImageProcessor(
                size={"height": 13, "width": 13}, crop_size={"height": 17, "width": 17}
            )
            processor.save_pretrained(tmp_path / "model")
        found = predicted(tmp_path / "model", picture, tmp_path / "out")
        assert_same_classes(found, hf_model, processor(Image.open(picture), return_tensors="pt").pixel_values)

    def test_a_text_has_the_classes_of_transformers(self, tmp_path):
        hf_model = saved(SEQUENCE, tmp_path / "model")
        (tmp_path / "text.txt").write_text("naïve")
        found = predicted(tmp_path / "model", tmp_path / "text.txt", tmp_path / "out")
        ids = transformers.PerceiverTokenizer()("naïve", return_tensors="pt").input_ids
        assert_same_classes(found, hf_model, ids)

    @torch.no_grad()
    def test_masked_bytes_of_a_text_are_filled(self, tmp_path):
        hf_model = saved(MASKED_LM, tmp_path / "model", max_position_embeddings=23)
        with torch.no_grad():
            hf_model.embedding_decoder.bias[:38] = -1e3  # printable characters only
            hf_model.embedding_decoder.bias[132:] = -1e3
        hf_model.save_pretrained(tmp_path / "model")
        text = "some [MASK][MASK] missing"
        (tmp_path / "text.txt").write_text(text)
        (found,) = predicted(tmp_path / "model", tmp_path / "text.txt", tmp_path / "out")
        ids = transformers.PerceiverTokenizer()(text, return_tensors="pt").input_ids
        logs = hf_model(ids).logits[0, 6:8].log_softmax(dim=-1).max(dim=-1)
        filled = bytes((logs.indices - 6).tolist()).decode()
        assert found["filled"] == f"some {filled} missing"
        assert found["log_probability"] == pytest.approx(float(logs.values.sum()), abs=1e-4)

    @torch.no_grad()
    def test_a_video_has_the_classes_of_transformers_and_its_maps_are_drawn(self, tmp_path):
        sizes = {"audio_samples_per_frame": 1920, "samples_per_patch": 64, "output_shape": [1, 2, 8, 8]}
        hf_model = saved(MULTIMODAL, tmp_path / "model", **sizes)
        write_video(tmp_path / "clip.mkv", num_frames=2)
        answers = predicted(tmp_path / "model", tmp_path / "clip.mkv", tmp_path / "out")
        found = [{"class": one["answer"], "probability": one["score"]} for one in answers if one["task"] == "label"]
        inputs = perceiver.load(tmp_path / "model").explain(tmp_path / "clip.mkv").batch.inputs
        given = {"image": inputs["image"].transpose(1, 2), "audio": inputs["audio"].mT, "label": torch.zeros(1, 7)}
        points = {"image": torch.tensor([0]), "audio": torch.tensor([0]), "label": None}
        expected = hf_model(inputs=given, subsampled_output_points=points).logits["label"][0].softmax(dim=0)
        assert {one["class"]: one["probability"] for one in found} == pytest.approx(
            dict(zip(NAMES, expected.tolist(), strict=True)), abs=1e-5
        )
        assert {one["answer"] for one in answers if one["task"] != "label"} == {
            *("PSNR", "PSNR_of_mean", "SNR", "SNR_of_mean")
        }

    @torch.no_grad()
    def test_a_video_has_the_flow_of_transformers(self, tmp_path):
        hf_model = saved(FLOW, tmp_path / "model")
        write_video(tmp_path / "clip.mkv", num_frames=2, size=(6, 10))
        answers = predicted(tmp_path / "model", tmp_path / "clip.mkv", tmp_path / "out")
        frames = perceiver.load(tmp_path / "model").explain(tmp_path / "clip.mkv").batch.inputs["video"]
        assert frames.shape == (1, 3, 2, 6, 10)
        flow = 20 * hf_model(inputs=neighborhoods(2 * frames - 1)).logits[0]
        found = {one["component"]: one["pixels"] for one in answers}
        assert found["right"] == pytest.approx(float(flow[..., 0].mean()), abs=1e-5)
        assert found["down"] == pytest.approx(float(flow[..., 1].mean()), abs=1e-5)
        assert Image.open(tmp_path / "out" / "000_clip_video_flow.png").size == (10, 6)
        written = read_flow(tmp_path / "out" / "000_clip_flow.flo")
        torch.testing.assert_close(written, flow.permute(2, 0, 1), rtol=0, atol=1e-5)
        for number, frame in enumerate(frames[0].unbind(dim=1), start=1):
            pixels = (frame * 255).round().byte().permute(1, 2, 0).numpy()
            Image.fromarray(pixels).save(tmp_path / f"img{number}.png")
        assert predicted(tmp_path / "model", tmp_path / "img1.png", tmp_path / "pair") == answers

    def test_files_are_found_where_the_command_is_run(self, tmp_path, picture, monkeypatch):
        saved(LEARNED, tmp_path / "model")
        monkeypatch.chdir(tmp_path)
        assert script("experiments/predict.py", "pretrained=model", "inputs=picture.png").ok
        assert (tmp_path / "outputs" / "pretrained" / "model" / "predictions" / "predictions.json").exists()


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Small images in folders of the classes, the same in training and test."""
    root, random = tmp_path_factory.mktemp("folders"), np.random.default_rng(0)
    for name in NAMES:
        for number in range(3):
            pixels = random.integers(0, 256, (13, 13, 3), dtype=np.uint8)
            for split in ("train", "test"):
                path = root / split / name / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(path)
    return root


def test_it_is_evaluated_and_inspected_on_class_folders(tmp_path, folders):
    saved(LEARNED, tmp_path / "model")
    given = [f"pretrained={tmp_path / 'model'}", "data=image_folder", f"data.root={folders}"]
    ended = script("experiments/evaluate.py", *given, f"output={tmp_path / 'metrics.json'}")
    assert ended.ok, ended.err
    assert 0.0 <= json.loads((tmp_path / "metrics.json").read_text())["test/accuracy"] <= 1.0
    page = tmp_path / "page.html"
    ended = script("experiments/inspect_attention.py", *given, f"output={page}", "samples=2", "scored_samples=2")
    assert ended.ok, ended.err
    assert page.exists()


class TestTrain:
    """A published model is trained further on other data."""

    SETTINGS = (
        *("data=image_folder", "data.image_size=13", "data.augment=null", "loader.batch_size=7", "trainer=cpu"),
        *("trainer.max_epochs=1", "logger.mode=disabled", "attention.every_n_epochs=0", "callbacks=[]"),
    )

    @pytest.mark.slow
    def test_a_classifier_starts_with_its_weights_and_gets_the_classes_of_the_data(self, tmp_path, folders, picture):
        hf_model, run = saved(LEARNED, tmp_path / "model", num_labels=5), tmp_path / "run"
        given = [f"pretrained={tmp_path / 'model'}", f"data.root={folders}", f"hydra.run.dir={run}", *self.SETTINGS]
        ended = script("experiments/train.py", *given, "optimizer.lr=0.0", "optimizer.weight_decay=0.0")
        assert ended.ok, ended.err
        assert "loaded" in ended.out
        trained, published = perceiver.load(run), from_transformers(hf_model)
        assert trained.class_names == NAMES
        assert len(trained.predict(picture, top=7)[0]) == 7
        for part in ("encoders", "memory"):
            ours, theirs = (model.get_submodule(part).state_dict() for model in (trained.model, published))
            assert ours.keys() == theirs.keys()
            assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
        ended = script("experiments/train.py", f"run={run}", "trainer.max_epochs=2")
        assert ended.ok, ended.err

    def test_the_language_model_is_trained_on_with_its_own_decoder(self, tmp_path, folders):
        hf_model = saved(MASKED_LM, tmp_path / "model")
        length = SMALL["max_position_embeddings"]
        with composed(
            *("data=text_pairs", f"data.root={folders}", "tokenizer=perceiver", f"tokenizer.max_length={length}"),
            *("decoder@model.decoder=dense_ids", "task=reconstruction_ids", f"pretrained={tmp_path / 'model'}"),
            *("+encoder@model.encoders.text=text", "~encoder@model.encoders.image"),
        ) as cfg:
            config = with_published_model(resolved(cfg))
        check_parts(config)
        model, tokenizer = construct(config, "model"), construct(config, "tokenizer")
        task = construct(insert_tokenizers(config, tokenizer, tokenizer), "task")
        check_queries(task, model.decoder)
        model.load_state_dict(from_transformers(hf_model).state_dict())
        batch = task.prepare(Batch({"text": torch.randint(6, 262, (2, 1, length))}, {}, ["a", "b"]), train=True)
        outputs = task.outputs(model, batch)
        assert outputs["logits"].shape == (2, batch.targets["asked/logits"].choice.cells.shape[1], 262)
        task.loss(outputs, batch).backward()
        assert model.encoders["text"].embedding.weight.grad.abs().sum() > 0

    def test_the_decoder_of_another_kind_of_model_is_the_config_s(self, tmp_path, folders):
        saved(MASKED_LM, tmp_path / "model")
        with composed(
            *("data=text_pairs", f"data.root={folders}", "tokenizer=perceiver", "decoder@model.decoder=text"),
            *("task=captioning", "+encoder@model.encoders.text=text", "~encoder@model.encoders.image"),
            f"pretrained={tmp_path / 'model'}",
        ) as cfg:
            config = with_published_model(resolved(cfg))
        check_parts(config)
        model = construct(config, "model")
        assert isinstance(model.decoder, TextDecoder)
        assert model.memory.array.shape == (SMALL["num_latents"], SMALL["d_latents"])
        assert config["init"]["from"] == str(tmp_path / "model")


def test_errors_are_one_sentence(tmp_path, picture):
    model = tmp_path / "model"
    saved(FLOW, model)
    command = "experiments/predict.py"
    assert_refused(script(command, f"inputs={picture}"), "run must be given", "pretrained")
    assert_refused(script(command, f"run={tmp_path}", f"pretrained={model}", f"inputs={picture}"), "give one of them")
    assert_refused(script(command, f"pretrained={tmp_path}", f"inputs={picture}"), "pretrained=", "config.json")
    options = [f"pretrained={model}", f"inputs={picture}", "variant=haiku"]
    assert_refused(script(command, *options), "variant=haiku", "deepmind")
    for other in ("evaluate", "inspect_attention"):
        refused = script(f"experiments/{other}.py", f"pretrained={model}")
        assert_refused(refused, "a published model has no", "data.root=…")
