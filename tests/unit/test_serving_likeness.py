"""Two answers to one request, compared."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from orchestrator.serving.observe.likeness import Likeness, likeness, top_classes
from orchestrator.serving.protocol.tensors import Tensor, from_array

NAN, INF = float("nan"), float("inf")


def floats(*values: float, dtype: Any = np.float32, shape: tuple[int, ...] = (1, -1), name: str = "y") -> Tensor:
    return from_array(name, np.asarray(values, dtype).reshape(shape))


def compare(stable: Tensor, canary: Tensor, rtol: float = 1e-3, atol: float = 1e-3) -> Likeness:
    return likeness([stable], [canary], rtol, atol)


@given(arrays.arrays(np.float32, (3, 4)), arrays.arrays(np.float32, (3, 4)), st.sampled_from([0.0, 1e-3, 0.5]))
def test_as_numpy_says(stable: Any, canary: Any, tolerance: float) -> None:
    found = compare(from_array("y", stable), from_array("y", canary), tolerance, tolerance)
    with np.errstate(all="ignore"):
        assert found.agree == np.allclose(canary, stable, tolerance, tolerance, equal_nan=True)
    assert found.nonfinite == bool((np.isfinite(stable) & ~np.isfinite(canary)).any())
    assert np.isfinite(found.max_abs)
    assert not found.misfit


def test_the_same_is_alike_whatever_it_holds() -> None:
    odd = floats(NAN, INF, -INF, 1.0)
    assert compare(odd, odd) == Likeness(True, same_top=True)


def test_nan_where_a_number_was() -> None:
    assert compare(floats(1, 2), floats(NAN, 2)) == Likeness(False, same_top=False, nonfinite=True)
    assert compare(floats(NAN, 2), floats(1, 2)) == Likeness(False, same_top=False)
    assert not compare(floats(INF), floats(-INF)).agree


@pytest.mark.parametrize(
    "canary",
    [
        [floats(1, 2, 3)],
        [floats(1, 2, shape=(2, 1))],
        [floats(1, 2, name="z")],
        [floats(1, 2), floats(1, 2, name="z")],
        [],
        [floats(1, 2, dtype=np.int32)],
    ],
)
def test_another_form_is_no_match(canary: list[Tensor]) -> None:
    assert likeness([floats(1, 2)], canary, 1, 1) == Likeness(False, misfit=True)


def test_floats_of_another_width_are_compared() -> None:
    bits = (np.asarray([1.0, 2.0], np.float32).view(np.uint32) >> 16).astype("<u2")
    brain = Tensor("y", "BF16", (1, 2), bits.tobytes())
    for canary in (floats(1, 2.001, dtype=np.float16), floats(1, 2, dtype=np.float64), brain):
        assert compare(floats(1, 2), canary, 1e-2).agree
    assert not compare(floats(1, 2.5), brain).agree


def test_what_is_no_float_must_be_equal() -> None:
    texts = [from_array("t", np.asarray(rows, object)) for rows in ([b"a", b"bc"], [b"a", b"bc"], [b"ab", b"c"])]
    assert compare(texts[0], texts[1]) == Likeness(True)
    assert compare(texts[0], texts[2]) == Likeness(False)
    assert not compare(floats(1, 2, dtype=np.int64), floats(1, 3, dtype=np.int64), 1, 1).agree


def test_the_order_of_outputs_is_of_no_matter() -> None:
    one, two = floats(1, 2, name="a"), floats(5, 6, dtype=np.int32, name="b")
    assert likeness([one, two], [two, one], 0, 0) == Likeness(True, same_top=True)


def test_a_flip_may_be_within_the_tolerances() -> None:
    found = compare(floats(0.5, 0.5001), floats(0.5001, 0.5))
    assert (found.agree, found.same_top) == (True, False)
    assert found.max_abs == pytest.approx(1e-4, rel=1e-2)
    assert compare(floats(1, shape=(1, 1)), floats(2, shape=(1, 1))).same_top is None
    assert compare(floats(1, 2, 2, 1, shape=(2, 2)), floats(1, 2, 1, 2, shape=(2, 2)), 9, 9).same_top is False


def test_no_rows() -> None:
    assert compare(floats(shape=(0, 4)), floats(shape=(0, 4))) == Likeness(True, same_top=True)


def test_classes_of_the_first_rows() -> None:
    rows = np.eye(40, 5, dtype=np.float16)
    assert top_classes([floats(7, dtype=np.int32), from_array("y", rows)]) == [0, 1, 2, 3, 4] + [0] * 11
    assert top_classes([floats(*range(2000))]) == []
    assert top_classes([floats(1, shape=(1, 1))]) == []
    assert top_classes([floats(1, 3, 2, shape=(3,))]) == [1]
    assert top_classes([floats(shape=(0, 4))]) == []
