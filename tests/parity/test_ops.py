"""Operations against golden numbers: values, gradients, gradients of gradients."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ganops.ops.bias_act import ACTIVATION_GAINS, bias_act, bias_act_reference
from ganops.ops.conv2d_resample import conv2d_resample, conv2d_resample_reference
from ganops.ops.modulated_conv2d import modulated_conv2d, modulated_conv2d_reference
from ganops.ops.upfirdn2d import (
    downsample2d,
    filter2d,
    setup_filter,
    upfirdn2d,
    upfirdn2d_reference,
    upsample2d,
)
from tests.parity.names import load_golden
from tests.tolerances import assert_close

DESCRIPTION, ARRAYS = load_golden("ops")
CASES: dict[str, list[dict[str, Any]]] = DESCRIPTION["cases"]
HELPERS = {"filter2d": filter2d, "upsample2d": upsample2d, "downsample2d": downsample2d}


def tensor(key: str, grad: bool = False) -> Tensor:
    return torch.from_numpy(np.asarray(ARRAYS[key])).requires_grad_(grad)


def golden_filter(name: str | None) -> Tensor | None:
    return None if name is None else tensor(f"filter:{name}")


def by_key(name: str) -> list[Any]:
    return [pytest.param(case, id=case["key"]) for case in CASES[name]]


@pytest.mark.parametrize("case", CASES["setup_filter"], ids=lambda case: case["out"])
def test_setup_filter(case: dict[str, Any]) -> None:
    names = {"f": "taps", "normalize": "normalize", "flip_filter": "flip", "gain": "gain", "separable": "separable"}
    arguments = {names[key]: value for key, value in case["args"].items()}
    filter = setup_filter(**arguments)
    assert filter.dtype == torch.float32
    assert_close(filter, tensor(case["out"]), "filter_float32")


def test_resample_filters_of_the_networks() -> None:
    filter = setup_filter([1, 3, 3, 1])
    for name in ("generator_32", "discriminator_32"):
        _, arrays = load_golden(name)
        found = [key for key in arrays if key.endswith("resample_filter")]
        assert found
        for key in found:
            assert_close(filter, arrays[key], "filter_float32", key)


@pytest.mark.parametrize("op", [upfirdn2d, upfirdn2d_reference])
@pytest.mark.parametrize("case", by_key("upfirdn2d"))
def test_upfirdn2d(op: Any, case: dict[str, Any]) -> None:
    key = case["key"]
    x = tensor(f"{key}_x", grad=True)
    settings = {name: case[name] for name in ("up", "down", "padding", "flip_filter", "gain")}
    y = op(x, golden_filter(case["filter"]), **settings)
    assert_close(y, ARRAYS[f"{key}_y"], "golden_float64", "y")
    if f"{key}_dy" in ARRAYS:
        (dx,) = torch.autograd.grad(y, [x], tensor(f"{key}_dy"))
        assert_close(dx, ARRAYS[f"{key}_dx"], "golden_float64", "dx")


@pytest.mark.parametrize("case", by_key("helpers"))
def test_helpers(case: dict[str, Any]) -> None:
    key = case["key"]
    y = HELPERS[case["fn"]](tensor(f"{key}_x"), golden_filter(case["filter"]), **case["kwargs"])
    assert_close(y, ARRAYS[f"{key}_y"], "golden_float64")


@pytest.mark.parametrize("op", [bias_act, bias_act_reference])
@pytest.mark.parametrize("case", by_key("bias_act"))
def test_bias_act(op: Any, case: dict[str, Any]) -> None:
    key = case["key"]
    if "def_gain" in case:
        assert ACTIVATION_GAINS[case["act"]] == case["def_gain"]
    x = tensor(f"{key}_x", grad=True)
    if f"{key}_b" not in ARRAYS:
        assert_close(op(x, None, activation=case["act"], **case["kwargs"]), ARRAYS[f"{key}_y"], "golden_float64")
        return
    b = tensor(f"{key}_b", grad=True)
    y = op(x, b, dim=case["dim"], activation=case["act"], **case["kwargs"])
    assert_close(y, ARRAYS[f"{key}_y"], "golden_float64", "y")
    dy = tensor(f"{key}_dy", grad=True)
    dx, db = torch.autograd.grad(y, [x, b], dy, create_graph=True)
    assert_close(dx, ARRAYS[f"{key}_dx"], "golden_float64", "dx")
    assert_close(db, ARRAYS[f"{key}_db"], "golden_float64", "db")
    total = (dx * tensor(f"{key}_v")).sum() + (db * tensor(f"{key}_u")).sum()
    second = torch.autograd.grad(total, [dy, x, b], allow_unused=True)
    for name, gradient in zip(("dy", "x", "b"), second, strict=True):
        expected = ARRAYS[f"{key}_d2_{name}"]
        assert_close(
            np.zeros_like(expected) if gradient is None else gradient, expected, "golden_float64", f"d2_{name}"
        )


@pytest.mark.parametrize("op", [conv2d_resample, conv2d_resample_reference])
@pytest.mark.parametrize("case", by_key("conv2d_resample"))
def test_conv2d_resample(op: Any, case: dict[str, Any]) -> None:
    key = case["key"]
    x, w = tensor(f"{key}_x", grad=True), tensor(f"{key}_w", grad=True)
    settings = {name: case[name] for name in ("up", "down", "padding", "groups", "flip_weight", "flip_filter")}
    y = op(x, w, golden_filter(case["filter"]), **settings)
    assert_close(y, ARRAYS[f"{key}_y"], "golden_float64", "y")
    dx, dw = torch.autograd.grad(y, [x, w], tensor(f"{key}_dy"))
    assert_close(dx, ARRAYS[f"{key}_dx"], "golden_float64", "dx")
    assert_close(dw, ARRAYS[f"{key}_dw"], "golden_float64", "dw")


@pytest.mark.parametrize("op", [modulated_conv2d, modulated_conv2d_reference])
@pytest.mark.parametrize("case", by_key("modulated_conv2d"))
def test_modulated_conv2d(op: Any, case: dict[str, Any]) -> None:
    # Cases differ in fused_modconv, two ways to the same numbers; ours is a third.
    key = case["key"]
    x, w, s = (tensor(f"{key}_{name}", grad=True) for name in "xws")
    settings = {name: case[name] for name in ("up", "down", "padding", "demodulate", "flip_weight")}
    noise = tensor(f"{key}_noise") if case["noise"] else None
    y = op(x, w, s, noise=noise, resample_filter=golden_filter(case["resample_filter"]), **settings)
    assert_close(y, ARRAYS[f"{key}_y"], "golden_float64", "y")
    for name, gradient in zip("xws", torch.autograd.grad(y, [x, w, s], tensor(f"{key}_dy")), strict=True):
        assert_close(gradient, ARRAYS[f"{key}_d{name}"], "golden_float64", f"d{name}")
