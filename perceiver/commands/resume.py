"""The start of a run: from new weights, those of another run, or resumed, then exactly as without the interruption.

A checkpoint holds weights, optimizer, schedule and callbacks, the number of batches done (`DataModule`), and the number
of logged rows (`Curves`). Random draws are functions of (seed, batches done) (`StepSeeds`). Resuming is refused where
one of these would have another meaning: other classes, training samples, vocabulary, or kind of optimizer.
"""

import logging
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_only

from perceiver.commands.initialize import initialize_from
from perceiver.runtime.checkpoints import LAST, PREVIOUS
from perceiver.runtime.errors import ConfigError
from perceiver.runtime.launch import is_restarted
from perceiver.runtime.nodes import leaves
from perceiver.training.build import Parts, build
from perceiver.training.checkpoint import Checkpoint, load_weights, read_checkpoint
from perceiver.training.trust import untrusted_targets

log = logging.getLogger(__name__)


def build_or_resume(config: dict[str, Any], run_dir: Path) -> tuple[Parts, Path | None, int]:
    """Build the parts of a run, with the weights of the checkpoint that it is resumed from, or of `init.from`.

    Returns:
        The parts, the checkpoint if there is one, and the number of optimizer steps done.
    """
    parts = build(config)
    parts.module.description["trained_on"] = parts.data.fingerprints("train")
    start, checkpoint = find_start(config["ckpt_path"], run_dir)
    if start is not None and checkpoint is not None:
        try:
            check_same_data(parts, checkpoint, start)
            check_optimizer_state(checkpoint.config, config, start)
            load_weights(parts.module, checkpoint, start)
        except ConfigError as error:
            raise ConfigError(f"ckpt_path={error}") from error
        log_changes(checkpoint.config, config)
    elif (run := config["init"]["from"]) is not None:
        initialize_from(parts, run, config["variant"])
    log_required_trust(config)
    if config["compile"]:
        parts.model.compile()
    return parts, start, 0 if checkpoint is None else checkpoint.step + 1


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


def check_same_data(parts: Parts, checkpoint: Checkpoint, path: Path) -> None:
    """Check that classes, vocabulary and training samples are those of a checkpoint; reordered classes are mapped.

    Raises:
        ConfigError: they differ.
    """
    description = parts.module.description
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
    hint = "restore the data, or start a new run without ckpt_path"
    raise ConfigError(f"{path}: the training samples are not those of before: {change}; {hint}")


def check_optimizer_state(before: dict[str, Any], now: dict[str, Any], path: Path) -> None:
    """Check that the optimizer and the schedule of a config can load the state in a checkpoint.

    Args:
        before: the config in the checkpoint.
        now: the config of the run.
        path: the checkpoint.

    Raises:
        ConfigError: they cannot.
    """
    for part in ("optimizer", "schedule"):
        if _state_type(before, part) != _state_type(now, part):
            target, other = (config[part]["_target_"] for config in (before, now))
            hint = f"choose {part} as before, or start a new run without ckpt_path"
            raise ConfigError(f"{path}: the state of its {part} is that of {target}, not of {other}; {hint}")
    old, new = ({"decay_embeddings": bool(config.get("decay_embeddings"))} for config in (before, now))
    if _state_type(now, "schedule"):  # torch's schedulers restore their settings, and those of the optimizer
        for settings, config in ((old, before), (new, now)):
            settings |= leaves({part: config[part] for part in ("optimizer", "schedule")})
    if changed := _changes(old, new):
        keys = ", ".join(changed)
        raise ConfigError(f"{path}: optimizer and schedule are resumed with their own settings; leave {keys} as before")


def _state_type(config: dict[str, Any], part: str) -> str:
    """The class whose state a part has; our own schedules have none, as they are functions of the step."""
    target = str(config[part]["_target_"])
    return "" if part == "schedule" and not target.startswith("torch.") else target


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
