"""Make the attention explorer of a finished run: `uv run experiments/inspect_attention.py run=outputs/…`."""

from pathlib import Path

import hydra
from omegaconf import DictConfig

from perceiver.runtime.command_line import command_line
from perceiver.runtime.errors import report_user_errors


@report_user_errors
@command_line
@hydra.main(version_base="1.3", config_path="../conf", config_name="inspect_attention")
@report_user_errors
def main(cfg: DictConfig) -> Path | None:
    if cfg.serve:
        from perceiver.commands.serve import serve

        return serve(cfg)
    from perceiver.commands.inspect import inspect_attention

    return inspect_attention(cfg)


if __name__ == "__main__":
    main()
