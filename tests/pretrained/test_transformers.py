"""Converted image classifiers give the logits, gradients and sizes of the originals."""

import importlib
import sys

import pytest
import torch
from torch import nn

from perceiver.mechanisms.scaled_dot_product import ScaledDotProduct
from perceiver.pretrained import from_transformers

transformers = pytest.importorskip("transformers")

FOURIER = transformers.PerceiverForImageClassificationFourier
LEARNED = transformers.PerceiverForImageClassificationLearned
CONV = transformers.PerceiverForImageClassificationConvProcessing
CLASSES = pytest.mark.parametrize("hf_class", [FOURIER, LEARNED, CONV], ids=["fourier", "learned", "conv"])

SMALL = {
    "num_latents": 5,
    "d_latents": 22,
    "num_blocks": 1,
    "num_self_attends_per_block": 2,
    "num_self_attention_heads": 2,
    "num_cross_attention_heads": 1,
    "num_labels": 7,
    "image_size": 13,
}
CONFIGS = {
    "q": {"cross_attention_shape_for_attention": "q", "num_cross_attention_heads": 11},
    "qk_channels": {"qk_channels": 26, "v_channels": 22, "num_cross_attention_heads": 2},
    "widening": {"cross_attention_widening_factor": 2, "self_attention_widening_factor": 3, "hidden_act": "relu"},
    "no_residual": {"use_query_residual": False, "num_blocks": 3, "hidden_act": "gelu_new"},
    "one_label": {"num_labels": 1, "num_blocks": 3, "num_self_attends_per_block": 1, "hidden_act": "silu"},
    "no_self_attends": {"num_self_attends_per_block": 0, "qk_channels": 17, "v_channels": 19},
    "weights_in_activation": {"hidden_act": "prelu"},
    "weights_of_two_types": {"hidden_act": "xielu"},
    "more_than_ten_layers": {"num_self_attends_per_block": 11, "num_latents": 3},
}


def small(hf_class, *, weights="large", **overrides):
    """A small model in eval mode; `large` weights move everything that the initial ones leave at zero or one."""
    torch.manual_seed(23)
    model = hf_class(transformers.PerceiverConfig(**SMALL | overrides)).eval()
    if weights == "initial":
        return model
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                # Sharp attention: a mean over hundreds of tokens would hardly depend on the image.
                gain = 4.0 if ".query." in name or ".key." in name else 1.0
                parameter.normal_(std=gain * parameter[0].numel() ** -0.5)
            else:
                parameter.normal_(mean=0.5, std=0.5)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2.0)
    return model


def images(hf_class, dtype=torch.float32):
    size = (13, 13) if hf_class is LEARNED else (29, 37)
    return torch.randn(3, 3, *size, generator=torch.Generator().manual_seed(29), dtype=dtype)


def num_parameters(model):
    return sum(parameter.numel() for parameter in model.parameters())


PAIRS = [
    *(pytest.param(hf_class, {}, weights) for hf_class in (FOURIER, LEARNED, CONV) for weights in ("initial", "large")),
    *(
        pytest.param((FOURIER, LEARNED, CONV)[number % 3], overrides, "large", id=name)
        for number, (name, overrides) in enumerate(CONFIGS.items())
    ),
]


@pytest.mark.parametrize(("hf_class", "overrides", "weights"), PAIRS)
@torch.no_grad()
def test_logits_are_those_of_transformers(hf_class, overrides, weights):
    hf_model = small(hf_class, weights=weights, **overrides)
    expected = hf_model(images(hf_class)).logits
    logits = from_transformers(hf_model)({"image": images(hf_class)})["logits"]
    assert expected.shape == (3, SMALL["num_labels"] if "num_labels" not in overrides else 1)
    torch.testing.assert_close(logits, expected, atol=1e-5 if weights == "large" else 1e-8, rtol=0.0)
    if weights == "large":
        assert expected.std(dim=0).max() > 1e-3, "the images should matter to the logits"


@CLASSES
@torch.no_grad()
def test_double_precision_is_kept(hf_class):
    hf_model = small(hf_class).double()
    logits = from_transformers(hf_model)({"image": images(hf_class, torch.float64)})["logits"]
    torch.testing.assert_close(logits, hf_model(images(hf_class, torch.float64)).logits, atol=1e-11, rtol=0.0)


@CLASSES
@torch.no_grad()
def test_half_precision_does_not_round_positions(hf_class):
    hf_model = small(hf_class).bfloat16()
    model = from_transformers(hf_model)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    raw = images(hf_class, torch.bfloat16)
    tokens = model.encoders["image"](raw).values
    torch.testing.assert_close(tokens, hf_model.perceiver.input_preprocessor(raw)[0], atol=1e-2, rtol=1e-2)


@torch.no_grad()
def test_learned_positions_interpolate_as_in_transformers():
    hf_model = small(LEARNED)
    raw = torch.randn(2, 3, 11, 17)
    expected = hf_model(raw, interpolate_pos_encoding=True).logits
    torch.testing.assert_close(from_transformers(hf_model)({"image": raw})["logits"], expected, atol=1e-5, rtol=0.0)


@CLASSES
def test_training_is_that_of_transformers(hf_class):
    hf_model = small(hf_class, attention_probs_dropout_prob=0.0).train()
    model = from_transformers(hf_model)
    ours, theirs = images(hf_class).requires_grad_(), images(hf_class).requires_grad_()
    labels = torch.tensor([0, 3, 6])
    nn.functional.cross_entropy(model({"image": ours})["logits"], labels).backward()
    nn.functional.cross_entropy(hf_model(theirs).logits, labels).backward()
    torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-5, rtol=1e-3)
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        # A bias on all keys alike adds the same to every logit of a softmax, and so changes nothing.
        assert parameter.grad.abs().max() > (0.0 if name.endswith("key.bias") else 1e-7), name
    assert num_parameters(model) == num_parameters(hf_model)
    if hf_class is CONV:
        norm = hf_model.perceiver.input_preprocessor.convnet.batchnorm
        torch.testing.assert_close(model.encoders["image"].stem.norm.state_dict(), norm.state_dict())


@CLASSES
@pytest.mark.parametrize("training", [True, False])
def test_mode_and_dropout_are_those_of_the_source(hf_class, training):
    model = from_transformers(small(hf_class, attention_probs_dropout_prob=0.3).train(training))
    assert all(module.training is training for module in model.modules())
    attentions = [module for module in model.modules() if isinstance(module, ScaledDotProduct)]
    assert [attention.dropout for attention in attentions] == [0.3] * 4


@CLASSES
@torch.no_grad()
def test_nothing_is_shared_with_the_source(hf_class):
    hf_model = small(hf_class, hidden_act="prelu")
    model = from_transformers(hf_model)
    before = model({"image": images(hf_class)})["logits"]
    for value in hf_model.state_dict().values():
        value.zero_()
    assert torch.equal(model({"image": images(hf_class)})["logits"], before)
    assert not set(model.modules()) & set(hf_model.modules())


def test_subclasses_are_known():
    class Renamed(LEARNED):
        pass

    assert num_parameters(from_transformers(small(Renamed))) == num_parameters(small(LEARNED))


@pytest.mark.parametrize("build", [lambda: nn.Linear(2, 3), lambda: small(transformers.PerceiverForMaskedLM)])
def test_other_classes_are_refused(build):
    with pytest.raises(TypeError, match=r"Fourier, .*Learned, .*ConvProcessing, not (Linear|PerceiverForMaskedLM)"):
        from_transformers(build())


def test_weights_without_a_place_and_missing_ones_are_refused():
    hf_model = small(FOURIER)
    hf_model.perceiver.encoder.extra = nn.Parameter(torch.zeros(2))
    with pytest.raises(RuntimeError, match=r"Unexpected.*perceiver\.encoder\.extra"):
        from_transformers(hf_model)
    del hf_model.perceiver.encoder.extra
    hf_model.perceiver.decoder.decoder.final_layer.bias = None
    with pytest.raises(RuntimeError, match=r"Missing.*decoder\.head\.bias"):
        from_transformers(hf_model)


def test_transformers_is_not_imported(monkeypatch):
    hf_model = small(FOURIER)
    monkeypatch.setitem(sys.modules, "transformers", None)  # importing it is an ImportError from here on
    module = importlib.reload(sys.modules["perceiver.pretrained.transformers"])
    module.from_transformers(hf_model)


@pytest.mark.parametrize(
    ("hf_class", "count"),
    [(FOURIER, 48_440_627), (LEARNED, 62_255_848), (CONV, 48_646_522)],
    ids=["fourier", "learned", "conv"],
)
def test_published_sizes(hf_class, count):
    config = transformers.PerceiverConfig(
        num_latents=512,
        d_latents=1024,
        num_blocks=8,
        num_self_attends_per_block=6,
        num_self_attention_heads=8,
        num_cross_attention_heads=1,
        num_labels=1000,
        image_size=224,
    )
    with torch.device("meta"):
        hf_model = hf_class(config)
    model = from_transformers(hf_model)
    assert num_parameters(model) == count
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
