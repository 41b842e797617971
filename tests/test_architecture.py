"""Imports flow one way, and files stay small: read from the source; and what works without the training's packages."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = ("perceiver", "experiments", "scripts")
NAMES_THAT_SAY_NOTHING = {"utils", "common", "helpers", "misc"}
MODALITIES = {path.stem.partition("_")[0] for path in (ROOT / "conf" / "encoder").glob("*.yaml")} - {"label"}
"""Labels are also targets, whose name every task over classes knows."""
FOR_ALL_MODALITIES = (
    "perceiver.tasks",
    "perceiver.runtime",
    "perceiver.training",
    "perceiver.commands",
    "perceiver.mechanisms",
    "perceiver.model",
    "perceiver.latents",
    "perceiver.direct",
    "perceiver.queries",
    "perceiver.decoders",
)
"""What must work with any modality, and so names none."""

GROUND = ("types", "roles", "tokenizer", "spectrogram", "kernels", "entmax", "reinforce")
PARTS = (*GROUND, "mechanisms", "attention", "positions", "recurrent")
BUILT = (*PARTS, "encoders", "queries", "decoders", "latents", "direct")
MODEL = (*BUILT, "model", "inspection")
MAPS = (*GROUND, "mechanisms", "inspection.maps")
EVALUATION = (*MAPS, "inspection.evaluation")
DRAWING = (*EVALUATION, "inspection.drawing")
EXPLORER = (*DRAWING, "inspection.explorer")
WRITER = (*EXPLORER, "inspection.writer", "inspection.report")
ANYTHING = None

# part of perceiver -> the parts it may import; the longest name that fits a module counts
MAY_IMPORT = {
    "types": (),
    "tokenizer": (),
    "spectrogram": ("types",),
    "roles": (),
    "kernels": ("types",),
    "entmax": (),
    "reinforce": (),
    "mechanisms": (*GROUND, "mechanisms"),
    "attention": (*GROUND, "mechanisms"),
    "positions": GROUND,
    "recurrent": (),
    "encoders": (*PARTS, "encoders"),
    "encoders.norm": ("processes",),
    "queries": (*PARTS, "encoders", "queries"),
    "decoders": (*PARTS, "queries", "decoders"),
    "latents": PARTS,
    "direct": PARTS,
    "model": (*BUILT, "processes"),
    "pretrained": (*BUILT, "model", "pretrained"),
    "tasks": (*GROUND, "tasks"),
    "processes": (),
    "data": (*GROUND, "data"),
    "data.sources": (
        "types",
        "data.files",
        "data.sources",
        "data.splits",
        "data.text_files",
    ),
    "data.synthetic": ("types", "tokenizer", "data.files", "data.sources", "data.synthetic"),
    "data.readers": (*GROUND, "data.files", "data.readers", "data.text_files"),
    "inspection": ("inspection",),
    "inspection.maps": MAPS,
    "inspection.maps.capture": (*MAPS, "attention", "encoders"),
    "inspection.maps.explainer": (*MAPS, "tasks"),
    "inspection.evaluation": EVALUATION,
    "inspection.drawing": DRAWING,
    "inspection.explorer": EXPLORER,
    "inspection.writer": WRITER,
    "inspection.report": WRITER,
    "inspection.watched": (*WRITER, "inspection.watched"),
    "runtime": (*MODEL, "tasks", "data", "processes", "runtime"),
    "training": (*MODEL, "pretrained", "tasks", "data", "processes", "runtime", "training"),
    "commands": ANYTHING,
}

EXECUTION = ("perceiver.runtime", "perceiver.training", "perceiver.commands")
"""What runs experiments, and so may need Lightning and Hydra; all else is a library."""

COMMANDS = [
    f"{folder}/{path.stem}"
    for folder in ("experiments", "scripts")
    for path in sorted((ROOT / folder).glob("*.py"))
    if "@hydra.main" in path.read_text()
]

# package -> the only modules and packages of the sources that may import it
IMPORTED_ONLY_BY = {
    "lightning": (*EXECUTION, "scripts"),
    "wandb": ("perceiver.runtime.loggers.wandb",),
    "tensorboard": ("perceiver.runtime.loggers.tensorboard",),
    "hydra": (*EXECUTION, "experiments", "scripts"),
    "omegaconf": (*EXECUTION, "experiments", "scripts"),
    "transformers": ("perceiver.pretrained.export", "experiments", "scripts"),
    "experiments": ("experiments", "scripts"),
    "scripts": ("scripts",),
    "tests": (),
}


def violations(root: Path) -> list[str]:
    """What breaks a rule under `root`, one line each."""
    found = []
    for path in sorted(path for source in SOURCES for path in (root / source).rglob("*.py")):
        where = path.relative_to(root)
        module = ".".join(where.with_suffix("").parts).removesuffix(".__init__")
        text = path.read_text()
        found += [f"{where} imports {name}" for name in imports(root, path, module) if not may_import(module, name)]
        if any(lies_in(module, part) for part in FOR_ALL_MODALITIES):
            found += [f"{where} names {name!r}" for name in strings(text) if name in MODALITIES]
        found += [f"{where} is named {name}" for name in NAMES_THAT_SAY_NOTHING & set(module.split("."))]
    return found


def strings(text: str) -> list[str]:
    """Every string in a source, each as a whole: docstrings and messages are none of those that are compared with."""
    constants = (node.value for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Constant))
    return [value for value in constants if isinstance(value, str)]


def imports(root: Path, path: Path, module: str) -> Iterator[str]:
    """Absolute names of the modules that a file imports, wherever in the file it does so."""
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*above, *filter(None, [node.module])])
            folder = root.joinpath(*source.split("."))
            # `from package import name` imports a module where there is one of that name.
            submodules = [
                a.name for a in node.names if (folder / a.name).is_dir() or (folder / f"{a.name}.py").exists()
            ]
            yield from (f"{source}.{name}" for name in submodules)
            if len(submodules) < len(node.names):
                yield source


def may_import(module: str, imported: str) -> bool:
    allowed = IMPORTED_ONLY_BY.get(imported.split(".")[0])
    if allowed is not None:
        return any(lies_in(module, owner) for owner in allowed)
    if not lies_in(imported, "perceiver") or not lies_in(module, "perceiver"):
        return True
    part = max((part for part in MAY_IMPORT if lies_in(module, f"perceiver.{part}")), key=len, default=None)
    parts = ANYTHING if part is None else MAY_IMPORT[part]
    return parts is ANYTHING or any(lies_in(imported, f"perceiver.{part}") for part in parts)


def lies_in(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


def test_the_source_keeps_the_rules():
    assert violations(ROOT) == []


@pytest.mark.parametrize(
    ("path", "source", "violation"),
    [
        ("perceiver/types.py", "from perceiver import Perceiver", "imports perceiver"),
        ("perceiver/attention.py", "from perceiver.latents import LatentArray", "imports perceiver.latents"),
        ("perceiver/mechanisms/base.py", "from perceiver import attention", "imports perceiver.attention"),
        ("perceiver/direct.py", "from perceiver.latents import LatentArray", "imports perceiver.latents"),
        ("perceiver/queries/text.py", "from perceiver.decoders.base import Decoder", "imports perceiver.decoders.base"),
        ("perceiver/encoders/text.py", "from perceiver.queries.text import Text", "imports perceiver.queries.text"),
        ("perceiver/latents.py", "import perceiver.model as model", "imports perceiver.model"),
        ("perceiver/encoders/image.py", "from ..decoders import base", "imports perceiver.decoders.base"),
        ("perceiver/encoders/__init__.py", "from .. import latents", "imports perceiver.latents"),
        ("perceiver/decoders/base.py", "def f():\n    import perceiver.latents", "imports perceiver.latents"),
        ("perceiver/model.py", "from perceiver.commands.train import run", "imports perceiver.commands.train"),
        ("perceiver/tasks/tagging.py", "from perceiver.data.collate import collate", "imports perceiver.data.collate"),
        ("perceiver/data/dataset.py", "from perceiver.tasks import base", "imports perceiver.tasks"),
        ("perceiver/data/sources/digits.py", "import lightning", "imports lightning"),
        ("perceiver/model.py", "from lightning.pytorch import LightningModule", "imports lightning.pytorch"),
        ("perceiver/inspection/maps/capture.py", "from perceiver.model import Perceiver", "imports perceiver.model"),
        ("perceiver/inspection/maps/record.py", "from perceiver.tasks import base", "imports perceiver.tasks"),
        ("perceiver/inspection/maps/rollout.py", "from .. import watch", "imports perceiver.inspection"),
        (
            "perceiver/inspection/maps/sinks.py",
            "from perceiver.inspection.evaluation.verdicts import summarize",
            "imports perceiver.inspection.evaluation.verdicts",
        ),
        (
            "perceiver/inspection/drawing/media.py",
            "from perceiver.inspection.explorer.page import write_page",
            "imports perceiver.inspection.explorer.page",
        ),
        (
            "perceiver/inspection/writer.py",
            "from perceiver.inspection.watched.grids import Input",
            "imports perceiver.inspection.watched.grids",
        ),
        (
            "perceiver/training/module.py",
            "from perceiver.commands.train import run",
            "imports perceiver.commands.train",
        ),
        ("perceiver/runtime/errors.py", "from perceiver.training import module", "imports perceiver.training"),
        ("perceiver/training/attention_callback.py", "import wandb", "imports wandb"),
        ("perceiver/runtime/loggers/base.py", "def f():\n    import wandb", "imports wandb"),
        ("perceiver/inspection/maps/record.py", "from lightning import Callback", "imports lightning"),
        ("perceiver/data/dataset.py", "import hydra.utils", "imports hydra.utils"),
        ("perceiver/pretrained/names.py", "import transformers", "imports transformers"),
        ("perceiver/commands/train.py", "from experiments.train import main", "imports experiments.train"),
        ("scripts/bench.py", "from tests.models import small_perceiver", "imports tests.models"),
        ("perceiver/tasks/tagging.py", "def f(name):\n    return name == 'audio'", "names 'audio'"),
        ("perceiver/model.py", "def f(x):\n    match x:\n        case 'image':\n            pass", "names 'image'"),
        ("perceiver/data/utils.py", "", "is named utils"),
    ],
)
def test_a_planted_violation_is_found(tmp_path, path, source, violation):
    plant(tmp_path, path, source)
    assert violations(tmp_path) == [f"{path} {violation}"]


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("perceiver/__init__.py", "from perceiver.model import Perceiver"),
        ("perceiver/model.py", "from perceiver.latents import LatentArray"),
        ("perceiver/encoders/image.py", "from . import base\nfrom ..types import Tokens"),
        ("perceiver/attention.py", "from perceiver.mechanisms.base import Mechanism"),
        ("perceiver/decoders/base.py", "from perceiver import attention\nfrom perceiver.queries.text import Text"),
        ("perceiver/queries/text.py", "from perceiver.encoders.base import check_sizes"),
        ("perceiver/inspection/__init__.py", "from perceiver.inspection.watched.watch import watch"),
        ("perceiver/inspection/maps/explainer.py", "from perceiver.tasks.base import Task"),
        ("perceiver/inspection/watched/watch.py", "from perceiver.inspection.writer import ExplanationWriter"),
        ("perceiver/training/data_module.py", "import lightning\nfrom perceiver.data.sources import digits"),
        (
            "perceiver/training/attention_callback.py",
            "from lightning import Callback\nfrom perceiver.model import Perceiver",
        ),
        ("perceiver/runtime/loggers/wandb.py", "import wandb"),
        ("perceiver/commands/train.py", "import hydra, omegaconf, lightning\nfrom perceiver import Perceiver"),
        ("perceiver/pretrained/names.py", "from perceiver.model import Perceiver"),
        ("experiments/train.py", "import hydra\nfrom perceiver.commands.train import run"),
        ("perceiver/model.py", '"""What reads an image."""\nx = "no image"  # image'),
        ("perceiver/data/sources/digits.py", "x = {'image': 1}"),
    ],
)
def test_what_the_rules_allow_is_not_a_violation(tmp_path, path, source):
    plant(tmp_path, path, source)
    assert violations(tmp_path) == []


@pytest.mark.slow
def test_the_library_imports_without_lightning_hydra_and_wandb():
    """Also through what the packages below it import: in a process where these cannot be found."""
    sources = (path.relative_to(ROOT).with_suffix("") for path in (ROOT / "perceiver").rglob("*.py"))
    modules = [".".join(path.parts).removesuffix(".__init__") for path in sources]
    light = [module for module in modules if not any(lies_in(module, part) for part in EXECUTION)]
    expected = {"perceiver", "perceiver.data.dataset", "perceiver.inspection.maps.explanation", "perceiver.pretrained"}
    assert expected <= set(light)
    blocked = ["lightning", "lightning_fabric", "pytorch_lightning", "hydra", "omegaconf", "wandb"]
    script = f"""
import importlib, sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Missing())
for module in {light}:
    importlib.import_module(module)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_help_imports_neither_torch_nor_lightning_nor_the_command(command):
    """Their imports take most of the time until a run starts."""
    script = f"""
import runpy, sys

sys.argv[1:] = ["--help"]
try:
    runpy.run_path("{command}.py", run_name="__main__")
finally:
    heavy = {{"torch", "lightning", "sklearn", "perceiver.commands", "perceiver.training"}}
    print(sorted(heavy & set(sys.modules)), file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Powered by Hydra" in done.stdout or "Overrides" in done.stdout
    assert done.stderr.strip() == "[]"


@pytest.mark.slow
@pytest.mark.parametrize("command", ["predict", "embed", "load"])
def test_files_are_predicted_without_what_only_training_needs(run, pictures, tmp_path, command):
    """Their imports would take two thirds of the time of a prediction with its figures."""
    if command == "load":
        lines = [
            f"loaded = perceiver.load({str(run)!r})",
            f"loaded.contact_sheets(loaded.explain({str(pictures[0])!r}))",
        ]
    else:
        out = "out=features.npz" if command == "embed" else "output=predictions"
        arguments = [f"run={run}", f"inputs=[{pictures[0]}]", out.replace("=", f"={tmp_path}/")]
        lines = [f"sys.argv[1:] = {arguments}", f"runpy.run_path('experiments/{command}.py', run_name='__main__')"]
    assert imported_only_by_training(*lines) == set()


def imported_only_by_training(*lines: str) -> set[str]:
    """Run lines of Python in a new process and return which of the packages that only training needs it imports."""
    heavy = ["lightning", "torchmetrics", "torchvision", "torch._dynamo", "scipy.signal", "transformers", "wandb"]
    lines = ("import runpy, sys, perceiver", *lines, f"print([*{{*{heavy}}} & {{*sys.modules}}], file=sys.stderr)")
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return {*ast.literal_eval(done.stderr.splitlines()[-1])}


def plant(root: Path, path: str, source: str) -> None:
    """A tree with the modules that the planted imports speak of, and the planted one."""
    modules = "attention latents model mechanisms/base encoders/base queries/text decoders/base"
    for name in (*(f"perceiver/{module}.py" for module in modules.split()), path):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    (root / path).write_text(source)
