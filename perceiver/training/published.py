"""A published model as the checkpoint of a run, so that it is evaluated, inspected and given files like one."""

from pathlib import Path
from typing import Any, cast, get_args

import torch

from perceiver.pretrained.architectures import Variant
from perceiver.pretrained.folder import build, read
from perceiver.pretrained.preprocessing import run_nodes
from perceiver.runtime.errors import ConfigError
from perceiver.training.checkpoint import Checkpoint

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
        "num_scored_samples": 0,
        "num_latents": 6,
        "rollout_alpha": 0.5,
        "max_megabytes": 64,
        "max_seconds": 60,
    },
}
"""The settings of a run that a published model does not have."""


def read_published(source: str, variant: str) -> tuple[Checkpoint, Path]:
    """Return a published model as a checkpoint, and the file of its weights.

    Args:
        source, variant: see `perceiver.pretrained.from_pretrained`.

    Raises:
        ConfigError: it cannot be read, or none of its kind can be given files.
    """
    if variant not in (variants := get_args(Variant)):
        raise ConfigError(f"variant={variant}: must be {' or '.join(variants)}")
    try:
        published = read(source)
        model, node = build(published, cast(Variant, variant))
        config = {**SETTINGS, **run_nodes(published, node, cast(Variant, variant))}
    except (FileNotFoundError, ValueError) as error:
        raise ConfigError(f"pretrained={error}") from error
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
