"""Variances of an incomplete factor, checked at a few locations."""

import gpytorch
import pytest
import torch

from gpvi import Fixed, GPRegressor
from gpvi.approximations import (
    Exact,
    GaussianProcess,
    Sites,
    SparseInverseCholesky,
    SparseInversePosterior,
)
from gpvi.exceptions import AccuracyWarning, UnsupportedError


def conditioned(
    kernel: gpytorch.kernels.Kernel,
    lengthscale: float,
    precision: float,
    rows: int = 300,
    m: int = 30,
) -> SparseInversePosterior:
    x = torch.rand(rows, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    kernel = kernel.double()
    kernel.lengthscale = lengthscale
    sites = Sites(precision * torch.sin(5 * x[:, 0]), torch.full((rows,), precision).double())
    with torch.no_grad():
        return SparseInverseCholesky(m).prior(GaussianProcess(kernel), x).condition(sites)


def test_ratios_are_those_of_dense_algebra() -> None:
    q = conditioned(gpytorch.kernels.RBFKernel(), 0.5, 100.0)
    whitened = q.prior.whiten(torch.eye(300, dtype=torch.float64) + q.prior.mean)
    exact = torch.linalg.inv(whitened @ whitened.mT + torch.diag(q.sites.lam2))
    true = q.marginals().explained / exact.diagonal()
    ratios = q.variance_ratios()
    distance = (ratios.unsqueeze(-1) - true).abs().min(-1).values
    assert float((distance / ratios).max()) < 0.01
    assert float(ratios.max()) > 3.0
    (remark,) = q.accuracy_remarks()
    assert "Means are exact" in remark


def test_nothing_to_say_of_good_factors() -> None:
    q = conditioned(gpytorch.kernels.MaternKernel(nu=1.5), 0.3, 10.0)
    torch.testing.assert_close(q.variance_ratios(), torch.ones(8).double(), rtol=0.02, atol=0)
    assert q.accuracy_remarks() == ()


def test_variances_that_lack_their_ancestors() -> None:
    q = conditioned(gpytorch.kernels.MaternKernel(nu=0.5), 1.0, 1e-3, rows=2000, m=10)
    assert float(q.variance_ratios().min()) < 0.7
    assert len(q.accuracy_remarks()) == 1


def test_other_families_have_other_variances() -> None:
    q = conditioned(gpytorch.kernels.MaternKernel(nu=1.5), 0.3, 10.0)
    free = q.prior.posterior(q.prior.place_mean, q.factor)
    assert free.accuracy_remarks() == ()
    with pytest.raises(UnsupportedError, match="family 'sic'"):
        free.variance_ratios()
    x = q.prior.x
    diagonal = SparseInverseCholesky(5, family="diagonal").prior(q.prior.gp, x).condition(q.sites)
    assert diagonal.accuracy_remarks() == ()
    assert Exact().prior(q.prior.gp, x).condition(q.sites).accuracy_remarks() == ()


def test_batches() -> None:
    x = torch.rand(60, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    kernel = gpytorch.kernels.MaternKernel(nu=1.5, batch_shape=torch.Size([2])).double()
    kernel.lengthscale = torch.tensor([[[0.2]], [[0.4]]], dtype=torch.float64)
    sites = Sites(torch.zeros(3, 2, 60).double(), torch.ones(3, 2, 60).double())
    with torch.no_grad():
        q = SparseInverseCholesky(20).prior(GaussianProcess(kernel), x).condition(sites)
        ratios = q.variance_ratios()
    assert ratios.shape == (3, 2, 8)
    torch.testing.assert_close(ratios, torch.ones_like(ratios), rtol=0.05, atol=0)
    flat = torch.tensor([0, 1]).repeat_interleave(30)
    approximation = SparseInverseCholesky(20)
    with torch.no_grad():
        grouped = approximation.prior(
            GaussianProcess(kernel), x, plan=approximation.plan(x, flat)
        ).condition(Sites(sites.lam1[0], sites.lam2[0]))
    assert grouped.accuracy_remarks() == ()


def test_a_fit_says_so() -> None:
    x = torch.rand(300, 2, generator=torch.Generator().manual_seed(0)).double().numpy()
    y = x[:, 0]
    model = GPRegressor(
        "rbf",
        approximation=SparseInverseCholesky(30),
        optimizer=None,
        hyperparameters={"lengthscale": Fixed(0.5), "noise": Fixed(0.01)},
    )
    with pytest.warns(AccuracyWarning):
        model.fit(x, y)
