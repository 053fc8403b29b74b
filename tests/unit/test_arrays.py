"""Images that are not square 8-bit RGB: any ratio, 16 bits, .npy arrays of any number of channels, grey with alpha."""

import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from ganops.images.folder import open_folder
from ganops.images.listing import BadImageError, list_source
from ganops.images.shards import open_shards
from tests.unit.test_prepare import run
from tests.unit.test_raw import FILTERS, convert, encode, noise, pixels, png, rows_of

RNG = np.random.default_rng(1)


def npy(values: NDArray[Any], **options: Any) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array(file, values, **options)
    return file.getvalue()


def wide(*shape: int) -> NDArray[np.uint16]:
    return RNG.integers(0, 65536, shape, dtype=np.uint16)


@pytest.mark.parametrize("resolution", [(8, 6), (10, 16), (24, 6)])
@pytest.mark.parametrize(("height", "width"), [(40, 30), (30, 40), (50, 80), (7, 31), (48, 12), (33, 33)])
def test_crops_have_the_ratio_of_the_result(height: int, width: int, resolution: tuple[int, int]) -> None:
    """Coordinates as pixels: what the result shows is the centred window, to a pixel."""
    rows, columns = np.mgrid[0:height, 0:width].astype(np.uint8) * 3
    image = Image.fromarray(np.stack([rows, columns, rows], axis=2))
    made = pixels(image, crop="center", resolution=resolution, resize_filter="nearest").astype(float) / 3
    assert made.shape == (3, *resolution)
    ratio = resolution[1] / resolution[0]
    high, across = (height, height * ratio) if width / height >= ratio else (width / ratio, width)
    for axis, side, kept, count in ((0, height, high, resolution[0]), (1, width, across, resolution[1])):
        line = made[axis].mean(1 - axis)
        expected = (side - kept) / 2 + (np.arange(count) + 0.5) * kept / count - 0.5
        assert np.abs(line - expected).max() <= 1.5
    padded = pixels(image, crop="pad", resolution=resolution, resize_filter="nearest", background=(255, 255, 255))
    share = (padded[1] != 255).mean()
    assert share == pytest.approx(min(ratio / (width / height), (width / height) / ratio), abs=0.2)
    assert (padded[:, *(side // 2 for side in resolution)] != 255).all()


def test_a_window_at_its_own_size_is_cut_out_exactly() -> None:
    image = noise(8, 20, 3)
    made = pixels(Image.fromarray(image), crop="center", resolution=(8, 6))
    assert np.array_equal(made, image[:, 7:13].transpose(2, 0, 1))
    made = pixels(Image.fromarray(image), crop="pad", resolution=(16, 20), background=(1, 2, 3))
    assert np.array_equal(made[:, 4:12], image.transpose(2, 0, 1))
    assert np.array_equal(made[:, 0], np.tile([[1], [2], [3]], 20))
    for channels in (1, 2, 5):
        values = noise(8, 20, channels)
        made = convert(npy(values), channels=channels, crop="center", resolution=(8, 6)).pixels
        assert np.array_equal(made, values[:, 7:13].transpose(2, 0, 1))
        made16 = convert(npy(values), channels=channels, crop="pad", resolution=(16, 20), bits=16).pixels
        assert np.array_equal(made16[:, 4:12], values.transpose(2, 0, 1) * np.uint16(257))


def test_the_wrong_ratio_is_told() -> None:
    with pytest.raises(BadImageError, match=r"is 9x8, not of the ratio 6:8 \(width:height\), and prepare\.crop=none"):
        pixels(Image.fromarray(noise(8, 9, 3)), resolution=(8, 6))
    assert pixels(Image.fromarray(noise(12, 9, 3)), resolution=(8, 6)).shape == (3, 8, 6)
    assert convert(encode(Image.fromarray(noise(12, 9, 3))), resolution=(16, 12)).enlarged


def test_16_bit_grey_is_not_cut() -> None:
    values = wide(8, 6)
    values[0, :2] = 0, 65535
    files = [
        encode(Image.fromarray(values)),
        encode(Image.fromarray(values), "TIFF"),
        png(6, 8, 16, 0, rows_of(values.astype(">u2"))),
        b"P5 6 8 65535\n" + values.astype(">u2").tobytes(),
        encode(Image.fromarray(values.astype(np.int32)), "TIFF"),
        npy(values),
        npy(values[:, :, None]),
        npy(values.astype(">u2")),
        npy(np.asfortranarray(values)),
        npy(values, version=(2, 0)),
    ]
    for content in files:
        made = convert(content, channels=1, bits=16, resolution=(8, 6)).pixels
        assert (made.dtype, made.shape) == (np.uint16, (1, 8, 6))
        assert np.array_equal(made[0], values)
        cut = convert(content, channels=1, resolution=(8, 6)).pixels
        assert np.array_equal(cut[0], np.floor(values / 257 + 0.5))
    floats = encode(Image.fromarray((values / 65535).astype(np.float32)), "TIFF")
    assert np.array_equal(convert(floats, channels=1, bits=16, resolution=(8, 6)).pixels[0], values)


def test_8_bits_spread_over_16() -> None:
    grey = noise(8, 8)
    expected = grey.astype(int) * 257
    for content in (encode(Image.fromarray(grey)), npy(grey)):
        assert np.array_equal(convert(content, channels=1, bits=16).pixels[0], expected)
    rgb = noise(8, 8, 3)
    luma = np.asarray(Image.fromarray(rgb).convert("L")).astype(int) * 257
    assert np.array_equal(convert(encode(Image.fromarray(rgb)), channels=1, bits=16).pixels[0], luma)


def test_16_bit_orientation_and_key_level() -> None:
    values = wide(8, 6)
    values[2, 3] = 777
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = convert(encode(Image.fromarray(values), exif=exif), channels=1, bits=16, resolution=(6, 8)).pixels[0]
    assert np.array_equal(turned, np.rot90(values, -1))
    keyed = png(6, 8, 16, 0, rows_of(values.astype(">u2")), (b"tRNS", (777).to_bytes(2, "big")))
    made = convert(keyed, channels=1, bits=16, resolution=(8, 6), background=(100, 100, 100)).pixels[0]
    assert np.array_equal(made, np.where(values == 777, 25700, values))


@pytest.mark.parametrize("resize_filter", FILTERS)
@pytest.mark.parametrize("size", [(31, 25), (5, 3), (16, 12)])
def test_16_bits_are_resized_as_precisely_as_they_are(resize_filter: str, size: tuple[int, int]) -> None:
    """Against Pillow's floats, in which Pillow sums in float64; and near its 8 bits on the same picture."""
    values = wide(*size)
    made = convert(npy(values), channels=1, bits=16, crop="center", resolution=(8, 6), resize_filter=resize_filter)
    high, across = min(size[0], round(size[1] * 8 / 6)), min(size[1], round(size[0] * 6 / 8))
    top, left = (size[0] - high) // 2, (size[1] - across) // 2
    window = Image.fromarray(values[top : top + high, left : left + across].astype(np.float32))
    expected = np.asarray(window.resize((6, 8), Image.Resampling[resize_filter.upper()]))
    assert np.abs(made.pixels[0] - np.clip(expected.astype(np.float64), 0, 65535)).max() <= 0.5
    if size != (31, 25) and resize_filter in ("bicubic", "lanczos"):
        return  # enlarged, they overshoot, which 8 bits cut between rows and columns
    eight = convert(npy(values), channels=1, crop="center", resolution=(8, 6), resize_filter=resize_filter).pixels[0]
    assert np.abs(made.pixels[0] / 257 - eight).max() <= 2.1  # rounded before, between rows and columns, and after


def test_nothing_overshoots_the_levels() -> None:
    values = np.zeros((16, 16), np.uint16)
    values[:, 8:] = 65535
    made = convert(npy(values), channels=1, bits=16, resolution=32, resize_filter="lanczos").pixels
    assert (made.min(), made.max()) == (0, 65535)
    assert (made[0, :, 0] == 0).all()
    assert (made[0, :, -1] == 65535).all()


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5, 9])
def test_arrays_of_any_number_of_channels(channels: int, bits: int) -> None:
    values = (noise(8, 6, channels) if bits == 8 else wide(8, 6, channels)) | 1  # alpha is nowhere 0
    made = convert(npy(values), channels=channels, bits=bits, resolution=(8, 6)).pixels
    assert made.dtype == values.dtype
    assert np.array_equal(made, values.transpose(2, 0, 1))
    flat = np.full((13, 13, channels), 7000 if bits == 16 else 70, values.dtype)
    made = convert(npy(flat), channels=channels, bits=bits, resize_filter="bicubic").pixels
    assert (np.abs(made.astype(int) - int(flat[0, 0, 0])) <= (2 if channels in (2, 4) else 0)).all()


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_an_array_gives_what_the_same_picture_as_a_file_gives(channels: int) -> None:
    values = noise(20, 15, channels)
    image = Image.fromarray(values[:, :, 0] if channels == 1 else values)
    for name in ("nearest", "box", "lanczos"):
        made = [
            convert(content, channels=channels, resolution=(8, 6), resize_filter=name).pixels
            for content in (npy(values), encode(image))
        ]
        assert np.array_equal(*made)


def test_grey_with_alpha() -> None:
    la = noise(8, 8, 2)
    assert np.array_equal(pixels(Image.fromarray(la), channels=2), la.transpose(2, 0, 1))
    rgb = Image.fromarray(noise(8, 8, 3))
    made = pixels(rgb, channels=2)
    assert np.array_equal(made[0], np.asarray(rgb.convert("L")))
    assert (made[1] == 255).all()
    edge = np.zeros((24, 24, 2), np.uint8)
    edge[:, :13] = 255
    for content, bits in ((npy(edge), 8), (encode(Image.fromarray(edge)), 8), (npy(edge * np.uint16(257)), 16)):
        made = convert(content, channels=2, bits=bits).pixels
        top = 2**bits - 1
        soft = (made[1] > 0) & (made[1] < top)
        assert soft.any()
        assert (made[0, soft] >= top * 0.99).all(), bits  # premultiplied: no dark fringe


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.write_text, (Path("bomb"), "x")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (npy(noise(8, 8, 3)), r"array of 8x8 pixels with 3 channels, but prepare\.channels=5"),
        (npy(noise(8, 8)), r"with 1 channels, but prepare\.channels=5"),
        (npy(np.zeros((8, 8, 5), np.float32)), r"\[8, 8, 5\] of float32, expected .* of uint8 or uint16"),
        (npy(np.zeros((8, 8, 5), np.int16)), "of int16"),
        (npy(np.zeros((8, 8, 5), np.uint32)), "of uint32"),
        (npy(np.zeros(8, np.uint8)), r"array \[8\]"),
        (npy(np.zeros((2, 8, 8, 5), np.uint8)), r"array \[2, 8, 8, 5\]"),
        (npy(np.zeros((0, 8, 5), np.uint8)), r"array \[0, 8, 5\]"),
        (npy(noise(8, 8, 5))[:-1], r"cannot decode \(319 bytes of pixels, its header says 320\)"),
        (npy(noise(8, 8, 5)) + b"x", r"cannot decode \(321 bytes"),
        (npy(noise(8, 8, 5))[:20], "not a whole .npy file"),
        (b"\x93NUMPY\x07\x00", "not a whole .npy file"),
        (npy(np.array([[Bomb()]], object), allow_pickle=True), "of object"),
        (npy(noise(8, 8)).replace(b"(8, 8)", b"(10**9, 8)"), "not a whole .npy file"),
        (npy(noise(8, 8)).replace(b"(8, 8), }" + b" " * 8, b"(800000, 80000), }"), "has more than"),
        (encode(Image.fromarray(noise(8, 8, 3))), r"prepare\.channels=5, prepare\.bits=8: only \.npy arrays"),
        (pickle.dumps(Bomb()), "cannot decode"),
    ],
)
def test_arrays_that_are_no_such_image(
    content: bytes, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadImageError, match=message):
        convert(content, channels=5)
    assert not Path("bomb").exists()


def test_16_bit_colour_files_are_refused() -> None:
    with pytest.raises(BadImageError, match=r"prepare\.channels=3, prepare\.bits=16: only \.npy arrays"):
        pixels(Image.fromarray(noise(8, 8, 3)), bits=16)


@pytest.mark.parametrize("bits", [8, 16])
def test_a_folder_of_arrays_to_shards(tmp_path: Path, bits: int) -> None:
    source = tmp_path / "source"
    source.mkdir()
    images = [RNG.integers(0, 2**bits, (16, 12, 5)).astype(f"u{bits // 8}") for _ in range(7)]
    for place, image in enumerate(images):
        np.save(source / f"{place}.npy", image)
    with zipfile.ZipFile(tmp_path / "source.zip", "w") as archive:
        for place in range(7):
            archive.write(source / f"{place}.npy", f"{place}.npy")
    assert list_source(source).names == tuple(f"{place}.npy" for place in range(7))
    values = {"resolution": [16, 12], "channels": 5, "bits": bits}
    index = run(source, tmp_path / "out", **values)
    assert index == run(tmp_path / "source.zip", tmp_path / "zipped", **values)
    assert index == run(source, tmp_path / "spawned", workers=2, **values)
    assert (index.height, index.width, index.channels, index.bits) == (16, 12, 5, bits)
    assert index.resolution == "16x12"
    shards = open_shards(tmp_path / "out", verify=True)
    assert np.array_equal(shards.gather(np.arange(7)), np.stack(images).transpose(0, 3, 1, 2))


def test_folders_to_be_measured(tmp_path: Path) -> None:
    values = wide(8, 6)
    Image.fromarray(values).save(tmp_path / "a.png")
    np.save(tmp_path / "b.npy", values)
    images = open_folder(tmp_path, 1, (0, 0, 0))
    expected = np.floor(values / 257 + 0.5)
    assert all(np.array_equal(images.image(place)[0], expected) for place in (0, 1))
    assert images.survey()[1] == "8x6"
    np.save(tmp_path / "c.npy", values.T)
    assert open_folder(tmp_path, 1, (0, 0, 0)).survey()[1] == "mixed"


def test_every_prefix_of_an_array_is_refused_or_read() -> None:
    content = npy(noise(8, 8, 5))
    for length in range(len(content)):
        with pytest.raises(BadImageError):
            convert(content[:length], channels=5)
