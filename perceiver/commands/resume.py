"""Where a run begins: anew, or at a checkpoint."""

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.utilities import rank_zero_only

from perceiver.runtime.checkpoints import LAST, PREVIOUS
from perceiver.runtime.errors import ConfigError, leaves
from perceiver.runtime.launch import is_restarted
from perceiver.training.build import Checkpoint, Parts, build, load_weights, read_checkpoint
from perceiver.training.data_module import DataModule
from perceiver.training.trust import trust_needed

log = logging.getLogger(__name__)


def prepare(config: dict[str, Any], run_dir: Path) -> tuple[Parts, Path | None, int]:
    """Build what a config names, so that whatever is wrong with it is said before anything is done.

    Returns:
        The parts; the checkpoint from which the run goes on, if it does; and the optimizer steps done by then.
    """
    parts = build(config)
    parts.module.description["trained_on"] = parts.data.fingerprints("train")
    start, found = starting_point(config["ckpt_path"], run_dir)
    if start is not None and found is not None:
        try:
            if found.data_info.vocabulary != parts.module.description["vocabulary"]:
                raise ConfigError(f"{start}: its tokenizer has learned other words than those of this data")
            check_states(found.config, config, start)
            check_same_data(parts, found, start)
            load_weights(parts.module, found, start)
        except ConfigError as error:
            raise ConfigError(f"ckpt_path={error}") from error
        tell_changes(found.config, config)
    tell_trust_needed(config)
    if config["compile"]:
        parts.model.compile()
    return parts, start, 0 if found is None else found.step + 1


def check_same_data(parts: Parts, found: Checkpoint, path: Path) -> None:
    """Refuse to go on with other classes or training samples; classes in another order are translated.

    Raises:
        ConfigError: they are others.
    """
    try:
        parts.data.match_classes(found.data_info.class_names)
    except ValueError as error:
        raise ConfigError(f"{path}: another data set: {error}") from error
    parts.module.description["class_names"] = found.data_info.class_names
    before, now = found.trained_on, parts.module.description["trained_on"]
    if before is None or now is None or torch.equal(before, now):
        return
    gone, new = (int((~torch.isin(one, other)).sum()) for one, other in ((before, now), (now, before)))
    change = f"{gone} are gone and {new} are new" if gone or new else "they are in another order"
    hint = "bring back the data as it was, or begin a new run without ckpt_path"
    raise ConfigError(f"{path}: the training samples are not those of before, {change}; {hint}")


def check_lengths(trainer: Trainer, data: DataModule, config: Mapping[str, Any], *, begins: bool) -> None:
    """Compare the settings that count epochs, steps or batches with the length of the run and of its epochs.

    Raises:
        ConfigError: it could not train, validate or average its weights as it is told to.
    """
    if trainer.fast_dev_run:  # type: ignore[attr-defined]
        return
    for name in ("max_epochs", "max_steps"):
        if getattr(trainer, name) == 0 and begins:
            log.warning("trainer.%s=0: nothing is trained, and the untrained weights are tested", name)
    data.trainer = trainer  # as when it trains: there may be limits, and other processes
    batches = data.batches_in_epoch(data.train_dataloader())
    if batches == 0 and 0 not in (trainer.max_epochs, trainer.max_steps):
        limit = trainer.limit_train_batches
        raise ConfigError(f"trainer.limit_train_batches={limit}: leaves no batch to train on; give at least 1, or null")
    every = getattr(trainer, "val_check_interval", None)  # the trainer has none where it is a time
    if trainer.check_val_every_n_epoch is not None and type(every) is int and every > batches:
        advice = "give at most that, or trainer.check_val_every_n_epoch=null to count batches over epochs"
        raise ConfigError(f"trainer.val_check_interval={every}: an epoch has {batches} batches; {advice}")
    if (accumulated := trainer.accumulate_grad_batches) > batches > 0:
        problem = f"an epoch has {batches} batches, and a step accumulates no more than these"
        log.warning("trainer.accumulate_grad_batches=%d: %s", accumulated, problem)
    check_averages(trainer, config, total_steps=data.total_steps(), batches=batches)


def check_averages(trainer: Trainer, config: Mapping[str, Any], *, total_steps: int, batches: int) -> None:
    """Refuse an average of the weights that is not updated between the first step and the end of the run.

    What is tested would be the weights with which the run began.
    """
    epochs = math.ceil(total_steps * trainer.accumulate_grad_batches / max(batches, 1))
    for average in (callback for callback in trainer.callbacks if isinstance(callback, WeightAveraging)):  # type: ignore[attr-defined]
        steps = range(min(1, total_steps - 1), total_steps)
        if total_steps == 0 or any(average.should_update(step_idx=step) for step in steps):
            continue
        if any(average.should_update(epoch_idx=epoch) for epoch in range(epochs)):
            continue
        nodes = {name: node for name, node in (config.get("callbacks") or {}).items() if node is not None}
        name = next(name for name in nodes if nodes[name]["_target_"].endswith(f".{type(average).__name__}"))
        settings = [f"callbacks.{name}.{key}={value}" for key, value in nodes[name].items() if "update" in key]
        problem = f"the run has {total_steps} steps, so that the average would be that of its first weights"
        raise ConfigError(
            f"{', '.join(settings) or f'callbacks.{name}'}: {problem}; update it earlier, or leave out {name}"
        )


@rank_zero_only
def tell_trust_needed(config: dict[str, Any]) -> None:
    """Say what the tools for finished runs will have to be told of a run with code from elsewhere."""
    needed = trust_needed(config)
    if packages := sorted({package for packages in needed.values() for package in packages}):
        tools = "evaluate.py, predict.py and inspect_attention.py"
        log.info("code from elsewhere: %s will need trusted=[%s] for this run", tools, ",".join(packages))
    for target in (target for target, packages in needed.items() if not packages):
        log.warning("%s is no class or function that can be trusted: no tool will open this run", target)


def starting_point(ckpt_path: str | None, run_dir: Path) -> tuple[Path | None, Checkpoint | None]:
    """The checkpoint from which a run goes on, if it does; the one before the last where the last is damaged.

    Raises:
        ConfigError: the one that was asked for cannot be read, or the run has some, and none can.
    """
    if ckpt_path is None and is_restarted():
        ckpt_path = "last"
    if ckpt_path != "last":
        try:
            return (None, None) if ckpt_path is None else (Path(ckpt_path), read_checkpoint(Path(ckpt_path)))
        except ConfigError as error:
            raise ConfigError(f"ckpt_path={error}") from error
    there = [path for name in (LAST, PREVIOUS) if (path := run_dir / "checkpoints" / name).exists()]
    for path in there:
        try:
            return path, read_checkpoint(path)
        except ConfigError as error:
            log.warning("%s", error)
            if path == there[-1]:
                raise ConfigError(f"ckpt_path=last: {error}; to begin anew, give ckpt_path=null") from error
            log.warning("the run goes on from the checkpoint before that, %s", there[-1])
    log.warning("ckpt_path=last: there is no checkpoint in %s yet; the run begins", run_dir)
    return None, None


def tell_changes(before: dict[str, Any], now: dict[str, Any]) -> None:
    """Say in what the config of a run that goes on differs from the one it was begun with."""
    was, flat = (dict(leaves(config, "")) for config in (before, now))
    for key in sorted(was.keys() | flat.keys()):
        if was.get(key) != flat.get(key) and key != "ckpt_path":
            log.warning("goes on with %s=%s, which was %s", key, flat.get(key), was.get(key))


def check_states(before: dict[str, Any], now: dict[str, Any], path: Path) -> None:
    """Hold an optimizer and a schedule against those whose state a checkpoint has.

    Raises:
        ConfigError: they could not go on with it.
    """
    for part in ("optimizer", "schedule"):
        was, target = (str(config[part]["_target_"]) for config in (before, now))
        if _kind(before, part) != _kind(now, part):
            hint = f"choose {part} as before, or begin a new run without ckpt_path"
            raise ConfigError(f"{path}: the state of its {part} is that of {was}, not of {target}; {hint}")
    decays = [bool(config.get("decay_embeddings")) for config in (before, now)]
    changed = [] if decays[0] == decays[1] else ["decay_embeddings"]
    if _kind(now, "schedule"):  # one of torch's keeps the values that it began with, also of the optimizer
        parts = ({part: config[part] for part in ("optimizer", "schedule")} for config in (before, now))
        values, others = (dict(leaves(part, "")) for part in parts)
        changed += [key for key in sorted(values.keys() | others.keys()) if values.get(key) != others.get(key)]
    if changed:
        raise ConfigError(f"{path}: optimizer and schedule go on as they began; leave {', '.join(changed)} as before")


def _kind(config: dict[str, Any], part: str) -> str:
    """What has the state of a part; of our own schedules, which are functions of the step, it is always the same."""
    target = str(config[part]["_target_"])
    return "" if part == "schedule" and not target.startswith("torch.") else target
