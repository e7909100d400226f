"""The same results on a GPU as on the CPU; skipped where there is none."""

import warnings

import gpytorch
import numpy as np
import pytest
import torch

from gpvi import GPRegressor
from gpvi.approximations import (
    Approximation,
    Exact,
    GaussianProcess,
    InducingPoints,
    Marginals,
    White,
)
from gpvi.exceptions import ConvergenceWarning
from gpvi.inference import cvi, elbo, fit, tighter_elbo
from gpvi.kernels import WhiteKernel, parse_kernel
from gpvi.likelihoods import (
    BernoulliLikelihood,
    GaussianLikelihood,
    PoissonLikelihood,
    StudentTLikelihood,
)

pytestmark = pytest.mark.gpu

LIKELIHOODS = {
    "gaussian": GaussianLikelihood,
    "bernoulli": BernoulliLikelihood,
    "poisson": PoissonLikelihood,
    "student-t": StudentTLikelihood,
}


def data(num_rows: int = 60) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(num_rows, 2, generator=generator, dtype=torch.float64)
    y = (torch.sin(6 * x[:, 0]) > torch.rand(num_rows, generator=generator)).double()
    return x, y


def process(name: str) -> tuple[GaussianProcess, Approximation]:
    if name == "white":
        return GaussianProcess(WhiteKernel().double()), White()
    gp = GaussianProcess(parse_kernel("matern52", 2), gpytorch.means.ConstantMean().double())
    if name == "exact":
        return gp, Exact()
    return gp, InducingPoints(inducing_points=data()[0][::5])


@pytest.mark.parametrize("approximation", ["exact", "inducing", "white"])
@pytest.mark.parametrize("likelihood", list(LIKELIHOODS))
@pytest.mark.parametrize("grouped", [False, True])
def test_posterior_is_that_of_the_cpu(approximation: str, likelihood: str, grouped: bool) -> None:
    x, y = data()
    groups = torch.arange(len(x)) % 3 if grouped else None
    results = {}
    for device in ("cpu", "cuda"):
        gp, structure = process(approximation)
        gp, structure = gp.to(device), structure.to(device)
        model = LIKELIHOODS[likelihood]().to(device)
        inputs, targets = x.to(device), y.to(device)
        labels = None if groups is None else groups.to(device)
        prior = structure.prior(gp, inputs, plan=structure.plan(inputs, labels))
        posterior = cvi(prior, model, targets).posterior
        moments = posterior.predict(inputs[:7], groups=None if labels is None else labels[:7])
        assert isinstance(moments, Marginals)
        draw = posterior.rsample((2,), generator=torch.Generator(device).manual_seed(0))
        assert draw.values.device.type == device
        values = (
            elbo(posterior, model, targets),
            tighter_elbo(posterior, model, targets),
            posterior.kl(),
            moments.mean,
            moments.variance,
        )
        results[device] = [value.detach().cpu() for value in values]
    for ours, reference in zip(results["cuda"], results["cpu"], strict=True):
        torch.testing.assert_close(ours, reference, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("approximation", ["exact", "inducing"])
@pytest.mark.parametrize("likelihood", ["gaussian", "bernoulli"])
def test_full_batch_fit(approximation: str, likelihood: str) -> None:
    x, y = data()
    gp, structure = process(approximation)
    model = LIKELIHOODS[likelihood]()
    for module in (gp, structure, model):
        module.to("cuda")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        result = fit(gp, structure, model, x.cuda(), y.cuda(), max_iter=5)
    objectives = [record.objective for record in result.history]
    assert max(objectives) > objectives[0]


@pytest.mark.parametrize("options", [{}, {"approximation": "inducing", "num_inducing": 20}])
@pytest.mark.parametrize("batch_size", [None, 16])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_estimator(options: dict, batch_size: int | None, dtype: str) -> None:
    X = np.random.default_rng(0).uniform(size=(80, 2))
    y = np.sin(6 * X[:, 0])
    model = GPRegressor(
        device="cuda", batch_size=batch_size, dtype=dtype, max_iter=40, random_state=0, **options
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(X, y)
    mean, std = model.predict(X, return_std=True)
    assert np.sqrt(np.mean((mean - y) ** 2)) < 0.3
    assert (std > 0).all()
