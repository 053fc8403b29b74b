"""The way from one latent to the next, or truncation from all to none: what the tool `interpolate` does."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ganops.config import Params
from ganops.config_tools import InterpolateParams, expand_seeds
from ganops.entry import progress, say
from ganops.explore.captions import caption_grid
from ganops.explore.model import Model, map_latents, map_seeds, open_model, seed_caption, seed_labels, synthesize
from ganops.explore.record import check_picture
from ganops.explore.video import gif_centiseconds, write_gif, write_mp4
from ganops.images.pixels import magnify, make_grid, save_png
from ganops.networks.sampling import image_latents

FRAME_LEAST = 128  # px: smaller images are magnified to about this in .mp4 and .gif
SEED = 0


@dataclass(frozen=True)
class Film:
    """What is to be shown.

    Attributes:
        positions: of the frames: 0 is the first keyframe, 1 the second; halfway is 0.5.
        ws: position -> [n, num_ws, w_dim], the images of a frame.
        columns: images per row of a frame.
        captions: one per image of a frame.
        words: position -> a caption of the frame.
    """

    positions: list[float]
    ws: Callable[[float], Tensor]
    columns: int
    captions: list[str]
    words: Callable[[float], str]


def draw_interpolation(params: Params, snapshot: Path, target: Path) -> None:
    """Writes a film (.mp4, .gif), or a strip of some of its frames (.png: a row per latent). Constant noise.

    Args:
        params: all of params.yaml.
        snapshot: the generator.
        target: replaced as a whole; its ending says what it is.
    Raises:
        WeightsError: the snapshot cannot be used.
        DataError: values that do not fit the model, or no place for such a file.
    """
    p = params.interpolate
    check_picture(target, (".png", ".mp4", ".gif"))
    model = open_model(snapshot, params.run)
    film = _sweep(model, p) if p.kind == "truncation" else _latents(model, p)
    kind = target.suffix.lower()
    if kind == ".png":
        save_png(target, _strip(model, film, p))
        say(f"interpolate: {min(p.strip_frames, len(film.positions))} of {len(film.positions)} frames: {target}")
        return
    frames = (
        _to_rgb(frame) for frame in progress(_frames(model, film, p), len(film.positions), "interpolate", "frame")
    )
    if kind == ".mp4":
        write_mp4(target, frames, p.fps)
        fps = float(p.fps)
    else:
        write_gif(target, frames, p.fps, p.loop)
        fps = 100 / gif_centiseconds(p.fps)
    count = len(film.positions)
    say(f"interpolate: {count} frames, {fps:g} per second, {count / fps:.1f} s: {target}")


def frame_positions(keyframes: int, frames: int, loop: bool) -> list[float]:
    """Where each frame is: 0 at the first keyframe, `keyframes` where a loop is closed (that frame is left out)."""
    count = keyframes * frames if loop else (keyframes - 1) * frames + 1
    return [number / frames for number in range(count)]


def interpolate(x0: Tensor, x1: Tensor, t: float, path: Literal["linear", "spherical"]) -> Tensor:
    """From x0 (t = 0) to x1 (t = 1).

    Args:
        x0: [N, D].
        x1: [N, D].
        t: in [0, 1].
        path: "linear", or "spherical": the angle and the length change evenly; linear where the angle is 0 or 180
            degrees, or a length is 0.
    Returns:
        [N, D].
    Source: Shoemake 1985, for the angle.
    """
    straight = torch.lerp(x0, x1, t)
    if path == "linear":
        return straight
    lengths = x0.norm(dim=1, keepdim=True), x1.norm(dim=1, keepdim=True)
    least = torch.finfo(x0.dtype).tiny
    unit0, unit1 = x0 / lengths[0].clamp(min=least), x1 / lengths[1].clamp(min=least)
    angle = torch.atan2((unit0 - unit1).norm(dim=1, keepdim=True), (unit0 + unit1).norm(dim=1, keepdim=True)) * 2
    sine = angle.sin()
    direction = (torch.sin((1 - t) * angle) * unit0 + torch.sin(t * angle) * unit1) / sine.clamp(min=least)
    curved = direction * torch.lerp(*lengths, t)
    is_curved = (sine > 1e-4) & (lengths[0] > 0) & (lengths[1] > 0)
    return torch.where(is_curved, curved, straight)


def _latents(model: Model, p: InterpolateParams) -> Film:
    seeds = expand_seeds(p.seeds)
    keyframes = [seeds[start : start + p.columns] for start in range(0, len(seeds), p.columns)]
    if isinstance(p.label, list):
        pairs = zip(p.label, keyframes, strict=True)
        labels = [seed_labels(model, "interpolate.label", label, of_keyframe) for label, of_keyframe in pairs]
    else:
        labels = [seed_labels(model, "interpolate.label", p.label, of_keyframe) for of_keyframe in keyframes]
    z = [image_latents(SEED, of_keyframe, model.G.z_dim) for of_keyframe in keyframes]
    w = [map_latents(model, *pair) for pair in zip(z, labels, strict=True)]

    def ws(position: float) -> Tensor:
        here, there = int(position), (int(position) + 1) % len(keyframes)
        t = position - here
        if t == 0:
            mixed = w[here]
        elif p.space == "w":
            centre = model.G.w_avg
            mixed = centre + interpolate(w[here] - centre, w[there] - centre, t, p.path)
        else:
            # Classes have no way between them in z: the frame's z is mapped under both, and w goes from one to the other.
            z_mixed = interpolate(z[here], z[there], t, p.path)
            start, end = (map_latents(model, z_mixed, labels[number]) for number in (here, there))
            mixed = torch.lerp(start, end, t)
        return model.G.truncate(mixed, p.truncation_psi, None)

    words = [
        [seed_caption(model, *pair) for pair in zip(*of_keyframe, strict=True)]
        for of_keyframe in zip(keyframes, labels, strict=True)
    ]
    captions = [" > ".join(column) for column in zip(*words, strict=True)]
    positions = frame_positions(len(keyframes), p.frames, p.loop)
    return Film(positions, ws, p.columns, captions, lambda position: f"{position:.2f}".rstrip("0").rstrip("."))


def _sweep(model: Model, p: InterpolateParams) -> Film:
    assert not isinstance(p.label, list)  # the schema's business
    seeds = expand_seeds(p.seeds)
    labels = seed_labels(model, "interpolate.label", p.label, seeds)
    w = map_seeds(model, seeds, labels)
    start, end = p.sweep_psi

    def psi(position: float) -> float:
        t = position if position <= 1 else 2 - position  # and back
        return start + t * (end - start)

    captions = [seed_caption(model, seed, label) for seed, label in zip(seeds, labels, strict=True)]
    positions = frame_positions(2, p.frames, p.loop)
    columns = min(p.columns, len(seeds))
    return Film(
        positions, lambda position: model.G.truncate(w, psi(position), None), columns, captions,
        lambda position: f"psi {psi(position):.2f}",
    )  # fmt: skip


def _draw(model: Model, film: Film, positions: list[float], batch_size: int) -> Iterator[NDArray[np.uint8]]:
    """The images of each frame: [n, C, H, W]."""
    count = len(film.captions)
    together = max(batch_size // count, 1)
    for first in range(0, len(positions), together):
        part = positions[first : first + together]
        ws = torch.cat([film.ws(position) for position in part])
        yield from np.split(synthesize(model, ws, "const", None, batch_size), len(part))


def _frames(model: Model, film: Film, p: InterpolateParams) -> Iterator[NDArray[np.uint8]]:
    for images in _draw(model, film, film.positions, p.batch_size):
        yield make_grid(magnify(images, FRAME_LEAST), film.columns)


def _strip(model: Model, film: Film, p: InterpolateParams) -> NDArray[np.uint8]:
    """A row per latent, a column per frame."""
    count = min(p.strip_frames, len(film.positions))
    # A loop is cut into equal parts, so that keyframes are among them; else both ends are shown.
    step = len(film.positions) / count if p.loop else (len(film.positions) - 1) / max(count - 1, 1)
    positions = [film.positions[math.floor(number * step + 0.5)] for number in range(count)]
    images = np.stack(list(_draw(model, film, positions, p.batch_size)))  # [frames, n, C, H, W]
    by_latent = images.swapaxes(0, 1).reshape(-1, *images.shape[2:])
    return caption_grid(by_latent, count, top=[film.words(position) for position in positions], left=film.captions)


def _to_rgb(frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Films know no transparency: it is laid on white."""
    if frame.ndim == 2 or frame.shape[2] == 3:
        return frame
    alpha = frame[:, :, 3:].astype(np.uint16)
    colour = frame[:, :, :3].astype(np.uint16)
    return ((colour * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)
