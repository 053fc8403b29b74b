"""Generators for programs that know nothing of this library: TorchScript and ONNX, checked before they are kept."""

import io
import json
import shutil
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ganops.errors import ExportError
from ganops.files import atomic_path, sha256_file
from ganops.networks.families import AnyGenerator, full_size
from ganops.networks.path_length import in_float32
from ganops.networks.sampling import image_latents, one_hot
from ganops.networks.snapshot import METADATA_KEY, load_snapshot
from ganops.ops.upfirdn2d import upfirdn2d_plain
from ganops.precision import full_float32

SUFFIXES = (".safetensors", ".pt", ".onnx")
OPSET = 20
TOLERANCE = 1e-3
"""Of the largest pixel: an eighth of a step of 8-bit images. Measured up to 6e-6 (config-f at 1024x1024)."""
TRACED_BATCH = 2
CHECKED = ((1, 1.0), (3, 0.7))
"""Batch sizes and psi. Other batches than the traced one: a size that became a constant is found so."""
INSTALL = "pip install -c constraints.txt -e '.[export]'"

Images = Callable[[list[Tensor]], Tensor]


class _Images(nn.Module):
    """z, c (of a conditional generator) and truncation_psi -> images, with constant noise.

    Truncation is linear in psi, so psi can be an input, where `Generator.truncate` needs to know it.
    """

    def __init__(self, G: AnyGenerator) -> None:
        super().__init__()
        self.G = G

    def forward(self, z: Tensor, c: Tensor, truncation_psi: Tensor) -> Tensor:
        w = self.G.mapping(z, c)
        ws = torch.lerp(self.G.truncate(w, 0.0, None), self.G.truncate(w, 1.0, None), truncation_psi)
        # In the middle of growing, images are smaller: as everywhere, they are shown at the full size.
        return full_size(self.G, self.G.synthesis(ws, "const", None))


class _Unconditional(nn.Module):
    """The same without c."""

    def __init__(self, G: AnyGenerator) -> None:
        super().__init__()
        self.images = _Images(G)

    def forward(self, z: Tensor, truncation_psi: Tensor) -> Tensor:
        img: Tensor = self.images(z, z[:, :0], truncation_psi)
        return img


def export_snapshot(source: Path, target: Path) -> float | None:
    """Writes a snapshot's generator for other programs; by the target's suffix as TorchScript, ONNX or safetensors.

    The exported network maps z [N, z_dim], c [N, c_dim] (conditional generators only) and truncation_psi, a number, to
    images [N, C, H, W] about in [-1, 1], for any N, all float32, with constant noise. A .safetensors is a copy: a
    snapshot is weights with plain names and a JSON header already.

    Args:
        source: a snapshot.
        target: replaced only by a file that was loaded again and gave the same images, or is an equal copy.
    Returns:
        The largest difference to our images, relative to the largest pixel; None if nothing is installed to run it.
    Raises:
        ExportError: unknown suffix, a package is missing, or the exported network gives other images (the copy differs).
        WeightsError: see `load_snapshot`.
    """
    if target.suffix not in SUFFIXES:
        raise ExportError(f"{target}: the suffix says the format. Expected one of {', '.join(SUFFIXES)}.")
    G, metadata = load_snapshot(source)
    if target.suffix == ".safetensors":
        return _copy(source, target)
    text = json.dumps(
        {
            "snapshot_sha256": sha256_file(source),
            "arguments": G.arguments,
            "metadata": metadata,
            "noise_mode": "const",
        },
        sort_keys=True,
    )
    G = in_float32(G)
    with _quiet(), full_float32(), torch.no_grad(), atomic_path(target) as temporary:
        write = _write_torchscript if target.suffix == ".pt" else _write_onnx
        try:
            images = write(G, temporary, text)
        except RuntimeError as error:  # of torch's exporters
            raise ExportError(f"{target}: torch {torch.__version__} cannot write it ({_first_line(error)}).") from error
        return None if images is None else _largest_error(G, images, target)


def _copy(source: Path, target: Path) -> float:
    with atomic_path(target) as temporary:
        shutil.copyfile(source, temporary)  # content only; never a hard link
        if sha256_file(temporary) != sha256_file(source):
            raise ExportError(f"{target}: differs from {source} after copying. It was not kept. Check the disk.")
    return 0.0


def _write_torchscript(G: AnyGenerator, path: Path, text: str) -> Images:
    module = _capture(G).module()
    aten = torch.ops.aten
    for node in list(module.graph.nodes):
        if node.op == "call_module":  # a check of the inputs, in Python
            module.graph.erase_node(node)
        elif node.target is aten.sym_size.int:  # as methods of tensors, tracing follows sizes; else N would be constant
            node.op, node.target = "call_method", "size"
        elif node.target in (aten.view.default, aten.expand.default):
            node.op, node.target = "call_method", "view" if node.target is aten.view.default else "expand"
    module.recompile()
    traced = torch.jit.trace(module, tuple(_inputs(G, TRACED_BATCH, 0.5)), check_trace=False)  # type: ignore[no-untyped-call]
    content = io.BytesIO()
    torch.jit.save(traced, content, _extra_files={METADATA_KEY: text})
    with zipfile.ZipFile(content) as archive, zipfile.ZipFile(path, "w") as target:
        for part in archive.infolist():
            if not part.filename.endswith(".debug_pkl"):  # lines and paths of the sources
                target.writestr(part, archive.read(part))
    loaded = torch.jit.load(path)  # type: ignore[no-untyped-call]
    return lambda inputs: loaded(*inputs)


def _write_onnx(G: AnyGenerator, path: Path, text: str) -> Images | None:
    """None if onnxruntime is not there to run it."""
    try:
        import onnx
        import onnxscript  # noqa: F401 (torch's exporter needs it)
    except ImportError as error:
        raise ExportError(f"writing .onnx needs the package {error.name}: {INSTALL}") from error
    names = ["z", "c", "truncation_psi"] if G.c_dim else ["z", "truncation_psi"]
    # Unoptimised: onnxscript's optimiser takes a number below its tolerance for 0 and drops every `+ 1e-8`, without which
    # normalising what is 0, or constant over an image, divides by 0. Runtimes optimise what they load.
    program = torch.onnx.export(
        _capture(G), (), input_names=names, output_names=["img"], opset_version=OPSET, verbose=False, optimize=False
    )
    assert program is not None
    model = program.model_proto
    graph = model.graph
    batch = graph.input[0].type.tensor_type.shape.dim[0].dim_param
    for value in (*graph.input, *graph.output, *graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_param = dim.dim_param.replace(batch, "N")
    for part in (*graph.input, *graph.output, *graph.value_info, *graph.node, *graph.initializer, graph, model):
        del part.metadata_props[:]  # lines and paths of the sources
    onnx.helper.set_model_props(model, {METADATA_KEY: text})
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString(deterministic=True))
    try:
        import onnxruntime
    except ImportError:
        return None
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def images(inputs: list[Tensor]) -> Tensor:
        arrays = {name: tensor.numpy() for name, tensor in zip(names, inputs, strict=True)}
        return torch.from_numpy(session.run(["img"], arrays)[0])

    return images


def _capture(G: AnyGenerator) -> torch.export.ExportedProgram:
    """The generator as a graph of torch's own operations, for any batch size."""
    module: nn.Module = _Images(G) if G.c_dim else _Unconditional(G)
    N = torch.export.Dim("N", min=1)
    inputs = _inputs(G, TRACED_BATCH, 0.5)
    shapes = tuple({0: N} if tensor.ndim else None for tensor in inputs)
    program = torch.export.export(module.eval(), tuple(inputs), dynamic_shapes=shapes, strict=True)
    table = torch.export.default_decompositions()
    table[torch.ops.ganops.upfirdn2d.default] = _upfirdn2d
    decomposed: torch.export.ExportedProgram = program.run_decompositions(table)
    return decomposed


def _upfirdn2d(
    x: Tensor,
    taps: Tensor,
    up_x: int,
    up_y: int,
    down_x: int,
    down_y: int,
    left: int,
    right: int,
    top: int,
    bottom: int,
    flip: bool,
    gain: float,
) -> Tensor:
    """The op as a depthwise convolution whose groups are channels.

    With fewer than four channels the plain op takes the pictures of a batch for channels of one, and their number could
    no longer vary: so there are four at least.
    """
    channels = x.shape[1]
    x = F.pad(x, [0, 0, 0, 0, 0, max(4 - channels, 0)])
    y = upfirdn2d_plain(x, taps, up_x, up_y, down_x, down_y, left, right, top, bottom, flip, gain)
    return y[:, :channels]


def _inputs(G: AnyGenerator, count: int, psi: float) -> list[Tensor]:
    c = [one_hot(torch.arange(count) % G.c_dim, G.c_dim)] if G.c_dim else []
    return [image_latents(0, range(count), G.z_dim), *c, torch.tensor(psi)]


def _largest_error(G: AnyGenerator, images: Images, target: Path) -> float:
    errors = []
    for count, psi in CHECKED:
        z, *c, _ = inputs = _inputs(G, count, psi)
        expected = G(z, c[0] if c else z[:, :0], psi, None, "const", None)
        try:
            found = images(inputs)
        except Exception as error:  # of a runtime, whose errors have no common class
            raise ExportError(f"{target}: cannot be run for {count} images ({_first_line(error)}).") from error
        if found.shape != expected.shape:
            raise ExportError(
                f"{target}: gives images {list(found.shape)}, expected {list(expected.shape)}. It was not kept."
            )
        if wrong := int((~torch.isfinite(found)).sum()):
            raise ExportError(
                f"{target}: for {count} images, {wrong} of {found.numel()} pixels are not finite (NaN or infinite). "
                "It was not kept."
            )
        errors.append(float((found - expected).abs().max() / expected.abs().max()))
    if max(errors) > TOLERANCE:
        raise ExportError(
            f"{target}: gives other images: off by {max(errors):.3g} of the largest pixel. It was not kept."
        )
    return max(errors)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


@contextmanager
def _quiet() -> Iterator[None]:
    """torch warns of the formats that it would rather not write; whether the result is right is measured."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
