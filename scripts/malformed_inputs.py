"""What malformed data ends in: `uv run scripts/malformed_inputs.py [seed=1] [count=200] [case=17]`.

Each case writes a small valid tree of a data set, or a checkpoint, spoils one thing in it, and does what a run does: it
builds the parts by the real config and reads all samples of all stages, once with data.on_error=raise and once with
skip; or it reads a checkpoint, or a file as `predict.py` does. All must end in an error that a user is told in one
sentence, with the name of what was spoiled; or, of a single sample and with skip, in its being left out and named.
Anything else fails: another exception, nothing at all, a process that dies, takes more than 2 GB or more than 20 s, or
runs what a file holds. A failure names its case, which can be repeated alone: case=17, with the same seed.

What nobody can know to be wrong is not tried; `scripts/malformed_faults.py` says what that is.
"""

import logging
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from random import Random
from typing import Any

import hydra
import torch
from hydra import compose
from omegaconf import DictConfig, OmegaConf
from rich.table import Table as RichTable

from perceiver.data.files import UnreadableError
from perceiver.runtime.command_line import command_line
from perceiver.runtime.config import resolved
from perceiver.runtime.errors import USER_ERRORS, ConfigError, explain, explained
from perceiver.runtime.summary import console
from perceiver.training.build import Parts, build
from perceiver.training.checkpoint import read_checkpoint
from perceiver.training.trust import check_trust
from scripts.malformed_archives import CHECKPOINT, FOLDER, TAR_SAMPLE, TAR_WHOLE
from scripts.malformed_faults import IMAGE, JSON, PICKLE, SOUND, TABLE, TEXT, WHOLE_FILE
from scripts.malformed_trees import WRITERS, Tree

MOST_MEMORY, MOST_SECONDS = 2 * 2**30, 20.0
MARKER = "MARKER"
"""What a payload makes in the working directory."""
QUIET = ("logger=none", "loader.batch_size=7", "loader.num_workers=0")
OF_FOLDERS = ("image_folder", "audio_folder")


@dataclass(frozen=True)
class Case:
    """One thing that is spoiled.

    Attributes:
        number: with the seed it decides all that is random.
        subject: a data set, or what else is read.
        fault: its name.
        one: whether it hits one sample alone.
    """

    number: int
    subject: str
    fault: str
    one: bool

    def random(self, seed: int) -> Random:
        return Random(f"{seed}/{self.number}")


@dataclass(frozen=True)
class Spoiled:
    """A tree, and what must be named in every error."""

    tree: Tree
    named: str
    """Part of a path, or of the name of a member."""


def faults_of(subject: str, tree: Tree) -> dict[str, tuple[bool, Callable[[Tree, Random], str]]]:
    """Name of each fault that a data set can have -> whether it hits one sample, and what makes it and names it."""
    found: dict[str, tuple[bool, Callable[[Tree, Random], str]]] = {}

    def file(name: str, one: bool, paths: str, spoil: Callable[[Path, Random], None]) -> None:
        def make(tree: Tree, random: Random) -> str:
            path = random.choice(getattr(tree, paths))
            spoil(path, random)
            return path.name

        found[name] = (one, make)

    def table(
        name: str, fits: Callable[[Any], bool], spoil: Callable[[Any, Random], None], *, one: bool = False
    ) -> None:
        def make(tree: Tree, random: Random) -> str:
            chosen = random.choice([table for table in tree.tables if fits(table)])
            spoil(chosen, random)
            return chosen.path.name

        if any(map(fits, tree.tables)):
            found[name] = (one, make)

    for paths, faults in (("images", IMAGE), ("sounds", SOUND)):
        for name, spoil in faults.items() if getattr(tree, paths) else ():
            # A folder in a class folder is one more to look into, and clips of AudioSet are seldom all there.
            if not (subject in (*OF_FOLDERS, "audioset") and name == "a folder instead"):
                file(name, True, paths, spoil)
    for name, spoil in WHOLE_FILE.items():
        texts = ("csv", "json", "lines") if "UTF" in name else ("csv", "json", "lines", "pickle")
        # A partial copy of CIFAR is one, too.
        kinds = [kind for kind in texts if not (kind == "pickle" and name == "a link to nowhere")]
        table(f"table: {name}", lambda t, kinds=kinds: t.kind in kinds, lambda t, r, s=spoil: s(t.path, r))
    for name, (fits, spoil_table) in TABLE.items():
        table(f"table: {name}", lambda t, fits=fits: t.kind in ("csv", "lines") and fits(t), spoil_table)
    for kind, of_kind, one in (
        *(("json", JSON, False), ("pickle", PICKLE, False)),
        *(("tar", TAR_WHOLE, False), ("tar", TAR_SAMPLE, True)),
    ):
        for name, spoil_table in of_kind.items():
            table(f"{kind}: {name}", lambda t, kind=kind: t.kind == kind, spoil_table, one=one)
    for name, spoil_tree in FOLDER.items() if subject in OF_FOLDERS else ():
        found[f"folders: {name}"] = (False, lambda tree, random, s=spoil_tree: s(tree, random).name)
    return found


PREDICTED = {"image_folder": ("images", IMAGE), "audio_folder": ("sounds", SOUND), "text_pairs": ("texts", TEXT)}


def all_cases(seed: int, count: int) -> list[Case]:
    """As many cases as are wanted, no fault a second time before all have come once."""
    kinds: list[tuple[str, str, bool]] = [("checkpoint", name, False) for name in CHECKPOINT]
    with tempfile.TemporaryDirectory() as folder:
        for subject, (write, _) in WRITERS.items():
            tree = Tree(Path(folder) / subject)
            write(tree)
            kinds += [(subject, name, one) for name, (one, _) in faults_of(subject, tree).items()]
    kinds += [(f"{subject}.read", name, True) for subject, (_, faults) in PREDICTED.items() for name in faults]
    random = Random(seed)
    chosen: list[tuple[str, str, bool]] = []
    while len(chosen) < count:
        chosen += random.sample(kinds, len(kinds))
    return [Case(number, *kind) for number, kind in enumerate(chosen[:count])]


class Trial:
    """Tries cases.

    Args:
        seed: of all of them.
        configs: subject -> its config, without a root.
    """

    def __init__(self, seed: int, configs: dict[str, DictConfig], checkpoint: Path) -> None:
        self.seed = seed
        self.configs = configs
        self.checkpoint = checkpoint

    def __call__(self, case: Case, folder: Path) -> list[str]:
        """What was said, in a process of its own that may die of it.

        Raises:
            AssertionError: it ended in another way than it must.
        """
        os.chdir(folder)
        if case.subject == "checkpoint":
            path = folder / "x.ckpt"
            shutil.copyfile(self.checkpoint, path)
            CHECKPOINT[case.fault](path, case.random(self.seed))
            return [refused(lambda: check_trust(read_checkpoint(path).config, (), path), path.name)]
        if case.subject.endswith(".read"):
            return [self.read(case, folder)]
        return [self.trained_on(case, folder / mode, mode) for mode in ("raise", "skip")]

    def read(self, case: Case, folder: Path) -> str:
        """What is said of a file that a user hands in."""
        subject = case.subject.removesuffix(".read")
        tree = Tree(folder)
        WRITERS[subject][0](tree)
        parts = self.built(subject, tree)
        paths, faults = PREDICTED[subject]
        path = getattr(tree, paths)[0]
        faults[case.fault](path, case.random(self.seed))
        return refused(lambda: parts.data.dataset.read(path), path.name, UnreadableError)

    def trained_on(self, case: Case, folder: Path, mode: str) -> str:
        """What is said by a run that reads each sample once."""
        random = case.random(self.seed)
        tree = Tree(folder)
        WRITERS[case.subject][0](tree)
        _, spoil = faults_of(case.subject, tree)[case.fault]
        named = spoil(tree, random)

        def run() -> list[str]:
            parts = self.built(case.subject, tree, mode)
            loaders = (parts.data.train_dataloader(), parts.data.val_dataloader(), parts.data.test_dataloader())
            for batch in (batch for loader in loaders for batch in loader):
                parts.data.on_before_batch_transfer(batch, 0)
            return list(parts.data.unreadable)

        if not (case.one and mode == "skip"):
            return refused(run, named)
        left_out = run()
        assert len(left_out) == 1, f"skip: left out {left_out or 'nothing'}"
        check_sentence(left_out[0], named)
        return f"left out: {left_out[0]}"

    def built(self, subject: str, tree: Tree, mode: str = "raise") -> Parts:
        config = OmegaConf.create(self.configs[subject])
        OmegaConf.update(config, "data.source.root", str(tree.root))
        config.data.on_error = mode
        return build(resolved(config))


def refused(
    action: Callable[[], Any], named: str, kinds: type[Exception] | tuple[type[Exception], ...] = USER_ERRORS
) -> str:
    """The sentence in which an action ends."""
    try:
        accepted = action()
    except kinds as error:
        sentence = explain(error)
        check_sentence(sentence, named)
        return sentence
    raise AssertionError(f"accepted, without a word: {str(accepted)[:80]}")


def check_sentence(sentence: str, named: str) -> None:
    assert named in sentence, f"does not name {named}: {sentence}"
    assert len(sentence) < 1000, f"is no sentence: {len(sentence)} characters"
    assert "\n" not in sentence.strip(), f"is no sentence: {sentence!r}"


def in_child(trial: Trial, case: Case, folder: Path, to_parent: Connection) -> None:
    """Try a case and tell how it ended; never returns."""
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    with open(os.devnull, "w") as nowhere:  # libraries write there what they think of a file
        os.dup2(nowhere.fileno(), 2)
    try:
        to_parent.send((True, trial(case, folder)))
    except AssertionError as error:
        to_parent.send((False, [str(error)]))
    except BaseException as error:
        to_parent.send((False, [f"{type(error).__name__}: {str(error)[:300]}"]))
    to_parent.close()
    os._exit(0)


def memory_of(process: int) -> int:
    """Bytes that a process holds."""
    try:
        return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0


class Watched:
    """A case in a process of its own."""

    def __init__(self, trial: Trial, case: Case) -> None:
        self.case = case
        self.folder = Path(tempfile.mkdtemp(prefix="malformed-"))
        self.receiver, sender = multiprocessing.Pipe(duplex=False)
        self.began, self.at_first = time.monotonic(), memory_of(os.getpid())
        self.process = os.fork()
        if self.process == 0:
            in_child(trial, case, self.folder, sender)
        sender.close()

    def ended(self) -> tuple[bool, list[str]] | None:
        """Whether it went as it must, and what was said; None while it goes on."""
        outcome: tuple[bool, list[str]] | None = None
        if self.receiver.poll():
            try:
                outcome = self.receiver.recv()
            except EOFError:
                outcome = False, ["the process died"]
        elif memory_of(self.process) - self.at_first > MOST_MEMORY:
            outcome = False, [f"took more than {MOST_MEMORY / 2**30:g} GB"]
        elif time.monotonic() - self.began > MOST_SECONDS:
            outcome = False, [f"took more than {MOST_SECONDS:g} s"]
        if outcome is None:
            return None
        os.kill(self.process, signal.SIGKILL)
        os.waitpid(self.process, 0)
        self.receiver.close()
        if any(self.folder.rglob(MARKER)):
            outcome = False, ["ran what the file holds"]
        shutil.rmtree(self.folder, ignore_errors=True)
        return outcome


def outcomes(trial: Trial, cases: list[Case], processes: int) -> Iterator[tuple[Case, bool, list[str]]]:
    """How each case ended."""
    waiting, running = list(reversed(cases)), list[Watched]()
    while waiting or running:
        while waiting and len(running) < processes:
            running.append(Watched(trial, waiting.pop()))
        for watched in list(running):
            outcome = watched.ended()
            if outcome is not None:
                running.remove(watched)
                yield watched.case, *outcome
        time.sleep(0.005)


def whole_checkpoint(config: DictConfig, path: Path) -> None:
    """A checkpoint as a run writes it, as far as it is read again."""
    parts = build(resolved(config))
    content = {"state_dict": parts.module.state_dict(), "global_step": 7, "epoch": 1}
    content["description"] = parts.module.description
    torch.save(content, path)
    check_trust(read_checkpoint(path).config, (), path)


@explained
@command_line
@hydra.main(version_base="1.3", config_path="../conf", config_name="malformed_inputs")
@explained
def main(cfg: DictConfig) -> None:
    for name, least in (("seed", 0), ("count", 1), ("processes", 1)):
        if not isinstance(cfg[name], int) or cfg[name] < least:
            raise ConfigError(f"{name}={cfg[name]}: must be a whole number from {least} on")
    configs = {
        subject: compose("train", overrides=[*QUIET, *overrides, "data.source.root=."])
        for subject, (_, overrides) in WRITERS.items()
    }
    cases = all_cases(cfg.seed, cfg.count)
    if cfg.case is not None:
        cases = [case for case in cases if case.number == cfg.case]
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="malformed-") as folder:
        checkpoint = Path(folder) / "whole.ckpt"
        whole_checkpoint(compose("train", overrides=list(QUIET)), checkpoint)
        trial = Trial(cfg.seed, configs, checkpoint)
        ended = sorted(
            outcomes(trial, cases, cfg.processes), key=lambda outcome: (outcome[0].subject, outcome[0].fault)
        )
    table = RichTable("case", "data", "fault", "what was said")
    counts: Counter[str] = Counter()
    failures: list[str] = []
    for case, good, said in ended:
        text = said[-1].replace(tempfile.gettempdir(), "")
        table.add_row(str(case.number), case.subject, case.fault, text[:160] if good else "FAILED, see below")
        failures += [] if good else [f"case={case.number}: {case.subject}: {case.fault}: {text}"]
        counts["as it must be" if good else "failed"] += 1
        counts["left out and named"] += good and text.startswith("left out")
    console.print(table)
    for failure in failures:
        console.print(failure, soft_wrap=True, markup=False)
    totals = ", ".join(f"{counts[name]} {name}" for name in ("as it must be", "left out and named", "failed"))
    console.print(f"seed {cfg.seed}: {len(ended)} cases: {totals}; {time.monotonic() - began:.0f} s", soft_wrap=True)
    if counts["failed"]:
        sys.exit(1)


if __name__ == "__main__":
    main()
