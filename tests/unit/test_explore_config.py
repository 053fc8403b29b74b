"""Sections of the tools: seeds, and mistakes that end in one line that names the key; DVC knows nothing of them."""

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

from ganops.config import load_params
from ganops.config_tools import TOOLS, expand_seeds
from ganops.errors import ParamsError
from tests.unit.tiny_model import ROOT

VALUES = yaml.safe_load((ROOT / "params.yaml").read_text())


@pytest.mark.parametrize(
    ("seeds", "expected"),
    [
        (7, [7]),
        ("0-3", [0, 1, 2, 3]),
        ("5", [5]),
        (" 1, 5,8 - 10 ", [1, 5, 8, 9, 10]),
        ("4-4", [4]),
        ([3, 1], [3, 1]),
    ],
)
def test_seeds(seeds: int | str | list[int], expected: list[int]) -> None:
    assert expand_seeds(seeds) == expected


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("images.seeds", "0..3", r"images\.seeds='0\.\.3': '0\.\.3' is neither a number nor a range"),
        ("images.seeds", "", "neither a number nor a range"),
        ("images.seeds", "-4", "neither a number nor a range"),
        ("images.seeds", "٣", "neither a number nor a range"),
        ("images.seeds", "3-0", "the range 3-0 runs down"),
        ("images.seeds", "0-5,3", "a seed stands twice"),
        ("images.seeds", [], "there is no seed"),
        ("images.seeds", "0-999999999999", "more than 1,000,000 seeds"),
        ("images.seeds", "9" * 19, "neither a number nor a range"),
        ("images.seeds", [3, -1], r"images\.seeds=\[3, -1\]: a seed is below 0"),
        ("images.seeds", -1, r"images\.seeds=-1: a seed is below 0"),
        ("images.label", -1, r"images\.label=-1: input should be greater than or equal to 0"),
        ("images.label", True, r"images\.label=True"),
        ("images.seeds", 1.5, r"images\.seeds=1\.5"),
        ("images.truncation_psi", [0.5, 0.5], "one value twice"),
        ("images.truncation_psi", [3.0], r"images\.truncation_psi=3\.0"),
        ("images.truncation_psi", [float("nan")], r"images\.truncation_psi=nan"),
        ("images.truncation_layers", [3, 3], r"images\.truncation_layers=\[3, 3\] holds no layer"),
        ("images.truncation_layers", [3], r"images\.truncation_layers="),
        ("images.noise_mode", "fixed", r"images\.noise_mode='fixed'"),
        ("style_mixing.column_layers", [4, 2], r"style_mixing\.column_layers=\[4, 2\] holds no layer"),
        ("style_mixing.row_seeds", "a", r"style_mixing\.row_seeds='a'"),
        ("style_mixing.row_seed", "1", r"Did you mean style_mixing\.row_seeds\?"),
        ("interpolate.seeds", "0-4", "interpolate.seeds are 5, but interpolate.columns=4.*Use e.g. 8"),
        ("interpolate.seeds", "0-3", "interpolate.seeds are 4.*two keyframes or more.*Use e.g. 8"),
        ("interpolate.label", [1, 2], "interpolate.label has 2 classes, but there are 3 keyframes"),
        ("interpolate.sweep_psi", [1.0], r"interpolate\.sweep_psi="),
        ("interpolate.fps", 0, r"interpolate\.fps=0"),
        ("project.space", "z", r"project\.space='z'"),
        ("project.w_noise_ramp", 0, r"project\.w_noise_ramp=0"),
        ("project.learning_rate", 1e300, r"project\.learning_rate=1e\+300: input should be less than or equal to 100"),
        ("project.learning_rate", float("inf"), r"project\.learning_rate=inf"),
        ("directions.layers", [2, 2], r"directions\.layers=\[2, 2\] holds no layer"),
        ("directions.strengths", [], r"directions\.strengths="),
    ],
)
def test_mistakes_name_the_key(tmp_path: Path, name: str, value: Any, message: str) -> None:
    values = copy.deepcopy(VALUES)
    section, key = name.split(".")
    values[section][key] = value
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(values))
    with pytest.raises(ParamsError, match=message) as error:
        load_params(tmp_path / "params.yaml")
    assert "\n" not in str(error.value)


def test_a_sweep_has_no_keyframes(tmp_path: Path) -> None:
    values = copy.deepcopy(VALUES)
    values["interpolate"] |= {"kind": "truncation", "seeds": "0-4", "label": [1, 2, 3]}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(values))
    with pytest.raises(ParamsError, match="kind: truncation has no keyframes"):
        load_params(tmp_path / "params.yaml")
    values["interpolate"]["label"] = 1
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(values))
    assert load_params(tmp_path / "params.yaml").interpolate.seeds == "0-4"


def test_no_stage_depends_on_tools() -> None:
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    named = {name.split(".")[0] for stage in stages.values() for name in stage.get("params", [])}
    assert named
    assert not named & set(TOOLS)
    assert set(TOOLS) <= set(VALUES)
