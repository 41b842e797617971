import copy
import pickle

import pytest
import torch
from torch.nn import functional as F
from torchaudio.transforms import MelSpectrogram

from perceiver.spectrogram import LogMel

DEFAULT = {
    "sample_rate": 16000,
    "n_fft": 512,
    "win_length": 400,
    "hop_length": 160,
    "n_mels": 41,
    "f_min": 50.0,
    "f_max": 8000.0,
}
PARITIES = [(n_fft, win, hop) for n_fft in (128, 127) for win in (102, 101) for hop in (54, 53)]


def log_mel(**options) -> LogMel:
    return LogMel(**(DEFAULT | options))


def sine(frequency: float, rate: int, seconds: float = 0.5, amplitude: float = 1.0) -> torch.Tensor:
    times = torch.arange(round(seconds * rate), dtype=torch.float64) / rate
    return (amplitude * torch.sin(2 * torch.pi * frequency * times)).float()[None]


class TestFrames:
    @pytest.mark.parametrize(("n_fft", "win", "hop"), PARITIES)
    def test_an_impulse_is_brightest_in_the_frame_of_its_hop(self, n_fft, win, hop):
        make = log_mel(n_fft=n_fft, win_length=win, hop_length=hop, n_mels=7)
        places = torch.arange(0, 7 * hop)
        levels = make(F.one_hot(places, 7 * hop).float()).mean(dim=1)
        own = levels.gather(1, places[:, None] // hop)[:, 0]
        # Within rounding: an impulse between two hops is as bright in one as in the other.
        assert (own >= levels.amax(dim=1) - 1e-3).all()
        middles = places % hop == hop // 2
        assert torch.equal(levels[middles].argmax(dim=1), places[middles] // hop)

    @pytest.mark.parametrize(("n_fft", "win", "hop"), PARITIES)
    def test_frames_are_as_many_as_the_hops_that_were_begun(self, n_fft, win, hop):
        make = log_mel(n_fft=n_fft, win_length=win, hop_length=hop, n_mels=7)
        for length, frames in ((1, 1), (hop - 1, 1), (hop, 1), (hop + 1, 2), (23 * hop, 23), (23 * hop + 1, 24)):
            assert make.num_frames(length) == frames
            spectrogram = make(torch.randn(3, 2, length))
            assert spectrogram.shape == (3, 2, 7, frames)
            assert spectrogram.isfinite().all()

    @pytest.mark.parametrize(("n_fft", "win", "hop"), [*PARITIES, (512, 400, 160)])
    @pytest.mark.parametrize("length", [1, 53, 997, 5003])
    def test_zeros_behind_a_sound_change_none_of_its_frames(self, n_fft, win, hop, length):
        make = log_mel(n_fft=n_fft, win_length=win, hop_length=hop, n_mels=7)
        wave = torch.randn(3, length)
        expected = make(wave)
        for more in (1, hop, 2003):
            longer = make(F.pad(wave, (0, more)))[..., : expected.shape[-1]]
            torch.testing.assert_close(longer, expected, atol=1e-4, rtol=0)

    def test_a_sound_that_comes_a_hop_later_has_its_frames_one_later(self):
        wave = torch.randn(1, 5003)
        torch.testing.assert_close(log_mel()(F.pad(wave, (7 * 160, 0)))[..., 7:], log_mel()(wave), atol=1e-4, rtol=0)

    def test_a_frame_is_real_if_any_sample_of_its_hop_is(self):
        make = log_mel()
        lengths = [1, 159, 160, 161, 480, 481]
        mask = torch.arange(481) < torch.tensor(lengths)[:, None]
        assert make.frame_mask(mask).tolist() == [
            [frame < make.num_frames(length) for frame in range(4)] for length in lengths
        ]
        assert not make.frame_mask(torch.zeros_like(mask)).any()
        assert make.frame_mask(torch.arange(481)[None] == 200).tolist() == [[False, True, False, False]]

    def test_their_axis_begins_and_ends_with_the_hops(self):
        axis = log_mel().times(columns=7, frames_per_column=3)
        assert (axis.name, axis.unit, axis.scale) == ("time", "s", "linear")
        assert (axis.start, axis.stop) == (0.0, pytest.approx(7 * 3 * 160 / 16000))


class TestBands:
    @pytest.mark.parametrize(
        "options",
        [
            {},
            {"n_mels": 13},
            {"sample_rate": 8000, "f_max": 4000.0, "n_fft": 256, "win_length": 200, "n_mels": 23},
            {
                "sample_rate": 44100,
                "n_fft": 2048,
                "win_length": 1103,
                "hop_length": 441,
                "n_mels": 61,
                "f_max": 22050.0,
            },
        ],
        ids=["16 kHz", "wide", "8 kHz", "44.1 kHz"],
    )
    @pytest.mark.parametrize("place", [0.35, 0.5, 0.65])
    def test_a_sine_is_brightest_in_the_band_whose_cell_it_lies_in(self, options, place):
        make = log_mel(**options)
        axis = make.frequencies(make.n_mels)
        assert (axis.name, axis.unit, axis.scale) == ("frequency", "Hz", "mel")
        bands = range(0 if make.n_mels == 13 else make.n_mels // 3, make.n_mels)  # those that are wider than bins
        waves = [sine(axis.value((band + place) / make.n_mels), make.sample_rate) for band in bands]
        levels = make(torch.cat(waves))[..., 7:-7].mean(dim=-1)
        assert levels.argmax(dim=-1).tolist() == list(bands)

    def test_cells_of_several_bands_lie_over_them(self):
        make = log_mel()
        one, two = make.frequencies(40), make.frequencies(20, mels_per_row=2)
        assert (two.start, two.stop) == (one.start, pytest.approx(one.stop))
        assert make.f_min < one.start < one.stop < make.f_max

    @pytest.mark.parametrize("options", [{}, {"n_fft": 1024}, {"n_fft": 401, "win_length": 400}, {"n_mels": 13}])
    @pytest.mark.parametrize("frequency", [307.0, 997.0, 1000.0, 3001.0, 5003.0])
    @pytest.mark.parametrize("level", [0.0, -20.0, -60.0])
    def test_the_bands_of_a_sine_add_up_to_its_level(self, options, frequency, level):
        make = log_mel(**options)
        bands = make(sine(frequency, 16000, amplitude=10 ** (level / 20)))[..., 7:-7]
        total = 10 * (10 ** (bands.double() / 10)).sum(dim=-2).log10()
        torch.testing.assert_close(total, torch.full_like(total, level), atol=0.1, rtol=0)
        assert bands.max() <= level + 1e-3
        assert bands.amax(dim=-2).min() > level - 4.5  # at worst it lies half-way between two bands, or two bins

    def test_silence_is_the_least_there_is(self):
        assert log_mel()(torch.zeros(1, 1009)).unique().tolist() == [-100.0]
        assert log_mel()(1e-9 * torch.randn(1, 1009)).unique().tolist() == [-100.0]

    def test_twice_the_amplitude_is_six_decibels_more(self):
        wave = torch.randn(1, 5003)
        difference = log_mel()(2 * wave) - log_mel()(wave)
        torch.testing.assert_close(difference, torch.full_like(difference, 6.0206), atol=1e-3, rtol=0)

    @pytest.mark.parametrize(("n_fft", "win", "hop"), [*PARITIES, (512, 400, 160)])
    def test_it_is_torchaudios_but_for_where_frames_are_and_what_0_db_is(self, n_fft, win, hop):
        make = log_mel(n_fft=n_fft, win_length=win, hop_length=hop, n_mels=7)
        theirs = MelSpectrogram(
            sample_rate=16000, n_fft=n_fft, win_length=win, hop_length=hop, f_min=50.0, f_max=8000.0, n_mels=7
        )
        wave = torch.randn(3, 23 * hop)
        # Theirs is centred on multiples of the hop: on what comes half a hop later, half a hop earlier.
        shift = (n_fft - hop + 1) // 2 - n_fft // 2
        moved = F.pad(wave, (shift, 0)) if shift >= 0 else wave[:, -shift:]
        expected = theirs(moved)[..., 3:19]
        ratio = 10 ** (make(wave)[..., 3:19].double() / 10) / expected
        torch.testing.assert_close(ratio, ratio.mean().expand_as(ratio), atol=0, rtol=1e-3)


class TestTensors:
    def test_gradients_reach_the_wave_and_are_finite_where_it_is_silent(self):
        wave = torch.cat([torch.randn(1, 997), torch.zeros(1, 1009)], dim=1).requires_grad_()
        log_mel()(wave).sum().backward()
        assert wave.grad.isfinite().all()
        assert (wave.grad[:, :997] != 0).all()

    @pytest.mark.parametrize("cast", ["bfloat16", "half", "double"])
    def test_it_stays_exact_in_a_model_of_another_type(self, cast):
        wave = torch.randn(1, 997)
        make = log_mel()
        expected = make(wave)
        getattr(torch.nn.Sequential(make), cast)()
        assert {buffer.dtype for buffer in make.buffers()} == {torch.float32}
        assert torch.equal(make(wave), expected)

    def test_it_stays_exact_under_autocast_and_takes_waves_of_other_types(self):
        wave = torch.randn(1, 997)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(log_mel()(wave), log_mel()(wave))
            assert log_mel()(wave).dtype == torch.float32
        coarse = wave.bfloat16()
        assert torch.equal(log_mel()(coarse), log_mel()(coarse.float()))

    def test_shapes_can_be_told_without_memory(self):
        with torch.device("meta"):
            make = log_mel()
        assert make.window.is_meta
        assert make(torch.empty(3, 1, 997, device="meta")).shape == (3, 1, 41, 7)

    @pytest.mark.filterwarnings("ignore:At least one mel filterbank")
    def test_what_is_built_without_memory_is_refused_all_the_same(self):
        with torch.device("meta"), pytest.raises(ValueError, match="n_mels=997 is too many"):
            log_mel(n_mels=997)

    def test_it_is_copied_sent_and_no_part_of_a_checkpoint(self):
        wave = torch.randn(1, 997)
        make = log_mel()
        assert make.state_dict() == {}
        for other in (copy.deepcopy(make), pickle.loads(pickle.dumps(make))):
            assert torch.equal(other(wave), make(wave))

    def test_it_draws_as_a_picture_with_its_axes(self):
        make = log_mel()
        spectrogram = make(torch.randn(3, 1, 997))
        picture = make.picture(spectrogram)
        assert picture.values is spectrogram
        assert picture.unit == "dB"
        assert picture.grid.shape == (41, 7)
        assert picture.grid.axes == (make.frequencies(41), make.times(7))


class TestSettings:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"hop_length": 0}, "hop_length=0 ≤ win_length=400 ≤ n_fft=512 must hold"),
            ({"hop_length": 401}, "hop_length=401 ≤ win_length=400"),
            ({"win_length": 513}, "win_length=513 ≤ n_fft=512"),
            ({"f_min": -1.0}, "f_min=-1.0 must be at least 0"),
            ({"f_min": 8000.0}, "f_min=8000.0 must be at least 0 and less than f_max=8000.0"),
            ({"f_max": 8001.0}, "f_max=8001.0 is more than half of sample_rate=16000"),
            ({"n_mels": 0}, "n_mels=0 must be at least 1"),
        ],
    )
    def test_sizes_that_contradict_each_other_are_refused(self, options, message):
        with pytest.raises(ValueError, match=message):
            log_mel(**options)

    @pytest.mark.filterwarnings("ignore:At least one mel filterbank")
    def test_more_bands_than_bins_are_refused(self):
        with pytest.raises(ValueError, match=r"^n_mels=257 is too many for n_fft=512: \d+ bands have no bin in them$"):
            log_mel(n_mels=257)

    def test_a_wave_without_samples_is_refused(self):
        with pytest.raises(ValueError, match=r"^wave of shape \[3, 1, 0\]: a spectrogram needs at least one sample$"):
            log_mel()(torch.zeros(3, 1, 0))
