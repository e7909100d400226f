"""Posterior paths of the state: compiled loops off the graph, scans of tensor operations on it."""

import numpy as np
import torch
from torch import Tensor

from gpvi.exceptions import InputError, NumericalError
from gpvi.linalg.markov._adjoint import prepare
from gpvi.linalg.markov._compiled import PackedPasses, element, to_double
from gpvi.linalg.markov._semidefinite import semidefinite_cholesky
from gpvi.linalg.markov.model import MarkovModel, Steps, block_diagonal
from gpvi.linalg.markov.smoothing import Engine, check_sites, runs_compiled
from gpvi.linalg.markov.tensor_engine import tensor_sample

__all__ = ["markov_sample"]


def markov_sample(
    model: MarkovModel,
    steps: Steps,
    lam1: Tensor,
    lam2: Tensor,
    normals: Tensor,
    *,
    engine: Engine = "auto",
) -> Tensor:
    """Posterior paths of the state, an affine function of standard normals.

    Parameters
    ----------
    model : MarkovModel
        The process, of mean zero, with one readout per row.
    steps : Steps
        Stamps.
    lam1, lam2 : Tensor, shape [*b, T]
        Sites.
    normals : Tensor, shape [S, *b, T, d]
        Independent standard normals; zeros give the posterior mean.
    engine : {"auto", "compiled", "tensor"}
        "auto" runs compiled loops on the CPU where no gradient is recorded, and scans of tensor operations
        elsewhere. Both give the same paths up to rounding.

    Returns
    -------
    Tensor, shape [S, *b, T, d]
        Paths; differentiable with the tensor engine.

    Raises
    ------
    InputError
        If shapes do not fit, or the compiled engine is asked for K outputs.
    NumericalError
        If the posterior is improper.

    References
    ----------
    Durbin, J. & Koopman, S. J. (2012). Time Series Analysis by State Space Methods.

    Examples
    --------
    >>> import torch
    >>> from gpvi.kernels import parse_kernel, as_state_space
    >>> model = as_state_space(parse_kernel("matern32", 1)).model()
    >>> steps = Steps.single(torch.linspace(0, 1, 5, dtype=torch.float64))
    >>> site = torch.ones(5).double()
    >>> with torch.no_grad():
    ...     paths = markov_sample(model, steps, site, site, torch.zeros(1, 5, 2).double())
    >>> paths.shape
    torch.Size([1, 5, 2])
    """
    check_sites(model, steps, lam1, lam2, engine)
    if normals.dim() < 3 or normals.shape[-2:] != (steps.num_rows, model.dimension):
        raise InputError(
            f"normals has shape {tuple(normals.shape)}; for {steps.num_rows} rows of states of "
            f"dimension {model.dimension} it must be [S, *b, {steps.num_rows}, {model.dimension}]."
        )
    if engine == "compiled" and model.outputs is not None:
        raise InputError("The compiled engine samples models with one readout per row.")
    plain = engine == "auto" and not torch.is_grad_enabled() and model.outputs is None
    if engine == "compiled" or (plain and runs_compiled(engine, lam1)):
        with torch.no_grad():
            return _compiled_sample(model, steps, lam1, lam2, normals)
    return tensor_sample(model, steps, lam1, lam2, normals)


def _compiled_sample(
    model: MarkovModel, steps: Steps, lam1: Tensor, lam2: Tensor, normals: Tensor
) -> Tensor:
    from gpvi.linalg.markov import _sample_cpu

    passes = PackedPasses(to_double(model), to_double(steps))
    inputs, shape = prepare(passes, lam1, lam2)
    first, second, *tensors = inputs
    _, Q, start, _ = tensors
    factors = (_block_factors(Q, model), semidefinite_cholesky(start))
    batch = torch.broadcast_shapes(shape, normals.shape[1:-2])
    wide = normals.double().expand(len(normals), *batch, *normals.shape[-2:])
    noise = wide.reshape(len(normals), -1, *normals.shape[-2:]).numpy()
    T, d = steps.num_rows, model.dimension
    states = np.empty(noise.shape)
    eta, J, root = np.empty((T, d)), np.empty((T, d, d)), np.empty((T, d, d))
    # Batch dims that only the normals have are extra draws.
    elements = torch.arange(shape.numel()).reshape(shape).expand(batch).reshape(-1)
    for b, own in enumerate(elements.tolist()):
        A, _, _, readout = element(tuple(tensors), own)
        factor, initial = element(factors, own)
        j, w = element((first, second), own)
        layout = passes.unit, passes.starts, passes.size
        row = _sample_cpu.messages(
            *layout, A, factor, initial, readout, passes.which, j, w, eta, J, root
        )
        if row >= 0:
            raise NumericalError(
                f"The posterior of the state at row {row} given the one before is improper: site "
                "precisions are too negative."
            )
        for s in range(len(noise)):
            epsilon = np.ascontiguousarray(noise[s, b])
            _sample_cpu.draw(*layout, A, eta, J, root, epsilon, states[s, b])
    result = torch.from_numpy(states).reshape(len(normals), *batch, T, d)
    return result.to(normals.dtype)


def _block_factors(Q: Tensor, model: MarkovModel) -> Tensor:
    """Cholesky factors [*b, U, d, d] of packed blocks of noise [*b, U, p]."""
    parts, place = [], 0
    for block in model.blocks:
        n = block.dimension
        packed = Q[..., place : place + n * n].unflatten(-1, (n, n))
        parts.append(semidefinite_cholesky(packed))
        place += n * n
    return block_diagonal(parts)
