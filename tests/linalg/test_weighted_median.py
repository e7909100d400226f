"""Weighted medians against repeated values."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from gpvi.linalg import weighted_median


@given(st.lists(st.tuples(st.integers(-5, 5), st.integers(0, 4)), min_size=1, max_size=12))
def test_integer_weights_are_repeated_values(pairs):
    values = torch.tensor([float(value) for value, _ in pairs])
    times = torch.tensor([weight for _, weight in pairs])
    expected = values.repeat_interleave(times)
    actual = weighted_median(values, times.float())
    if len(expected):
        assert actual == expected.median()
    else:
        assert actual.isnan()


def test_batches_and_gaps():
    values = torch.tensor([[1.0, torch.nan, 3.0], [torch.nan] * 3], dtype=torch.float64)
    median = weighted_median(values, torch.tensor([1.0, 9.0, 2.0]))
    assert median.dtype == torch.float64
    assert median[0] == 3.0 and median[1].isnan()
    assert weighted_median(values)[0] == 1.0
