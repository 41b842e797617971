"""Folders of published models are read without transformers, and nothing in them is executed."""

import json
import pickle
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from perceiver.pretrained import from_pretrained
from perceiver.pretrained.folder import read
from tests.pretrained.small import CLASSES, CONV, FLOW, FOURIER, MULTIMODAL, SEQUENCE, case, small


def saved(hf_class, folder, *, pickled=False, max_shard_size="1GB"):
    hf_model = small(hf_class)
    hf_model.save_pretrained(folder, max_shard_size=max_shard_size)
    if pickled:
        torch.save(hf_model.state_dict(), folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()
    return hf_model


@pytest.mark.parametrize("hf_class", CLASSES, ids=lambda hf_class: hf_class.__name__)
@pytest.mark.parametrize("pickled", [False, True])
@torch.no_grad()
def test_outputs_are_those_of_the_saved_model(tmp_path, hf_class, pickled):
    hf_model, given = saved(hf_class, tmp_path, pickled=pickled), case(hf_class)
    found = given.found(from_pretrained(tmp_path))
    for name, values in given.expected(hf_model).items():
        torch.testing.assert_close(found[name], values, atol=1e-5, rtol=0.0)


@pytest.fixture
def sharded(tmp_path):
    """A folder with several files of weights, and the index of them."""
    saved(SEQUENCE, tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("model-*-of-*.safetensors"))) > 1
    return tmp_path, tmp_path / "model.safetensors.index.json"


@pytest.mark.parametrize("pickled", [False, True])
@torch.no_grad()
def test_weights_may_be_stored_in_several_files(sharded, pickled):
    folder, index = sharded
    hf_model, given = small(SEQUENCE), case(SEQUENCE)
    if pickled:
        files = json.loads(index.read_text())["weight_map"]
        renamed = {name: file.replace(".safetensors", ".bin") for name, file in files.items()}
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": renamed}))
        for path in folder.glob("model*safetensors"):
            torch.save(load_file(path), path.with_suffix(".bin"))
            path.unlink()
        index.unlink()
    expected = given.expected(hf_model)["logits"]
    torch.testing.assert_close(given.found(from_pretrained(folder))["logits"], expected, atol=1e-5, rtol=0.0)


@pytest.mark.parametrize("problem", ["missing", "outside", "absolute", "unlisted", "lacking", "no map"])
def test_several_files_that_do_not_agree_with_their_index_are_refused(sharded, problem):
    folder, index = sharded
    files = json.loads(index.read_text())["weight_map"]
    name, file = next(iter(files.items()))
    if problem == "missing":
        (folder / file).unlink()
    elif problem in ("outside", "absolute"):
        outside = folder / "sub"
        outside.mkdir()
        (folder / file).rename(outside / file)
        start = "sub/../sub" if problem == "outside" else str(outside)
        files = {name: f"{start}/{file}" if of == file else of for name, of in files.items()}
    elif problem == "unlisted":
        del files[name]
    elif problem == "lacking":
        files["perceiver.extra"] = file
    index.write_text(json.dumps({"weight_map": "x" if problem == "no map" else files}))
    words = {"missing": file, "unlisted": name, "lacking": "perceiver.extra", "no map": "weight_map"}
    with pytest.raises(ValueError, match=words.get(problem, file)) as refused:
        from_pretrained(folder)
    assert "index.json" in str(refused.value)


ARRAY = "perceiver.embeddings.latents"


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda array: array.long(), "int64"),
        (lambda array: array.to(torch.complex64), "complex64"),
        (lambda array: array.where(torch.arange(len(array))[:, None] > 0, torch.nan), "NaN"),
        (lambda array: array.to_sparse(), "plain"),
        (lambda array: torch.quantize_per_tensor(array, 0.1, 0, torch.qint8), "plain"),
        (lambda array: array[0], "matrix"),
    ],
    ids=["int", "complex", "nan", "sparse", "quantized", "vector"],
)
def test_weights_that_are_no_plain_finite_numbers_are_refused_by_name(tmp_path, change, problem):
    saved(FOURIER, tmp_path, pickled=True)
    path = tmp_path / "pytorch_model.bin"
    weights = torch.load(path)
    torch.save({**weights, ARRAY: change(weights[ARRAY])}, path)
    with pytest.raises(ValueError, match=f"{tmp_path}.*{ARRAY}.*{problem}"):
        from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("hf_class", "key", "value"),
    [
        *((FOURIER, "use_query_residual", value) for value in ("false", 0)),
        *((FOURIER, "num_blocks", value) for value in (True, 2.0, 0, "2")),
        *((FOURIER, "num_self_attends_per_block", value) for value in (-1, None)),
        *((FOURIER, "attention_probs_dropout_prob", value) for value in (1.0, "0.1")),
        *((FOURIER, "hidden_act", ["gelu"]), (FOURIER, "quantization_config", {"load_in_8bit": True})),
        *((FLOW, "train_size", value) for value in (6, [6.5, 10], [0, 10])),
        *((MULTIMODAL, "output_shape", [1, 2, 8]), (MULTIMODAL, "image_size", [13, 13])),
        (MULTIMODAL, "audio_samples_per_frame", 34),
    ],
)
def test_values_that_are_not_supported_are_refused_by_name(tmp_path, hf_class, key, value):
    saved(hf_class, tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    with pytest.raises(ValueError, match=f"{tmp_path}.*{key}"):
        from_pretrained(tmp_path)


@pytest.mark.slow
def test_transformers_is_not_needed(tmp_path):
    saved(CONV, tmp_path)
    block = "import sys; sys.modules.update(dict.fromkeys(('transformers', 'lightning', 'hydra'), None))"
    load = f"assert not from_pretrained({str(tmp_path)!r}).training"
    code = f"{block}\nfrom perceiver.pretrained import from_pretrained\n{load}"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_class_names_are_those_of_the_config(tmp_path):
    saved(SEQUENCE, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["id2label"] = {str(number): f"class {number}" for number in (2, 10, 0, 1, 3, 4, 5, 6, 7, 8, 9)}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert read(tmp_path).class_names == [f"class {number}" for number in range(11)]
    for names in (7, ["a", "b"], {"x": "y"}):
        (tmp_path / "config.json").write_text(json.dumps({**config, "id2label": names}))
        assert read(tmp_path).class_names == []


class Malicious:
    def __reduce__(self):
        return print, ("executed",)


def damage(folder, what):
    """Change a folder, and return the words that name the problem."""
    weights, config = folder / "model.safetensors", folder / "config.json"
    content = json.loads(config.read_text())
    if what == "no weights":
        weights.unlink()
        return "model.safetensors"
    if what == "no config":
        config.unlink()
        return "config.json"
    if what == "truncated":
        weights.write_bytes(weights.read_bytes()[:1000])
        return "model.safetensors"
    if what == "not JSON":
        config.write_text("{")
        return "JSON"
    if what == "other architecture":
        content["architectures"] = ["BertModel"]
        words = r"BertModel.*PerceiverForMaskedLM"
    elif what == "other number of layers":
        content["num_self_attends_per_block"] = 3
        words = r"model\.safetensors.*memory\.self_blocks\.0\.2"
    elif what == "other activation":
        content["hidden_act"] = "quick_gelu"
        words = "hidden_act='quick_gelu' must be one of gelu"
    elif what == "architectures of another type":
        content["architectures"] = 3
        words = "architectures=3"
    else:
        content["num_blocks"] = "many"
        words = "num_blocks='many'"
    config.write_text(json.dumps(content))
    return words


DAMAGES = [
    *("no weights", "no config", "truncated", "not JSON", "other architecture", "other number of layers"),
    *("other activation", "value of another type", "architectures of another type"),
]


@pytest.mark.parametrize("what", DAMAGES)
def test_what_cannot_be_read_is_named(tmp_path, what):
    saved(FOURIER, tmp_path)
    with pytest.raises((ValueError, FileNotFoundError), match=damage(tmp_path, what)):
        from_pretrained(tmp_path)


def test_a_pickle_is_not_executed(tmp_path, capsys):
    saved(FOURIER, tmp_path)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps(Malicious()))
    with pytest.raises(ValueError, match=r"pytorch_model\.bin: is not a readable file of weights"):
        from_pretrained(tmp_path)
    torch.save({"perceiver.embeddings.latents": Malicious()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"pytorch_model\.bin: is not a readable file of weights") as refused:
        from_pretrained(tmp_path)
    assert "weights_only" not in str(refused.value), "as torch recommends to execute it"
    assert "executed" not in capsys.readouterr().out


def test_a_repository_is_downloaded(tmp_path, monkeypatch):
    import huggingface_hub

    saved(FOURIER, tmp_path, pickled=True)
    asked = []

    def snapshot_download(name, allow_patterns):
        asked.append((name, *allow_patterns))
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    from_pretrained("someone/some-perceiver")
    assert [names[0] for names in asked] == ["someone/some-perceiver"] * 2
    assert "pytorch_model.bin" in asked[1]


@pytest.mark.parametrize("installed", [True, False])
def test_without_a_network_the_problem_is_one_sentence(monkeypatch, installed):
    if installed:
        monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *args, **options: 1 / 0)
    else:
        monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    expected = "not available from the Hub .*copy its config.json" if installed else r"perceiver\[hub\]"
    with pytest.raises(FileNotFoundError, match=f"^someone/some-perceiver: .*{expected}"):
        from_pretrained("someone/some-perceiver")
    with pytest.raises(FileNotFoundError, match="no such folder"):
        from_pretrained("no_such_folder")
