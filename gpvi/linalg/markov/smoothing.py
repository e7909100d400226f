r"""Filtering and smoothing of a Gauss-Markov process conditioned on Gaussian sites.

For a state z with :math:`f_n = h^\top z(t_n)` and sites
:math:`\exp(\lambda_{1n} f_n - \tfrac12 \lambda_{2n} f_n^2)` the log partition is that of the prior
times all sites. Forward, moments move and every site updates them,

.. math:: D = 1 + \lambda_2 s, \quad e = \lambda_1 - \lambda_2 a, \quad
          m \leftarrow m + u e / D, \quad P \leftarrow P - (\lambda_2 / D) u u^\top,

with :math:`u = P h`, :math:`s = h^\top u`, :math:`a = h^\top m`. Backward, the first and second
derivatives r and -N of the log partition by the state's mean run against time; moments of every row
and all derivatives follow from (m, P) and (r, N) without an inverse of P, Q or of a site precision.
A site of zero is a missing observation, a step of length zero a repeated stamp.

References
----------
Durbin, J. & Koopman, S. J. (2012). Time Series Analysis by State Space Methods, chapter 4.
Särkkä, S. & García-Fernández, Á. F. (2021). Temporal parallelization of Bayesian smoothers.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from gpvi._warnings import warn
from gpvi.exceptions import EngineWarning, InputError, NumericalError
from gpvi.linalg.markov._adjoint import LogPartition, Smooth, prepare
from gpvi.linalg.markov._compiled import Passes, choose_passes
from gpvi.linalg.markov._matrix_sites import MatrixPasses
from gpvi.linalg.markov.model import MarkovModel, Steps
from gpvi.linalg.markov.tensor_engine import tensor_log_partition, tensor_marginals

__all__ = ["Engine", "Smoothed", "markov_log_partition", "markov_marginals", "markov_smooth"]

#: Which engine runs.
Engine = Literal["auto", "compiled", "tensor"]


@dataclass(frozen=True, eq=False)
class Smoothed:
    """What one filter and smoother pass finds.

    Parameters
    ----------
    log_partition : Tensor, shape [*b, G]
        Of every series.
    mean : Tensor, shape [*b, T] (or [*b, T, K] for K outputs)
        Posterior means of the rows.
    variance : Tensor, shape [*b, T] (or [*b, T, K, K])
        Posterior variances.
    divergence : Tensor, shape [*b, G]
        ``KL(q || prior)``, summed from terms that do not cancel.
    """

    log_partition: Tensor
    mean: Tensor
    variance: Tensor
    divergence: Tensor


def markov_log_partition(
    model: MarkovModel, steps: Steps, lam1: Tensor, lam2: Tensor, *, engine: Engine = "auto"
) -> Tensor:
    r"""Log partition of sites under a Gauss-Markov process, in linear time.

    .. math:: \log E \Bigl[ \prod_n \exp(\lambda_{1n} f_n - \tfrac12 \lambda_{2n} f_n^2) \Bigr]

    Parameters
    ----------
    model : MarkovModel
        The process, of mean zero.
    steps : Steps
        Stamps.
    lam1 : Tensor, shape [*b, T] (or [*b, T, K] for a model with outputs)
        Precision times mean of every site.
    lam2 : Tensor, shape [*b, T] (or [*b, T, K, K])
        Precision of every site; zero means that nothing was observed.
    engine : {"auto", "compiled", "tensor"}
        "auto" runs compiled loops on the CPU and scans of tensor operations elsewhere.

    Returns
    -------
    Tensor, shape [*b, G]
        For every series; differentiable once in the model, the stamps and the sites.

    Raises
    ------
    InputError
        If shapes do not fit.
    NumericalError
        If a site is so negative that the posterior is improper.

    References
    ----------
    Durbin, J. & Koopman, S. J. (2012). Time Series Analysis by State Space Methods.

    Examples
    --------
    >>> import torch
    >>> from gpvi.kernels import parse_kernel, as_state_space
    >>> model = as_state_space(parse_kernel("matern32", 1)).model()
    >>> steps = Steps.single(torch.linspace(0, 1, 5, dtype=torch.float64))
    >>> markov_log_partition(model, steps, torch.zeros(5).double(), torch.ones(5).double()).shape
    torch.Size([1])
    """
    check_sites(model, steps, lam1, lam2, engine)
    if not runs_compiled(engine, lam1):
        return tensor_log_partition(model, steps, lam1, lam2)
    passes = _passes(model, steps)
    inputs, shape = prepare(passes, lam1, lam2)
    total = LogPartition.apply(passes, *inputs)
    return total.reshape(*shape, -1).to(lam1.dtype)


def markov_smooth(
    model: MarkovModel, steps: Steps, lam1: Tensor, lam2: Tensor, *, engine: Engine = "auto"
) -> Smoothed:
    """Log partition, moments of all rows and KL divergence from one pair of passes.

    Parameters
    ----------
    model : MarkovModel
        The process, of mean zero.
    steps : Steps
        Stamps.
    lam1 : Tensor, shape [*b, T] (or [*b, T, K])
        Precision times mean of every site.
    lam2 : Tensor, shape [*b, T] (or [*b, T, K, K])
        Precision of every site.
    engine : {"auto", "compiled", "tensor"}
        As in :func:`markov_log_partition`.

    Returns
    -------
    Smoothed
        Differentiable once in the model, the stamps and the sites.

    Raises
    ------
    InputError
        If shapes do not fit.
    NumericalError
        If a site is so negative that the posterior is improper.

    Examples
    --------
    >>> import torch
    >>> from gpvi.kernels import parse_kernel, as_state_space
    >>> model = as_state_space(parse_kernel("matern32", 1)).model()
    >>> steps = Steps.single(torch.linspace(0, 1, 5, dtype=torch.float64))
    >>> markov_smooth(model, steps, torch.zeros(5).double(), torch.ones(5).double()).mean.tolist()
    [0.0, 0.0, 0.0, 0.0, 0.0]
    """
    check_sites(model, steps, lam1, lam2, engine)
    if not runs_compiled(engine, lam1):
        total = tensor_log_partition(model, steps, lam1, lam2)
        mean, variance = tensor_marginals(model, steps, lam1, lam2)
        expected = expected_log_sites(model, steps, lam1, lam2, mean, variance)
        return Smoothed(total, mean, variance, expected - total)
    passes = _passes(model, steps)
    inputs, shape = prepare(passes, lam1, lam2)
    total, mean, variance, local = Smooth.apply(passes, *inputs)
    core = lam1.shape[lam1.dim() - (1 if model.outputs is None else 2) :]
    total = total.reshape(*shape, -1)
    mean = mean.reshape(*shape, *core)
    variance = variance.reshape(*shape, *core, *core[1:])
    # Value from terms that do not cancel, gradient from the moments.
    divergence = expected_log_sites(model, steps, lam1, lam2, mean, variance) - total
    divergence = local.reshape(*shape, -1) + (divergence - divergence.detach())
    dtype = lam1.dtype
    return Smoothed(total.to(dtype), mean.to(dtype), variance.to(dtype), divergence.to(dtype))


def markov_marginals(
    model: MarkovModel, steps: Steps, lam1: Tensor, lam2: Tensor, *, engine: Engine = "auto"
) -> tuple[Tensor, Tensor]:
    """Posterior mean and variance of every row; see :func:`markov_smooth`.

    Parameters
    ----------
    model : MarkovModel
        The process, of mean zero.
    steps : Steps
        Stamps.
    lam1 : Tensor, shape [*b, T] (or [*b, T, K])
        Precision times mean of every site.
    lam2 : Tensor, shape [*b, T] (or [*b, T, K, K])
        Precision of every site.
    engine : {"auto", "compiled", "tensor"}
        As in :func:`markov_log_partition`.

    Returns
    -------
    mean : Tensor, shape [*b, T] (or [*b, T, K])
        Posterior means.
    variance : Tensor, shape [*b, T] (or [*b, T, K, K])
        Posterior variances (covariances over outputs).

    Raises
    ------
    InputError
        If shapes do not fit.
    NumericalError
        If a site is so negative that the posterior is improper.

    Examples
    --------
    >>> import torch
    >>> from gpvi.kernels import parse_kernel, as_state_space
    >>> model = as_state_space(parse_kernel("matern32", 1)).model()
    >>> steps = Steps.single(torch.zeros(1, dtype=torch.float64))
    >>> mean, variance = markov_marginals(model, steps, torch.ones(1).double(), torch.zeros(1).double())
    >>> bool(mean == variance)  # the mean of exp(f) N(f | 0, v) is v
    True
    """
    smoothed = markov_smooth(model, steps, lam1, lam2, engine=engine)
    return smoothed.mean, smoothed.variance


def expected_log_sites(
    model: MarkovModel, steps: Steps, lam1: Tensor, lam2: Tensor, mean: Tensor, variance: Tensor
) -> Tensor:
    """``E_q[sum log t]`` of every series, shape [*b, G].

    Parameters
    ----------
    model : MarkovModel
        Says whether sites are matrices.
    steps : Steps
        Stamps.
    lam1 : Tensor, shape [*b, T] (or [*b, T, K])
        Precision times mean of every site.
    lam2 : Tensor, shape [*b, T] (or [*b, T, K, K])
        Precision of every site.
    mean : Tensor, shape of ``lam1``
        Of q.
    variance : Tensor, shape of ``lam2``
        Of q.

    Returns
    -------
    Tensor, shape [*b, G]
        Nats.
    """
    if model.outputs is not None:
        second = variance + mean.unsqueeze(-1) * mean.unsqueeze(-2)
        rows = (lam1 * mean).sum(-1) - 0.5 * (lam2 * second).sum((-2, -1))
    else:
        rows = lam1 * mean - 0.5 * lam2 * (mean.square() + variance)
    total = torch.zeros(*rows.shape[:-1], steps.num_series, dtype=rows.dtype, device=rows.device)
    return total.index_add(-1, steps.series, rows)


def _passes(model: MarkovModel, steps: Steps) -> Passes:
    return choose_passes(model, steps) if model.outputs is None else MatrixPasses(model, steps)


def check_sites(
    model: MarkovModel, steps: Steps, lam1: Tensor, lam2: Tensor, engine: Engine
) -> None:
    core: tuple[int, ...] = (steps.num_rows,)
    if model.outputs is not None:
        core = (steps.num_rows, model.outputs.shape[-2])
    wanted2 = core + core[1:]
    if (
        lam1.shape[lam1.dim() - len(core) :] != core
        or lam2.shape[lam2.dim() - len(wanted2) :] != wanted2
    ):
        raise InputError(
            f"lam1 has shape {tuple(lam1.shape)} and lam2 {tuple(lam2.shape)}; for {steps.num_rows} "
            f"rows they must end in {core} and {wanted2}."
        )
    if model.rows is not None and model.rows.shape[-2] != steps.num_rows:
        # The compiled loops read them without a look at bounds.
        raise InputError(
            f"The model has {model.rows.shape[-2]} readouts for {steps.num_rows} rows; it must have "
            "one per row."
        )
    # The compiled passes see it in their result, which costs nothing.
    if not runs_compiled(engine, lam1) and not bool(
        torch.isfinite(lam1).all() and torch.isfinite(lam2).all()
    ):
        raise NumericalError("The sites hold NaN or infinite entries; take a smaller step.")


def runs_compiled(engine: Engine, like: Tensor) -> bool:
    if engine not in ("auto", "compiled", "tensor"):
        raise InputError(f"engine is {engine!r}; it must be 'auto', 'compiled' or 'tensor'.")
    if engine == "compiled" and like.device.type != "cpu":
        raise InputError(f"The compiled engine runs on the CPU and the sites are on {like.device}.")
    return engine == "compiled" or (
        engine == "auto" and like.device.type == "cpu" and _numba_works()
    )


def _numba_works() -> bool:
    try:
        import numba  # noqa: F401
    except ImportError as error:
        warn(
            f"the compiled engine of Markov smoothing is not available ({error}); scans of tensor "
            "operations serve instead, at some fifty times the cost. Reinstall numba.",
            EngineWarning,
        )
        return False
    return True
