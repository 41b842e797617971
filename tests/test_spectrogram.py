"""Log-mel spectrograms: frames, bands, levels, and their independence of padding, dtype and device."""

import copy
import pickle

import pytest
import torch
from torch.nn import functional as F
from torchaudio.transforms import MelSpectrogram

from perceiver.spectrogram import LogMel
from tests.kills import in_fork

DEFAULT = {
    "sample_rate": 16000,
    "n_fft": 512,
    "win_length": 400,
    "hop_length": 160,
    "n_mels": 41,
    "f_min": 50.0,
    "f_max": 8000.0,
}
PARITIES = [(512, 400, 160), (128, 102, 53), (128, 101, 54), (127, 102, 54), (127, 101, 53)]
"""Even and odd lengths of transform, window and hop, in pairs."""
every_parity = pytest.mark.parametrize(("n_fft", "win", "hop"), PARITIES)


def log_mel(**options) -> LogMel:
    return LogMel(**(DEFAULT | options))


def small(n_fft, win, hop) -> LogMel:
    return log_mel(n_fft=n_fft, win_length=win, hop_length=hop, n_mels=7)


def sine(frequency: float, rate: int, seconds: float = 0.5, amplitude: float = 1.0) -> torch.Tensor:
    times = torch.arange(round(seconds * rate), dtype=torch.float64) / rate
    return (amplitude * torch.sin(2 * torch.pi * frequency * times)).float()[None]


class TestFrames:
    @every_parity
    def test_an_impulse_is_brightest_in_the_frame_of_its_hop(self, n_fft, win, hop):
        positions = torch.arange(0, 7 * hop)
        levels = small(n_fft, win, hop)(F.one_hot(positions, 7 * hop).float()).mean(dim=1)
        own = levels.gather(1, positions[:, None] // hop)[:, 0]
        # Within rounding: an impulse between two hops has the same level in both.
        assert (own >= levels.amax(dim=1) - 1e-3).all()
        centers = positions % hop == hop // 2
        assert torch.equal(levels[centers].argmax(dim=1), positions[centers] // hop)

    @every_parity
    def test_there_is_one_frame_per_hop(self, n_fft, win, hop):
        make = small(n_fft, win, hop)
        for length, frames in ((1, 1), (hop - 1, 1), (hop, 1), (hop + 1, 2), (23 * hop, 23), (23 * hop + 1, 24)):
            assert make.num_frames(length) == frames
            spectrogram = make(torch.randn(3, 2, length))
            assert spectrogram.shape == (3, 2, 7, frames)
            assert spectrogram.isfinite().all()

    @every_parity
    def test_zeros_after_a_sound_change_none_of_its_frames(self, n_fft, win, hop):
        make = small(n_fft, win, hop)
        for length in (1, 53, 997, 5003):
            wave = torch.randn(3, length)
            expected = make(wave)
            for more in (1, hop, 2003):
                padded = make(F.pad(wave, (0, more)))[..., : expected.shape[-1]]
                torch.testing.assert_close(padded, expected, atol=1e-4, rtol=0)

    def test_a_delay_by_hops_shifts_the_frames(self):
        wave = torch.randn(1, 5003)
        torch.testing.assert_close(log_mel()(F.pad(wave, (7 * 160, 0)))[..., 7:], log_mel()(wave), atol=1e-4, rtol=0)

    def test_a_frame_is_valid_if_any_sample_of_its_hop_is(self):
        make = log_mel()
        lengths = [1, 159, 160, 161, 480, 481]
        mask = torch.arange(481) < torch.tensor(lengths)[:, None]
        assert make.frame_mask(mask).tolist() == [
            [frame < make.num_frames(length) for frame in range(4)] for length in lengths
        ]
        assert not make.frame_mask(torch.zeros_like(mask)).any()
        assert make.frame_mask(torch.arange(481)[None] == 200).tolist() == [[False, True, False, False]]


class TestBands:
    @pytest.mark.parametrize(
        ("options", "position"),
        [
            ({}, 0.35),
            ({"n_mels": 13}, 0.5),
            ({"sample_rate": 8000, "f_max": 4000.0, "n_fft": 256, "win_length": 200, "n_mels": 23}, 0.65),
            (
                {"sample_rate": 44100, "n_fft": 2048, "win_length": 1103, "hop_length": 441}
                | {"n_mels": 61, "f_max": 22050.0},
                0.35,
            ),
        ],
        ids=["16 kHz", "wide", "8 kHz", "44.1 kHz"],
    )
    def test_a_sine_is_brightest_in_the_band_of_its_frequency(self, options, position):
        make = log_mel(**options)
        axis = make.frequencies(make.n_mels)
        bands = range(0 if make.n_mels == 13 else make.n_mels // 3, make.n_mels)  # those that are wider than bins
        waves = [sine(axis.value((band + position) / make.n_mels), make.sample_rate) for band in bands]
        levels = make(torch.cat(waves))[..., 7:-7].mean(dim=-1)
        assert levels.argmax(dim=-1).tolist() == list(bands)

    def test_axes_and_picture(self):
        make = log_mel()
        rows, coarse_rows, columns = make.frequencies(40), make.frequencies(20, mels_per_row=2), make.times(7, 3)
        assert (rows.name, rows.unit, rows.scale) == ("frequency", "Hz", "mel")
        assert (coarse_rows.start, coarse_rows.stop) == (rows.start, pytest.approx(rows.stop))
        assert make.f_min < rows.start < rows.stop < make.f_max
        assert (columns.name, columns.unit, columns.scale) == ("time", "s", "linear")
        assert (columns.start, columns.stop) == (0.0, pytest.approx(7 * 3 * 160 / 16000))
        spectrogram = make(torch.randn(3, 1, 997))
        picture = make.picture(spectrogram)
        assert picture.values is spectrogram
        assert (picture.unit, picture.grid.shape) == ("dB", (41, 7))
        assert picture.grid.axes == (make.frequencies(41), make.times(7))

    @pytest.mark.parametrize("options", [{}, {"n_fft": 1024}, {"n_fft": 401, "win_length": 400}, {"n_mels": 13}])
    @pytest.mark.parametrize(
        ("frequency", "level"), [(307.0, 0.0), (997.0, -60.0), (1000.0, 0.0), (3001.0, -20.0), (5003.0, -60.0)]
    )
    def test_the_bands_of_a_sine_add_up_to_its_level(self, options, frequency, level):
        bands = log_mel(**options)(sine(frequency, 16000, amplitude=10 ** (level / 20)))[..., 7:-7]
        total = 10 * (10 ** (bands.double() / 10)).sum(dim=-2).log10()
        torch.testing.assert_close(total, torch.full_like(total, level), atol=0.1, rtol=0)
        assert bands.max() <= level + 1e-3
        assert bands.amax(dim=-2).min() > level - 4.5  # at worst it is half-way between two bands, or two bins

    def test_levels_are_decibels_and_at_least_minus_100(self):
        wave = torch.randn(1, 5003)
        difference = log_mel()(2 * wave) - log_mel()(wave)
        torch.testing.assert_close(difference, torch.full_like(difference, 6.0206), atol=1e-3, rtol=0)
        for silence in (torch.zeros(1, 1009), 1e-9 * torch.randn(1, 1009)):
            assert log_mel()(silence).unique().tolist() == [-100.0]

    @every_parity
    def test_it_equals_torchaudios_except_for_the_frames_and_full_scale(self, n_fft, win, hop):
        theirs = MelSpectrogram(
            sample_rate=16000, n_fft=n_fft, win_length=win, hop_length=hop, f_min=50.0, f_max=8000.0, n_mels=7
        )
        wave = torch.randn(3, 23 * hop)
        shift = (n_fft - hop + 1) // 2 - n_fft // 2  # theirs are centered on multiples of the hop
        shifted = F.pad(wave, (shift, 0)) if shift >= 0 else wave[:, -shift:]
        ratio = 10 ** (small(n_fft, win, hop)(wave)[..., 3:19].double() / 10) / theirs(shifted)[..., 3:19]
        torch.testing.assert_close(ratio, ratio.mean().expand_as(ratio), atol=0, rtol=1e-3)


class TestTensors:
    def test_gradients_are_finite_in_silence(self):
        wave = torch.cat([torch.randn(1, 997), torch.zeros(1, 1009)], dim=1).requires_grad_()
        log_mel()(wave).sum().backward()
        assert wave.grad.isfinite().all()
        assert (wave.grad[:, :997] != 0).all()

    @pytest.mark.parametrize("cast", ["bfloat16", "half", "double"])
    def test_it_computes_in_float32_in_a_model_of_another_dtype(self, cast):
        wave, make = torch.randn(1, 997), log_mel()
        expected = make(wave)
        getattr(torch.nn.Sequential(make), cast)()
        assert {buffer.dtype for buffer in make.buffers()} == {torch.float32}
        assert torch.equal(make(wave), expected)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(make(wave), expected)
        coarse = wave.bfloat16()
        assert torch.equal(make(coarse), make(coarse.float()))

    @pytest.mark.filterwarnings("ignore:At least one mel filterbank")
    def test_it_can_be_built_on_the_meta_device(self):
        with torch.device("meta"):
            make = log_mel()
            with pytest.raises(ValueError, match="n_mels=997 is too many"):
                log_mel(n_mels=997)
        assert make.window.is_meta
        assert make(torch.empty(3, 1, 997, device="meta")).shape == (3, 1, 41, 7)

    def test_it_has_no_state_and_is_copied_and_pickled(self):
        wave, make = torch.randn(1, 997), log_mel()
        assert make.state_dict() == {}
        for other in (copy.deepcopy(make), pickle.loads(pickle.dumps(make))):
            assert torch.equal(other(wave), make(wave))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hop_length": 0}, "hop_length=0 ≤ win_length=400 ≤ n_fft=512"),
        ({"hop_length": 401}, "hop_length=401 ≤ win_length=400"),
        ({"win_length": 513}, "hop_length=160 ≤ win_length=513 ≤ n_fft=512"),
        ({"f_min": -1.0}, "f_min=-1.0 must be at least 0"),
        ({"f_min": 8000.0}, "f_min=8000.0 .* f_max=8000.0"),
        ({"f_max": 8001.0}, "f_max=8001.0 .* sample_rate=16000"),
        ({"n_mels": 0}, "n_mels=0 must be at least 1"),
        ({"n_mels": 257}, r"n_mels=257 is too many for n_fft=512: \d+ bands"),
    ],
)
@pytest.mark.filterwarnings("ignore:At least one mel filterbank")
def test_invalid_settings_are_refused(options, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        log_mel(**options)


@pytest.mark.slow
def test_the_compiler_leaves_it_out():
    # In a separate process: the compiler starts threads with which later tests could not be forked.
    assert in_fork(_compile) == 0


def _compile() -> None:
    transform, graphs = log_mel(), []
    compiled = torch.compile(transform, backend=lambda graph, inputs: graphs.append(graph) or graph)
    for length in (1009, 2003):
        wave = torch.randn(3, length)
        assert torch.equal(compiled(wave), transform(wave))
    assert not graphs


def test_a_wave_without_samples_is_refused():
    with pytest.raises(ValueError, match=r"^wave of shape \[3, 1, 0\]"):
        log_mel()(torch.zeros(3, 1, 0))
