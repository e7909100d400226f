"""Prefix and suffix products of an associative operation along time, in plain tensor operations.

The odd-even recursion needs about 2T combinations, done in 2 log2(T) calls that each take all
pairs at once: parallel in time on any device, and without a Python loop over rows.

References
----------
Blelloch, G. E. (1990). Prefix sums and their applications. CMU-CS-90-190.
Särkkä, S. & García-Fernández, Á. F. (2021). Temporal parallelization of Bayesian smoothers. IEEE
Transactions on Automatic Control 66(1).
"""

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["affine", "associative_scan", "congruence", "interleave"]

Element = tuple[Tensor, ...]

# Elements hold matrices; a vector is a matrix of one column.
_AXIS = -3


def associative_scan(
    combine: Callable[[Element, Element], Element], elements: Element, reverse: bool = False
) -> Element:
    r"""All products :math:`e_1 \circ \dots \circ e_k`, or all :math:`e_k \circ \dots \circ e_T`.

    Parameters
    ----------
    combine : callable
        ``combine(earlier, later)``, associative, over two elements with the same number of rows;
        works row by row and keeps the batch dims of every tensor.
    elements : tuple of Tensor, each of shape [*b, T, r, c]
        Time is the third axis from the end of every tensor, T at least one; a vector has one
        column. Batch dims may differ between the tensors.
    reverse : bool
        Products from row k to the last row instead of from the first row to row k.

    Returns
    -------
    tuple of Tensor, each of shape [*b, T, r, c]
        One product per row, differentiable by autograd.

    Examples
    --------
    >>> import torch
    >>> numbers = torch.arange(1.0, 6.0).view(5, 1, 1)
    >>> associative_scan(lambda a, b: (a[0] + b[0],), (numbers,))[0].flatten()
    tensor([ 1.,  3.,  6., 10., 15.])
    >>> associative_scan(lambda a, b: (a[0] + b[0],), (numbers,), reverse=True)[0].flatten()
    tensor([15., 14., 12.,  9.,  5.])
    """
    if not reverse:
        return _prefix(combine, elements)
    flipped = tuple(x.flip(_AXIS) for x in elements)
    products = _prefix(lambda later, earlier: combine(earlier, later), flipped)
    return tuple(x.flip(_AXIS) for x in products)


def affine(earlier: Element, later: Element) -> Element:
    r"""Composition of the affine maps :math:`x \mapsto \Phi x + h`, the earlier one applied first.

    Parameters
    ----------
    earlier, later : tuple of Tensor
        ``Phi`` [*b, T, d, d] and ``h`` [*s, *b, T, d, c].

    Returns
    -------
    tuple of Tensor
        ``Phi_2 Phi_1`` and ``Phi_2 h_1 + h_2``.
    """
    (first, shift), (second, move) = earlier, later
    return second @ first, second @ shift + move


def congruence(earlier: Element, later: Element) -> Element:
    r"""Composition of the maps :math:`(r, N) \mapsto (\Phi r + b, \Phi N \Phi^\top + \Gamma)`.

    These run backward in time: the later map is applied first.

    Parameters
    ----------
    earlier, later : tuple of Tensor
        ``Phi`` [*b, T, d, d], ``b`` [*b, T, d, 1] and ``Gamma`` [*b, T, d, d].

    Returns
    -------
    tuple of Tensor
        ``Phi_1 Phi_2``, ``Phi_1 b_2 + b_1`` and ``Phi_1 Gamma_2 Phi_1' + Gamma_1``.
    """
    (Phi, b, Gamma), (Phi_later, b_later, Gamma_later) = earlier, later
    return Phi @ Phi_later, Phi @ b_later + b, Phi @ Gamma_later @ Phi.mT + Gamma


def _prefix(combine: Callable[[Element, Element], Element], elements: Element) -> Element:
    rows = elements[0].shape[_AXIS]
    if rows == 1:
        return elements
    odd = _every_other(elements, 1)
    pairs = combine(_every_other(elements, 0, rows - 1), odd)
    # Products up to rows 1, 3, 5, ...; those up to rows 2, 4, ... lack one element each.
    odd = _prefix(combine, pairs)
    if rows == 2:
        return tuple(interleave(x[..., :1, :, :], y) for x, y in zip(elements, odd, strict=True))
    before = tuple(x[..., : (rows - 1) // 2, :, :] for x in odd)
    even = combine(before, _every_other(elements, 2))
    return tuple(
        interleave(torch.cat([x[..., :1, :, :], y], _AXIS), z)
        for x, y, z in zip(elements, even, odd, strict=True)
    )


def _every_other(elements: Element, first: int, last: int | None = None) -> Element:
    return tuple(x[..., first:last:2, :, :] for x in elements)


def interleave(even: Tensor, odd: Tensor) -> Tensor:
    """Rows 0, 2, 4, ... and rows 1, 3, 5, ... in one tensor.

    Parameters
    ----------
    even : Tensor, shape [*b, E, r, c]
        Rows 0, 2, 4, ..., as many as the others or one more.
    odd : Tensor, shape [*b, O, r, c]
        Rows 1, 3, 5, ...

    Returns
    -------
    Tensor, shape [*b, T, r, c]
        All rows.
    """
    pairs = odd.shape[_AXIS]
    both = torch.stack([even[..., :pairs, :, :], odd], _AXIS).flatten(-4, -3)
    return both if even.shape[_AXIS] == pairs else torch.cat([both, even[..., pairs:, :, :]], _AXIS)
