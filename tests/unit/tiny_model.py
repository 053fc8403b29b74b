"""A snapshot that is as small as it gets, for tests of the tools: random weights, visible noise, w_avg as trained."""

from pathlib import Path
from typing import Any

import torch

from ganops.config import Params, load_params
from ganops.networks.families import GENERATORS, AnyGenerator
from ganops.networks.snapshot import save_snapshot
from ganops.networks.stylegan2_generator import Generator

ROOT = Path(__file__).parents[2]
CLASS_NAMES = ("cat", "dog", "7")


def tiny_generator(c_dim: int = 3, resolution: int = 16, img_channels: int = 1) -> Generator:
    rng = torch.Generator().manual_seed(1)
    G = Generator(
        z_dim=8, c_dim=c_dim, w_dim=8, resolution=resolution, base_grid=(4, 4), img_channels=img_channels, mapping_layers=2,
        mapping_lr_multiplier=0.01, channel_base=64, channel_max=8, architecture="skip", precision="float32",
        low_precision_resolutions=0, conv_clamp=None, rng=rng,
    )  # fmt: skip
    with torch.no_grad():
        for name, parameter in G.named_parameters():
            if name.endswith("noise_strength"):
                parameter.fill_(0.2)
        z = torch.randn(200, 8, generator=rng)
        c = torch.eye(c_dim)[torch.randint(max(c_dim, 1), [200], generator=rng)] if c_dim else torch.zeros(200, 0)
        G.w_avg.copy_(G.mapping(z, c).mean(dim=0))
    return G.eval().requires_grad_(False)


def growing_generator(family: str, lod: float) -> AnyGenerator:
    """Of 16x16 px when grown; not conditional."""
    G = GENERATORS[family](  # type: ignore[call-arg]
        z_dim=8, c_dim=0, w_dim=8, resolution=16, base_grid=(4, 4), img_channels=1, mapping_layers=1,
        mapping_lr_multiplier=0.01, channel_base=64, channel_max=8, precision="float32", low_precision_resolutions=0,
        conv_clamp=None, lod=lod, rng=torch.Generator().manual_seed(0),
    )  # fmt: skip
    return G.eval().requires_grad_(False)


def write_snapshot(path: Path, c_dim: int = 3, resolution: int = 16, img_channels: int = 1) -> Path:
    G = tiny_generator(c_dim, resolution, img_channels)
    save_snapshot(path, G, {"class_names": list(CLASS_NAMES[:c_dim]), "class_counts": [5, 3, 2][:c_dim]})
    return path


def tool_params(**changes: Any) -> Params:
    """tests/pipeline/params.yaml with changes: tool_params(images__label="cat")."""
    values = load_params(ROOT / "tests" / "pipeline" / "params.yaml").model_dump()
    for name, value in changes.items():
        section, key = name.split("__")
        assert key in values[section], name
        values[section][key] = value
    return Params.model_validate(values)
