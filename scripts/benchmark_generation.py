"""Speed of cached generation: `uv run scripts/benchmark_generation.py [any override of train.py]`.

An untrained model generates texts of the greatest length (`tokenizer.max_length`) greedily, once with cached keys and
values, once by decoding the whole text for each token, in turn. Prints the tokens per second of both (medians), their
ratio, and the largest difference of their logits.
"""

import statistics
from typing import TYPE_CHECKING

import hydra
from omegaconf import DictConfig, open_dict

from perceiver.runtime.command_line import command_line
from perceiver.runtime.errors import ConfigError, report_user_errors

if TYPE_CHECKING:
    from collections.abc import Callable

    from jaxtyping import Float, Int
    from torch import Tensor

    from perceiver.decoders.text import TextDecoder
    from perceiver.types import Memory


@report_user_errors
@command_line
@hydra.main(version_base="1.3", config_path="../conf", config_name="benchmark_generation")
@report_user_errors
def main(cfg: DictConfig) -> None:
    import torch

    from perceiver.decoders.text import TextDecoder
    from perceiver.runtime.config import resolved
    from perceiver.runtime.summary import show_values
    from perceiver.runtime.torch_settings import prepare_torch
    from perceiver.training.build import build
    from perceiver.training.timing import example_batch, median_seconds

    with open_dict(cfg):
        texts, repeats = cfg.pop("texts"), cfg.pop("repeats")
        cfg.loader.batch_size = texts
    for name, value in (("texts", texts), ("repeats", repeats)):
        if not isinstance(value, int) or value < 1:
            raise ConfigError(f"{name}={value}: must be a whole number from 1 on")
    config = resolved(cfg)
    prepare_torch(config)
    parts = build(config)
    decoder = parts.model.decoder
    if not isinstance(decoder, TextDecoder) or parts.tokenizer is None:
        raise ConfigError(f"decoder: {type(decoder).__name__} generates no texts; choose decoder@model.decoder=text")
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    parts.model.to(device).eval()
    batch = example_batch(parts.data).to(device)
    length = parts.tokenizer.max_length - 1  # the last position predicts no token
    with torch.no_grad():
        memory = parts.model.encode(batch.inputs, batch.masks)
        methods: tuple[Callable[[], Float[Tensor, "texts length vocab"]], ...] = (
            lambda: cached(decoder, memory, length),
            lambda: uncached(decoder, memory, length),
        )
        difference = float((methods[0]() - methods[1]()).abs().max())
        seconds = [
            [median_seconds(generate, device, warmup=0, repeats=1) for generate in methods] for _ in range(repeats)
        ]
    cached_rate, uncached_rate = (texts * length / statistics.median(times) for times in zip(*seconds, strict=True))
    show_values(
        {
            "device": f"{device.type}, {torch.get_num_threads()} threads",
            "texts, tokens each": f"{texts}, {length}",
            "tokens per second, cached": f"{cached_rate:,.0f} (median of {repeats})",
            "tokens per second, not cached": f"{uncached_rate:,.0f} (median of {repeats})",
            "ratio": f"{cached_rate / uncached_rate:.2f}",
            "largest difference of logits": f"{difference:.1e}",
        }
    )


def cached(decoder: "TextDecoder", memory: "Memory", length: int) -> 'Float[Tensor, "texts length vocab"]':
    import torch

    from perceiver.decoders.base import LOGITS

    texts, ids, steps = decoder.incremental_decoder(memory, LOGITS), first_tokens(memory), []
    for _ in range(length):
        steps.append(texts.next(ids))
        ids = steps[-1].argmax(dim=1)
    return torch.stack(steps, dim=1)


def uncached(decoder: "TextDecoder", memory: "Memory", length: int) -> 'Float[Tensor, "texts length vocab"]':
    import torch

    from perceiver.decoders.base import LOGITS

    ids, steps = first_tokens(memory)[:, None], []
    for _ in range(length):
        steps.append(decoder(memory, {LOGITS: ids})[LOGITS][:, -1])
        ids = torch.cat([ids, steps[-1].argmax(dim=1, keepdim=True)], dim=1)
    return torch.stack(steps, dim=1)


def first_tokens(memory: "Memory") -> 'Int[Tensor, " texts"]':
    import torch

    from perceiver.tokenizer import BOS

    return torch.full((len(memory),), BOS, device=memory.values.device)


if __name__ == "__main__":
    main()
