"""Export of a run for use elsewhere, compared with the run itself."""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from perceiver.commands.finished_run import FinishedRun, check_writable, load_named, load_published
from perceiver.commands.predict import input_files, named
from perceiver.data.collate import collate
from perceiver.pretrained.comparison import Given, check_hidden, outputs_of_transformers, write_transformers_folder
from perceiver.pretrained.export import to_transformers
from perceiver.runtime.errors import ConfigError, one_line
from perceiver.runtime.summary import console
from perceiver.runtime.torch_settings import prepare_torch
from perceiver.training.build import config_errors
from perceiver.training.checkpoint import Checkpoint
from perceiver.training.run_folder import write_run_folder
from perceiver.training.trust import untrusted_targets
from perceiver.types import Batch

TRACED_SIZE, COMPARED_SIZES = 2, (1, 3)
"""Rows of the batch that is traced, and of those for which outputs are compared."""
NUM_SAMPLES = 3
MAX_MESSAGE = 300
"""Characters of an error of torch's exporter, whose messages are pages long."""
GROUPS = ("inputs", "masks", "queries", "hidden")
"""The arguments of `Perceiver.forward`, each of which holds tensors by name."""


@dataclass(frozen=True)
class Call:
    """One call of a model: a tensor for each name in each of `GROUPS`, batch first.

    Attributes:
        tensors: (group, name) -> value.
        token_ids: names of the queries that are token ids.
    """

    tensors: dict[tuple[str, str], Tensor]
    token_ids: frozenset[str]

    @classmethod
    def of_batch(cls, finished: FinishedRun, batch: Batch) -> "Call":
        """Return the call with which the run's task evaluates a batch."""
        task = finished.parts.task
        batch = task.prepare(batch, train=False)
        queries = {name: values[:: len(values) // len(batch)] for name, values in task.queries(batch).items()}
        groups = dict(zip(GROUPS, (batch.inputs, batch.masks, queries, task.hidden(batch)), strict=True))
        tensors = {(group, name): value for group, values in groups.items() for name, value in values.items()}
        ids = frozenset(name for name, kind in task.given_queries.items() if kind == "token_ids")
        return cls(tensors, ids)

    @property
    def names(self) -> list[str]:
        """The names of all arguments: that of the input or output, with a suffix except for inputs."""
        suffix = {"inputs": "", "masks": "_mask", "queries": "_queries", "hidden": "_hidden"}
        return [f"{name}{suffix[group]}".replace("/", "_") for group, name in self.tensors]

    def output_names(self, model: nn.Module) -> dict[str, str]:
        """Return the names that outputs have in a graph, by their own: those that arguments have, too, get a suffix."""
        return {name: f"{name}_output" if name in self.names else name for name in self.rows(1).outputs(model)}

    def rows(self, size: int) -> "Call":
        """Return a batch of `size` rows, in which rows may repeat."""
        return Call(
            {key: value[torch.arange(size) % len(value)] for key, value in self.tensors.items()}, self.token_ids
        )

    def grouped(self, values: Sequence[Tensor]) -> list[dict[str, Tensor]]:
        """Return tensors in the order of `tensors` as the arguments of the model."""
        groups: dict[str, dict[str, Tensor]] = {group: {} for group in GROUPS}
        for (group, name), value in zip(self.tensors, values, strict=True):
            groups[group][name] = value
        return [*groups.values()]

    @torch.no_grad()
    def outputs(self, model: nn.Module) -> dict[str, Tensor]:
        return model(*self.grouped([*self.tensors.values()]))


class Positional(nn.Module):
    """A model with the tensors of a call as positional arguments, and its outputs as a tuple.

    Args:
        model: the model.
        call: whose names the arguments have, in its order.
    """

    def __init__(self, model: nn.Module, call: Call) -> None:
        super().__init__()
        self.model = model
        self.call = call

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.model(*self.call.grouped(tensors)).values())


Exported = Callable[[Call], Mapping[str, Tensor]]
"""Computes the outputs of an exported model."""


def export(cfg: DictConfig) -> float:
    """Export a run's checkpoint or a published model, and return the largest difference of its outputs from the run's.

    It is relative to the largest output, if that is more than 1. The outputs are those for three validation samples of
    the run, or for the first three files of `inputs`. A graph (`onnx`, `torch_export`) takes inputs of their sizes, in
    batches of any size.

    Raises:
        ConfigError: a setting is not valid, the model cannot be exported, or outputs differ by more than the tolerance.
    """
    if cfg.format not in FORMATS:
        raise ConfigError(f"format={cfg.format}: must be one of {', '.join(FORMATS)}")
    if not isinstance(cfg.tolerance, int | float) or not cfg.tolerance >= 0:
        raise ConfigError(f"tolerance={cfg.tolerance}: must be a number, at least 0")
    finished = load_named(cfg, cfg.overrides)
    prepare_torch(finished.config)
    out = finished.output_dir / f"export_{cfg.format}" if cfg.out is None else Path(str(cfg.out))
    check_writable(out, "out")
    call = Call.of_batch(finished, example(finished, cfg))
    exported = FORMATS[cfg.format](finished, call, out)
    return compare(finished, call, exported, out, float(cfg.tolerance))


def example(finished: FinishedRun, cfg: DictConfig) -> Batch:
    """Return `NUM_SAMPLES` samples of the run, or of the files that the settings name the first ones.

    Raises:
        ConfigError: there are none.
    """
    data = finished.parts.data
    if cfg.inputs is not None:
        files = [*input_files(named(cfg.inputs), data.dataset.file_endings)][:NUM_SAMPLES]
        if not files:
            raise ConfigError("inputs=[]: name at least one file")
        return collate([data.dataset.read(file).split()[0] for file in files])
    with config_errors(finished.config, "data"):
        data.prepare_data()
        if all(split is None for split in data.splits.values()):
            raise ConfigError("a published model has no samples of its own; give inputs=FILE")
        return data.probe(NUM_SAMPLES)


def compare(finished: FinishedRun, call: Call, exported: Exported, out: Path, tolerance: float) -> float:
    """Print the differences between the outputs of the run and of what was exported, and return the largest one.

    Raises:
        ConfigError: it is more than the tolerance.
    """
    largest = 0.0
    for size in COMPARED_SIZES:
        rows = call.rows(size)
        expected, found = rows.outputs(finished.parts.model), exported(rows)
        for name, values in expected.items():
            if values.shape != found[name].shape:
                shapes = f"{list(found[name].shape)}, not {list(values.shape)}"
                raise ConfigError(f"{out}: output {name!r} of a batch of {size} has the shape {shapes}")
            scale = max(float(values.abs().max()), 1.0)
            difference = float((found[name].detach() - values).abs().max()) / scale
            console.print(f"batch of {size}, {name}: largest difference {difference:.2g}", soft_wrap=True)
            if not difference <= tolerance:
                problem = f"output {name!r} differs from the run's by {difference:.2g}"
                raise ConfigError(f"{out}: {problem}, more than tolerance={tolerance:g}")
            largest = max(largest, difference)
    console.print(f"written to {out}", soft_wrap=True)
    return largest


def export_safetensors(finished: FinishedRun, call: Call, out: Path) -> Exported:
    """Write a folder that `perceiver.load` and `pretrained=` read."""
    parts = finished.parts
    description = {key: parts.description[key] for key in ("class_names", "vocabulary", "input_vocabulary")}
    checkpoint = Checkpoint(
        config=finished.config,
        state=parts.state_dict(),
        step=finished.step,
        epoch=finished.epoch,
        interpolations=parts.description["interpolations"],
        trained_on=parts.description["trained_on"],
        **description,
    )
    write_run_folder(out, checkpoint)
    own_packages = {name for names in untrusted_targets(finished.config).values() for name in names}
    model = load_published(str(out), trusted=own_packages).parts.model
    return lambda rows: rows.outputs(model)


def export_transformers(finished: FinishedRun, call: Call, out: Path) -> Exported:
    """Write a folder for the class of transformers with the same architecture."""
    model = finished.parts.model
    try:
        check_hidden([name for group, name in call.tensors if group == "hidden"])
        hf_model = to_transformers(model, finished.parts.description["class_names"])
    except ModuleNotFoundError as error:
        raise ConfigError("format=transformers needs transformers (pip install 'perceiver[transformers]')") from error
    except ValueError as error:
        raise ConfigError(f"format=transformers: {error}; choose another format") from error
    write_transformers_folder(out, hf_model, model, finished.config["data"]["readers"])
    read = type(hf_model).from_pretrained(out).eval()
    return lambda rows: outputs_of_transformers(read, model, Given(*rows.grouped([*rows.tensors.values()])))


def traced(finished: FinishedRun, call: Call, out: Path) -> torch.export.ExportedProgram:
    """Return one forward pass of the model as a graph for any batch size, and write what its arguments are.

    A model that generates texts computes the logits of the next token at each position of token ids of a fixed length;
    generation repeats this for each token. As the decoder is causal, the ids after a position do not matter.

    Raises:
        ConfigError: the model computes something that depends on values of its inputs, other than by tensors.
    """
    rows = call.rows(TRACED_SIZE)
    batch = torch.export.Dim("batch")
    try:
        with torch.no_grad():
            model = Positional(finished.parts.model, rows)
            axes = tuple({0: batch} for _ in rows.tensors)
            program = torch.export.export(model, tuple(rows.tensors.values()), dynamic_shapes=(axes,))
    except Exception as error:  # of any part of torch
        raise ConfigError(f"the model cannot be exported: {one_line(error)[:MAX_MESSAGE]}") from error
    write_signature(finished, rows, out)
    if call.token_ids:
        message = "exported: logits of the next token at each position of given token ids; no generation"
        console.print(message, soft_wrap=True)
    return program


def write_signature(finished: FinishedRun, call: Call, out: Path) -> None:
    """Write `signature.json`: arguments and outputs with their types and sizes, and how inputs are read from files."""

    def described(value: Tensor) -> dict[str, Any]:
        return {"type": str(value.dtype).removeprefix("torch."), "shape": ["batch", *value.shape[1:]]}

    outputs, graph_names = call.outputs(finished.parts.model), call.output_names(finished.parts.model)
    arguments = zip(call.names, call.tensors.values(), strict=True)
    content = {
        "inputs": {name: described(value) for name, value in arguments},
        "outputs": {graph_names[name]: described(value) for name, value in outputs.items()},
        "class_names": finished.parts.description["class_names"],
        "readers": finished.config["data"]["readers"],
    }
    out.mkdir(parents=True, exist_ok=True)
    written = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    (out / "signature.json").write_text(written, encoding="utf-8")


def export_torch(finished: FinishedRun, call: Call, out: Path) -> Exported:
    """Write `model.pt2`, which `torch.export.load` reads."""
    torch.export.save(traced(finished, call, out), out / "model.pt2")
    module = torch.export.load(out / "model.pt2").module()
    names = [*call.rows(1).outputs(finished.parts.model)]
    return lambda rows: dict(zip(names, module(*rows.tensors.values()), strict=True))


def export_onnx(finished: FinishedRun, call: Call, out: Path) -> Exported:
    """Write `model.onnx`, with the weights beside it if they are large."""
    try:
        import onnxruntime
        import onnxscript  # noqa: F401  (torch's exporter needs it)
    except ModuleNotFoundError as error:
        raise ConfigError(f"format=onnx needs {error.name} (pip install 'perceiver[onnx]')") from error
    for name in ("onnxscript", "onnx_ir"):  # which list every step of their optimizer
        logging.getLogger(name).setLevel(logging.WARNING)
    program, names = traced(finished, call, out), call.output_names(finished.parts.model)
    graph_names = [*names.values()]
    try:
        onnx = torch.onnx.export(program, dynamo=True, verbose=False, input_names=call.names, output_names=graph_names)
        assert onnx is not None
        onnx.save(out / "model.onnx")
        session = onnxruntime.InferenceSession(out / "model.onnx", providers=["CPUExecutionProvider"])
    except Exception as error:  # of torch, onnxscript and onnxruntime
        raise ConfigError(f"format=onnx: the model cannot be exported: {one_line(error)[:MAX_MESSAGE]}") from error

    def outputs(rows: Call) -> dict[str, Tensor]:
        # An input of which nothing is used is none of the graph's.
        used = {one.name for one in session.get_inputs()}
        given = {name: value.numpy() for name, value in zip(rows.names, rows.tensors.values(), strict=True)}
        found = session.run(graph_names, {name: value for name, value in given.items() if name in used})
        return dict(zip(names, map(torch.from_numpy, found), strict=True))

    return outputs


FORMATS: dict[str, Callable[[FinishedRun, Call, Path], Exported]] = {
    "safetensors": export_safetensors,
    "transformers": export_transformers,
    "onnx": export_onnx,
    "torch_export": export_torch,
}
