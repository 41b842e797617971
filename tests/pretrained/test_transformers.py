"""Published models give the outputs, gradients and sizes of transformers, and go back to it to the bit."""

import importlib
import sys
from dataclasses import replace

import pytest
import torch
from torch import nn

from perceiver.mechanisms.scaled_dot_product import ScaledDotProduct
from perceiver.pretrained import from_transformers, to_transformers
from perceiver.pretrained.architectures import ACTIVATIONS, ARCHITECTURES, DEFAULTS
from tests.pretrained.small import (
    CLASSES,
    CONFIGS,
    CONV,
    FLOW,
    FOURIER,
    IMAGE_CLASSIFIERS,
    LEARNED,
    MASKED_LM,
    MULTIMODAL,
    SEQUENCE,
    SMALL,
    case,
    images,
    small,
    transformers,
)

UNUSED = [
    *("perceiver.input_preprocessor.mask.audio", "perceiver.input_preprocessor.mask.image"),  # never masked
    "perceiver.input_preprocessor.padding.label",  # always masked
]


def name_of(hf_class):
    return hf_class.__name__.removeprefix("PerceiverFor")


every_class = pytest.mark.parametrize("hf_class", CLASSES, ids=name_of)
every_image_classifier = pytest.mark.parametrize("hf_class", IMAGE_CLASSIFIERS, ids=name_of)

PAIRS = [
    *(pytest.param(hf_class, {}, weights) for hf_class in CLASSES for weights in ("initial", "large")),
    *(
        pytest.param(CLASSES[number % len(CLASSES)], overrides, "large", id=name)
        for number, (name, overrides) in enumerate(CONFIGS.items())
    ),
    # With given widths, only the decoder of these two tells "q" from "kv".
    *(pytest.param(hf_class, CONFIGS["q"] | CONFIGS["qk_channels"], "large") for hf_class in (FLOW, MULTIMODAL)),
]


def num_parameters(model):
    return sum(parameter.numel() for parameter in model.parameters())


def assert_same_outputs(hf_model, model, given, tolerance):
    expected, found = given.expected(hf_model), given.found(model)
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        torch.testing.assert_close(found[name], values, atol=tolerance, rtol=0.0)
    return expected


@pytest.mark.parametrize(("hf_class", "overrides", "weights"), PAIRS)
@torch.no_grad()
def test_outputs_are_those_of_transformers(hf_class, overrides, weights):
    hf_model = small(hf_class, weights=weights, **overrides)
    tolerance = 1e-5 if weights == "large" else 1e-7
    expected = assert_same_outputs(hf_model, from_transformers(hf_model), case(hf_class), tolerance)
    if weights == "large":
        assert all(values.std(dim=0).max() > 1e-4 for values in expected.values()), "inputs should matter to outputs"


@every_class
@torch.no_grad()
def test_double_precision_is_kept(hf_class):
    hf_model = small(hf_class).double()
    assert_same_outputs(hf_model, from_transformers(hf_model), case(hf_class, torch.float64), 1e-11)


@pytest.mark.parametrize(("hf_class", "overrides", "weights"), PAIRS)
def test_a_round_trip_keeps_every_bit(hf_class, overrides, weights):
    hf_model = small(hf_class, weights=weights, **overrides)
    model = from_transformers(hf_model)
    back = to_transformers(model)
    assert type(back) is hf_class
    for before, after in ((hf_model, back), (model, from_transformers(back))):
        states = before.state_dict(), after.state_dict()
        assert list(states[0]) == list(states[1])
        for key, value in states[0].items():
            assert value.dtype == states[1][key].dtype
            assert torch.equal(value, states[1][key]), key
    given = case(hf_class)
    if overrides.get("num_labels", 7) == 7:
        torch.testing.assert_close(given.expected(back), given.expected(hf_model), atol=0.0, rtol=0.0)


@torch.no_grad()
def test_neighborhoods_that_were_extracted_before_need_not_belong_to_an_image():
    hf_model, given = small(FLOW), case(FLOW)
    patches = torch.randn(2, 2, 27, 6, 10)
    given = replace(given, theirs={"inputs": patches}, inputs={"video": patches.transpose(1, 2)})
    assert_same_outputs(hf_model, from_transformers(hf_model), given, 1e-5)


@torch.no_grad()
def test_the_masked_label_need_not_be_given():
    hf_model, given = small(MULTIMODAL).double(), case(MULTIMODAL, torch.float64)
    del given.inputs["label"]
    assert_same_outputs(hf_model, from_transformers(hf_model), given, 1e-11)


@every_image_classifier
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


@every_class
def test_training_is_that_of_transformers(hf_class):
    hf_model = small(hf_class, attention_probs_dropout_prob=0.0).double().train()
    model, given = from_transformers(hf_model), case(hf_class, torch.float64)
    sum(values.square().sum() for values in given.found(model).values()).backward()
    sum(values.square().sum() for values in given.expected(hf_model).values()).backward()
    gradients = {name: one.grad for name, one in model.named_parameters()}
    found = ARCHITECTURES[hf_class.__name__].table.to_theirs(gradients, SMALL["num_self_attends_per_block"])
    assert len(found) == len(list(hf_model.parameters()))
    for name, parameter in hf_model.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, atol=1e-9, rtol=1e-8, msg=name)
        # A bias on all keys alike adds the same to every logit of a softmax, and so changes nothing.
        assert parameter.grad.abs().max() > (0.0 if name.endswith("key.bias") else 1e-9) or name in UNUSED, name
    assert num_parameters(model) == num_parameters(hf_model)
    if hf_class is CONV:
        norm = hf_model.perceiver.input_preprocessor.convnet.batchnorm
        torch.testing.assert_close(model.encoders["image"].stem.norm.state_dict(), norm.state_dict())


@every_class
@pytest.mark.parametrize("training", [True, False])
def test_mode_and_dropout_are_those_of_the_source(hf_class, training):
    model = from_transformers(small(hf_class, attention_probs_dropout_prob=0.3).train(training))
    assert all(module.training is training for module in model.modules())
    attentions = [module for module in model.modules() if isinstance(module, ScaledDotProduct)]
    assert [attention.dropout for attention in attentions] == [0.3] * 4


@every_class
@torch.no_grad()
def test_nothing_is_shared_with_the_source(hf_class):
    hf_model = small(hf_class, hidden_act="prelu")
    model, given = from_transformers(hf_model), case(hf_class)
    before, back = given.found(model), to_transformers(model)
    for value in hf_model.state_dict().values():
        value.zero_()
    assert not set(model.modules()) & set(hf_model.modules())
    for value in back.state_dict().values():
        value.zero_()
    torch.testing.assert_close(given.found(model), before, atol=0.0, rtol=0.0)


def test_subclasses_are_known():
    class Renamed(LEARNED):
        pass

    assert num_parameters(from_transformers(small(Renamed))) == num_parameters(small(LEARNED))


@pytest.mark.parametrize("build", [lambda: nn.Linear(2, 3), lambda: transformers.BertModel])
def test_other_classes_are_refused(build):
    with pytest.raises(TypeError, match=r"Fourier, .*MaskedLM, .*Multimodal.*, not (Linear|type)"):
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


@every_class
def test_transformers_is_not_imported(monkeypatch, hf_class):
    hf_model = small(hf_class)
    monkeypatch.setitem(sys.modules, "transformers", None)  # importing it is an ImportError from here on
    module = importlib.reload(sys.modules["perceiver.pretrained.transformers"])
    module.from_transformers(hf_model)


def test_defaults_are_those_of_transformers():
    config = transformers.PerceiverConfig().to_dict()
    assert {key: list(value) if isinstance(value, tuple) else value for key, value in config.items()}.items() >= (
        DEFAULTS.items()
    )


@pytest.mark.parametrize("name", ACTIVATIONS)
@torch.no_grad()
def test_activations_are_those_of_transformers(name):
    hf_model, given = small(SEQUENCE, hidden_act=name).double(), case(SEQUENCE)
    model = from_transformers(hf_model)
    hf_config = hf_model.config.to_dict()
    ours = (
        sys.modules["perceiver.pretrained.transformers"]
        .load("PerceiverForSequenceClassification", hf_config, hf_model.state_dict(), "transformers")[0]
        .eval()
    )
    torch.testing.assert_close(given.found(ours), given.found(model), atol=1e-12, rtol=0.0)


class TestVariants:
    """DeepMind's code differs in three places."""

    @torch.no_grad()
    def test_gelu_is_the_tanh_approximation(self):
        approximate = small(MASKED_LM, hidden_act="gelu_new").double()
        exact = small(MASKED_LM).double()
        exact.load_state_dict(approximate.state_dict())
        assert_same_outputs(approximate, from_transformers(exact, variant="deepmind"), case(MASKED_LM), 1e-11)

    @torch.no_grad()
    def test_the_tanh_approximation_is_known_to_transformers(self):
        model = from_transformers(small(SEQUENCE).double(), variant="deepmind")
        assert_same_outputs(to_transformers(model), model, case(SEQUENCE), 1e-11)

    @torch.no_grad()
    def test_the_stem_pads_as_tensorflow_does(self):
        model = from_transformers(small(CONV), variant="deepmind")
        assert model.encoders["image"](torch.randn(1, 3, 224, 224)).grid.shape == (56, 56)
        with pytest.raises(ValueError, match=r"stem\.padding=same must be symmetric"):
            to_transformers(model)

    @torch.no_grad()
    def test_the_query_of_learned_positions_has_no_residual(self):
        residuals = [
            from_transformers(small(LEARNED), variant=variant).decoder.cross_block.residual
            for variant in ("transformers", "deepmind")
        ]
        assert residuals[0] is not None
        assert residuals[1] is None

    def test_another_one_is_refused(self):
        with pytest.raises(ValueError, match="variant='haiku' must be transformers or deepmind"):
            from_transformers(small(FOURIER), variant="haiku")


class TestRefusedByTransformers:
    """What no class of transformers computes is named."""

    @pytest.mark.parametrize(
        ("change", "problem"),
        [
            (lambda model: setattr(model.decoder.cross_block.attention, "num_heads", 2), r"num_heads=2 must be 1"),
            (lambda model: setattr(model.memory.cross_blocks[0].dropout, "p", 0.25), r"dropout\.p=0\.25 must be 0\.0"),
            (
                lambda model: setattr(model, "decoder", nn.Linear(2, 3)),
                "decoder=Linear must be QueryDecoder|other parts",
            ),
            (
                lambda model: setattr(model, "memory", nn.Identity()),
                "no class of transformers has a Identity as memory",
            ),
            (lambda model: model.encoders.update({"depth": model.encoders["image"]}), r"encoders of depth .*, image"),
            (lambda model: setattr(model.memory.cross_blocks[0].mlp, "1", nn.Hardtanh()), "no name for .* Hardtanh"),
        ],
    )
    def test_what_has_no_place(self, change, problem):
        model = from_transformers(small(FOURIER))
        change(model)
        with pytest.raises(ValueError, match=problem):
            to_transformers(model)

    @pytest.mark.parametrize("part", ["encoders.text", "decoder"])
    def test_a_part_of_a_text_model(self, part):
        model = from_transformers(small(SEQUENCE))
        model.set_submodule(part, nn.Softplus())
        with pytest.raises(ValueError, match=r"no class of transformers .*Softplus"):
            to_transformers(model)

    def test_class_names_are_kept(self):
        names = [f"class {number}" for number in range(SMALL["num_labels"])]
        assert to_transformers(from_transformers(small(FOURIER)), names).config.id2label == dict(enumerate(names))
