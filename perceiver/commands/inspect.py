"""The attention explorer of finished runs, on their own samples or on a user's files."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig

from perceiver.commands.finished_run import FinishedRun, check_writable, load
from perceiver.commands.predict import files_among, named, to_accelerator
from perceiver.commands.train import prepare_torch
from perceiver.data.collate import collate
from perceiver.data.files import UnreadableError
from perceiver.inspection.arrays import event_arrays, scored, write_arrays
from perceiver.inspection.capture import pictures_of, sounds_of
from perceiver.inspection.explanation import Explainer, Explanation, in_parts
from perceiver.inspection.explorer.media import Media, samples_of, texts_of
from perceiver.inspection.explorer.page import (
    MOST_LOOKS,
    MOST_VALUES,
    PAGE,
    Event,
    evenly_spread,
    event_of,
    events_in,
    page_of,
    write_page,
)
from perceiver.inspection.faithfulness import faithfulness, together
from perceiver.inspection.localization import localization, mean_scores
from perceiver.inspection.report import report
from perceiver.runtime.errors import ConfigError, one_line
from perceiver.runtime.summary import console
from perceiver.types import Batch

MOST_WINDOWS = 32
"""Of a user's sound that are looked at: each is a sample of the page."""


@dataclass(frozen=True)
class Subject:
    """A run that is looked at.

    Attributes:
        name: as it is shown.
        folder: of the run.
        finished: the run at the checkpoint.
        explainer: looks at it.
    """

    name: str
    folder: Path
    finished: FinishedRun
    explainer: Explainer


def inspect_attention(cfg: DictConfig) -> Path:
    """Look at a run's checkpoint: tables, the explorer, and the exact maps beside it.

    Returns:
        The page.

    Raises:
        ConfigError: a setting is wrong, or two runs cannot be compared.
        UnreadableError: some files could not be read; raised after all others have been looked at.
    """
    subjects = [subject(cfg, "run", "checkpoint", cfg.overrides)]
    if cfg.compare is not None:
        subjects.append(compared(cfg, subjects[0]))
    first, paths = subjects[0], named(cfg.inputs or [])
    paths = list(dict.fromkeys(files_among(paths, first.finished.parts.data.dataset.file_endings)))
    prepare_torch(first.finished.config)
    batch, unreadable = files(first, paths) if paths else (probe(first, cfg.samples, "samples"), [])
    # Of a user's own files it is them that are tested: they may be unlike anything the model was trained on.
    tested = batch if paths else probe(first, cfg.scored_samples or 0, "scored_samples")
    output = page_path(cfg, first.folder)
    alone = not paths and len(subjects) == 1
    samples: list[dict[str, Any]] = []
    runs: dict[str, list[Event]] = {}
    explained: list[Event] = []
    written: list[Path] = []
    for one in subjects:
        with blamed_on_comparison(cfg, one is not first):
            if one is not first:
                check_reads_alike(first, one, batch)
            explanation = one.explainer.explain(as_known_to(one, first, batch))
            arrays = measured(one, explanation, as_known_to(one, first, tested))
        samples = samples or samples_of(
            batch, explanation.record.spans, media_of(one, batch), one.explainer.class_names
        )
        written.append(output.with_name(f"{output.stem}{'' if one is first else '_compared'}.npz"))
        write_arrays(written[-1], arrays)
        num_looks = MOST_LOOKS if alone else len(subjects)
        now = event_of(arrays, most_values=MOST_VALUES // num_looks, name=f"{one.name} · step {one.finished.step}")
        explained.append(now)
        before = events_in(one.folder / "attention", num_shown=MOST_LOOKS - 1 if alone else 0)
        others = [event for event in before if event.step != now.step]
        runs[one.name] = sorted([*others, now], key=lambda event: event.step)
        console.print(*report(one.name, explanation, arrays, num_tested=len(tested)), sep="\n")
    write_page(output, page_of(" against ".join(runs), samples, runs, opened=explained))
    console.print(f"exact maps: {' and '.join(map(str, written))}", soft_wrap=True)
    console.print(f"open {output} in a browser", soft_wrap=True)
    if unreadable:
        raise UnreadableError("; ".join(unreadable))
    return output


def subject(cfg: DictConfig, key: str, checkpoint_key: str, overrides: Sequence[str]) -> Subject:
    """A run at one of its checkpoints, as the config names them, ready to be looked at.

    Raises:
        ConfigError: there is no such run or checkpoint.
    """
    finished = load(str(cfg[key]), cfg[checkpoint_key], overrides, cfg.trusted, keys=(key, checkpoint_key))
    to_accelerator(finished.parts)
    explainer = finished.parts.explainer(finished.config["attention"]["rollout_alpha"])
    folder = finished.output_dir
    name = f"{'/'.join(folder.absolute().parts[-2:])} ({finished.checkpoint.stem})"
    return Subject(name, folder, finished, explainer)


def compared(cfg: DictConfig, first: Subject) -> Subject:
    """The run that the first one is compared with.

    Raises:
        ConfigError: it is the same checkpoint, or one that reads other modalities.
    """
    second = subject(cfg, "compare", "compare_checkpoint", ())
    ours, theirs = first.finished.checkpoint, second.finished.checkpoint
    if theirs.resolve() == ours.resolve():
        problem = "the same checkpoint of the same run; choose another compare_checkpoint"
        raise ConfigError(f"compare={cfg.compare}, compare_checkpoint={theirs.stem}: {problem}")
    reads, wanted = (", ".join(sorted(one.explainer.model.encoders)) for one in (second, first))
    if reads != wanted:
        raise ConfigError(f"compare={cfg.compare}: its model reads {reads}, that of run reads {wanted}")
    if second.name == first.name:
        second = replace(second, name=f"{second.folder.absolute()} ({theirs.stem})")
    return second


def check_reads_alike(first: Subject, second: Subject, batch: Batch) -> None:
    """Refuse samples whose numbers mean something else to the second run.

    Raises:
        ValueError: sounds of another rate, or texts of another vocabulary.
    """
    ours, theirs = media_of(first, batch), media_of(second, batch)
    for name, sound in ours.sounds.items():
        other = theirs.sounds.get(name)
        if other is not None and other.sample_rate != sound.sample_rate:
            raise ValueError(f"its {name} has {other.sample_rate} Hz and not {sound.sample_rate}")
    if ours.texts != theirs.texts:
        raise ValueError("its tokenizer has another vocabulary")


def as_known_to(one: Subject, of: Subject, batch: Batch) -> Batch:
    """Samples of one run without what speaks of its classes, where those of the other run are not the same."""
    if one.explainer.class_names == of.explainer.class_names:
        return batch
    return replace(batch, targets={name: values for name, values in batch.targets.items() if name != "boxes"})


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


def page_path(cfg: DictConfig, run: Path) -> Path:
    """Where the page is written, in a folder that is made if need be; that of a run by itself replaces its training's.

    Raises:
        ConfigError: nothing can be written there.
    """
    name = "inputs.html" if cfg.inputs else PAGE if cfg.compare is None else "comparison.html"
    output = run / "attention" / name if cfg.output is None else Path(str(cfg.output))
    if output.suffix not in (".html", ".htm") or output.is_dir():
        raise ConfigError(f"output={output}: must be a file whose name ends in .html")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"output={output}: its folder cannot be made ({error.strerror})") from error
    check_writable(output.parent)
    return output


def probe(of: Subject, samples: Any, key: str) -> Batch:
    """Samples of a run's validation set.

    Args:
        of: the run.
        samples: how many, or a list of their numbers; None for as many as the training has looked at.
        key: of the setting, which may be 0 for those that are tested.

    Raises:
        ConfigError: they are not there, or `samples` is no choice of any.
        UnreadableError: none of them can be read.
    """
    config, data = of.finished.config, of.finished.parts.data
    chosen = config["attention"]["num_samples"] if samples is None else samples
    least = 0 if key == "scored_samples" else 1
    if not is_choice(chosen, least):
        raise ConfigError(f"{key}={samples}: must be how many samples, from {least} on, or a list of different numbers")
    if chosen == 0:
        return collate([])
    of.finished.check_data(data.probe_stage, allow_trained=True)
    try:
        found = data.probe(chosen)
    except ValueError as error:
        raise ConfigError(f"{key}={samples}: {error}") from error
    if not len(found):
        raise UnreadableError("; ".join(found.unreadable))
    return found.to(of.finished.parts.module.device)


def is_choice(chosen: Any, least: int) -> bool:
    """Whether it says how many samples, at least so many, or lists the numbers of some, each once."""
    if isinstance(chosen, Sequence) and not isinstance(chosen, str):
        return len(chosen) > 0 and all(type(one) is int for one in chosen) and len(set(chosen)) == len(chosen)
    return type(chosen) is int and chosen >= least


def files(of: Subject, paths: Sequence[Path]) -> tuple[Batch, list[str]]:
    """A user's files, of long sounds each window or as many as a page has room for, and what cannot be read and why.

    Raises:
        UnreadableError: none can.
    """
    samples, unreadable = [], []
    for path in paths:
        try:
            windows = of.finished.parts.data.dataset.read(path).split()
        except UnreadableError as error:
            unreadable.append(str(error))
            continue
        chosen = evenly_spread(len(windows), MOST_WINDOWS)
        if len(chosen) < len(windows):
            console.print(f"{path}: {len(chosen)} of {len(windows)} windows are looked at", soft_wrap=True)
        samples += [windows[place] for place in chosen]
    if not samples:
        raise UnreadableError("; ".join(unreadable))
    return collate(samples).to(of.finished.parts.module.device), unreadable


def measured(of: Subject, explanation: Explanation, tested: Batch) -> dict[str, np.ndarray]:
    """The arrays of a look, with statistics, and what testing its maps on some samples gave."""
    finished, explainer = of.finished, of.explainer
    arrays = event_arrays(explanation, max_megabytes=finished.config["attention"]["max_megabytes"])
    arrays |= {"step": np.array(finished.step), "epoch": np.array(finished.epoch)}
    scores = explanation.statistics
    if len(tested):
        found, results = [], []
        for _, part in in_parts(tested, finished.parts.data.batch_size):
            seen = (
                explanation
                if len(part) == len(explanation.batch) and part.ids == explanation.batch.ids
                else explainer.explain(part)
            )
            found.append(localization(seen))
            results.append(faithfulness(explainer, seen, seed=0))
        result = together(results)
        scores |= mean_scores(found) | result.scores
        arrays["deletion"] = np.array(json.dumps(result.summary))
    return scored(arrays, scores)


def media_of(of: Subject, batch: Batch) -> Media:
    """What there is to see, hear and read of samples."""
    model, dataset = of.explainer.model, of.finished.parts.data.dataset
    return Media(pictures_of(model, batch.inputs), sounds_of(model, batch.inputs), texts_of(batch, dataset.pieces))
