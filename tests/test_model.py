"""The whole model: modalities are joined, masked, missing and dropped; it compiles and is saved."""

from dataclasses import replace

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

READS_SOUND = Schedule(num_cross_attends=1, num_blocks=1, num_self_attends=1, reads=[["image", "sound"]])
CLOSE = {"atol": 1e-5, "rtol": 1e-5}


def join(model, inputs):
    return model.join({name: model.encoders[name](raw) for name, raw in inputs.items()})


def latents_of(model, values, mask=None):
    return model.memory(JoinedTokens(values, mask, {})).values


def present(*samples):
    return torch.tensor(samples, dtype=torch.bool)


def some_pixels(inputs):
    """Masks that hide something of either modality, but no modality entirely."""
    masks = {name: torch.rand(raw.shape[0], *raw.shape[2:]) < 0.7 for name, raw in inputs.items()}
    masks["image"][:, :6, :6] = False
    return masks


class TestJoin:
    def test_modalities_are_widened_to_the_widest_one_plus_a_modality_embedding(self):
        model, inputs = small_perceiver(), small_inputs()
        joined = join(model, inputs)
        assert joined.values.shape == (3, 4 * 5 + 5 * 7, (3 * 3 * 3 + 2 * 5) + MODALITY_DIM)
        assert {name: (span.start, span.stop, span.grid.shape) for name, span in joined.spans.items()} == {
            "image": (0, 20, (4, 5)),
            "depth": (20, 55, (5, 7)),
        }
        for name, span in joined.spans.items():
            tokens, embedding = model.encoders[name](inputs[name]).values, model.join.embeddings[name]
            widened = joined.values[:, span.start : span.stop]
            assert_close(widened[..., : tokens.shape[2]], tokens, atol=0, rtol=0)
            assert embedding.shape[0] >= MODALITY_DIM
            assert_close(widened[..., tokens.shape[2] :], embedding.expand(3, len(tokens[0]), -1), atol=0, rtol=0)

    def test_a_single_modality_is_not_widened(self):
        model, inputs = small_perceiver(encoders={"image": image_encoder()}), small_inputs()
        tokens = model.encoders["image"](inputs["image"]).values
        assert_close(join(model, {"image": inputs["image"]}).values, tokens, atol=0, rtol=0)

    def test_neither_the_order_of_tokens_and_inputs_nor_masked_tokens_matter(self):
        model, inputs = small_perceiver(), small_inputs()
        values = join(model, inputs).values
        mask, order = torch.rand(values.shape[:2]) < 0.6, torch.randperm(values.shape[1])
        latents = latents_of(model, values, mask)
        assert_close(latents_of(model, values[:, order], mask[:, order]), latents, **CLOSE)
        assert not torch.allclose(latents_of(model, values, mask[:, order]), latents, **CLOSE)
        padded = torch.cat([values, 1e3 * torch.randn(3, 7, values.shape[2])], dim=1)
        longer = torch.cat([mask, torch.zeros(3, 7, dtype=torch.bool)], dim=1)
        assert_close(latents_of(model, padded, longer), latents, **CLOSE)
        masks = some_pixels(inputs)
        turned = logits(model, dict(reversed(inputs.items())), dict(reversed(masks.items())))
        assert_close(turned, logits(model, inputs, masks), atol=0, rtol=0)

    def test_masked_tokens_are_zero_even_if_they_were_not_finite(self):
        model, inputs = small_perceiver(), small_inputs()
        tokens = {name: model.encoders[name](raw) for name, raw in inputs.items()}
        mask = torch.rand(tokens["image"].values.shape[:2]) < 0.6
        spoilt = tokens["image"].values.masked_fill(~mask[..., None], torch.nan)
        joined = model.join(tokens | {"image": replace(tokens["image"], values=spoilt, mask=mask)})
        assert (joined.values[~joined.mask] == 0).all()
        assert_close(joined.values[joined.mask], join(model, inputs).values[joined.mask], atol=0, rtol=0)


class TestTokenMasking:
    """Tokens are replaced by a learned vector of their modality."""

    def models(self, **masking):
        """A model with masking and one without, otherwise equal."""
        both = []
        for options in ({"token_masking": masking}, {}):
            torch.manual_seed(0)
            both.append(small_perceiver(**options))
        both[1].load_state_dict({name: both[0].state_dict()[name] for name in both[1].state_dict()})
        return both

    def test_a_modality_that_is_always_masked_need_not_be_given(self):
        (model, plain), inputs = self.models(depth=1.0, image=0.0), small_inputs()
        joined = join(model, inputs)
        span = joined.spans["depth"]
        vector = model.join.mask_tokens["depth"]
        assert_close(joined.values[:, span.start : span.stop], vector.expand(3, 35, -1), atol=0, rtol=0)
        assert_close(joined.values[:, :20], join(plain, inputs).values[:, :20], atol=0, rtol=0)
        absent = {"image": inputs["image"], "depth": model.encoders["depth"].example_input().expand(3, -1, -1, -1)}
        assert_close(logits(model, {"image": inputs["image"]}), logits(model, absent), atol=0, rtol=0)

    def test_tokens_are_masked_at_random_in_training_only(self):
        (model, plain), inputs = self.models(depth=0.4), small_inputs()
        expected, vector = join(plain, inputs).values, model.join.mask_tokens["depth"]
        state = torch.random.get_rng_state()
        assert_close(join(model, inputs).values, expected, atol=0, rtol=0)
        assert torch.equal(torch.random.get_rng_state(), state)
        found = join(model.train(), inputs).values
        is_masked = (found == vector).all(dim=-1)
        assert 0.2 < is_masked[:, 20:].float().mean() < 0.6
        assert not is_masked[:, :20].any()
        assert_close(found[~is_masked], expected[~is_masked], atol=0, rtol=0)

    @pytest.mark.parametrize(("masking", "named"), [({"depth": 1.5}, "depth=1.5"), ({"smell": 0.5}, "'smell'")])
    def test_what_cannot_be_masked_is_named(self, masking, named):
        with pytest.raises(ValueError, match=named):
            small_perceiver(token_masking=masking)


class TestTies:
    """One parameter takes the place of another."""

    def test_tied_parameters_are_one_object_also_after_weights_are_assigned_or_moved(self):
        model = small_perceiver(ties={"memory.cross_blocks.1.mlp.0.weight": "memory.cross_blocks.0.mlp.0.weight"})
        blocks = model.memory.cross_blocks
        assert len(list(model.parameters())) == len(list(small_perceiver().parameters())) - 1
        for change in (
            lambda: model.double(),
            lambda: (model.load_state_dict(model.state_dict(), assign=True), model.tie()),
        ):
            change()
            assert blocks[0].mlp[0].weight is blocks[1].mlp[0].weight

    @pytest.mark.parametrize(
        ("source", "named"), [("memory.cross_blocks.0.mlp.0.weight", "shapes"), ("memory.arrays", "arrays")]
    )
    def test_parameters_that_do_not_fit_are_named(self, source, named):
        with pytest.raises(ValueError, match=named):
            small_perceiver(ties={"memory.array": source})


class TestMissing:
    @pytest.mark.parametrize(("missing", "left"), [("image", "depth"), ("depth", "image")])
    def test_a_modality_missing_for_some_or_all_samples_equals_leaving_it_out_for_them(self, missing, left):
        model, inputs = small_perceiver(), small_inputs()
        out = logits(model, inputs, {missing: present(True, False, True)})
        assert_close(out[1:2], logits(model, {left: inputs[left][1:2]}), **CLOSE)
        assert_close(out[::2], logits(model, inputs)[::2], **CLOSE)
        assert not torch.allclose(out[1], logits(model, inputs)[1], **CLOSE)
        of_all = logits(model, inputs, {missing: present(False, False, False)})
        assert_close(of_all, logits(model, {left: inputs[left]}), **CLOSE)

    def test_a_sample_without_any_modality_gives_finite_outputs_and_gradients(self):
        model, inputs = small_perceiver(), small_inputs()
        masks = {"image": present(True, False, True), "depth": torch.zeros(3, 5, 7, dtype=torch.bool)}
        out = logits(model, inputs, masks)
        out.square().sum().backward()
        assert out.isfinite().all()
        assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
        assert_close(out[1], logits(model, {"depth": torch.rand(1, 1, 5, 7)}, {"depth": present(False)})[0], **CLOSE)

    @pytest.mark.parametrize("make_sound", [None, audio_encoder, waveform_encoder], ids=["depth", "audio", "waveform"])
    def test_a_batch_gives_what_its_samples_give_alone_whatever_they_lack(self, make_sound):
        """Images beside depth, or beside sounds of different lengths, in samples that may lack either."""
        if make_sound is None:
            model = small_perceiver()
            other = [("depth", torch.rand(1, 5, 7)) for _ in range(3)]
        else:
            model = small_perceiver(encoders={"image": image_encoder(), "audio": make_sound()})
            other = [("audio", torch.randn(1, length)) for length in (331, 1061, 37)]
        parts = [dict([one]) for one in other]
        inputs = [parts[0] | {"image": torch.rand(3, 11, 13)}, parts[1], {"image": torch.rand(3, 11, 13)}, parts[2]]
        batch = collate([Sample(of_one, {}, str(row)) for row, of_one in enumerate(inputs)])
        alone = torch.cat([logits(model, {name: raw[None] for name, raw in of_one.items()}) for of_one in inputs])
        assert alone.shape == (4, NUM_CLASSES)
        assert_close(logits(model, batch.inputs, batch.masks), alone, **CLOSE)
        logits(model.train(), batch.inputs, batch.masks).square().sum().backward()
        assert_every_weight_has_a_gradient(model)


def assert_every_weight_has_a_gradient(model):
    for name, parameter in model.named_parameters():
        # A key bias shifts all logits of a query alike, which the softmax does not see.
        assert name.endswith("key.bias") or (parameter.grad != 0).any(), name


@pytest.mark.parametrize("schedule", [PERCEIVER, PERCEIVER_IO, {"num_cross_attends": 2, "num_blocks": 3}], ids=str)
def test_every_parameter_gets_a_gradient(schedule):
    model = small_perceiver(schedule=Schedule(num_self_attends=2, **schedule))
    logits(model, small_inputs()).square().sum().backward()
    assert_every_weight_has_a_gradient(model)


def test_the_decoder_gets_the_queries_and_its_outputs_are_the_models():
    class Echo(Decoder):
        def forward(self, memory, queries=None):
            return {"memory": memory.values} | queries

    model, inputs = small_perceiver(decoder=Echo()), small_inputs()
    masks = some_pixels(inputs)
    queries = {"words": torch.rand(3, 7), "places": torch.rand(3, 13)}
    assert_close(model(inputs, masks, queries), {"memory": model.encode(inputs, masks).values} | queries)
    assert_close(model.forward_tokens(model.tokens(inputs, masks), queries), model(inputs, masks, queries))


class TestModalityDropout:
    def test_it_acts_in_training_only(self):
        inputs, model = small_inputs(batch=23), small_perceiver(modality_dropout=0.5)
        whole = logits(model, inputs)
        assert_close(logits(model, inputs), whole, atol=0, rtol=0)
        alone = [logits(model, {name: raw}) for name, raw in inputs.items()]
        dropped = logits(model.train(), inputs)
        kinds = torch.stack([(dropped - out).abs().amax(dim=1) < 1e-5 for out in (whole, *alone)])
        assert (kinds.sum(dim=0) == 1).all(), "each sample keeps both modalities or loses exactly one"
        assert kinds.any(dim=1).all()
        model.modality_dropout = 0.0
        assert_close(logits(model, inputs), whole, **CLOSE)

    @pytest.mark.parametrize("num_modalities", [1, 2, 3])
    def test_it_hides_whole_modalities_and_never_the_last_one(self, num_modalities):
        before = [torch.rand(5003, length) < 0.4 for length in (2, 3, 5)[:num_modalities]]
        after = drop_modalities(token_masks(*before), 0.99)
        there = torch.stack([mask.any(dim=1) for mask in before])
        kept = torch.stack([tokens.mask.any(dim=1) for tokens in after.values()])
        for mask, tokens, keeps in zip(before, after.values(), kept, strict=True):
            assert (tokens.mask == (mask & keeps[:, None])).all()
        assert (kept.any(dim=0) == there.any(dim=0)).all()
        assert (kept <= there).all()
        assert kept.sum(dim=0).float().mean() < 1.1

    def test_it_drops_each_of_two_with_the_probability_less_the_half_where_it_is_the_last(self):
        everything = torch.ones(40009, 1, dtype=torch.bool)
        for probability in (0.1, 0.5, 0.9):
            for tokens in drop_modalities(token_masks(everything, everything), probability).values():
                dropped = 1 - tokens.mask.float().mean().item()
                assert dropped == pytest.approx(probability - probability**2 / 2, abs=0.01)


def token_masks(*masks):
    grid = Grid(shape=(), axes=())
    return {str(i): Tokens(values=torch.zeros(*mask.shape, 1), mask=mask, grid=grid) for i, mask in enumerate(masks)}


@pytest.mark.parametrize(
    ("inputs", "masks", "message"),
    [
        ({"sound": (1, 1, 5, 7)}, {}, "'sound'.*image.*depth"),
        ({"depth": (1, 1, 5, 7)}, {"sound": (1,)}, "'sound'.*image.*depth"),
        ({}, {}, "empty.*image.*depth"),
        ({"image": (1, 5, 11, 13)}, {}, r"channels=3.*\[1, 5, 11, 13\]"),
    ],
    ids=["unknown input", "unknown mask", "no input", "wrong channels"],
)
def test_inputs_that_do_not_fit_the_model_are_refused_by_name(inputs, masks, message):
    with pytest.raises(ValueError, match=message):
        small_perceiver()(
            {name: torch.zeros(shape) for name, shape in inputs.items()},
            {name: torch.ones(shape, dtype=torch.bool) for name, shape in masks.items()},
        )


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"encoders": {}}, "at least one encoder"),
        ({"modality_dropout": 1.0}, r"modality_dropout=1\.0"),
        ({"schedule": READS_SOUND}, r"reads .*'sound'.* only for \['image', 'depth'\]"),
    ],
)
def test_parts_that_make_no_model_are_refused_by_name(wrong, message):
    with pytest.raises(ValueError, match=message):
        small_perceiver(**wrong)


def test_a_saved_model_gives_the_same_output_and_compiling_keeps_the_names_of_its_weights(tmp_path):
    model, inputs = small_perceiver(schedule=Schedule(num_self_attends=1, **PERCEIVER_IO)), small_inputs()
    masks = some_pixels(inputs)
    out, names = logits(model, inputs, masks), list(model.state_dict())
    torch.save(model.state_dict(), tmp_path / "model.pt")
    other = small_perceiver(schedule=Schedule(num_self_attends=1, **PERCEIVER_IO))
    assert not torch.allclose(logits(other, inputs, masks), out, **CLOSE)
    other.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True))
    assert_close(logits(other, inputs, masks), out, atol=0, rtol=0)
    model.compile(backend="aot_eager")
    assert list(model.state_dict()) == names


@pytest.mark.slow
def test_compiling_changes_no_output():
    # In a separate process: the compiler starts threads with which later tests could not be forked.
    assert in_fork(_compile) == 0


def _compile() -> None:
    model = small_perceiver(
        encoders={"image": image_encoder(), "audio": audio_encoder(), "wave": waveform_encoder()},
        schedule=Schedule(num_self_attends=1, **PERCEIVER_IO),
    )
    waves = [torch.randn(1, length) for length in (331, 1061)]
    batch = collate([Sample({"image": torch.rand(3, 11, 13), "audio": wave, "wave": wave}, {}, "x") for wave in waves])
    out = logits(model, batch.inputs, batch.masks)
    model.compile(backend="aot_eager")
    assert_close(logits(model, batch.inputs, batch.masks), out, **CLOSE)
