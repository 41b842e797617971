"""Cases of `scripts/malformed_inputs.py`: which there are, and what each must end in, in a process of its own."""

import logging
import multiprocessing
import os
import shutil
import signal
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from random import Random
from typing import Any, TypeAlias

import torch
from omegaconf import DictConfig, OmegaConf

from perceiver.data.files import UnreadableError
from perceiver.runtime.config import resolved
from perceiver.runtime.errors import explain, is_user_error
from perceiver.training.build import Parts, build
from perceiver.training.checkpoint import read_checkpoint
from perceiver.training.trust import check_trust
from scripts.data_trees import DATA_SETS, Table, Tree
from scripts.malformed_faults import (
    CHECKPOINT,
    FLOW,
    FOLDER,
    IMAGE,
    JSON,
    MARKER,
    PICKLE,
    SOUND,
    TABLE,
    TAR_SAMPLE,
    TAR_WHOLE,
    TEXT,
    WHOLE_TABLE,
    Spoil,
    SpoilTable,
)

MAX_MEMORY, MAX_SECONDS = 2 * 2**30, 20.0
CLASS_FOLDERS = ("image_folder", "audio_folder")
PREDICTED = {"image_folder": ("images", IMAGE), "audio_folder": ("sounds", SOUND), "text_pairs": ("texts", TEXT)}


@dataclass(frozen=True)
class Case:
    """One fault.

    Attributes:
        number: determines, with the seed, all that is random.
        subject: a data set, `checkpoint`, or a data set whose files are predicted (`image_folder.read`).
        fault: its name.
        is_single: whether it affects one sample only.
    """

    number: int
    subject: str
    fault: str
    is_single: bool

    def random(self, seed: int) -> Random:
        return Random(f"{seed}/{self.number}")


Fault: TypeAlias = tuple[bool, Callable[[Tree, Random], str]]
"""Whether a fault affects one sample only, and a function that inserts it and returns the name of the faulty file."""


def faults_of(subject: str, tree: Tree) -> dict[str, Fault]:
    """Return all faults that a data set can have, by name."""
    found: dict[str, Fault] = {}

    def add_file(name: str, kind: str, spoil: Spoil) -> None:
        def insert(tree: Tree, random: Random) -> str:
            path = random.choice(getattr(tree, kind))
            spoil(path, random)
            return path.name

        if getattr(tree, kind):
            found[f"flow: {name}" if kind == "flows" else name] = (True, insert)

    def add_table(name: str, fits: Callable[[Table], bool], spoil: SpoilTable, *, is_single: bool = False) -> None:
        def insert(tree: Tree, random: Random) -> str:
            table = random.choice([table for table in tree.tables if fits(table)])
            spoil(table, random)
            return table.path.name

        if any(map(fits, tree.tables)):
            found[name] = (is_single, insert)

    for file_kind, faults in (("images", IMAGE), ("sounds", SOUND), ("flows", FLOW)):
        for name, spoil in faults.items():
            # A folder in a class folder is valid, and clips of AudioSet may be missing.
            if not (subject in (*CLASS_FOLDERS, "audioset") and name == "a folder"):
                add_file(name, file_kind, spoil)
    for name, spoil in WHOLE_TABLE.items():
        kinds = ["csv", "json", "lines"]
        if "UTF" not in name and name != "a dangling link":  # a partial copy of CIFAR is valid
            kinds.append("pickle")
        add_table(f"table: {name}", lambda t, kinds=kinds: t.kind in kinds, lambda t, r, s=spoil: s(t.path, r))
    for name, (fits, spoil_table) in TABLE.items():
        add_table(f"table: {name}", lambda t, fits=fits: t.kind in ("csv", "lines") and fits(t), spoil_table)
    for kind, table_faults in (("json", JSON), ("pickle", PICKLE), ("tar", TAR_WHOLE), ("tar", TAR_SAMPLE)):
        for name, spoil_table in table_faults.items():
            is_single = table_faults is TAR_SAMPLE
            label = f"{kind} sample: {name}" if is_single else f"{kind}: {name}"
            add_table(label, lambda t, kind=kind: t.kind == kind, spoil_table, is_single=is_single)
    for name, spoil_tree in FOLDER.items() if subject in CLASS_FOLDERS else ():
        found[f"folders: {name}"] = (False, lambda tree, random, spoil=spoil_tree: spoil(tree, random).name)
    return found


def all_cases(seed: int, count: int) -> list[Case]:
    """Return a number of cases; a fault is repeated only after all others have occurred."""
    kinds: list[tuple[str, str, bool]] = [("checkpoint", name, False) for name in CHECKPOINT]
    with tempfile.TemporaryDirectory() as folder:
        for subject, (write, _) in DATA_SETS.items():
            faults = faults_of(subject, write(Path(folder) / subject))
            kinds += [(subject, name, is_single) for name, (is_single, _) in faults.items()]
    kinds += [(f"{subject}.read", name, True) for subject, (_, faults) in PREDICTED.items() for name in faults]
    random = Random(seed)
    selected: list[tuple[str, str, bool]] = []
    while len(selected) < count:
        selected += random.sample(kinds, len(kinds))
    return [Case(number, *kind) for number, kind in enumerate(selected[:count])]


class Trial:
    """Runs cases.

    Args:
        seed: of all of them.
        configs: subject -> its config, without a root.
        checkpoint: a valid one.
    """

    def __init__(self, seed: int, configs: dict[str, DictConfig], checkpoint: Path) -> None:
        self.seed = seed
        self.configs = configs
        self.checkpoint = checkpoint

    def __call__(self, case: Case, folder: Path) -> list[str]:
        """Return the messages of a case; called in a process of its own.

        Raises:
            AssertionError: the case fails.
        """
        os.chdir(folder)
        if case.subject == "checkpoint":
            path = folder / "x.ckpt"
            shutil.copyfile(self.checkpoint, path)
            CHECKPOINT[case.fault](path, case.random(self.seed))
            return [message_of(lambda: check_trust(read_checkpoint(path).config, (), path), path.name)]
        if case.subject.endswith(".read"):
            return [self.read(case, folder)]
        return [self.train(case, folder / mode, mode) for mode in ("raise", "skip")]

    def read(self, case: Case, folder: Path) -> str:
        """Return the message about a file that is predicted."""
        subject = case.subject.removesuffix(".read")
        tree = DATA_SETS[subject][0](folder)
        parts = self.build(subject, tree)
        paths, faults = PREDICTED[subject]
        path = getattr(tree, paths)[0]
        faults[case.fault](path, case.random(self.seed))
        return message_of(lambda: parts.data.dataset.read(path), path.name, UnreadableError)

    def train(self, case: Case, folder: Path, mode: str) -> str:
        """Return the message of a run that reads each sample once."""
        random = case.random(self.seed)
        tree = DATA_SETS[case.subject][0](folder)
        _, spoil = faults_of(case.subject, tree)[case.fault]
        named = spoil(tree, random)

        def run() -> list[str]:
            parts = self.build(case.subject, tree, mode)
            loaders = (parts.data.train_dataloader(), parts.data.val_dataloader(), parts.data.test_dataloader())
            for batch in (batch for loader in loaders for batch in loader):
                parts.data.report_unreadable(batch)
            return list(parts.data.unreadable)

        if not (case.is_single and mode == "skip"):
            return message_of(run, named)
        left_out = run()
        assert len(left_out) == 1, f"skip: left out {left_out or 'nothing'}"
        check_sentence(left_out[0], named)
        return f"left out: {left_out[0]}"

    def build(self, subject: str, tree: Tree, mode: str = "raise") -> Parts:
        config = OmegaConf.create(self.configs[subject])
        OmegaConf.update(config, "data.source.root", str(tree.root))
        config.data.on_error = mode
        return build(resolved(config))


def message_of(
    action: Callable[[], Any], named: str, kinds: type[Exception] | tuple[type[Exception], ...] | None = None
) -> str:
    """Return the message of the error that an action must raise, of the given kinds or any that a user can correct."""
    try:
        accepted = action()
    except Exception as error:
        if not (is_user_error(error) if kinds is None else isinstance(error, kinds)):
            raise
        sentence = explain(error)
        check_sentence(sentence, named)
        return sentence
    raise AssertionError(f"no error: {str(accepted)[:80]}")


def check_sentence(sentence: str, named: str) -> None:
    assert named in sentence, f"does not name {named}: {sentence}"
    assert len(sentence) < 1000, f"has {len(sentence)} characters"
    assert "\n" not in sentence.strip(), f"is not one sentence: {sentence!r}"


def in_child(trial: Trial, case: Case, folder: Path, to_parent: Connection) -> None:
    """Run a case and send its outcome; never returns."""
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    with open(os.devnull, "w") as nowhere:  # libraries write warnings there
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
    """Return the memory of a process in bytes."""
    try:
        return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0


class CaseProcess:
    """A case in a process of its own."""

    def __init__(self, trial: Trial, case: Case) -> None:
        self.case = case
        self.folder = Path(tempfile.mkdtemp(prefix="malformed-"))
        self.receiver, sender = multiprocessing.Pipe(duplex=False)
        self.start, self.start_memory = time.monotonic(), memory_of(os.getpid())
        self.process = os.fork()
        if self.process == 0:
            in_child(trial, case, self.folder, sender)
        sender.close()

    def outcome(self) -> tuple[bool, list[str]] | None:
        """Return whether the case passed, and its messages; None while it is running."""
        outcome: tuple[bool, list[str]] | None = None
        if self.receiver.poll():
            try:
                outcome = self.receiver.recv()
            except EOFError:
                outcome = False, ["the process died"]
        elif memory_of(self.process) - self.start_memory > MAX_MEMORY:
            outcome = False, [f"used more than {MAX_MEMORY / 2**30:g} GB"]
        elif time.monotonic() - self.start > MAX_SECONDS:
            outcome = False, [f"took more than {MAX_SECONDS:g} s"]
        if outcome is None:
            return None
        os.kill(self.process, signal.SIGKILL)
        os.waitpid(self.process, 0)
        self.receiver.close()
        if any(self.folder.rglob(MARKER)):
            outcome = False, ["executed the content of the file"]
        shutil.rmtree(self.folder, ignore_errors=True)
        return outcome


def outcomes(trial: Trial, cases: list[Case], processes: int) -> Iterator[tuple[Case, bool, list[str]]]:
    """Yield the outcome of each case."""
    waiting, running = list(reversed(cases)), list[CaseProcess]()
    while waiting or running:
        while waiting and len(running) < processes:
            running.append(CaseProcess(trial, waiting.pop()))
        for process in list(running):
            outcome = process.outcome()
            if outcome is not None:
                running.remove(process)
                yield process.case, *outcome
        time.sleep(0.005)


def write_checkpoint(config: DictConfig, path: Path) -> None:
    """Write a checkpoint with the content that is read again."""
    parts = build(resolved(config))
    content = {"state_dict": parts.module.state_dict(), "global_step": 7, "epoch": 1}
    later = {"interpolations": {}, "trained_on": torch.zeros(0, dtype=torch.int64)}
    content["description"] = parts.module.description | later
    torch.save(content, path)
    check_trust(read_checkpoint(path).config, (), path)
