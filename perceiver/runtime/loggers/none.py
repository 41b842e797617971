"""A logger without output: the run directory has all results."""

from collections.abc import Mapping

from perceiver.runtime.loggers.base import RunInfo, RunLogger


class NoLogger(RunLogger):
    """Logs nothing."""

    @property
    def is_recording(self) -> bool:
        return False

    def start(self, run: RunInfo) -> None: ...

    def metrics(self, values: Mapping[str, float], step: int) -> None: ...

    def close(self, exit_code: int) -> None: ...
