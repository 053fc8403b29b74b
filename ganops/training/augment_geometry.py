"""The geometric half of ADA: flips, turns and shifts by whole pixels, and any affine map by way of twice the resolution.

Positions are in pixels from the centre of the image, x to the right and y down; pixels are squares of side 1 around their
centres. So a rotation is one in images that are not square, too.

Source: Karras et al. 2020, "Training Generative Adversarial Networks with Limited Data", section 2.3 and appendix B.
"""

from math import ceil, floor

import torch
from torch import Tensor

from ganops.ops.grid_sample import grid_sample
from ganops.ops.upfirdn2d import downsample2d, setup_filter, upsample2d
from ganops.training.augment_pixels import gather_pixels, reflect_pad
from ganops.training.batches import to_device

SYM6 = (
    0.015404109327027373,
    0.0034907120842174702,
    -0.11799011114819057,
    -0.048311742585633,
    0.4910559419267466,
    0.787641141030194,
    0.3379294217276218,
    -0.07263752278646252,
    -0.021060292512300564,
    0.04472490177066578,
    0.0017677118642428036,
    -0.007800708325034148,
)
"""The low-pass decomposition filter of Daubechies' wavelet "sym6": orthonormal to its own shifts by two."""
FILTER = setup_filter(SYM6)
HALF = len(SYM6) // 2
EXTRA = HALF - 1
"""Pixels of the doubled image that the downsampling filter needs beyond each edge of the result."""
OFFSET = HALF - 0.5 - sum(tap * weight for tap, weight in enumerate(SYM6)) / sum(SYM6)
"""How far the filter's centre of mass is off the middle of its taps, which are not symmetric: 0.4 doubled pixels.

Doubled pixels count as lying where it puts them. Else an image that is flipped here would be shifted by 0.4 px as well.
"""


def inverse_matrix(
    *,
    flip: Tensor,
    quarter_turns: Tensor,
    shift_x: Tensor,
    shift_y: Tensor,
    scale: Tensor,
    pre_rotation: Tensor,
    aniso: Tensor,
    post_rotation: Tensor,
    move_x: Tensor,
    move_y: Tensor,
) -> Tensor:
    """Where the pixels of a transformed image come from: the inverse of all transformations, applied in this order.

    Args, all [N] float64:
        flip: 1 = left and right exchanged, 0 = not.
        quarter_turns: clockwise, whole numbers.
        shift_x: px to the right; `shift_y` px down.
        scale: factor of size.
        pre_rotation: radians, clockwise.
        aniso: factor of width, and divisor of height.
        post_rotation: radians, clockwise.
        move_x: px to the right; `move_y` px down.
    Returns:
        [N, 3, 3] float64: position in the input = matrix @ (x, y, 1) of a position in the result. Flips, quarter turns
        and shifts alone give whole numbers, exactly.
    """
    one, zero = torch.ones_like(flip), torch.zeros_like(flip)
    # cos and sin of quarter turns; sin lags by one. Not by torch's, which give 6e-17 for 0.
    cosine, sine = (
        (turns % 4 == 0).double() - (turns % 4 == 2).double() for turns in (quarter_turns, quarter_turns - 1)
    )

    def matrix(a: Tensor, b: Tensor, x: Tensor, c: Tensor, d: Tensor, y: Tensor) -> Tensor:
        return torch.stack([a, b, x, c, d, y, zero, zero, one], dim=1).reshape(-1, 3, 3)

    def shifted_back(x: Tensor, y: Tensor) -> Tensor:
        return matrix(one, zero, -x, zero, one, -y)

    def scaled_back(x: Tensor, y: Tensor) -> Tensor:
        return matrix(1 / x, zero, zero, zero, 1 / y, zero)

    def turned_back(cosine: Tensor, sine: Tensor) -> Tensor:
        return matrix(cosine, sine, zero, -sine, cosine, zero)

    # The first transformation of the image is the last one on the way back.
    return (
        scaled_back(1 - 2 * flip, one)
        @ turned_back(cosine, sine)
        @ shifted_back(shift_x, shift_y)
        @ scaled_back(scale, scale)
        @ turned_back(pre_rotation.cos(), pre_rotation.sin())
        @ scaled_back(aniso, 1 / aniso)
        @ turned_back(post_rotation.cos(), post_rotation.sin())
        @ shifted_back(move_x, move_y)
    )


def blit(img: Tensor, matrix: Tensor) -> Tensor:
    """Flips, turns and shifts images by whole pixels: every pixel is a copy. What is revealed is a reflection.

    The same bits as `flip`, then `rot90`, then a shift of the image that `reflect_pad` has continued.

    Args:
        img: [N, C, H, W], H and W at least 2.
        matrix: [N, 3, 3] float64 on the CPU, from `inverse_matrix` with flips, quarter turns and shifts of whole pixels;
            quarter turns are even where H and W differ.
    Returns:
        [N, C, H, W].
    """
    H, W = img.shape[2:]
    centre_x, centre_y = (W - 1) / 2, (H - 1) / 2
    # From indices to positions, back to where they come from, and to indices. Half numbers are exact.
    offsets = matrix[:, :2, 2] - matrix[:, :2, :2] @ torch.tensor([centre_x, centre_y], dtype=matrix.dtype)
    offsets = offsets + torch.tensor([centre_x, centre_y], dtype=matrix.dtype)
    rows = torch.cat([matrix[:, :2, :2], offsets[:, :, None]], dim=2).round().long()
    (a, b, x0), (c, d, y0) = (row.unbind(1) for row in to_device(rows, img.device)[..., None, None].unbind(1))
    x = torch.arange(W, device=img.device)
    y = torch.arange(H, device=img.device)[:, None]
    return gather_pixels(img, _reflected(a * x + b * y + x0, W), _reflected(c * x + d * y + y0, H))


def _reflected(index: Tensor, size: int) -> Tensor:
    """Any index, brought within [0, size) by reflection about 0 and size - 1."""
    index = index % (2 * (size - 1))
    return torch.minimum(index, 2 * (size - 1) - index)


def resample(img: Tensor, matrix: Tensor) -> Tensor:
    """Affine maps of images: reflected at the edges, doubled, sampled bilinearly, halved.

    Args:
        img: [N, C, H, W], H and W at least 2.
        matrix: [N, 3, 3] float64 on the CPU, from `inverse_matrix`.
    Returns:
        [N, C, H, W]; the identity gives the images back up to rounding, as the halving filter inverts the doubling one.
        The reflection reaches as far as the map needs, but no further than one image on each side; beyond it is 0.
        Differentiable any number of times. An image's result does not depend on the others, up to rounding.

    All images get the margins that any of them needs: also on a CPU that is faster than one by one with their own
    (measured: 1.2 to 1.6 times at 256x256, 3 to 5 times at 32x32), as its kernels want many channels at a time.
    """
    H, W = img.shape[2:]
    filter = to_device(FILTER, img.device)
    left, right, top, bottom = margins(matrix, H, W)
    x = upsample2d(reflect_pad(img, left, right, top, bottom), filter)
    # From positions to the padded image's edges at -1 and 1.
    origin = torch.tensor([W / 2 + left, H / 2 + top], dtype=matrix.dtype) - OFFSET / 2
    half_size = torch.tensor([W + left + right, H + top + bottom], dtype=matrix.dtype) / 2
    rows = matrix[:, :2] / half_size[:, None]
    rows[:, :, 2] += origin / half_size - 1
    coefficients = to_device(rows.to(img.dtype), img.device)[..., None, None]
    (a, b, x0), (c, d, y0) = (row.unbind(1) for row in coefficients.unbind(1))
    # Not a matrix product: CUDA might round its factors to 11 bits (tf32).
    at_x, at_y = _doubled_positions(W, img), _doubled_positions(H, img)[:, None]
    grid = torch.stack([a * at_x + (b * at_y + x0), c * at_x + (d * at_y + y0)], dim=-1)
    return downsample2d(grid_sample(x, grid), filter, padding=-EXTRA, flip_filter=True)


def _doubled_positions(size: int, like: Tensor) -> Tensor:
    """Centres of the pixels of the doubled result and of EXTRA more on each side, in px from the centre."""
    index = torch.arange(-EXTRA, 2 * size + EXTRA, device=like.device, dtype=like.dtype)
    return (index + 0.5 + OFFSET) / 2 - size / 2


def margins(matrix: Tensor, height: int, width: int) -> tuple[int, int, int, int]:
    """How far images must be continued to the left, right, top and bottom, in px, for `resample` of all of `matrix`.

    At most size - 1 for the picture, and HALF for the filter.
    """
    (left, right), (top, bottom) = (
        [(index + 0.5 + OFFSET) / 2 - size / 2 for index in (-EXTRA, 2 * size + EXTRA - 1)] for size in (width, height)
    )
    corners = [[left, right, left, right], [top, top, bottom, bottom], [1, 1, 1, 1]]
    positions = matrix[:, :2] @ torch.tensor(corners, dtype=matrix.dtype)
    found = []
    for axis, size in ((0, width), (1, height)):
        # The outermost pixels of the doubled image that take part, then of the image: doubled pixel k is made of
        # pixels (k - HALF) / 2 to (k + HALF - 1) / 2.
        edges = positions[:, axis].aminmax()
        low, high = (2 * (float(edge) + size / 2) - 0.5 - OFFSET for edge in edges)
        before = -ceil((floor(low) - HALF) / 2)
        after = floor((floor(high) + 1 + HALF - 1) / 2) - (size - 1)
        found += [min(max(pixels, 0), size - 1 + HALF) for pixels in (before, after)]
    return found[0], found[1], found[2], found[3]
