"""Small random models of all published architectures, with inputs for both implementations."""

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

transformers = pytest.importorskip("transformers")

FOURIER = transformers.PerceiverForImageClassificationFourier
LEARNED = transformers.PerceiverForImageClassificationLearned
CONV = transformers.PerceiverForImageClassificationConvProcessing
SEQUENCE = transformers.PerceiverForSequenceClassification
MASKED_LM = transformers.PerceiverForMaskedLM
FLOW = transformers.PerceiverForOpticalFlow
MULTIMODAL = transformers.PerceiverForMultimodalAutoencoding
IMAGE_CLASSIFIERS = (FOURIER, LEARNED, CONV)
CLASSES = (*IMAGE_CLASSIFIERS, SEQUENCE, MASKED_LM, FLOW, MULTIMODAL)

SMALL = {
    "num_latents": 5,
    "d_latents": 22,
    "num_blocks": 2,
    "num_self_attends_per_block": 2,
    "num_self_attention_heads": 2,
    "num_cross_attention_heads": 1,
    "num_labels": 7,
    "image_size": 13,
    "d_model": 24,
    "vocab_size": 262,
    "max_position_embeddings": 11,
    "train_size": [6, 10],
    "num_frames": 2,
    "audio_samples_per_frame": 35,
    "samples_per_patch": 7,
    "output_num_channels": 17,
    "_label_trainable_num_channels": 19,
    "output_shape": [1, 2, 8, 12],
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
    config = transformers.PerceiverConfig(**SMALL | overrides)
    model = hf_class(config).eval()
    if weights == "initial":
        return model
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                # Sharp attention: a mean over hundreds of tokens would hardly depend on the input.
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


@dataclass
class Case:
    """The same inputs for both implementations: keywords of theirs, and inputs, masks, queries of ours."""

    theirs: dict[str, Any]
    inputs: dict[str, torch.Tensor]
    masks: dict[str, torch.Tensor] = field(default_factory=dict)
    queries: dict[str, torch.Tensor] = field(default_factory=dict)

    def expected(self, hf_model) -> dict[str, torch.Tensor]:
        """Their outputs, by our names and in our shapes."""
        logits = hf_model(**self.theirs).logits
        if isinstance(logits, dict):
            patches = logits["audio"].unflatten(1, (-1, hf_model.config.samples_per_patch))
            return {**logits, "audio": patches}
        return {"logits": logits.flatten(1, 2) if isinstance(hf_model, FLOW) else logits}

    def found(self, model) -> dict[str, torch.Tensor]:
        return model(self.inputs, self.masks, self.queries)


def case(hf_class, dtype=torch.float32) -> Case:
    make = torch.Generator().manual_seed(29)

    def randn(*shape):
        return torch.randn(*shape, generator=make, dtype=dtype)

    if hf_class in (SEQUENCE, MASKED_LM):
        ids = torch.randint(262, (3, 7), generator=make)
        mask = torch.arange(7) < torch.tensor([[7], [4], [1]])
        return Case({"inputs": ids, "attention_mask": mask.long()}, {"text": ids[:, None]}, {"text": mask})
    if hf_class is FLOW:
        frames = randn(2, 3, 2, 6, 10) * 0.2 + 0.5
        return Case({"inputs": neighborhoods(frames * 2 - 1)}, {"video": frames}, {}, {"logits": all_places(2, 6, 10)})
    if hf_class is MULTIMODAL:
        video, audio = randn(2, 3, 2, 8, 12), randn(2, 1, 70)
        points = {"image": torch.tensor([0, 5, 100, 191, 17]), "audio": torch.tensor([9, 0, 4]), "label": None}
        theirs = {"image": video.transpose(1, 2), "audio": audio.mT, "label": randn(2, 7)}
        places = {"image": all_places(2, 2, 8, 12)[:, points["image"]], "audio": all_places(2, 10)[:, points["audio"]]}
        given = {"inputs": theirs, "subsampled_output_points": points}
        return Case(given, {"audio": audio, "image": video, "label": theirs["label"]}, {}, places)
    raw = images(hf_class, dtype)
    return Case({"inputs": raw}, {"image": raw})


def all_places(batch, *shape):
    axes = [(torch.arange(size) + 0.5) / size for size in shape]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, -2).expand(batch, -1, -1)


def neighborhoods(frames):
    """[batch, channels, frames, y, x] -> [batch, frames, 9 · channels, y, x], as `extract_patches` of TensorFlow."""
    padded = F.pad(frames, (1, 1, 1, 1))
    height, width = frames.shape[-2:]
    shifted = [padded[..., dy : dy + height, dx : dx + width] for dy in range(3) for dx in range(3)]
    return torch.cat(shifted, dim=1).transpose(1, 2)
