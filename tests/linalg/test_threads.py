"""BLAS threads: small work runs on one, large work gets what the caller had, and all is put back."""

from collections.abc import Iterator

import pytest
from threadpoolctl import ThreadpoolController, threadpool_limits

from gpvi.linalg import blas_threads_for, serial_blas

SMALL, LARGE = 1e3, 1e12


def threads() -> set[int]:
    pools = ThreadpoolController().select(user_api="blas")
    return {library["num_threads"] for library in pools.info()}


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    with threadpool_limits(2, user_api="blas"):
        yield


def test_small_work_runs_on_one_thread_and_gives_the_others_back() -> None:
    with blas_threads_for(SMALL):
        assert threads() == {1}
    assert threads() == {2}


def test_large_work_keeps_its_threads() -> None:
    with blas_threads_for(LARGE):
        assert threads() == {2}


def test_large_work_inside_a_serial_block_takes_its_threads_back() -> None:
    with serial_blas():
        assert threads() == {1}
        with blas_threads_for(SMALL):
            assert threads() == {1}
        with blas_threads_for(LARGE):
            assert threads() == {2}
        assert threads() == {1}
    assert threads() == {2}


def test_an_error_inside_gives_the_threads_back() -> None:
    with pytest.raises(KeyError), serial_blas():
        raise KeyError
    assert threads() == {2}
    with blas_threads_for(LARGE):
        assert threads() == {2}
