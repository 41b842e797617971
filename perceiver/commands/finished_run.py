"""A finished run, rebuilt from one of its checkpoints: for evaluation, prediction, inspection, and notebooks."""

import logging
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from perceiver.pretrained.folder import CONFIG, HUB_ID
from perceiver.runtime.config import check_parts
from perceiver.runtime.errors import ConfigError
from perceiver.runtime.overrides import apply_overrides
from perceiver.runtime.suggestions import nearest
from perceiver.training.build import MODEL_PARTS, Parts, build, config_errors
from perceiver.training.checkpoint import Checkpoint, load_weights, read_checkpoint
from perceiver.training.published import read_published
from perceiver.training.trust import check_trust
from perceiver.types import Stage

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FinishedRun:
    """A run at one of its checkpoints.

    Attributes:
        config: the run's config, with overrides.
        parts: built from it, with the weights of the checkpoint, in evaluation mode.
        step, epoch: the last that were trained.
        checkpoint: the file.
        output_dir: where results are written: the run directory, or for a checkpoint outside of one a folder beside it,
            named like it without the suffix.
    """

    config: dict[str, Any]
    parts: Parts
    step: int
    epoch: int
    checkpoint: Path
    output_dir: Path

    def check_data(self, stage: Stage, *, allow_trained: bool) -> None:
        """Compare the data of a stage with that of the run: the classes, and which samples were trained on.

        Args:
            stage: the split that will be used.
            allow_trained: only warn of samples outside of the training set that were trained on.

        Raises:
            ConfigError: the classes differ, or such samples exist.
        """
        with config_errors(self.config, "data"):
            self.parts.data.prepare_data()
            self.parts.data.match_classes(self.parts.description["class_names"])
            self._check_trained_on(stage, allow_trained=allow_trained)

    def _check_trained_on(self, stage: Stage, *, allow_trained: bool) -> None:
        data, before = self.parts.data, self.parts.description["trained_on"]
        train, tested = data.fingerprints("train"), data.fingerprints(stage)
        if missing := int((~torch.isin(before, train)).sum()):
            hint = "if they were only renamed or moved, samples that the run was trained on may be tested"
            log.warning("%d of the %d training samples of the run are missing; %s", missing, len(before), hint)
        known = torch.isin(tested, before)
        split = data.splits[stage]
        if stage == "train" or split is None or not known.any():
            return
        first = split.sample_name(int(known.nonzero()[0]))
        problem = f"{int(known.sum())} of its {len(known)} {stage} samples were trained on, such as {first}"
        # A name that is in both splits, then and now, has not moved: two samples may have the same name.
        if not allow_trained and (known & ~torch.isin(tested, train)).any():
            hint = "use the data and the split of the run, or evaluate all the same with allow_trained=true"
            raise ValueError(f"{problem}; {hint}")
        log.warning("%s", problem)


def load(
    run: str,
    checkpoint: str | None = None,
    overrides: Sequence[str] = (),
    trusted: str | Iterable[str] = (),
    *,
    source: Any = None,
    augment: bool = True,
    keys: tuple[str, str] = ("run", "checkpoint"),
) -> FinishedRun:
    """Rebuild a run from one of its checkpoints.

    Args:
        run: the run directory, or the file of a checkpoint.
        checkpoint: of the run directory, `best` (also if None) or `last`.
        overrides: changes to the run's config, as `key=value`.
        trusted: the user's own packages, of which the run may build any class; one or several.
        source: node of a source of samples in place of the run's; None for the run's.
        augment: whether training samples are augmented as in the run.
        keys: the settings that name run and checkpoint, for errors.

    Raises:
        ConfigError: the run or checkpoint does not exist or is not readable, or an override is not valid.
    """
    path, output_dir = locate_checkpoint(run, checkpoint, *keys)
    content = read_checkpoint(path)
    check_trust(content.config, packages(trusted), path)
    return rebuild(content, path, output_dir, overrides, source=source, augment=augment)


def load_named(
    cfg: DictConfig,
    overrides: Sequence[str] = (),
    *,
    augment: bool = True,
    replaces_data: bool = False,
    keys: tuple[str, str] = ("run", "checkpoint"),
) -> FinishedRun:
    """Load the run or the published model that the settings of a command name; other arguments are those of `load`.

    A published model has no samples of its own; the setting `data` gives it those of a source, which its readers read.
    With `replaces_data`, it may also replace the source of a run.

    Raises:
        ConfigError: neither or both are given, or see `load` and `read_published`.
    """
    run, pretrained = cfg[keys[0]], cfg.pretrained if keys[0] == "run" else None
    if run is None and pretrained is None:
        raise ConfigError(f"{keys[0]} must be given: {keys[0]}=…, or pretrained=… for a published model")
    has_data = cfg.get("data") is not None
    source = OmegaConf.to_container(cfg.data.source, resolve=True, throw_on_missing=True) if has_data else None
    if run is not None:
        if pretrained is not None or (has_data and not replaces_data):
            other = "pretrained" if pretrained is not None else "data"
            raise ConfigError(f"{other}=… and run={run}: give one of them; overrides='[…]' changes the data of a run")
        return load(str(run), cfg[keys[1]], overrides, cfg.trusted, source=source, augment=augment, keys=keys)
    return load_published(
        str(pretrained), str(cfg.variant), overrides, source=source, augment=augment, trusted=cfg.trusted
    )


def load_published(
    pretrained: str,
    variant: str = "transformers",
    overrides: Sequence[str] = (),
    *,
    source: Any = None,
    augment: bool = True,
    trusted: str | Iterable[str] = (),
) -> FinishedRun:
    """Build a published or exported model as a run.

    Args:
        pretrained: folder, or the name of a repository on the Hugging Face Hub.
        variant: see `perceiver.pretrained.architectures`.
        overrides, augment, trusted: see `load`.
        source: node of a source of samples; None for none.

    Raises:
        ConfigError: see `read_published` and `load`.
    """
    content, path = read_published(pretrained, variant, trusted=packages(trusted))
    if source is not None:
        content.config["data"]["source"] = source
    output_dir = Path("outputs") / "pretrained" / Path(pretrained).resolve().name
    return rebuild(content, path, output_dir, overrides, augment=augment)


def rebuild(
    content: Checkpoint, path: Path, output_dir: Path, overrides: Sequence[str], *, source: Any = None, augment: bool
) -> FinishedRun:
    """Rebuild a run from the content of a checkpoint; arguments and errors are those of `load` and `FinishedRun`."""
    config = apply_overrides(content.config, overrides, content.interpolations)
    if source is not None:
        config["data"]["source"] = source
    if not augment:
        config["data"] = without_augmentation(config["data"])
    # The other nodes were checked before the run was trained.
    check_parts({key: node for key, node in config.items() if key in MODEL_PARTS or node != content.config.get(key)})
    parts = build(config, content.data_info)
    try:
        load_weights(parts, content, path)
    except ConfigError as error:
        raise ConfigError(f"overrides={list(overrides)}: {error}" if overrides else str(error)) from error
    parts.description.update(trained_on=content.trained_on, interpolations=content.interpolations)
    parts.eval()
    return FinishedRun(config, parts, content.step, content.epoch, path, output_dir)


def packages(trusted: str | Iterable[str]) -> list[str]:
    """Return the names of packages, given as one or several."""
    return [trusted] if isinstance(trusted, str) else list(map(str, trusted))


def is_published(source: str) -> bool:
    """Whether a source is a folder with `config.json`, or the name of a repository; not a run or a checkpoint."""
    path = Path(source)
    if path.exists():
        return (path / CONFIG).is_file()
    return bool(HUB_ID.fullmatch(source)) and not path.parent.exists()


def locate_checkpoint(run: str, checkpoint: str | None, run_key: str, checkpoint_key: str) -> tuple[Path, Path]:
    """The file of a checkpoint, and the folder for results, see `FinishedRun`.

    Raises:
        ConfigError: run or checkpoint does not exist, or the two contradict each other.
    """
    path = Path(run)
    if path.is_dir():
        names = sorted(file.stem for file in (path / "checkpoints").glob("*.ckpt"))
        name = str(checkpoint or "best")
        if not names:
            raise ConfigError(
                f"{run_key}={run}: it has neither checkpoints/, as a run has, nor config.json, as a published model has"
            )
        if name not in names:
            raise ConfigError(f"{checkpoint_key}={name}: {run} has no such checkpoint{nearest(name, names)}")
        return path / "checkpoints" / f"{name}.ckpt", path
    if not path.exists():
        raise ConfigError(f"{run_key}={run}: no such run directory or checkpoint")
    if checkpoint not in (None, path.stem):
        problem = f"{run_key}={run} is another checkpoint; leave one of them out"
        raise ConfigError(f"{checkpoint_key}={checkpoint}: {problem}")
    folder = path.absolute().parent
    in_run = folder.name == "checkpoints" and (folder.parent / ".hydra").is_dir()
    if not (in_run or path.suffix):
        raise ConfigError(f"{run_key}={run}: neither a run directory nor a checkpoint, whose name ends in .ckpt")
    return path, folder.parent if in_run else path.with_suffix("")


def without_augmentation(node: Any) -> Any:
    """The config of a data set with each `augment` set to null."""
    if not isinstance(node, dict):
        return node
    return {key: None if key == "augment" else without_augmentation(value) for key, value in node.items()}


def check_writable(folder: Path, key: str = "output") -> None:
    """Check that files can be written to a folder, which may not exist yet; `key` is the setting that names it.

    Raises:
        ConfigError: it, or its nearest existing parent, is not a writable folder.
    """
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not (existing.is_dir() and os.access(existing, os.W_OK)):
        raise ConfigError(f"{key}={folder}: is not writable; choose another place with {key}=…")
