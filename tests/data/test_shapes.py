"""Scenes of shapes: objects are apart, lie in their boxes and have the colors and shapes of their names."""

import numpy as np
import pytest

from perceiver.data.synthetic.shapes import (
    COLOR_JITTER,
    COLORS,
    GAP,
    NOISE,
    OUTLINES,
    RELATION_MARGIN,
    RELATIONS,
    SHAPES,
    ObjectSampler,
    SceneObject,
    is_related,
    render,
)

DIAMETERS = {"small": (0.14, 0.2), "large": (0.28, 0.38)}


def rng(seed=0):
    return np.random.default_rng(seed)


def scene_object(x=0.5, y=0.5, *, shape="circle", color="red", size="small", diameter=0.17):
    return SceneObject(size, color, shape, x, y, diameter, COLORS[color])


def place(seed, pairs, **diameters):
    sampler = ObjectSampler(num_objects=(1, len(pairs)), **DIAMETERS | diameters)
    return sampler.place(rng(seed), pairs)


def random_pairs(seed, count):
    return [(str(rng(seed + i).choice(list(COLORS))), str(rng(seed - i + 99).choice(SHAPES))) for i in range(count)]


class TestObjects:
    @pytest.mark.parametrize(
        ("count", "diameters"),
        [(1, {}), (4, {}), (6, {"large": (0.28, 0.3)}), (4, {"small": (0.4, 0.43), "large": (0.44, 0.47)})],
        ids=["one", "four", "six", "crowded"],
    )
    def test_objects_have_their_sizes_and_are_inside_and_apart(self, count, diameters):
        for seed in range(53):
            pairs = random_pairs(seed, count)
            objects = place(seed, pairs, **diameters)
            assert [(one.color, one.shape) for one in objects] == pairs
            for number, one in enumerate(objects):
                low, high = (DIAMETERS | diameters)[one.size]
                assert low <= one.diameter <= high
                assert one.diameter / 2 <= min(one.x, one.y) <= max(one.x, one.y) <= 1 - one.diameter / 2
                for other in objects[:number]:
                    distance = max(abs(one.x - other.x), abs(one.y - other.y))
                    assert distance - (one.diameter + other.diameter) / 2 >= GAP - 1e-9

    @pytest.mark.parametrize("num_objects", [(1, 1), (2, 3), (1, 4)])
    def test_the_number_of_objects(self, num_objects):
        sampler, random = ObjectSampler(num_objects=num_objects, **DIAMETERS), rng()
        assert {sampler.count(random) for _ in range(101)} == set(range(num_objects[0], num_objects[1] + 1))

    def test_objects_are_everywhere_of_all_sizes_and_of_different_colors(self):
        objects = [one for seed in range(301) for one in place(seed, [("blue", "star")] * 2)]
        assert 0.4 < np.mean([one.size == "small" for one in objects]) < 0.6
        for axis in "xy":
            assert 0.45 < np.mean([getattr(one, axis) for one in objects]) < 0.55
            assert np.std([getattr(one, axis) for one in objects]) > 0.2
        colors = np.array([one.rgb for one in objects])
        assert len(np.unique(colors, axis=0)) > 550
        assert (colors.std(axis=0) > COLOR_JITTER / 3).all()
        assert np.abs(colors - COLORS["blue"]).max() <= COLOR_JITTER

    @pytest.mark.parametrize("relation", RELATIONS)
    def test_a_relation_holds_beyond_the_margin_in_one_direction(self, relation):
        axis, sign = RELATIONS[relation]
        for distance, expected in ((1.01, True), (0.99, False), (-1.01, False)):
            other = scene_object(**{axis: 0.5 + sign * distance * RELATION_MARGIN})
            assert is_related(relation, other, scene_object()) is expected
            assert not expected or not is_related(relation, scene_object(), other)
        assert not is_related(relation, scene_object(), None)
        assert not is_related(relation, None, scene_object())

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            *(({"num_objects": value}, r"num_objects=\[") for value in ((0, 3), (3, 2), (1, 7))),
            ({"num_objects": (1, 5)}, r"num_objects=\[1, 5\].*large=\[0.28, 0.38\]"),
            *(({"small": value}, r"small=\[.*large=\[0.28, 0.38\]") for value in ((0.2, 0.1), (0.0, 0.1), (0.2, 0.3))),
            ({"large": (0.38, 0.28)}, r"large=\[0.38, 0.28\]"),
            ({"large": (0.4, 0.6), "num_objects": (1, 1)}, r"large=\[0.4, 0.6\]"),
        ],
    )
    def test_invalid_settings_are_refused(self, options, message):
        with pytest.raises(ValueError, match=message):
            ObjectSampler(**{"num_objects": (1, 4)} | DIAMETERS | options)


class TestRendering:
    @pytest.mark.parametrize("image_size", [31, 97])
    @pytest.mark.parametrize("shape", SHAPES)
    def test_an_object_changes_the_pixels_of_its_box(self, shape, image_size):
        for seed in range(5):
            one, *others = place(seed, [("red", shape), ("cyan", "star"), ("white", shape)])
            images = [render(rng(seed), objects, image_size).int() for objects in ([one, *others], others)]
            changed = ((images[0] - images[1]).abs() > 3).any(dim=0)
            box = one.box(image_size)
            assert (box.label, box.modality) == (SHAPES.index(shape), "image")
            for axis, dim in (("x", 0), ("y", 1)):
                pixels = changed.any(dim=dim).nonzero().flatten().tolist()
                low, high = box.ranges[axis]
                assert -1e-6 <= pixels[0] + 1 - low <= 2.5
                assert -1e-6 <= high - pixels[-1] <= 2.5

    def test_outlines_fill_their_boxes(self):
        for outline in OUTLINES.values():
            corners = np.array(outline)
            np.testing.assert_allclose(
                [corners.min(axis=0), corners.max(axis=0)], [[-0.5, -0.5], [0.5, 0.5]], atol=1e-9
            )

    def test_small_shapes_differ(self):
        covers = {}
        for shape in SHAPES:
            image = render(rng(), [scene_object(shape=shape, color="white", diameter=0.15)], 64)
            covers[shape] = image.float().mean(dim=0)[27:37, 27:37] > 130
        for number, one in enumerate(SHAPES):
            for other in SHAPES[:number]:
                assert (covers[one] ^ covers[other]).sum() >= 14, (one, other)  # of 100 pixels

    @pytest.mark.parametrize("color", COLORS)
    def test_an_object_has_the_color_of_its_name(self, color):
        for seed in range(11):
            for one in place(seed, [(color, "circle"), (color, "cross")]):
                seen = render(rng(seed), [one], 64).float()[:, int(one.y * 64), int(one.x * 64)].numpy()
                assert np.abs(seen - one.rgb).max() < 5 * NOISE
                assert min(COLORS, key=lambda name: float(np.linalg.norm(seen - COLORS[name]))) == color

    def test_backgrounds_are_dark_noisy_and_different(self):
        images = [render(rng(seed), [], 61).float() for seed in range(29)]
        means = np.array([image.mean(dim=(1, 2)).numpy() for image in images])
        assert means.max() < 80
        assert means.mean(axis=1).std() > 5
        assert (means.max(axis=1) - means.min(axis=1)).mean() > 3
        assert all(3 < image.std(dim=(1, 2)).min() < 9 for image in images)

    def test_edges_are_antialiased(self):
        image = render(rng(), [scene_object(shape="diamond", color="white", diameter=0.4)], 64).float().mean(dim=0)
        assert ((image > 90) & (image < 200)).sum() > 20
