"""What keeping keys and values is worth: `uv run scripts/benchmark_generation.py [any override of train.py]`.

An untrained model writes texts of the greatest length (`tokenizer.max_length`) greedily, once with the keys and values
of the words so far kept, once reading the whole text anew for each word, in turn. Prints the words a second of both,
medians, their ratio, and how far the logits of the two lie apart.
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

from perceiver.decoders.text import TextDecoder
from perceiver.tokenizer import BOS
from perceiver.training.build import build
from perceiver.training.config import resolved
from perceiver.training.errors import ConfigError, explained
from perceiver.training.launch import command_line
from perceiver.training.run import prepare_torch
from perceiver.training.summary import console
from perceiver.training.timing import example_batch, synchronize

Logits = Float[Tensor, "texts words vocab"]


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
        raise ConfigError(f"decoder: {type(decoder).__name__} writes no texts; choose decoder@model.decoder=text")
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    parts.model.to(device).eval()
    batch = example_batch(parts.data).to(device)
    length = parts.tokenizer.max_length - 1  # the last place asks for no further word
    with torch.no_grad():
        latents = parts.model.encode(batch.inputs, batch.masks)
        ways = {"kept": lambda: kept(decoder, latents, length), "anew": lambda: anew(decoder, latents, length)}
        seconds: dict[str, list[float]] = {way: [] for way in ways}
        logits: dict[str, Logits] = {}
        for repeat in range(repeats + 1):
            for way, write in ways.items():
                taken, logits[way] = timed(write, device)
                if repeat:  # the first warms up
                    seconds[way].append(taken)
    rates = {way: texts * length / statistics.median(times) for way, times in seconds.items()}
    table = Table(show_header=False)
    for name, value in {
        "device": f"{device.type}, {torch.get_num_threads()} threads",
        "texts, words each": f"{texts}, {length}",
        "words a second, keys and values kept": f"{rates['kept']:,.0f} (median of {repeats})",
        "words a second, read anew": f"{rates['anew']:,.0f} (median of {repeats})",
        "ratio": f"{rates['kept'] / rates['anew']:.2f}",
        "largest difference of logits": f"{float((logits['kept'] - logits['anew']).abs().max()):.1e}",
    }.items():
        table.add_row(name, value)
    console.print(table)


def timed(write: Callable[[], Logits], device: torch.device) -> tuple[float, Logits]:
    synchronize(device)
    start = time.perf_counter()
    logits = write()
    synchronize(device)
    return time.perf_counter() - start, logits


def kept(decoder: TextDecoder, latents: Float[Tensor, "texts latents dim"], length: int) -> Logits:
    writing, words, steps = decoder.begin(latents), beginnings(latents), []
    for _ in range(length):
        steps.append(writing.next(words[:, -1:]))
        words = torch.cat([words, steps[-1].argmax(dim=1, keepdim=True)], dim=1)
    return torch.stack(steps, dim=1)


def anew(decoder: TextDecoder, latents: Float[Tensor, "texts latents dim"], length: int) -> Logits:
    words, steps = beginnings(latents), []
    for _ in range(length):
        steps.append(decoder(latents, words)[:, -1])
        words = torch.cat([words, steps[-1].argmax(dim=1, keepdim=True)], dim=1)
    return torch.stack(steps, dim=1)


def beginnings(latents: Float[Tensor, "texts latents dim"]) -> Int[Tensor, "texts 1"]:
    return torch.full((len(latents), 1), BOS, device=latents.device)


if __name__ == "__main__":
    main()
