from math import ceil

import pytest
import torch
from einops import rearrange
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from perceiver.encoders.stems import ConvStack, ConvStem, PatchStem, PixelStem, pad_same
from tests.models import STEMS, shaken


def deep_stack(channels: int) -> ConvStack:
    return shaken(ConvStack(channels=channels, dims=(3, 5, 7), convs_per_level=2))


EVERY = STEMS | {"deep stack": deep_stack}
every_stem = pytest.mark.parametrize("make_stem", EVERY.values(), ids=EVERY)
SAME_CELLS_BEFORE_ZEROS = {name: make for name, make in EVERY.items() if name != "symmetric convolution"}


@pytest.mark.parametrize("channels", [1, 2, 5])
@pytest.mark.parametrize("patch_size", [3, (3, 3), [2, 5], (5, 2)], ids=str)
def test_bare_patches_are_the_raster_unfolded_in_row_column_channel_order(channels, patch_size):
    height, width = (patch_size, patch_size) if isinstance(patch_size, int) else patch_size
    raster = torch.randn(2, channels, height * 7, width * 11)
    unfolded = rearrange(
        F.unfold(raster, kernel_size=(height, width), stride=(height, width)),
        "batch (channels dy dx) (rows columns) -> batch (dy dx channels) rows columns",
        channels=channels,
        dy=height,
        rows=7,
    )
    stem = PatchStem(channels=channels, patch_size=patch_size)
    assert stem.stride == (height, width)
    assert_close(stem(raster), unfolded, atol=0, rtol=0)


@pytest.mark.parametrize("dim", [None, 7])
def test_a_raster_that_patches_do_not_divide_is_padded_with_zeros_below_and_on_the_right(dim):
    stem, raster = PatchStem(channels=2, patch_size=(5, 3), dim=dim), torch.randn(3, 2, 11, 13)
    padded = torch.zeros(3, 2, 15, 15)
    padded[..., :11, :13] = raster
    assert stem(raster).shape == (3, stem.dim, 3, 5)
    assert_close(stem(raster), stem(padded), atol=0, rtol=0)


def test_bare_pixels_are_the_raster():
    raster = torch.randn(3, 2, 5, 7)
    assert_close(PixelStem(channels=2)(raster), raster, atol=0, rtol=0)


def test_a_pixel_projection_is_one_linear_map_for_every_pixel():
    stem, raster = PixelStem(channels=2, dim=11), torch.randn(3, 2, 5, 7)
    linear = F.linear(raster.movedim(1, -1), stem.projection.weight[..., 0, 0], stem.projection.bias)
    assert_close(stem(raster), linear.movedim(-1, 1))


@pytest.mark.parametrize(("height", "width"), [(224, 224), (7, 13), (16, 11), (29, 18), (31, 33)])
@pytest.mark.parametrize("padding", ["same", "symmetric"])
def test_the_convolutional_stem_quarters_the_resolution(height, width, padding):
    def quarter(size):
        half = ceil(size / 2)
        return ceil(half / 2) if padding == "same" else (half - 3) // 2 + 1

    features = ConvStem(channels=2, dim=3, padding=padding)(torch.randn(1, 2, height, width))
    assert features.shape == (1, 3, quarter(height), quarter(width))
    if height == 224:
        assert features.shape[2:] == ((56, 56) if padding == "same" else (55, 55))


@pytest.mark.parametrize(("kernel_size", "before", "behind"), [(7, 2, 3), (3, 0, 1)])
def test_same_padding_is_that_of_tensorflow_where_the_stride_divides(kernel_size, before, behind):
    padded = pad_same(torch.ones(1, 1, 6, 14), kernel_size=kernel_size, stride=2)[0, 0]
    expected = torch.zeros(before + 6 + behind, before + 14 + behind)
    expected[before : before + 6, before : before + 14] = 1
    assert_close(padded, expected)


@pytest.mark.parametrize(("kernel_size", "stride"), [(7, 2), (3, 2), (5, 3)])
def test_same_padding_puts_what_the_stride_does_not_divide_behind(kernel_size, stride):
    raster = torch.rand(1, 1, 7, 11) + 0.1
    whole = F.pad(raster, (0, -11 % stride, 0, -7 % stride))
    padded = pad_same(raster, kernel_size=kernel_size, stride=stride)
    assert_close(padded, pad_same(whole, kernel_size=kernel_size, stride=stride), atol=0, rtol=0)
    assert [(size - kernel_size) // stride + 1 for size in padded.shape[2:]] == [ceil(7 / stride), ceil(11 / stride)]


@pytest.mark.parametrize("convs_per_level", [1, 2, 3])
@pytest.mark.parametrize("dims", [(7,), (5, 7), [3, 5, 7]], ids=str)
@pytest.mark.parametrize(("height", "width"), [(1, 2), (8, 16), (13, 29)])
def test_each_level_of_a_stack_halves_the_resolution_however_deep_it_is(dims, height, width, convs_per_level):
    stem = ConvStack(channels=2, dims=dims, convs_per_level=convs_per_level)
    cell = 2 ** len(dims)
    assert stem.stride == (cell, cell)
    features = stem.eval()(torch.randn(3, 2, height, width))
    assert features.shape == (3, stem.dim, ceil(height / cell), ceil(width / cell))
    assert stem.dim == 7
    convolutions = [module for module in stem.modules() if isinstance(module, nn.Conv2d)]
    assert [one.out_channels for one in convolutions] == [dim for dim in dims for _ in range(convs_per_level)]
    assert [one.stride[0] for one in convolutions] == [2, *[1] * (convs_per_level - 1)] * len(dims)


def test_one_convolution_a_level_is_what_a_stack_has_by_itself_and_names_its_weights_by_level():
    torch.manual_seed(3)
    stem = ConvStack(channels=2, dims=(3, 5, 7))
    of_layer = ["0.weight", *(f"1.{name}" for name in ("weight", "bias", "running_mean", "running_var"))]
    names = [f"layers.{n}.{name}" for n in range(3) for name in (*of_layer, "1.num_batches_tracked")]
    assert list(stem.state_dict()) == names
    torch.manual_seed(3)
    assert_close(
        ConvStack(channels=2, dims=(3, 5, 7), convs_per_level=1).state_dict(), stem.state_dict(), atol=0, rtol=0
    )


@pytest.mark.parametrize("convs_per_level", [2, 3])
def test_a_deeper_stack_sees_more_and_all_that_a_flat_one_sees(convs_per_level):
    def seen(convs_per_level):
        stem = ConvStack(channels=1, dims=(2, 3), convs_per_level=convs_per_level).eval()
        for parameter in stem.parameters():
            parameter.data.abs_()  # so that no ReLU hides anything
        raster = torch.rand(1, 1, 61, 67).requires_grad_()
        stem(raster)[0, :, 7, 8].sum().backward()
        return raster.grad[0, 0] > 0

    flat, deep = seen(1), seen(convs_per_level)
    assert (deep | ~flat).all()
    # A convolution at stride 2 sees 2 pixels more on each side, one at stride 4 sees 4 more.
    more = (convs_per_level - 1) * (2 + 4)
    assert torch.equal(deep, F.max_pool2d(flat[None].float(), 2 * more + 1, stride=1, padding=more)[0] > 0)


def test_a_cell_of_a_stack_sees_all_of_itself_and_as_much_above_and_on_the_left():
    stem = ConvStack(channels=1, dims=(2, 3, 5)).eval()
    for parameter in stem.parameters():
        parameter.data.abs_()  # so that no ReLU hides anything
    raster = torch.rand(1, 1, 41, 43).requires_grad_()
    stem(raster)[0, :, 2, 3].sum().backward()
    seen = torch.zeros(41, 43, dtype=torch.bool)
    seen[2 * 8 - 7 : 3 * 8, 3 * 8 - 7 : 4 * 8] = True
    assert torch.equal(raster.grad[0, 0] > 0, seen)


@pytest.mark.parametrize("make_stem", SAME_CELLS_BEFORE_ZEROS.values(), ids=SAME_CELLS_BEFORE_ZEROS)
@pytest.mark.parametrize(
    ("height", "width"), [(1, 1), (2, 3), (5, 4), (6, 7), (8, 9), (10, 11), (12, 16), (17, 13), (14, 15)]
)
def test_a_raster_has_the_same_cells_alone_and_with_zeros_behind_it(make_stem, height, width):
    stem, raster = make_stem(2).eval(), torch.randn(3, 2, height, width)
    alone = stem(raster)
    rows, columns = alone.shape[2:]
    assert (rows, columns) == (ceil(height / stem.stride[0]), ceil(width / stem.stride[1]))
    padded, mask = torch.zeros(3, 2, 23, 31), torch.zeros(3, 23, 31, dtype=torch.bool)
    padded[..., :height, :width] = raster
    mask[:, :height, :width] = True
    assert_close(stem(padded, mask)[..., :rows, :columns], alone, atol=1e-5, rtol=0)


@every_stem
def test_a_mask_that_hides_nothing_changes_nothing(make_stem):
    stem, raster = make_stem(2).eval(), torch.randn(3, 2, 23, 29)
    assert_close(stem(raster, torch.ones(3, 23, 29, dtype=torch.bool)), stem(raster), atol=0, rtol=0)


@every_stem
def test_every_parameter_of_a_stem_gets_a_gradient(make_stem):
    stem = make_stem(2)
    raster = torch.randn(3, 2, 23, 29, requires_grad=True)
    stem(raster, torch.rand(3, 23, 29) < 0.9).square().sum().backward()
    assert all((parameter.grad != 0).any() for parameter in (raster, *stem.parameters()))


@pytest.mark.parametrize(
    ("make_stem", "named"),
    [
        (lambda: PixelStem(channels=0), "channels=0"),
        (lambda: PixelStem(channels=3, dim=0), "dim=0"),
        (lambda: PatchStem(channels=0, patch_size=2), "channels=0"),
        (lambda: PatchStem(channels=3, patch_size=2, dim=-1), "dim=-1"),
        (lambda: PatchStem(channels=3, patch_size=0), "patch_size=0"),
        (lambda: PatchStem(channels=3, patch_size=[2, 0]), r"patch_size=\[2, 0\]"),
        (lambda: PatchStem(channels=3, patch_size=[2, 3, 5]), r"patch_size=\[2, 3, 5\]"),
        (lambda: ConvStem(channels=3, dim=0), "dim=0"),
        (lambda: ConvStem(channels=0), "channels=0"),
        (lambda: ConvStem(channels=3, padding="valid"), "padding=valid"),
        (lambda: ConvStack(channels=3, dims=[]), r"dims=\[\]"),
        (lambda: ConvStack(channels=3, dims=[5, 0]), r"dims=\[5, 0\]"),
        (lambda: ConvStack(channels=0, dims=[5]), "channels=0"),
        (lambda: ConvStack(channels=3, dims=[5], convs_per_level=0), "convs_per_level=0"),
        (lambda: ConvStack(channels=3, dims=[5], convs_per_level=-1), "convs_per_level=-1"),
    ],
)
def test_sizes_that_make_no_stem_are_refused_by_name(make_stem, named):
    with pytest.raises(ValueError, match=f"^{named} "):
        make_stem()
