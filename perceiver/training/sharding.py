"""Training with weights, gradients and optimizer states sharded over the processes (FSDP2, `trainer=fsdp`).

Zhao et al. 2023, arXiv:2304.11277, with torch's `fully_shard`. Each block of memory and decoder is gathered when it
runs, and freed afterwards. All other parameters, such as the encoders, are gathered for the whole step, since a process
whose batch lacks a modality does not run its encoder and would not take part in gathering it.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.fsdp import FSDPModule, fully_shard

from perceiver.attention import CrossBlock, SelfBlock
from perceiver.training.module import TrainingModule

BLOCKS = (CrossBlock, SelfBlock)


class ShardedStrategy(ModelParallelStrategy):
    """Shards over all processes; checkpoints are single files with full weights."""

    def __init__(self) -> None:
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=False)

    def setup_environment(self) -> None:
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()


def is_sharded(trainer: Mapping[str, Any]) -> bool:
    """Whether a trainer's config has the sharded strategy."""
    strategy = trainer.get("strategy")
    return isinstance(strategy, dict) and strategy.get("_target_") == f"{__name__}.{ShardedStrategy.__name__}"


class ShardedModule(TrainingModule):
    """A training module that is sharded once the processes are connected; arguments as `TrainingModule`."""

    def configure_model(self) -> None:
        if isinstance(self.model, FSDPModule):
            return
        assert self.device_mesh is not None
        mesh = self.device_mesh["data_parallel"]
        for part in (self.model.memory, self.model.decoder):
            for block in part.modules():
                if isinstance(block, BLOCKS) and not isinstance(block, FSDPModule):
                    fully_shard(block, mesh=mesh)
        fully_shard(self.model, mesh=mesh, reshard_after_forward=False)

    @contextmanager
    def full_parameters(self) -> Iterator[None]:
        parts = [part for part in self.model.modules() if isinstance(part, FSDPModule)]
        for part in parts:
            part.set_reshard_after_forward(False, recurse=False)
            part.set_reshard_after_backward(False, recurse=False)  # relevance computes gradients
            part.unshard()
        try:
            yield
        finally:
            for part in parts:
                part.set_reshard_after_forward(isinstance(part, BLOCKS), recurse=False)
                part.set_reshard_after_backward(True, recurse=False)
                part.reshard()

    def on_validation_start(self) -> None:
        self._evaluating = self.full_parameters()
        self._evaluating.__enter__()

    def on_validation_end(self) -> None:
        self._evaluating.__exit__(None, None, None)

    on_test_start, on_test_end = on_validation_start, on_validation_end

    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        set_model_state_dict(self, dict(weights), options=StateDictOptions(full_state_dict=True))
