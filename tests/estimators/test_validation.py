"""The checks behind the estimators' refusals, one by one."""

from typing import Any

import numpy as np
import pytest
import torch

from gpvi.estimators.targets import target_values
from gpvi.estimators.validation import (
    check_choice,
    check_device,
    check_finite_inputs,
    check_flag,
    check_integer,
    check_length,
    check_levels,
    check_number,
    check_seed,
    own_errors,
    row_values,
)
from gpvi.exceptions import InputError, InputTypeError, UnsupportedError


class TestOwnErrors:
    @pytest.mark.parametrize(
        ("raised", "error"),
        [(ValueError("is odd:\n[1 2]"), InputError), (TypeError("is odd"), InputTypeError)],
    )
    def test_one_sentence(self, raised: Exception, error: type[Exception]) -> None:
        with pytest.raises(error) as caught, own_errors("X of A"):
            raise raised
        assert type(caught.value) is error and caught.value.__cause__ is raised
        assert str(caught.value) == "X of A cannot be used: is odd."

    def test_lists_of_names_are_kept(self) -> None:
        text = "The feature names should match those that were passed during fit.\n- a\n- b"
        with pytest.raises(InputError) as caught, own_errors("X of A"):
            raise ValueError(text)
        assert str(caught.value) == text

    def test_own_and_other_errors_pass(self) -> None:
        for error in (UnsupportedError("ours."), KeyboardInterrupt(), MemoryError()):
            with pytest.raises(type(error)) as caught, own_errors("X of A"):
                raise error
            assert caught.value is error


def test_choices_compare_types() -> None:
    check_choice("option", "a", ("a", None))
    check_choice("option", None, ("a", None))
    for value in ("b", np.array(["a"]), ["a"], 0, float("nan")):
        with pytest.raises(InputError, match=r"option is .* must be one of 'a', None"):
            check_choice("option", value, ("a", None))


def test_integers() -> None:
    assert check_integer("option", np.int8(3), 3) == 3
    assert type(check_integer("option", np.int8(3), 3)) is int
    for value in (2, 3.0, True, "3", None, np.nan, [3]):
        with pytest.raises(InputError, match=r"option is .* integer of at least 3"):
            check_integer("option", value, 3)


def test_flags() -> None:
    for value in (True, False, np.True_, 0, 1):
        check_flag("option", value)
    for other in (2, "yes", None, 1.0, [True]):
        with pytest.raises(InputError, match=r"option is .*; it must be True or False"):
            check_flag("option", other)


def test_numbers() -> None:
    assert check_number("option", np.float32(0.5), 0.0, 1.0) == 0.5
    for value in (0.0, 1.0, -1, np.nan, np.inf, "0.5", None, True, 1j, [0.5]):
        with pytest.raises(InputError, match=r"option is .* strictly between 0 and 1"):
            check_number("option", value, 0.0, 1.0)


def test_levels() -> None:
    assert check_levels((0.1, np.float64(0.9))) == [0.1, 0.9]
    assert check_levels(np.array([0.5])) == [0.5]
    for value in (0.5, "half", [], None, {0.5}):
        with pytest.raises(InputError, match=r"levels is .*; pass a sequence"):
            check_levels(value)
    for bad in ([0.0], [0.5, 1.0], [np.nan], ["a"]):
        with pytest.raises(InputError, match="a level of the quantiles is"):
            check_levels(bad)


def test_seeds() -> None:
    assert check_seed(3) == check_seed(3) != check_seed(4)
    state = np.random.RandomState(0)
    assert check_seed(state) != check_seed(state)
    assert 0 <= check_seed(None) < 2**31
    for value in ("zero", -1, 2**40, 1.5, np.random.default_rng(0)):
        with pytest.raises(InputError, match=r"random_state is .*; pass an integer from 0"):
            check_seed(value)


def test_devices() -> None:
    assert check_device("cpu") == check_device(torch.device("cpu")) == torch.device("cpu")
    for value in ("abacus", "cuda:99", None, 1.5):
        with pytest.raises(InputError, match=r"device is .*, which torch cannot use here"):
            check_device(value)


def test_finite_inputs() -> None:
    X = np.zeros((3, 2))
    check_finite_inputs(X, "A", None)
    X[2, 1] = np.nan
    with pytest.raises(InputError, match=r"X of A holds 1 .*\(NaN\) in row 2, column 1;"):
        check_finite_inputs(X, "A", None)
    with pytest.raises(InputError, match="column 'height'"):
        check_finite_inputs(X, "A", np.array(["width", "height"]))


class TestTargets:
    def test_copies(self) -> None:
        y = np.array([1.0, 2.0])
        values = target_values(y, 2, "A", False)
        y[:] = 0.0
        assert values.tolist() == [1.0, 2.0] and values.dtype == np.float64

    @pytest.mark.parametrize("y", [[1, 2], [True, False], np.array([1, 2], dtype=object)])
    def test_numbers_of_any_type(self, y: Any) -> None:
        assert target_values(y, 2, "A", False).dtype == np.float64

    def test_missing(self) -> None:
        y = [1.0, None, np.nan]
        with pytest.raises(InputError, match=r"2 NaN value\(s\), the first in row 1"):
            target_values(y, 3, "A", False)
        assert np.isnan(target_values(y, 3, "A", True)).tolist() == [False, True, True]
        with pytest.raises(InputError, match="no target at all: all 2 values are NaN"):
            target_values([np.nan, np.nan], 2, "A", True)

    def test_lengths(self) -> None:
        check_length(np.zeros(3), 3, "A")
        with pytest.raises(InputError, match="y of A has 3 values for 4 rows of X"):
            check_length(np.zeros(3), 4, "A")


class TestRowValues:
    def test_none_numbers_and_vectors(self) -> None:
        assert row_values(None, 3, "w", "A", positive=False) is None
        found = row_values(2, 3, "w", "A", positive=True)
        assert found is not None and found.tolist() == [2.0, 2.0, 2.0]
        values = np.array([0, 1, 2])
        found = row_values(values, 3, "w", "A", positive=False)
        assert found is not None and found.dtype == np.float64
        values[:] = 7
        assert found.tolist() == [0.0, 1.0, 2.0]

    @pytest.mark.parametrize("bad", [[0.0, 1.0], [-1.0, 1.0], [np.inf, 1.0], [np.nan, 1.0]])
    def test_range(self, bad: list[float]) -> None:
        with pytest.raises(
            InputError, match=r"w of A must be finite and positive, got .* in row 0"
        ):
            row_values(bad, 2, "w", "A", positive=True)

    @pytest.mark.parametrize("bad", [[1.0], [[1.0, 2.0]], "ab", [1j, 2.0], [[1.0], [1.0, 2.0]]])
    def test_kind(self, bad: Any) -> None:
        with pytest.raises(InputError, match="w of A"):
            row_values(bad, 2, "w", "A", positive=False)
