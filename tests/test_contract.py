"""Every yaml fits the class it names: it composes, resolves and builds. New files are found without an edit here.

A choice is tried on the default experiment; one that does not fit there on an experiment that takes it, as a further
modality, and on any experiment. Nothing is read from disk: a source with a `root` is built, and samples are replaced
by example inputs of the encoders and targets of every kind.
"""

import copy
import inspect
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.utils import get_object, instantiate
from lightning.pytorch import Callback, Trainer
from omegaconf import OmegaConf
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from perceiver.attention import Attention
from perceiver.data.collate import collate
from perceiver.data.dataset import Dataset
from perceiver.encoders.base import Encoder
from perceiver.model import Perceiver
from perceiver.runtime.config import register_resolvers, resolved
from perceiver.runtime.cost import count_parameters, flops_per_sample
from perceiver.runtime.errors import ConfigError
from perceiver.runtime.loggers.base import RunLogger
from perceiver.tasks.classification import Classification
from perceiver.tasks.losses import LossSpec
from perceiver.tasks.optical_flow import OpticalFlow
from perceiver.training.build import build, check_tokenizer_size, construct, insert_tokenizers
from perceiver.training.optimization import parameter_groups
from perceiver.types import Batch, Sample
from tests.runs import CONF, JOINT, composed

FILES = sorted(CONF.rglob("*.yaml"))
EXPERIMENTS = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))
DEFAULTS: list[Any] = yaml.safe_load((CONF / "train.yaml").read_text())["defaults"]
TEXTS = ["a red circle", "a text of some words"]
"""What tokenizers learn, and captions of samples that are not read."""


def keys_of_groups() -> dict[str, str]:
    """Group -> the key that chooses from it: `encoder` -> `encoder@model.encoders.image`.

    Groups that only a choice of another group chooses from come after that group: `generation` ->
    `generation@task.generation`.
    """
    keys: dict[str, str] = {}
    for item in DEFAULTS:
        for entry in item if isinstance(item, dict) else ():
            keys.setdefault(str(entry).partition("@")[0], str(entry))
    nested = [
        (path.parent.name, str(entry).removeprefix("/"))
        for path in sorted(CONF.glob("*/*.yaml"), reverse=True)  # those of the memory before those of a decoder
        for item in yaml.safe_load(path.read_text()).get("defaults", [])
        for entry in (item if isinstance(item, dict) and path.parent.name != "experiment" else ())
        if not str(entry).startswith("override ")
    ]
    while found := [one for one in nested if one[0] in keys and one[1].partition("@")[0] not in keys]:
        above, entry = found[0]
        group, _, package = entry.partition("@")
        keys[group] = f"{group}@{keys[above].rpartition('@')[2]}.{package}"
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
    **dict.fromkeys(("vocab_size", "max_length"), ("tokenizer", "input_tokenizer")),
}
"""Values that one group sets, or the group of its parts, and all others interpolate."""
CAPTIONS = ["task=captioning", "tokenizer=words", "decoder@model.decoder=text"]
SEGMENTATION = ["data=shape_masks", "task=segmentation", "decoder@model.decoder=dense"]
RECONSTRUCTION = ["task=reconstruction", "decoder@model.decoder=dense_patches"]
TRANSLATION = [*CAPTIONS, "data=text_pairs", "~encoder@model.encoders.image", "+encoder@model.encoders.text=text"]
MASKED_TEXT = [
    *("data=text_pairs", "~encoder@model.encoders.image", "+encoder@model.encoders.text=text", "tokenizer=words"),
    *("task=reconstruction_ids", "decoder@model.decoder=dense_ids"),
]


@dataclass(frozen=True)
class Composition:
    """Group and choice of everything that a config is made of, and the checked config or why it is refused."""

    choices: frozenset[tuple[str, str]]
    config: dict[str, Any] | ConfigError


@pytest.fixture(scope="session")
def composition_of(tmp_path_factory) -> Callable[..., Composition]:
    """Overrides -> what they compose, with an empty data set of two class folders as `root`."""
    root = tmp_path_factory.mktemp("root")
    for name in ("one", "two"):
        (root / name).mkdir()

    @cache
    def make(*overrides: str) -> Composition:
        with composed(*overrides, "trainer.accelerator=cpu") as cfg:
            chosen = HydraConfig.get().runtime.choices
            choices = frozenset(
                (str(key).partition("@")[0], str(choice))
                for key, choices in chosen.items()
                for choice in (choices if OmegaConf.is_list(choices) else [choices])
                if choice is not None
            )
            if "root" in set(cfg.data.source):  # also where it is ???
                cfg.data.source.root = str(root)
            try:
                return Composition(choices, resolved(cfg))
            except ConfigError as error:
                return Composition(choices, error)

    return make


@pytest.fixture(scope="session")
def config_of(composition_of) -> Callable[..., dict[str, Any]]:
    """Overrides -> their checked config."""

    def make(*overrides: str) -> dict[str, Any]:
        config = composition_of(*overrides).config
        if isinstance(config, ConfigError):
            raise config
        return config

    return make


def defaults_of(group: str, choice: str) -> set[tuple[str, str]]:
    """Group and choice of everything that the file of a choice names in its defaults."""
    return {
        (str(entry).removeprefix("override ").partition("@")[0].lstrip("/"), str(name))
        for item in yaml.safe_load((CONF / group / f"{choice}.yaml").read_text()).get("defaults", [])
        for entry, name in (item.items() if isinstance(item, dict) else ())
    }


def modality_of(choice: str) -> str:
    """The modality of an encoder or reader; `recurrent` reads the tokens of any, at first of text."""
    return "text" if choice == "recurrent" else choice.partition("_")[0]


def candidates(group: str, choice: str, choices_of: Callable[[str], frozenset[tuple[str, str]]]) -> Iterator[list[str]]:
    """Overrides that a choice may fit: an experiment that has it, else the simplest.

    Args:
        choices_of: experiment -> group and choice of everything that it is made of.
    """
    yield from ([f"experiment={name}"] for name in EXPERIMENTS if (group, choice) in choices_of(name))
    modality = modality_of(choice)
    by_modality = {"encoder": f"encoder@model.encoders.{modality}", "reader": f"reader@data.readers.{modality}"}
    key = by_modality.get(group, GROUPS[group])
    alone = f"{key}=[{choice}]" if group == "callbacks" else f"{key}={choice}"
    if choice == "joint":
        yield JOINT
    if choice in ("reconstruction", "dense_patches"):
        yield [*RECONSTRUCTION, alone]
    if choice in ("reconstruction_ids", "dense_ids"):
        yield MASKED_TEXT
    if modality == "text":
        yield [*TRANSLATION, alone]
    if group == "translator":
        yield ["experiment=translation", alone]
    if "flow" in choice:
        yield ["experiment=optical_flow", alone]
    if choice.startswith("dense") or "segment" in choice or "mask" in choice:
        yield [*SEGMENTATION, alone]
    yield [alone]
    if ".mechanism." in key:
        yield ["mechanism@model.memory.cross_attention.mechanism=explicit", alone]
    if group in by_modality:  # one that no experiment has
        yield [f"+{alone}"]
        yield [f"+{alone}", f"+reader@data.readers.{modality}=array"]
    words, needs = set(re.split("[_s]+", choice)), defaults_of(group, choice)

    def likeness(name: str) -> int:
        shared = (1 + len(words & set(re.split("[_s]+", one))) for key, one in choices_of(name) if key == group)
        return 2 * len(needs & choices_of(name)) + max(shared, default=0) + len(words & set(name.split("_")))

    likely = sorted(EXPERIMENTS, key=likeness, reverse=True)
    yield from ([f"experiment={name}", *more, alone] for name in likely for more in ([], CAPTIONS))


@pytest.fixture(scope="session")
def config_with(composition_of, config_of) -> Callable[[str, str], dict[str, Any]]:
    """Group and choice -> a config with it."""

    def choices_of(experiment: str) -> frozenset[tuple[str, str]]:
        return composition_of(f"experiment={experiment}").choices

    @cache
    def make(group: str, choice: str) -> dict[str, Any]:
        for overrides in candidates(group, choice, choices_of):
            with suppress(ConfigError, HydraException):
                return config_of(*overrides)
        return config_of(*next(candidates(group, choice, choices_of)))  # for its error

    return make


@pytest.fixture(scope="session")
def check_once(tmp_path_factory) -> Callable[[dict[str, Any]], None]:
    """`check_built` for a config of `config_of`, once for all choices that it has."""
    built = []

    def check(config: dict[str, Any]) -> None:
        if not any(config is one for one in built):
            check_built(config, tmp_path_factory.mktemp("built"))
            built.append(config)

    return check


class AnyTargets(dict):
    """Targets by name; an unknown one is a number for each sample."""

    def __missing__(self, name: str) -> torch.Tensor:
        return torch.zeros(2, device="meta")


def batch_of(dataset: Dataset, model: Perceiver) -> Batch:
    """Two samples that the model reads."""
    on_disk = "root" in inspect.signature(type(dataset.source)).parameters
    sample = None if on_disk else dataset.split("train")[0]
    if sample is None or sample.inputs.keys() != model.encoders.keys():
        with torch.device("cpu"):
            inputs = {name: encoder.example_input()[0] for name, encoder in model.encoders.items()}
        tags = torch.zeros(dataset.num_classes)
        shape = next(iter(inputs.values())).shape
        fields = {"mask": torch.zeros(shape[1:], dtype=torch.long), "flow": torch.zeros(2, *shape[-2:])}
        targets = {"label": 0, "tags": tags, "caption": TEXTS[0], "references": TEXTS, **fields}
        sample = Sample(inputs, targets if sample is None else sample.targets, "x")
    batch = collate([sample, sample]).to("meta")
    batch.targets = AnyTargets(batch.targets)
    return batch


def check_built(config: dict[str, Any], tmp_path: Path) -> None:
    """Build everything that a config names and compute a loss, on the device without memory."""
    tokenizer = construct(config, "tokenizer") if config.get("tokenizer") else None
    input_tokenizer = construct(config, "input_tokenizer") if config.get("input_tokenizer") else tokenizer
    shared = insert_tokenizers(config, tokenizer, input_tokenizer)
    dataset = construct(shared, "data")
    construct(config, "loader", dataset=dataset)
    if tokenizer is not None:
        for one in (tokenizer, input_tokenizer):
            if not one.is_trained:
                one.train(5 * TEXTS)
        check_tokenizer_size(config, tokenizer, input_tokenizer)
    if "root" not in inspect.signature(type(dataset.source)).parameters:
        assert len(dataset.class_names) == dataset.num_classes
    with torch.device("meta"):
        model = construct(config, "model")
    task = construct(shared, "task").to("meta")
    batch = batch_of(dataset, model)
    assert task.loss(task.outputs(model, batch), batch).shape == ()
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


class TestKeys:
    """Every key of a yaml is a keyword of the class, and every keyword without a default has its key."""

    @pytest.mark.parametrize(("group", "choice"), CHOICES, ids=map("/".join, CHOICES))
    def test_every_choice_fits_the_signatures_and_builds(self, config_with, check_once, group, choice):
        config = config_with(group, choice)
        assert missing_keywords(config) == []
        check_once(config)
        if "_target_" in (alone := load(CONF / group / f"{choice}.yaml")):
            assert alone["_target_"] in [node["_target_"] for _, node in nodes(config)], "the choice is not in it"

    @pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(CONF)))
    def test_every_file_fits_before_it_is_composed_and_sets_only_what_is_its_own(self, path):
        content = load(path)
        assert [f"{key}: {name}" for key, node in nodes(content) for name in unknown_keys(node)] == []
        where = path.relative_to(CONF)
        scripts = {path.stem for folder in ("experiments", "scripts") for path in (CONF.parent / folder).glob("*.py")}
        assert where.parts[0] in GROUPS if len(where.parts) == 2 else where.stem in scripts
        for key, value in leaves(content):
            homes = ONE_HOME.get(key.rpartition(".")[2])
            # A sound always has one channel, and one of several decoders need not be over classes.
            is_sound = (path.stem.startswith("audio_") and key == "stem.channels") or ".audio.target." in key
            free = is_sound or "decoder.decoders." in key
            if homes and not str(value).startswith("${") and not free:
                assert path.parent.name in homes or key.partition(".")[0] in homes, f"{key} is set elsewhere"

    def test_a_planted_mistake_is_found(self, config_of):
        text = (CONF / "memory" / "latents.yaml").read_text()
        planted = yaml.safe_load(text.replace("num_latents:", "num_latentz:").replace("num_heads:", "num_headz:", 1))
        assert [name for _, node in nodes(planted) for name in unknown_keys(node)] == ["num_latentz", "num_headz"]
        config = copy.deepcopy(config_of())
        del config["model"]["memory"]["num_latents"], config["model"]["memory"]["self_attention"]["num_heads"]
        assert missing_keywords(config) == ["model.memory.num_latents", "model.memory.self_attention.num_heads"]

    @pytest.mark.parametrize("path", [path for path in FILES if path.parent == CONF], ids=lambda path: path.stem)
    def test_every_script_composes_and_its_command_names_keys_that_exist(self, path):
        with composed(name=path.stem) as cfg:
            keys = set(cfg)
        head = path.read_text().partition("\n")[0]
        (command,) = re.findall(r"^# uv run ((?:experiments|scripts)/\w+\.py)", head)
        assert f'config_name="{path.stem}"' in (CONF.parent / command).read_text()
        named = set(re.findall(r"[\[ ](\w+)=", head)) - {"group", "key"}  # which stand for any
        assert named <= keys | GROUPS.keys()

    @pytest.mark.parametrize("name", EXPERIMENTS)
    def test_every_experiment_builds_and_its_header_has_question_command_and_result(self, config_of, check_once, name):
        config = config_of(f"experiment={name}")
        assert missing_keywords(config) == []
        check_once(config)
        package, *header = (CONF / "experiment" / f"{name}.yaml").read_text().splitlines()[:4]
        assert package == "# @package _global_"
        fields = dict(line.removeprefix("# ").split(":", maxsplit=1) for line in header)
        assert list(fields) == ["Question", "Command", "Expected"]
        assert name == DEFAULT_EXPERIMENT or f"experiment={name}" in fields["Command"]
        assert re.search(r"\d|experiments/README\.md", fields["Expected"])


@pytest.mark.parametrize("choice", [choice for group, choice in CHOICES if group == "encoder"])
def test_every_encoder_gives_tokens_that_what_is_masked_does_not_change(config_with, choice):
    encoders = config_with("encoder", choice)["model"]["encoders"]
    check_masks(construct(encoders, modality_of(choice)))


@torch.no_grad()
def check_masks(encoder: Encoder) -> None:
    """Tokens fit their grid, and those of a padded input are those of the input alone."""
    raw = encoder.eval().example_input()
    raw = torch.rand_like(raw) if raw.is_floating_point() else torch.randint_like(raw, 4)
    alone = encoder(raw)
    assert alone.values.shape == (1, alone.grid.num_tokens, encoder.dim)
    assert len(alone.grid.axes) == len(alone.grid.shape)
    length = raw.shape[-1]
    padded = F.pad(raw, (0, length), value=torch.nan if raw.is_floating_point() else 10**6)
    mask = torch.ones(1, *padded.shape[2:], dtype=torch.bool)
    mask[..., length:] = False
    tokens = encoder(padded, mask)
    assert_close(tokens.values[tokens.mask], alone.values[0], atol=1e-4, rtol=1e-4)
    assert not encoder(padded, torch.zeros_like(mask)).mask.any()


CAPTIONING_CHOICES = [(group, choice) for group, choice in CHOICES if group in ("tokenizer", "generation")]
SMALL_CAPTIONS = [
    *("experiment=image_captioning", "model.memory.num_latents=3", "model.memory.dim=16", "model.decoder.num_layers=1"),
    "tokenizer.max_length=23",
    *("data.image_size=24", "data.num_samples={train: 5, val: 2, test: 2}"),
]


@pytest.mark.parametrize(("group", "choice"), CAPTIONING_CHOICES, ids=map("/".join, CAPTIONING_CHOICES))
def test_every_tokenizer_and_generation_learns_from_captions_and_writes_some(config_of, monkeypatch, group, choice):
    monkeypatch.setattr("perceiver.data.synthetic.shape_scenes.NUM_TEXTS", 401)
    parts = build(config_of(*SMALL_CAPTIONS, f"{GROUPS[group]}={choice}"))
    batch = collate([parts.data.train_samples[index] for index in range(3)])
    parts.task.loss(parts.task.outputs(parts.model, batch), batch).backward()
    assert all(one.grad is not None and one.grad.isfinite().all() for one in parts.model.parameters())
    written = parts.task.predictions(parts.model.eval(), batch, parts.data.dataset.class_names, 2)
    assert [len(texts) for texts in written] == [2, 2, 2]
    assert all(list(one) == ["caption", "log_probability"] for texts in written for one in texts)


IMAGENET = [
    *("data=image_folder", "data.root=.", "data.num_classes=1000", "data.image_size=224", "data.channels=3"),
    "encoder@model.encoders.image=image_pixels",
]
PERCEIVER = ["model=perceiver_imagenet", "decoder@model.decoder=pooled"]
LEARNED = ["encoder@model.encoders.image=image_pixels_learned", "model.encoders.image.positions.project_dim=256"]
PERCEIVER_IO = ["model=perceiver_io_imagenet", "decoder@model.decoder=queries"]


def classification(num_classes: int) -> Classification:
    return Classification(num_classes=num_classes, loss=LossSpec(), mixup=0.0, cutmix=0.0)


class TestPapers:
    """The models of the papers, by their tables: parameters exactly, FLOPs with keys and values to 0.25 percent."""

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
    def test_a_model_of_the_papers_has_their_parameters_and_flops(self, monkeypatch, overrides, parameters, giga_flops):
        monkeypatch.setattr(Attention, "_is_cheaper_unprojected", lambda *_: False)
        model = paper_model(*IMAGENET, *overrides)
        assert count_parameters(model) == parameters
        image = torch.empty(1, 3, 224, 224, device="meta")
        flops = flops_per_sample(model, classification(1000), Batch(inputs={"image": image}, targets={}, ids=["x"]))
        assert flops / 1e9 == pytest.approx(giga_flops, rel=2.5e-3)

    @pytest.mark.parametrize(
        ("experiment", "num_classes", "parameters"),
        [
            ("perceiver_io_language", 2, 201_108_230),
            ("perceiver_io_flow", None, 41_057_134),
            # The published one has a vector in place of hidden tokens of each of three modalities.
            ("perceiver_io_kinetics", 700, 19_858_855 - 3 * 704),
        ],
    )
    def test_a_recipe_has_the_parameters_of_the_published_weights(self, experiment, num_classes, parameters):
        given = ["data.root=."] if num_classes is None else ["data.root=.", f"data.num_classes={num_classes}"]
        assert count_parameters(paper_model(f"experiment={experiment}", *given)) == parameters

    def test_the_recipe_of_audioset_has_the_size_and_cost_of_the_paper(self, monkeypatch):
        """Jaegle et al. 2022: 25.0 M parameters and 52.9 GFLOPs, for raw sound and video."""
        monkeypatch.setattr(Attention, "_is_cheaper_unprojected", lambda *_: False)
        model = paper_model("experiment=perceiver_io_audioset", "data.root=.")
        assert count_parameters(model) / 1e6 == pytest.approx(25.0, rel=5e-3)
        video, audio = torch.empty(1, 3, 32, 224, 224, device="meta"), torch.empty(1, 1, 61_440, device="meta")
        batch = Batch(inputs={"video": video, "audio": audio}, targets={}, ids=["x"])
        assert flops_per_sample(model, classification(527), batch) / 1e9 == pytest.approx(52.9, rel=5e-3)

    def test_the_paper_counts_optical_flow_with_half_the_latents_and_two_thirds_of_the_layers(self, monkeypatch):
        """Jaegle et al. 2022: 27.9 M parameters and 987 GFLOPs; the published weights have 41.1 M."""
        monkeypatch.setattr(Attention, "_is_cheaper_unprojected", lambda *_: False)
        smaller = ["model.memory.num_latents=1024", "model.memory.schedule.num_self_attends=16"]
        model = paper_model("experiment=perceiver_io_flow", "data.root=.", *smaller)
        assert round(count_parameters(model) / 1e6, 1) == 27.9
        video = torch.empty(1, 3, 2, 368, 496, device="meta")
        task = OpticalFlow(modality="video", scale=20.0, num_places=1, monitor="EPE", output="logits")
        flops = flops_per_sample(model, task, Batch(inputs={"video": video}, targets={}, ids=["x"]))
        assert flops / 1e9 == pytest.approx(987, rel=2.5e-3)

    def test_without_sharing_it_has_seven_times_the_parameters(self):
        """Jaegle et al. 2021, appendix: 326.2 M where nothing is shared, against 44.9 M."""
        unshared = ["model.memory.schedule.cross_sharing=none", "model.memory.schedule.block_sharing=none"]
        assert round(count_parameters(paper_model(*IMAGENET, *PERCEIVER, *unshared)) / 1e6, 1) == 326.2


def paper_model(*overrides: str) -> nn.Module:
    register_resolvers()
    with composed(*overrides) as cfg, torch.device("meta"):
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
    """Keys that are no keyword of the class, nor of its bases where it takes any."""
    target = get_object(node["_target_"])
    keywords = inspect.signature(target).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in keywords.values()):
        keywords = {name for base in target.__mro__ for name in inspect.signature(base.__init__).parameters}
    return [name for name in node if not name.startswith("_") and name not in keywords and name != "defaults"]


def missing_keywords(config: dict[str, Any]) -> list[str]:
    """Keywords of our own classes that have no default, and no key either."""
    return [
        f"{key}.{name}"
        for key, node in nodes(config)
        if node["_target_"].startswith("perceiver.") and (key in GIVEN_AT_RUN_TIME or not node.get("_partial_"))
        for name, parameter in inspect.signature(get_object(node["_target_"])).parameters.items()
        if parameter.default is parameter.empty and name not in node.keys() | GIVEN_AT_RUN_TIME.get(key, set())
    ]
