"""Names of metrics: what may not be compared is called differently; and presets that params.yaml must fit."""

from itertools import product
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from ganops.config import load_params
from ganops.errors import ParamsError
from ganops.protocols import METRICS, PRESETS, TRAIN_METRICS, MetricName, ProtocolName, TrainMetricName, metric_name

ROOT = Path(__file__).parents[2]


def test_lists_and_types_agree() -> None:
    assert get_args(MetricName) == METRICS
    assert get_args(TrainMetricName) == TRAIN_METRICS
    assert get_args(ProtocolName) == ("clean", "legacy", "none", *PRESETS)


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (("distance", "clean", "inception", "float32"), "fid_clean"),
        (("distance", "legacy", "inception", "float32"), "fid_legacy"),
        (("distance", "fid50k_full", "inception", "float32"), "fid50k_full"),
        (("kid", "fid50k_full", "inception", "float32"), "kid50k_full"),
        (("kid", "clean", "inception", "bfloat16"), "kid_clean_bf16"),
        (("inception_score", "clean", "inception", "float32"), "is_clean"),
        (("precision", "fid5k", "inception", "float32"), "precision_inception_legacy"),
        (("distance", "clean", "efflite0", "float32"), "fd_efflite0"),
        (("distance", "none", "net", "float32"), "fd_net"),
        (("kid", "clean", "efflite0", "bfloat16"), "kd_efflite0_bf16"),
        (("memorised", "clean", "efflite0", "float32"), "memorised_efflite0"),
    ],
)
def test_names(arguments: tuple[str, str, str, str], name: str) -> None:
    assert metric_name(*arguments) == name


def test_no_two_kinds_of_number_share_a_name() -> None:
    kinds = [
        (metric, protocol, suffix, precision)
        for metric, protocol, suffix, precision in product(
            ("distance", "kid"), ("clean", "legacy", *PRESETS), ("inception",), ("float32", "bfloat16")
        )
    ]
    names = [metric_name(*kind) for kind in kinds]
    assert len(set(names)) == len(names)
    others = {metric_name(metric, "none", "net", "float32") for metric in METRICS}
    assert len(others) == len(METRICS)
    assert not any(name.startswith("fid") for name in others)


@pytest.mark.parametrize("name", ["efficientnet.pt", "inception.jit", "Inception-2015.pth"])
def test_a_file_may_be_called_like_a_network(tmp_path: Path, name: str) -> None:
    values: dict[str, Any] = yaml.safe_load((ROOT / "params.yaml").read_text())
    values["stats"]["extractor"], values["fid"]["protocol"] = name, "none"
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(values))
    assert load_params(tmp_path / "params.yaml").stats.extractor == name


@pytest.mark.parametrize("name", PRESETS)
def test_each_preset_can_be_met_and_is_refused_otherwise(tmp_path: Path, name: str) -> None:
    """The message names a key and its value; setting what it says, again and again, ends in a file that is accepted."""
    values: dict[str, Any] = yaml.safe_load((ROOT / "params.yaml").read_text())
    values["fid"]["protocol"], values["sample"]["count"] = name, 50000
    path = tmp_path / "params.yaml"
    for _ in range(9):
        path.write_text(yaml.safe_dump(values))
        try:
            load_params(path)
            break
        except ParamsError as error:
            assert f"fid.protocol={name} is measured with" in str(error)  # noqa: PT017
            key, value = str(error).split("Set ")[1].split(", or")[0].split(": ")
            section, entry = key.split(".")
            values[section][entry] = yaml.safe_load(value)
    params = load_params(path)
    assert (params.fid.num_fake, params.stats.ddof) == (PRESETS[name].num_fake, PRESETS[name].ddof)
    assert params.stats.extractor == "inception-2015"
