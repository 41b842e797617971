"""Explanations of finished runs, on their own samples or on a user's files: report, event file and explorer."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from perceiver.commands.atlas import make_atlas
from perceiver.commands.finished_run import FinishedRun, check_writable, load_named
from perceiver.commands.gallery import make_gallery
from perceiver.commands.predict import input_files, named, to_accelerator
from perceiver.data.collate import collate
from perceiver.data.files import UnreadableError
from perceiver.inspection.drawing.media import texts_of
from perceiver.inspection.evaluation.evaluator import Evaluator
from perceiver.inspection.evaluation.knockout import KINDS, knock_out
from perceiver.inspection.explorer.atlas_page import ATLAS
from perceiver.inspection.explorer.events import write_arrays
from perceiver.inspection.explorer.gallery_page import GALLERY
from perceiver.inspection.explorer.page import (
    MAX_EVENTS,
    MAX_VALUES,
    PAGE,
    Event,
    evenly_spread,
    events_in,
    explorer_page,
    page_event,
    write_page,
)
from perceiver.inspection.maps.capture import input_sounds
from perceiver.inspection.maps.contrast import foil_numbers
from perceiver.inspection.maps.explainer import Explainer
from perceiver.inspection.maps.sinks import SinkCriterion
from perceiver.inspection.report import report
from perceiver.inspection.writer import ExplanationWriter, explain_in_parts
from perceiver.runtime.errors import ConfigError, one_line
from perceiver.runtime.summary import console
from perceiver.runtime.torch_settings import prepare_torch
from perceiver.training.build import config_errors
from perceiver.types import Batch, Sample

MAX_WINDOWS = 32
"""Windows of a user's sound that are explained: each is a sample of the page."""


@dataclass(frozen=True)
class Run:
    """A run that is inspected.

    Attributes:
        name: its title.
        finished: the run at the checkpoint.
        explainer: of its model.
    """

    name: str
    finished: FinishedRun
    explainer: Explainer


def inspect_attention(cfg: DictConfig) -> Path:
    """Explain the answers of a run's checkpoint, and print a report.

    Returns:
        The explorer's page; the event file with the exact maps lies beside it.

    Raises:
        ConfigError: a setting is not valid, or two runs cannot be compared.
        UnreadableError: some files could not be read; raised after all others have been explained.
    """
    runs = [load_run(cfg, "run", "checkpoint", cfg.overrides)]
    check_has_samples(cfg)
    if cfg.compare is not None:
        runs.append(load_compared(cfg, runs[0]))
    first = runs[0]
    if cfg.atlas or cfg.gallery:
        check_alone(cfg)
        prepare_torch(first.finished.config)
        make = make_atlas if cfg.atlas else make_gallery
        return make(cfg, first.name, first.finished, first.explainer, page_path(cfg, first.finished.output_dir))
    prepare_torch(first.finished.config)
    paths, batch, unreadable = chosen_samples(cfg, first)
    # A user's own files are tested themselves: they may be unlike the training data.
    tested = batch if paths else probe(first, cfg.scored_samples or 0, "scored_samples")
    evaluator = map_evaluator(cfg, len(tested))
    foil = chosen_foil(cfg, runs)
    kinds = knocked_out_kinds(cfg)
    output = page_path(cfg, first.finished.output_dir)
    is_single = not paths and len(runs) == 1
    samples: list[dict[str, Any]] = []
    events: dict[str, list[Event]] = {}
    opened: list[Event] = []
    written: list[Path] = []
    matrices: list[Path] = []
    for run in runs:
        is_first, finished, explainer = run is first, run.finished, run.explainer
        try:
            if not is_first:
                check_reads_alike(first, run, batch)
            explanation = explainer.explain(without_foreign_boxes(run, first, batch), foil=foil)
            size, foreign = finished.parts.data.batch_size, without_foreign_boxes(run, first, tested)
            parts = explain_in_parts(explainer, foreign, size, known=explanation)
            evaluation = evaluator.evaluate(explainer, parts, with_localization=True, with_faithfulness=True)
        except (ValueError, RuntimeError) as error:
            if is_first:
                raise
            problem = f"it cannot read the samples of run={cfg.run} ({one_line(error)})"
            raise ConfigError(f"compare={cfg.compare}: {problem}") from error
        knock_outs = knock_out(explainer, explanation, kinds)
        writer = ExplanationWriter.of_model(explainer, explanation, finished.parts.data.dataset.pieces)
        writer = replace(writer, knock_outs=knock_outs, sink_criterion=sink_criterion(cfg, run))
        if writer.media.versions or not samples:  # the page has the reconstructions of the last run
            samples = writer.page_samples()
        written.append(output.with_name(f"{output.stem}{'' if is_first else '_compared'}.npz"))
        arrays = writer.event(
            step=finished.step,
            epoch=finished.epoch,
            evaluation=evaluation,
            max_megabytes=finished.config["attention"]["max_megabytes"],
        )
        write_arrays(written[-1], arrays)
        max_values = MAX_VALUES // (MAX_EVENTS if is_single else len(runs))
        opened.append(page_event(arrays, max_values=max_values, name=f"{run.name} · step {finished.step}"))
        earlier = events_in(run.finished.output_dir / "attention", num_with_maps=MAX_EVENTS - 1 if is_single else 0)
        others = [event for event in earlier if event.step != finished.step]
        events[run.name] = sorted([*others, opened[-1]], key=lambda event: event.step)
        matrices += writer.write_matrices(output.with_name(f"{written[-1].stem}_alignment"))
        texts = writer.media.texts
        parts_of_report = report(
            run.name, explanation, arrays, num_tested=len(tested), texts=texts, knock_outs=knock_outs
        )
        console.print(*parts_of_report, sep="\n")
    write_page(output, explorer_page(" against ".join(events), samples, events, opened=opened))
    console.print(f"exact maps: {' and '.join(map(str, written))}", soft_wrap=True)
    if matrices:
        console.print(f"alignment matrices: {matrices[0].parent}", soft_wrap=True)
    console.print(f"open {output} in a browser", soft_wrap=True)
    if unreadable:
        raise UnreadableError("; ".join(unreadable))
    return output


def check_has_samples(cfg: DictConfig) -> None:
    """Check that there is anything to explain.

    Raises:
        ConfigError: neither files nor a data set are given for a published model.
    """
    if cfg.run is None and cfg.data is None and not cfg.inputs:
        raise ConfigError("a published model has no samples of its own; give inputs=[…], or data=… data.root=…")


def chosen_samples(cfg: DictConfig, run: Run) -> tuple[list[Path], Batch, list[str]]:
    """Return the user's files, the samples to explain, and the errors of files that cannot be read.

    The samples are the files, or without any those of the run.

    Raises:
        ConfigError: there is no such file or sample.
        UnreadableError: none of them can be read.
    """
    endings = run.finished.parts.data.dataset.file_endings
    paths = list(dict.fromkeys(input_files(named(cfg.inputs or []), endings)))
    if paths:
        return paths, *read_files(run, paths)
    return [], probe(run, cfg.samples, "samples"), []


def check_alone(cfg: DictConfig) -> None:
    """Check that nothing is set that has no meaning for an atlas or a gallery.

    Raises:
        ConfigError: a second run, files or both pages are given.
    """
    if cfg.atlas and cfg.gallery:
        raise ConfigError("atlas=true, gallery=true: are pages of their own; make one after the other")
    if cfg.compare is not None or cfg.inputs:
        key = "atlas" if cfg.atlas else "gallery"
        raise ConfigError(f"{key}=true: shows samples of one run; leave compare and inputs out")


def map_evaluator(cfg: DictConfig, num_samples: int) -> Evaluator:
    """Return the evaluator of maps.

    Raises:
        ConfigError: a setting of it is not valid.
    """
    if type(cfg.random_orders) is not int or cfg.random_orders < 1:
        raise ConfigError(f"random_orders={cfg.random_orders}: must be a number of random orders, at least 1")
    for key in ("rivals", "randomize"):
        if type(cfg[key]) is not bool:
            raise ConfigError(f"{key}={cfg[key]}: must be true or false")
    return Evaluator(num_samples=num_samples, num_orders=cfg.random_orders, rivals=cfg.rivals, randomize=cfg.randomize)


def knocked_out_kinds(cfg: DictConfig) -> list[str]:
    """Return the kinds of parts that are silenced.

    Raises:
        ConfigError: it is not a list of such kinds.
    """
    chosen = [] if cfg.knockout is None else cfg.knockout
    if not isinstance(chosen, Sequence) or isinstance(chosen, str) or any(kind not in KINDS for kind in chosen):
        raise ConfigError(f"knockout={chosen}: must be a list of some of {', '.join(KINDS)}")
    return list(chosen)


def sink_criterion(cfg: DictConfig, run: Run) -> SinkCriterion:
    """Return the criterion of attention sinks, what is not set as in the training of a run.

    Raises:
        ConfigError: it is not valid.
    """
    trained = {key: value for key, value in run.finished.config["attention"].get("sinks", {}).items() if key[0] != "_"}
    try:
        return SinkCriterion(**trained | {key: value for key, value in cfg.sinks.items() if value is not None})
    except (TypeError, ValueError) as error:
        raise ConfigError(f"sinks={cfg.sinks}: {error}") from error


def chosen_foil(cfg: DictConfig, runs: Sequence[Run]) -> str | None:
    """Return the foil of the answers of all runs.

    Raises:
        ConfigError: it is not an answer of a run's model.
    """
    if cfg.foil is None:
        return None
    for run in runs:
        try:
            foil_numbers(run.explainer.task.alternatives(run.explainer.class_names), str(cfg.foil))
        except ValueError as error:
            raise ConfigError(str(error)) from error
    return str(cfg.foil)


def load_run(cfg: DictConfig, key: str, checkpoint_key: str, overrides: Sequence[str]) -> Run:
    """Load a run at one of its checkpoints, which the config names.

    Raises:
        ConfigError: there is no such run or checkpoint.
    """
    finished = load_named(cfg, overrides, keys=(key, checkpoint_key))
    to_accelerator(finished.parts)
    explainer = finished.parts.explainer(finished.config["attention"]["rollout_alpha"])
    name = f"{'/'.join(finished.output_dir.absolute().parts[-2:])} ({finished.checkpoint.stem})"
    return Run(name, finished, explainer)


def load_compared(cfg: DictConfig, first: Run) -> Run:
    """Load the run that the first one is compared with.

    Raises:
        ConfigError: it is the same checkpoint, or one that reads other modalities.
    """
    second = load_run(cfg, "compare", "compare_checkpoint", ())
    path = second.finished.checkpoint
    if path.resolve() == first.finished.checkpoint.resolve():
        problem = "the same checkpoint of the same run; choose another compare_checkpoint"
        raise ConfigError(f"compare={cfg.compare}, compare_checkpoint={path.stem}: {problem}")
    reads, expected = (", ".join(sorted(one.explainer.model.encoders)) for one in (second, first))
    if reads != expected:
        raise ConfigError(f"compare={cfg.compare}: its model reads {reads}, that of run reads {expected}")
    if second.name == first.name:
        second = replace(second, name=f"{second.finished.output_dir.absolute()} ({path.stem})")
    return second


def check_reads_alike(first: Run, second: Run, batch: Batch) -> None:
    """Check that the inputs of the first run have the same meaning for the second.

    Raises:
        ValueError: sounds have another rate, or texts another vocabulary.
    """
    sounds, texts = ([], [])
    for run in (first, second):
        sounds.append(input_sounds(run.explainer.model, batch.inputs))
        texts.append(texts_of(batch, run.finished.parts.data.dataset.pieces))
    for name, sound in sounds[0].items():
        other = sounds[1].get(name)
        if other is not None and other.sample_rate != sound.sample_rate:
            raise ValueError(f"its {name} has {other.sample_rate} Hz and not {sound.sample_rate}")
    if texts[0] != texts[1]:
        raise ValueError("its tokenizer has another vocabulary")


def without_foreign_boxes(run: Run, source: Run, batch: Batch) -> Batch:
    """Remove the boxes of another run's samples if its classes differ."""
    if run.explainer.class_names == source.explainer.class_names:
        return batch
    return replace(batch, targets={name: values for name, values in batch.targets.items() if name != "boxes"})


def page_path(cfg: DictConfig, run: Path) -> Path:
    """Return the path of the page, in a folder that is created; by default that of the training is replaced.

    Raises:
        ConfigError: it is not a writable path of an HTML file.
    """
    name = "inputs.html" if cfg.inputs else PAGE if cfg.compare is None else "comparison.html"
    name = ATLAS if cfg.atlas else GALLERY if cfg.gallery else name
    output = run / "attention" / name if cfg.output is None else Path(str(cfg.output))
    if output.suffix not in (".html", ".htm") or output.is_dir():
        raise ConfigError(f"output={output}: must be a file whose name ends in .html")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"output={output}: its folder cannot be created ({error.strerror})") from error
    check_writable(output.parent)
    return output


def probe(run: Run, samples: Any, key: str) -> Batch:
    """Return samples of a run's validation set.

    Args:
        run: the run.
        samples: their number, or a list of their indices; None for the number used in training.
        key: of the setting, which may be 0 for the tested samples.

    Raises:
        ConfigError: they do not exist, or `samples` is not valid.
        UnreadableError: none of them can be read.
    """
    data = run.finished.parts.data
    chosen = run.finished.config["attention"]["num_samples"] if samples is None else samples
    least = 0 if key == "scored_samples" else 1
    if not is_choice(chosen, least):
        raise ConfigError(
            f"{key}={samples}: must be a number of samples, at least {least}, or a list of different indices"
        )
    if chosen == 0:
        return collate([])
    with config_errors(run.finished.config, "data"):
        data.prepare_data()
        stage = data.probe_stage
    run.finished.check_data(stage, allow_trained=True)
    try:
        found = data.probe(chosen)
    except ValueError as error:
        raise ConfigError(f"{key}={samples}: {error}") from error
    if not len(found):
        raise UnreadableError("; ".join(found.unreadable))
    return found.to(run.finished.parts.device)


def is_choice(chosen: Any, least: int) -> bool:
    """Return whether a setting is a number of samples, at least `least`, or a list of different indices."""
    if isinstance(chosen, Sequence) and not isinstance(chosen, str):
        return len(chosen) > 0 and all(type(one) is int for one in chosen) and len(set(chosen)) == len(chosen)
    return type(chosen) is int and chosen >= least


def read_files(run: Run, paths: Sequence[Path]) -> tuple[Batch, list[str]]:
    """Read a user's files: of long sounds each window, at most `MAX_WINDOWS`.

    Returns:
        The samples, and the errors of files that cannot be read.

    Raises:
        UnreadableError: no file can be read.
    """
    samples, unreadable = [], []
    for path in paths:
        try:
            windows = window_samples(run.finished.parts.data.dataset.read(path))
        except UnreadableError as error:
            unreadable.append(str(error))
            continue
        samples += windows
    if not samples:
        raise UnreadableError("; ".join(unreadable))
    return collate(samples).to(run.finished.parts.device), unreadable


def window_samples(sample: Sample) -> list[Sample]:
    """Return the windows of a long sample as samples, at most `MAX_WINDOWS`."""
    windows = sample.split()
    chosen = evenly_spread(len(windows), MAX_WINDOWS)
    if len(chosen) < len(windows):
        console.print(f"{sample.id}: {len(chosen)} of {len(windows)} windows are explained", soft_wrap=True)
    return [windows[place] for place in chosen]
