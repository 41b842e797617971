from math import exp, isfinite, log
from statistics import fmean

import numpy as np
import pytest
import torch

from perceiver import Perceiver
from perceiver.inspection.maps.capture import Capture
from perceiver.inspection.maps.statistics import DEAD, drift
from perceiver.roles import DECODE_SELF, LATENTS
from tests.inspection.models import (
    MODELS_AND_MASKS,
    captured_with,
    forward_record,
    layer,
    perceiver,
    perceiver_io,
)
from tests.models import image_encoder, small_inputs, small_perceiver

NO_KEYS = {"image": torch.tensor([True, False, True]), "depth": torch.tensor([True, False, False])}


def mean(values) -> float:
    return fmean(map(float, values))


def some_maps(keys: int = 7) -> torch.Tensor:
    """Maps of two samples, three heads and five latents."""
    return torch.rand(2, 3, 5, keys).softmax(dim=-1)


def cosines(rows: torch.Tensor) -> list[float]:
    """Of all pairs of rows."""
    pairs = [(one, other) for one in range(len(rows)) for other in range(one)]
    return [torch.nn.functional.cosine_similarity(rows[a], rows[b], dim=0) for a, b in pairs]


def naive_statistics(captured: Capture, alpha: float) -> dict[str, float]:
    """From whole matrices, one sample after the other."""
    found = {}
    for name, of_batch in captured.layers.items():
        if of_batch.role == DECODE_SELF:
            continue
        real = torch.ones(of_batch.num_rows, of_batch.num_keys).bool() if of_batch.mask is None else of_batch.mask
        samples = [number for number in range(of_batch.num_rows) if real[number].any()]
        weights = of_batch.weights().double()
        heads, queries = of_batch.num_heads, of_batch.num_queries
        rows = [weights[s, h, q] for s in samples for h in range(heads) for q in range(queries)]
        found[f"{name}/entropy"] = mean(-sum(w * log(w) for w in row.tolist() if w > 0) for row in rows)
        found[f"{name}/entropy_chance"] = mean(log(int(real[s].sum())) for s in samples)
        found[f"{name}/top1_mass"] = mean(row.max() for row in rows)
        if heads > 1:
            found[f"{name}/head_redundancy"] = mean(
                value for s in samples for q in range(queries) for value in cosines(weights[s, :, q])
            )
        if queries > 1:
            found[f"{name}/latent_redundancy"] = mean(v for s in samples for v in cosines(weights[s].mean(dim=0)))
        if name not in captured.input_layers:
            continue
        average = weights.mean(dim=(1, 2))
        found[f"{name}/coverage"] = mean(
            exp(-sum(w * log(w) for w in average[s].tolist() if w > 0)) / int(real[s].sum()) for s in samples
        )
        if len(captured.spans) > 1:
            for modality, span in captured.spans.items():
                found[f"{name}/share_{modality}"] = mean(average[s, span.start : span.stop].sum() for s in samples)
        if of_batch.role.queries != LATENTS:
            continue
        incoming = captured.rollout(alpha=alpha).latents[name].mean(dim=1)[samples].mean(dim=0)
        found[f"{name}/dead_latents"] = mean(incoming < DEAD * incoming.mean())
    return found


@MODELS_AND_MASKS
def test_each_is_what_follows_from_the_full_matrices(make, masks):
    captured, alpha = forward_record(make(), masks=masks), "norm" if masks else 0.3
    found = captured.statistics(alpha=alpha)
    assert found == pytest.approx(naive_statistics(captured, alpha), rel=1e-4, abs=1e-6)
    assert all(type(value) is float for value in found.values())


def one_latent() -> Perceiver:
    """A single head and latent, and a single modality."""
    return small_perceiver(num_latents=1, encoders={"image": image_encoder()})


@pytest.mark.parametrize(("make", "masks"), [(perceiver, NO_KEYS), (one_latent, None)])
def test_means_are_over_samples_with_a_real_key_and_over_all_pairs_there_are(make, masks):
    model = make()
    captured = forward_record(model, {name: small_inputs()[name] for name in model.encoders}, masks)
    assert captured.statistics() == pytest.approx(naive_statistics(captured, 0.5), rel=1e-4, abs=1e-6)


def test_a_layer_without_any_real_key_has_no_numbers():
    nothing = {name: torch.zeros(3, dtype=torch.bool) for name in NO_KEYS}
    found = forward_record(perceiver_io(), masks=nothing).statistics()
    assert {name.split("/")[0] for name in found} == {*(f"self{number}" for number in range(6)), "decode0"}
    assert all(map(isfinite, found.values()))


@pytest.mark.parametrize(("fourth", "dead"), [(0.06, 1), (0.02, 2)])
def test_latents_that_the_mean_of_the_outputs_hardly_reads_are_dead(fourth, dead):
    """The fourth has half of what one of two outputs reads; a tenth of the even part is 0.02."""
    reads = torch.tensor([[0.5, 0.5, 0.0, 0.0, 0.0], [0.0, 0.0, 1.0 - fourth, fourth, 0.0]]).expand(2, 1, -1, -1)
    even = layer("cross", torch.full((2, 1, 5, 7), 1 / 7))
    found = captured_with({}, cross0=even, decode0=layer("decode", reads)).statistics()
    assert found["cross0/dead_latents"] == pytest.approx(dead / 5)


def event(weights: torch.Tensor, latents: list[list[int]], ids=("a", "b"), name: str = "cross0") -> dict:
    return {
        "ids": np.array(ids),
        f"{name}/weights": weights.numpy().astype(np.float16),
        f"{name}/latents": np.array(latents),
        "decode0/weights": weights.numpy(),
    }


class TestDrift:
    every = ([*range(5)], [*range(5)])

    def test_it_is_the_mean_total_variation_between_maps_that_are_the_mean_over_heads(self):
        maps = some_maps(), some_maps()
        means = [one.half().float().mean(dim=1) for one in maps]
        expected = float((means[0] - means[1]).abs().sum(dim=-1).div(2).mean())
        found = drift(event(maps[0], self.every), event(maps[1], self.every))
        assert found == pytest.approx({"cross0/drift": expected}, rel=1e-4)
        assert drift(event(maps[1], self.every), event(maps[0], self.every)) == pytest.approx(found)

    def test_only_latents_of_both_events_are_compared(self):
        maps = some_maps()
        elsewhere = maps.flip(-1)
        before = event(maps[:, :, :3], [[0, 2, 4], [1, 2, 3]])
        # Of the first sample 2 and 4 are in both, and of the second 3; what has another number looks elsewhere.
        now = torch.stack([elsewhere[0, :, :3], elsewhere[1, :, :3]])
        now[0, :, 1], now[0, :, 2], now[1, :, 0] = maps[0, :, 1], maps[0, :, 2], maps[1, :, 2]
        assert drift(before, event(now, [[1, 2, 4], [3, 4, 0]])) == pytest.approx({"cross0/drift": 0.0}, abs=1e-3)
        now[1, :, 0] = elsewhere[1, :, 2]
        part = float((maps[1, :, 2].mean(dim=0) - elsewhere[1, :, 2].mean(dim=0)).abs().sum() / 2)
        assert drift(before, event(now, [[1, 2, 4], [3, 4, 0]])) == pytest.approx({"cross0/drift": part / 3}, abs=1e-3)
        assert drift(before, event(now, [[1, 3, 3], [0, 4, 0]])) == {}, "none in common"

    def test_events_of_other_samples_layers_or_tokens_are_not_compared(self):
        maps = some_maps()
        before = event(maps, self.every)
        assert drift(before, event(maps, self.every, ids=("a", "c"))) == {}
        assert drift(before, event(maps, self.every, ids=("b", "a"))) == {}
        assert drift(before, event(maps, self.every, name="cross1")) == {}
        assert drift(before, event(some_maps(keys=11), self.every)) == {}
