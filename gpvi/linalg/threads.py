"""How many threads SciPy's BLAS gets, and when.

SciPy's BLAS and torch's OpenMP have a thread pool each, and both wait by spinning: on problems of
milliseconds they get in each other's way and cost far more than a second thread saves. An optimiser
therefore runs with one BLAS thread, and an operation that is large enough takes the others back for its
own duration. Torch's threads are left alone.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache

from threadpoolctl import ThreadpoolController

__all__ = ["blas_threads_for", "serial_blas"]

# Operations below so many multiplications run on one thread.
_SERIAL_WORK = 2e8

# Threads that BLAS had outside the enclosing `serial_blas`, if there is one.
_outer: ContextVar[int | None] = ContextVar("outer BLAS threads", default=None)


@contextmanager
def serial_blas() -> Iterator[None]:
    """Run a block with one BLAS thread, but for the large operations in it.

    Examples
    --------
    >>> with serial_blas():
    ...     pass
    """
    pools = _pools()
    threads = max((library["num_threads"] for library in pools.info()), default=1)
    token = _outer.set(threads)
    try:
        with pools.limit(limits=1):
            yield
    finally:
        _outer.reset(token)


@contextmanager
def blas_threads_for(work: float) -> Iterator[None]:
    """Run an operation with one BLAS thread if it is small, else with all that the caller had.

    Parameters
    ----------
    work : float
        Multiplications, roughly.

    Examples
    --------
    >>> with blas_threads_for(1e3):
    ...     pass
    """
    outer = _outer.get()
    if (work >= _SERIAL_WORK) == (outer is None):
        yield
    else:
        with _pools().limit(limits=1 if outer is None else outer):
            yield


@cache
def _pools() -> ThreadpoolController:
    """The loaded BLAS libraries; looking them up takes milliseconds, so once."""
    return ThreadpoolController().select(user_api="blas")
