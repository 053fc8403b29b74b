"""An image into a model's w: what the tool `project` does."""

import csv
import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ganops.config import Params, PrepareParams
from ganops.entry import progress, say
from ganops.errors import DataError
from ganops.explore.captions import caption_grid
from ganops.explore.distance import Distance, open_distance
from ganops.explore.model import Model, find_label, open_model, sample_w
from ganops.explore.projection import COLUMNS, Projection, Start, strip_steps
from ganops.explore.record import claim_folder
from ganops.files import sha256_file, write_bytes, write_json
from ganops.images.decode import array_shape, is_array
from ganops.images.listing import BadImageError, read_file
from ganops.images.pixels import for_eyes, make_grid, save_png, to_float, to_rgb
from ganops.images.raw import MODES, Conversion, convert_image
from ganops.networks.path_length import in_float32
from ganops.networks.snapshot import METADATA_KEY
from ganops.shape import size_name

GREY_MODES = {"1", "L", "LA", "La", "I", "F"}  # of Pillow, besides those that begin with I;16


def project_image(params: Params, snapshot: Path, image: Path, folder: Path, root: Path) -> None:
    """Looks for the latent of an image; writes it, what it looks like, and how it went.

    Args:
        params: all of params.yaml.
        snapshot: the generator.
        image: any that Pillow reads, or an .npy array with the model's channels; the largest part of its middle with the
            ratio of the model's images, as stage `prepare` makes it. Of transparent images and of those with 5 channels or
            more the distance sees what `lay_on` makes of them, and all channels are found along with it.
        folder: new, empty, or of the same command before, which then goes on. For target.png, projected.png, strip.png,
            ws.safetensors (`ws` [1, num_ws, w_dim], and the noise images under their names in the network), loss.csv,
            project.json (what all is a function of, the distance's name and value), state.safetensors until it is done.
        root: the repository that owns data/weights.
    Raises:
        WeightsError: the snapshot or the distance's weights cannot be used.
        DataError: an image that cannot be read, values that do not fit the model, or a folder that holds other things.
    """
    p = params.project
    # Resizing in the distance `efflite0` has no deterministic gradient on CUDA.
    model = open_model(snapshot, params.run, deterministic=params.run.deterministic and p.distance == "lpips")
    target = read_target(image, model, params.prepare)
    label = find_label(model, "project.label", p.label)
    values = {
        **p.model_dump(exclude={"state_steps"}),
        "label": label,
        "snapshot_sha256": model.sha256,
        "image_sha256": sha256_file(image),
        "resize_filter": params.prepare.resize_filter,
        "background": params.prepare.background,
    }
    background = params.prepare.background
    distance = open_distance(
        p.distance, to_float(torch.tensor(target[None])), background, model.device, root / "data" / "weights"
    )
    say(f"project: distance {distance.name} on {model.device.type}")
    w = sample_w(model, "project.label", p.label, p.seed, p.w_samples)
    record = claim_folder(folder, "project.json", values, inputs=("target.png",))
    state = folder / "state.safetensors"
    if "result" in record:
        state.unlink(missing_ok=True)
        say(f"project: {folder} is complete already: distance {record['result']['distance']:.4g}")
        return
    projection = Projection(in_float32(model.G), p, _start(w), distance)
    if state.exists():
        projection.load(state)
        say(f"project: goes on after step {projection.step}")
    save_png(folder / "target.png", make_grid(for_eyes(target[None]), 1))
    rest = p.steps - projection.step
    for step in progress(projection.run(), rest, "project", "step"):
        if step % p.state_steps == 0:
            projection.save(state)
    _write_results(folder, projection, target, background, distance, record)
    state.unlink(missing_ok=True)


def read_target(path: Path, model: Model, prepare: PrepareParams) -> NDArray[np.uint8]:
    """The image as stage `prepare` would make it for this model, the largest part of its middle with that ratio: [C, H, W].

    Raises:
        DataError: it cannot be read, or has other channels than the model's images and cannot be brought to them.
    """
    channels = model.G.img_channels
    background = (prepare.background[0], prepare.background[1], prepare.background[2])
    conversion = Conversion(*model.G.size, channels, 8, "center", prepare.resize_filter, background)
    try:
        content = read_file(None, str(path))
        found = array_shape(content)[2] if is_array(content) else channels if channels in MODES else 0
        if found != channels:
            kind = f"an array of {found} channels" if found else "no .npy array"
            raise DataError(f"{path} is {kind}, but {model.path} makes images of {channels}. Name an array of so many.")
        converted = convert_image(content, conversion)
    except BadImageError as error:
        raise DataError(f"{path}: {error}.") from None
    is_grey, model_is_grey = channels < 3 if is_array(content) else _is_grey(content), channels < 3
    if is_grey != model_is_grey:
        kinds = ("grey", "in colour") if is_grey else ("in colour", "grey")
        say(f"project: {path} is {kinds[0]}, the model's images are {kinds[1]}: converted")
    if converted.enlarged:
        say(f"project: {path} is smaller than the model's {size_name(*model.G.size)} px: enlarged")
    return converted.pixels.astype(np.uint8, copy=False)  # of 8 bits


def _is_grey(content: bytes) -> bool:
    """Of an image that Pillow reads, by its header."""
    with Image.open(io.BytesIO(content)) as file:
        return file.mode in GREY_MODES or file.mode.startswith("I;16")


def _start(w: Tensor) -> Start:
    mean = w.mean(dim=0)
    return Start(mean, float((w - mean).square().sum(dim=1).mean().sqrt()))


def _write_results(
    folder: Path,
    projection: Projection,
    target: NDArray[np.uint8],
    background: Sequence[int],
    distance: Distance,
    record: dict[str, Any],
) -> None:
    """All files but the target; project.json last, which says that the others are there."""
    final, value = projection.result()
    image = final.numpy()[None]
    save_png(folder / "projected.png", make_grid(for_eyes(image), 1))
    shown = for_eyes(np.concatenate([target[None], projection.pictures.numpy(), image]))
    difference = _difference(target[None], image, background)
    error = float(difference.mean(dtype=np.float64))
    # Transparent pictures have a difference that is not.
    padding = [(0, 0), (0, max(shown.shape[1] - 3, 0)), (0, 0), (0, 0)]
    difference = np.pad(difference, padding, constant_values=255)[:, : shown.shape[1]]
    pictures = np.concatenate([shown, difference])
    words = ["target", *[f"step {step}" for step in strip_steps(projection.p)], "result", "difference"]
    save_png(folder / "strip.png", caption_grid(pictures, len(pictures), top=words))
    tensors = {"ws": projection.ws(), **projection.noises}
    content = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    header = json.dumps(record["values"], sort_keys=True, separators=(",", ":"))
    write_bytes(folder / "ws.safetensors", safetensors.torch.save(content, {METADATA_KEY: header}))
    write_bytes(folder / "loss.csv", _table(projection.rows.tolist()))
    measured = {"distance": value, "distance_name": distance.name, "distance_sha256": distance.sha256}
    write_json(folder / "project.json", {**record, "result": measured})
    say(f"project: {distance.name} {value:.4g}, mean difference {error:.1f} of 255: {folder}/strip.png")


def _difference(target: NDArray[np.uint8], image: NDArray[np.uint8], background: Sequence[int]) -> NDArray[np.uint8]:
    """Of what is seen of two images [1, C, H, W]: transparent ones on the background. [1, 3, H, W]."""
    seen = [to_rgb(torch.tensor(levels), background).numpy().astype(np.int16) for levels in (target, image)]
    difference: NDArray[np.uint8] = np.abs(seen[0] - seen[1]).astype(np.uint8)
    return difference


def _table(rows: Iterable[list[float]]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["step", *COLUMNS])
    writer.writerows([number, *(f"{value:.6g}" for value in row)] for number, row in enumerate(rows))
    return text.getvalue().encode()
