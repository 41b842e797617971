"""Scenes of shapes: things fit, lie where their boxes say and look as they are called."""

import numpy as np
import pytest

from perceiver.data.synthetic.shape_scene import (
    COLOUR_JITTER,
    COLOURS,
    GAP,
    NOISE,
    OUTLINES,
    RELATION_MARGIN,
    RELATIONS,
    SHAPES,
    Thing,
    drawn,
    holds,
    things_of,
)

SIZES = {"small": (0.14, 0.2), "large": (0.28, 0.38)}


def random(seed=0):
    return np.random.default_rng(seed)


def thing(x=0.5, y=0.5, *, shape="circle", colour="red", size="small", diameter=0.17):
    return Thing(size, colour, shape, x, y, diameter, COLOURS[colour])


def some_things(seed, count=4, sizes=SIZES):
    rng = random(seed)
    colours, shapes = list(COLOURS), SHAPES
    kinds = [(colours[rng.integers(len(colours))], shapes[rng.integers(len(shapes))]) for _ in range(count)]
    return things_of(rng, kinds, sizes), kinds


class TestThings:
    @pytest.mark.parametrize(
        ("count", "sizes"),
        [
            (1, SIZES),
            (4, SIZES),
            (6, SIZES | {"large": (0.28, 0.3)}),
            (4, {"small": (0.4, 0.43), "large": (0.44, 0.47)}),
        ],
        ids=["one", "four", "six", "hardly any room"],
    )
    def test_things_are_whole_of_their_size_and_apart(self, count, sizes):
        for seed in range(101):
            things, kinds = some_things(seed, count, sizes)
            assert [(one.colour, one.shape) for one in things] == kinds
            for number, one in enumerate(things):
                low, high = sizes[one.size]
                assert low <= one.diameter <= high
                assert one.diameter / 2 <= min(one.x, one.y) <= max(one.x, one.y) <= 1 - one.diameter / 2
                for other in things[:number]:
                    apart = max(abs(one.x - other.x), abs(one.y - other.y)) - (one.diameter + other.diameter) / 2
                    assert apart >= GAP - 1e-9

    def test_things_are_everywhere_and_of_all_sizes(self):
        things = [one for seed in range(301) for one in some_things(seed, 2)[0]]
        assert 0.4 < np.mean([one.size == "small" for one in things]) < 0.6
        for axis in "xy":
            assert 0.45 < np.mean([getattr(one, axis) for one in things]) < 0.55
            assert np.std([getattr(one, axis) for one in things]) > 0.2

    @pytest.mark.parametrize("relation", RELATIONS)
    def test_a_relation_holds_from_the_margin_on_one_way_only(self, relation):
        axis, sign = RELATIONS[relation]
        for distance, wanted in ((1.01, True), (0.99, False), (-1.01, False)):
            other = thing(**{axis: 0.5 + sign * distance * RELATION_MARGIN})
            assert holds(relation, other, thing()) is wanted
            assert not wanted or not holds(relation, thing(), other)
        assert not holds(relation, thing(), None)
        assert not holds(relation, None, thing())


class TestPictures:
    @pytest.mark.parametrize("image_size", [31, 64, 97])
    @pytest.mark.parametrize("shape", SHAPES)
    def test_a_box_is_where_pixels_differ_from_the_same_picture_without_the_thing(self, shape, image_size):
        for seed in range(11):
            things, _ = some_things(seed, 3)
            one, *others = [Thing(t.size, t.colour, shape, t.x, t.y, t.diameter, t.rgb) for t in things]
            with_it, without = (drawn(random(seed), of, image_size).int() for of in ([one, *others], others))
            changed = ((with_it - without).abs() > 3).any(dim=0)
            box = one.box(image_size)
            assert (box.label, box.modality) == (SHAPES.index(shape), "image")
            for axis, dim in (("x", 0), ("y", 1)):
                places = changed.any(dim=dim).nonzero().flatten().tolist()
                low, high = box.ranges[axis]
                assert -1e-6 <= places[0] + 1 - low <= 2.5
                assert -1e-6 <= high - places[-1] <= 2.5

    @pytest.mark.parametrize("shape", SHAPES)
    def test_an_outline_fills_its_box(self, shape):
        points = np.array(OUTLINES[shape])
        np.testing.assert_allclose([points.min(axis=0), points.max(axis=0)], [[-0.5, -0.5], [0.5, 0.5]], atol=1e-9)

    def test_shapes_differ_even_when_they_are_small(self):
        covers = {}
        for shape in SHAPES:
            picture = drawn(random(), [thing(shape=shape, colour="white", diameter=0.15)], 64)
            covers[shape] = picture.float().mean(dim=0)[27:37, 27:37] > 130
        for number, one in enumerate(SHAPES):
            for other in SHAPES[:number]:
                # Of the hundred pixels of its box.
                assert (covers[one] ^ covers[other]).sum() >= 14, (one, other)

    @pytest.mark.parametrize("colour", COLOURS)
    def test_a_thing_looks_as_it_is_called(self, colour):
        for seed in range(23):
            for one in things_of(random(seed), [(colour, "circle"), (colour, "cross")], SIZES):
                picture = drawn(random(seed), [one], 64).float()
                seen = picture[:, int(one.y * 64), int(one.x * 64)].numpy()
                assert np.abs(seen - one.rgb).max() < 5 * NOISE
                assert np.abs(np.subtract(one.rgb, COLOURS[colour])).max() <= COLOUR_JITTER
                nearest = min(COLOURS, key=lambda name: float(np.linalg.norm(seen - COLOURS[name])))
                assert nearest == colour

    def test_no_two_things_of_a_colour_look_quite_the_same(self):
        looks = [things_of(random(seed), [("blue", "star")], SIZES)[0].rgb for seed in range(53)]
        assert len(set(looks)) == 53
        assert (np.std(looks, axis=0) > COLOUR_JITTER / 3).all()

    def test_backgrounds_are_dark_noisy_and_different(self):
        pictures = [drawn(random(seed), [], 61).float() for seed in range(29)]
        means = np.array([picture.mean(dim=(1, 2)).numpy() for picture in pictures])
        assert means.max() < 80
        assert means.mean(axis=1).std() > 5
        assert (means.max(axis=1) - means.min(axis=1)).mean() > 3
        assert all(3 < picture.std(dim=(1, 2)).min() < 9 for picture in pictures)

    def test_edges_are_smooth(self):
        picture = drawn(random(), [thing(shape="diamond", colour="white", diameter=0.4)], 64).float().mean(dim=0)
        assert ((picture > 90) & (picture < 200)).sum() > 20
