"""Weights & Biases as a mirror of the run directory: whatever happens to it, training goes on."""

import logging
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import wandb
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_only

log = logging.getLogger(__name__)

MAX_FAILURES = 3
INIT_TIMEOUT_SECONDS = 30
FINISH_TIMEOUT_SECONDS = 600
"""How long the end of a run waits for uploads; `wandb sync` sends what is left."""


class WandbMirror(WandbLogger):
    """A W&B logger that never asks, and never stops a run.

    Args:
        project, name, group, tags: as in `wandb.init`.
        mode: `auto` is what `WANDB_MODE` says where it is set, otherwise online where the user is logged in and offline
            elsewhere.
        run_dir: everything W&B writes stays below it, in `wandb/`.
        run_config: the run's config, shown by W&B.
    """

    def __init__(
        self,
        *,
        project: str,
        name: str | None,
        group: str | None,
        tags: list[str],
        mode: Literal["auto", "online", "offline", "disabled"],
        run_dir: str,
        run_config: Mapping[str, Any],
    ) -> None:
        folder = str(Path(run_dir).absolute())
        # Staged media and logs would otherwise go to the home folder, and be lost with it.
        os.environ["WANDB_DATA_DIR"] = f"{folder}/wandb"
        os.environ.setdefault("WANDB_CACHE_DIR", folder)
        super().__init__(
            project=project,
            name=name,
            group=group,
            tags=tags,
            mode=_possible_mode(mode),
            save_dir=folder,
            config=dict(run_config),
            settings=wandb.Settings(
                init_timeout=INIT_TIMEOUT_SECONDS, finish_timeout=FINISH_TIMEOUT_SECONDS, silent=True
            ),
        )
        del self._wandb_init["anonymous"]  # Lightning's default; W&B warns that it has no effect
        self.failures = 0

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Log scalars, or all scalars and media of one event, in one row."""
        self._attempt(lambda: super(WandbMirror, self).log_metrics(dict(metrics), step))

    @rank_zero_only
    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """The config is logged when the run starts; there is nothing to add."""

    @rank_zero_only
    def close(self, exit_code: int) -> None:
        """End the W&B run, so that the next one in this process is another, even where W&B itself has died."""
        if self._experiment is None:
            return
        try:
            self._experiment.finish(exit_code=exit_code)
        except Exception as error:
            if self.failures < MAX_FAILURES:
                log.warning("W&B could not end its run (%r); the run directory has everything", error)
            with suppress(Exception):
                wandb.teardown()  # lets go of its dead process
            wandb.run = None

    def _attempt(self, call: Callable[[], None]) -> None:
        if self.failures >= MAX_FAILURES:
            return
        try:
            call()
        except Exception as error:  # W&B raises anything, down to a broken pipe of its own process
            self.failures += 1
            if self._experiment is None and self._wandb_init["mode"] == "online":
                log.warning("W&B cannot be reached (%r); this run is recorded offline", error)
                self._wandb_init["mode"] = "offline"
                self._attempt(call)
            elif self.failures >= MAX_FAILURES:
                log.warning(
                    "W&B failed %d times (%r) and is off now; the run directory has everything", self.failures, error
                )


def _possible_mode(mode: str) -> str:
    """`online` only where it will work, without ever asking anyone."""
    if mode == "auto":
        mode = os.environ.get("WANDB_MODE") or "auto"
    if mode not in ("auto", "online"):
        return mode
    try:
        if wandb.login(prompt=False):
            return "online"
        problem = "nobody is logged in to W&B" if mode == "online" else None
    except Exception as error:  # the key is wrong, or nobody answers
        problem = f"W&B does not let us in ({error!r})"
    if problem:
        log.warning("%s; this run is recorded offline", problem)
    return "offline"
