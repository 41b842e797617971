"""The attention explorer of finished runs, on their own samples or on a user's files."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig

from perceiver.data.base import UnreadableError
from perceiver.data.collate import collate
from perceiver.inspection.arrays import event_arrays, scored, write_arrays
from perceiver.inspection.capture import pictures_of, sounds_of
from perceiver.inspection.deletion import together
from perceiver.inspection.explorer import MOST_LOOKS, MOST_VALUES, PAGE, Event, event_of, events_in, page_of, write_page
from perceiver.inspection.look import Look, Observer, in_parts
from perceiver.inspection.media import Media, samples_of, texts_of
from perceiver.inspection.terminal import report
from perceiver.inspection.truth import mean_scores
from perceiver.training.build import blamed_on
from perceiver.training.errors import ConfigError, one_line
from perceiver.training.finished import Finished, load
from perceiver.training.prediction import files_of, to_accelerator
from perceiver.training.run import prepare_torch
from perceiver.training.summary import console
from perceiver.types import Batch


@dataclass(frozen=True)
class Subject:
    """A run that is looked at.

    Attributes:
        name: as it is shown.
        folder: of its looks.
        finished: the run at the checkpoint.
        observer: looks at it.
    """

    name: str
    folder: Path
    finished: Finished
    observer: Observer


def inspect_attention(cfg: DictConfig) -> Path:
    """Look at a run's checkpoint: tables, the explorer, and the exact maps beside it.

    Returns:
        The page.

    Raises:
        ConfigError: a setting is wrong, or two runs cannot be compared.
        UnreadableError: some files could not be read; raised after all others have been looked at.
    """
    subjects = [subject(cfg.run, cfg.checkpoint, cfg.overrides)]
    if cfg.compare is not None:
        subjects.append(subject(cfg.compare, cfg.compare_checkpoint, ()))
        check_comparable(*subjects)
    first, paths = subjects[0], files_of(cfg.inputs)
    prepare_torch(first.finished.config)
    batch, unreadable = files(first, paths) if paths else (probe(first, cfg.samples, "samples"), [])
    # Of a user's own files it is them that are tested: they may be unlike anything the model was trained on.
    tested = batch if paths else probe(first, cfg.scored_samples, "scored_samples") if cfg.scored_samples else None
    output = Path(cfg.output) if cfg.output else first.folder / page_name(cfg)
    output.parent.mkdir(parents=True, exist_ok=True)
    alone = not paths and len(subjects) == 1
    samples: list[dict[str, Any]] = []
    runs: dict[str, list[Event]] = {}
    for one in subjects:
        with blamed_on_comparison(cfg, one is not first):
            look = one.observer.look(batch)
            arrays = measured(one, look, tested)
        samples = samples or samples_of(batch, look.record.spans, media_of(one, batch), one.observer.class_names)
        write_arrays(output.with_name(f"{output.stem}{'' if one is first else '_compared'}.npz"), arrays)
        num_looks = MOST_LOOKS if alone else len(subjects)
        now = event_of(arrays, most_values=MOST_VALUES // num_looks, name=f"{one.name} · step {one.finished.step}")
        before = events_in(one.folder, num_shown=MOST_LOOKS - 1 if alone else 0)
        others = [event for event in before if event.step != now.step]
        runs[one.name] = sorted([*others, now], key=lambda event: event.step)
        console.print(*report(one.name, look, arrays), sep="\n")
    write_page(output, page_of(" against ".join(runs), samples, runs))
    console.print(f"open {output} in a browser", soft_wrap=True)
    if unreadable:
        raise UnreadableError("; ".join(unreadable))
    return output


@contextmanager
def blamed_on_comparison(cfg: DictConfig, is_compared: bool) -> Iterator[None]:
    """What a compared run cannot do with the samples of the other becomes an error that names both.

    Raises:
        ConfigError: in place of what the run raised.
    """
    try:
        yield
    except (ValueError, RuntimeError) as error:
        if not is_compared:
            raise
        problem = f"it cannot look at samples of run={cfg.run} ({one_line(error)})"
        raise ConfigError(f"compare={cfg.compare}: {problem}") from error


def subject(run: str, checkpoint: str, overrides: Sequence[str]) -> Subject:
    """A run at one of its checkpoints, ready to be looked at."""
    finished = load(run, checkpoint, overrides)
    to_accelerator(finished.parts)
    observer = Observer(
        model=finished.parts.model,
        task=finished.parts.task,
        class_names=finished.parts.module.description["class_names"],
        alpha=finished.config["attention"]["rollout_alpha"],
    )
    folder = Path(run)
    return Subject(f"{'/'.join(folder.absolute().parts[-2:])} ({checkpoint})", folder / "attention", finished, observer)


def page_name(cfg: DictConfig) -> str:
    """What a page is called unless it is told: that of a run by itself replaces the one its training has made."""
    if cfg.inputs:
        return "inputs.html"
    return PAGE if cfg.compare is None else "comparison.html"


def check_comparable(first: Subject, second: Subject) -> None:
    """Refuse to compare what cannot look at the same samples.

    Raises:
        ConfigError: it is the same checkpoint, or one that reads other modalities.
    """
    if first.name == second.name:
        raise ConfigError("compare: it is the same checkpoint of the same run; choose another compare_checkpoint")
    reads, wanted = (list(one.observer.model.encoders) for one in (second, first))
    if reads != wanted:
        raise ConfigError(f"compare: its model reads {reads}, that of run reads {wanted}; no sample fits both")


def probe(of: Subject, samples: int | Sequence[int] | None, key: str) -> Batch:
    """Samples of a run's validation set.

    Raises:
        ConfigError: they are not there, or `samples` is no choice of any.
    """
    config, data = of.finished.config, of.finished.parts.data
    chosen = config["attention"]["num_samples"] if samples is None else samples
    chosen = chosen if isinstance(chosen, int) else list(chosen)
    if chosen in (0, []) or not all(isinstance(one, int) for one in ([chosen] if isinstance(chosen, int) else chosen)):
        raise ConfigError(f"{key}={samples}: must be how many samples, or a list of their numbers")
    with blamed_on(config, "data"):
        data.prepare_data()
        data.splits  # noqa: B018  (what is wrong on disk is found now)
    try:
        found = data.probe(chosen)
    except ValueError as error:
        raise ConfigError(f"{key}={samples}: {error}") from error
    return found.to(of.finished.parts.module.device)


def files(of: Subject, paths: Sequence[Path]) -> tuple[Batch, list[str]]:
    """A user's files, of long sounds each window, and what is wrong with those that cannot be read.

    Raises:
        UnreadableError: none can.
    """
    views, unreadable = [], []
    for path in paths:
        try:
            views += of.finished.parts.data.dataset.read(path).split()
        except UnreadableError as error:
            unreadable.append(str(error))
    if not views:
        raise UnreadableError("; ".join(unreadable))
    return collate(views).to(of.finished.parts.module.device), unreadable


def measured(of: Subject, look: Look, tested: Batch | None) -> dict[str, np.ndarray]:
    """The arrays of a look, with statistics, and what testing its maps on some samples gave."""
    finished, observer = of.finished, of.observer
    arrays = event_arrays(look, max_megabytes=finished.config["attention"]["max_megabytes"])
    arrays |= {"step": np.array(finished.step), "epoch": np.array(finished.epoch)}
    scores = {f"stat/{name}": value for name, value in look.record.statistics(alpha=observer.alpha).items()}
    if tested is not None:
        parts = [part for _, part in in_parts(tested, finished.parts.data.batch_size)]
        scores |= mean_scores(observer.truth(part) for part in parts)
        result = together([observer.deletion(part, seed=0) for part in parts])
        if result.num_cases:
            scores |= result.scores
            arrays["deletion"] = np.array(json.dumps(result.summary))
    return scored(arrays, scores)


def media_of(of: Subject, batch: Batch) -> Media:
    """What there is to see, hear and read of samples."""
    model, dataset = of.observer.model, of.finished.parts.data.dataset
    return Media(pictures_of(model, batch.inputs), sounds_of(model, batch.inputs), texts_of(batch, dataset.pieces))
