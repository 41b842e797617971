"""A config that cannot work ends in one sentence that names the key, before anything is trained."""

import subprocess
import sys

import pytest
import torch

from perceiver.runtime.config import grid, resolved
from perceiver.runtime.errors import ConfigError
from tests.runs import JOINT, ROOT, composed, image_tree, script, train

# what is typed -> what the sentence must say
MISTAKES = {
    # a key that is not there: at the root, in a part, deep inside, in what a group chose
    "nosuch=1": ["nosuch", "--cfg job"],
    "optimizer.lrr=1": ["optimizer.lrr", "did you mean optimizer.lr?"],
    "optimizr=adamw": ["optimizr", "did you mean optimizer?"],
    "model.memory.num_latentz=3": ["model.memory.num_latentz", "did you mean model.memory.num_latents?"],
    "model.encoders.image.stem.pach_size=3": ["model.encoders.image.stem.pach_size", "did you mean", "patch_size"],
    "schedule=flat_cosine schedule.warmup_steps=3": ["schedule.warmup_steps", "flat_fraction"],
    "+trainer.devics=3": ["trainer.devics", "did you mean 'devices'?"],
    # a key that Lightning knows and conf does not list
    "trainer.val_check_interval=0.5": ["+trainer.val_check_interval="],
    # a name that lives elsewhere
    "lr=1e-3": ["lr: no such key; did you mean optimizer.lr?"],
    "data.batch_size=3": ["data.batch_size", "did you mean loader.batch_size?"],
    "encoder.patch_size=3": ["encoder.patch_size", "did you mean model.encoders.image.stem.patch_size?"],
    # a name from another code base, also where it is added, and in a part
    "epochs=3": ["epochs: ", "did you mean trainer.max_epochs?"],
    "+lr=3": ["lr: ", "did you mean optimizer.lr?"],
    "gpus=2": ["gpus: ", "trainer=gpu trainer.devices=…"],
    "dataset=cifar10": ["dataset: ", "data=…"],
    "optimizer.learning_rate=3": ["optimizer.learning_rate: ", "did you mean optimizer.lr?"],
    "+trainer.max_epoch=3": ["trainer.max_epoch: ", "did you mean trainer.max_epochs?"],
    # a choice in place of what is chosen
    "model.encoders.image=image_pixels": [": encoder@model.encoders.image=image_pixels"],
    "model.decoder=text": [": decoder@model.decoder=text"],
    "experiment=image_captioning task.generation=beam": [": generation@task.generation=beam"],
    "callbacks.ema.decay=0.9": ["callbacks.ema.decay", "callbacks=[default,ema]"],
    "model.encoders.audio=audio_log_mel": ["+encoder@model.encoders.audio=…"],
    # what cannot be left out
    "~attention": ["attention", "attention.every_n_epochs=0"],
    "~callbacks.ema": ["~callbacks.ema"],
    "~task.mixup": ["task.mixup must be given: task.mixup=…"],
    # what is not measured
    "callbacks=[early_stopping] callbacks.early_stopping.monitor=val/acc": [
        "callbacks.early_stopping.monitor=val/acc",
        "did you mean 'val/accuracy'?",
    ],
    # a choice that is not there
    "data=cifar": ["data=cifar", "did you mean 'cifar10'?"],
    "callbacks=[nosuch]": ["callbacks=nosuch", "conf/callbacks"],
    "encoder=image_pixels": ["did you mean encoder@model.encoders.image?"],
    # a value of another kind in place of a part
    "trainer=foo": ["trainer=foo", "there are: ", "ddp"],
    "model=3": ["model=3", "conf/model"],
    "optimizer=null": ["optimizer=null", "conf/optimizer"],
    "model.decoder=3": ["model.decoder=3"],
    "model._target_=perceiver.model.Nope": ["model._target_=perceiver.model.Nope", "import"],
    # a wrong type
    "optimizer.lr=abc": ["optimizer.lr='abc'", "number"],
    "model.memory.num_latents=3.5": ["model.memory.num_latents=3.5", "integer"],
    'model.memory.num_latents="3"': ["model.memory.num_latents='3'", "int"],
    "seed=abc": ["seed='abc'", "integer"],
    "seed=-1": ["seed=-1", "0"],
    "data.on_error=maybe": ["data.on_error='maybe'", "'raise' or 'skip'"],
    "data.image_size=abc": ["image_size=abc"],
    "trainer.precision=foo": ["trainer.precision='foo'", "'bf16-mixed'"],
    # nothing where something must be given, or something that is not on disk
    "data=image_folder": ["data.source.root must be given: data.source.root=…"],
    "~model.memory.num_latents": ["model", "num_latents"],
    "data=image_folder data.root=/no/such/folder": ["data.source.root=/no/such/folder: no such folder"],
    "ckpt_path=/no/such.ckpt": ["ckpt_path=/no/such.ckpt: no such checkpoint"],
    # impossible values
    "data.num_classes=11": ["data.source.num_classes=11", "10 digits"],
    "data.channels=2": ["data.readers.image.channels=2"],
    "data.image_size=0": ["image_size=0"],
    "loader.batch_size=0": ["loader.batch_size=0"],
    "model.memory.num_latents=0": ["model.memory.num_latents=0"],
    "model.memory.cross_attention.init_scale=0": ["init_scale=0", "more than 0"],
    "encoder@model.encoders.image=image_conv_stack model.encoders.image.stem.convs_per_level=0": [
        "model.encoders.image.stem.convs_per_level=0 must be at least 1"
    ],
    "model.memory.self_attention.num_heads=5": ["model.memory.self_attention.num_heads=5 does not divide"],
    "model.memory.schedule.num_cross_attends=99": ["model.memory.schedule.num_cross_attends=99", "num_blocks="],
    "model.encoders.image.stem.patch_size=0": ["model.encoders.image", "0 pixels"],
    "optimizer.lr=nan": ["optimizer.lr=nan", "finite"],
    "optimizer.lr=-1": ["optimizer", "-1"],
    "schedule=steps schedule.milestones=[84,102]": ["schedule.milestones=[84, 102]", "fractions"],
    "trainer.max_epochs=-1 trainer.fast_dev_run=false": ["trainer.max_epochs=-1", "max_steps"],
    # parts that do not go together
    "data=sound_scenes": ["model.encoders.image.stem.channels needs data.readers.image.channels", "conf/experiment"],
    "data=sound_scenes encoder@model.encoders.image=audio_log_mel": [
        "model.encoders.image: no training sample has the modality 'image'",
        "audio",
    ],
    "experiment=esc10 data.root=. task=classification": ["'~task.multi_label' leaves it"],
    # texts without what they need
    "experiment=image_captioning tokenizer=null": ["tokenizer=null", "conf/tokenizer"],
    "decoder@model.decoder=text": ["model.decoder.queries.vocab_size needs tokenizer.vocab_size", "conf/tokenizer"],
    "task=captioning": ["task.tokenizer needs tokenizer", "choose one of conf/tokenizer"],
    "task=captioning tokenizer=bytes decoder@model.decoder=text": ["the samples have no captions; choose data that"],
    "task=captioning task.captions_per_sample=3 tokenizer=bytes decoder@model.decoder=text": [
        "the samples have no captions; choose data that"
    ],
    "task=captioning tokenizer=words decoder@model.decoder=text": ["data: Digits has no texts", "tokenizer"],
    "experiment=image_captioning task.captions_per_sample=0": ["task.captions_per_sample=0 must be at least 1"],
    "experiment=image_captioning tokenizer.max_length=2": ["tokenizer.max_length=2 must be at least 3"],
    "experiment=image_captioning model.decoder.queries.vocab_size=7": [
        "model.decoder.queries.vocab_size=7 must be at least",
        "tokenizer",
    ],
    "tokenizer=bytes decoder@model.decoder=text": [
        "TextDecoder needs the token ids of 'logits'",
        "Classification",
        "task=captioning",
    ],
    "task=captioning tokenizer=bytes": [
        "PooledDecoder generates no texts 'logits' for Captioning",
        "decoder@model.decoder=text",
    ],
    "experiment=image_captioning encoder@model.encoders.text=text": ["add it: +encoder@model.encoders.text=text"],
    "experiment=image_captioning data.num_samples={trian:1}": [
        "num_samples.trian",
        "mean data.source.num_samples.train?",
    ],
    # several tasks, several decoders
    "task=joint": ["task: tasks={}"],
    "decoder@model.decoder=joint": ["model.decoder: decoders={}"],
    " ".join([*JOINT, "+task.weights.labl=2"]): ["weights.labl=2", "label"],
    " ".join([*JOINT, "task.monitor=accuracy"]): ["monitor='accuracy'", "label/accuracy"],
    " ".join([*JOINT, "task.tasks.label.mixup=0.2"]): ["task: tasks.label", "mixup"],
    " ".join([*JOINT, "task.tasks.label.output=logits"]): ["output='logits'", "label/logits"],
    # not readable at all
    "a=b=c": ["a=b=c", "key=value"],
    "=": ["no such key"],
}

RARER_MISTAKES = {
    "+nosuch=1": ["nosuch", "--cfg job"],
    "+foo.bar=1": ["foo", "--cfg job"],
    "+optimizer.lrr=3": ["optimizer.lrr", "did you mean 'lr'?"],
    "hydra.nosuch=1": ["hydra.nosuch", "no such key"],
    "data.augment.crop_padding.x=1": ["image.augment.crop_padding.x", "no such key"],
    "experiment=nosuch": ["experiment=nosuch", "there are: ", "image_classification"],
    "encoder@model.encoders.image=image_pixel": ["encoder=image_pixel", "did you mean 'image_pixels'?"],
    "~optimizer": ["optimizer", "conf/optimizer"],
    "model.memory.cross_attention.init_scale=abc": ["model.memory.cross_attention.init_scale='abc'", "number"],
    "model.memory.self_attention.init_scale=-1": ["init_scale=-1", "more than 0"],
    "experiment=image_captioning task.captions_per_sample=2.5": ["task.captions_per_sample=2.5", "integer"],
    "model.encoders=3": ["model.encoders=3"],
    "model.encoders.image=3": ["model"],
    "data.augment=3": ["data.readers.image.augment=3"],
    "optimizer.betas=[a,b]": ["optimizer.betas", "number"],
    "model.memory.num_latents=true": ["model.memory.num_latents=True", "int"],
    "seed=null": ["seed=None", "integer"],
    "compile=maybe": ["compile='maybe'", "boolean"],
    "num_threads=0": ["num_threads=0", "1"],
    "matmul_precision=low": ["matmul_precision='low'", "'highest', 'high' or 'medium'"],
    "logger.mode=maybe": ["logger.mode='maybe'", "'offline'"],
    "trainer.devices=abc": ["trainer", "devices"],
    "loader.num_workers=-1": ["loader.num_workers=-1"],
    "model.memory.dim=0": ["dim=0"],
    "model.encoders.image.mean=[0.1,0.2]": ["model.encoders.image.mean=[0.1, 0.2]"],
    "optimizer.lr=inf": ["optimizer.lr=inf", "finite"],
    "optimizer=lamb optimizer.lr=-1": ["optimizer", "-1"],
    "optimizer.weight_decay=-1": ["optimizer", "weight_decay", "-1"],
    "optimizer.betas=[2,0.9]": ["optimizer", "beta", "2"],
    "schedule.warmup_steps=-1": ["schedule.warmup_steps=-1"],
    "schedule=flat_cosine schedule.flat_fraction=2": ["schedule.flat_fraction=2"],
    "attention.num_samples=0": ["attention.num_samples=0"],
    "trainer.max_epochs=-5": ["trainer", "max_epochs", "-5"],
    "trainer.devices=0": ["trainer", "devices=0"],
    "data=sound_scenes data.source.snr=[5,-5] encoder@model.encoders.image=audio_log_mel": [
        "data.source.snr=[5, -5] must ascend"
    ],
    "data=sound_scenes data.source.snr=[5] encoder@model.encoders.image=audio_log_mel": [
        "data.source.snr=[5]: too few values"
    ],
    "data=sound_shards data.multi_label=false": ["data.multi_label", "did you mean data.source.target=label?"],
    "data=coco_captions data.year=2014": ["data.year", "did you mean data.source.year?"],
    "data=sound_scenes data.clips.augment.gain=3": ["audio.augment.gain", "data.readers.audio.augment is not set"],
    "data=sound_scenes data.source.seed=-1 encoder@model.encoders.image=audio_log_mel": ["data.source.seed=-1"],
    "data=sound_scenes data.clips.seconds=0 encoder@model.encoders.image=audio_log_mel": [
        "data.readers.audio.seconds=0"
    ],
    "data=shape_scenes": ["model.decoder.num_classes needs data.source.num_classes", "conf/experiment"],
    "experiment=image_captioning task=classification": ["task.num_classes needs data.source.num_classes"],
    "experiment=image_captioning decoder@model.decoder=pooled": [
        "model.decoder.num_classes needs data.source.num_classes"
    ],
    "experiment=image_captioning tokenizer.vocab_size=4": ["tokenizer.vocab_size=4 must be more than 4"],
    "experiment=image_captioning tokenizer=bytes tokenizer.vocab_size=64": ["tokenizer.vocab_size=64: bytes take 262"],
    "experiment=image_captioning model.decoder.queries.max_length=5": [
        "model.decoder.queries.max_length=5 must be at least",
        "tokenizer",
    ],
    "experiment=image_captioning task.label_smoothing=1": ["task.label_smoothing=1 must be in"],
    "experiment=image_captioning task.tokenizer=null": ["task.tokenizer=None", "Tokenizer"],
    "experiment=image_captioning task.generation.num_beams=0": ["task.generation.num_beams=0 must be at least 1"],
    "experiment=image_captioning generation@task.generation=beem": ["generation=beem", "did you mean 'beam'?"],
    "experiment=image_captioning generation=beam": ["did you mean generation@task.generation?"],
    "callbacks=[ema] callbacks.ema.decay=2": ["callbacks.ema.decay=2"],
    "optimizer.lr=[": ["optimizer.lr=[", "quotes"],
}


@pytest.mark.parametrize(
    ("typed", "said"),
    [*MISTAKES.items(), *(pytest.param(*mistake, marks=pytest.mark.slow) for mistake in RARER_MISTAKES.items())],
)
def test_a_mistake_ends_in_one_sentence_that_names_the_key_and_leaves_nothing_behind(tmp_path, typed, said):
    assert_one_sentence(tmp_path, typed.split(" "), said)
    assert list(tmp_path.iterdir()) == []


def assert_one_sentence(folder, overrides, said):
    # Should a mistake be overlooked, the run is a short one.
    ended = script("experiments/train.py", f"hydra.run.dir={folder}/run", "trainer.fast_dev_run=true", *overrides)
    assert ended.code not in (None, 0)
    assert ended.err.startswith("error: ")
    assert ended.err.count("\n") == 1
    assert [part for part in said if part not in ended.err] == []


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["data.num_classes=5"], ["data.source.num_classes=5", "3 class folders: cat, dog, eel"]),
        (["data.val_fraction=1.5"], ["data.source.val_fraction=1.5"]),
        (["data.test_fraction=1.0"], ["data.source.test_fraction=1.0"]),
    ],
)
def test_what_does_not_fit_an_image_folder_ends_in_one_sentence(tmp_path, overrides, said):
    images = image_tree(tmp_path / "images")
    assert_one_sentence(tmp_path, ["data=image_folder", f"data.root={images}", *overrides], said)
    assert not (tmp_path / "run").exists()


def test_early_stopping_where_nothing_is_validated_ends_in_one_sentence(tmp_path):
    ended = train(tmp_path / "run", "callbacks=[early_stopping]", "trainer.limit_val_batches=0")
    assert (ended.code, ended.err.count("\n")) == (1, 1)
    assert "callbacks.early_stopping.monitor=val/loss: the run has no validation" in ended.err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("key", ["logger.group", "logger.name", "data.augment", "num_threads", "trainer.profiler"])
def test_what_may_be_nothing_may_be_left_out(tmp_path, key):
    ended = train(tmp_path / "run", f"~{key}", "trainer.fast_dev_run=true")
    assert ended.ok, ended.err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_ends_in_one_sentence(tmp_path):
    assert_one_sentence(tmp_path, ["trainer.accelerator=gpu"], ["error: trainer: ", "gpu"])


@pytest.mark.parametrize(("name", "missing"), [("evaluate", "run"), ("predict", "inputs")])
def test_a_missing_argument_is_named(name, missing):
    ended = script(f"experiments/{name}.py")
    assert ended.code == 1
    assert ended.err == f"error: {missing} must be given: {missing}=…\n"


def test_a_mistake_in_an_experiment_file_is_found_like_one_on_the_command_line(tmp_path):
    """Hydra lets a file add any key; the check of the whole config does not."""
    for planted, said in {
        "optimizr: {lr: 1.0}": "optimizr",
        "optimizer: {lrr: 1.0}": "optimizer.lrr",
        "model: {encoders: {image: {stem: {pach_size: 3}}}}": "model.encoders.image.stem.pach_size",
        "optimizer: {lr: abc}": "optimizer.lr='abc'",
        "seed: abc": "seed='abc'",
    }.items():
        conf = tmp_path / said
        conf.mkdir()
        for source in (ROOT / "conf").iterdir():
            if source.name != "experiment":
                (conf / source.name).symlink_to(source)
        (conf / "experiment").mkdir()
        (conf / "experiment" / "image_classification.yaml").write_text(f"# @package _global_\n{planted}\n")
        with composed(conf=conf) as cfg, pytest.raises(ConfigError) as raised:
            resolved(cfg)
        assert said in str(raised.value)


def test_resolving_gives_plain_values_without_interpolations():
    with composed("data.image_size=[13,11]") as cfg:
        config = resolved(cfg)

    def plain(node):
        if isinstance(node, dict):
            return type(node) is dict and all(map(plain, node.values()))
        if isinstance(node, list):
            return all(map(plain, node))
        return node is None or (type(node) in (int, float, bool, str) and "${" not in str(node))

    assert plain(config)
    assert config["model"]["encoders"]["image"]["positions"]["max_resolution"] == [7, 6]


@pytest.mark.parametrize(
    ("overrides", "cross", "self_"),
    [
        ([], None, None),
        (["model.memory.self_attention.init_scale=0.5"], 0.5, 0.5),
        (["model.memory.cross_attention.init_scale=0.5"], 0.5, None),
        (["experiment=image_captioning"], 1.0, 1.0),
        (["experiment=image_captioning", "model.memory.cross_attention.init_scale=null"], None, 1.0),
    ],
)
def test_the_blocks_of_a_model_begin_at_one_scale_unless_told_otherwise(overrides, cross, self_):
    with composed(*overrides) as cfg:
        model = resolved(cfg)["model"]
    memory = model["memory"]
    assert (memory["cross_attention"]["init_scale"], memory["self_attention"]["init_scale"]) == (cross, self_)


@pytest.mark.parametrize(
    ("image_size", "stride", "cells"), [(8, 2, [4, 4]), (13, 5, [3, 3]), ([13, 7], 3, [5, 3]), (3, 7, [1, 1])]
)
def test_the_cells_of_a_grid_cover_the_image_and_no_more(image_size, stride, cells):
    assert grid(image_size, stride) == cells


@pytest.mark.parametrize(("image_size", "stride"), [(0, 2), (8, 0), ([8], 2), ([8, 0], 2), ("8", 2), (8.0, 2)])
def test_a_grid_of_impossible_sizes_is_refused(image_size, stride):
    with pytest.raises(ValueError, match="image_size"):
        grid(image_size, stride)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["experiments/train.py", "optimizer.lrr=1"],
            "error: optimizer.lrr: no such key; did you mean optimizer.lr?\n",
        ),
        (
            ["experiments/train.py", "model.memory.num_latents=0"],
            "error: model.memory.num_latents=0 must be at least 1\n",
        ),
        (
            ["experiments/predict.py", "run=/no/such", "inputs=[a.png]"],
            "error: run=/no/such: no such run directory or checkpoint\n",
        ),
    ],
)
def test_a_real_process_prints_the_sentence_alone_and_ends_with_status_1(tmp_path, arguments, said):
    command = [sys.executable, *(str(ROOT / part) if part.endswith(".py") else part for part in arguments)]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert (ended.returncode, ended.stderr) == (1, said)


@pytest.mark.slow
def test_the_traceback_is_there_for_who_asks(tmp_path, monkeypatch):
    monkeypatch.setenv("PERCEIVER_TRACEBACK", "1")
    command = [sys.executable, str(ROOT / "experiments/train.py"), "model.memory.num_latents=0"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 1
    assert "Traceback" in ended.stderr
    assert "num_latents=0 must be at least 1" in ended.stderr
