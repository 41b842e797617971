"""Build the objects of a run from a checked config."""

import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from torch import Tensor, nn
from torch.optim import Optimizer

from perceiver.data.dataset import Dataset, Split
from perceiver.decoders.base import Decoder
from perceiver.inspection.maps.explainer import Explainer
from perceiver.inspection.maps.rollout import Alpha
from perceiver.model import Perceiver
from perceiver.processes import once_per_machine
from perceiver.runtime.config import SETTINGS
from perceiver.runtime.errors import ConfigError, about, one_line
from perceiver.runtime.nodes import select, targets
from perceiver.tasks.base import Task
from perceiver.tokenizer import Tokenizer
from perceiver.training.data_module import DataModule
from perceiver.training.freezing import Freezing
from perceiver.training.optimization import (
    OptimizerFactory,
    build_optimizer,
    build_scheduler,
    check_optimizer,
    parameter_groups,
)
from perceiver.types import QueryKind

if TYPE_CHECKING:
    from perceiver.training.module import TrainingModule

MODEL_PARTS = ("data", "loader", "model", "task", "tokenizer", "input_tokenizer")
"""The keys of a config from which `Parts` are built; those of training are read when it needs them."""
MAX_TEXTS_ENCODED = 20_000
"""Training texts from which the losses of the tokenizer are estimated."""
MAX_UNKNOWN, MAX_CUT = 0.05, 0.01
"""Fractions of unknown words and of truncated texts above which a warning is logged."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DataInfo:
    """Properties of the data set that a run takes from its data before training, and stores in its checkpoints.

    Attributes:
        class_names: by label.
        vocabulary: of a tokenizer that was trained on the data.
        input_vocabulary: of the tokenizer of input texts, if they have one of their own.
    """

    class_names: list[str]
    vocabulary: str | None
    input_vocabulary: str | None = None


@dataclass(frozen=True)
class Parts:
    """The parts of a run: plain torch modules and data, with which files are predicted and explained.

    Attributes:
        description: plain values stored in every checkpoint, from which the run can be rebuilt (config, class names).
    """

    data: DataModule
    tokenizer: Tokenizer | None
    input_tokenizer: Tokenizer | None
    model: Perceiver
    task: Task
    freezing: Freezing
    description: dict[str, Any]

    @cached_property
    def module(self) -> "TrainingModule":
        """Trains and evaluates the parts with Lightning; built, with the metrics, when it is first needed."""
        return build_module(self)

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def to(self, device: torch.device | None) -> Self:
        """Move model and task."""
        self._modules.to(device)
        return self

    def eval(self) -> Self:
        """Set model and task to evaluation mode."""
        self._modules.eval()
        return self

    def state_dict(self) -> dict[str, Tensor]:
        """Return the weights under their names in a checkpoint."""
        return self._modules.state_dict()

    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Load the weights of a checkpoint.

        Raises:
            RuntimeError: they do not fit the model.
        """
        self._modules.load_state_dict(weights)

    @property
    def _modules(self) -> nn.ModuleDict:
        """Model and task under the names that they have in a training module."""
        return nn.ModuleDict({"model": self.model, "task": self.task})

    def explainer(self, alpha: Alpha) -> Explainer:
        """Explains the outputs of the model; `alpha` is that of rollouts."""
        names = self.description["class_names"]
        return Explainer(model=self.model, task=self.task, class_names=names, alpha=alpha)


def build(config: dict[str, Any], data_info: DataInfo | None = None) -> Parts:
    """Build data, model and task, and for a new run the training module.

    Args:
        config: a checked config (`perceiver.runtime.config.resolved`).
        data_info: from a checkpoint; None for a new run, whose data must be on disk and is checked.
    """
    is_new = data_info is None
    tokenizer: Tokenizer | None = construct(config, "tokenizer") if config.get("tokenizer") else None
    input_tokenizer = construct(config, "input_tokenizer") if config.get("input_tokenizer") else tokenizer
    shared = insert_tokenizers(config, tokenizer, input_tokenizer)
    dataset = construct(shared, "data")
    data: DataModule = construct(config, "loader", dataset=dataset)
    if data_info is None:
        with config_errors(config, "data"):
            with once_per_machine(config["data"]):
                data.prepare_data()
            data_info = collect_data_info(dataset, tokenizer, input_tokenizer)
            data.train_samples  # noqa: B018  (raises if there is nothing to train on)
            data.check_readable("train", "val", "test")
    else:
        for key, one, vocabulary in (
            ("tokenizer", tokenizer, data_info.vocabulary),
            ("input_tokenizer", input_tokenizer, data_info.input_vocabulary),
        ):
            if one is not None and vocabulary is not None:
                with config_errors(config, key):
                    one.restore(vocabulary)
    if tokenizer is not None and input_tokenizer is not None:
        check_tokenizer_size(config, tokenizer, input_tokenizer)
    model: Perceiver = construct(config, "model")
    task: Task = construct(shared, "task")
    check_queries(task, model.decoder)
    if is_new:
        check_modalities(model, data.train_samples)
    if task.needs_class_counts and is_new:
        with config_errors(config, "task"):
            task.set_class_counts(*data.class_counts())
    with config_errors(config, "freeze"):
        freezing = Freezing(patterns=config.get("freeze", ()), until_epoch=config.get("unfreeze_at_epoch"))
        freezing.start(model)
    parts = Parts(
        data=data,
        tokenizer=tokenizer,
        input_tokenizer=input_tokenizer,
        model=model,
        task=task,
        freezing=freezing,
        description={"config": config, **asdict(data_info)},
    )
    if is_new:
        parts.module  # noqa: B018  (raises if the parts cannot be trained as the config says)
    return parts


def build_module(parts: Parts) -> "TrainingModule":
    """Build the module that trains and evaluates the parts of a run.

    Raises:
        ConfigError: a setting of training is not valid.
    """
    from perceiver.training.module import TrainingModule
    from perceiver.training.sharding import ShardedModule, is_sharded

    config, freezing = parts.description["config"], parts.freezing
    if freezing.until_epoch is not None and is_sharded(config["trainer"]):  # torch requires a state of each parameter
        problem = "a sharded run with parameters that were not updated yet cannot be resumed"
        raise ConfigError(f"unfreeze_at_epoch={freezing.until_epoch}: {problem}; choose trainer=ddp, or leave it out")
    optimizer = construct_optimizer(config, parts.model, freezing)
    schedule = construct(config, "schedule")
    with config_errors(config, "schedule"):
        trial = torch.optim.SGD([torch.zeros(1)], lr=1.0, momentum=0.9)
        build_scheduler(schedule, trial, total_steps=1, monitor_mode=parts.task.monitor_mode)
    kind = ShardedModule if is_sharded(config["trainer"]) else TrainingModule
    with config_errors(config, "task"):
        return kind(
            model=parts.model,
            task=parts.task,
            optimizer=optimizer,
            schedule=schedule,
            freezing=freezing,
            description=parts.description,
            on_nonfinite=config.get("on_nonfinite", "stop"),
        )


def construct_optimizer(
    config: dict[str, Any], model: Perceiver, freezing: Freezing
) -> Callable[[nn.Module], Optimizer]:
    """Return a function that builds the optimizer of a model's trainable parameters.

    Raises:
        ConfigError: a setting is not valid, or the learning rate is scaled of parameters that the model does not have.
    """
    factory: OptimizerFactory = construct(config, "optimizer")
    settings = {"decay_embeddings": config.get("decay_embeddings", False)}
    settings |= {name: config["optimizer"].get(name) for name in ("layer_decay", "lr_scale")}
    with config_errors(config, "optimizer"):
        check_optimizer(factory)
        parameter_groups(model, **settings)
    later = freezing.names(model) if freezing.until_epoch is not None else set()
    return partial(build_optimizer, factory, later=later, **settings)


def insert_tokenizers(
    config: dict[str, Any], tokenizer: Tokenizer | None, input_tokenizer: Tokenizer | None
) -> dict[str, Any]:
    """Return the config with the objects in place of each `tokenizer` and `input_tokenizer` of data and task.

    The tokenizer of the data is that of input texts.
    """

    def insert(node: Any, objects: dict[str, Tokenizer]) -> Any:
        if not isinstance(node, dict):
            return node
        return {name: objects[name] if name in objects else insert(child, objects) for name, child in node.items()}

    if tokenizer is None or input_tokenizer is None:
        return config
    data = insert(config["data"], {"tokenizer": input_tokenizer})
    task = insert(config["task"], {"tokenizer": tokenizer, "input_tokenizer": input_tokenizer})
    return {**config, "data": data, "task": task}


def collect_data_info(
    dataset: Dataset, tokenizer: Tokenizer | None, input_tokenizer: Tokenizer | None = None
) -> DataInfo:
    """Read the class names, and train the tokenizers that have to be trained: one for all texts, or two."""
    if tokenizer is None:
        return DataInfo(dataset.class_names, None)
    if input_tokenizer is None or input_tokenizer is tokenizer:
        if not tokenizer.is_trained:
            tokenizer.train(dataset.texts())
        with suppress(ValueError):  # a tokenizer without training can be used with a data set that has no texts
            log_tokenizer_coverage("tokenizer", tokenizer, list(dataset.texts()))
        return DataInfo(dataset.class_names, tokenizer.vocabulary)
    inputs, targets = zip(*dataset.source.text_pairs(), strict=True)
    for key, one, texts in (("tokenizer", tokenizer, targets), ("input_tokenizer", input_tokenizer, inputs)):
        if not one.is_trained:
            one.train(texts)
        log_tokenizer_coverage(key, one, texts)
    return DataInfo(dataset.class_names, tokenizer.vocabulary, input_tokenizer.vocabulary)


def log_tokenizer_coverage(key: str, tokenizer: Tokenizer, texts: Sequence[str]) -> None:
    """Log the fractions of unknown words and truncated texts, for many texts of a sample; warn if they are large."""
    from lightning.pytorch.utilities import rank_zero_only

    if rank_zero_only.rank:  # type: ignore[attr-defined]
        return
    loss = tokenizer.encoding_loss(texts[:: max(-(-len(texts) // MAX_TEXTS_ENCODED), 1)])
    unknown, cut = loss.num_unknown / max(loss.num_ids, 1), loss.num_truncated / max(loss.num_texts, 1)
    log.info(
        "%s: %.1f %% of the words in the training texts are unknown, and %.1f %% of the texts are truncated to "
        "max_length=%d%s",
        *(key, 100 * unknown, 100 * cut, tokenizer.max_length),
        f" (the longest has {loss.longest} tokens)" if loss.num_truncated else "",
    )
    if unknown > MAX_UNKNOWN:
        advice = f"increase {key}.vocab_size, now {tokenizer.vocab_size}"
        if tokenizer.num_ids < tokenizer.vocab_size:
            advice = f"decrease {key}.min_frequency, now {getattr(tokenizer, 'min_frequency', None)}"
        problem = "%s: %.1f %% of the words are not in its vocabulary of %d; %s, to keep more of them"
        log.warning(problem, key, 100 * unknown, tokenizer.num_ids, advice)
    if cut > MAX_CUT:
        problem = "%s: %.1f %% of the texts are truncated, by %.1f %% of all tokens; %s.max_length=%d keeps all"
        log.warning(problem, key, 100 * cut, 100 * loss.num_ids_truncated / loss.num_ids, key, loss.longest)


def check_tokenizer_size(config: dict[str, Any], tokenizer: Tokenizer, input_tokenizer: Tokenizer) -> None:
    """Check that the model's vocabularies and text lengths are at least those of the tokenizers.

    Raises:
        ConfigError: one is smaller.
    """
    for key, node in targets(config["model"], "model"):
        one = input_tokenizer if key.startswith("model.encoders.") else tokenizer
        for size_name, size in (("vocab_size", one.num_ids), ("max_length", one.max_length)):
            if (given := node.get(size_name)) is not None and given < size:
                raise ConfigError(f"{key}.{size_name}={given} must be at least the tokenizer's {size}")


class _QueryHint(NamedTuple):
    """How errors name a kind of query, its output, and parts that fit."""

    wanted: str
    output: str
    task: str
    decoder: str


QUERY_KINDS: dict[QueryKind, _QueryHint] = {
    "token_ids": _QueryHint("the token ids", "texts", "task=captioning", "decoder@model.decoder=text"),
    "places": _QueryHint("the places", "dense output", "task=segmentation", "decoder@model.decoder=dense"),
}


def check_queries(task: Task, decoder: Decoder) -> None:
    """Check that the task gives the queries that the decoder needs, and no others: token ids of a text, or places.

    Raises:
        ConfigError: it does not.
    """
    given, needed = task.given_queries, decoder.needs_queries
    names = type(task).__name__, type(decoder).__name__
    for output in sorted(given.keys() | needed.keys()):
        if given.get(output) in (needed.get(output), decoder.accepts_queries.get(output)):
            continue
        if output in needed:
            wanted, choice = QUERY_KINDS[needed[output]].wanted, QUERY_KINDS[needed[output]].task
            problem = f"model.decoder: {names[1]} needs {wanted} of {output!r}, which {names[0]} does not give"
            raise ConfigError(f"{problem}; choose another decoder@model.decoder, or {choice}")
        kind = QUERY_KINDS[given[output]]
        problem = f"model.decoder: {names[1]} generates no {kind.output} {output!r} for {names[0]}"
        raise ConfigError(f"{problem}; choose {kind.decoder}")


def check_modalities(model: Perceiver, samples: Split) -> None:
    """Check that there is an encoder for each modality of the samples, and samples for each encoder that needs them.

    Raises:
        ConfigError: one is missing.
    """
    available, encoded = samples.modalities, list(model.encoders)
    if absent := [name for name in encoded if name not in available and not model.join.masks_all(name)]:
        problem = f"no training sample has the modality {absent[0]!r}; they have {' and '.join(available)}"
        hint = f"+reader@data.readers.{absent[0]}=… reads it from files that the data has"
        raise ConfigError(f"model.encoders.{absent[0]}: {problem}; {hint}")
    if unread := [name for name in available if name not in encoded]:
        hint = f"+encoder@model.encoders.{unread[0]}=… adds one, '~data.readers.{unread[0]}' leaves the modality out"
        raise ConfigError(f"data.readers.{unread[0]}: no encoder reads the modality {unread[0]!r}; {hint}")


def construct(config: dict[str, Any], key: str, **parts: Any) -> Any:
    """Instantiate the node under a key, without its keys in `SETTINGS`; `parts` replace its values of these names.

    Raises:
        ConfigError: the constructor raised an error; the message names the key.
    """
    try:
        values = select(config, key).items()
        node = {name: value for name, value in values if name not in parts and f"{key}.{name}" not in SETTINGS}
        return instantiate(node, _convert_="all", **parts)
    except InstantiationException as error:
        message, _, inner = str(error).partition("\nfull_key: ")
        path = ".".join(filter(None, (key, inner)))
        problem = one_line(error.__cause__ or InstantiationException(message))
        if missing := re.search(r"missing \d+ required keyword-only arguments?: '(\w+)'", problem):
            raise ConfigError(f"{path}.{missing[1]} must be given: {path}.{missing[1]}=…") from error
        raise ConfigError(about(path, select(config, path), problem)) from error


@contextmanager
def config_errors(config: dict[str, Any], key: str) -> Iterator[None]:
    """Convert errors about the part under a key (ValueError, FileNotFoundError) to errors that name the key.

    Raises:
        ConfigError: in place of these.
    """
    try:
        yield
    except (ValueError, FileNotFoundError) as error:
        raise ConfigError(about(key, config[key], str(error))) from error
