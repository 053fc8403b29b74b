"""Frames to a file that moves: MP4 (H.264) or GIF. The same frames give the same bytes."""

import itertools
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc
from numpy.typing import NDArray
from PIL import Image

from ganops.errors import DataError
from ganops.files import atomic_path

CODEC = "libx264"
BITEXACT = 0x400  # AVFMT_FLAG_BITEXACT
CRF = "16"  # of x264: hardly any loss is seen
MP4_MOST, GIF_MOST = 16384, 65535  # px, height and width: of x264; and of 16 bits in a GIF's header
LEAST_CS = 2  # hundredths of a second per GIF frame: browsers slow down what is faster


def write_mp4(path: Path, frames: Iterator[NDArray[np.uint8]], fps: int) -> None:
    """H.264 in 4:2:0, BT.709, encoded on one thread; sizes are made even by repeating the last row or column.

    Args:
        path: replaced as a whole.
        frames: [H, W] or [H, W, 3], all of one size, at least one.
        fps: frames per second.
    Raises:
        DataError: PyAV was built without x264 here, or it cannot encode this size.
    """
    first = _even(next(frames))
    height, width = first.shape[:2]
    _check_size(path, "H.264", first, MP4_MOST, "Write a .gif, or show")
    try:
        with atomic_path(path) as temporary, av.open(str(temporary), "w", format="mp4") as container:
            container.flags |= BITEXACT  # no version of the muxer in the file
            options = {"crf": CRF, "preset": "medium", "threads": "1"}
            stream = container.add_stream(CODEC, rate=fps, options=options)
            assert isinstance(stream, av.VideoStream)
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            stream.thread_count = 1
            stream.time_base = Fraction(1, fps)
            context = stream.codec_context  # says BT.709, so that players need not guess by the size
            context.colorspace, context.color_primaries = Colorspace.ITU709, ColorPrimaries.BT709
            context.color_trc, context.color_range = ColorTrc.BT709, ColorRange.MPEG
            for number, image in enumerate(itertools.chain([first], map(_even, frames))):
                colour = image if image.ndim == 3 else np.repeat(image[:, :, None], 3, axis=2)
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(colour), format="rgb24")
                frame = frame.reformat(
                    format="yuv420p", dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG
                )
                frame.pts, frame.time_base = number, Fraction(1, fps)
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
    except av.FFmpegError as error:
        if isinstance(error, OSError):  # a full disk, a folder that may not be written to
            raise
        raise DataError(f"{path}: cannot encode {width}x{height} as H.264 ({error}). Write a .gif or .png.") from None
    except av.codec.codec.UnknownCodecError:
        raise DataError(f"{path}: PyAV has no x264 here. Install av by pip, or write a .gif or .png.") from None


def _check_size(path: Path, kind: str, frame: NDArray[np.uint8], most: int, remedy: str) -> None:
    height, width = frame.shape[:2]
    if max(height, width) > most:
        fewer = "fewer columns" if width > most else "fewer images"
        raise DataError(
            f"{path}: frames of {width}x{height} px (width x height), but {kind} has at most {most}. {remedy} {fewer} "
            "(interpolate.columns, interpolate.seeds)."
        )


def _even(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Height and width made even, as 4:2:0 needs them."""
    rest = [(0, image.shape[0] % 2), (0, image.shape[1] % 2), *[(0, 0)] * (image.ndim - 2)]
    return np.pad(image, rest, mode="edge")


def gif_centiseconds(fps: int) -> int:
    """How long a GIF shows a frame, in hundredths of a second: the nearest to 1 / fps that browsers keep to."""
    return max(round(100 / fps), LEAST_CS)


def write_gif(path: Path, frames: Iterator[NDArray[np.uint8]], fps: int, loop: bool) -> None:
    """A GIF; grey is exact, colours are reduced to 256 per frame.

    Args:
        path: replaced as a whole.
        frames: [H, W] or [H, W, 3], all of one size, at least one; all are held in memory.
        fps: frames per second, see `gif_centiseconds`.
        loop: repeat for ever.
    Raises:
        DataError: the frames are too large for a GIF.
    """
    start = next(frames)
    _check_size(path, "a GIF", start, GIF_MOST, "Show")
    frames = itertools.chain([start], frames)
    images = (Image.fromarray(frame) if frame.ndim == 2 else Image.fromarray(frame).quantize(256) for frame in frames)
    first = next(images)
    repeat = {"loop": 0} if loop else {}
    duration = 10 * gif_centiseconds(fps)  # in ms
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        first.save(file, format="GIF", save_all=True, append_images=images, duration=duration, **repeat)
