"""Write any data set as shards: `uv run scripts/write_shards.py data=flickr8k data.root=PATH out=PATH [key=value]`.

The samples of all stages are written into tars that `data=image_shards`, `sound_shards`, `caption_shards` and
`sound_caption_shards` read: files are copied, values in memory written without loss (see
`perceiver.data.shard_writer`). An unreadable sample is an error, or left out and named with `data.on_error=skip`.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from omegaconf import DictConfig, OmegaConf

from perceiver.runtime.command_line import command_line
from perceiver.runtime.errors import ConfigError, report_user_errors

if TYPE_CHECKING:
    from perceiver.data.shard_writer import ShardRecord, ShardRecords
    from perceiver.data.sources.base import OnError
    from perceiver.types import Stage

LONG = 1e6
"""Seconds, longer than any sound, so that none is cropped."""
CHOICES = {
    ("image", "label"): "image_shards",
    ("image", "tags"): "image_shards data.source.target=tags",
    ("image", "references"): "caption_shards",
    ("sound", "label"): "sound_shards data.source.target=label",
    ("sound", "tags"): "sound_shards",
    ("sound", "references"): "sound_caption_shards",
}
"""The data set that reads shards of a kind of file with a kind of target."""


@report_user_errors
@command_line
@hydra.main(version_base="1.3", config_path="../conf", config_name="write_shards")
@report_user_errors
def main(cfg: DictConfig) -> None:
    from perceiver.data.files import UnreadableError
    from perceiver.data.shard_writer import ShardRecords, ShardWriter
    from perceiver.data.sources.tar_index import TarShards
    from perceiver.runtime.summary import console
    from perceiver.training.build import config_errors, construct
    from perceiver.types import STAGES

    kept = kept_settings(cfg.data)
    config = data_config(cfg)
    out = Path(str(cfg.out)).expanduser()
    dataset = construct(config, "data")
    if not isinstance(cfg.samples_per_shard, int):
        raise ConfigError(f"samples_per_shard={cfg.samples_per_shard}: must be an integer")
    try:
        writer = ShardWriter(out, samples_per_shard=cfg.samples_per_shard)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    rates = [node["sample_rate"] for node in config["data"]["readers"].values() if "sample_rate" in node]
    progress = RecordLoader(num_workers=cfg.loader.num_workers, on_error=dataset.on_error)
    try:
        with config_errors(config, "data"):
            dataset.prepare()
            for stage in STAGES:
                if (split := dataset.split(stage)) is not None:
                    records = ShardRecords(split, sample_rate=max(rates, default=0), check=cfg.check)
                    writer.write(stage, progress.load(records, stage))
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
            raise UnreadableError(f"{out}: not all {stage} samples are in the shards")
        console.print(f"{stage}: {count:,} samples in {len(shards.tars)} shards", soft_wrap=True)
    for number, message in enumerate(progress.unreadable, start=1):
        console.print(f"left out ({number}): {message}", soft_wrap=True)
    if progress.dropped:
        console.print(f"targets not written: {', '.join(sorted(progress.dropped))}", soft_wrap=True)
    settings = [f"data={progress.choice}", f"data.source.root={out}", *kept]
    settings += [f"data.source.num_classes={dataset.num_classes}"] if dataset.num_classes else []
    settings += [f"data.source.{stage}_fraction=0" for stage in ("val", "test") if stage not in writer.counts]
    console.print(f"uv run experiments/train.py … {' '.join(settings)}", soft_wrap=True)


class RecordLoader:
    """Loads the records of all stages and collects what is reported at the end.

    Args:
        num_workers: processes that prefetch; 0 for none.
        on_error: what happens to unreadable samples, see `Dataset`.
    """

    def __init__(self, *, num_workers: int, on_error: "OnError") -> None:
        self.num_workers = num_workers
        self.on_error = on_error
        self.unreadable: list[str] = []
        self.dropped: set[str] = set()
        self.choice = ""

    def load(self, records: "ShardRecords", stage: "Stage") -> Iterator["ShardRecord"]:
        """Yield the records of a stage.

        Raises:
            UnreadableError: a sample is unreadable, and `on_error` is `raise`.
            ConfigError: no data set reads such a sample from a shard.
        """
        from rich.progress import Progress
        from torch.utils.data import DataLoader

        from perceiver.data.shard_writer import ShardRecord
        from perceiver.runtime.summary import console

        loader: DataLoader[Any] = DataLoader(records, batch_size=None, num_workers=self.num_workers)
        with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
            for item in progress.track(loader, description=stage, total=len(records)):
                if isinstance(item, ShardRecord):
                    self.dropped |= set(item.dropped)
                    self.choice = choice(item)
                    yield item
                elif self.on_error == "raise":
                    raise item
                else:
                    self.unreadable.append(str(item))


def choice(record: "ShardRecord") -> str:
    """Return the choice of the data set that reads such shards, with a reader for a second kind of file."""
    for name in record.targets:
        if found := CHOICES.get((record.kinds[0], name)):
            modalities = [{"image": "image", "sound": "audio"}[kind] for kind in record.kinds[1:]]
            return " ".join([found, *(f"+reader@data.readers.{name}={name}" for name in modalities)])
    targets = " and ".join(record.targets) or "no targets"
    raise ConfigError(f"data: {record.id}: no data set reads shards of a {record.kinds[0]} with {targets}")


KEPT = ("image_size", "channels", "sample_rate", "seconds", "hop_seconds")


def kept_settings(data: DictConfig) -> list[str]:
    """Return the settings of a data set's readers that also apply to its shards."""
    return [
        f"data.readers.{name}.{key}={str(node[key]).replace(' ', '')}"
        for name, node in data.readers.items()
        for key in KEPT
        if key in node
    ]


def data_config(cfg: DictConfig) -> dict[str, Any]:
    """Return the checked config of the data, without augmentation and cropping."""
    from perceiver.runtime.config import check_parts, register_resolvers

    register_resolvers()
    for name, node in cfg.data.readers.items():
        if "tokenizer" in node:
            raise ConfigError(f"data.readers.{name}: shards do not contain texts; choose data of images or sounds")
        for key, value in (("augment", None), ("log_mel", None), ("seconds", LONG), ("hop_seconds", LONG)):
            if key in node:
                node[key] = value
    config = {"data": OmegaConf.to_container(cfg.data, resolve=True, throw_on_missing=True)}
    check_parts(config)
    return config


if __name__ == "__main__":
    main()
