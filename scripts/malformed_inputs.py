"""Test the handling of malformed data: `uv run scripts/malformed_inputs.py [seed=1] [count=200] [case=17]`.

Each case writes a small valid data set or checkpoint, inserts one fault (`scripts/malformed_faults.py`), and does what
a run does: it builds the parts from the real config and reads all samples of all stages, once with data.on_error=raise
and once with skip; or it reads a checkpoint, or a file as `predict.py` does. Each must raise an error that is reported
in one sentence with the name of the faulty file; or, with skip and a fault of a single sample, leave it out and name
it. Anything else is a failure: another exception, no error, a process that dies, uses more than 2 GB or 20 s, or
executes the content of a file. A failure is reported with its case, which can be repeated: case=17, with the same seed.
"""

import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import hydra
from omegaconf import DictConfig

from perceiver.runtime.command_line import command_line
from perceiver.runtime.errors import ConfigError, report_user_errors

QUIET = ("logger=none", "loader.batch_size=7", "loader.num_workers=0")


@report_user_errors
@command_line
@hydra.main(version_base="1.3", config_path="../conf", config_name="malformed_inputs")
@report_user_errors
def main(cfg: DictConfig) -> None:
    for name, least in (("seed", 0), ("count", 1), ("processes", 1)):
        if not isinstance(cfg[name], int) or cfg[name] < least:
            raise ConfigError(f"{name}={cfg[name]}: must be an integer of at least {least}")
    from hydra import compose
    from rich.table import Table

    from perceiver.runtime.summary import console
    from scripts.data_trees import DATA_SETS
    from scripts.malformed_trials import Trial, all_cases, outcomes, write_checkpoint

    configs = {
        subject: compose("train", overrides=[*QUIET, *overrides, "data.source.root=."])
        for subject, (_, overrides) in DATA_SETS.items()
    }
    cases = all_cases(cfg.seed, cfg.count)
    if cfg.case is not None:
        cases = [case for case in cases if case.number == cfg.case]
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="malformed-") as folder:
        checkpoint = Path(folder) / "valid.ckpt"
        write_checkpoint(compose("train", overrides=list(QUIET)), checkpoint)
        trial = Trial(cfg.seed, configs, checkpoint)
        ended = sorted(
            outcomes(trial, cases, cfg.processes), key=lambda outcome: (outcome[0].subject, outcome[0].fault)
        )
    table = Table("case", "data", "fault", "message")
    counts: Counter[str] = Counter()
    failures: list[str] = []
    for case, passed, messages in ended:
        text = messages[-1].replace(tempfile.gettempdir(), "")
        table.add_row(str(case.number), case.subject, case.fault, text[:160] if passed else "FAILED, see below")
        failures += [] if passed else [f"case={case.number}: {case.subject}: {case.fault}: {text}"]
        counts["passed" if passed else "failed"] += 1
        counts["left out and named"] += passed and text.startswith("left out")
    console.print(table)
    for failure in failures:
        console.print(failure, soft_wrap=True, markup=False)
    totals = ", ".join(f"{counts[name]} {name}" for name in ("passed", "left out and named", "failed"))
    console.print(f"seed {cfg.seed}: {len(ended)} cases: {totals}; {time.monotonic() - began:.0f} s", soft_wrap=True)
    if counts["failed"]:
        sys.exit(1)


if __name__ == "__main__":
    main()
