"""Log-mel spectrograms of waveforms, computed by encoders on the device or by readers in the loader's workers.

Short-time Fourier transform with a Hann window, power, triangular filters on the mel scale (HTK's, without area
normalization), decibels: torchaudio's functions, except that frame t is centered on the middle of its hop,
(t + 1/2) · hop_length, with zeros beyond both ends. Frames thus tile a sound from end to end, each sample is in exactly
one hop, and zeros after a sound change none of its frames. 0 dB is the power of a sine of amplitude 1: its bands add up
to that for any window and transform.
"""

import warnings
from collections.abc import Callable
from contextlib import nullcontext
from typing import Self

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F
from torchaudio import functional as AF

from perceiver.types import Axis, Grid, Picture, hertz, mel

MIN_POWER = 1e-10
"""Smaller powers are clamped: -100 dB."""


class LogMel(nn.Module):
    """Waveform -> log-mel spectrogram in decibels.

    Args:
        sample_rate: of the wave, in Hz.
        n_fft: length of the Fourier transform, in samples.
        win_length: length of the window, in samples.
        hop_length: from one frame to the next, in samples.
        n_mels: number of mel bands.
        f_min, f_max: lower edge of the first and upper edge of the last band, in Hz.

    Raises:
        ValueError: sizes are inconsistent, or a band contains no bin of the Fourier transform.
    """

    def __init__(
        self,
        *,
        sample_rate: int,
        n_fft: int,
        win_length: int,
        hop_length: int,
        n_mels: int,
        f_min: float,
        f_max: float,
    ) -> None:
        super().__init__()
        if not 1 <= hop_length <= win_length <= n_fft:
            raise ValueError(f"hop_length={hop_length} ≤ win_length={win_length} ≤ n_fft={n_fft} must hold")
        if not 0.0 <= f_min < f_max:
            raise ValueError(f"f_min={f_min} must be at least 0 and less than f_max={f_max}")
        if f_max > sample_rate / 2:
            raise ValueError(f"f_max={f_max} is more than half of sample_rate={sample_rate}")
        if n_mels < 1:
            raise ValueError(f"n_mels={n_mels} must be at least 1")
        self.sample_rate = sample_rate
        self.n_fft = n_fft
        self.win_length = win_length
        self.hop_length = hop_length
        self.n_mels = n_mels
        self.f_min = f_min
        self.f_max = f_max
        self.window: Tensor
        self.filters: Tensor
        constants = self._constants()
        if empty := int((~constants["filters"].any(dim=0)).sum()):
            raise ValueError(f"n_mels={n_mels} is too many for n_fft={n_fft}: {empty} bands have no bin in them")
        for name, tensor in constants.items():
            self.register_buffer(name, tensor.to(torch.get_default_device()), persistent=False)

    def _constants(self) -> dict[str, Tensor]:
        with torch.device("cpu"), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of bands without a bin, which the constructor refuses
            filters = AF.melscale_fbanks(
                self.n_fft // 2 + 1, self.f_min, self.f_max, self.n_mels, self.sample_rate, norm=None, mel_scale="htk"
            )
            return {"window": torch.hann_window(self.win_length), "filters": filters}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.window.dtype != torch.float32:  # `model.bfloat16()` must not round the constants
            for name, tensor in self._constants().items():
                setattr(self, name, tensor.to(self.window.device))
        return self

    def num_frames(self, length: int) -> int:
        """Return the number of frames of a wave of `length` samples: one per hop, also of an incomplete one."""
        return -(-length // self.hop_length)

    def forward(self, wave: Float[Tensor, "*batch length"]) -> Float[Tensor, "*batch mels frames"]:
        """Compute the spectrogram, in dB of full scale, at least -100.

        Raises:
            ValueError: the wave has no samples.
        """
        if torch.compiler.is_dynamo_compiling():  # as a decorator, `disable` would import the compiler
            return torch.compiler.disable(self._spectrogram)(wave)  # type: ignore[no-untyped-call]
        return self._spectrogram(wave)

    def _spectrogram(self, wave: Float[Tensor, "*batch length"]) -> Float[Tensor, "*batch mels frames"]:
        if wave.shape[-1] < 1:
            raise ValueError(f"wave of shape {list(wave.shape)}: a spectrogram needs at least one sample")
        device = wave.device.type
        exact = torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext()
        with exact:
            frames = self.num_frames(wave.shape[-1])
            before = (self.n_fft - self.hop_length + 1) // 2
            after = frames * self.hop_length + self.n_fft - self.hop_length - before - wave.shape[-1]
            bins = AF.spectrogram(
                F.pad(wave.float(), (before, after)),
                pad=0,
                window=self.window,
                n_fft=self.n_fft,
                hop_length=self.hop_length,
                win_length=self.win_length,
                power=None,
                normalized=False,
                center=False,
            )
            full_scale = self.n_fft * self.window.square().sum() / 4.0
            power = torch.view_as_real(bins).square().sum(dim=-1)  # five times as fast as torchaudio's |bins|²
            mels = rearrange(power / full_scale, "... bins frames -> ... frames bins") @ self.filters
            return rearrange(10.0 * mels.clamp_min(MIN_POWER).log10(), "... frames mels -> ... mels frames")

    def frame_mask(self, mask: Bool[Tensor, "batch length"]) -> Bool[Tensor, "batch frames"]:
        """Return the frames in whose hop any sample is valid."""
        frames = self.num_frames(mask.shape[-1])
        padded = F.pad(mask, (0, frames * self.hop_length - mask.shape[-1]))
        return rearrange(padded, "batch (frames hop) -> batch frames hop", hop=self.hop_length).any(dim=-1)

    def frequencies(self, rows: int, mels_per_row: int = 1) -> Axis:
        """Return the axis of `rows` cells of bands. Filters overlap; here each band ends half-way to the next."""
        low, high = mel(self.f_min), mel(self.f_max)
        width = (high - low) / (self.n_mels + 1)
        start, stop = low + width / 2, low + width / 2 + rows * mels_per_row * width
        return Axis("frequency", "Hz", hertz(start), hertz(stop), scale="mel")

    def times(self, columns: int, frames_per_column: int = 1) -> Axis:
        """Return the axis of `columns` cells of frames."""
        return Axis("time", "s", 0.0, columns * frames_per_column * self.hop_length / self.sample_rate)

    def picture(self, spectrogram: Float[Tensor, "batch 1 mels frames"]) -> Picture:
        rows, columns = spectrogram.shape[-2:]
        return Picture(spectrogram, Grid((rows, columns), (self.frequencies(rows), self.times(columns))), "dB")
