"""Covariances and whitened features of stationary kernels: values, adjoints, engines, refusals."""

import pytest
import torch
from gpytorch.kernels import MaternKernel, RBFKernel
from torch import Tensor

from gpvi.exceptions import InputError, NumericalError
from gpvi.linalg import (
    STATIONARY_KERNELS,
    stationary_covariance,
    stationary_features,
)
from gpvi.linalg import stationary_features as features_function

GENERATOR = torch.Generator().manual_seed(2)
X = torch.randn(30, 3, generator=GENERATOR, dtype=torch.float64)
Z = torch.randn(5, 3, generator=GENERATOR, dtype=torch.float64)
ELL = torch.tensor([0.7, 1.5, 0.9], dtype=torch.float64)
SCALE = torch.tensor(1.7, dtype=torch.float64)

names = pytest.mark.parametrize("name", STATIONARY_KERNELS)


def module():
    import importlib

    return importlib.import_module("gpvi.linalg.stationary_features")


def gpytorch_kernel(name: str, lengthscale: Tensor) -> torch.nn.Module:
    if name == "rbf":
        kernel = RBFKernel(ard_num_dims=len(lengthscale)).double()
    else:
        kernel = MaternKernel(nu=float(name[-2]) / 2, ard_num_dims=len(lengthscale)).double()
    kernel.lengthscale = lengthscale
    return kernel.requires_grad_(False)


def factor(name: str, z: Tensor = Z) -> Tensor:
    covariance = stationary_covariance(name, z, ELL, SCALE)
    return torch.linalg.cholesky(covariance + 1e-3 * torch.eye(len(z)).to(z))


@pytest.fixture(params=["compiled", "tensors"])
def engine(request, monkeypatch):
    if request.param == "tensors":
        monkeypatch.setattr(module(), "_compiled_engine", lambda: None)


@names
def test_values(name, engine):
    kernel, L = gpytorch_kernel(name, ELL), factor(name)
    covariance = SCALE * kernel(Z).to_dense()
    torch.testing.assert_close(
        stationary_covariance(name, Z, ELL, SCALE), covariance, atol=1e-6, rtol=0
    )
    expected = torch.linalg.solve_triangular(L, SCALE * kernel(Z, X).to_dense(), upper=False)
    actual = stationary_features(name, X, Z, ELL, SCALE, L)
    torch.testing.assert_close(actual, expected.mT, atol=1e-9, rtol=0)


@names
@pytest.mark.parametrize("shared", [False, True])
def test_adjoints(name, shared, engine):
    ell = ELL[:1] if shared else ELL
    parameters = [t.clone().requires_grad_() for t in (Z, ell, SCALE)]
    assert torch.autograd.gradcheck(
        lambda z, ell, scale: stationary_covariance(name, z, ell, scale), parameters
    )
    lower = factor(name).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda z, ell, scale, L: stationary_features(name, X, z, ell, scale, L.tril()),
        [*parameters, lower],
    )


@names
def test_inducing_inputs_on_rows_have_finite_gradients(name, engine):
    z = torch.cat([X[:3], X[:1]]).requires_grad_()
    total = stationary_covariance(name, z, ELL, SCALE).sum()
    total = total + stationary_features(name, X, z, ELL, SCALE, torch.eye(4).to(X)).sum()
    total.backward()
    assert bool(z.grad.isfinite().all())


def test_chunks_do_not_show(monkeypatch):
    from gpvi.linalg import _collapsed_stationary

    results = []
    x = torch.randn(150, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for small in (False, True):
        if small:
            monkeypatch.setattr(_collapsed_stationary, "_CHUNK_BYTES", 0)
        z, ell = Z.clone().requires_grad_(), ELL.clone().requires_grad_()
        rows = stationary_features("matern32", x, z, ell, SCALE, factor("matern32"))
        rows.sin().sum().backward()
        results.append((rows.detach(), z.grad, ell.grad))
    torch.testing.assert_close(*results, atol=1e-11, rtol=0)


def test_float32():
    rows = stationary_features(
        "rbf", X.float(), Z.float(), ELL.float(), SCALE.float(), factor("rbf").float()
    )
    expected = stationary_features("rbf", X, Z, ELL, SCALE, factor("rbf"))
    assert rows.dtype == torch.float32
    torch.testing.assert_close(rows.double(), expected, atol=1e-3, rtol=0)


def test_no_rows():
    rows = stationary_features("rbf", X[:0], Z, ELL, SCALE, factor("rbf"))
    assert rows.shape == (0, 5)


@pytest.mark.parametrize(
    ("changes", "error", "match"),
    [
        ({"name": "cosine"}, InputError, "unknown stationary kernel"),
        ({"x": X[:, :2]}, InputError, "expected x"),
        ({"factor": torch.eye(4).double()}, InputError, "expected x"),
        ({"x": X.float()}, InputError, "one floating-point dtype"),
        ({"x": X * torch.nan}, InputError, "x holds NaN"),
        ({"x": X.clone().requires_grad_()}, InputError, "requires a gradient"),
        ({"z": Z * torch.inf}, NumericalError, "z holds NaN"),
        ({"lengthscale": ELL * 1e-120}, NumericalError, "times the smallest lengthscale"),
    ],
)
def test_refusals(changes, error, match):
    arguments = {"x": X, "z": Z, "lengthscale": ELL, "outputscale": SCALE}
    arguments |= {"name": "rbf", "factor": torch.eye(5).double()} | changes
    with pytest.raises(error, match=match):
        features_function(**arguments)
