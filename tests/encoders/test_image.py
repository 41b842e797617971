"""Images -> tokens: every stem, its stride and padding, normalization, and positions."""

from math import ceil

import pytest
import torch
from einops import rearrange
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from perceiver.encoders.stems import ConvStack, ConvStem, PatchStem, PixelStem, pad_same
from perceiver.positions import FourierPositions, LearnedPositions
from perceiver.types import Axis
from tests.models import STEMS, image_encoder, shaken

EVERY = STEMS | {"deep stack": lambda channels: shaken(ConvStack(channels=channels, dims=(3, 5), convs_per_level=2))}
every_stem = pytest.mark.parametrize("make_stem", EVERY.values(), ids=EVERY)
SAME_CELLS = {name: make for name, make in EVERY.items() if name != "symmetric convolution"}


class TestStems:
    @pytest.mark.parametrize("patch_size", [3, [2, 5], (5, 2)], ids=str)
    def test_bare_patches_are_the_raster_unfolded_in_row_column_channel_order(self, patch_size):
        height, width = (patch_size, patch_size) if isinstance(patch_size, int) else patch_size
        raster = torch.randn(2, 3, height * 7, width * 11)
        unfolded = rearrange(
            F.unfold(raster, kernel_size=(height, width), stride=(height, width)),
            "batch (channels dy dx) (rows columns) -> batch (dy dx channels) rows columns",
            **{"channels": 3, "dy": height, "rows": 7},
        )
        stem = PatchStem(channels=3, patch_size=patch_size)
        assert stem.stride == (height, width)
        assert_close(stem(raster), unfolded, atol=0, rtol=0)

    @pytest.mark.parametrize("dim", [None, 7])
    def test_a_raster_that_patches_do_not_divide_is_padded_at_the_bottom_and_on_the_right(self, dim):
        stem, raster = PatchStem(channels=2, patch_size=(5, 3), dim=dim), torch.randn(3, 2, 11, 13)
        padded = F.pad(raster, (0, 2, 0, 4))
        assert stem(raster).shape == (3, stem.dim, 3, 5)
        assert_close(stem(raster), stem(padded), atol=0, rtol=0)

    def test_pixels_are_the_raster_or_one_linear_map_of_it(self):
        stem, raster = PixelStem(channels=2, dim=11), torch.randn(3, 2, 5, 7)
        assert_close(PixelStem(channels=2)(raster), raster, atol=0, rtol=0)
        linear = F.linear(raster.movedim(1, -1), stem.projection.weight[..., 0, 0], stem.projection.bias)
        assert_close(stem(raster), linear.movedim(-1, 1))

    @pytest.mark.parametrize(("height", "width"), [(224, 224), (5, 13), (16, 11), (31, 33)])
    @pytest.mark.parametrize("padding", ["same", "symmetric"])
    def test_the_convolutional_stem_quarters_the_resolution(self, height, width, padding):
        def quarter(size):
            return ceil(ceil(size / 2) / 2) if padding == "same" else (ceil(size / 2) - 3) // 2 + 1

        features = ConvStem(channels=2, dim=3, padding=padding)(torch.randn(1, 2, height, width))
        assert features.shape == (1, 3, quarter(height), quarter(width))
        if height == 224:
            assert features.shape[2:] == ((56, 56) if padding == "same" else (55, 55))

    @pytest.mark.parametrize(("height", "width"), [(4, 13), (11, 2), (1, 1)])
    def test_a_raster_too_small_for_symmetric_padding_is_refused_with_its_size(self, height, width):
        with pytest.raises(ValueError, match=rf"padding=symmetric .* 5 × 5, not {height} × {width}"):
            ConvStem(channels=2, dim=3, padding="symmetric")(torch.randn(1, 2, height, width))
        assert ConvStem(channels=2, dim=3)(torch.randn(3, 2, height, width)).isfinite().all()

    @pytest.mark.parametrize(("kernel_size", "before", "after"), [(7, 2, 3), (3, 0, 1)])
    def test_same_padding_is_that_of_tensorflow_where_the_stride_divides_and_at_the_end_elsewhere(
        self, kernel_size, before, after
    ):
        padded = pad_same(torch.ones(1, 1, 6, 14), kernel_size=kernel_size, stride=2)[0, 0]
        assert_close(padded, F.pad(torch.ones(6, 14), (before, after, before, after)))
        raster = torch.rand(1, 1, 7, 11) + 0.1
        whole = F.pad(raster, (0, 1, 0, 1))
        padded = pad_same(raster, kernel_size=kernel_size, stride=2)
        assert_close(padded, pad_same(whole, kernel_size=kernel_size, stride=2), atol=0, rtol=0)

    @pytest.mark.parametrize("convs_per_level", [1, 3])
    @pytest.mark.parametrize("dims", [(7,), [3, 5, 7]], ids=str)
    @pytest.mark.parametrize(("height", "width"), [(1, 2), (13, 29)])
    def test_each_level_of_a_stack_halves_the_resolution(self, dims, height, width, convs_per_level):
        stem = ConvStack(channels=2, dims=dims, convs_per_level=convs_per_level)
        cell = 2 ** len(dims)
        assert stem.stride == (cell, cell)
        assert stem.eval()(torch.randn(3, 2, height, width)).shape == (3, 7, ceil(height / cell), ceil(width / cell))
        convolutions = [module for module in stem.modules() if isinstance(module, nn.Conv2d)]
        assert [one.out_channels for one in convolutions] == [dim for dim in dims for _ in range(convs_per_level)]
        assert [one.stride[0] for one in convolutions] == [2, *[1] * (convs_per_level - 1)] * len(dims)
        assert "layers.0.0.weight" in stem.state_dict()

    @pytest.mark.parametrize("convs_per_level", [1, 2, 3])
    def test_the_receptive_field_of_a_stack_is_the_cell_as_much_before_it_and_more_where_it_is_deep(
        self, convs_per_level
    ):
        stem = ConvStack(channels=1, dims=(2, 3), convs_per_level=convs_per_level).eval()
        for parameter in stem.parameters():
            parameter.data.abs_()  # so that no ReLU hides anything
        raster = torch.rand(1, 1, 61, 67).requires_grad_()
        stem(raster)[0, :, 7, 8].sum().backward()
        # A further convolution at stride 2 reaches 2 pixels more on each side, one at stride 4 reaches 4 more.
        more = (convs_per_level - 1) * (2 + 4)
        field = torch.zeros(61, 67, dtype=torch.bool)
        field[7 * 4 - 3 - more : 8 * 4 + more, 8 * 4 - 3 - more : 9 * 4 + more] = True
        assert torch.equal(raster.grad[0, 0] > 0, field)

    @pytest.mark.parametrize("make_stem", SAME_CELLS.values(), ids=SAME_CELLS)
    def test_a_raster_has_the_same_cells_alone_and_with_zeros_after_it(self, make_stem):
        for height, width in ((1, 1), (2, 3), (6, 7), (8, 9), (12, 16), (17, 13)):
            stem, raster = make_stem(2).eval(), torch.randn(3, 2, height, width)
            alone = stem(raster)
            rows, columns = alone.shape[2:]
            assert (rows, columns) == (ceil(height / stem.stride[0]), ceil(width / stem.stride[1]))
            padded, mask = torch.zeros(3, 2, 23, 31), torch.zeros(3, 23, 31, dtype=torch.bool)
            padded[..., :height, :width], mask[:, :height, :width] = raster, True
            assert_close(stem(padded, mask)[..., :rows, :columns], alone, atol=1e-5, rtol=0)

    @every_stem
    def test_a_full_mask_changes_nothing_and_every_parameter_gets_a_gradient(self, make_stem):
        stem, raster = make_stem(2), torch.randn(3, 2, 23, 29, requires_grad=True)
        assert_close(stem.eval()(raster, torch.ones(3, 23, 29, dtype=torch.bool)), stem(raster), atol=0, rtol=0)
        stem.train()(raster, torch.rand(3, 23, 29) < 0.9).square().sum().backward()
        assert all((parameter.grad != 0).any() for parameter in (raster, *stem.parameters()))

    @pytest.mark.parametrize(
        ("make_stem", "message"),
        [
            *((lambda n=n: PixelStem(**{"channels": 3, n: 0}), f"{n}=0") for n in ("channels", "dim")),
            *((lambda n=n: ConvStem(**{"channels": 3, n: 0}), f"{n}=0") for n in ("channels", "dim")),
            (lambda: PatchStem(channels=3, patch_size=2, dim=-1), "dim=-1"),
            (lambda: PatchStem(channels=3, patch_size=0), "patch_size=0"),
            (lambda: PatchStem(channels=3, patch_size=[2, 0]), r"patch_size=\[2, 0\]"),
            (lambda: PatchStem(channels=3, patch_size=[2, 3, 5]), r"patch_size=\[2, 3, 5\]"),
            (lambda: ConvStem(channels=3, padding="valid"), "padding=valid"),
            (lambda: ConvStack(channels=3, dims=[]), r"dims=\[\]"),
            (lambda: ConvStack(channels=3, dims=[5, 0]), r"dims=\[5, 0\]"),
            (lambda: ConvStack(channels=0, dims=[5]), "channels=0"),
            (lambda: ConvStack(channels=3, dims=[5], convs_per_level=0), "convs_per_level=0"),
        ],
    )
    def test_sizes_out_of_range_are_refused_by_name(self, make_stem, message):
        with pytest.raises(ValueError, match=f"^{message} "):
            make_stem()


@every_stem
def test_tokens_fit_a_grid_of_pixels_and_are_real_where_any_pixel_is(make_stem):
    encoder = image_encoder(make_stem(3)).eval()
    height, width = encoder.stem.stride
    mask = torch.rand(2, 29, 31) < 0.5 / (height * width)
    mask[:, -1, -1] = True  # where the image ends
    assert encoder(torch.randn(2, 3, 29, 31)).mask is None
    tokens = encoder(torch.randn(2, 3, 29, 31), mask)
    rows, columns = tokens.grid.shape
    assert tokens.values.shape == (2, tokens.grid.num_tokens, encoder.dim)
    assert tokens.grid.axes == (Axis("y", "px", 0.0, rows * height), Axis("x", "px", 0.0, columns * width))
    assert abs(rows * height - 29) <= height + 1
    assert abs(columns * width - 31) <= width + 1
    real = F.max_pool2d(F.pad(mask.float(), (0, width, 0, height)), (height, width)) > 0
    assert torch.equal(tokens.mask.reshape(2, rows, columns), real[:, :rows, :columns])


@pytest.mark.parametrize("mean_std", [(0.5, 0.25), ((0.2, 0.3, 0.5), (0.7, 0.11, 0.13))], ids=["one", "per channel"])
def test_the_stem_gets_normalized_values(mean_std):
    encoder = image_encoder(mean=mean_std[0], std=mean_std[1])
    plain, image = image_encoder(encoder.stem), torch.rand(2, 3, 29, 31)
    mean, std = (torch.tensor(value).expand(3)[:, None, None] for value in mean_std)
    assert_close(encoder(image).values, plain((image - mean) / std).values)
    assert encoder.state_dict().keys() == plain.state_dict().keys()


@pytest.mark.parametrize("combine", ["concat", "add"])
def test_positions_join_the_features_the_same_way_in_every_sample(combine):
    positions = FourierPositions(num_bands=2, max_resolution=(5, 7))
    encoder = image_encoder(PixelStem(channels=3, dim=positions.dim), positions, combine=combine)
    image, of_cells = torch.randn(2, 3, 11, 13), positions((11, 13))
    for features, values in zip(encoder.stem(image).flatten(2).mT, encoder(image).values, strict=True):
        assert_close(values, features + of_cells if combine == "add" else torch.cat([features, of_cells], dim=1))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: image_encoder(mean=(0.5, 0.25)), r"mean=\(0\.5, 0\.25\).* 3 channels"),
        (lambda: image_encoder(std=(0.5, 0.25)), r"std=\(0\.5, 0\.25\).* 3 channels"),
        (
            lambda: image_encoder(positions=LearnedPositions(shape=(5, 7), dim=11), combine="add"),
            r"combine=add.* 27.* 11",
        ),
        (lambda: image_encoder()(torch.zeros(2, 5, 7, 7)), r"channels=3, height, width.*not \[2, 5, 7, 7"),
        (lambda: image_encoder()(torch.zeros(3, 7, 7)), r"channels=3, height, width.*not \[3, 7, 7"),
    ],
)
def test_what_does_not_fit_is_refused_with_what_is_wanted(make, message):
    with pytest.raises(ValueError, match=message):
        make()
