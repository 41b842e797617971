"""Models of other packages are explained, and run as without it."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from timm.models.cait import Cait
from timm.models.swin_transformer import SwinTransformer
from torch import nn

from perceiver.inspection import watch
from perceiver.inspection.maps.answers import answer_scores
from perceiver.inspection.maps.attribution import rival_maps
from perceiver.inspection.watched.explainer import WatchedExplainer
from perceiver.inspection.watched.grids import Input
from perceiver.types import Axis, Grid
from tests.inspection.explanations import contents_of
from tests.inspection.foreign import FOREIGN, IDS, Foreign, features, images, timm_vit

MODELS = pytest.mark.parametrize("foreign", FOREIGN.values(), ids=FOREIGN)


def flat(output) -> list[torch.Tensor]:
    if isinstance(output, torch.Tensor):
        return [output]
    values = output.values() if isinstance(output, dict) else output if isinstance(output, tuple) else []
    return [tensor for value in values for tensor in flat(value)]


def built(foreign: Foreign) -> torch.nn.Module:
    torch.manual_seed(0)
    return foreign.make()


@pytest.mark.parametrize("mode", ["train", "eval", "no_grad"])
@MODELS
def test_outputs_gradients_and_random_numbers_are_untouched(foreign: Foreign, mode: str) -> None:
    model = built(foreign).train(mode == "train")
    results = []
    for watched in (False, True):
        model.zero_grad()
        torch.manual_seed(1)
        with torch.set_grad_enabled(mode != "no_grad"):
            if watched:
                with watch(model, roles=foreign.roles) as attention:
                    output = foreign.call(model)
                assert list(attention.layers) == foreign.layers, str(attention)
            else:
                output = foreign.call(model)
        found = [torch.rand(3), *flat(output)]
        if mode != "no_grad":
            foreign.logits(output).square().sum().backward()
            found += [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        results.append(found)
    assert "forward" not in vars(model)
    assert len(results[0]) == len(results[1]) > 1
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


@MODELS
def test_weights_are_those_of_the_model(foreign: Foreign) -> None:
    model = built(foreign).eval()
    with watch(model, roles=foreign.roles) as attention:
        foreign.call(model)
    for layer in attention.layers.values():
        weights = layer.weights()
        torch.testing.assert_close(weights @ layer.v.float(), layer.outs[0].detach(), atol=2e-6, rtol=1e-5)
        torch.testing.assert_close(weights.sum(dim=-1), torch.ones(weights.shape[:-1]))
        torch.testing.assert_close(
            layer.sample(1).weights([1 % layer.num_queries]), weights[1:, :, [1 % layer.num_queries]]
        )
        if layer.mask is not None:
            assert not weights.movedim(-1, 1)[~layer.mask].any()


@MODELS
def test_answers_are_explained(foreign: Foreign) -> None:
    model = built(foreign).eval()
    with watch(model, roles=foreign.roles) as attention:
        foreign.call(model)
    explanation = attention.explain(foreign.logits)
    inside = explanation.rollout.inputs.sum(dim=-1) + explanation.rollout.residual
    torch.testing.assert_close(inside, torch.ones_like(inside))
    assert explanation.relevance.shape == explanation.rollout.inputs.shape
    assert explanation.relevance.isfinite().all()
    assert (explanation.relevance >= 0).all()
    assert explanation.statistics


WORDS = [[f"token {id}" for id in row] for row in IDS.tolist()]


@pytest.mark.parametrize(
    ("name", "inputs", "modalities"),
    [
        ("timm", {"image": images(24)}, {"image_special": [1], "image": [3, 3]}),
        ("clip", {"text": WORDS, "image": images(24)}, {"image_special": [1], "image": [3, 3], "text": [7]}),
        ("whisper", {"sound": Input(grid=Grid((11,), (Axis("time", "s", 0.0, 2.2),)))}, {"sound": [11]}),
        ("idefics", {}, {"tokens": [7]}),
    ],
)
def test_the_page_has_the_inputs_and_maps(tmp_path: Path, name: str, inputs: dict, modalities: dict) -> None:
    foreign = FOREIGN[name]
    model = built(foreign).eval()
    with watch(model, inputs=inputs) as attention:
        foreign.call(model)
    assert {name: list(span.grid.shape) for name, span in attention.spans.items()} == modalities
    explanation = attention.explain(foreign.logits)
    page = attention.write_page(tmp_path / "maps", explanation)
    content, maps = contents_of(page.read_text())
    assert content["samples"][1]["modalities"].keys() == modalities.keys()
    assert [layer["name"] for layer in maps[0]["layers"]] == attention.input_layers
    assert (tmp_path / "maps" / "step_00000000.npz").exists()
    assert attention.writer(explanation).contact_sheets(2)


@pytest.mark.parametrize("fused", [True, False])
def test_a_deleted_token_is_read_by_none(fused: bool) -> None:
    model = timm_vit(fused).eval()
    x = images(24)
    with watch(model, inputs={"image": x}) as attention:
        before = model(x)
    visible = torch.ones(3, 10, dtype=torch.bool)
    visible[2, 1:] = False
    after = attention.run(torch.tensor([1, 0, 0]), {"tokens": visible})
    torch.testing.assert_close(after[:2], before[[1, 0]])
    other = torch.rand_like(x)
    with watch(model, inputs={"image": x}) as attention:
        model(other)
    torch.testing.assert_close(attention.run(torch.tensor([0]), {"tokens": visible[2:]}), after[2:])
    assert (after[2] - before[0]).abs().max() > 1e-4


def test_a_model_that_drops_layers_in_training_is_told_to_be_in_eval_mode() -> None:
    class Dropping(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for _ in range(1 if self.training else 2):
                x = x + torch.softmax(x @ x.mT, -1) @ x
            return x[:, 0]

    for in_training in (True, False):
        model = Dropping().train(in_training)
        with watch(model) as attention:
            model(features(5, 4).requires_grad_())
        assert len(attention.layers) == (1 if in_training else 2)
        if in_training:
            with pytest.raises(ValueError, match="eval mode"):
                attention.knock_out(attention.explain())
        else:
            assert attention.knock_out(attention.explain())


def test_a_model_of_a_fixed_number_of_samples_is_named() -> None:
    class Fixed(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = x.reshape(2, 5, 4)
            return (torch.softmax(x @ x.mT, -1) @ x)[:, 0]

    model = Fixed()
    with watch(model) as attention:
        model(features(5, 4).requires_grad_())
    with pytest.raises(ValueError, match="Fixed cannot be called with 4 samples instead of 2"):
        attention.evaluate(attention.explain())


@pytest.mark.slow  # dynamo takes seconds to import
def test_a_compiled_model_runs_uncompiled() -> None:
    model = timm_vit().eval()
    x, graphs = images(24), []
    compiled = torch.compile(model, backend=lambda graph, inputs: graphs.append(graph) or graph)
    expected = model(x)
    compiled(x)
    before = len(graphs)
    with watch(model) as attention:
        assert torch.equal(compiled(x), expected)
    assert list(attention.layers) == ["encode0", "encode1"]
    compiled(x)
    assert len(graphs) == before


@pytest.mark.parametrize("name", ["timm", "timm_map", "bert", "t5", "clip", "weights", "torch_decoder", "perceiver"])
def test_rivals_are_those_of_the_embedded_tokens(name: str) -> None:
    foreign = FOREIGN[name]
    model = built(foreign).eval().requires_grad_(name == "torch_decoder")  # whose fast path has no gradients
    with watch(model, roles=foreign.roles, gradients=True) as attention:
        foreign.call(model)
    explanation = attention.explain(foreign.logits, top=1, positions=[3])
    explainer = WatchedExplainer.with_embeddings(attention, attention._answers)
    tokens, real = attention.tokens, attention.real_tokens

    def scores(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            outputs = explainer.forward_tokens(replace(tokens, values=values, mask=mask), attention.queries)
        return answer_scores(outputs, explanation.answers)

    whole = scores(tokens.values, real)
    torch.testing.assert_close(whole, answer_scores(attention.outputs, explanation.answers))
    maps = rival_maps(explainer, explanation)
    assert all(values.abs().max() > 0 for values in maps.values()), "the answers depend on what is replaced"
    left = real.clone()
    left[:, 1] = False
    without = scores(tokens.values.masked_fill(~left[..., None], 0.0), left)
    torch.testing.assert_close(maps["occlusion"][..., 1], (whole - without).masked_fill(~real[:, 1:2], 0.0))
    # With the derivative along the tokens, by finite differences in float32.
    step = 1e-2
    both = [scores(tokens.values * (1 + sign * step), real) for sign in (1, -1)]
    derivative = (both[0] - both[1]) / (2 * step)
    torch.testing.assert_close(maps["gradient_input"].sum(dim=-1), derivative, rtol=0.05, atol=2e-3)


def test_the_table_has_the_rivals_and_maps_fall_apart_with_random_weights() -> None:
    torch.manual_seed(0)
    model = timm_vit().eval()
    model.head.weight.data *= 100
    before = {name: values.clone() for name, values in model.state_dict().items()}
    with watch(model, inputs={"image": images(24)}) as attention:
        model(images(24))
    explanation = attention.explain(top=1)
    evaluation = attention.evaluate(explanation, num_orders=2, rivals=True, randomize=True).faithfulness
    kinds = ["relevance", "rollout", "mean_map", "gradient_input", "integrated_gradients", "occlusion"]
    assert list(evaluation["maps"]) == list(evaluation["stages"]) == kinds
    for kind in kinds:
        assert {"deletion", "insertion", "randomization"} <= evaluation["maps"][kind]["scores"].keys()
        assert len(evaluation["stages"][kind]) == 5
    assert evaluation["stages"]["gradient_input"][-1] < 0.9
    assert all(torch.equal(values, before[name]) for name, values in model.state_dict().items())
    assert torch.equal(attention.explain(top=1).relevance, explanation.relevance)  # of the same call


@pytest.mark.parametrize("name", ["timm", "torch"])  # the second has fast paths
def test_a_frozen_model_is_explained_with_gradients(name: str) -> None:
    foreign = FOREIGN[name]
    model = built(foreign).eval()
    with watch(model) as attention:
        foreign.call(model)
    expected = attention.explain().relevance
    model.requires_grad_(False)
    with watch(model) as attention:
        assert not foreign.call(model).requires_grad
    with pytest.raises(ValueError, match="gradients=True"):
        attention.explain()
    with watch(model, gradients=True) as attention:
        foreign.call(model)
    assert expected.any()
    torch.testing.assert_close(attention.explain().relevance, expected)


@pytest.mark.parametrize("top", [0, 99])
def test_no_more_answers_are_explained_than_there_are_classes(top: int) -> None:
    foreign = FOREIGN["torch"]
    model = built(foreign).eval()
    with watch(model) as attention:
        logits = foreign.call(model)
    with pytest.raises(ValueError, match=rf"top={top} .*{logits.shape[-1]}"):
        attention.explain(top=top)
    assert len(attention.explain(top=logits.shape[-1]).answers[0]) == logits.shape[-1]


def test_roles_are_declared_by_module() -> None:
    foreign = FOREIGN["q_former"]
    model = built(foreign).eval()
    with watch(model, roles={"*": "outputs"}) as attention:
        foreign.call(model)
    assert list(attention.layers) == ["decode_self0", "decode0", "decode_self1"]
    assert attention.modules["decode0"] == "encoder.layer.0.crossattention.attention"


def test_what_cannot_be_explained_is_said() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.Softmax(dim=-1))
    with watch(model) as attention:
        model(features(4))
    with pytest.raises(ValueError, match="no attention was found in the last call of Sequential"):
        attention.explain()
    windows = SwinTransformer(img_size=16, patch_size=2, embed_dim=4, depths=(1,), num_heads=(1,), window_size=4)
    with watch(windows) as attention:
        windows(images(16))
    with pytest.raises(ValueError, match="8 rows of attention are not the samples"):
        attention.explain()
    model = Cait(img_size=24, patch_size=8, embed_dim=8, depth=1, depth_token_only=2, num_heads=2)  # talking heads
    with watch(model, inputs={"image": images(24)}) as attention:
        model(images(24))
    assert [(name, attention.key_parts(layer)) for name, layer in attention.layers.items()] == [
        (name, {"tokens": slice(0, 10)}) for name in ("cross0", "cross1")
    ]
    assert [reason.split(":")[0] for reason in attention.left_out] == ["blocks.0.attn"]
    model = timm_vit()
    with (
        pytest.raises(ValueError, match=r"inputs=\['image'\].*tokens of 10"),
        watch(model, inputs={"image": images(24)[..., :13]}),
    ):
        model(images(24))
    assert "forward" not in vars(model)
    with watch(model) as attention:
        model(images(24))
    for key, given in (("class_names", ["a"]), ("labels", [7, 0]), ("labels", [0]), ("ids", ["x"])):
        with pytest.raises(ValueError, match=f"^{key}: "):
            attention.explain(**{key: given})
    with watch(model) as uncalled, pytest.raises(ValueError, match="not called"):
        uncalled.explain()
    with pytest.raises(ValueError, match="rollout_alpha=norm"):
        attention.explain(alpha="norm")
    with pytest.raises(ValueError, match="logits"):
        attention.explain(lambda output: output[0])
