"""Convolution with a change of resolution, filtered against aliasing."""

import torch.nn.functional as F
from torch import Tensor

from ganops.ops.convolution import conv2d, conv_transpose2d
from ganops.ops.upfirdn2d import Padding, filter_size, parse_padding, upfirdn2d, upfirdn2d_reference


def conv2d_resample(
    x: Tensor,
    weight: Tensor,
    filter: Tensor | None,
    up: int = 1,
    down: int = 1,
    padding: Padding = 0,
    groups: int = 1,
    flip_weight: bool = True,
    flip_filter: bool = False,
) -> Tensor:
    """Enlarges `x` with `filter`, convolves it, shrinks it with `filter`; each step only if asked for.

    Args:
        x: [N, C, H, W], floating.
        weight: [O, C / groups, k, k] of x's dtype.
        filter: from `setup_filter`, [kh, kw] or [k] or None; used only where the resolution changes.
        up: factor of the enlargement.
        down: factor of the shrinking.
        padding: of the convolution, counted in pixels of the enlarged image.
        groups: groups of channels, as in torch's conv2d.
        flip_weight: True = correlation (as torch's conv2d), False = convolution.
        flip_filter: the same for the filter.
    Returns:
        [N, O, H', W'], x's dtype; with padding k // 2 and odd k, H' = H * up / down. Differentiable any number of times
        in x and weight.
    Source: Karras et al. 2020, config-b to f. Where the resolution grows the convolution is a transposed one at the
        low resolution with the filter behind it; where it shrinks it has a stride, with the filter before it. Folding
        filter and convolution into one 6x6 convolution was declined: measured 2 to 7 times slower on CPU.
    """
    k = weight.shape[2]
    left, right, top, bottom = _resample_padding(filter, up, down, padding)
    if k == up == down == groups == 1 and x.device.type == "cpu" and not any((left, right, top, bottom)):
        # A product of matrices over the channels. It gives channels_last whatever x has, where conv2d keeps the format
        # of an image, and all that follows would be three times slower (measured).
        return F.linear(x.permute(0, 2, 3, 1), weight.flatten(1)).permute(0, 3, 1, 2)
    if k == 1 and up == 1 and down > 1:
        x = upfirdn2d(x, filter, down=down, padding=[left, right, top, bottom], flip_filter=flip_filter)
        return conv2d(x, weight, groups=groups)
    if k == 1 and up > 1 and down == 1:
        x = conv2d(x, weight, groups=groups)
        padding = [left, right, top, bottom]
        return upfirdn2d(x, filter, up=up, padding=padding, flip_filter=flip_filter, gain=up**2)
    if up > 1:
        # The transposed convolution already holds the padding that the kernel needs; the filter takes the rest.
        x = conv_transpose2d(x, _transposed(weight, groups, flip_weight), stride=up, groups=groups)
        rest = [left - (k - 1), right + up - k, top - (k - 1), bottom + up - k]
        x = upfirdn2d(x, filter, padding=rest, flip_filter=flip_filter, gain=up**2)
        return upfirdn2d(x, filter, down=down, flip_filter=flip_filter) if down > 1 else x
    if not flip_weight:
        weight = weight.flip([2, 3])
    if down > 1:
        x = upfirdn2d(x, filter, padding=[left, right, top, bottom], flip_filter=flip_filter)
        return conv2d(x, weight, stride=down, groups=groups)
    if left == right >= 0 and top == bottom >= 0:
        return conv2d(x, weight, padding=(top, left), groups=groups)
    return conv2d(F.pad(x, [left, right, top, bottom]), weight, groups=groups)


def conv2d_resample_reference(
    x: Tensor,
    weight: Tensor,
    filter: Tensor | None,
    up: int = 1,
    down: int = 1,
    padding: Padding = 0,
    groups: int = 1,
    flip_weight: bool = True,
    flip_filter: bool = False,
) -> Tensor:
    """The definition of `conv2d_resample`: enlarge, convolve, shrink. The same arguments, result and gradients."""
    pads = list(_resample_padding(filter, up, down, padding))
    x = upfirdn2d_reference(x, filter if up > 1 else None, up=up, padding=pads, flip_filter=flip_filter, gain=up**2)
    x = F.conv2d(x, weight if flip_weight else weight.flip([2, 3]), groups=groups)
    return upfirdn2d_reference(x, filter if down > 1 else None, down=down, flip_filter=flip_filter)


def _resample_padding(filter: Tensor | None, up: int, down: int, padding: Padding) -> tuple[int, int, int, int]:
    """`padding` and what keeps the filtered image centred."""
    left, right, top, bottom = parse_padding(padding)
    kw, kh = filter_size(filter)
    if up > 1:
        left, right = left + (kw + up - 1) // 2, right + (kw - up) // 2
        top, bottom = top + (kh + up - 1) // 2, bottom + (kh - up) // 2
    if down > 1:
        left, right = left + (kw - down + 1) // 2, right + (kw - down) // 2
        top, bottom = top + (kh - down + 1) // 2, bottom + (kh - down) // 2
    return left, right, top, bottom


def _transposed(weight: Tensor, groups: int, flip_weight: bool) -> Tensor:
    """[O, C / groups, k, k] -> [C, O / groups, k, k], as conv_transpose2d wants it, which convolves."""
    if flip_weight:
        weight = weight.flip([2, 3])
    if groups == 1:
        return weight.transpose(0, 1)
    O, I, kh, kw = weight.shape
    return weight.reshape(groups, O // groups, I, kh, kw).transpose(1, 2).reshape(groups * I, O // groups, kh, kw)
