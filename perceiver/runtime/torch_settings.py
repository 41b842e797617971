"""Settings of torch for the whole process: seeds, precision, threads, and warnings that are ignored."""

import logging
import random
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

IGNORED_WARNINGS = (
    ".*does not have many workers.*",  # small data sets on few cores train faster without
    ".*The number of training batches.*",
    ".*Total length of `list` across ranks is zero.*",  # there is no validation set
    "(?s).*exists and is not empty.*",  # Hydra creates the run directory
    ".*treespec.*is deprecated.*",
    ".*but have no logger configured.*",  # evaluation prints its metrics and writes them to a file
    ".*sync_dist=True.*",  # metrics are already those of all processes
    ".*callbacks used to create the checkpoint.*",  # the log has the changed settings
    ".*resuming from a checkpoint that ended before the epoch ended.*",  # the data module continues within the epoch
)


def prepare_torch(config: Mapping[str, Any]) -> None:
    """Apply `seed`, `matmul_precision` and `num_threads` of a run, and hide warnings that do not concern its user."""
    random.seed(config["seed"])
    np.random.seed(config["seed"])
    torch.manual_seed(config["seed"])
    torch.set_float32_matmul_precision(config["matmul_precision"])
    if config["num_threads"] is not None:
        torch.set_num_threads(config["num_threads"])
    for message in IGNORED_WARNINGS:
        warnings.filterwarnings("ignore", message=message)
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.pytorch.accelerators.cuda"):
        logging.getLogger(name).setLevel(logging.WARNING)
