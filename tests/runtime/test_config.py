"""A config that cannot work is refused in one sentence that names the key, before anything is trained."""

import subprocess
import sys

import pytest
import torch

from perceiver.runtime.config import grid, resolved
from perceiver.runtime.errors import ConfigError
from tests.runs import JOINT, ROOT, assert_refused, composed, image_tree, script

CAPTIONS, TONES = "experiment=image_captioning", "data=sound_scenes encoder@model.encoders.image=audio_log_mel"
MISTAKES = {
    # no such key: at the root, in a part, in the choice of a group; also with +
    "model.encoders.image.stem.pach_size=3": ["model.encoders.image.stem.pach_size", "did you mean", "patch_size"],
    "+trainer.devics=3": ["trainer.devics", "did you mean 'devices'?"],
    "trainer.val_check_interval=0.5": ["+trainer.val_check_interval="],  # of Lightning, but not in conf
    # the key of another part, its former name, or that of another code base
    "data.batch_size=3": ["data.batch_size", "did you mean loader.batch_size?"],
    "+trainer.max_epoch=3": ["trainer.max_epoch: ", "did you mean trainer.max_epochs?"],
    # a choice that does not exist, or is not made by its group
    "data=cifar": ["data=cifar", "did you mean 'cifar10'?"],
    "encoder=image_pixels": ["did you mean encoder@model.encoders.image?"],
    "model.decoder=text": [": decoder@model.decoder=text"],
    "model.encoders.audio=audio_log_mel": ["+encoder@model.encoders.audio=…"],
    "model._target_=perceiver.model.Nope": ["model._target_=perceiver.model.Nope", "import"],
    # a key that cannot be left out, or must be given
    "~callbacks.ema": ["~callbacks.ema"],
    "data=image_folder": ["data.source.root must be given: data.root=…"],
    "data=image_folder data.root=/no/such/folder": ["data.source.root=/no/such/folder: no such folder"],
    "ckpt_path=/no/such.ckpt": ["ckpt_path=/no/such.ckpt: no such checkpoint"],
    # a value of another type
    "optimizer.lr=abc": ["optimizer.lr='abc'", "number"],
    "data.on_error=maybe": ["data.on_error='maybe'", "'raise' or 'skip'"],
    "optimizer.betas=[a,b]": ["optimizer.betas", "number"],
    "optimizer.lr=nan": ["optimizer.lr=nan", "finite"],
    f"{TONES} data.source.snr=[5]": ["data.source.snr=[5]: too few values"],
    "data.source=en": ["data.source: ", "data.source.num_classes=…"],  # a node
    "loader.similar_lengths=3": ["loader.similar_lengths=3: ", "0 leaves"],
    # a value that a constructor refuses, with its whole key
    "model.memory.self_attention.num_heads=5": ["model.memory.self_attention.num_heads=5 does not divide"],
    "trainer.max_epochs=-1 trainer.fast_dev_run=false": ["trainer.max_epochs=-1", "max_steps"],
    # a metric that is not measured
    "callbacks=[early_stopping] callbacks.early_stopping.monitor=val/acc": [
        "callbacks.early_stopping.monitor=val/acc",
        "did you mean 'val/accuracy'?",
    ],
    "callbacks=[early_stopping] trainer.limit_val_batches=0 trainer.fast_dev_run=false": [
        "callbacks.early_stopping.monitor=val/loss",
        "no validation",
    ],
    # parts that do not go together
    "data=sound_scenes": ["model.encoders.image.stem.channels needs data.readers.image.channels", "conf/experiment"],
    "experiment=esc10 data.root=. task=classification": ["'~task.multi_label' leaves it"],
    "decoder@model.decoder=text": ["model.decoder.queries.vocab_size needs tokenizer.vocab_size", "conf/tokenizer"],
    f"{CAPTIONS} model.decoder.queries.vocab_size=7": ["model.decoder.queries.vocab_size=7 must be at least"],
    "task=captioning tokenizer=bytes": ["generates no texts 'logits'", "decoder@model.decoder=text"],
    "tokenizer=bytes decoder@model.decoder=text": ["needs the token ids of 'logits'", "task=captioning"],
    "task=captioning tokenizer=words decoder@model.decoder=text": ["data: Digits has no texts", "tokenizer"],
    f"{' '.join(JOINT)} task.tasks.label.output=logits": ["output='logits'", "label/logits"],
    # not readable
    "optimizer.lr=[": ["optimizer.lr=[", "quotes"],
    "=": ["no such key"],
}
RARE_MISTAKES = {
    "nosuch=1": ["nosuch", "--cfg job"],
    "+foo.bar=1": ["foo", "--cfg job"],
    "+task=tagging": ["+task: ", "task=…"],
    "optimizr=adamw": ["optimizr", "did you mean optimizer?"],
    "schedule=flat_cosine schedule.warmup_steps=3": ["schedule.warmup_steps", "flat_fraction"],
    "+lr=3": ["lr: ", "did you mean optimizer.lr?"],
    "gpus=2": ["gpus: ", "trainer=gpu trainer.devices=…"],
    "data=sound_shards data.multi_label=false": ["data.multi_label", "did you mean data.source.target=label?"],
    "callbacks=[nosuch]": ["callbacks=nosuch", "conf/callbacks"],
    "trainer=foo": ["trainer=foo", "there are: ", "ddp"],
    "callbacks.ema.decay=0.9": ["callbacks.ema.decay", "callbacks=[default,ema]"],
    "model=3": ["model=3", "conf/model"],
    "optimizer=null": ["optimizer=null", "conf/optimizer"],
    "~attention": ["attention", "attention.every_n_epochs=0"],
    "~task.mixup": ["task.mixup must be given: task.mixup=…"],
    "~logger.tags": ["logger.tags must be given: logger.tags=…"],
    'model.memory.num_latents="3"': ["model.memory.num_latents='3'", "int"],
    "compile=maybe": ["compile='maybe'", "boolean"],
    "seed=-1": ["seed=-1", "0"],
    "data.image_size=abc": ["image_size=abc"],
    "data.num_classes=11": ["data.source.num_classes=11", "10 digits"],
    "model.encoders.image.stem.patch_size=0": ["model.encoders.image", "0 pixels"],
    "optimizer.lr=-1": ["optimizer", "-1"],
    "callbacks=[early_stopping] callbacks.early_stopping.monitor=test/loss": ["did you mean 'val/loss'?"],
    TONES: ["model.encoders.image: no training sample has the modality 'image'", "audio"],
    "task=captioning": ["task.tokenizer needs tokenizer", "choose one of conf/tokenizer"],
    f"{CAPTIONS} tokenizer=null": ["tokenizer=null", "conf/tokenizer"],
    f"{CAPTIONS} encoder@model.encoders.text=text": ["add it: +encoder@model.encoders.text=text"],
    f"{CAPTIONS} data.num_samples={{trian:1}}": ["num_samples.trian", "mean data.source.num_samples.train?"],
    f"{' '.join(JOINT)} task.monitor=accuracy": ["monitor='accuracy'", "label/accuracy"],
    "a=b=c": ["a=b=c", "key=value"],
    "experiment=nosuch": ["experiment=nosuch", "there are: ", "image_classification"],
    "encoder@model.encoders.image=image_pixel": ["encoder=image_pixel", "did you mean 'image_pixels'?"],
    f"{CAPTIONS} task.generation=beam": [": generation@task.generation=beam"],
    "~optimizer": ["optimizer", "conf/optimizer"],
    "model.encoders=3": ["model.encoders=3"],
    "model.memory.schedule=3": ["model.memory.schedule=3", "Schedule", "model.memory.schedule.KEY=…"],
    "model.encoders.image=3": ["encoder@model.encoders.image=3"],
    "data.augment=3": ["data.readers.image.augment=3"],
    "model.memory.num_latents=true": ["model.memory.num_latents=True", "int"],
    "seed=null": ["seed=None", "integer"],
    "num_threads=0": ["num_threads=0", "1"],
    "matmul_precision=low": ["matmul_precision='low'", "'highest', 'high' or 'medium'"],
    "logger.mode=maybe": ["logger.mode='maybe'", "'offline'"],
    "trainer.precision=foo": ["trainer.precision='foo'", "'bf16-mixed'"],
    "trainer.devices=abc": ["trainer", "devices"],
    "trainer.devices=0": ["trainer", "devices=0"],
    "hydra.nosuch=1": ["hydra.nosuch", "no such key"],
    "optimizer=lamb optimizer.lr=-1": ["optimizer", "-1"],
    f"{TONES} data.clips.seconds=0": ["data.readers.audio.seconds=0"],
    "loader.batch_size=0": ["loader.batch_size=0"],
    "loader.num_workers=-1": ["loader.num_workers=-1"],
    "model.memory.cross_attention.init_scale=0": ["init_scale=0", "more than 0"],
    "model.memory.schedule.num_cross_attends=99": ["model.memory.schedule.num_cross_attends=99", "num_blocks="],
    "model.encoders.image.mean=[0.1,0.2]": ["model.encoders.image.mean=[0.1, 0.2]"],
    "optimizer.betas=[2,0.9]": ["optimizer", "beta", "2"],
    "schedule.warmup_steps=-1": ["schedule.warmup_steps=-1"],
    "schedule=steps schedule.milestones=[84,102]": ["schedule.milestones=[84, 102]", "fractions"],
    "schedule=flat_cosine schedule.flat_fraction=2": ["schedule.flat_fraction=2"],
    "attention.num_samples=0": ["attention.num_samples=0"],
    f"{TONES} data.source.snr=[5,-5]": ["data.source.snr=[5, -5] must ascend"],
    f"{TONES} data.source.seed=-1": ["data.source.seed=-1"],
    "data=sound_scenes data.clips.augment.gain=3": ["audio.augment.gain", "data.readers.audio.augment is not set"],
    f"{CAPTIONS} task.captions_per_sample=0": ["task.captions_per_sample=0 must be at least 1"],
    f"{CAPTIONS} tokenizer=bytes tokenizer.vocab_size=64": ["tokenizer.vocab_size=64: bytes take 262"],
    f"{CAPTIONS} task.label_smoothing=1": ["task.label_smoothing=1 must be in"],
    f"{CAPTIONS} task.tokenizer=null": ["task.tokenizer=None", "Tokenizer"],
    f"{CAPTIONS} task.generation.num_beams=0": ["task.generation.num_beams=0 must be at least 1"],
    "task=captioning tokenizer=bytes decoder@model.decoder=text": ["the samples have no captions; choose data that"],
    "task=joint": ["task: tasks={}"],
    "decoder@model.decoder=joint": ["model.decoder: decoders={}"],
    f"{' '.join(JOINT)} +task.weights.labl=2": ["weights.labl=2", "label"],
    f"{' '.join(JOINT)} task.tasks.label.mixup=0.2": ["task: tasks.label", "mixup"],
    "callbacks=[ema] callbacks.ema.decay=2": ["callbacks.ema.decay=2"],
}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [*MISTAKES.items(), *(pytest.param(*mistake, marks=pytest.mark.slow) for mistake in RARE_MISTAKES.items())],
)
def test_a_mistake_is_one_sentence_with_the_key_and_leaves_no_files(tmp_path, overrides, message):
    assert_one_sentence(tmp_path, overrides.split(" "), message)
    assert list(tmp_path.iterdir()) == []


def assert_one_sentence(folder, overrides, message):
    # A mistake that is not found starts a short run.
    ended = script("experiments/train.py", f"hydra.run.dir={folder}/run", "trainer.fast_dev_run=true", *overrides)
    assert_refused(ended, *message)


def test_settings_that_do_not_fit_an_image_folder_are_one_sentence(tmp_path):
    given = ["data=image_folder", f"data.root={image_tree(tmp_path / 'images')}"]
    for override, parts in {
        "data.num_classes=5": ["data.source.num_classes=5", "3 class folders: cat, dog, eel"],
        "data.val_fraction=1.5": ["data.source.val_fraction=1.5"],
        "data.test_fraction=1.0": ["data.source.test_fraction=1.0"],
    }.items():
        assert_one_sentence(tmp_path, [*given, override], parts)
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu_is_one_sentence(tmp_path):
    assert_one_sentence(tmp_path, ["trainer.accelerator=gpu"], ["error: trainer: ", "gpu"])


def test_optional_keys_can_be_left_out(tmp_path):
    keys = ["logger.group", "logger.name", "data.augment", "num_threads", "trainer.profiler"]
    ended = script("experiments/train.py", f"hydra.run.dir={tmp_path}/run", "--cfg=job", *(f"~{key}" for key in keys))
    assert ended.ok, ended.err
    assert all(f"{key.rpartition('.')[2]}: null" in ended.out for key in keys)


@pytest.mark.parametrize(("name", "missing"), [("evaluate", "run"), ("predict", "inputs")])
def test_a_missing_argument_is_named(name, missing):
    ended = script(f"experiments/{name}.py")
    assert ended.code == 1
    assert ended.err.startswith(f"error: {missing} must be given: {missing}=…")


def test_a_mistake_in_an_experiment_file_is_found_like_one_on_the_command_line(tmp_path):
    """Hydra lets a file add any key; the check of the whole config does not."""
    conf = tmp_path / "conf"
    (conf / "experiment").mkdir(parents=True)
    for source in (ROOT / "conf").iterdir():
        if source.name != "experiment":
            (conf / source.name).symlink_to(source)
    for mistake, key in {
        "optimizr: {lr: 1.0}": "optimizr",
        "model: {encoders: {image: {stem: {pach_size: 3}}}}": "model.encoders.image.stem.pach_size",
        "optimizer: {lr: abc}": "optimizer.lr='abc'",
        "seed: abc": "seed='abc'",
    }.items():
        (conf / "experiment" / "image_classification.yaml").write_text(f"# @package _global_\n{mistake}\n")
        with composed(conf=conf) as cfg, pytest.raises(ConfigError) as raised:
            resolved(cfg)
        assert key in str(raised.value)


def test_a_resolved_config_has_plain_values_without_interpolations():
    with composed("data.image_size=[13,11]") as cfg:
        config = resolved(cfg)

    def is_plain(node):
        if isinstance(node, dict | list):
            return type(node) in (dict, list) and all(map(is_plain, node.values() if isinstance(node, dict) else node))
        return node is None or (type(node) in (int, float, bool, str) and "${" not in str(node))

    assert is_plain(config)
    assert config["model"]["encoders"]["image"]["positions"]["max_resolution"] == [7, 6]


@pytest.mark.parametrize(
    ("overrides", "cross", "self_"),
    [
        (["model.memory.self_attention.init_scale=0.5"], 0.5, 0.5),
        (["model.memory.cross_attention.init_scale=0.5"], 0.5, None),
        ([CAPTIONS, "model.memory.cross_attention.init_scale=null"], None, 1.0),
    ],
)
def test_cross_attention_has_the_init_scale_of_self_attention_unless_it_is_set(overrides, cross, self_):
    with composed(*overrides) as cfg:
        memory = resolved(cfg)["model"]["memory"]
    assert (memory["cross_attention"]["init_scale"], memory["self_attention"]["init_scale"]) == (cross, self_)


@pytest.mark.parametrize(
    ("image_size", "stride", "cells"), [(8, 2, [4, 4]), (13, 5, [3, 3]), ([13, 7], 3, [5, 3]), (3, 7, [1, 1])]
)
def test_the_cells_of_a_grid_cover_the_image(image_size, stride, cells):
    assert grid(image_size, stride) == cells


@pytest.mark.parametrize(("image_size", "stride"), [(0, 2), (8, 0), ([8], [2, 2]), ([8, 0], 2), ("8", 2), (8.0, 2)])
def test_a_grid_of_invalid_sizes_is_refused(image_size, stride):
    with pytest.raises(ValueError, match="image_size"):
        grid(image_size, stride)


@pytest.mark.slow
@pytest.mark.parametrize("traceback", [False, True])
def test_a_process_prints_one_sentence_or_the_traceback_if_requested(tmp_path, monkeypatch, traceback):
    monkeypatch.setenv("PERCEIVER_TRACEBACK", str(int(traceback)))
    command = [sys.executable, str(ROOT / "experiments/train.py"), "model.memory.num_latents=0"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 1
    assert "model.memory.num_latents=0 must be at least 1\n" in ended.stderr
    assert ended.stderr.startswith("error: ") is not traceback
    assert ("Traceback" in ended.stderr) is traceback
