"""What keeping keys and values is worth: `uv run scripts/benchmark_generation.py [any override of train.py]`.

An untrained model generates texts of the greatest length (`tokenizer.max_length`) greedily, once with the keys and
values of the tokens so far kept, once reading the whole text anew for each token, in turn. Prints the tokens a second
of both, medians, their ratio, and how far the logits of the two lie apart.
"""

import statistics
import time
from collections.abc import Callable

import hydra
import torch
from jaxtyping import Float, Int
from omegaconf import DictConfig, open_dict
from rich.table import Table
from torch import Tensor

from perceiver.commands.train import prepare_torch
from perceiver.decoders.base import LOGITS
from perceiver.decoders.text import TextDecoder
from perceiver.runtime.config import resolved
from perceiver.runtime.errors import ConfigError, explained
from perceiver.runtime.launch import command_line
from perceiver.runtime.summary import console
from perceiver.tokenizer import BOS
from perceiver.training.build import build
from perceiver.training.timing import example_batch, synchronize
from perceiver.types import Memory

Logits = Float[Tensor, "texts length vocab"]


@explained
@command_line
@hydra.main(version_base="1.3", config_path="../conf", config_name="benchmark_generation")
@explained
def main(cfg: DictConfig) -> None:
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
    length = parts.tokenizer.max_length - 1  # the last place asks for no further token
    with torch.no_grad():
        memory = parts.model.encode(batch.inputs, batch.masks)
        ways = {"kept": lambda: kept(decoder, memory, length), "anew": lambda: anew(decoder, memory, length)}
        seconds: dict[str, list[float]] = {way: [] for way in ways}
        logits: dict[str, Logits] = {}
        for repeat in range(repeats + 1):
            for way, generate in ways.items():
                taken, logits[way] = timed(generate, device)
                if repeat:  # the first warms up
                    seconds[way].append(taken)
    rates = {way: texts * length / statistics.median(times) for way, times in seconds.items()}
    table = Table(show_header=False)
    for name, value in {
        "device": f"{device.type}, {torch.get_num_threads()} threads",
        "texts, tokens each": f"{texts}, {length}",
        "tokens a second, keys and values kept": f"{rates['kept']:,.0f} (median of {repeats})",
        "tokens a second, read anew": f"{rates['anew']:,.0f} (median of {repeats})",
        "ratio": f"{rates['kept'] / rates['anew']:.2f}",
        "largest difference of logits": f"{float((logits['kept'] - logits['anew']).abs().max()):.1e}",
    }.items():
        table.add_row(name, value)
    console.print(table)


def timed(generate: Callable[[], Logits], device: torch.device) -> tuple[float, Logits]:
    synchronize(device)
    start = time.perf_counter()
    logits = generate()
    synchronize(device)
    return time.perf_counter() - start, logits


def kept(decoder: TextDecoder, memory: Memory, length: int) -> Logits:
    texts, ids, steps = decoder.incremental_decoder(memory, LOGITS), beginnings(memory), []
    for _ in range(length):
        steps.append(texts.next(ids))
        ids = steps[-1].argmax(dim=1)
    return torch.stack(steps, dim=1)


def anew(decoder: TextDecoder, memory: Memory, length: int) -> Logits:
    ids, steps = beginnings(memory)[:, None], []
    for _ in range(length):
        steps.append(decoder(memory, {LOGITS: ids})[LOGITS][:, -1])
        ids = torch.cat([ids, steps[-1].argmax(dim=1, keepdim=True)], dim=1)
    return torch.stack(steps, dim=1)


def beginnings(memory: Memory) -> Int[Tensor, " texts"]:
    return torch.full((len(memory),), BOS, device=memory.values.device)


if __name__ == "__main__":
    main()
