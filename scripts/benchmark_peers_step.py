"""One step of the model of one package, in whose environment this file is run; prints its time and memory as JSON.

Also its floating-point operations, as executed, and the rate of matrix products in the same process. See
benchmark_peers.py.
"""

import gc
import json
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

NUM_CLASSES = 1000
NUM_BANDS = 64
Forward = Callable[[Tensor], Tensor]


def ours(size: dict[str, int]) -> tuple[nn.Module, Forward]:
    from functools import partial

    from perceiver import Perceiver
    from perceiver.attention import BlockSpec
    from perceiver.decoders.queries import QueryDecoder
    from perceiver.encoders.image import ImageEncoder
    from perceiver.encoders.stems import PixelStem
    from perceiver.latents import LatentArray, Schedule
    from perceiver.positions import FourierPositions
    from perceiver.queries.learned import Learned

    side, dim = size["side"], size["dim"]
    positions = FourierPositions(num_bands=NUM_BANDS, max_resolution=(side, side))
    encoder = ImageEncoder(stem=PixelStem(channels=3), positions=positions, combine="concat", mean=0.0, std=1.0)
    schedule = Schedule(
        num_cross_attends=1, num_blocks=size["num_blocks"], num_self_attends=size["num_layers"], block_sharing="all"
    )
    one_head, heads = BlockSpec(num_heads=1, init_scale=1.0), BlockSpec(num_heads=8, init_scale=1.0)
    attention: dict[str, Any] = {"cross_attention": one_head, "self_attention": heads, "schedule": schedule}
    memory = partial(LatentArray, num_latents=size["num_latents"], dim=dim, **attention)
    queries = Learned(num_queries=1, dim=dim)
    decoder = QueryDecoder(dim=dim, num_classes=NUM_CLASSES, queries=queries, attention=one_head)
    model = Perceiver(encoders={"image": encoder}, memory=memory, decoder=decoder)
    return model, lambda images: model({"image": images})["logits"]


def transformers(size: dict[str, int]) -> tuple[nn.Module, Forward]:
    from transformers import PerceiverConfig, PerceiverForImageClassificationFourier

    model = PerceiverForImageClassificationFourier(
        PerceiverConfig(
            num_latents=size["num_latents"],
            d_latents=size["dim"],
            num_blocks=size["num_blocks"],
            num_self_attends_per_block=size["num_layers"],
            num_self_attention_heads=8,
            num_cross_attention_heads=1,
            attention_probs_dropout_prob=0.0,
            num_labels=NUM_CLASSES,
        )
    )
    return model, lambda images: model(images).logits


def perceiver_io(size: dict[str, int]) -> tuple[nn.Module, Forward]:
    from perceiver.model.core.config import ClassificationDecoderConfig, PerceiverIOConfig
    from perceiver.model.vision.image_classifier.backend import ImageClassifier, ImageEncoderConfig

    encoder = ImageEncoderConfig(
        image_shape=(size["side"], size["side"], 3),
        num_frequency_bands=NUM_BANDS,
        num_cross_attention_heads=1,
        num_self_attention_heads=8,
        num_self_attention_layers_per_block=size["num_layers"],
        num_self_attention_blocks=size["num_blocks"],
    )
    decoder = ClassificationDecoderConfig(
        num_output_query_channels=size["dim"], num_cross_attention_heads=1, num_classes=NUM_CLASSES
    )
    latents = {"num_latents": size["num_latents"], "num_latent_channels": size["dim"]}
    model = ImageClassifier(PerceiverIOConfig(encoder, decoder, **latents))
    return model, lambda images: model(images.permute(0, 2, 3, 1))


def perceiver_pytorch(size: dict[str, int]) -> tuple[nn.Module, Forward]:
    """Return the model that is closest: MLPs four times as wide with a gate, and every layer shares its weights."""
    from perceiver_pytorch import PerceiverIO

    side, dim, width = size["side"], size["dim"], 3 + 2 * (2 * NUM_BANDS + 1)
    model = PerceiverIO(
        depth=size["num_blocks"] * size["num_layers"],
        dim=width,
        queries_dim=dim,
        logits_dim=NUM_CLASSES,
        num_latents=size["num_latents"],
        latent_dim=dim,
        cross_dim_head=width,
        latent_dim_head=dim // 8,
        weight_tie_layers=True,
    )
    model.query = nn.Parameter(torch.randn(1, dim))
    axis = torch.linspace(-1.0, 1.0, side)
    places = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), dim=-1).flatten(0, 1)
    angles = places[..., None] * torch.linspace(1.0, side / 2, NUM_BANDS) * torch.pi
    features = torch.cat([angles.sin().flatten(1), angles.cos().flatten(1), places], dim=-1)

    def forward(images: Tensor) -> Tensor:
        positions = features.expand(len(images), -1, -1)
        return model(torch.cat([images.flatten(2).mT, positions], dim=-1), queries=model.query)

    return model, forward


BUILD = {
    "perceiver": ours,
    "transformers": transformers,
    "perceiver-io": perceiver_io,
    "perceiver-pytorch": perceiver_pytorch,
}


def main() -> None:
    setting = json.loads(sys.argv[1])
    torch.set_num_threads(setting["threads"])
    torch.manual_seed(0)
    model, forward = BUILD[setting["package"]](setting)
    images = torch.rand(setting["batch_size"], 3, setting["side"], setting["side"])
    trains = setting["mode"] == "training"
    model.train(trains)
    low = setting["precision"] == "bfloat16"

    def step() -> None:
        precision: AbstractContextManager[Any] = torch.autocast("cpu", torch.bfloat16) if low else nullcontext()
        with torch.set_grad_enabled(trains):
            with precision:
                loss = forward(images).float().square().sum()
            if trains:
                loss.backward()

    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts at the current size
    before = memory("VmRSS")
    step()
    peak = memory("VmHWM") - before
    seconds = []
    for _ in range(setting["steps"]):
        model.zero_grad()
        start = time.process_time()
        step()
        seconds.append(time.process_time() - start)
    model.requires_grad_(trains)  # the counter fails at views of parameters in inference
    result = {
        "seconds": min(seconds),
        "mebibytes": peak / 1024,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "flops": executed_flops(step),
        "rate": product_rate(setting, torch.bfloat16 if low else torch.float32),
    }
    print(json.dumps(result))


def executed_flops(step: Callable[[], None]) -> int:
    """Return the floating-point operations of all matrix products, those computed again included."""
    kernel = "_scaled_dot_product_flash_attention_for_cpu"  # the counter does not know it
    fused = {
        getattr(torch.ops.aten, kernel): lambda *qkv, **_: sdpa_flop_count(*qkv[:3]),
        getattr(torch.ops.aten, f"{kernel}_backward"): lambda *shapes, **_: sdpa_backward_flop_count(*shapes[:4]),
    }
    with FlopCounterMode(display=False, custom_mapping=fused) as counter:
        step()
    return counter.get_total_flops()


def product_rate(setting: dict[str, Any], dtype: torch.dtype) -> float:
    """Return the highest FLOP/s of the largest matrix products: projections of latents and scores of self-attention.

    Those of an MLP are as large as projections. Of each, the forward product and both backward products count.
    """
    samples, latents, dim = setting["batch_size"], setting["num_latents"], setting["dim"]
    projection = (1, samples * latents, dim, dim)
    scores = (8 * samples, latents, dim // 8, latents)
    rates = []
    for count, rows, inner, columns in (projection, scores):
        x, weight = torch.randn(count, rows, inner, dtype=dtype), torch.randn(count, columns, inner, dtype=dtype)
        gradient = torch.randn(count, rows, columns, dtype=dtype)
        products = ((x, weight.mT), (gradient, weight), (gradient.mT, x))
        seconds = sum(least_seconds(*product) for product in products)
        rates.append(3 * 2 * count * rows * inner * columns / seconds)
    return max(rates)


def least_seconds(a: Tensor, b: Tensor) -> float:
    """Return the least CPU time of a product of matrices, in ten attempts of at least 20 ms each."""
    times, repeats = [], 1
    while len(times) < 10:
        start = time.process_time()
        for _ in range(repeats):
            torch.bmm(a, b)
        passed = time.process_time() - start
        if passed < 0.02:
            repeats *= 2
        else:
            times.append(passed / repeats)
    return min(times)


def memory(field: str) -> int:
    """Return a field of the status of this process, in KiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))


if __name__ == "__main__":
    main()
