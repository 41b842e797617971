"""Outputs, gradients and statistics do not depend on what is masked: for every encoder, in training and evaluation."""

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close
from torchaudio.transforms import SpecAugment

from perceiver.data.collate import collate
from perceiver.encoders.stems import ConvStack
from perceiver.encoders.text import TextEncoder
from perceiver.positions import FourierPositions, LearnedPositions
from perceiver.types import Sample
from tests.models import (
    STEMS,
    audio_encoder,
    image_encoder,
    log_mel,
    logits,
    shaken,
    small_perceiver,
    video_encoder,
    waveform_encoder,
)

EVERY_STEM = {name: make for name, make in STEMS.items() if "projected" not in name} | {
    "deep stack": lambda c: shaken(ConvStack(channels=c, dims=(3, 5), convs_per_level=2))
}


def image(*size: int) -> torch.Tensor:
    return torch.rand(3, *size)


def sound(length: int) -> torch.Tensor:
    return 0.3 * torch.randn(1, length)


def text(length: int) -> torch.Tensor:
    return torch.randint(11, (1, length))


def spectrogram(length: int) -> torch.Tensor:
    return log_mel()(sound(length))


def learned_positions(*shape: int, dim: int = 5) -> LearnedPositions:
    return LearnedPositions(shape=shape, dim=dim, init_std=1.0)


def augmented(zero_masking: bool):
    masks = {"n_time_masks": 2, "time_mask_param": 7, "n_freq_masks": 1, "freq_mask_param": 3}
    return audio_encoder(spec_augment=SpecAugment(**masks, zero_masking=zero_masking))


IMAGES, SOUNDS, TEXTS = ([image(17, 26), image(23, 29)], [sound(331), sound(1061)], [text(3), text(7)])
VIDEOS = [torch.rand(3, 3, 11, 18), torch.rand(3, 5, 13, 17)]
SPECTROGRAMS = [spectrogram(331), spectrogram(1061)]
ENCODERS = {
    **{
        f"image, {name}": (lambda make=make: image_encoder(make(3), mean=0.5, std=0.25), IMAGES)
        for name, make in EVERY_STEM.items()
    },
    "image, learned positions": (lambda: image_encoder(positions=learned_positions(5, 7)), IMAGES),
    **{
        f"sound, {name}": (lambda make=make: audio_encoder(make(1)), SOUNDS)
        for name, make in EVERY_STEM.items()
        if name != "symmetric convolution"  # of so short sounds it makes no cell
    },
    "sound, stretched": (
        lambda: audio_encoder(positions=FourierPositions(num_bands=2, max_resolution=(3, 7))),
        SOUNDS,
    ),
    "sound, augmented": (lambda: augmented(zero_masking=True), SOUNDS),
    "spectrogram": (lambda: audio_encoder(EVERY_STEM["stack"](1)), SPECTROGRAMS),
    "spectrogram, augmented by the mean": (lambda: augmented(zero_masking=False), SPECTROGRAMS),
    "waveform": (lambda: waveform_encoder(dim=7), SOUNDS),
    "waveform, stretched": (lambda: waveform_encoder(positions=learned_positions(19)), SOUNDS),
    "video": (lambda: video_encoder(EVERY_STEM["stack"]), VIDEOS),
    "text": (
        lambda: TextEncoder(
            vocab_size=11, dim=5, positions=LearnedPositions(shape=(31,), dim=5, init_std=1.0, anchored=True)
        ),
        TEXTS,
    ),
    "text, stretched": (lambda: TextEncoder(vocab_size=11, dim=5, positions=learned_positions(5)), TEXTS),
}
every_encoder = pytest.mark.parametrize(("make", "samples"), ENCODERS.values(), ids=ENCODERS)
both_modes = pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])


def results(model, inputs, masks, *, training):
    """Outputs, and what a step of training takes from and leaves in the model, which stays as it is."""
    model.train(training).zero_grad()
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    torch.default_generator.manual_seed(7)
    outputs = logits(model, inputs, masks)
    (outputs * torch.linspace(-1.0, 1.0, outputs.shape[1])).square().sum().backward()
    gradients = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    after = {name: buffer.clone() for name, buffer in model.named_buffers()}
    for name, buffer in model.named_buffers():
        buffer.copy_(before[name])
    return outputs.detach(), gradients, after


def equal(found, expected):
    assert_close(found, expected, atol=1e-4, rtol=1e-3)


def model_of(encoder):
    return small_perceiver(encoders={"x": encoder})


def collated(samples):
    batch = collate([Sample({"x": values}, {}, "x") for values in samples])
    return batch.inputs["x"], batch.masks["x"]


def spoilt(values, mask, junk):
    junk = int(1e6) if not values.is_floating_point() else junk
    return values.masked_fill(~mask[:, None], junk)


@both_modes
@every_encoder
def test_a_sample_alone_gives_what_it_gives_padded(make, samples, training):
    model = model_of(make())
    for own in samples:
        values, mask = (part[:1] for part in collated([own, *samples]))
        alone = results(model, {"x": own[None]}, None, training=training)
        equal(results(model, {"x": values}, {"x": mask}, training=training), alone)


@pytest.mark.parametrize("junk", [1e3, float("nan")])
@both_modes
@every_encoder
def test_what_is_masked_changes_nothing_nor_do_more_padding_and_absent_samples(make, samples, training, junk):
    model, (values, mask) = model_of(make()), collated(samples)
    expected = results(model, {"x": values}, {"x": mask}, training=training)
    equal(results(model, {"x": spoilt(values, mask, junk)}, {"x": mask}, training=training), expected)
    # More padding on the right, of images also below; and a sample before and one after these that have nothing real.
    below = 3 if values.shape[1] == 3 else 0
    padded = F.pad(mask, (0, 5, *(0, below) * (mask.ndim - 2), 1, 1))
    larger = values.new_zeros(len(padded), values.shape[1], *padded.shape[1:])
    larger[1:-1][(..., *(slice(size) for size in values.shape[2:]))] = values
    outputs, gradients, buffers = results(model, {"x": spoilt(larger, padded, junk)}, {"x": padded}, training=training)
    equal(outputs[1:-1], expected[0])
    equal(buffers, expected[2])
    nothing = results(model, {"x": spoilt(larger, padded, junk)[:1]}, {"x": padded[:1]}, training=training)
    for name, gradient in expected[1].items():
        equal(gradients[name], gradient + 2 * nothing[1][name])


@both_modes
@every_encoder
def test_a_sample_that_lacks_a_modality_changes_nothing_of_it(make, samples, training):
    other = image_encoder()
    model, images = small_perceiver(encoders={"x": make(), "image": other}), torch.rand(3, 3, 11, 13)
    own = samples[0]
    values = torch.stack([own, own.flip(-1), torch.zeros_like(own)])
    present = torch.tensor([True, True, False])
    values = spoilt(values, present.reshape(-1, *[1] * (own.ndim - 1)).expand(-1, *own.shape[1:]), float("nan"))
    both = results(model, {"x": values[:2], "image": images[:2]}, {"x": present[:2]}, training=training)
    found = results(model, {"x": values, "image": images}, {"x": present}, training=training)
    equal(found[0][:2], both[0])
    equal(found[2], both[2])
    lacking = results(model, {"image": images[2:]}, None, training=training)
    equal(found[0][2:], lacking[0])
    for name, gradient in both[1].items():
        equal(found[1][name], gradient + lacking[1].get(name, torch.zeros_like(gradient)))
