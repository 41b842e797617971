"""A checked config -> the objects of a run; a checkpoint -> the same objects with its weights."""

import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from lightning.pytorch.utilities import rank_zero_only

from perceiver.data.dataset import Dataset, Split
from perceiver.data.files import refuse_special
from perceiver.decoders.base import Decoder
from perceiver.inspection.explanation import Explainer
from perceiver.inspection.rollout import Alpha
from perceiver.model import Perceiver
from perceiver.processes import once_per_machine
from perceiver.runtime.checkpoints import damage
from perceiver.runtime.config import targets
from perceiver.runtime.errors import ConfigError, about, one_line
from perceiver.tasks.base import Task
from perceiver.tokenizer import Tokenizer
from perceiver.training.data_module import DataModule
from perceiver.training.module import TrainingModule
from perceiver.training.optimization import OptimizerFactory, scheduler_of, try_optimizer
from perceiver.training.sharding import ShardedModule, is_sharded

MOST_ENCODED = 20_000
"""Training texts on which is measured what the tokenizer loses."""
MOST_UNKNOWN, MOST_CUT = 0.05, 0.01
"""Shares of unknown words and of texts that are cut above which this is warned of."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DataInfo:
    """What a run takes from its data before training, and keeps in its checkpoints.

    Attributes:
        class_names: by label.
        vocabulary: of the tokenizer, where it has learned one.
    """

    class_names: list[str]
    vocabulary: str | None


@dataclass(frozen=True)
class Parts:
    """What a run is made of."""

    data: DataModule
    tokenizer: Tokenizer | None
    model: Perceiver
    task: Task
    module: TrainingModule

    def explainer(self, alpha: Alpha) -> Explainer:
        """Looks at the model; `alpha` is that of rollouts."""
        names = self.module.description["class_names"]
        return Explainer(model=self.model, task=self.task, class_names=names, alpha=alpha)


def build(config: dict[str, Any], data_info: DataInfo | None = None) -> Parts:
    """Build data, model, task and training module.

    Args:
        config: a checked config (`perceiver.runtime.config.resolved`).
        learned: known from a checkpoint; otherwise taken from the data set, which must then be on disk.
    """
    is_new = data_info is None
    tokenizer: Tokenizer | None = construct(config, "tokenizer") if config.get("tokenizer") else None
    shared = {**config, **{key: with_tokenizer(config[key], tokenizer) for key in ("data", "task")}}
    dataset = construct(shared, "data")
    data: DataModule = construct(config, "loader", dataset=dataset)
    if data_info is None:
        with blamed_on(config, "data"):
            with once_per_machine(config["data"]):
                data.prepare_data()
            data_info = learn(dataset, tokenizer)
            data.train_samples  # noqa: B018  (what is wrong on disk is found now)
            data.check_readable("train", "val", "test")
    elif tokenizer is not None and data_info.vocabulary is not None:
        with blamed_on(config, "tokenizer"):
            tokenizer.restore(data_info.vocabulary)
    if tokenizer is not None:
        check_room(config, tokenizer)
    model: Perceiver = construct(config, "model")
    task: Task = construct(shared, "task")
    check_queries(task, model.decoder)
    if is_new:
        check_modalities(model, data.train_samples)
    if task.needs_class_counts and is_new:
        with blamed_on(config, "task"):
            task.set_class_counts(*data.class_counts())
    optimizer: OptimizerFactory = construct(config, "optimizer")
    with blamed_on(config, "optimizer"):
        try_optimizer(optimizer)
    schedule = construct(config, "schedule")
    with blamed_on(config, "schedule"):
        trial = torch.optim.SGD([torch.zeros(1)], lr=1.0, momentum=0.9)
        scheduler_of(schedule, trial, total_steps=1, monitor_mode=task.monitor_mode)
    kind = ShardedModule if is_sharded(config["trainer"]) else TrainingModule
    module = kind(
        model=model,
        task=task,
        optimizer=optimizer,
        schedule=schedule,
        description={"config": config, **asdict(data_info)},
        decay_embeddings=config.get("decay_embeddings", False),
        on_nonfinite=config.get("on_nonfinite", "stop"),
    )
    return Parts(data=data, tokenizer=tokenizer, model=model, task=task, module=module)


def with_tokenizer(node: Any, tokenizer: Tokenizer | None) -> Any:
    """A node of the config with one and the same tokenizer wherever it names one."""
    if not isinstance(node, dict):
        return node
    return {
        name: tokenizer if name == "tokenizer" and tokenizer is not None else with_tokenizer(child, tokenizer)
        for name, child in node.items()
    }


def learn(dataset: Dataset, tokenizer: Tokenizer | None) -> DataInfo:
    """What a run must know of its data before it is trained."""
    if tokenizer is None:
        return DataInfo(dataset.class_names, None)
    if not tokenizer.is_trained:
        tokenizer.train(dataset.texts())
    with suppress(ValueError):  # one that has nothing to learn may go with a data set that has no texts
        tell_loss(tokenizer, list(dataset.texts()))
    return DataInfo(dataset.class_names, tokenizer.vocabulary)


@rank_zero_only
def tell_loss(tokenizer: Tokenizer, texts: Sequence[str]) -> None:
    """Say how much of the training texts the tokenizer loses, of many by a sample of them; warn where it is much."""
    step = -(-len(texts) // MOST_ENCODED)
    loss = tokenizer.encoding_loss(texts[::step] if step > 1 else texts)
    unknown, cut = loss.num_unknown / max(loss.num_ids, 1), loss.num_truncated / max(loss.num_texts, 1)
    log.info(
        "tokenizer: %.1f %% of the words in the training texts are unknown, and %.1f %% of the texts are cut at "
        "tokenizer.max_length=%d%s",
        *(100 * unknown, 100 * cut, tokenizer.max_length),
        f" (the longest would take {loss.longest})" if loss.num_truncated else "",
    )
    if unknown > MOST_UNKNOWN:
        is_full = tokenizer.num_ids >= tokenizer.vocab_size
        key = f"tokenizer.vocab_size, now {tokenizer.vocab_size}"
        key = key if is_full else f"tokenizer.min_frequency, now {getattr(tokenizer, 'min_frequency', None)}"
        log.warning(
            "tokenizer: %.1f %% of the words are unknown to a vocabulary of %d; a %s %s keeps more of them",
            *(100 * unknown, tokenizer.num_ids, "larger" if is_full else "smaller", key),
        )
    if cut > MOST_CUT:
        problem = (
            "tokenizer: %.1f %% of the texts are cut, and lose %.1f %% of all ids; tokenizer.max_length=%d keeps all"
        )
        log.warning(problem, 100 * cut, 100 * loss.num_ids_truncated / loss.num_ids, loss.longest)


def check_room(config: dict[str, Any], tokenizer: Tokenizer) -> None:
    """Refuse a model whose vocabulary or whose texts are smaller than the tokenizer's.

    Raises:
        ConfigError: it is.
    """
    least = {"vocab_size": tokenizer.num_ids, "max_length": tokenizer.max_length}
    for key, node in targets(config["model"], "model"):
        for name, size in least.items():
            if node.get(name, size) < size:
                raise ConfigError(f"{key}.{name}={node[name]} must be at least the tokenizer's {size}")


def check_queries(task: Task, decoder: Decoder) -> None:
    """Refuse a task and a decoder of which one has target tokens for an output and the other has no use for them.

    Raises:
        ConfigError: they are of that kind.
    """
    given, needed = set(task.needs_target_tokens), set(decoder.needs_target_tokens)
    names = type(task).__name__, type(decoder).__name__
    for output in sorted(given - needed):
        problem = f"model.decoder: {names[1]} generates no texts {output!r} for {names[0]}"
        raise ConfigError(f"{problem}; choose decoder@model.decoder=text")
    for output in sorted(needed - given):
        problem = f"model.decoder: {names[1]} needs the token ids of {output!r}, which {names[0]} does not give"
        raise ConfigError(f"{problem}; choose another decoder@model.decoder, or task=captioning")


def check_modalities(model: Perceiver, samples: Split) -> None:
    """Refuse a model that reads other modalities than the samples have.

    Raises:
        ConfigError: it does.
    """
    there, read = samples.modalities, list(model.encoders)
    if absent := [name for name in read if name not in there]:
        problem = f"no training sample has the modality {absent[0]!r}; they have {' and '.join(there)}"
        hint = f"+reader@data.readers.{absent[0]}=… reads it from files that the data has"
        raise ConfigError(f"model.encoders.{absent[0]}: {problem}; {hint}")
    if unread := [name for name in there if name not in read]:
        hint = f"+encoder@model.encoders.{unread[0]}=… adds one, '~data.readers.{unread[0]}' leaves the modality out"
        raise ConfigError(f"data.readers.{unread[0]}: no encoder reads the modality {unread[0]!r}; {hint}")


def construct(config: dict[str, Any], key: str, **parts: Any) -> Any:
    """Instantiate the node under a key; what a constructor refuses becomes an error that names the key.

    Raises:
        ConfigError: the constructor raised anything.
    """
    try:
        given = {name: value for name, value in _below(config, key).items() if name not in parts}
        return instantiate(given, _convert_="all", **parts)
    except InstantiationException as error:
        message, _, inner = str(error).partition("\nfull_key: ")
        path = ".".join(filter(None, (key, inner)))
        problem = one_line(error.__cause__ or InstantiationException(message))
        if missing := re.search(r"missing \d+ required keyword-only arguments?: '(\w+)'", problem):
            raise ConfigError(f"{path}.{missing[1]} must be given: {path}.{missing[1]}=…") from error
        raise ConfigError(about(path, _below(config, path), problem)) from error


def _below(config: dict[str, Any], path: str) -> Any:
    """What stands under a path of keys, or the nearest above it that is there."""
    node: Any = config
    for name in path.split("."):
        if not isinstance(node, dict) or name not in node:
            break
        node = node[name]
    return node


@contextmanager
def blamed_on(config: dict[str, Any], key: str) -> Iterator[None]:
    """A ValueError from inside, or a file that is not there, becomes an error that names the key.

    Raises:
        ConfigError: in place of the ValueError.
    """
    try:
        yield
    except (ValueError, FileNotFoundError) as error:
        raise ConfigError(about(key, config[key], str(error))) from error


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint of a run says about it.

    Attributes:
        config: as plain values.
        learned: from its data.
        state: the weights.
        step, epoch: the last that were trained.
        interpolations: which values of the config are made of others, and how, by key.
        trained_on: fingerprints of the training samples, in their order, if they are known.
    """

    config: dict[str, Any]
    data_info: DataInfo
    state: dict[str, torch.Tensor]
    step: int
    epoch: int
    interpolations: dict[str, str]
    trained_on: torch.Tensor | None


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint of `experiments/train.py` without executing anything in it.

    Before its config is built, `check_trust` must have seen it.

    Raises:
        ConfigError: it is missing, damaged or not one of ours.
    """
    if not path.exists():
        raise ConfigError(f"{path}: no such checkpoint")
    refuse_special(path)
    if problem := damage(path):
        raise ConfigError(f"{path}: the file is damaged or no checkpoint ({problem})")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        description = content["description"]
        data_info = DataInfo(description["class_names"], description.get("vocabulary"))
        step, epoch = int(content["global_step"]) - 1, int(content["epoch"])
        interpolations = description.get("interpolations", {})
        checkpoint = Checkpoint(
            description["config"],
            data_info,
            content["state_dict"],
            step,
            epoch,
            interpolations,
            description.get("trained_on"),
        )
        check_kinds(checkpoint)
    except Exception as error:  # damaged files raise anything; the message of a refused one is pages long
        problem = str(error).strip().partition("\n")[0] or type(error).__name__
        raise ConfigError(f"{path}: not a readable checkpoint of a run ({problem})") from error
    return checkpoint


def check_kinds(checkpoint: Checkpoint) -> None:
    """Hold what a file says against what it should be.

    Raises:
        ValueError: it is something else.
    """
    data_info = checkpoint.data_info
    for name, fits in {
        "config": isinstance(checkpoint.config, dict),
        "class_names": isinstance(data_info.class_names, list)
        and all(isinstance(n, str) for n in data_info.class_names),
        "vocabulary": isinstance(data_info.vocabulary, str | None),
        "state_dict": isinstance(checkpoint.state, dict)
        and all(isinstance(value, torch.Tensor) for value in checkpoint.state.values()),
        "interpolations": isinstance(checkpoint.interpolations, dict)
        and all(isinstance(one, str) for pair in checkpoint.interpolations.items() for one in pair),
        "trained_on": checkpoint.trained_on is None
        or (isinstance(checkpoint.trained_on, torch.Tensor) and checkpoint.trained_on.dtype == torch.int64),
        "global_step and epoch": min(checkpoint.step, checkpoint.epoch) >= 0,
    }.items():
        if not fits:
            raise ValueError(f"its {name} is not a valid one")
    if "${" in repr(checkpoint.config):  # a resolver could make a node of which the check of targets knows nothing
        raise ValueError("its config holds an interpolation")


def load_weights(module: TrainingModule, checkpoint: Checkpoint, path: Path) -> None:
    """Give a module the weights of a checkpoint.

    Raises:
        ConfigError: they are those of another model.
    """
    try:
        module.load_weights(checkpoint.state)
    except RuntimeError as error:
        _, first, *_ = [*str(error).splitlines(), ""]
        raise ConfigError(f"{path}: its weights are not those of this model ({first.strip()})") from error
