"""The two resizes: the numbers of Pillow's float filter and of TensorFlow 1's bilinear one, at any size."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from cleanfid.resize import build_resizer, make_resizer
from numpy.typing import NDArray

from ganops.metrics.resize import bands, resize_images, resizer_id, weights

# Height and width: one pixel, a row, a column, odd, the target's own, its neighbours, much larger.
SHAPES = [(1, 1), (1, 7), (9, 1), (2, 3), (8, 8), (31, 77), (298, 300), (299, 299), (301, 299), (512, 640), (1023, 40)]
GREY = 1e-4  # grey levels; measured up to 6.1e-5, two units in the last place of a float32 below 256
CPU = torch.device("cpu")


def noise(height: int, width: int, count: int = 2, channels: int = 3) -> torch.Tensor:
    rng = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, [count, channels, height, width], dtype=torch.uint8, generator=rng)


def expected_clean(images: torch.Tensor, resize: Callable[[NDArray[np.uint8]], NDArray[np.float32]]) -> torch.Tensor:
    resized = np.stack([resize(image) for image in images.permute(0, 2, 3, 1).numpy()])
    return torch.from_numpy(resized).permute(0, 3, 1, 2)


@pytest.mark.parametrize(("height", "width"), SHAPES)
def test_clean_is_cleanfids(height: int, width: int) -> None:
    images = noise(height, width)
    ours = resize_images(images, 299, "clean")
    assert (ours.dtype, ours.shape) == (torch.float32, (2, 3, 299, 299))
    assert float((ours - expected_clean(images, build_resizer("clean"))).abs().max()) < GREY
    assert float(ours.min()) >= 0
    assert float(ours.max()) <= 255


@pytest.mark.parametrize("size", [1, 7, 16, 128])
def test_clean_to_other_sizes(size: int) -> None:
    """Pillow to `size` px, of which 128 is EfficientNet's. Longer sums in float32: measured up to 1.1e-4."""
    resize = make_resizer("PIL", False, "bicubic", (size, size))
    for height, width in ((32, 32), (5, 300)):
        images = noise(height, width)
        assert float((resize_images(images, size, "clean") - expected_clean(images, resize)).abs().max()) < 2 * GREY


@pytest.mark.parametrize(("height", "width"), SHAPES[:-2])
def test_legacy_is_the_bilinear_loop_of_tensorflow_1(height: int, width: int) -> None:
    size, images = 37, noise(height, width, count=1)
    expected = np.zeros([3, size, size])
    pixels = images[0].double().numpy()
    for i in range(size):
        for j in range(size):
            y, x = i * height / size, j * width / size
            top, left = int(y), int(x)
            bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
            upper = pixels[:, top, left] * (1 - (x - left)) + pixels[:, top, right] * (x - left)
            lower = pixels[:, bottom, left] * (1 - (x - left)) + pixels[:, bottom, right] * (x - left)
            expected[:, i, j] = upper * (1 - (y - top)) + lower * (y - top)
    assert np.abs(resize_images(images, size, "legacy")[0].numpy() - expected).max() < GREY


def test_legacy_by_hand() -> None:
    """[0, 100] to four pixels: positions 0, 0.5, 1, 1.5; beyond the last pixel its value goes on."""
    image = torch.tensor([[[[0, 100]]]], dtype=torch.uint8)
    assert resize_images(image, 4, "legacy")[0, 0].tolist() == [[0.0, 50.0, 100.0, 100.0]] * 4


@pytest.mark.parametrize("resize", ["clean", "legacy"])
def test_constant_images_stay_so(resize: str) -> None:
    for value, (height, width) in zip((0, 1, 77, 254, 255), SHAPES[3:], strict=False):
        image = torch.full([1, 3, height, width], value, dtype=torch.uint8)
        assert float((resize_images(image, 299, resize) - value).abs().max()) < GREY


@pytest.mark.parametrize("resize", ["clean", "legacy"])
@pytest.mark.parametrize("size", [16, 300, 700])
def test_bands_are_the_whole_table(size: int, resize: str) -> None:
    table = weights(size, 299, resize, CPU)
    whole, transposed = torch.zeros(size, 299), torch.zeros(299, size)
    for outputs, inputs, weight, weight_t in bands(size, 299, resize):
        whole[inputs, outputs], transposed[outputs, inputs] = weight, weight_t
    assert torch.equal(whole, table)
    assert torch.equal(transposed.T, table)


@pytest.mark.parametrize("resize", ["clean", "legacy"])
@pytest.mark.parametrize("size", [16, 400])
def test_an_image_does_not_depend_on_the_others(size: int, resize: str) -> None:
    images = noise(size, size, count=5)
    together = resize_images(images, 299, resize)
    for index in (0, 3):
        assert torch.equal(resize_images(images[index : index + 1], 299, resize)[0], together[index])


@pytest.mark.parametrize("channels", [1, 4])
def test_any_number_of_channels_and_any_strides(channels: int) -> None:
    images = noise(20, 30, channels=channels)
    turned = images.contiguous(memory_format=torch.channels_last)
    expected = torch.cat([resize_images(images[:, [c]], 299, "clean") for c in range(channels)], 1)
    for given in (images, turned):
        assert float((resize_images(given, 299, "clean") - expected).abs().max()) < GREY


def test_what_protocols_call_them() -> None:
    assert resizer_id("clean", 299) == "pil-bicubic-antialias-299"
    assert resizer_id("legacy", 299) == "tf1-bilinear-299"
    assert resizer_id("none", 299) == "none"
