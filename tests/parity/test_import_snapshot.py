"""Imported snapshots against golden images of the code that such files come from."""

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ganops.errors import WeightsError
from ganops.networks.layers import Architecture, Precision
from ganops.networks.nvidia_snapshot import read_generator
from ganops.networks.sampling import generate_images
from ganops.networks.snapshot import load_snapshot
from ganops.networks.stylegan2_generator import Generator
from ganops.training.transfer import start_from
from tests.nvidia import dumps, flat_kwargs, nested_kwargs, network, official_tensors, snapshot, write_generator
from tests.parity.names import golden_generator, load_golden
from tests.tolerances import assert_close
from tests.unit.test_networks import latents, make_generator, seeded
from tests.unit.tiny import tiny_params, tiny_state

ROOT = Path(__file__).parents[2]
NESTINGS: dict[str, Callable[[Generator], dict[str, Any]]] = {
    "stylegan2-ada-pytorch pickle": nested_kwargs,
    "stylegan3 pickle": flat_kwargs,
}


def run_import(source: Path, target: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "stages.import_snapshot", str(source), str(target)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def write_golden(path: Path, kwargs: dict[str, Any], protocol: int) -> None:
    """The golden generator as a .pkl, its arrays under their official names."""
    _, arrays = load_golden("generator_32")
    tensors = {name[2:]: torch.from_numpy(array) for name, array in arrays.items() if name.startswith("P:")}
    path.write_bytes(dumps(snapshot(network(tensors, kwargs, {}), cur_nimg=25_000_123), protocol))


@pytest.mark.parametrize("protocol", [3, 4])
@pytest.mark.parametrize("layout", list(NESTINGS))
def test_golden_images(layout: str, protocol: int, tmp_path: Path) -> None:
    source, target = tmp_path / "network.pkl", tmp_path / "G.safetensors"
    write_golden(source, NESTINGS[layout](golden_generator(torch.float32)), protocol)
    target.write_bytes(b"an older file")
    ended = run_import(source, target)
    assert ended.returncode == 0, ended.stderr
    assert not ended.stderr
    assert ended.stdout.count("\n") == 1
    G, metadata = load_snapshot(target)
    assert metadata["kimg"] == 25000.123
    assert metadata["origin"] == {
        "sha256": hashlib.sha256(source.read_bytes()).hexdigest(),
        "format": layout,
        "network": "G_ema",
        "class_name": "Generator",
    }
    assert sorted(path.name for path in tmp_path.iterdir()) == ["G.safetensors", "network.pkl"]

    _, arrays = load_golden("generator_32")
    for suffix, dtype, tolerance in (
        ("f32", torch.float32, "golden_float32"),
        ("f64", torch.float64, "golden_float64"),
    ):
        G = G.to(dtype)
        z, c = (torch.from_numpy(arrays[name]).to(dtype) for name in "zc")
        for name, psi in (("img_const", 1.0), ("img_const_psi07", 0.7)):
            assert_close(G(z, c, psi, None, "const", None), arrays[f"{name}_{suffix}"], tolerance, name)


@pytest.mark.parametrize("layout", list(NESTINGS))
@pytest.mark.parametrize(
    ("c_dim", "architecture", "precision", "low_precision_resolutions", "conv_clamp"),
    [
        (3, "skip", "float32", 0, None),
        (0, "resnet", "float32", 0, 0.5),
        (5, "orig", "float16", 2, 256.0),
    ],
)
def test_every_argument(
    layout: str,
    c_dim: int,
    architecture: Architecture,
    precision: Precision,
    low_precision_resolutions: int,
    conv_clamp: float | None,
    tmp_path: Path,
) -> None:
    G = make_generator(
        seeded(),
        c_dim=c_dim,
        architecture=architecture,
        precision=precision,
        low_precision_resolutions=low_precision_resolutions,
        conv_clamp=conv_clamp,
    )
    G.w_avg.normal_(generator=seeded(5))
    found, metadata = read_generator(write_generator(tmp_path / "network.pkl", G, NESTINGS[layout](G)))
    assert found.arguments == G.arguments
    z, c = latents(G)
    assert torch.equal(found(z, c, 0.7, 2, "const", None), G(z, c, 0.7, 2, "const", None))
    assert metadata["class_names"] == [str(label) for label in range(c_dim)]
    assert metadata["class_counts"] == [1] * c_dim


def test_what_the_file_leaves_out_has_the_published_value(tmp_path: Path) -> None:
    G = Generator(
        z_dim=8,
        c_dim=0,
        w_dim=8,
        resolution=8,
        base_grid=(4, 4),
        img_channels=1,
        mapping_layers=8,
        mapping_lr_multiplier=0.01,
        channel_base=32768,
        channel_max=512,
        architecture="skip",
        precision="float32",
        low_precision_resolutions=0,
        conv_clamp=None,
        rng=seeded(),
    )
    sizes = {"z_dim": 8, "c_dim": 0, "w_dim": 8, "img_resolution": 8, "img_channels": 1}
    path = write_generator(tmp_path / "short.pkl", G, {**sizes, "mapping_kwargs": {}, "synthesis_kwargs": {}})
    assert read_generator(path)[0].arguments == G.arguments
    # By position, and with what is not told by arguments but by the layers.
    attributes = {
        "": {"_init_args": tuple(sizes.values()), "_init_kwargs": {"fused_modconv_default": "inference_only"}}
    }
    attributes |= {"synthesis.b8": {"use_fp16": True}, "synthesis.b4": {"use_fp16": False}}
    attributes |= {f"synthesis.b{r}.conv1": {"conv_clamp": 256} for r in (4, 8)}
    path.write_bytes(dumps(snapshot(network(official_tensors(G), {}, attributes))))
    changes = {"precision": "float16", "low_precision_resolutions": 1, "conv_clamp": 256.0}
    assert read_generator(path)[0].arguments == G.arguments | changes


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("activation", "relu", "activation='relu'"),
        ("resample_filter", [1, 2, 1], r"resample_filter=\[1, 2, 1\]"),
        ("use_noise", False, "use_noise=False"),
        ("kernel_size", 1, "kernel_size=1"),
        ("architecture", "progressive", "architecture='progressive'"),
        ("embed_features", 99, "embed_features=99"),
        ("layer_features", 99, "layer_features=99"),
        ("num_critical", 2, "num_critical=2"),
        ("img_resolution", 48, "img_resolution=48"),
        ("img_resolution", [16, 8], r"img_resolution=\[16, 8\]"),
        ("channel_max", True, "channel_max=True"),
        ("channel_base", 8, "img_resolution=16"),
        ("num_layers", 10**9, "num_layers=1000000000"),
        ("z_dim", 0, "z_dim=0"),
        ("z_dim", None, "z_dim=None"),
        ("lr_multiplier", float("nan"), "lr_multiplier=nan"),
        ("conv_clamp", -1, "conv_clamp=-1"),
        ("num_fp16_res", -1, "num_fp16_res=-1"),
        ("mapping_kwargs", 3, "mapping_kwargs=3"),
        (7, 8, "7=8"),
    ],
)
def test_refused_arguments(name: Any, value: Any, shown: str, tmp_path: Path) -> None:
    G = make_generator(None)
    kwargs = flat_kwargs(G)
    if name in kwargs["mapping_kwargs"]:
        kwargs["mapping_kwargs"][name] = value
    else:
        kwargs[name] = value
    path = write_generator(tmp_path / "network.pkl", G, kwargs)
    with pytest.raises(WeightsError, match=rf"network\.pkl: G_ema was constructed with {shown}"):
        read_generator(path)


def test_contradicting_arguments(tmp_path: Path) -> None:
    G = make_generator(None)
    path = write_generator(tmp_path / "network.pkl", G, nested_kwargs(G) | {"channel_max": 8})
    with pytest.raises(WeightsError, match="channel_max=8 and 16 at once|channel_max=16 and 8 at once"):
        read_generator(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda t: t.pop("synthesis.b8.conv0.bias"),
            r"lacks the tensor that is synthesis\.blocks\.8x8\.conv0_up\.bias here",
        ),
        (lambda t: t.pop("mapping.w_avg"), "lacks the tensor that is w_avg here"),
        (lambda t: t.update({"mapping.fc2.weight": torch.zeros(12, 12)}), r"has a tensor mapping\.fc2\.weight, which"),
        (lambda t: t.update({"synthesis.b8.skip.weight": torch.zeros(1)}), r"has a tensor synthesis\.b8\.skip\.weight"),
        (lambda t: t.update({"synthesis.b8.conv2.resample_filter": torch.ones(4, 4)}), "is not the filter"),
        (
            lambda t: t.update({"mapping.fc0.weight": torch.zeros(12, 9)}),
            r"mapping\.fc0\.weight is \[12, 9\] instead of",
        ),
        (
            lambda t: t.update({"synthesis.b8.conv0.resample_filter": torch.ones(4, 4) / 16}),
            "conv0.resample_filter is not",
        ),
        (lambda t: t.update({"synthesis.b8.conv0.resample_filter": torch.ones(4)}), "conv0.resample_filter is not"),
        (lambda t: t.update({"synthesis.input.weight": torch.ones(4)}), "only StyleGAN2 is read"),
    ],
)
def test_every_tensor_is_accounted_for(change: Any, message: str, tmp_path: Path) -> None:
    G = make_generator(seeded())
    tensors = official_tensors(G)
    change(tensors)
    path = tmp_path / "network.pkl"
    path.write_bytes(dumps(snapshot(network(tensors, nested_kwargs(G), {}))))
    with pytest.raises(WeightsError, match=message):
        read_generator(path)


def test_memory_formats(tmp_path: Path) -> None:
    """Layers in low precision store their weights as channels_last."""
    G = make_generator(seeded(), architecture="resnet")
    tensors = official_tensors(G)
    name = "synthesis.b16.conv0.weight"
    tensors[name] = tensors[name].to(memory_format=torch.channels_last)
    path = tmp_path / "network.pkl"
    path.write_bytes(dumps(snapshot(network(tensors, nested_kwargs(G), {}))))
    found = read_generator(path)[0].state_dict()
    assert all(torch.equal(tensor, found[name]) for name, tensor in G.state_dict().items())


def test_equal_files_give_equal_bytes(tmp_path: Path) -> None:
    G = make_generator(seeded(), c_dim=2)
    source = write_generator(tmp_path / "network.pkl", G, nested_kwargs(G))
    digests = set()
    for name in ("a.safetensors", "b.safetensors"):
        assert run_import(source, tmp_path / name).returncode == 0
        digests.add(hashlib.sha256((tmp_path / name).read_bytes()).hexdigest())
    assert len(digests) == 1


def test_an_imported_file_is_a_snapshot_like_others(tmp_path: Path) -> None:
    """The keys that the stage sample reads, images of it, and training that starts from it."""
    state = tiny_state(tiny_params())
    source = write_generator(tmp_path / "network.pkl", state.G_ema, flat_kwargs(state.G_ema))
    target = tmp_path / "G.safetensors"
    assert run_import(source, target).returncode == 0
    G, metadata = load_snapshot(target)
    json.dumps(metadata, allow_nan=False)
    assert {"kimg", "run", "data_digest", "accepted_code", "retries", "init_from", "class_names"} < set(metadata)
    assert metadata["kimg"] is None
    images = next(generate_images(G, 0, range(3), torch.zeros(3, dtype=torch.int64), 1.0, None, "random", 3))
    assert images.shape == (3, 1, 8, 8)

    other = tiny_state(tiny_params(seed=1))
    assert start_from(target, other, tiny_params()) == {
        "networks": ["G", "G_ema"],
        "kimg": None,
        "run": None,
        "data_digest": "unknown",
    }
    assert all(torch.equal(tensor, other.G.state_dict()[name]) for name, tensor in G.state_dict().items())
