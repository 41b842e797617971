"""Bouncing scenes: the truth is what is drawn and heard, and neither modality gives the answer away."""

from collections import Counter

import numpy as np
import pytest
import torch

from perceiver.data.synthetic import bouncing_scenes
from perceiver.data.synthetic.bouncing_scenes import (
    BLOCK,
    COLORS,
    GAPS,
    MAX_DECAYS,
    RADIUS,
    BouncingScenes,
    Clip,
    SoundTrack,
    damped_tones,
)

CLIP = Clip(seconds=1.5, frames_per_second=8.0, image_size=24, sample_rate=8000)
ROLES = {}


def scenes(num_decoys=2, num_distractors=2, delay=0, **options):
    track = SoundTrack(num_decoys=num_decoys, num_distractors=num_distractors, delay=delay)
    settings = {"num_classes": 6, "num_samples": {"train": 997, "val": 101, "test": 0}, "num_shapes": 3}
    return BouncingScenes(
        **{"clip": CLIP, "sound_track": track, "num_bounces": (2, 4), "cue": "timing", "seed": 3} | settings | options
    )


def drawn(count=300, **options):
    """Return some scenes, by their generator alone."""
    source, random = scenes(**options), np.random.default_rng(7)
    return [source.scene(random, int(random.integers(6))) for _ in range(count)]


def test_validation_is_a_function_of_seed_and_index_and_training_keeps_only_the_answer():
    first, again, other = (scenes(seed=seed) for seed in (3, 3, 4))
    val, same, different = (source.items("val", ROLES) for source in (first, again, other))
    assert scenes().items("test", ROLES) is None
    for index in (0, 53):
        assert all(torch.equal(val[index].parts[role], same[index].parts[role]) for role in ("video", "audio"))
        assert not torch.equal(val[index].parts["video"], different[index].parts["video"])
    train = first.items("train", ROLES)
    one, another = train[5], train[5]
    assert not torch.equal(one.parts["video"], another.parts["video"])
    assert one.targets == another.targets == {"label": train.sample_classes(5)[0]}
    assert one.parts["video"].shape == (3, 12, 24, 24)
    assert one.parts["audio"].shape == (1, 12 * 1000)


def test_boxes_hold_the_heard_shape_in_each_frame_and_the_times_of_its_bounces():
    items = scenes(num_decoys=0, num_distractors=0).items("val", ROLES)
    for index in range(23):
        item = items[index]
        color = torch.tensor(COLORS[list(COLORS)[item.targets["label"]]])[:, None, None, None]
        # Pixels of the color of the answer, as it has few others near it.
        near = (item.parts["video"] - color).square().sum(dim=0) < 0.05
        boxes = item.targets["boxes"]
        frames = [box for box in boxes if box.modality == "video"]
        assert len(frames) == 12
        inside = torch.zeros_like(near)
        for box in frames:
            time = round(box.ranges["time"][0] * 8)
            (top, bottom), (left, right) = box.ranges["y"], box.ranges["x"]
            inside[time, max(round(top) - 1, 0) : round(bottom) + 1, max(round(left) - 1, 0) : round(right) + 1] = True
        assert near.sum() > 12
        assert not (near & ~inside).any()
        energy = item.parts["audio"][0].square().unflatten(0, (12, -1)).sum(dim=1)
        heard = {round(box.ranges["time"][0] * 8) for box in boxes if box.modality == "audio"}
        before = torch.cat([energy.new_zeros(1), energy[:-1]])
        assert set(((energy > 0.05 * energy.max()) & (energy > 2 * before)).nonzero().flatten().tolist()) == heard


def test_a_delay_moves_all_sounds_and_nothing_else():
    item, late = (scenes(delay=delay).items("val", ROLES)[7] for delay in (0, 2))
    assert torch.equal(item.parts["video"], late.parts["video"])
    wave, delayed = item.parts["audio"][0, :-2000], late.parts["audio"][0, 2000:]
    assert (wave - delayed).abs().max() < 0.02  # noise
    assert wave.abs().max() > 0.05
    times, later = (
        [box.ranges["time"][0] for box in one.targets["boxes"] if box.modality == "audio"] for one in (item, late)
    )
    assert later == [time + 0.25 for time in times if time + 0.25 < 1.5]


@pytest.mark.parametrize("max_length", [7, BLOCK, 12_007, 99_991])
def test_damped_tones_equal_their_formula(max_length):
    amplitude, frequency, decay, phase = (
        np.random.default_rng(3).uniform((0.1, 300, 0.02, 0.0), (0.3, 2000, 0.06, 6.0), size=(5, 4)).T
    )
    tones = damped_tones(amplitude, frequency, decay, phase, max_length=max_length, rate=8000)
    assert tones.dtype == np.float32
    assert tones.shape == (5, min(max_length, round(MAX_DECAYS * 8000 * decay.max())))
    time = np.arange(tones.shape[1])[:, None] / 8000
    expected = amplitude * np.exp(-time / decay) * np.sin(2 * np.pi * frequency * time + phase)
    np.testing.assert_allclose(tones, expected.T, atol=2e-7)


def test_without_noise_frames_and_sound_are_those_of_their_formulas(monkeypatch):
    monkeypatch.setattr(bouncing_scenes, "normal", lambda random, *shape: np.zeros(shape, np.float32))
    source, powers = scenes(), {"disc": 2.0, "square": np.inf, "diamond": 1.0}
    place = (np.arange(24) + 0.5) / 24
    y, x = np.meshgrid(place, place, indexing="ij")
    for seed, scene in enumerate(drawn(11)):
        found = source.video(np.random.default_rng(seed), scene)
        background = np.random.default_rng(seed).uniform(0.0, 0.2, size=(3, 1, 1))
        for frame in (0, 5, 11):
            expected = np.broadcast_to(background, (3, 24, 24))
            for color, shape, centers in zip(scene.colors, scene.shapes, scene.centers, strict=True):
                offsets = np.stack([x - centers[frame, 0], y - centers[frame, 1]])
                cover = np.clip((RADIUS - np.linalg.norm(offsets, powers[shape], axis=0)) * 24 + 0.5, 0.0, 1.0)
                expected = cover * np.array(COLORS[color])[:, None, None] + (1 - cover) * expected
            np.testing.assert_allclose(found[:, frame], expected, atol=1e-5)
        random, expected = np.random.default_rng(seed), np.zeros(12_000)
        for stroke in scene.strokes:
            first = round((stroke.frame + random.uniform(*bouncing_scenes.ONSET)) * 1000)
            time = np.arange(12_000 - first) / 8000
            tone = np.sin(2 * np.pi * stroke.frequency * time + random.uniform(0, 2 * np.pi))
            expected[first:] += 0.3 * stroke.amplitude * tone * np.exp(-time / stroke.decay)
        found = source.sound(np.random.default_rng(seed), scene)
        np.testing.assert_allclose(found[0], expected.clip(-1, 1), atol=1e-6)


def test_the_shape_that_is_heard_touches_the_ground_when_it_sounds():
    for scene in drawn(100):
        ground = scene.centers[..., 1].max()
        for shape, bounces in enumerate(scene.bounces):
            at_ground = np.flatnonzero(np.isclose(scene.centers[shape, :, 1], ground))
            assert set(at_ground) == set(bounces)
            assert all(GAPS[0] <= gap <= GAPS[1] for gap in np.diff(bounces))


def test_the_video_does_not_tell_which_shape_is_heard():
    found = drawn(1500)
    place = Counter(scene.heard for scene in found)
    assert all(0.28 < count / 1500 < 0.39 for count in place.values())
    for scene in found:
        rows = [set(row.tolist()) for row in scene.bounces]
        assert len({len(row) for row in rows}) == 1
        assert all(len(rows[i] & rows[j]) <= len(rows[0]) // 2 for i in range(3) for j in range(i))
    # Neither the first nor the lowest nor the last bounce is that of the heard shape more often than by chance.
    for statistic in (np.min, np.max, np.sum):
        values = [statistic(scene.bounces, axis=1) for scene in found]
        for best in (np.argmin, np.argmax):
            hits = np.mean([best(value) == scene.heard for value, scene in zip(values, found, strict=True)])
            assert abs(hits - 1 / 3) < 0.05


def test_only_times_relate_sounds_to_a_shape_and_they_fit_one_shape_alone():
    for scene in drawn():
        own = set(scene.bounces[scene.heard].tolist())
        pitch = scene.strokes[0].frequency
        timbre = [stroke.frame for stroke in scene.strokes if stroke.frequency == pitch]
        assert len(timbre) == len(own) + 2
        assert own <= set(timbre)
        assert sum(stroke.frequency != pitch for stroke in scene.strokes) == 2
        fits = [set(row.tolist()) <= set(timbre) for row in scene.bounces]
        assert fits == [shape == scene.heard for shape in range(3)]


def test_neither_color_nor_pitch_tells_the_other():
    pitches = {}
    for scene in drawn(900):
        pitches.setdefault(scene.colors[scene.heard], []).append(np.log2(scene.strokes[0].frequency / 300))
    assert all(abs(np.mean(values) - 0.5) < 0.1 for values in pitches.values())  # uniform over an octave


def test_with_the_cue_either_only_the_heard_shape_moves_and_its_pitch_follows_from_its_color():
    pitches = {}
    for scene in drawn(cue="either"):
        moves = np.ptp(scene.centers[..., 1], axis=1) > 0
        assert moves.tolist() == [shape == scene.heard for shape in range(3)]
        pitches.setdefault(scene.colors[scene.heard], set()).add(scene.strokes[0].frequency)
    assert all(len(values) == 1 for values in pitches.values())
    assert len(set.union(*pitches.values())) == 6


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"num_classes": 7}, "num_classes=7"),
        ({"num_shapes": 7}, "num_shapes=7"),
        ({"num_bounces": (3, 5)}, r"num_bounces=\[3, 5\].* 12 frames"),
        ({"num_decoys": 9}, "num_decoys=9"),
        ({"num_distractors": 13}, "num_distractors=13"),
        ({"delay": -1}, "delay=-1"),
        ({"cue": "color"}, "cue='color'"),
        ({"seed": -1}, "seed=-1"),
    ],
)
def test_settings_out_of_range_are_named(options, named):
    with pytest.raises(ValueError, match=named):
        scenes(**options)
