r"""The forward and the backward pass over a chain, both as associative scans.

Forward, one element per row holds the distribution of the state given the state before and the
site, and the likelihood of the site in the state before (A, b, C, eta, J). Backward, the pair
(r, N) follows an affine recursion. Both are exact for noise that is zero.

References
----------
Särkkä, S. & García-Fernández, Á. F. (2021). Temporal parallelization of Bayesian smoothers. IEEE
Transactions on Automatic Control 66(1).
de Jong, P. (1989). Smoothing and interpolation with the state-space model. JASA 84(408).
"""

import torch
from torch import Tensor

from gpvi.exceptions import NumericalError
from gpvi.linalg.markov._semidefinite import semidefinite_cholesky
from gpvi.linalg.markov._site_update import (
    SiteUpdate,
    check_proper,
    identity,
    inverse,
    site_update,
)
from gpvi.linalg.markov._tensor_chain import Chain
from gpvi.linalg.markov.scan import Element, associative_scan, congruence

__all__ = [
    "adjoint",
    "conditional_step",
    "log_increments",
    "messages",
    "pad_back",
    "pad_front",
    "predicted",
    "readout_moments",
    "symmetric",
    "update_at",
]


def filter_elements(chain: Chain) -> Element:
    """One element (A, b, C, eta, J) per row."""
    F, Q, H, lam1, lam2 = chain
    site = site_update(Q, H, lam1, lam2)
    HF = H @ F
    A = F - site.gain @ (site.matrix @ HF)
    J = HF.mT @ site.matrix @ HF
    return A, site.gain @ site.vector, site.covariance(Q), HF.mT @ site.vector, J


def combine(earlier: Element, later: Element) -> Element:
    """Two neighbouring stretches of a chain as one."""
    (A1, b1, C1, eta1, J1), (A2, b2, C2, eta2, J2) = earlier, later
    W = inverse(identity(C1) + C1 @ J2)
    out, back = A2 @ W, A1.mT @ W.mT
    return (
        out @ A1,
        out @ (b1 + C1 @ eta2) + b2,
        symmetric(out @ C1 @ A2.mT) + C2,
        back @ (eta2 - J2 @ b1) + eta1,
        symmetric(back @ J2 @ A1) + J1,
    )


def predicted(chain: Chain) -> tuple[Tensor, Tensor]:
    """Moments of every state before its own site, ``m`` [*b, T, d, 1] and ``P`` [*b, T, d, d]."""
    _, b, C, _, _ = associative_scan(combine, filter_elements(chain))
    A = chain.transition[..., 1:, :, :]
    m, P = A @ b[..., :-1, :, :], A @ C[..., :-1, :, :] @ A.mT
    first = torch.zeros_like(b[..., :1, :, :])
    return torch.cat([first, m], -3), chain.noise + symmetric(pad_front(P))


def messages(chain: Chain) -> tuple[Tensor, Tensor]:
    """Linear term and precision, in every state, of its own site and all later ones."""
    _, _, _, eta, J = associative_scan(combine, filter_elements(chain), reverse=True)
    # The product from row k + 1 on is a function of state k; it is zero if that row begins a series.
    H = chain.readout
    own = H.mT @ chain.lam1, H.mT @ chain.lam2 @ H
    return own[0] + pad_back(eta[..., 1:, :, :]), own[1] + pad_back(J[..., 1:, :, :])


def conditional_step(A: Tensor, Q: Tensor, J: Tensor) -> tuple[Tensor, Tensor]:
    """How states move given the sites of their own row and all later ones.

    Parameters
    ----------
    A, Q : Tensor, shape [*b, T, d, d]
        Of the prior.
    J : Tensor, shape [*b, T, d, d]
        Precisions of the messages.

    Returns
    -------
    transition : Tensor, shape [*b, T, d, d]
        ``(I - R J) A``.
    root : Tensor, shape [*b, T, d, d]
        With ``root' root = R = C (I + C'J C)^-1 C'``, ``C C' = Q``, the conditional covariance.
    """
    C = semidefinite_cholesky(Q)
    L, info = torch.linalg.cholesky_ex(identity(C) + C.mT @ J @ C)
    if bool((info > 0).any()):
        row = int((info > 0).nonzero()[0, -1])
        raise NumericalError(
            f"The posterior of the state at row {row} (in order of time) given the one before is no "
            "Gaussian: its precision is not positive. Use sites of larger lam2, or look for NaN in "
            "sites and hyperparameters."
        )
    root = torch.linalg.solve_triangular(L, C.mT, upper=False)
    return A - root.mT @ (root @ (J @ A)), root


def update_at(chain: Chain, covariance: Tensor) -> SiteUpdate:
    """Site updates at the predicted covariances, refused where they are improper."""
    site = site_update(covariance, chain.readout, chain.lam1, chain.lam2)
    check_proper(site, chain.lam2)
    return site


def log_increments(chain: Chain, mean: Tensor, site: SiteUpdate) -> Tensor:
    """``log E[site]`` under the predicted states, shape [*b, T]."""
    a = chain.readout @ mean
    quadratic = (
        site.vector.mT @ a
        + 0.5 * chain.lam1.mT @ site.spread @ site.vector
        - 0.5 * a.mT @ site.matrix @ a
    )
    if chain.lam2.shape[-1] == 1:
        log_det = torch.log1p(chain.lam2 * site.spread)[..., 0, 0]
    else:
        log_det = torch.linalg.slogdet(identity(chain.lam2) + chain.lam2 @ site.spread)[1]
    return quadratic[..., 0, 0] - 0.5 * log_det


def adjoint(chain: Chain, mean: Tensor, site: SiteUpdate) -> tuple[Tensor, Tensor]:
    """``r`` [*b, T, d, 1] and ``N`` [*b, T, d, d] at the predicted states, own site included."""
    H = chain.readout
    later = pad_back(chain.transition[..., 1:, :, :])
    Phi = later.mT - H.mT @ (site.matrix @ (later @ site.gain).mT)
    b = H.mT @ (site.vector - site.matrix @ (H @ mean))
    _, r, N = associative_scan(congruence, (Phi, b, H.mT @ site.matrix @ H), reverse=True)
    return r, symmetric(N)


def readout_moments(
    chain: Chain, mean: Tensor, site: SiteUpdate, r: Tensor, N: Tensor
) -> tuple[Tensor, Tensor]:
    """Posterior moments of ``H x``, shapes [*b, T, K, 1] and [*b, T, K, K].

    The own site is applied first and the later ones then: subtracting the effect of a precise site
    from the prior variance would cancel.
    """
    a = chain.readout @ mean
    gain = chain.transition[..., 1:, :, :] @ (site.gain @ site.shrink)[..., :-1, :, :]
    post = a + site.spread @ (site.vector - site.matrix @ a)
    variance = symmetric(site.spread @ site.shrink)
    later, loss = gain.mT @ r[..., 1:, :, :], gain.mT @ N[..., 1:, :, :] @ gain
    return post + pad_back(later), variance - pad_back(loss)


def pad_front(matrices: Tensor) -> Tensor:
    """A row of zeros before the first one."""
    return torch.nn.functional.pad(matrices, (0, 0, 0, 0, 1, 0))


def pad_back(matrices: Tensor) -> Tensor:
    """A row of zeros behind the last one."""
    return torch.nn.functional.pad(matrices, (0, 0, 0, 0, 0, 1))


def symmetric(matrices: Tensor) -> Tensor:
    """Mean of a matrix and its transpose."""
    return 0.5 * (matrices + matrices.mT)
