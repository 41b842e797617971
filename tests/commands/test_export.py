"""Exported runs have the outputs of the run, which the script verifies itself."""

import json
from itertools import product

import pytest
import torch
from PIL import Image

import perceiver
from perceiver.commands import export
from perceiver.runtime.errors import ConfigError
from tests.pretrained.small import CONV, small, transformers
from tests.runs import CAPTIONING, assert_refused, script, trained

SCRIPT = "scripts/export.py"


def exported(run, kind, out, *arguments):
    ended = script(SCRIPT, f"run={run}", f"format={kind}", f"out={out}", *arguments)
    assert ended.ok, ended.err
    return ended.out


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["onnx", "torch_export"])
def test_a_graph_takes_batches_of_any_size(run, tmp_path, kind):
    printed = exported(run, kind, tmp_path, "tolerance=1e-5")
    assert "batch of 1" in printed
    assert "batch of 3" in printed
    signature = json.loads((tmp_path / "signature.json").read_text())
    assert signature["inputs"] == {"image": {"type": "float32", "shape": ["batch", 1, 8, 8]}}
    assert signature["outputs"] == {"logits": {"type": "float32", "shape": ["batch", 10]}}


@pytest.mark.slow
def test_a_folder_of_weights_is_read_again_as_a_run(run, tmp_path, pictures):
    exported(run, "safetensors", tmp_path / "model", "tolerance=0")
    assert perceiver.load(tmp_path / "model").predict(pictures) == perceiver.load(run).predict(pictures)
    metrics = tmp_path / "metrics.json"
    ended = script("experiments/evaluate.py", f"pretrained={tmp_path / 'model'}", f"output={metrics}")
    assert ended.ok, ended.err
    expected = json.loads((run / "metrics.json").read_text())["test/accuracy"]
    assert json.loads(metrics.read_text())["test/accuracy"] == pytest.approx(expected)


def test_a_folder_of_weights_builds_no_class_that_is_not_trusted(run, tmp_path):
    exported(run, "safetensors", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["config"]["model"]["decoder"] = {"_target_": "os.system", "command": f"touch {tmp_path / 'executed'}"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=r"os\.system"):
        perceiver.load(tmp_path)
    assert not (tmp_path / "executed").exists()
    (tmp_path / "config.json").write_text(json.dumps({"format": "perceiver run", "config": {}}))
    with pytest.raises(ConfigError, match="not a readable folder"):
        perceiver.load(tmp_path)


@pytest.mark.slow
def test_a_published_architecture_is_exported_with_its_normalization(tmp_path, pictures):
    small(CONV).save_pretrained(tmp_path / "published")
    given = [f"pretrained={tmp_path / 'published'}", "format=transformers", f"out={tmp_path / 'again'}"]
    assert_refused(script(SCRIPT, *given), "no samples of its own", "inputs=")
    ended = script(SCRIPT, *given, f"inputs={pictures[0]}", "tolerance=1e-4")
    assert ended.ok, ended.err
    loaded = [perceiver.load(tmp_path / name).predict(pictures[0])[0] for name in ("published", "again")]
    assert [one["probability"] for one in loaded[1]] == pytest.approx([one["probability"] for one in loaded[0]])


@pytest.mark.slow
@torch.no_grad()
def test_a_trained_run_of_a_published_architecture_is_read_by_transformers(tmp_path):
    folders = tmp_path / "folders"
    for name, value in (("dark", 40), ("light", 200)):
        for split, number in product(("train", "test"), range(5)):
            path = folders / split / name / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (13, 13), (value, 10 * number, 7)).save(path)
    run, out = tmp_path / "run", tmp_path / "out"
    settings = [
        *("data=image_folder", f"data.root={folders}", "data.image_size=13", "data.augment=null", "trainer=cpu"),
        *("model=perceiver_io", "encoder@model.encoders.image=image_pixels_learned", "decoder@model.decoder=queries"),
        *("model.decoder.attention.num_heads=1", "model.memory.dim=24", "trainer.max_epochs=2", "loader.batch_size=3"),
        *("logger=none", "attention.every_n_epochs=0", "callbacks=[]", f"hydra.run.dir={run}"),
    ]
    ended = script("experiments/train.py", *settings)
    assert ended.ok, ended.err
    exported(run, "transformers", out, "tolerance=1e-5")
    hf_model = transformers.AutoModelForImageClassification.from_pretrained(out)
    pixels = transformers.AutoImageProcessor.from_pretrained(out)(Image.open(path), return_tensors="pt").pixel_values
    expected = dict(zip(hf_model.config.id2label.values(), hf_model(pixels).logits[0].softmax(0).tolist(), strict=True))
    assert expected.keys() == {"dark", "light"}
    for source in (run, out):
        (found,) = perceiver.load(source).predict(path)
        assert {one["class"]: one["probability"] for one in found} == pytest.approx(expected, abs=1e-5)


def test_what_cannot_be_exported_is_one_sentence(run, tmp_path):
    given = [f"run={run}", f"out={tmp_path}"]
    assert_refused(script(SCRIPT, *given, "format=pickle"), "format=pickle", "safetensors")
    assert_refused(script(SCRIPT, *given, "format=onnx", "tolerance=-1"), "tolerance=-1")
    assert_refused(script(SCRIPT, *given, "format=transformers"), "format=transformers", "other parts")


def test_an_output_with_the_name_of_an_input_has_another_one_in_a_graph():
    call = export.Call({("inputs", "video"): torch.zeros(2, 3)}, frozenset())
    assert call.output_names(lambda *_: {"video": torch.zeros(1), "label": torch.zeros(1)}) == {
        "video": "video_output",
        "label": "label",
    }


def test_outputs_that_differ_are_refused(run, tmp_path, monkeypatch):
    def altered(finished, call, out):
        outputs = export.export_safetensors(finished, call, out)
        return lambda rows: {name: values + 0.5 for name, values in outputs(rows).items()}

    monkeypatch.setitem(export.FORMATS, "safetensors", altered)
    assert_refused(script(SCRIPT, f"run={run}", "format=safetensors", f"out={tmp_path}"), "'logits'", "tolerance=")


@pytest.mark.slow
def test_a_text_decoder_is_exported_for_token_ids(tmp_path):
    run = trained(tmp_path / "run", *CAPTIONING)
    assert "no generation" in exported(run, "onnx", tmp_path / "onnx")
    signature = json.loads((tmp_path / "onnx" / "signature.json").read_text())
    assert signature["inputs"]["logits_queries"]["shape"] == ["batch", 12]
