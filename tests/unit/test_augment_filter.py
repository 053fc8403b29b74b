"""The filter bank of ADA against the wavelet's spectrum, and filtering against scipy."""

import numpy as np
import pytest
import pywt
import torch
from scipy.ndimage import convolve1d

from ganops.training.augment_filter import BANK, EXPECTED_POWER, SYM2, apply_filter, filter_taps
from tests.tolerances import assert_close
from tests.unit.test_augment_geometry import picture


def spectrum(omega: np.ndarray) -> np.ndarray:
    """|H|^2 / 2 of sym2's low-pass at angular frequencies."""
    taps = np.array(pywt.Wavelet("sym2").rec_lo)
    return np.abs(np.exp(-1j * np.outer(omega, np.arange(len(taps)))) @ taps) ** 2 / 2


def test_filter_is_sym2() -> None:
    assert list(SYM2) == pywt.Wavelet("sym2").dec_lo


def test_bands_are_products_of_spectra() -> None:
    """Real and even, so of zero phase; each octave is what the next lower low-pass leaves of the last one."""
    length = 128
    omega = 2 * np.pi * np.arange(length) / length
    low, high = spectrum(omega), spectrum(omega + np.pi)
    low2, high2 = spectrum(2 * omega), spectrum(2 * omega + np.pi)
    low4, high4 = spectrum(4 * omega), spectrum(4 * omega + np.pi)
    expected = np.stack([low * low2 * low4, low * low2 * high4, low * high2, high])
    middle = BANK.shape[1] // 2
    centred = np.zeros([4, length])
    for tap in range(BANK.shape[1]):
        centred[:, (tap - middle) % length] += BANK[:, tap].numpy()
    actual = np.fft.fft(centred, axis=1)
    assert_close(actual.real, expected, "golden_float64")  # the published taps are exact to twelve digits
    assert np.abs(actual.imag).max() < 1e-12
    # Each passes the middle of its octave, the lowest the constant.
    for band, place in enumerate((0, np.pi * 3 / 16, np.pi * 3 / 8, np.pi)):
        assert int(np.argmax(expected[:, round(place * length / (2 * np.pi))])) == band


def test_bands_add_up_to_the_identity() -> None:
    identity = torch.zeros(43, dtype=torch.float64)
    identity[21] = 1
    assert_close(BANK.sum(dim=0), identity, "closed_form_float64")
    assert_close(filter_taps(torch.ones(1, 4, dtype=torch.float64))[0], identity, "closed_form_float64")
    assert_close(BANK, BANK.flip(1), "closed_form_float64")


def test_power_is_kept() -> None:
    factors = torch.tensor([[2.0, 1, 1, 1], [1, 0.5, 1, 1], [1, 1, 1, 4.0], [2.0, 0.5, 3.0, 0.1]], dtype=torch.float64)
    expected = np.zeros([4, 43])
    for row, numbers in enumerate(factors.tolist()):
        gains = np.ones(4)
        for band, factor in enumerate(numbers):
            own = np.ones(4)
            own[band] = factor
            gains *= own / np.sqrt((np.array([10, 1, 1, 1]) / 13 * own**2).sum())
        if (np.array(numbers) != 1).sum() == 1:
            assert np.dot(EXPECTED_POWER, gains**2) == pytest.approx(1)
        expected[row] = gains @ BANK.numpy()
    assert_close(filter_taps(factors), expected, "closed_form_float64")


@pytest.mark.parametrize("size", [(60, 50), (7, 4), (2, 2)], ids=str)
def test_filtering_is_scipys(size: tuple[int, int]) -> None:
    """Also of images that are smaller than the filter."""
    taps = filter_taps(torch.tensor([[2.0, 1, 0.3, 1], [0.5, 1, 1, 3]], dtype=torch.float64))
    for channels in (1, 3):
        img = picture(2, channels, *size)
        expected = [
            convolve1d(convolve1d(image.numpy(), own, axis=1, mode="mirror"), own, axis=2, mode="mirror")
            for image, own in zip(img, taps.numpy(), strict=True)
        ]
        assert_close(apply_filter(img, taps), np.stack(expected), "twin_float64")
        assert_close(apply_filter(img.float(), taps), np.stack(expected), "twin_float32")
