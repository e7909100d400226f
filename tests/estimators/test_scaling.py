"""Standardisation that can be undone."""

import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from gpvi.estimators import Standardizer

NUMBERS = st.floats(-1e6, 1e6, allow_nan=False, width=32)


@given(arrays(np.float64, st.tuples(st.integers(2, 20), st.integers(1, 4)), elements=NUMBERS))
def test_maps_there_and_back(values):
    map = Standardizer.fit(values)
    scaled = map(values)
    assert np.isfinite(scaled).all() and (map.scale > 0).all()
    assert np.allclose(scaled * map.scale + map.offset, values, atol=1e-6)


def test_moments():
    values = np.random.default_rng(0).normal(5.0, [0.1, 100.0], size=(50, 2))
    scaled = Standardizer.fit(values)(values)
    assert np.allclose(scaled.mean(0), 0) and np.allclose(scaled.std(0), 1)


@pytest.mark.parametrize("value", [0.0, 0.1, 1e-300, -7e15, 1e12 / 3])
def test_constant_columns_keep_scale_one(value):
    values = np.full((1001, 1), value)
    map = Standardizer.fit(values)
    assert map.scale.tolist() == [1.0]
    assert abs(map(values)).max() <= 1e-6 * max(1.0, abs(value))


def test_small_changes_on_a_large_offset_are_no_constant():
    """Time stamps in seconds, a tenth of a millisecond apart."""
    values = 1.7e9 + 1e-4 * np.arange(100.0)[:, None]
    scaled = Standardizer.fit(values)(values)
    assert scaled.std() == pytest.approx(1.0)


@pytest.mark.parametrize("scale", [1e-100, 1e-12, 1e12, 1e100])
def test_extreme_units(scale):
    values = np.random.default_rng(0).normal(size=(30, 2))
    assert np.allclose(
        Standardizer.fit(scale * values)(scale * values), Standardizer.fit(values)(values)
    )


def test_common_scale():
    values = np.random.default_rng(0).normal(0.0, [1.0, 3.0, 0.0], size=(40, 3))
    map = Standardizer.fit(values, common_scale=True)
    assert len(set(map.scale.tolist())) == 1
    gaps = np.linalg.norm(values[:, None] - values, axis=-1) / map.scale[0]
    scaled = map(values)
    assert np.allclose(np.linalg.norm(scaled[:, None] - scaled, axis=-1), gaps)
    flat = Standardizer.fit(np.ones((5, 2)), common_scale=True)
    assert flat.scale.tolist() == [1.0, 1.0]


def test_vector_and_identity():
    y = np.array([1.0, 2.0, 6.0])
    map = Standardizer.fit(y)
    assert map.offset == 3.0 and map(y).std() == pytest.approx(1.0)
    same = Standardizer.identity()
    assert same(y).tolist() == y.tolist() and float(np.log(same.scale)) == 0.0


def test_pickle():
    map = pickle.loads(pickle.dumps(Standardizer.fit(np.eye(3))))
    assert map(np.eye(3)).shape == (3, 3)


def test_weights_are_repeated_rows():
    generator = np.random.default_rng(0)
    values, weights = generator.normal(size=(20, 2)), generator.integers(1, 5, size=20)
    weighted = Standardizer.fit(values, weights=weights)
    repeated = Standardizer.fit(np.repeat(values, weights, axis=0))
    assert np.allclose(weighted.offset, repeated.offset, rtol=1e-12)
    assert np.allclose(weighted.scale, repeated.scale, rtol=1e-12)


def test_skipped_columns_stay_and_do_not_enter_a_common_scale():
    values = np.random.default_rng(0).normal(5.0, [1.0, 1e6, 3.0], size=(40, 3))
    skip = np.array([False, True, False])
    map = Standardizer.fit(values, skip=skip)
    assert np.array_equal(map(values)[:, 1], values[:, 1])
    common = Standardizer.fit(values, skip=skip, common_scale=True)
    assert np.array_equal(common(values)[:, 1], values[:, 1])
    assert common.scale[0] == common.scale[2] < 10.0
    assert np.allclose(common.inverse(common(values)), values)
