import pytest
import torch
from torch.nn import functional as F

from perceiver import Perceiver
from perceiver.attention import BlockSpec
from perceiver.decoders.queries import QueryDecoder
from perceiver.inspection.capture import Capture, capture
from perceiver.inspection.maps import on_grid
from perceiver.inspection.rollout import mean_reader, readers_of, rollout
from perceiver.latents import LatentArray, Schedule
from tests.inspection.models import (
    NUM_WORDS,
    captured_with,
    layer,
    look,
    perceiver,
    perceiver_io,
    perceiver_pooled_io,
    perceiver_text,
    some_masks,
    some_words,
    text_decoder,
)
from tests.models import DIM, NUM_CLASSES, image_encoder

MODELS = pytest.mark.parametrize(
    ("make", "num_outputs"),
    [(perceiver, 1), (perceiver_io, NUM_CLASSES), (perceiver_pooled_io, 1), (perceiver_text, NUM_WORDS)],
    ids=["perceiver", "perceiver_io", "pooled_io", "text"],
)


def naive_rollout(captured: Capture, alpha: float) -> tuple[torch.Tensor, torch.Tensor]:
    """One matrix over latents and tokens for each layer, multiplied (Abnar & Zuidema 2020, eq. 1)."""
    encoder = [layer for layer in captured.layers.values() if layer.role in ("cross", "self")]
    num_latents, num_tokens = captured.layers["cross0"].num_queries, captured.layers["cross0"].num_keys
    batch = encoder[0].q.shape[0]
    outputs = torch.full((batch, 1, num_latents), 1 / num_latents)
    if reads := [captured.layers[name].weights().mean(dim=1) for name in captured.named("decode")]:
        outputs = sum(reads) / len(reads)
    flow = torch.eye(num_latents + num_tokens, dtype=torch.float64).repeat(batch, 1, 1)
    for part in encoder:
        attention = torch.eye(num_latents + num_tokens, dtype=torch.float64).repeat(batch, 1, 1)
        read = attention[:, :num_latents]
        read *= 1 - alpha
        columns = slice(num_latents, None) if part.role == "cross" else slice(num_latents)
        read[:, :, columns] += alpha * part.weights().mean(dim=1)
        flow = attention @ flow
    result = outputs.double() @ flow[:, :num_latents]
    return result[..., num_latents:].float(), result[..., :num_latents].sum(dim=-1).float()


@MODELS
@pytest.mark.parametrize("alpha", [0.5, 0.3])
@pytest.mark.parametrize("masks", [None, some_masks()], ids=["whole", "masked"])
def test_reverse_rollout_is_the_product_of_the_full_matrices(make, num_outputs, alpha, masks):
    captured = look(make(), masks=masks)
    traced = rollout(captured, alpha=alpha)
    inputs, residual = naive_rollout(captured, alpha)
    assert traced.inputs.shape == (3, num_outputs, 55)
    torch.testing.assert_close(traced.inputs, inputs, rtol=0, atol=1e-6)
    torch.testing.assert_close(traced.residual, residual, rtol=0, atol=1e-5)


@MODELS
def test_inputs_and_residual_share_everything(make, num_outputs):
    traced = rollout(look(make(), masks=some_masks()))
    torch.testing.assert_close(traced.inputs.sum(dim=-1) + traced.residual, torch.ones(3, num_outputs))


@MODELS
@pytest.mark.parametrize(("alpha", "residual"), [(0.0, 1.0), (1.0, 0.0)])
def test_without_attention_all_is_residual_and_without_residual_all_is_input(make, num_outputs, alpha, residual):
    traced = rollout(look(make()), alpha=alpha)
    torch.testing.assert_close(traced.residual, torch.full((3, num_outputs), residual))


def test_masked_inputs_get_exactly_nothing():
    captured = look(perceiver(), masks=some_masks())
    real = captured.layers["cross0"].mask
    assert ((rollout(captured).inputs > 0) == real[:, None]).all()


def test_a_sample_without_any_real_input_rests_on_the_latents_alone():
    masks = {"image": torch.tensor([True, False, True]), "depth": torch.tensor([True, False, False])}
    traced = rollout(look(perceiver(), masks=masks))
    assert (traced.inputs[1] == 0).all()
    torch.testing.assert_close(traced.residual[1], torch.ones(1))
    torch.testing.assert_close(traced.inputs.sum(dim=-1) + traced.residual, torch.ones(3, 1))


def test_classes_that_ask_for_themselves_differ_and_their_mean_is_the_mean():
    captured = look(perceiver_io())
    each, mean = rollout(captured), rollout(captured, readers=mean_reader(captured))
    assert (each.inputs.std(dim=1) > 1e-4).any()
    torch.testing.assert_close(mean.inputs, each.inputs.mean(dim=1, keepdim=True))
    torch.testing.assert_close(mean.residual, each.residual.mean(dim=1, keepdim=True))


def test_chosen_queries_are_slices_of_each_samples_own():
    captured = look(perceiver_io())
    each, chosen = rollout(captured), torch.tensor([[7, 0], [3, 3], [18, 11]])
    found = rollout(captured, readers=F.one_hot(chosen, NUM_CLASSES).float())
    rows = torch.arange(3)[:, None]
    torch.testing.assert_close(found.inputs, each.inputs[rows, chosen])
    torch.testing.assert_close(found.residual, each.residual[rows, chosen])


@MODELS
@pytest.mark.parametrize("masks", [None, some_masks()], ids=["whole", "masked"])
def test_mixtures_of_queries_have_the_mixture_of_their_rollouts(make, num_outputs, masks):
    captured = look(make(), masks=masks)
    readers = torch.rand(3, 5, num_outputs)
    readers /= readers.sum(dim=-1, keepdim=True)
    if num_outputs == 1:
        readers = readers[:, :1]  # what pools has one map, whoever asks
    each, found = rollout(captured, alpha=0.3), rollout(captured, alpha=0.3, readers=readers)
    torch.testing.assert_close(found.inputs, readers @ each.inputs)
    torch.testing.assert_close(found.residual, (readers @ each.residual[..., None])[..., 0])
    torch.testing.assert_close(found.inputs.sum(dim=-1) + found.residual, torch.ones(readers.shape[:2]))


def test_readers_are_means_of_their_queries_and_zero_where_a_sample_has_fewer():
    readers = readers_of([[(3,), (0, 2, 5)], [], [(6, 1)]], NUM_WORDS)
    third, half = 1 / 3, 1 / 2
    expected = [
        [[0, 0, 0, 1, 0, 0, 0], [third, 0, third, 0, 0, third, 0]],
        [[0] * 7, [0] * 7],
        [[0, half, 0, 0, 0, 0, half], [0] * 7],
    ]
    torch.testing.assert_close(readers, torch.tensor(expected))
    traced = rollout(look(perceiver_text()), readers=readers)
    assert (traced.inputs.sum(dim=-1) > 0).tolist() == [[True, True], [False, False], [True, False]]
    assert readers_of([[], []], NUM_WORDS).shape == (2, 0, NUM_WORDS)


def test_of_several_decoder_layers_each_has_an_equal_part():
    captured = look(perceiver_text())
    alone = []
    for name in captured.named("decode"):
        others = {other: layer for other, layer in captured.layers.items() if layer.role != "decode" or other == name}
        alone.append(rollout(captured_with(captured.spans, **others)))
    both = rollout(captured)
    assert len(alone) == 2
    assert (alone[0].inputs - alone[1].inputs).abs().max() > 1e-4, "well above rounding"
    torch.testing.assert_close(both.inputs, (alone[0].inputs + alone[1].inputs) / 2)
    torch.testing.assert_close(both.residual, (alone[0].residual + alone[1].residual) / 2)


def test_permuted_tokens_with_their_positions_give_permuted_maps_of_words():
    latents = LatentArray(
        num_latents=11,
        dim=DIM,
        input_dim=23,
        cross_attention=BlockSpec(num_heads=1),
        self_attention=BlockSpec(num_heads=1),
        schedule=Schedule(num_cross_attends=2, num_blocks=2, num_self_attends=1),
    )
    model = torch.nn.ModuleList([latents, text_decoder()])
    tokens, order, maps = torch.randn(3, 31, 23), torch.randperm(31), []
    for values in (tokens, tokens[:, order]):
        with capture(model) as captured:
            model[1](model[0](values), some_words())
        maps.append(rollout(captured).inputs)
    assert (maps[0] - maps[0].flip(-1)).abs().max() > 1e-3
    torch.testing.assert_close(maps[1], maps[0][..., order])


def test_a_word_that_reads_one_latent_has_the_map_of_that_latent():
    looks = torch.full((2, 1, 5, 35), 0.001)
    for latent, token in enumerate((3, 11, 17, 23, 34)):
        looks[:, :, latent, token] = 1 - 0.034
    reads = F.one_hot(torch.tensor([[4, 0, 0, 2], [1, 3, 2, 4]]), 5).float()[:, None]
    planted = captured_with({}, cross0=layer("cross", looks), decode0=layer("decode", reads))
    found = rollout(planted)
    assert found.inputs.argmax(dim=-1).tolist() == [[34, 3, 3, 17], [11, 23, 17, 34]]
    of_texts = rollout(planted, readers=readers_of([[(0,), (1, 2)], [(3,), (0, 1)]], 4)).inputs
    assert of_texts.argmax(dim=-1)[:, 0].tolist() == [34, 34]
    assert of_texts[0, 1].argmax() == 3
    assert of_texts[1, 1].topk(2).indices.sort().values.tolist() == [11, 23]


def noisy_images(count: int, rows: int, columns: int, cell: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Coloured noise with one bright cell, whose colour is the label; images, labels and the cells' numbers."""
    labels, places = torch.randint(3, (count,)), torch.randint(rows * columns, (count,))
    cells = 0.5 * torch.rand(count, rows * columns, 3)
    cells[torch.arange(count), places] = 0.7 + 0.3 * F.one_hot(labels, 3)
    images = cells.transpose(1, 2).reshape(count, 3, rows, columns)
    return F.interpolate(images, scale_factor=cell, mode="nearest") * (0.9 + 0.1 * torch.rand(1)), labels, places


def test_in_a_trained_model_rollout_finds_what_decides_the_class():
    rows, columns = 5, 7
    model = Perceiver(
        encoders={"image": image_encoder()},
        num_latents=7,
        dim=16,
        cross_attention=BlockSpec(num_heads=1),
        self_attention=BlockSpec(num_heads=2),
        schedule=Schedule(num_cross_attends=1, num_blocks=1, num_self_attends=1),
        decoder=QueryDecoder(dim=16, num_classes=3, query_dim=16, attention=BlockSpec(num_heads=1)),
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for _ in range(600):
        images, labels, _ = noisy_images(64, rows, columns, cell=3)
        loss = F.cross_entropy(model({"image": images}), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    images, labels, places = noisy_images(50, rows, columns, cell=3)
    captured = look(model, {"image": images})
    found = on_grid(rollout(captured).inputs[:, 0], captured.spans["image"])
    hits = (torch.from_numpy(found).flatten(1).argmax(dim=1) == places).float().mean()
    accuracy = (model({"image": images}).argmax(dim=1) == labels).float().mean()
    assert accuracy > 0.8
    assert hits > 0.5, "chance is 1/35"
