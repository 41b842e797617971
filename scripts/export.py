"""Export a run for use elsewhere: `uv run scripts/export.py run=outputs/… format=onnx`.

Formats are `safetensors`, `transformers`, `onnx` and `torch_export`.
The outputs of what was written are compared with those of the run, and the exit status is 1 if they differ by more
than `tolerance`.
"""

import hydra
from omegaconf import DictConfig

from perceiver.runtime.command_line import command_line
from perceiver.runtime.errors import report_user_errors


@report_user_errors
@command_line
@hydra.main(version_base="1.3", config_path="../conf", config_name="export")
@report_user_errors
def main(cfg: DictConfig) -> float:
    from perceiver.commands.export import export

    return export(cfg)


if __name__ == "__main__":
    main()
