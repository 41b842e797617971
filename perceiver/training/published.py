"""A published model as the checkpoint of a run, so that it is evaluated, inspected and given files like one."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast, get_args

import torch

from perceiver.pretrained.architectures import Variant
from perceiver.pretrained.folder import SAFETENSORS, build, locate, read
from perceiver.pretrained.preprocessing import run_nodes
from perceiver.runtime.errors import ConfigError
from perceiver.runtime.nodes import targets
from perceiver.training.checkpoint import Checkpoint
from perceiver.training.run_folder import is_run_folder, read_run_folder
from perceiver.training.trust import TRUSTED_PACKAGES, is_trusted

SETTINGS: dict[str, Any] = {
    "seed": 1,
    "matmul_precision": "high",
    "num_threads": None,
    "optimizer": {"_target_": "torch.optim.AdamW", "_partial_": True, "lr": 1e-4},
    "schedule": {"_target_": "perceiver.training.optimization.constant", "_partial_": True},
    "trainer": {"_target_": "lightning.pytorch.Trainer", "accelerator": "auto", "devices": 1},
    "loader": {
        "_target_": "perceiver.training.data_module.DataModule",
        "batch_size": 8,
        "num_workers": 0,
        "timeout_seconds": 600,
        "drop_last": False,
        "class_balanced": False,
        "pin_memory": False,
        "seed": 1,
    },
    "attention": {
        "_target_": "perceiver.training.attention_callback.AttentionCallback",
        "every_n_epochs": 0,
        "sheets_every_n_epochs": 0,
        "num_samples": 8,
        "evaluator": {
            "_target_": "perceiver.inspection.evaluation.evaluator.Evaluator",
            "num_samples": 0,
            "num_orders": 1,
            "rivals": False,
            "randomize": False,
        },
        "num_latents": 6,
        "rollout_alpha": 0.5,
        "max_megabytes": 64,
        "max_seconds": 60,
    },
}
"""The settings of a run that a published model does not have."""


def read_published(
    source: str, variant: str, key: str = "pretrained", trusted: Sequence[str] | None = ()
) -> tuple[Checkpoint, Path]:
    """Return a published or exported model as a checkpoint, and the file of its weights.

    Args:
        source, variant: see `perceiver.pretrained.from_pretrained`; or the folder of an exported run.
        key: of the setting that names it, for errors.
        trusted: see `read_run_folder`.

    Raises:
        ConfigError: it cannot be read, or none of its kind can be given files.
    """
    if variant not in (variants := get_args(Variant)):
        raise ConfigError(f"variant={variant}: must be {' or '.join(variants)}")
    try:
        folder = locate(source)
        if is_run_folder(folder):
            return read_run_folder(folder, trusted), folder / SAFETENSORS
        published = read(folder)
        model, node = build(published, cast(Variant, variant))
        config = {**SETTINGS, **run_nodes(published, node, cast(Variant, variant))}
    except (FileNotFoundError, ValueError) as error:
        raise ConfigError(f"{key}={error}") from error
    checkpoint = Checkpoint(
        config=config,
        class_names=config["data"]["source"]["names"],
        vocabulary=None,
        input_vocabulary=None,
        state={f"model.{name}": value for name, value in model.state_dict().items()},
        step=0,
        epoch=0,
        interpolations={},
        trained_on=torch.zeros(0, dtype=torch.int64),
    )
    return checkpoint, published.path


def with_published_model(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config of a run with the model that its setting `pretrained` names, whose weights it starts with.

    A classifier gets as many classes as the data has. The decoder of another model is replaced by the config's own,
    unless this is of the same kind and as wide.

    Raises:
        ConfigError: the model cannot be read, or consists of classes that are not trusted.
    """
    checkpoint, _ = read_published(config["pretrained"], config["variant"], trusted=None)
    for key, node in targets({"model": checkpoint.config["model"]}):
        if not is_trusted(target := str(node["_target_"])):
            problem = f"its config builds {target!r} as {key}, which is no class of {', '.join(TRUSTED_PACKAGES)}"
            hint = "if that code is yours, choose it in the config of the run, and start with init.from"
            raise ConfigError(f"pretrained={config['pretrained']}: {problem}; {hint}")
    model = dict(checkpoint.config["model"])
    if "num_classes" in model["decoder"]:
        model["decoder"] = {**model["decoder"], "num_classes": config["data"]["source"].get("num_classes", 0)}
    elif any(model["decoder"][key] != config["model"]["decoder"].get(key) for key in ("_target_", "num_channels")):
        model.pop("ties", None)  # of its decoder
        model["decoder"] = {**config["model"]["decoder"], "dim": model["memory"]["dim"]}
    return {**config, "model": model, "init": {**config["init"], "from": config["pretrained"]}}
