"""Initialization of a model from the weights of an earlier run, such as a pre-training, part by part."""

import logging
from collections.abc import Mapping

from lightning.pytorch.utilities import rank_zero_only
from rich.table import Table
from torch import Tensor, nn

from perceiver.commands.finished_run import is_published, locate_checkpoint
from perceiver.runtime.errors import ConfigError
from perceiver.runtime.summary import show
from perceiver.training.build import Parts
from perceiver.training.checkpoint import read_checkpoint
from perceiver.training.published import read_published

MODEL = "model."
"""Prefix of the weights of the model among those of a checkpoint."""
DECODER = "decoder"

log = logging.getLogger(__name__)


def initialize_from(parts: Parts, run: str, variant: str = "transformers") -> None:
    """Load every part of the model (encoder, join, memory, decoder) that an earlier one has in the same shapes.

    A part is loaded as a whole or not at all. A table says which are loaded, which are new, and which of the earlier
    run are not used. Nothing is loaded of a part that the optimizer or the task keeps.

    Args:
        parts: of the new run.
        run: run directory, of which the best checkpoint is read, or checkpoint; or a published model.
        variant: of a published model.

    Raises:
        ConfigError: it cannot be read, its texts have other token ids, or no part fits.
    """
    if is_published(run):
        checkpoint, _ = read_published(run, variant, key="init.from")
    else:
        checkpoint = read_checkpoint(locate_checkpoint(run, None, "init.from", "checkpoint")[0])
    vocabulary = parts.module.description["vocabulary"]
    if None not in (vocabulary, checkpoint.vocabulary) and vocabulary != checkpoint.vocabulary:
        raise ConfigError(f"init.from={run}: its tokenizer was trained on other texts, so that its token ids differ")
    before = _by_part(
        {key.removeprefix(MODEL): value for key, value in checkpoint.state.items() if key.startswith(MODEL)},
        parts.model,
    )
    now = _by_part(parts.model.state_dict(), parts.model)
    misfits = {name: _misfit(before[name], now[name]) for name in now if name in before}
    loaded = [name for name, misfit in misfits.items() if not misfit]
    if not any(name != DECODER for name in loaded):
        problem = "; ".join(f"{name}: {misfit}" for name, misfit in misfits.items() if misfit) or "no part in common"
        raise ConfigError(f"init.from={run}: neither an encoder nor the memory fits this model ({problem})")
    for name in loaded:
        parts.model.get_submodule(name).load_state_dict(before[name])
    for name, misfit in misfits.items():
        if misfit and name != DECODER:
            log.warning("init.from=%s: %s does not fit and starts from new weights: %s", run, name, misfit)
    _show(before, now, misfits)


def _by_part(state: Mapping[str, Tensor], model: nn.Module) -> dict[str, dict[str, Tensor]]:
    """Group weights by part of the model; parts in a dictionary, such as encoders, are parts of their own."""
    found: dict[str, dict[str, Tensor]] = {}
    for key, value in state.items():
        names = key.split(".")
        depth = 2 if isinstance(getattr(model, names[0], None), nn.ModuleDict) else 1
        found.setdefault(".".join(names[:depth]), {})[".".join(names[depth:])] = value
    return found


def _misfit(before: Mapping[str, Tensor], now: Mapping[str, Tensor]) -> str:
    """Return the first difference between the weights of a part and those of the model; empty if there is none."""
    for name in [*now, *before]:
        if name not in before or name not in now:
            return f"{name} is {'new' if name in now else 'missing'}"
        if before[name].shape != now[name].shape:
            return f"{name} is {list(now[name].shape)}, not {list(before[name].shape)}"
    return ""


@rank_zero_only
def _show(
    before: Mapping[str, Mapping[str, Tensor]], now: Mapping[str, Mapping[str, Tensor]], misfits: Mapping[str, str]
) -> None:
    """Print what happened to each part of both models."""
    table = Table(title="initialization", title_justify="left")
    for column in ("part", "weights", "parameters"):
        table.add_column(column, justify="right" if column == "parameters" else "left")
    for name in dict.fromkeys([*now, *before]):
        how = "loaded" if misfits.get(name) == "" else "new" if name in now else "unused"
        if misfits.get(name):
            how += f"; those of the earlier run do not fit: {misfits[name]}"
        table.add_row(name, how, f"{sum(value.numel() for value in (now.get(name) or before[name]).values()):,}")
    show(table)
