"""The Inception Score against closed forms and an explicit loop."""

import math

import numpy as np
import pytest

from ganops.metrics.score import inception_score


def test_equals_a_loop() -> None:
    logits = np.random.default_rng(0).standard_normal((53, 7)).astype(np.float32) * 3
    scores = []
    for part in range(10):
        rows = [[math.exp(float(v)) for v in row] for row in logits[part * 53 // 10 : (part + 1) * 53 // 10]]
        p = [[v / sum(row) for v in row] for row in rows]
        mean = [sum(row[k] for row in p) / len(p) for k in range(7)]
        scores.append(math.exp(sum(v * math.log(v / q) for row in p for v, q in zip(row, mean, strict=True)) / len(p)))
    assert inception_score(logits) == pytest.approx((np.mean(scores), np.std(scores)), rel=1e-12)


def test_sure_and_varied_is_the_number_of_classes() -> None:
    logits = np.tile(np.eye(5) * 1e4, (20, 1)) + 1e6  # exp of either would overflow, exp(-1e4) is 0
    assert inception_score(logits, splits=4) == pytest.approx((5, 0), abs=1e-9)


def test_sure_of_one_class_and_unsure_of_all_are_one() -> None:
    assert inception_score(np.tile([3e3, 0, 0, 0], (30, 1))) == pytest.approx((1, 0), abs=1e-12)
    assert inception_score(np.tile([1.0, 2.0, 3.0, 4.0], (30, 1))) == pytest.approx((1, 0), abs=1e-12)


def test_parts_are_contiguous() -> None:
    """Each of two parts is sure of one class of its own: 1 within parts, 2 over both."""
    logits = np.repeat(np.eye(2) * 1e3, 10, axis=0)
    assert inception_score(logits, splits=2) == pytest.approx((1, 0), abs=1e-12)
    assert inception_score(logits, splits=1) == pytest.approx((2, 0), abs=1e-12)


@pytest.mark.parametrize(("shape", "splits"), [((9, 4), 10), ((9,), 3), ((9, 4), 0), ((9, 0), 3)])
def test_refuses_too_few(shape: tuple[int, ...], splits: int) -> None:
    with pytest.raises(ValueError, match="do not make"):
        inception_score(np.zeros(shape), splits)


def test_refuses_what_is_not_finite() -> None:
    with pytest.raises(ValueError, match="not finite"):
        inception_score(np.full((20, 3), np.inf))
