"""Small models of other packages with random weights, and the call of each."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

ROWS = 2
IDS = torch.tensor([[1, 5, 7, 9, 3, 11, 2], [1, 4, 6, 2, 0, 0, 0]])
"""Token ids, padded with 0."""
TINY = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 8, "intermediate_size": 16}


@dataclass(frozen=True)
class Foreign:
    """A model, and what is known of it.

    Attributes:
        make: builds it.
        call: calls it.
        layers: the names under which its attention must be found.
        logits: of what it returns.
        roles: see `watch`.
    """

    make: Callable[[], nn.Module]
    call: Callable[[nn.Module], Any]
    layers: list[str]
    logits: Callable[[Any], Tensor] = lambda output: output
    roles: dict[str, str] = field(default_factory=dict)


def images(size: int) -> Tensor:
    return torch.rand(ROWS, 3, size, size, generator=torch.Generator().manual_seed(0))


def features(*shape: int) -> Tensor:
    return torch.randn(ROWS, *shape, generator=torch.Generator().manual_seed(1))


def timm_vit(fused: bool = True, **options: Any) -> nn.Module:
    sizes = {"img_size": 24, "patch_size": 8, "embed_dim": 12, "depth": 2, "num_heads": 3, "num_classes": 5}
    model = VisionTransformer(**sizes, attn_drop_rate=0.2, proj_drop_rate=0.2, **options)
    for block in model.blocks:
        block.attn.fused_attn = fused
    return model


class Classifier(nn.Module):
    """A transformer encoder of torch with padding."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(13, 8)
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.2, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.head = nn.Linear(8, 5)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.encoder(self.embedding(ids), src_key_padding_mask=ids == 0)[:, 0])


class Reader(nn.Module):
    """A learned query that reads its input with `nn.MultiheadAttention`, whose weights are asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.randn(1, 1, 8))
        self.attention = nn.MultiheadAttention(8, 2, dropout=0.2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(self.query.expand(len(x), -1, -1), x, x, need_weights=True)[0][:, 0]


class Grouped(nn.Module):
    """Causal attention with four heads of queries and two of keys, and a scale of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.kv = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        q = self.q(x).unflatten(-1, (4, 2)).transpose(1, 2)
        k, v = self.kv(x).unflatten(-1, (2, 2, 2)).permute(2, 0, 3, 1, 4)
        out = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.3, enable_gqa=True)
        return (x + out.transpose(1, 2).flatten(2))[:, -1]


class Einsum(nn.Module):
    """Attention of two heads by `einsum`, with axes in any order.

    Args:
        scores: equation for queries and keys [b, i or j, h, d].
        product: equation for weights, w, and values, v, in the order of its factors.
        axis: of the scores, that of the keys.
    """

    def __init__(self, scores: str, product: str, axis: int) -> None:
        super().__init__()
        self.scores, self.product, self.axis = scores, product, axis
        self.is_shared = "h" not in product.replace(scores[-4:], "").partition("->")[0]
        self.qk, self.v = nn.Linear(8, 16), nn.Linear(8, 4 if self.is_shared else 8)

    def forward(self, x: Tensor) -> Tensor:
        q, k = self.qk(x).unflatten(-1, (2, 2, 4)).unbind(2)
        v = self.v(x) if self.is_shared else self.v(x).unflatten(-1, (2, 4))
        weights = nn.functional.dropout(torch.einsum(self.scores, q, k).softmax(self.axis), 0.2, self.training)
        is_first = self.product.startswith(self.scores[-4:])
        out = torch.einsum(self.product, *((weights, v) if is_first else (v, weights)))
        return (x + out.flatten(2))[:, -1]


class RepeatedReader(nn.TransformerDecoder):
    """Latents that read the same input in two layers, which is no output of attention itself."""

    def __init__(self) -> None:
        super().__init__(nn.TransformerDecoderLayer(8, 2, 16, dropout=0.2, batch_first=True), 2)
        self.latents = nn.Parameter(torch.randn(3, 8))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.latents.expand(len(x), -1, -1), x)[:, 0]


def deberta() -> nn.Module:
    options = {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "attention_probs_dropout_prob": 0.2}
    config = transformers.DebertaV2Config(vocab_size=13, **TINY, num_labels=5, **options)
    return transformers.DebertaV2ForSequenceClassification(config)


def bert(attention: str) -> nn.Module:
    config = transformers.BertConfig(vocab_size=13, **TINY, max_position_embeddings=16, num_labels=5)
    config._attn_implementation = attention
    return transformers.BertForSequenceClassification(config)


def t5() -> nn.Module:
    config = transformers.T5Config(
        vocab_size=13, d_model=8, d_kv=4, d_ff=16, num_layers=2, num_heads=2, decoder_start_token_id=0
    )
    return transformers.T5ForConditionalGeneration(config)


def whisper() -> nn.Module:
    sizes = {f"{part}_{name}": value for part in ("encoder", "decoder") for name, value in LAYERS.items()}
    config = transformers.WhisperConfig(
        vocab_size=13, num_mel_bins=4, d_model=8, max_source_positions=11, max_target_positions=16, **sizes,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
    )  # fmt: skip
    return transformers.WhisperForConditionalGeneration(config)


LAYERS = {"layers": 1, "attention_heads": 2, "ffn_dim": 16}


def clip() -> nn.Module:
    text = TINY | {"vocab_size": 13, "max_position_embeddings": 16, "eos_token_id": 2}
    vision = TINY | {"image_size": 24, "patch_size": 8}
    return transformers.CLIPModel(transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=8))


def q_former() -> nn.Module:
    config = transformers.Blip2QFormerConfig(**TINY, encoder_hidden_size=6, cross_attention_frequency=2)
    return transformers.Blip2QFormerModel(config)


def idefics() -> nn.Module:
    from transformers.models.idefics.configuration_idefics import IdeficsConfig
    from transformers.models.idefics.perceiver import IdeficsPerceiverResampler

    config = IdeficsConfig(perceiver_config={"use_resampler": True}, vision_config={"embed_dim": 8})
    return IdeficsPerceiverResampler(config, embed_dim=8, depth=2, n_heads=2, head_dim=4, n_latents=3)


def perceiver() -> nn.Module:
    config = transformers.PerceiverConfig(
        num_latents=3, d_latents=8, d_model=6, num_blocks=1, num_self_attends_per_block=2,
        num_self_attention_heads=2, num_cross_attention_heads=2, num_labels=5,
    )  # fmt: skip
    decoder = transformers.models.perceiver.modeling_perceiver.PerceiverClassificationDecoder(
        config, num_channels=8, trainable_position_encoding_kwargs={"num_channels": 8, "index_dims": 1}
    )
    return transformers.PerceiverModel(config, decoder=decoder)


def by_ids(model: nn.Module) -> Any:
    return model(input_ids=IDS, attention_mask=(IDS != 0).long())


def with_text(model: nn.Module) -> Any:
    return model(input_ids=IDS, attention_mask=(IDS != 0).long(), decoder_input_ids=IDS[:, :5], use_cache=False)


FOREIGN = {
    "timm": Foreign(timm_vit, lambda model: model(images(24)), ["encode0", "encode1"]),
    "timm_explicit": Foreign(lambda: timm_vit(False), lambda model: model(images(24)), ["encode0", "encode1"]),
    "timm_map": Foreign(
        lambda: timm_vit(global_pool="map", class_token=False),
        lambda model: model(images(24)),
        ["encode0", "encode1", "cross0"],
    ),
    "torch": Foreign(Classifier, lambda model: model(IDS), ["encode0", "encode1"]),
    "weights": Foreign(Reader, lambda model: model(features(7, 8)), ["cross0"]),
    "grouped": Foreign(Grouped, lambda model: model(features(7, 8)), ["encode0"]),
    "einsum": Foreign(
        lambda: Einsum("bihd,bjhd->bhij", "bhij,bjd->bihd", -1), lambda model: model(features(7, 8)), ["encode0"]
    ),
    "einsum_axis": Foreign(
        lambda: Einsum("bihd,bjhd->bijh", "bjhd,bijh->bihd", 2), lambda model: model(features(7, 8)), ["encode0"]
    ),
    "torch_decoder": Foreign(
        RepeatedReader, lambda model: model(features(7, 8)), ["self0", "cross0", "self1", "cross1"]
    ),
    "deberta": Foreign(deberta, by_ids, ["encode0", "encode1"], lambda output: output.logits),
    "bert": Foreign(lambda: bert("sdpa"), by_ids, ["encode0", "encode1"], lambda output: output.logits),
    "bert_explicit": Foreign(lambda: bert("eager"), by_ids, ["encode0", "encode1"], lambda output: output.logits),
    "t5": Foreign(
        t5,
        with_text,
        ["encode0", "encode1", "decode_self0", "decode0", "decode_self1", "decode1"],
        lambda output: output.logits,
    ),
    "whisper": Foreign(
        whisper,
        lambda model: model(features(4, 22), decoder_input_ids=IDS[:, :5], use_cache=False),
        ["encode0", "decode_self0", "decode0"],
        lambda output: output.logits,
    ),
    "clip": Foreign(
        clip,
        lambda model: model(input_ids=IDS, pixel_values=images(24), attention_mask=(IDS != 0).long()),
        [f"{tower}_model/encode{layer}" for tower in ("vision", "text") for layer in (0, 1)],
        lambda output: output.logits_per_image.diagonal()[:, None],
    ),
    "q_former": Foreign(
        q_former,
        lambda model: model(query_embeds=features(3, 8), encoder_hidden_states=features(7, 6)),
        ["self0", "cross0", "self1"],
        lambda output: output.pooler_output,
    ),
    "idefics": Foreign(
        idefics, lambda model: model(features(7, 8)), ["cross0", "cross1"], lambda output: output.mean(dim=1)
    ),
    "perceiver": Foreign(
        perceiver,
        lambda model: model(inputs=features(7, 6)),
        ["cross0", "self0", "self1", "decode0"],
        lambda output: output.logits,
    ),
}
