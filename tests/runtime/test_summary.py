"""The cost of a model, compared with a count by hand."""

from pathlib import Path

import pytest
import torch
from torch import nn

from perceiver.attention import BlockSpec
from perceiver.data.collate import collate
from perceiver.decoders.base import Decoder
from perceiver.decoders.pooled import PooledDecoder
from perceiver.decoders.text import TextDecoder
from perceiver.encoders.stems import PixelStem
from perceiver.latents import Schedule
from perceiver.model import Perceiver
from perceiver.positions import FourierPositions
from perceiver.queries.text import Text
from perceiver.runtime.cost import cost_metrics, count_parameters, flops_per_sample
from perceiver.runtime.summary import console, metrics_table, model_table, show_files
from perceiver.tasks.captioning import Captioning
from perceiver.tasks.classification import Classification
from perceiver.tasks.generation import BeamSearch
from perceiver.tasks.losses import LossSpec
from perceiver.tokenizer import ByteTokenizer
from perceiver.types import Batch, Sample
from tests.models import NUM_CLASSES, image_encoder, latents, small_inputs, small_perceiver
from tests.runs import weights_equal

ROWS, COLUMNS, LATENTS, DIM, HEADS, CLASSES = 5, 7, 11, 24, 3, 13
TOKENS = ROWS * COLUMNS
TOKEN_DIM = 3 + 2 * (2 * 2 + 1)
TASK = Classification(num_classes=CLASSES, loss=LossSpec(), mixup=0.0, cutmix=0.0)
CROSS = BlockSpec(num_heads=1, qk_dim=16, v_dim=16, widening=2)
SELF = BlockSpec(num_heads=HEADS, widening=1)


def perceiver(block_sharing: str = "all", num_self_attends: int = 2, decoder: Decoder | None = None) -> Perceiver:
    return Perceiver(
        encoders={"image": image_encoder(PixelStem(channels=3), FourierPositions(num_bands=2, max_resolution=(5, 7)))},
        memory=latents(
            num_latents=LATENTS,
            dim=DIM,
            cross_attention=CROSS,
            self_attention=SELF,
            schedule=Schedule(
                num_cross_attends=2, num_blocks=3, num_self_attends=num_self_attends, block_sharing=block_sharing
            ),
        ),
        decoder=decoder or PooledDecoder(dim=DIM, num_classes=CLASSES),
    )


def images(count: int) -> Batch:
    return collate([Sample({"image": torch.rand(3, ROWS, COLUMNS)}, {"label": 0}, str(n)) for n in range(count)])


def linear(rows: int, inputs: int, outputs: int) -> int:
    return 2 * rows * inputs * outputs


def cross_attention(num_queries: int, num_keys: int, query_dim: int, input_dim: int, width: int) -> int:
    """Of a single head: with keys and values, or with their weights applied to queries and outputs."""
    projected = 2 * linear(num_keys, input_dim, width) + 2 * linear(num_queries, width, num_keys)
    unprojected = 2 * linear(num_queries, input_dim, width) + 2 * linear(num_queries, input_dim, num_keys)
    return 2 * linear(num_queries, query_dim, width) + min(projected, unprojected)


def by_hand() -> int:
    cross = (
        cross_attention(LATENTS, TOKENS, DIM, TOKEN_DIM, 16)
        + linear(LATENTS, DIM, 2 * DIM)
        + linear(LATENTS, 2 * DIM, DIM)
    )
    self_ = (
        4 * linear(LATENTS, DIM, DIM)  # queries, keys, values, output
        + 2 * HEADS * linear(LATENTS, DIM // HEADS, LATENTS)
        + 2 * linear(LATENTS, DIM, DIM)
    )
    return 2 * cross + 3 * 2 * self_ + linear(1, DIM, CLASSES)


class TestFlops:
    def test_they_equal_a_count_by_hand(self):
        assert flops_per_sample(perceiver(), TASK, images(1)) == by_hand()

    def test_those_of_a_text_decoder_include_its_input_tokens(self):
        layer = BlockSpec(num_heads=1, qk_dim=8, v_dim=8, widening=2)
        queries = Text(vocab_size=262, max_length=97, dim=16)
        blocks = {"self_attention": layer, "cross_attention": layer}
        decoder = TextDecoder(dim=DIM, queries=queries, num_layers=3, dropout=0.0, tied=True, **blocks)
        generation = BeamSearch(num_beams=1, length_penalty=0.0, presence_penalty=0.0, no_repeat_ngram_size=0)
        tokenizer = ByteTokenizer(vocab_size=262, max_length=97)
        task = Captioning(
            tokenizer=tokenizer, label_smoothing=0.0, captions_per_sample=1, monitor="loss", generation=generation
        )
        batch = images(2)
        batch.targets["caption"] = ["seven words of a text", "as long as this one is"]
        words = tokenizer.encode_batch(batch.targets["caption"]).shape[1] - 1
        mlp = 2 * linear(words, 16, 32)
        self_ = 4 * linear(words, 16, 8) + 2 * linear(words, 8, words) + mlp
        cross = cross_attention(words, LATENTS, 16, DIM, 8) + mlp
        expected = by_hand() - linear(1, DIM, CLASSES) + 3 * (self_ + cross) + linear(words, 16, 262)
        assert flops_per_sample(perceiver(decoder=decoder), task, batch) == expected

    def test_they_are_of_one_sample_and_do_not_depend_on_shared_weights(self):
        assert flops_per_sample(perceiver("none"), TASK, images(3)) == by_hand()

    def test_counting_changes_nothing_in_the_model(self):
        model = perceiver().train()
        before = {name: value.clone() for name, value in model.state_dict().items()}
        flops_per_sample(model, TASK, images(2))
        assert model.training
        assert all(value.device.type == "cpu" and value.requires_grad for value in model.parameters())
        assert weights_equal(model.state_dict(), before)

    @pytest.mark.parametrize("compiles", [False, pytest.param(True, marks=pytest.mark.slow)])
    def test_a_masked_batch_and_a_compiled_model_can_be_counted(self, compiles):
        model, inputs = small_perceiver(), small_inputs()
        present = {"depth": torch.tensor([True, False, True])}
        batch = Batch(inputs=inputs, targets={}, ids=["a", "b", "c"], masks=present)
        task = Classification(num_classes=NUM_CLASSES, loss=LossSpec(), mixup=0.0, cutmix=0.0)
        counted = flops_per_sample(model, task, batch)
        assert counted > 0
        if compiles:
            model.compile()
            assert flops_per_sample(model, task, batch) == counted


class TestParameters:
    def test_shared_blocks_count_once(self):
        one_block = count_parameters(perceiver(num_self_attends=1)) - count_parameters(perceiver(num_self_attends=0))
        shared, unshared = count_parameters(perceiver("all")), count_parameters(perceiver("none"))
        assert unshared - shared == 2 * 2 * one_block > 0

    def test_frozen_ones_count_and_buffers_do_not(self):
        model = nn.Sequential(nn.Linear(5, 7).requires_grad_(False), nn.BatchNorm1d(7))
        assert count_parameters(model) == 5 * 7 + 7 + 2 * 7


class TestTables:
    def test_the_model_table_names_every_part_with_its_parameters_and_their_sum(self):
        model = perceiver()
        with console.capture() as printed:
            console.print(model_table(model, cost_metrics(model, TASK, images(1)), images(1)), width=120)
        text = printed.get()
        for part in (model.encoders["image"], model.memory, model.decoder, model):
            assert f"{count_parameters(part):,}" in text
        assert all(name in text for name in ("encoders.image", "memory", "decoder", "image 3×5×7", "GFLOPs"))

    def test_the_metrics_table_shows_names_as_they_are(self):
        with console.capture() as printed:
            console.print(metrics_table({"test/accuracy": 0.98765, "n[bold]": 12345.6}))
        text = printed.get()
        assert all(part in text for part in ("test/accuracy", "0.9877", "n[bold]", "12,346"))

    def test_paths_are_not_broken_where_lines_are_short(self, monkeypatch):
        monkeypatch.setattr(console, "width", 30)
        files = {"best checkpoint": Path("[red]" * 9, "a b" * 9, "best.ckpt"), "metrics": Path("m.json")}
        with console.capture() as printed:
            show_files(files)
        assert [line.split("  ")[-1].strip() for line in printed.get().splitlines()] == [*map(str, files.values())]
