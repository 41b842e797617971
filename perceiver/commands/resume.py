"""The start of a run: from new weights, those of another run, or resumed, then exactly as without the interruption.

A checkpoint holds weights, optimizer, schedule and callbacks, the number of batches done (`DataModule`), and the number
of logged rows (`Curves`). Random draws are functions of (seed, batches done) (`StepSeeds`). Resuming is refused where
one of these would have another meaning: other classes, training samples, vocabulary, or kind of optimizer.
"""

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_only

from perceiver.commands.initialize import initialize_from, warn_of_frozen
from perceiver.runtime.checkpoints import LAST, PREVIOUS
from perceiver.runtime.errors import ConfigError
from perceiver.runtime.launch import is_restarted
from perceiver.runtime.nodes import leaves, select
from perceiver.training.build import Parts, build
from perceiver.training.checkpoint import Checkpoint, load_weights, read_checkpoint
from perceiver.training.trust import untrusted_targets

GROUP_KEYS = ("decay_embeddings", "freeze", "unfreeze_at_epoch", "optimizer.layer_decay", "optimizer.lr_scale")
"""Keys on which the parameter groups of an optimizer depend."""
STATE_KEYS = ("optimizer.amsgrad", "optimizer.centered")
"""Settings of torch's optimizers with which they keep another average of each parameter."""
MAX_CHANGES = 5
"""Changed values in an error."""
WEIGHTS_ALONE = "a new run that starts with its weights alone has init.from={} in place of ckpt_path or run"

log = logging.getLogger(__name__)


def build_or_resume(config: dict[str, Any], run_dir: Path) -> tuple[Parts, Path | None, int]:
    """Build the parts of a run, with the weights of the checkpoint that it is resumed from, or of `init.from`.

    Returns:
        The parts, the checkpoint if there is one, and the number of optimizer steps done.
    """
    parts = build(config)
    parts.description["trained_on"] = parts.data.fingerprints("train")
    start, checkpoint = find_start(config["ckpt_path"], run_dir)
    if start is not None and checkpoint is not None:
        before = checkpoint.config
        check_end(checkpoint, config, start)
        with refused(start, before, config, "data", "tokenizer", "input_tokenizer", "loader"):
            check_same_data(parts, checkpoint, start)
        with refused(start, before, config):
            check_optimizer_state(before, config, start)
        with refused(start, before, config, "model"):
            load_weights(parts.module, checkpoint, start)
        log_changes(checkpoint.config, config)
    elif (source := config["init"]["from"]) is not None:
        initialize_from(parts, source, variant=config["variant"], strict=config["init"]["strict"])
    elif config["init"]["strict"]:
        raise ConfigError("init.strict=true: there is nothing to start from; give init.from=…")
    else:
        warn_of_frozen(parts, parts.model.state_dict())
    log_required_trust(config)
    if config["compile"]:
        parts.model.compile()
    return parts, start, 0 if checkpoint is None else checkpoint.step + 1


@contextmanager
def refused(path: Path, before: Mapping[str, Any], now: Mapping[str, Any], *roots: str) -> Iterator[None]:
    """Add to an error the values that changed, and how to start a new run with the weights alone.

    Args:
        path: the checkpoint.
        before, now: its config, and that of the run.
        roots: keys at the root whose values are compared.

    Raises:
        ConfigError: in place of a ConfigError.
    """
    try:
        yield
    except ConfigError as error:
        old, new = (dict(leaves({root: config.get(root) for root in roots})) for config in (before, now))
        changed = f"; {', '.join(_differences(old, new)[:MAX_CHANGES])}" if _changes(old, new) else ""
        raise ConfigError(f"ckpt_path={error}{changed}; {WEIGHTS_ALONE.format(path)}") from error


def find_start(ckpt_path: str | None, run_dir: Path) -> tuple[Path | None, Checkpoint | None]:
    """Read the checkpoint that a run is resumed from; the previous one if the last is damaged.

    Raises:
        ConfigError: the given checkpoint cannot be read, or the run directory has only checkpoints that cannot.
    """
    if ckpt_path is None and is_restarted():
        ckpt_path = "last"
    if ckpt_path is None:
        return None, None
    if ckpt_path != "last":
        try:
            return Path(ckpt_path), read_checkpoint(Path(ckpt_path))
        except ConfigError as error:
            raise ConfigError(f"ckpt_path={error}") from error
    paths = [path for name in (LAST, PREVIOUS) if (path := run_dir / "checkpoints" / name).exists()]
    for path in paths:
        try:
            return path, read_checkpoint(path)
        except ConfigError as error:
            log.warning("%s", error)
            if path == paths[-1]:
                raise ConfigError(f"ckpt_path=last: {error}; to start from scratch, give ckpt_path=null") from error
            log.warning("the run is resumed from the checkpoint before that, %s", paths[-1])
    log.warning("ckpt_path=last: there is no checkpoint in %s yet; the run starts from scratch", run_dir)
    return None, None


def check_end(checkpoint: Checkpoint, config: Mapping[str, Any], path: Path) -> None:
    """Check that a run does not end before a checkpoint.

    Raises:
        ConfigError: it has fewer epochs.
    """
    end, done = config["trainer"]["max_epochs"], checkpoint.epoch + 1
    if end is not None and end != -1 and done > end:
        raise ConfigError(
            f"trainer.max_epochs={end}: {path} is of epoch {done}; give at least {done}, or start a new run"
        )


def check_same_data(parts: Parts, checkpoint: Checkpoint, path: Path) -> None:
    """Check that classes, vocabulary and training samples are those of a checkpoint; reordered classes are mapped.

    Raises:
        ConfigError: they differ.
    """
    description = parts.description
    for key, name in (("vocabulary", "tokenizer"), ("input_vocabulary", "input_tokenizer")):
        if getattr(checkpoint.data_info, key) != description[key]:
            raise ConfigError(f"{path}: its {name} was trained on other texts than this one")
    try:
        parts.data.match_classes(checkpoint.data_info.class_names)
    except ValueError as error:
        raise ConfigError(f"{path}: another data set: {error}") from error
    description["class_names"] = checkpoint.data_info.class_names
    before, now = checkpoint.trained_on, description["trained_on"]
    if torch.equal(before, now):
        return
    gone, new = (int((~torch.isin(one, other)).sum()) for one, other in ((before, now), (now, before)))
    change = f"{gone} are gone and {new} are new" if gone or new else "their order has changed"
    raise ConfigError(f"{path}: the training samples are not those of before: {change}")


def check_optimizer_state(before: dict[str, Any], now: dict[str, Any], path: Path) -> None:
    """Check that the optimizer and the schedule of a config can load the state in a checkpoint.

    Args:
        before: the config in the checkpoint.
        now: the config of the run.
        path: the checkpoint.

    Raises:
        ConfigError: they cannot.
    """
    parts = [part for part in ("optimizer", "schedule") if _state_type(before, part) != _state_type(now, part)]
    keys = [*GROUP_KEYS, *STATE_KEYS, *(f"{part}._target_" for part in parts)]
    old, new = ({key: select(config, key) or None for key in keys} for config in (before, now))
    if _state_type(now, "schedule"):  # torch's schedulers restore their settings, and those of the optimizer
        for settings, config in ((old, before), (new, now)):
            settings |= leaves({part: config[part] for part in ("optimizer", "schedule")})
    if changed := ", ".join(_differences(old, new)):
        raise ConfigError(f"{path}: the state of its optimizer and schedule is that of other settings: {changed}")


def _state_type(config: dict[str, Any], part: str) -> str:
    """The class whose state a part has; our own schedules have none, as they are functions of the step."""
    target = str(config[part]["_target_"])
    return "" if part == "schedule" and not target.startswith("torch.") else target


def _differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Return what `_changes` finds, with both values."""
    return [f"{key}={_written(now.get(key))}, not {_written(before.get(key))}" for key in _changes(before, now)]


def _written(value: Any) -> str:
    """Return a value as on the command line."""
    return value if isinstance(value, str) else json.dumps(value, default=str).replace('"', "")


def _changes(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    return [key for key in sorted(before.keys() | now.keys()) if before.get(key) != now.get(key)]


def log_changes(before: dict[str, Any], now: dict[str, Any]) -> None:
    """Log how the config of a resumed run differs from that of its checkpoint."""
    old, new = dict(leaves(before)), dict(leaves(now))
    for key in _changes(old, new):
        if key != "ckpt_path":
            log.warning("resumed with %s=%s instead of %s", key, new.get(key), old.get(key))


@rank_zero_only
def log_required_trust(config: dict[str, Any]) -> None:
    """Log which packages `evaluate.py` and the like must be allowed to import, if the run uses code from elsewhere."""
    targets = untrusted_targets(config)
    if packages := sorted({package for packages in targets.values() for package in packages}):
        commands = "evaluate.py, predict.py and inspect_attention.py"
        log.info("the run uses code of your own: %s need trusted=[%s]", commands, ",".join(packages))
    for target in (target for target, packages in targets.items() if not packages):
        log.warning("%s is not a class or function that can be trusted: only train.py can load this run", target)
