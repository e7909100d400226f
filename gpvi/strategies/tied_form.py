"""What q on a finite basis looks like, so that its parameters can be laid out before there is a kernel."""

from dataclasses import dataclass

from gpvi.approximations import Approximation, Coreset, NeighborInducing, Orthogonal

__all__ = ["FREE", "TiedForm", "tied_form"]


@dataclass(frozen=True)
class TiedForm:
    """What q on a finite basis looks like.

    Parameters
    ----------
    diagonal : bool
        Whether q is the prior times sites of single basis values.
    first_block : int, optional
        Size of the first of two blocks that q keeps independent.
    moved : bool
        Whether the second of them keeps the covariance of its prior.
    """

    diagonal: bool = False
    first_block: int | None = None
    moved: bool = False


#: A free mean and covariance.
FREE = TiedForm()


def tied_form(approximation: Approximation) -> TiedForm:
    """The form that q has for an approximation.

    Parameters
    ----------
    approximation : Approximation
        With a finite basis.

    Returns
    -------
    TiedForm
        A free mean and covariance unless the approximation says otherwise.
    """
    if isinstance(approximation, Coreset | NeighborInducing):
        return TiedForm(diagonal=True)
    if not isinstance(approximation, Orthogonal) or approximation.q == "joint":
        return FREE
    shapes = approximation.block_shapes
    return FREE if shapes is None else TiedForm(False, shapes[0][-1], approximation.q == "delta")
