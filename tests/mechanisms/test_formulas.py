"""The equations of the papers, written out for single queries and keys."""

from functools import partial

import pytest
import torch
from torch.testing import assert_close

from perceiver.mechanisms.choices import OverQueries, Soft
from perceiver.mechanisms.explicit import Explicit
from perceiver.mechanisms.reaches import Everywhere, MonotonicWindow, PredictedWindow
from perceiver.mechanisms.scores import Additive, Bilinear, Cosine, DotProduct, Location
from perceiver.roles import CROSS, ENCODE
from perceiver.types import UnsuitableError
from tests.mechanisms.parts import BATCH, HEADS, KEYS, QK_DIM, QUERIES, build, key_mask, qkv

PLAIN = {"score": DotProduct, "choice": Soft, "reach": Everywhere}


def explicit(role=None, **parts) -> Explicit:
    return Explicit(**(PLAIN | parts), num_heads=HEADS, dim=QK_DIM, role=role).eval()


@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize("masked", [False, True], ids=["all keys", "masked keys"])
def test_explicit_scaled_dot_products_and_their_gradients_equal_the_fused_kernel(causal, masked):
    mask, results = key_mask() if masked else None, []
    inputs = [x.requires_grad_() for x in qkv()]
    for name in ("explicit", "scaled_dot_product"):
        out = build(name)(*inputs, mask=mask, causal=causal)
        results.append((out, *torch.autograd.grad(out.sin().sum(), inputs)))
    assert_close(*results, atol=1e-6, rtol=1e-6)


SCORES = {
    "dot product": (DotProduct, lambda score, q, k, key: q @ k),
    "scaled": (partial(DotProduct, scaled=True), lambda score, q, k, key: q @ k / QK_DIM**0.5),
    "bilinear": (Bilinear, lambda score, q, k, key: q @ score.weight[1] @ k),
    "additive": (
        partial(Additive, hidden_dim=13),
        lambda score, q, k, key: score.vector[1] @ torch.tanh(q @ score.query[1] + k @ score.key[1]),
    ),
    "location": (
        partial(Location, max_keys=17),
        lambda score, q, k, key: q @ score.weight[1, :, key] + score.bias[1, 0, key],
    ),
    "cosine": (
        partial(Cosine, sharpness=3.0),
        lambda score, q, k, key: 3.0 * q @ k / (q.norm() * k.norm()),
    ),
}


@pytest.mark.parametrize(("score", "formula"), SCORES.values(), ids=SCORES)
def test_a_score_is_its_formula(score, formula):
    mechanism, (q, k, _) = explicit(score=score), qkv()
    logits = [formula(mechanism.score, q[2, 1, 3], k[2, 1, key], key) for key in range(KEYS)]
    assert_close(mechanism.weights(q, k)[2, 1, 3], torch.stack(logits).softmax(dim=0))


def test_location_scores_name_their_number_of_keys():
    with pytest.raises(UnsuitableError, match=f"max_keys=7 .* {KEYS} keys"):
        explicit(score=partial(Location, max_keys=7)).weights(*qkv()[:2])


@pytest.mark.parametrize(
    ("score", "named"),
    [
        (partial(Additive, hidden_dim=0), "hidden_dim=0"),
        (partial(Location, max_keys=-1), "max_keys=-1"),
        (partial(Cosine, sharpness=0.0), r"sharpness=0\.0"),
        (partial(Cosine, sharpness=float("inf")), "sharpness=inf"),
    ],
    ids=["hidden_dim", "max_keys", "sharpness", "infinite sharpness"],
)
def test_sizes_of_scores_that_are_out_of_range_are_named(score, named):
    with pytest.raises(ValueError, match=f"^{named} "):
        explicit(score=score)


def test_queries_compete_as_in_slot_attention():
    """Locatello et al. 2020, eq. 1 and 2."""
    q, k, _ = qkv()
    shares = (k @ q.mT).softmax(dim=-1)
    expected = (shares / shares.sum(dim=2, keepdim=True)).mT
    assert_close(explicit(choice=OverQueries).weights(q, k), expected)


def real_positions(mask):
    return [mask[row].nonzero()[:, 0].tolist() for row in range(BATCH)]


@pytest.mark.parametrize(
    ("role", "num_queries", "start", "position"),
    [
        pytest.param(None, QUERIES, 3, lambda query, own, real: 3 + query, id="outputs"),
        pytest.param(CROSS, QUERIES, 0, lambda query, own, real: query * (real - 1) / (QUERIES - 1), id="latents"),
        pytest.param(ENCODE, KEYS, 0, lambda query, own, real: own, id="tokens"),
    ],
)
@pytest.mark.parametrize("reach", [MonotonicWindow, PredictedWindow], ids=lambda reach: reach.__name__)
def test_windows_are_those_of_luong(reach, role, num_queries, start, position):
    """Luong et al. 2015, section 3.2: local-m and local-p, with p from eq. 9 and the Gaussian of eq. 10."""
    width = 2.0
    mechanism, (q, k, _), mask = explicit(role, reach=partial(reach, width=width)), qkv(num_queries), key_mask()
    weights = mechanism.weights(q, k, mask, start=start)
    for row, places in enumerate(real_positions(mask)[:2]):
        for query in range(num_queries):
            own = max(int(mask[row, : query + 1].sum()) - 1, 0)
            center = torch.tensor(float(min(position(query, own, len(places)), len(places) - 1)))
            gaussian = torch.zeros(len(places))
            distances = torch.arange(len(places)) - center
            if reach is PredictedWindow:
                hidden = torch.tanh(q[row, 1, query] @ mechanism.reach.weight[1])
                center = (len(places) - 1) * (hidden @ mechanism.reach.vector[1, :, 0]).sigmoid()
                distances = torch.arange(len(places)) - center
                gaussian = -distances.square() / (2 * (width / 2) ** 2)
            logits = (k[row, 1, places] @ q[row, 1, query]).where(distances.abs() <= width, -torch.inf) + gaussian
            assert_close(weights[row, 1, query, places], logits.softmax(dim=0), atol=1e-5, rtol=1e-4)


def test_a_window_has_a_key_on_each_side():
    with pytest.raises(ValueError, match=r"width=0\.5"):
        explicit(reach=partial(MonotonicWindow, width=0.5))


def test_straight_through_takes_the_likeliest_key_with_the_gradients_of_softmax():
    q, k, v = qkv()
    q.requires_grad_()
    soft, hard = build("explicit"), build("straight_through")
    assert torch.equal(hard.weights(q, k), torch.eye(KEYS)[soft.weights(q, k).argmax(dim=-1)])
    slopes = torch.randn(BATCH, HEADS, QUERIES, v.shape[-1])
    gradients = [torch.autograd.grad(one(q, k, v), q, slopes)[0] for one in (soft, hard)]
    assert_close(*gradients)
