"""Sound -> tokens: log-mel spectrograms through a stem, or the raw wave in patches.

Both are inputs of Perceiver (Jaegle et al. 2021, section 4.2 and appendix) on AudioSet. Positions should be `anchored`,
so that they are the same at the same time in clips of any length.
"""

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F
from torchaudio.transforms import SpecAugment

from perceiver.encoders.base import Combine, Encoder, cell_positions, check_sizes, combined_dim, with_positions
from perceiver.encoders.norm import zero_masked
from perceiver.encoders.stems import RasterEncoder, Stem
from perceiver.positions import Positions, extents
from perceiver.spectrogram import LogMel
from perceiver.types import Axis, Grid, Picture, Sound, Tokens

Wave = Float[Tensor, "batch 1 length"]


class LogMelEncoder(RasterEncoder):
    """A log-mel spectrogram as a raster: rows are mel bands, the lowest first, columns are frames.

    Args:
        log_mel: wave -> spectrogram in dB, on the device of the batch.
        stem, positions, combine: see `RasterEncoder`.
        mean, std: of the spectrogram, in dB; the input of the stem is (dB - mean) / std.
        spec_augment: in training, masks random bands and times (Park et al. 2019, arXiv:1904.08779) with the mean of
            the sample, or with `mean` if `zero_masking`.
    """

    def __init__(
        self,
        *,
        log_mel: LogMel,
        stem: Stem,
        positions: Positions,
        mean: float,
        std: float,
        combine: Combine = "concat",
        spec_augment: SpecAugment | None = None,
    ) -> None:
        super().__init__(stem=stem, positions=positions, combine=combine)
        if stem.channels != 1:
            raise ValueError(f"stem.channels={stem.channels}: a spectrogram has 1")
        if std <= 0.0:
            raise ValueError(f"std={std} must be more than 0")
        for name in ("n_time_masks", "time_mask_param", "n_freq_masks", "freq_mask_param"):
            if (value := getattr(spec_augment, name, 0)) < 0:  # torchaudio takes it for none
                raise ValueError(f"{name}={value} must be at least 0")
        if not 0.0 <= (share := getattr(spec_augment, "p", 1.0)) <= 1.0:
            raise ValueError(f"p={share} must be in [0, 1]")
        self.log_mel = log_mel
        self.mean = mean
        self.std = std
        self.spec_augment = spec_augment

    def forward(
        self,
        raw: Wave | Float[Tensor, "batch 1 mels frames"],
        mask: Bool[Tensor, "batch length"] | Bool[Tensor, "batch mels frames"] | None = None,
    ) -> Tokens:
        """Encode waves, or spectrograms by `log_mel`. Tokens have the type of `raw`; decibels are float32."""
        spectrogram = (self._spectrogram(raw, mask) - self.mean) / self.std
        if mask is not None and raw.ndim == 3:
            mask = self.log_mel.frame_mask(mask)[:, None].expand(-1, self.log_mel.n_mels, -1)
        if self.training and self.spec_augment is not None:
            spectrogram = self._spec_augment(spectrogram, mask)
        return self.tokens(spectrogram.to(raw.dtype), mask)

    def _spec_augment(
        self, spectrogram: Float[Tensor, "batch 1 mels frames"], mask: Bool[Tensor, "batch mels frames"] | None
    ) -> Float[Tensor, "batch 1 mels frames"]:
        """Apply SpecAugment; where samples differ in length, to the real frames of each."""
        if mask is None:
            return self._mask_randomly(spectrogram, spectrogram.new_ones(()).bool())
        rows = []
        for row, length in enumerate(extents(mask)[:, 1].tolist()):
            frames, padding = spectrogram[row, None, ..., :length], spectrogram[row, None, ..., length:]
            if length:
                frames = self._mask_randomly(frames, mask[row, None, None, :, :length])
            rows.append(torch.cat([frames, padding], dim=-1))
        return torch.cat(rows)

    def _mask_randomly(
        self, spectrogram: Float[Tensor, "batch 1 mels frames"], real: Bool[Tensor, "..."]
    ) -> Float[Tensor, "batch 1 mels frames"]:
        assert self.spec_augment is not None
        if self.spec_augment.zero_masking:
            return self.spec_augment(spectrogram)
        # torchaudio fills in the mean of the batch, which is 0 if that of each sample is.
        dims, real = (1, 2, 3), real.expand_as(spectrogram)
        mean = spectrogram.masked_fill(~real, 0.0).sum(dims, keepdim=True) / real.sum(dims, keepdim=True)
        return self.spec_augment((spectrogram - mean).masked_fill(~real, 0.0)) + mean

    def _spectrogram(self, raw: Tensor, mask: Tensor | None = None) -> Float[Tensor, "batch 1 mels frames"]:
        is_wave = _is_wave(raw)
        if not (is_wave or (raw.ndim == 4 and raw.shape[1:3] == (1, self.log_mel.n_mels))) or raw.shape[-1] < 1:
            raise ValueError(
                f"audio inputs must be [batch, 1, length] or [batch, 1, mels={self.log_mel.n_mels}, frames], "
                f"not {list(raw.shape)}"
            )
        if not raw.is_floating_point():
            raise ValueError(f"audio inputs must be real numbers, not {raw.dtype}")
        raw = zero_masked(raw, mask)  # the windows of the last real frames extend beyond the mask
        return self.log_mel(raw) if is_wave else raw.float()

    def axes(self, rows: int, columns: int) -> tuple[Axis, Axis]:
        mels_per_row, frames_per_column = self.stem.stride
        return self.log_mel.frequencies(rows, mels_per_row), self.log_mel.times(columns, frames_per_column)

    def picture(self, raw: Tensor) -> Picture:
        return self.log_mel.picture(self._spectrogram(raw))

    def sound(self, raw: Tensor) -> Sound | None:
        return Sound(raw[:, 0], self.log_mel.sample_rate) if _is_wave(raw) else None

    def example_input(self) -> Float[Tensor, "1 1 length"]:
        return torch.zeros(1, 1, 8 * self.stem.stride[1] * self.log_mel.hop_length)


class WaveformEncoder(Encoder):
    """The raw wave in consecutive patches (Perceiver: 128 samples at 48 kHz; Perceiver IO: 16).

    Args:
        sample_rate: of the wave, in Hz.
        patch_size: samples in a patch.
        dim: width of a linear projection of the patches; None for none.
        positions: vectors for the patches.
        std: of the samples, by which they are divided.
        combine: concatenate positions to the features or add them.
        log_mel: spectrogram that `picture` shows.
    """

    def __init__(
        self,
        *,
        sample_rate: int,
        patch_size: int,
        dim: int | None,
        positions: Positions,
        std: float,
        combine: Combine = "concat",
        log_mel: LogMel,
    ) -> None:
        super().__init__()
        check_sizes(patch_size=patch_size, dim=dim)
        if std <= 0.0:
            raise ValueError(f"std={std} must be more than 0")
        if sample_rate != log_mel.sample_rate:
            raise ValueError(f"sample_rate={sample_rate} must be log_mel.sample_rate={log_mel.sample_rate}")
        self.sample_rate = sample_rate
        self.patch_size = patch_size
        self.projection = nn.Identity() if dim is None else nn.Linear(patch_size, dim)
        self.positions = positions
        self.std = std
        self.combine: Combine = combine
        self.log_mel = log_mel
        self.dim = combined_dim(patch_size if dim is None else dim, positions.dim, combine)

    def forward(self, raw: Wave, mask: Bool[Tensor, "batch length"] | None = None) -> Tokens:
        if raw.ndim != 3 or raw.shape[1] != 1 or raw.shape[2] < 1:
            raise ValueError(f"audio inputs must be [batch, 1, length], not {list(raw.shape)}")
        if not raw.is_floating_point():
            raise ValueError(f"audio inputs must be real numbers, not {raw.dtype}")
        wave = raw[:, 0] if mask is None else raw[:, 0].masked_fill(~mask, 0.0)
        patches = self._patches(wave / self.std)
        count = patches.shape[1]
        token_mask = None if mask is None else self._patches(mask).any(dim=-1)
        positions = cell_positions(self.positions, (count,), token_mask)
        values = with_positions(self.projection(patches), positions, self.combine)
        time = Axis("time", "s", 0.0, count * self.patch_size / self.sample_rate)
        return Tokens(values=values, mask=token_mask, grid=Grid(shape=(count,), axes=(time,)))

    def _patches(self, wave: Tensor) -> Tensor:
        padded = F.pad(wave, (0, -wave.shape[-1] % self.patch_size))
        return rearrange(padded, "batch (tokens samples) -> batch tokens samples", samples=self.patch_size)

    def picture(self, raw: Wave) -> Picture:
        return self.log_mel.picture(self.log_mel(raw))

    def sound(self, raw: Wave) -> Sound:
        return Sound(raw[:, 0], self.sample_rate)

    def example_input(self) -> Float[Tensor, "1 1 length"]:
        return torch.zeros(1, 1, 8 * self.patch_size)


def _is_wave(raw: Tensor) -> bool:
    """Whether an input is a wave rather than a spectrogram."""
    return raw.ndim == 3 and raw.shape[1] == 1
