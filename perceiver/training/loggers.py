"""Weights & Biases as a mirror of the run directory: whatever happens to it, training goes on."""

import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import wandb
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_only

log = logging.getLogger(__name__)

MAX_FAILURES = 3
INIT_TIMEOUT_SECONDS = 30


class WandbMirror(WandbLogger):
    """A W&B logger that never asks, and never stops a run.

    Args:
        project, name, group, tags: as in `wandb.init`.
        mode: `auto` is online where the user is logged in and offline elsewhere.
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
        if mode in ("auto", "online") and not _logged_in():
            if mode == "online":
                log.warning("logger.mode=online, but nobody is logged in to W&B; this run is recorded offline")
            mode = "offline"
        folder = str(Path(run_dir).absolute())
        # Staged media would otherwise go to the home folder, and be lost with it.
        os.environ["WANDB_DATA_DIR"] = f"{folder}/wandb"
        super().__init__(
            project=project,
            name=name,
            group=group,
            tags=tags,
            mode=mode,
            save_dir=folder,
            config=dict(run_config),
            settings=wandb.Settings(init_timeout=INIT_TIMEOUT_SECONDS, silent=True),
        )
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
        """End the W&B run, so that the next one in this process is another."""
        self._attempt(lambda: wandb.finish(exit_code=exit_code))

    def _attempt(self, call: Callable[[], None]) -> None:
        if self.failures >= MAX_FAILURES:
            return
        try:
            call()
        except Exception as error:  # W&B raises anything, down to a broken pipe of its own process
            self.failures += 1
            if self._experiment is None and self._wandb_init["mode"] == "online":
                log.warning("W&B cannot be reached (%s); this run is recorded offline", error)
                self._wandb_init["mode"] = "offline"
                self._attempt(call)
            elif self.failures >= MAX_FAILURES:
                log.warning(
                    "W&B failed %d times (%s) and is off now; the run directory has everything", self.failures, error
                )


def _logged_in() -> bool:
    try:
        return wandb.login(prompt=False)
    except Exception:
        return False
