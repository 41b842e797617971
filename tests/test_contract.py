"""Every yaml fits the class it names: it composes, resolves and builds. New ones join by themselves.

A choice is tried on the default experiment; one that makes no sense there, on an experiment that takes it, then on any,
and then on those that no experiment is yet made of.
"""

import copy
import inspect
import pickle
import re
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.utils import get_object, instantiate
from lightning.pytorch import Callback, Trainer
from omegaconf import OmegaConf
from torch import nn

from perceiver.data.collate import collate
from perceiver.runtime.config import register_resolvers, resolved
from perceiver.runtime.errors import ConfigError
from perceiver.runtime.loggers.base import RunLogger
from perceiver.runtime.summary import count_parameters, flops_per_sample
from perceiver.tasks.classification import Classification
from perceiver.tasks.losses import LossSpec
from perceiver.training.build import build, check_room, construct, learn, with_tokenizer
from perceiver.training.optimization import parameter_groups
from perceiver.types import Batch
from tests.data.caption_trees import clotho_tree, coco_tree, flickr8k_tree, karpathy_tree, text_pairs_tree
from tests.data.shard_trees import shard_tree
from tests.data.tagged_trees import audioset_tree, fsd50k_tree, noise, table
from tests.runs import CONF, JOINT, composed, image_tree

FILES = sorted(CONF.rglob("*.yaml"))
EXPERIMENTS = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))
DEFAULTS: list[Any] = yaml.safe_load((CONF / "train.yaml").read_text())["defaults"]


def keys_of_groups() -> dict[str, str]:
    """Group -> the key that chooses from it: `encoder` -> `encoder@model.encoders.image`.

    Groups that only a choice of another group chooses from come last: `generation` -> `generation@task.generation`.
    """
    keys = {str(entry).partition("@")[0]: str(entry) for item in DEFAULTS if isinstance(item, dict) for entry in item}
    for path in sorted(CONF.glob("*/*.yaml")):
        for item in yaml.safe_load(path.read_text()).get("defaults", []):
            for entry in item if isinstance(item, dict) and path.parent.name != "experiment" else ():
                group, _, package = str(entry).removeprefix("/").partition("@")
                keys.setdefault(group, f"{group}@{path.parent.name}.{package}")
    return keys


GROUPS = keys_of_groups()
DEFAULT_EXPERIMENT = next(item["experiment"] for item in DEFAULTS if isinstance(item, dict) and "experiment" in item)
CHOICES = [(path.parent.name, path.stem) for path in FILES if path.parent.name in GROUPS.keys() - {"experiment"}]
GIVEN_AT_RUN_TIME = {
    "loader": {"dataset"},
    "checkpointing": {"folder", "curves"},
    "model.memory": {"input_dim"},
}
"""Keywords that a run, or the model, passes by itself."""
ONE_HOME = {
    "num_classes": ("data",),
    **dict.fromkeys(("channels", "image_size", "sample_rate"), ("data", "reader")),
    **dict.fromkeys(("vocab_size", "max_length"), ("tokenizer",)),
}
"""Values that one group knows, or the group of its parts, and everyone else takes over."""
CAPTIONS = ["task=captioning", "tokenizer=words", "decoder@model.decoder=text"]
TEXTS = [*CAPTIONS, "data=text_pairs", "~encoder@model.encoders.image", "+encoder@model.encoders.text=text"]
"""What makes a captioner of an experiment, and a translator of the default one."""


@pytest.fixture(scope="session")
def roots(tmp_path_factory) -> dict[str, Path]:
    """Small data on disk for the data sets that read it, by their names in conf."""
    folder = tmp_path_factory.mktemp("roots")
    for name, files, label_key, names_key, count in (
        ("cifar-10-batches-py", ["data_batch_1", "test_batch", "batches.meta"], "labels", "label_names", 10),
        ("cifar-100-python", ["train", "test", "meta"], "fine_labels", "fine_label_names", 100),
    ):
        (folder / name).mkdir()
        content = {
            "data": np.zeros((2 * count, 3072), dtype=np.uint8),
            label_key: list(range(count)) * 2,
            names_key: [str(label) for label in range(count)],
        }
        for file in files:
            (folder / name / file).write_bytes(pickle.dumps(content))
    return {
        **dict.fromkeys(("cifar10", "cifar100"), folder),
        "image_folder": image_tree(folder / "images"),
        "audio_folder": audio_tree(folder / "sounds"),
        **dict.fromkeys(("esc50", "esc10"), esc50_tree(folder / "esc50")),
        "fsd50k": fsd50k_tree(folder / "fsd50k", num_classes=200),
        "audioset": audioset_tree(folder / "audioset", num_classes=527),
        "flickr8k": flickr8k_tree(folder / "flickr8k"),
        "coco_captions": coco_tree(folder / "coco"),
        "karpathy": karpathy_tree(folder / "karpathy"),
        "clotho": clotho_tree(folder / "clotho"),
        "text_pairs": text_pairs_tree(folder / "text_pairs"),
        "image_shards": shard_tree(folder / "image_shards", "image", "cls", num_classes=1000),
        "sound_shards": shard_tree(folder / "sound_shards", "sound", "tags", num_classes=527),
        "caption_shards": shard_tree(folder / "caption_shards", "image", "txt"),
        "sound_caption_shards": shard_tree(folder / "sound_caption_shards", "sound", "txt"),
    }


def audio_tree(root: Path) -> Path:
    """Class folders with a few sounds each."""
    for number in range(11):
        noise(root / ("bark", "chirp")[number % 2] / f"{number}.wav")
    return root


def esc50_tree(root: Path) -> Path:
    """A clip of each class in each of two folds; the first ten classes are those of ESC-10."""
    clips = [
        (f"{fold}-{label}.wav", fold, label, f"class_{label}", label < 10) for label in range(50) for fold in (1, 2)
    ]
    table(root / "meta" / "esc50.csv", [("filename", "fold", "target", "category", "esc10"), *clips])
    for name, *_ in clips:
        noise(root / "audio" / name)
    return root


@pytest.fixture(scope="session")
def config_of(roots) -> Callable[..., dict[str, Any]]:
    """Overrides -> their checked config: what is no key of a signature, or has not its type, is refused there."""

    @cache
    def make(*overrides: str) -> dict[str, Any]:
        with composed(*overrides, "trainer.accelerator=cpu") as cfg:
            if root := roots.get(HydraConfig.get().runtime.choices["data"]):
                cfg.data.source.root = str(root)
            return resolved(cfg)

    return make


def built(config: dict[str, Any], tmp_path: Path) -> None:
    """Build everything that a config names and run a sample through it, on the device without memory."""
    tokenizer = construct(config, "tokenizer") if config.get("tokenizer") else None
    shared = {key: with_tokenizer(config[key], tokenizer) for key in ("data", "task")}
    dataset = construct(shared, "data")
    data = construct(config, "loader", dataset=dataset)
    if shared != {key: config[key] for key in shared}:
        assert tokenizer is not None
        learn(dataset, tokenizer)
        check_room(config, tokenizer)
    sample = data.train_samples[0]
    assert len(dataset.class_names) == config["data"]["source"].get("num_classes", 0)
    with torch.device("meta"):
        model = construct(config, "model")
    task = construct(shared, "task").to("meta")
    batch = collate([sample, sample]).to("meta")
    outputs = task.outputs(model, batch)
    assert task.loss(outputs, batch).shape == ()
    optimizer = construct(config, "optimizer")(parameter_groups(model))
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(model.parameters()))
    assert 0.0 <= construct(config, "schedule")(3, 7) <= 1.0
    callbacks = [construct(config["callbacks"], name) for name in config.get("callbacks") or {}]
    callbacks.append(construct(config, "attention"))
    assert all(isinstance(callback, Callback) for callback in callbacks)
    logger = construct(config, "logger")
    assert isinstance(logger, RunLogger)
    trainer = construct(config, "trainer", callbacks=callbacks, logger=[logger], default_root_dir=tmp_path)
    assert isinstance(trainer, Trainer)


@cache
def choices_of(experiment: str) -> set[tuple[str, str]]:
    """Group and choice of everything that an experiment is made of."""
    with composed(f"experiment={experiment}"):
        chosen = HydraConfig.get().runtime.choices
        return {
            (str(key).partition("@")[0], str(choice))
            for key, choices in chosen.items()
            for choice in (choices if OmegaConf.is_list(choices) else [choices])
        }


@pytest.fixture(scope="session")
def config_with(config_of) -> Callable[[str, str], dict[str, Any]]:
    """Group and choice -> a config with it that makes sense."""

    @cache
    def make(group: str, choice: str) -> dict[str, Any]:
        modality = choice.partition("_")[0]
        by_modality = {"encoder": f"encoder@model.encoders.{modality}", "reader": f"reader@data.readers.{modality}"}
        key = by_modality.get(group, GROUPS[group])
        alone = f"{key}=[{choice}]" if group == "callbacks" else f"{key}={choice}"
        taking = [[f"experiment={name}"] for name in EXPERIMENTS if (group, choice) in choices_of(name)]
        every = [f"experiment={name}" for name in EXPERIMENTS]
        captioning = [[experiment, *CAPTIONS, alone] for experiment in every]
        if choice == "joint":
            return config_of(*JOINT)
        if choice.startswith("text"):  # sooner found
            captioning = taking = [[*TEXTS, alone]]
        for overrides in (
            [alone],
            *taking,
            *([[f"+{alone}"]] if group == "reader" else ()),
            *([one, alone] for one in every),
            *captioning,
        ):
            with suppress(ConfigError, HydraException):
                return config_of(*overrides)
        return config_of(alone)

    return make


class TestKeys:
    """Every key of a yaml is a keyword of the class, and every keyword that needs a value has its key."""

    @pytest.mark.parametrize(("group", "choice"), CHOICES, ids=map("/".join, CHOICES))
    def test_every_choice_fits_the_signatures_of_what_it_names(self, config_with, group, choice):
        assert missing_keywords(config_with(group, choice)) == []

    @pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(CONF)))
    def test_every_node_in_a_file_fits_its_signature_before_it_is_composed(self, path):
        found = [f"{key}: {name}" for key, node in nodes(load(path)) for name in unknown_keys(node)]
        assert found == []

    def test_a_planted_mistake_is_found(self, config_of):
        text = (CONF / "memory" / "latents.yaml").read_text()
        planted = yaml.safe_load(text.replace("num_latents:", "num_latentz:").replace("num_heads:", "num_headz:", 1))
        assert [name for _, node in nodes(planted) for name in unknown_keys(node)] == ["num_latentz", "num_headz"]
        config = copy.deepcopy(config_of())
        del config["model"]["memory"]["num_latents"], config["model"]["memory"]["self_attention"]["num_heads"]
        assert missing_keywords(config) == ["model.memory.num_latents", "model.memory.self_attention.num_heads"]

    def test_every_file_belongs_to_a_group_or_to_a_script(self):
        scripts = {path.stem for folder in ("experiments", "scripts") for path in (CONF.parent / folder).glob("*.py")}
        for path in FILES:
            where = path.relative_to(CONF)
            assert where.parts[0] in GROUPS if len(where.parts) == 2 else where.stem in scripts

    @pytest.mark.parametrize("path", [path for path in FILES if path.parent == CONF], ids=lambda path: path.stem)
    def test_every_script_composes_and_says_on_top_how_it_is_run(self, path):
        with composed(name=path.stem) as cfg:
            keys = set(cfg)
        head = path.read_text().partition("\n")[0]
        (command,) = re.findall(r"^# uv run ((?:experiments|scripts)/\w+\.py)", head)
        source = (CONF.parent / command).read_text()
        assert f'config_name="{path.stem}"' in source
        named = set(re.findall(r"[\[ ](\w+)=", head)) - {"group", "key"}  # which stand for any
        assert named <= keys | GROUPS.keys(), "it names keys that there are"

    @pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(CONF)))
    def test_what_the_data_knows_is_written_there_and_taken_over_elsewhere(self, path):
        written = {
            key: value
            for key, value in leaves(load(path))
            if key.rpartition(".")[2] in ONE_HOME and not str(value).startswith("${")
            if not (path.stem.startswith("audio_") and key == "stem.channels")  # a spectrogram has one, always
        }
        strays = [
            key
            for key in written
            if (homes := ONE_HOME[key.rpartition(".")[2]]) and path.parent.name not in homes
            if key.partition(".")[0] not in homes
        ]
        assert strays == []


class TestBuild:
    @pytest.mark.parametrize(("group", "choice"), CHOICES, ids=map("/".join, CHOICES))
    def test_every_choice_builds(self, config_with, tmp_path, group, choice):
        config = config_with(group, choice)
        built(config, tmp_path)
        if "_target_" in (alone := load(CONF / group / f"{choice}.yaml")):
            assert alone["_target_"] in [node["_target_"] for _, node in nodes(config)], "the choice is not in it"

    @pytest.mark.parametrize("name", EXPERIMENTS)
    def test_every_experiment_builds(self, config_of, tmp_path, name):
        config = config_of(f"experiment={name}")
        assert missing_keywords(config) == []
        built(config, tmp_path)

    @pytest.mark.parametrize("name", EXPERIMENTS)
    def test_every_experiment_says_what_it_asks_how_it_is_run_and_what_comes_out(self, name):
        package, *header = (CONF / "experiment" / f"{name}.yaml").read_text().splitlines()[:4]
        assert package == "# @package _global_"
        said = dict(line.removeprefix("# ").split(":", maxsplit=1) for line in header)
        assert list(said) == ["Question", "Command", "Expected"]
        assert name == DEFAULT_EXPERIMENT or f"experiment={name}" in said["Command"]
        assert re.search(r"\d|experiments/README\.md", said["Expected"])


CAPTIONING_CHOICES = [
    (group, choice)
    for group, choice in CHOICES
    if group in ("tokenizer", "generation") or (group == "encoder" and choice.startswith("image_"))
]
SMALL_CAPTIONS = [
    *(
        "experiment=image_captioning",
        "model.memory.num_latents=5",
        "model.memory.dim=16",
        "model.memory.cross_attention.num_heads=1",
    ),
    *("data.image_size=24", "data.num_samples={train: 5, val: 2, test: 2}", "tokenizer.max_length=23"),
]


class TestCaptioning:
    """The parts that only texts need are tried on samples with texts."""

    @pytest.mark.parametrize(("group", "choice"), CAPTIONING_CHOICES, ids=map("/".join, CAPTIONING_CHOICES))
    def test_every_choice_learns_from_captions_and_writes_some(self, config_of, group, choice):
        parts = build(config_of(*SMALL_CAPTIONS, f"{GROUPS[group]}={choice}"))
        batch = collate([parts.data.train_samples[index] for index in range(3)])
        loss = parts.task.loss(parts.task.outputs(parts.model, batch), batch)
        loss.backward()
        assert all(one.grad is not None and one.grad.isfinite().all() for one in parts.model.parameters())
        written = parts.task.predictions(parts.model.eval(), batch, parts.data.dataset.class_names, 2)
        assert [len(of_sample) for of_sample in written] == [2, 2, 2]
        assert all(list(one) == ["caption", "log_probability"] for of_sample in written for one in of_sample)


IMAGENET = [
    *("data=image_folder", "data.root=.", "data.num_classes=1000", "data.image_size=224", "data.channels=3"),
    "encoder@model.encoders.image=image_pixels",
]
PERCEIVER = ["model=perceiver_imagenet", "decoder@model.decoder=pooled"]
LEARNED = ["encoder@model.encoders.image=image_pixels_learned", "model.encoders.image.positions.project_dim=256"]
PERCEIVER_IO = ["model=perceiver_io_imagenet", "decoder@model.decoder=queries"]
CLASSIFICATION = Classification(num_classes=1000, loss=LossSpec(), mixup=0.0, cutmix=0.0)


class TestPapers:
    """The models of the papers, by their tables: parameters exactly, FLOPs to half a percent.

    Half a percent is what padding the width of the pixels' only head from 261 to 264 costs in eight cross-attends.
    """

    @pytest.mark.parametrize(
        ("overrides", "parameters", "giga_flops"),
        [
            pytest.param(PERCEIVER, 44_912_254, 707.2, id="Perceiver"),
            pytest.param(
                [*PERCEIVER, "model.memory.schedule.num_cross_attends=1"], 42_135_859, 404.3, id="one cross-attend"
            ),
            pytest.param(PERCEIVER_IO, 48_440_627, 407, id="Perceiver IO"),
            pytest.param(
                [*PERCEIVER_IO, "encoder@model.encoders.image=image_conv"], 48_646_522, 369, id="Perceiver IO, conv"
            ),
            # The paper's table repeats the 407 G of Fourier positions here, where tokens are twice as wide: 478 G.
            pytest.param([*PERCEIVER_IO, *LEARNED], 62_255_848, 478, id="Perceiver IO, learned positions"),
        ],
    )
    def test_a_model_of_the_papers_has_their_parameters_and_flops(self, overrides, parameters, giga_flops):
        model = paper_model(*overrides)
        assert count_parameters(model) == parameters
        image = torch.empty(1, 3, 224, 224, device="meta")
        flops = flops_per_sample(model, CLASSIFICATION, Batch(inputs={"image": image}, targets={}, ids=["x"]))
        assert flops / 1e9 == pytest.approx(giga_flops, rel=5e-3)

    def test_without_sharing_it_has_seven_times_the_parameters(self):
        """Jaegle et al. 2021, appendix: 326.2 M where nothing is shared, against 44.9 M."""
        unshared = ["model.memory.schedule.cross_sharing=none", "model.memory.schedule.block_sharing=none"]
        assert round(count_parameters(paper_model(*PERCEIVER, *unshared)) / 1e6, 1) == 326.2
        assert round(count_parameters(paper_model(*PERCEIVER)) / 1e6, 1) == 44.9


def paper_model(*overrides: str) -> nn.Module:
    register_resolvers()
    with composed(*IMAGENET, *overrides) as cfg, torch.device("meta"):
        return instantiate(OmegaConf.to_container(cfg, resolve=True)["model"], _convert_="all")


def load(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text())


def nodes(node: Any, key: str = "") -> list[tuple[str, dict[str, Any]]]:
    """Every node that builds something, with its key."""
    if not isinstance(node, dict):
        return []
    below = [found for name, child in node.items() for found in nodes(child, f"{key}.{name}".lstrip("."))]
    return [(key, node), *below] if "_target_" in node else below


def leaves(node: Any, key: str = "") -> list[tuple[str, Any]]:
    if not isinstance(node, dict):
        return [(key, node)]
    return [leaf for name, child in node.items() for leaf in leaves(child, f"{key}.{name}".lstrip("."))]


def unknown_keys(node: dict[str, Any]) -> list[str]:
    parameters = inspect.signature(get_object(node["_target_"])).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        parameters = all_keywords(get_object(node["_target_"]))
    return [name for name in node if not name.startswith("_") and name not in parameters and name != "defaults"]


def all_keywords(target: type) -> set[str]:
    """Keywords of a class that hands what it does not know on to its bases."""
    return {name for base in target.__mro__ for name in inspect.signature(base.__init__).parameters}


def missing_keywords(config: dict[str, Any]) -> list[str]:
    """Keywords of our own classes that have no default, and no key either."""
    return [
        f"{key}.{name}"
        for key, node in nodes(config)
        if node["_target_"].startswith("perceiver.") and (key in GIVEN_AT_RUN_TIME or not node.get("_partial_"))
        for name, parameter in inspect.signature(get_object(node["_target_"])).parameters.items()
        if parameter.default is parameter.empty and name not in node.keys() | GIVEN_AT_RUN_TIME.get(key, set())
    ]
