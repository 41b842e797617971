"""Any data set as shards: `uv run scripts/write_shards.py data=flickr8k data.root=PATH out=PATH [key=value]`.

Writes the samples of all stages into tars that `data=image_shards`, `sound_shards`, `caption_shards` and
`sound_caption_shards` read: files as they are, and what is made or lies in memory without loss (see
`perceiver.data.shard_writer`). What cannot be read ends it, or is left out and named with `data.on_error=skip`.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig, OmegaConf
from rich.progress import Progress
from torch.utils.data import DataLoader

from perceiver.data.dataset import Dataset
from perceiver.data.files import UnreadableError
from perceiver.data.shard_writer import Packed, Packing, ShardWriter
from perceiver.data.sources.base import OnError
from perceiver.data.sources.shard_index import TarShards
from perceiver.runtime.command_line import command_line
from perceiver.runtime.config import check_parts, register_resolvers
from perceiver.runtime.errors import ConfigError, explained
from perceiver.runtime.summary import console
from perceiver.training.build import config_errors, construct
from perceiver.types import Stage

STAGES: tuple[Stage, ...] = ("train", "val", "test")
LONG = 1e6
"""Seconds that no sound has: none is cut."""
CHOICES = {
    ("image", "label"): "image_shards",
    ("image", "tags"): "image_shards data.source.target=tags",
    ("image", "references"): "caption_shards",
    ("sound", "label"): "sound_shards data.source.target=label",
    ("sound", "tags"): "sound_shards",
    ("sound", "references"): "sound_caption_shards",
}
"""The data set that reads shards of a kind of file with a kind of target."""


@explained
@command_line
@hydra.main(version_base="1.3", config_path="../conf", config_name="write_shards")
@explained
def main(cfg: DictConfig) -> None:
    kept = kept_settings(cfg.data)
    config = data_config(cfg)
    out = Path(str(cfg.out)).expanduser()
    dataset: Dataset = construct(config, "data")
    if not isinstance(cfg.samples_per_shard, int):
        raise ConfigError(f"samples_per_shard={cfg.samples_per_shard}: must be a whole number")
    try:
        writer = ShardWriter(out, samples_per_shard=cfg.samples_per_shard)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    rates = [node["sample_rate"] for node in config["data"]["readers"].values() if "sample_rate" in node]
    packer = Packer(num_workers=cfg.loader.num_workers, on_error=dataset.on_error)
    try:
        with config_errors(config, "data"):
            dataset.prepare()
            for stage in STAGES:
                if (split := dataset.split(stage)) is not None:
                    writer.write(
                        stage, packer.packed(Packing(split, sample_rate=max(rates, default=0), check=cfg.check), stage)
                    )
            if "train" not in writer.counts:
                raise ConfigError("data: there are no training samples")
            if names := dataset.class_names:
                writer.write_text("classes.txt", "".join(f"{' '.join(name.split())}\n" for name in names))
        writer.finish()
    finally:
        writer.abandon()
    for stage, count in writer.counts.items():
        shards = TarShards(sorted(out.glob(f"{stage}-*.tar")))
        if len(shards) != count:
            raise UnreadableError(f"{out}: not all samples of {stage} are in their shards")
        console.print(f"{stage}: {count:,} samples in {len(shards.tars)} shards", soft_wrap=True)
    for number, message in enumerate(packer.unreadable, start=1):
        console.print(f"left out, number {number}: {message}", soft_wrap=True)
    if packer.not_kept:
        console.print(f"not kept: {', '.join(sorted(packer.not_kept))}", soft_wrap=True)
    settings = [f"data={packer.choice}", f"data.source.root={out}", *kept]
    settings += [f"data.source.num_classes={dataset.num_classes}"] if dataset.num_classes else []
    settings += [f"data.source.{stage}_fraction=0" for stage in ("val", "test") if stage not in writer.counts]
    console.print(f"uv run experiments/train.py … {' '.join(settings)}", soft_wrap=True)


class Packer:
    """The samples of any stage in their order, and what is to be said of them in the end.

    Args:
        num_workers: processes that read ahead; 0 for none.
        on_error: what happens to what cannot be read, see `Dataset`.
    """

    def __init__(self, *, num_workers: int, on_error: OnError) -> None:
        self.num_workers = num_workers
        self.on_error = on_error
        self.unreadable: list[str] = []
        self.not_kept: set[str] = set()
        self.choice = ""

    def packed(self, packing: Packing, stage: Stage) -> Iterator[Packed]:
        """The samples of a stage.

        Raises:
            UnreadableError: one cannot be read, and none may be skipped.
            ConfigError: no data set would read it from a shard.
        """
        loader: DataLoader[Any] = DataLoader(packing, batch_size=None, num_workers=self.num_workers)
        with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
            for item in progress.track(loader, description=stage, total=len(packing)):
                if isinstance(item, Packed):
                    self.not_kept |= set(item.not_kept)
                    self.choice = choice(item)
                    yield item
                elif self.on_error == "raise":
                    raise item
                else:
                    self.unreadable.append(str(item))


def choice(sample: Packed) -> str:
    """The data set that reads shards of such samples; the readers of a second kind of file are to be added to it."""
    for name in sample.told:
        if found := CHOICES.get((sample.kinds[0], name)):
            others = {"image": "image", "sound": "audio"}
            return " ".join(
                [found, *(f"+reader@data.readers.{others[kind]}={others[kind]}" for kind in sample.kinds[1:])]
            )
    told = " and ".join(sample.told) or "no targets"
    raise ConfigError(f"data: {sample.id} is of {sample.kinds[0]} with {told}, which no data set reads from shards")


KEPT = ("image_size", "channels", "sample_rate", "seconds", "hop_seconds")


def kept_settings(data: DictConfig) -> list[str]:
    """What of the settings of a data set's readers goes for its shards as well."""
    return [
        f"data.readers.{name}.{key}={str(node[key]).replace(' ', '')}"
        for name, node in data.readers.items()
        for key in KEPT
        if key in node
    ]


def data_config(cfg: DictConfig) -> dict[str, Any]:
    """The checked config of the data alone, without what is random in training and what cuts sounds."""
    register_resolvers()
    for name, node in cfg.data.readers.items():
        if "tokenizer" in node:
            raise ConfigError(f"data.readers.{name}: texts are not written to shards; choose data of images or sounds")
        for key, value in (("augment", None), ("log_mel", None), ("seconds", LONG), ("hop_seconds", LONG)):
            if key in node:
                node[key] = value
    config = {"data": OmegaConf.to_container(cfg.data, resolve=True, throw_on_missing=True)}
    check_parts(config)
    return config


if __name__ == "__main__":
    main()
