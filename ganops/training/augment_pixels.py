"""What augmentations do to pixels as a whole: choose images of a batch, move pixels, reflect at edges, cut boxes out.

All of it is linear in the images, made of torch's own operations that repeat themselves bit for bit on CUDA under
deterministic algorithms, and differentiable any number of times. Nothing is read back from the device.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ganops.training.batches import to_device


def replace_images(img: Tensor, rows: Sequence[int], change: Callable[[Tensor], Tensor]) -> Tensor:
    """The images with those of `rows` changed; the others keep every bit.

    Args:
        img: [N, C, H, W].
        rows: indices of images, ascending. Known to the host, so that shapes are known without asking the device.
        change: is called with [len(rows), C, H, W], and returns as many of that size; not called without rows.
    """
    if not rows:
        return img
    if len(rows) == len(img):
        return change(img)
    images = list(img.unbind(0))
    changed = change(torch.stack([images[row] for row in rows]))
    for row, image in zip(rows, changed.unbind(0), strict=True):
        images[row] = image
    return torch.stack(images)


def reflect_pad(img: Tensor, left: int, right: int, top: int, bottom: int) -> Tensor:
    """Continues images beyond their edges by reflection about the outermost pixels, which are not repeated.

    Unlike torch's own it is deterministic on CUDA when differentiated, and goes on reflecting where the margin is larger
    than the image.

    Args:
        img: [N, C, H, W], H and W at least 2 on sides that grow.
        left: pixels to add on the left, >= 0; `right`, `top` and `bottom` likewise.
    Returns:
        [N, C, H + top + bottom, W + left + right].
    """
    return _reflect(_reflect(img, 3, left, right), 2, top, bottom)


def _reflect(x: Tensor, axis: int, before: int, after: int) -> Tensor:
    while before > 0 or after > 0:
        size = x.shape[axis]
        first, last = min(before, size - 1), min(after, size - 1)
        pieces = [
            x.narrow(axis, 1, first).flip(axis),
            x,
            x.narrow(axis, size - 1 - last, last).flip(axis),
        ]
        x = torch.cat([piece for piece in pieces if piece.shape[axis]], dim=axis)
        before, after = before - first, after - last
    return x


def gather_pixels(img: Tensor, columns: Tensor, rows: Tensor) -> Tensor:
    """Images whose pixels are copies of pixels.

    Args:
        img: [N, C, H, W].
        columns: [N, h, w] or [N, 1, w] int64 within [0, W), on img's device: where each pixel comes from.
        rows: [N, h, w] or [N, h, 1] int64 within [0, H).
    Returns:
        [N, C, h, w].
    """
    N, C, _, W = img.shape
    index = rows * W + columns
    found = img.flatten(2).gather(2, index.flatten(1)[:, None].expand(-1, C, -1))
    return found.reshape(N, C, *index.shape[1:])


def cut_out(img: Tensor, boxes: Tensor) -> Tensor:
    """Sets one box of each image to 0, mid grey, in all channels.

    Args:
        img: [N, C, H, W].
        boxes: [N, 4] int64 on the CPU: left, right, top, bottom in px, `right` and `bottom` excluded. Parts outside of
            the image and empty boxes cut nothing.
    """
    H, W = img.shape[2:]
    left, right, top, bottom = to_device(boxes, img.device)[:, :, None, None, None].unbind(1)
    x = torch.arange(W, device=img.device)
    y = torch.arange(H, device=img.device)[:, None]
    return img.masked_fill((x >= left) & (x < right) & (y >= top) & (y < bottom), 0)
