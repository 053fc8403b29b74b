"""Names of the official code's parameters in ours, and golden files as networks."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ganops.networks.stylegan2_discriminator import Discriminator
from ganops.networks.stylegan2_generator import Generator

GOLDEN = Path(__file__).parent.parent / "golden"


def load_golden(name: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The description and the arrays of one golden file."""
    with np.load(GOLDEN / f"{name}.npz", allow_pickle=False) as arrays:
        return json.loads((GOLDEN / f"{name}.json").read_text()), dict(arrays)


def generator_name(official: str) -> str:
    """E.g. synthesis.b8.conv0.affine.weight -> synthesis.blocks.8x8.conv0_up.affine.weight."""
    if official == "mapping.w_avg":
        return "w_avg"
    name = re.sub(r"^mapping\.fc(\d+)\.", r"mapping.layers.\1.", official)
    name = re.sub(r"^synthesis\.b(\d+)\.", r"synthesis.blocks.\1x\1.", name)
    name = name.replace(".conv0.", ".conv0_up.").replace(".torgb.", ".to_rgb.")
    return name.replace("4x4.conv1.", "4x4.conv.") if ".4x4." in name else name


def discriminator_name(official: str) -> str:
    """E.g. b32.conv1.weight -> blocks.32x32.conv1_down.weight."""
    name = official.replace("b4.out.", "output.").replace("b4.fc.", "head.dense0.").replace("b4.conv.", "head.conv.")
    name = re.sub(r"^b(\d+)\.", r"blocks.\1x\1.", name)
    return name.replace(".conv1.", ".conv1_down.").replace(".fromrgb.", ".from_rgb.")


def golden_generator(dtype: torch.dtype) -> Generator:
    """The generator of generator_32, every weight and buffer loaded by name."""
    network = Generator(
        z_dim=64,
        c_dim=0,
        w_dim=64,
        resolution=32,
        base_grid=(4, 4),
        img_channels=3,
        mapping_layers=8,
        mapping_lr_multiplier=0.01,
        channel_base=1024,
        channel_max=32,
        architecture="skip",
        precision="float32",
        low_precision_resolutions=0,
        conv_clamp=None,
        rng=None,
    )
    _, arrays = load_golden("generator_32")
    network.load_state_dict(_rename(arrays, generator_name))
    return network.to(dtype)


def golden_discriminator(dtype: torch.dtype) -> Discriminator:
    """The discriminator of discriminator_32, every weight loaded by name."""
    network = Discriminator(
        c_dim=0,
        resolution=32,
        base_grid=(4, 4),
        img_channels=3,
        mapping_layers=8,
        mapping_lr_multiplier=0.01,
        channel_base=1024,
        channel_max=32,
        architecture="resnet",
        mbstd_group_size=4,
        mbstd_num_channels=1,
        precision="float32",
        low_precision_resolutions=0,
        conv_clamp=None,
        rng=None,
    )
    _, arrays = load_golden("discriminator_32")
    network.load_state_dict(_rename(arrays, discriminator_name))
    return network.to(dtype)


def _rename(arrays: dict[str, np.ndarray], rename: Any) -> dict[str, torch.Tensor]:
    # Resampling filters are constants, not part of our state; test_ops compares them.
    return {
        rename(key[2:]): torch.from_numpy(array)
        for key, array in arrays.items()
        if key.startswith("P:") and not key.endswith("resample_filter")
    }
