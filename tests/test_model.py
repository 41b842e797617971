import re

import pytest
import torch
from torch.testing import assert_close

from perceiver.data.collate import collate
from perceiver.decoders.base import Decoder
from perceiver.latents import Schedule
from perceiver.model import MODALITY_DIM, drop_modalities
from perceiver.types import Grid, JoinedTokens, Sample, Tokens
from tests.kills import in_fork
from tests.models import (
    NUM_CLASSES,
    PERCEIVER,
    PERCEIVER_IO,
    audio_encoder,
    image_encoder,
    logits,
    small_inputs,
    small_perceiver,
    waveform_encoder,
)

CLOSE = {"atol": 1e-5, "rtol": 1e-5}


def join(model, inputs):
    return model.join({name: model.encoders[name](raw) for name, raw in inputs.items()})


def latents_of(model, values, mask=None):
    return model.memory(JoinedTokens(values, mask, {})).values


def present(*samples):
    return torch.tensor(samples, dtype=torch.bool)


def some_pixels(inputs):
    """Masks that hide something of either modality, but nothing whole."""
    masks = {name: torch.rand(raw.shape[0], *raw.shape[2:]) < 0.7 for name, raw in inputs.items()}
    masks["image"][:, :6, :6] = False
    return masks


def test_modalities_are_joined_at_the_widest_one_plus_a_modality_embedding():
    model, inputs = small_perceiver(), small_inputs()
    joined = join(model, inputs)
    assert joined.values.shape == (3, 4 * 5 + 5 * 7, (3 * 3 * 3 + 2 * 5) + MODALITY_DIM)
    assert {name: (span.start, span.stop, span.grid.shape) for name, span in joined.spans.items()} == {
        "image": (0, 20, (4, 5)),
        "depth": (20, 55, (5, 7)),
    }
    for name, span in joined.spans.items():
        tokens = model.encoders[name](inputs[name]).values
        widened = joined.values[:, span.start : span.stop]
        assert_close(widened[..., : tokens.shape[2]], tokens, atol=0, rtol=0)
        embedding = model.join.embeddings[name]
        assert embedding.shape[0] >= MODALITY_DIM
        assert_close(widened[..., tokens.shape[2] :], embedding.expand(3, len(tokens[0]), -1), atol=0, rtol=0)


def test_a_single_modality_is_not_widened():
    model, inputs = small_perceiver(encoders={"image": image_encoder()}), small_inputs()
    tokens = model.encoders["image"](inputs["image"]).values
    assert model.join.dim == model.encoders["image"].dim
    assert_close(join(model, {"image": inputs["image"]}).values, tokens, atol=0, rtol=0)


def test_the_order_of_the_tokens_does_not_matter():
    model = small_perceiver()
    joined = join(model, small_inputs())
    mask = torch.rand(joined.values.shape[:2]) < 0.6
    order = torch.randperm(mask.shape[1])
    latents = latents_of(model, joined.values, mask)
    assert_close(latents_of(model, joined.values[:, order], mask[:, order]), latents, **CLOSE)
    assert not torch.allclose(latents_of(model, joined.values, mask[:, order]), latents, **CLOSE)


def test_masked_tokens_appended_to_a_sequence_change_nothing():
    model = small_perceiver()
    joined = join(model, small_inputs())
    padded = torch.cat([joined.values, 1e3 * torch.randn(3, 7, joined.values.shape[2])], dim=1)
    mask = torch.ones(padded.shape[:2], dtype=torch.bool)
    mask[:, -7:] = False
    assert_close(latents_of(model, padded, mask), latents_of(model, joined.values), **CLOSE)
    assert not torch.allclose(latents_of(model, padded), latents_of(model, joined.values), **CLOSE)


@pytest.mark.parametrize("name", ["image", "depth"])
def test_what_masked_pixels_hold_changes_nothing(name):
    model, inputs = small_perceiver(), small_inputs()
    mask = torch.ones(3, *inputs[name].shape[2:], dtype=torch.bool)
    mask[0, 3:], mask[1, :, 3:] = False, False  # whole patches
    junk = inputs | {name: inputs[name].masked_fill(~mask[:, None], 1e3)}
    assert_close(logits(model, junk, {name: mask}), logits(model, inputs, {name: mask}), **CLOSE)
    assert not torch.allclose(logits(model, inputs), logits(model, inputs, {name: mask}), **CLOSE)


@pytest.mark.parametrize(("missing", "left"), [("image", "depth"), ("depth", "image")])
def test_a_modality_missing_for_a_sample_equals_leaving_it_out_for_that_sample(missing, left):
    model, inputs = small_perceiver(), small_inputs()
    out = logits(model, inputs, {missing: present(True, False, True)})
    assert_close(out[1:2], logits(model, {left: inputs[left][1:2]}), **CLOSE)
    assert_close(out[::2], logits(model, inputs)[::2], **CLOSE)
    assert not torch.allclose(out[1], logits(model, inputs)[1], **CLOSE)


@pytest.mark.parametrize(("missing", "left"), [("image", "depth"), ("depth", "image")])
def test_a_modality_missing_for_all_samples_equals_leaving_it_out_altogether(missing, left):
    model, inputs = small_perceiver(), small_inputs()
    out = logits(model, inputs, {missing: present(False, False, False)})
    assert_close(out, logits(model, {left: inputs[left]}), **CLOSE)


def test_a_sample_without_any_modality_gives_finite_outputs_and_gradients():
    model, inputs = small_perceiver(), small_inputs()
    masks = {"image": present(True, False, True), "depth": torch.zeros(3, 5, 7, dtype=torch.bool)}
    out = logits(model, inputs, masks)
    out.square().sum().backward()
    assert out.isfinite().all()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
    assert_close(out[1], logits(model, {"depth": torch.rand(1, 1, 5, 7)}, {"depth": present(False)})[0], **CLOSE)


def test_the_order_of_the_inputs_does_not_matter():
    model, inputs = small_perceiver(), small_inputs()
    masks = some_pixels(inputs)
    turned = logits(model, {name: inputs[name] for name in ("depth", "image")}, dict(reversed(masks.items())))
    assert_close(turned, logits(model, inputs, masks), atol=0, rtol=0)


def test_a_batch_gives_what_its_samples_give_one_by_one():
    model, inputs = small_perceiver(), small_inputs()
    masks = some_pixels(inputs)

    def sample(tensors, index):
        return {name: tensor[index : index + 1] for name, tensor in tensors.items()}

    singles = torch.cat([logits(model, sample(inputs, index), sample(masks, index)) for index in range(3)])
    assert singles.shape == (3, NUM_CLASSES)
    assert_close(singles, logits(model, inputs, masks), **CLOSE)


def test_the_decoder_is_asked_with_the_queries_and_its_outputs_are_the_models():
    class Asked(Decoder):
        def forward(self, memory, queries=None):
            return {"memory": memory.values} | queries

    model, inputs = small_perceiver(decoder=Asked()), small_inputs()
    masks = some_pixels(inputs)
    queries = {"words": torch.rand(3, 7), "places": torch.rand(3, 13)}
    assert_close(model(inputs, masks, queries), {"memory": model.encode(inputs, masks).values} | queries)
    assert_close(model.forward_tokens(model.tokens(inputs, masks), queries), model(inputs, masks, queries))


def test_modality_dropout_acts_in_training_only():
    inputs = small_inputs(batch=23)
    model = small_perceiver(modality_dropout=0.5)
    whole = logits(model, inputs)
    assert_close(logits(model, inputs), whole, atol=0, rtol=0)
    alone = {name: logits(model, {name: raw}) for name, raw in inputs.items()}
    model.train()
    dropped = logits(model, inputs)
    kinds = torch.stack([(dropped - out).abs().amax(dim=1) < 1e-5 for out in (whole, *alone.values())])
    assert (kinds.sum(dim=0) == 1).all(), "each sample keeps both modalities or loses exactly one"
    assert kinds.any(dim=1).all()
    model.modality_dropout = 0.0
    assert_close(logits(model, inputs), whole, **CLOSE)


def token_masks(*masks):
    grid = Grid(shape=(), axes=())
    return {str(i): Tokens(values=torch.zeros(*mask.shape, 1), mask=mask, grid=grid) for i, mask in enumerate(masks)}


@pytest.mark.parametrize("num_modalities", [1, 2, 3])
def test_modality_dropout_hides_whole_modalities_and_never_the_last_one(num_modalities):
    before = [torch.rand(5003, length) < 0.4 for length in (2, 3, 5)[:num_modalities]]
    after = drop_modalities(token_masks(*before), 0.99)
    there = torch.stack([mask.any(dim=1) for mask in before])
    kept = torch.stack([tokens.mask.any(dim=1) for tokens in after.values()])
    for mask, tokens, keeps in zip(before, after.values(), kept, strict=True):
        assert (tokens.mask == (mask & keeps[:, None])).all()
    assert (kept.any(dim=0) == there.any(dim=0)).all()
    assert (kept <= there).all()
    assert kept.sum(dim=0).float().mean() < 1.1


def test_modality_dropout_drops_each_of_two_with_the_probability_less_the_half_where_it_is_the_last():
    everything = torch.ones(40009, 1, dtype=torch.bool)
    for probability in (0.1, 0.5, 0.9):
        for tokens in drop_modalities(token_masks(everything, everything), probability).values():
            dropped = 1 - tokens.mask.float().mean().item()
            assert dropped == pytest.approx(probability - probability**2 / 2, abs=0.01)


@pytest.mark.parametrize("schedule", [PERCEIVER, PERCEIVER_IO, {"num_cross_attends": 2, "num_blocks": 3}], ids=str)
def test_every_parameter_gets_a_gradient(schedule):
    model = small_perceiver(schedule=Schedule(num_self_attends=2, **schedule))
    logits(model, small_inputs()).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        # A key bias shifts all logits of a query alike, which the softmax does not see.
        assert name.endswith("key.bias") or (parameter.grad != 0).any(), name


@pytest.mark.parametrize(
    ("inputs", "masks", "named"),
    [
        ({"sound": (1, 1, 5, 7)}, {}, "'sound'.*image.*depth"),
        ({"depth": (1, 1, 5, 7)}, {"sound": (1,)}, "'sound'.*image.*depth"),
        ({}, {}, "empty.*image.*depth"),
        ({"image": (1, 5, 11, 13)}, {}, r"channels=3.*\[1, 5, 11, 13\]"),
    ],
    ids=["unknown input", "unknown mask", "no input", "wrong channels"],
)
def test_inputs_that_do_not_fit_the_model_are_named_in_the_error(inputs, masks, named):
    with pytest.raises(ValueError, match=re.compile(named)):
        small_perceiver()(
            {name: torch.zeros(shape) for name, shape in inputs.items()},
            {name: torch.ones(shape, dtype=torch.bool) for name, shape in masks.items()},
        )


@pytest.mark.parametrize(
    ("wrong", "named"),
    [({"encoders": {}}, "at least one encoder"), ({"modality_dropout": 1.0}, r"modality_dropout=1\.0")],
)
def test_parts_that_make_no_model_are_named_in_the_error(wrong, named):
    with pytest.raises(ValueError, match=named):
        small_perceiver(**wrong)


def test_compiling_in_place_changes_neither_the_output_nor_the_names_of_the_weights():
    model, inputs = small_perceiver(schedule=Schedule(num_self_attends=1, **PERCEIVER_IO)), small_inputs()
    masks = some_pixels(inputs)
    out, names = logits(model, inputs, masks), list(model.state_dict())
    model.compile(backend="aot_eager")
    assert_close(logits(model, inputs, masks), out, **CLOSE)
    assert list(model.state_dict()) == names


def test_a_saved_model_gives_the_same_output_when_loaded(tmp_path):
    model, other, inputs = small_perceiver(), small_perceiver(), small_inputs()
    torch.save(model.state_dict(), tmp_path / "model.pt")
    assert not torch.allclose(logits(other, inputs), logits(model, inputs), **CLOSE)
    other.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True))
    assert_close(logits(other, inputs), logits(model, inputs), atol=0, rtol=0)


@pytest.mark.parametrize("make_encoder", [audio_encoder, waveform_encoder])
class TestSound:
    """Sound beside images, in a batch whose sounds differ in length."""

    @pytest.fixture
    def model(self, make_encoder):
        return small_perceiver(
            encoders={"image": image_encoder(), "audio": make_encoder()},
            schedule=Schedule(num_self_attends=1, **PERCEIVER_IO),
        )

    @pytest.fixture
    def samples(self):
        inputs = [
            {"image": torch.rand(3, 11, 13), "audio": torch.randn(1, 331)},
            {"audio": torch.randn(1, 1061)},
            {"image": torch.rand(3, 11, 13)},
            {"audio": torch.randn(1, 37), "image": torch.rand(3, 11, 13)},
        ]
        return [Sample(of_one, {}, str(row)) for row, of_one in enumerate(inputs)]

    def test_a_batch_gives_what_its_samples_give_one_by_one_whatever_they_lack(self, model, samples):
        batch = collate(samples)
        alone = torch.cat(
            [logits(model, {name: raw[None] for name, raw in sample.inputs.items()}) for sample in samples]
        )
        assert_close(logits(model, batch.inputs, batch.masks), alone, **CLOSE)

    def test_the_order_of_the_tokens_does_not_matter(self, model, samples):
        batch = collate(samples)
        joined = model.join({n: model._tokens(n, raw, batch.masks[n]) for n, raw in batch.inputs.items()})
        order = torch.randperm(joined.values.shape[1])
        shuffled = latents_of(model, joined.values[:, order], joined.mask[:, order])
        assert_close(shuffled, latents_of(model, joined.values, joined.mask), **CLOSE)

    def test_every_parameter_gets_a_gradient(self, model, samples):
        batch = collate(samples)
        logits(model.train(), batch.inputs, batch.masks).square().sum().backward()
        for name, parameter in model.named_parameters():
            assert name.endswith("key.bias") or (parameter.grad != 0).any(), name


@pytest.mark.slow
def test_compiling_a_model_of_sound_changes_no_output():
    # In a process of its own: the compiler starts threads with which later tests could not be forked.
    assert in_fork(_compile_a_model_of_sound) == 0


def _compile_a_model_of_sound() -> None:
    model = small_perceiver(
        encoders={"audio": audio_encoder(), "wave": waveform_encoder()},
        schedule=Schedule(num_self_attends=0, **PERCEIVER_IO),
    )
    waves = [torch.randn(1, length) for length in (331, 1061)]
    batch = collate([Sample({"audio": wave, "wave": wave}, {}, "x") for wave in waves])
    out = logits(model, batch.inputs, batch.masks)
    model.compile(backend="aot_eager")
    assert_close(logits(model, batch.inputs, batch.masks), out, **CLOSE)
