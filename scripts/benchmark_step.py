"""Cost of one training step: `uv run scripts/benchmark_step.py [any override of experiments/train.py] [steps=20]`.

Prints parameters, FLOPs per sample (attention included), step time, samples per second and peak memory; and the ratio
of the step's FLOP/s to those of a large matrix product, measured in the same process and precision. A step is forward,
backward and optimizer on one batch on the device; its FLOPs are three times those of the forward pass.
"""

import hydra
from omegaconf import DictConfig, open_dict

from perceiver.runtime.command_line import command_line
from perceiver.runtime.errors import report_user_errors


@report_user_errors
@command_line
@hydra.main(version_base="1.3", config_path="../conf", config_name="benchmark_step")
@report_user_errors
def main(cfg: DictConfig) -> None:
    from perceiver.runtime.config import resolved
    from perceiver.runtime.cost import count_parameters, flops_per_sample
    from perceiver.runtime.summary import show_values
    from perceiver.runtime.torch_settings import prepare_torch
    from perceiver.training.build import build
    from perceiver.training.timing import (
        TrainingStep,
        example_batch,
        matrix_product_rate,
        median_seconds,
        peak_bytes,
    )

    with open_dict(cfg):
        warmup, steps = cfg.pop("warmup"), cfg.pop("steps")
    config = resolved(cfg)
    prepare_torch(config)
    parts = build(config)
    batch = example_batch(parts.data)
    flops = flops_per_sample(parts.model, parts.task, batch)
    parameters = count_parameters(parts.model)
    step = TrainingStep(parts, config)
    batch = batch.to(step.device)
    seconds = median_seconds(lambda: step(batch), step.device, warmup=warmup, repeats=steps)
    memory = peak_bytes(step.device)
    rate = 3 * flops * len(batch) / seconds
    ceiling = matrix_product_rate(step.device, config["trainer"]["precision"])
    show_values(
        {
            "device": step.description,
            "parameters": f"{parameters:,}",
            "FLOPs per sample, forward": f"{flops / 1e9:,.4g} G",
            "batch size": f"{len(batch)}",
            "step time": f"{seconds * 1e3:,.1f} ms (median of {steps})",
            "samples per second": f"{len(batch) / seconds:,.1f}",
            "peak memory": f"{memory / 2**30:,.2f} GiB",
            "rate of the step": f"{rate / 1e12:,.3f} TFLOP/s",
            "rate of a matrix product": f"{ceiling / 1e12:,.3f} TFLOP/s",
            "share": f"{rate / ceiling:.1%}",
        }
    )


if __name__ == "__main__":
    main()
