"""One image file to pixels, against numpy: modes, orientation, transparency, crop, resize, damage."""

import io
import struct
import warnings
import zlib
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from ganops.images.listing import BadImageError, readable_extensions
from ganops.images.raw import Conversion, Converted, convert_image
from ganops.shape import height_width

FILTERS = ("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos")
RNG = np.random.default_rng(0)


def encode(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def convert(content: bytes, **changes: Any) -> Converted:
    values = {"channels": 3, "bits": 8, "crop": "none", "resize_filter": "box", "background": (0, 0, 0)}
    height, width = height_width(changes.pop("resolution", 8))
    return convert_image(content, Conversion(**(values | {"height": height, "width": width} | changes)))


def pixels(image: Image.Image, kind: str = "PNG", **changes: Any) -> NDArray[np.uint8]:
    return convert(encode(image, kind), **changes).pixels


def noise(*shape: int) -> NDArray[np.uint8]:
    return RNG.integers(0, 256, shape, dtype=np.uint8)


def png(width: int, height: int, depth: int, color: int, rows: bytes, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG made by hand, for what Pillow reads but does not write."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    middle = b"".join(chunk(*item) for item in chunks)
    ends = chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + middle + ends


def rows_of(values: NDArray[Any]) -> bytes:
    return b"".join(b"\0" + row.tobytes() for row in values)


def luma(rgb: NDArray[np.uint8]) -> NDArray[np.float64]:
    return rgb.astype(np.float64) @ [0.299, 0.587, 0.114]


def test_rgb_and_grey_pass_unchanged() -> None:
    rgb, grey = noise(8, 8, 3), noise(8, 8)
    assert np.array_equal(pixels(Image.fromarray(rgb)), rgb.transpose(2, 0, 1))
    assert np.array_equal(pixels(Image.fromarray(grey), channels=1), grey[None])
    assert np.array_equal(pixels(Image.fromarray(grey)), np.stack([grey] * 3))
    assert np.abs(pixels(Image.fromarray(rgb), channels=1)[0] - luma(rgb)).max() <= 0.51


def test_result_is_contiguous_uint8() -> None:
    made = convert(encode(Image.fromarray(noise(9, 9, 3)))).pixels
    assert (made.shape, made.dtype, made.flags.c_contiguous) == ((3, 8, 8), np.uint8, True)


def test_opaque_images_get_full_alpha() -> None:
    rgb = noise(8, 8, 3)
    made = pixels(Image.fromarray(rgb), channels=4)
    assert np.array_equal(made[:3], rgb.transpose(2, 0, 1))
    assert (made[3] == 255).all()


def test_16_bit_grey_is_scaled_not_clipped() -> None:
    values = RNG.integers(0, 65536, (8, 8), dtype=np.uint16)
    values[0, :5] = (0, 65535, 128, 129, 257)
    expected = np.floor(values / 65535 * 255 + 0.5).astype(np.uint8)
    assert expected[0, :5].tolist() == [0, 255, 0, 1, 1]
    files = [
        encode(Image.fromarray(values)),
        encode(Image.fromarray(values), "TIFF"),
        png(8, 8, 16, 0, rows_of(values.astype(">u2"))),
        b"P5 8 8 65535\n" + values.astype(">u2").tobytes(),
        encode(Image.fromarray(values.astype(np.int32)), "TIFF"),
    ]
    modes = []
    for content in files:
        with Image.open(io.BytesIO(content)) as file:
            modes.append(file.mode)
        assert np.array_equal(convert(content, channels=1).pixels[0], expected)
        assert np.array_equal(convert(content).pixels, np.stack([expected] * 3))
    assert {"I;16", "I"} <= set(modes)


@pytest.mark.parametrize("extreme", [-1, 65536, 2**31 - 1])
def test_wider_integers_are_refused(extreme: int) -> None:
    values = np.full((8, 8), 7, np.int32)
    values[3, 3] = extreme
    with pytest.raises(BadImageError, match=f"32-bit integers.*{extreme}.*expected 0 to 65535"):
        pixels(Image.fromarray(values), "TIFF")


def test_floats_are_taken_as_0_to_1() -> None:
    values = RNG.random((8, 8)).astype(np.float32)
    values[0, :2] = (0, 1)
    expected = np.floor(values.astype(np.float64) * 255 + 0.5)
    assert np.array_equal(pixels(Image.fromarray(values), "TIFF", channels=1)[0], expected)
    for extreme in (1.01, -0.01, float("nan")):
        values[3, 3] = extreme
        with pytest.raises(BadImageError, match="expected 0 to 1"):
            pixels(Image.fromarray(values), "TIFF")


def test_16_bit_colour_keeps_its_high_byte() -> None:
    values = RNG.integers(0, 65536, (8, 8, 3), dtype=np.uint16)
    made = convert(png(8, 8, 16, 2, rows_of(values.astype(">u2")))).pixels
    assert np.array_equal(made, (values >> 8).transpose(2, 0, 1))


def test_1_bit() -> None:
    bits = noise(8, 8) > 127
    for kind in ("PNG", "TIFF", "PPM", "BMP"):
        assert np.array_equal(pixels(Image.fromarray(bits), kind, channels=1)[0], bits * np.uint8(255))


def test_palette() -> None:
    indices, colours = noise(8, 8) % 7, noise(7, 3)
    image = Image.frombytes("P", (8, 8), indices.tobytes())
    image.putpalette(colours.tobytes())
    for kind in ("PNG", "GIF", "BMP", "TIFF"):
        assert np.array_equal(pixels(image, kind), colours[indices].transpose(2, 0, 1))
    grey = pixels(image, channels=1)[0]
    assert np.abs(grey - luma(colours[indices])).max() <= 0.51


@pytest.mark.parametrize("transparency", [3, bytes([255, 0, 128, 7])])
def test_palette_with_transparency(transparency: int | bytes) -> None:
    indices, colours = noise(8, 8) % 7, noise(7, 3)
    image = Image.frombytes("P", (8, 8), indices.tobytes())
    image.putpalette(colours.tobytes())
    alphas = np.full(7, 255)
    if isinstance(transparency, int):
        alphas[transparency] = 0
    else:
        alphas[:4] = list(transparency)
    made = convert(encode(image, transparency=transparency), background=(200, 100, 50))
    share = alphas[indices][..., None] / 255
    expected = colours[indices] * share + np.array([200, 100, 50]) * (1 - share)
    assert np.abs(made.pixels.transpose(1, 2, 0) - expected).max() <= 1
    assert made.warnings == ()
    made = convert(encode(image, transparency=transparency), channels=4)
    assert np.array_equal(made.pixels[3], alphas[indices])


def test_grey_with_alpha_and_key_colours() -> None:
    la = noise(8, 8, 2)
    share = la[:, :, 1:] / 255
    expected = la[:, :, :1] * share + np.array([10, 20, 30]) * (1 - share)
    made = pixels(Image.frombytes("LA", (8, 8), la.tobytes()), background=(10, 20, 30))
    assert np.abs(made.transpose(1, 2, 0) - expected).max() <= 1
    grey = noise(8, 8)
    grey[2, 3] = 77
    keyed = convert(encode(Image.fromarray(grey), transparency=77), channels=4).pixels
    assert np.array_equal(keyed[3], np.where(grey == 77, 0, 255))
    rgb = noise(8, 8, 3)
    keyed = convert(encode(Image.fromarray(rgb), transparency=tuple(rgb[4, 4].tolist())), channels=4).pixels
    assert np.array_equal(keyed[3] == 0, (rgb == rgb[4, 4]).all(axis=2))
    bits = np.eye(8, dtype=bool)
    keyed = convert(encode(Image.fromarray(bits), transparency=1), channels=4).pixels
    assert np.array_equal(keyed[3], np.where(bits, 0, 255))
    wide = RNG.integers(0, 65536, (8, 8), dtype=np.uint16)
    wide[1, 1], wide[1, 2] = 30000, 30001  # the same level in 8 bits
    made16 = convert(png(8, 8, 16, 0, rows_of(wide.astype(">u2")), (b"tRNS", struct.pack(">H", 30000))), channels=4)
    assert np.array_equal(made16.pixels[3], np.where(wide == 30000, 0, 255))
    assert made16.pixels[0, 1, 2] == 117


@pytest.mark.parametrize("depth", [2, 4])
def test_key_colours_of_few_bits(depth: int) -> None:
    values = np.arange(64, dtype=np.uint8).reshape(8, 8) % 2**depth
    per_byte = 8 // depth
    packed = np.zeros((8, depth), np.uint8)
    for i in range(per_byte):
        packed |= values[:, i::per_byte] << (8 - depth * (i + 1))
    made = convert(png(8, 8, depth, 0, rows_of(packed), (b"tRNS", struct.pack(">H", 2))), channels=4).pixels
    assert np.array_equal(made[0], np.round(values * 255.0 / (2**depth - 1)))
    assert np.array_equal(made[3], np.where(values == 2, 0, 255))


def test_key_colour_of_16_bit_rgb() -> None:
    values = RNG.integers(0, 65536, (8, 8, 3), dtype=np.uint16)
    values[0, 0] = (40000, 50000, 60000)
    key = struct.pack(">HHH", 40000, 50000, 60000)
    made = convert(png(8, 8, 16, 2, rows_of(values.astype(">u2")), (b"tRNS", key)), channels=4).pixels
    assert made[3, 0, 0] == 0
    assert (made[3].ravel()[1:] == 255).all()


def test_cmyk() -> None:
    cmyk = noise(8, 8, 4)
    made = pixels(Image.frombytes("CMYK", (8, 8), cmyk.tobytes()), "TIFF")
    cmy, k = 255 - cmyk[:, :, :3].astype(float), 255 - cmyk[:, :, 3:].astype(float)
    assert np.abs(made.transpose(1, 2, 0) - cmy * k / 255).max() <= 1


def test_lab_and_ycbcr_and_jpeg() -> None:
    lab = np.zeros((8, 8, 3), np.uint8)
    lab[:, :, 0] = np.arange(64).reshape(8, 8) * 4
    made = pixels(Image.frombytes("LAB", (8, 8), lab.tobytes()), "TIFF")
    assert np.abs(np.diff(made.astype(int), axis=0)).max() <= 4  # neutral stays grey
    assert made[0, 0, 0] <= 2
    assert made[0, 7, 7] >= 245
    plain = Image.new("RGB", (8, 8), (200, 30, 90))
    for image, kind in ((plain, "JPEG"), (plain, "WEBP"), (plain, "JPEG2000"), (plain.convert("YCbCr"), "TIFF")):
        made = pixels(image, kind)
        assert np.abs(made.astype(int) - np.array([200, 30, 90])[:, None, None]).max() <= 4


# EXIF 2.32, table 6: which corner of what is seen the stored first row and column are.
UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).transpose(1, 0, 2),
    8: lambda a: np.rot90(a),
}


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_exif_orientation(orientation: int) -> None:
    image = noise(16, 24, 3)
    exif = Image.Exif()
    exif[0x0112] = orientation
    seen = UPRIGHT[orientation](image)
    top, left = (seen.shape[0] - 16) // 2, (seen.shape[1] - 16) // 2
    expected = seen[top : top + 16, left : left + 16].transpose(2, 0, 1)
    for kind, options in (
        ("PNG", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_deflate"}),
        ("WEBP", {"lossless": True}),
    ):
        content = encode(Image.fromarray(image), kind, exif=exif, **options)
        assert np.array_equal(convert(content, resolution=16, crop="center").pixels, expected), (kind, options)
    jpeg = encode(Image.fromarray(image).resize((240, 160)), "JPEG", exif=exif, quality=95)
    side = convert(jpeg, resolution=16, crop="pad", background=(0, 0, 0)).pixels.max(axis=0)
    dark_rows, dark_columns = (side.max(axis=1) == 0).any(), (side.max(axis=0) == 0).any()
    assert (dark_rows, dark_columns) == ((True, False) if orientation < 5 else (False, True))


@pytest.mark.parametrize("value", [0, 9, 77])
def test_nonsense_orientations_do_nothing(value: int) -> None:
    image = noise(8, 8, 3)
    exif = Image.Exif()
    exif[0x0112] = value
    assert np.array_equal(convert(encode(Image.fromarray(image), exif=exif)).pixels, image.transpose(2, 0, 1))


def test_broken_exif_is_a_warning() -> None:
    image = noise(8, 8, 3)
    made = convert(encode(Image.fromarray(image), exif=b"Exif\0\0nonsense, not a TIFF header"))
    assert np.array_equal(made.pixels, image.transpose(2, 0, 1))
    assert len(made.warnings) == 1
    assert "EXIF" in made.warnings[0]


@pytest.mark.parametrize(("width", "height"), [(20, 8), (8, 20), (9, 8), (8, 11)])
def test_center_crop_is_the_largest_square(width: int, height: int) -> None:
    image = noise(height, width, 3)
    left, top = (width - 8) // 2, (height - 8) // 2
    expected = image[top : top + 8, left : left + 8].transpose(2, 0, 1)
    assert np.array_equal(pixels(Image.fromarray(image), crop="center"), expected)


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize(("width", "height"), [(5, 8), (8, 5), (8, 1)])
def test_pad_adds_background(width: int, height: int, channels: int) -> None:
    grey = noise(height, width)
    made = pixels(Image.fromarray(grey), crop="pad", channels=channels, background=(9, 9, 9))
    left, top = (8 - width) // 2, (8 - height) // 2
    expected = np.full((8, 8), 9, np.uint8)
    expected[top : top + height, left : left + width] = grey
    assert np.array_equal(made[:3], np.stack([expected] * min(3, channels)))
    assert (made[3:] == 255).all()


def test_not_square_is_told_with_its_size() -> None:
    with pytest.raises(BadImageError, match=r"is 9x8, not square, and prepare\.crop=none"):
        pixels(Image.fromarray(noise(8, 9, 3)))


def test_box_downscaling_is_the_mean() -> None:
    image = noise(32, 32, 3)
    mean = image.reshape(8, 4, 8, 4, 3).mean(axis=(1, 3)).transpose(2, 0, 1)
    error = np.abs(pixels(Image.fromarray(image)) - mean)
    assert error.max() <= 1  # Pillow rounds twice, after rows and after columns
    assert error.mean() < 0.4


def test_bilinear_downscaling_is_antialiased() -> None:
    image = noise(16, 16)
    weights = np.zeros((8, 16))
    for i in range(8):
        centre = 2 * i + 1
        weights[i] = np.clip(1 - np.abs(np.arange(16) + 0.5 - centre) / 2, 0, None)
    weights /= weights.sum(axis=1, keepdims=True)
    error = np.abs(
        pixels(Image.fromarray(image), channels=1, resize_filter="bilinear")[0] - weights @ image @ weights.T
    )
    assert error.max() <= 1
    assert error.mean() < 0.4


@pytest.mark.parametrize("resize_filter", FILTERS)
@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("size", [1, 3, 7, 8, 9, 31])
def test_flat_images_stay_flat(resize_filter: str, channels: int, size: int) -> None:
    made = convert(encode(Image.new("RGB", (size, size), (90, 90, 90))), channels=channels, resize_filter=resize_filter)
    assert (made.pixels[:3] == 90).all()
    assert made.enlarged == (size < 8)


def test_filters_differ_and_nearest_picks() -> None:
    image = noise(19, 19)
    results = {name: pixels(Image.fromarray(image), channels=1, resize_filter=name).tobytes() for name in FILTERS}
    assert len(set(results.values())) == len(FILTERS)
    picked = np.floor((np.arange(8) + 0.5) * 19 / 8).astype(int)
    assert results["nearest"] == image[np.ix_(picked, picked)].tobytes()


def half_transparent() -> Image.Image:
    """White on the left, transparent black on the right, edge inside a pixel of the result."""
    image = np.zeros((24, 24, 4), np.uint8)
    image[:, :13] = 255
    return Image.fromarray(image)


def test_transparent_edges_have_no_dark_fringe() -> None:
    made = pixels(half_transparent(), channels=4)
    edge = (made[3] > 0) & (made[3] < 255)
    assert edge.any()
    assert (made[:3, edge] >= 254).all()
    flat = pixels(half_transparent(), channels=3, background=(255, 255, 255))
    assert (flat == 255).all()
    black = pixels(half_transparent(), channels=3, background=(0, 0, 0))[0, 0]
    assert black.tolist() == [255] * 4 + [85] + [0] * 3


def test_channels_4_keeps_what_is_invisible_when_nothing_is_resized() -> None:
    image = noise(8, 8, 4)
    assert np.array_equal(pixels(Image.fromarray(image), channels=4), image.transpose(2, 0, 1))


def test_first_frame_is_used_and_counted() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ((255, 0, 0), (0, 255, 0), (0, 0, 255))]
    for kind in ("GIF", "TIFF", "PNG", "WEBP"):
        made = convert(encode(frames[0], kind, save_all=True, append_images=frames[1:]))
        assert made.several_frames, kind
        assert made.pixels[0, 0, 0] >= 250
        assert made.pixels[1:].max() <= 5
        assert not convert(encode(frames[0], kind)).several_frames


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "TGA"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_truncated_files_are_refused(kind: str, share: float) -> None:
    content = encode(Image.fromarray(noise(64, 64, 3)), kind)
    with pytest.raises(BadImageError, match=r"cannot decode \("):
        convert(content[: int(len(content) * share)])


def test_reasons_are_in_plain_words() -> None:
    with pytest.raises(BadImageError, match="^the file is empty$"):
        convert(b"")
    with pytest.raises(BadImageError, match=r"^cannot decode \(no image format that Pillow reads\)$"):
        convert(b"hello")
    content = encode(Image.fromarray(noise(64, 64, 3)), "JPEG")
    with pytest.raises(BadImageError, match=r"^cannot decode \(file ends early\)$"):
        convert(content[: len(content) // 2])


def test_damaged_bytes_never_escape_as_other_errors() -> None:
    rng = np.random.default_rng(5)
    for kind in ("PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP"):
        content = encode(Image.fromarray(noise(16, 16, 3)), kind)
        for _ in range(60):
            damaged = bytearray(content)
            for position in rng.integers(0, len(content), 4):
                damaged[position] = rng.integers(0, 256)
            with suppress(BadImageError):
                assert convert(bytes(damaged), crop="center").pixels.shape == (3, 8, 8)


def test_bombs_are_refused_without_unpacking() -> None:
    with pytest.raises(BadImageError, match="more than 178956970 pixels"):
        convert(png(30000, 30000, 8, 0, b""))
    with pytest.raises(BadImageError, match="padded it has more than"):
        pixels(Image.new("L", (20000, 8)), crop="pad")


def test_no_other_program_is_started() -> None:
    with pytest.raises(BadImageError, match="no image format"):
        convert(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n%%EOF\n")
    assert not {".eps", ".ps", ".h5", ".pdf", ".txt", ".mpg"} & readable_extensions()
    assert {".png", ".jpg", ".jpeg", ".gif", ".bmp", ".tif", ".tiff", ".webp", ".pgm", ".jp2"} <= readable_extensions()


def test_warnings_are_kept_not_shown() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        made = convert(encode(Image.fromarray(noise(8, 8, 3)), exif=b"Exif\0\0broken"))
    assert not caught
    assert made.warnings
