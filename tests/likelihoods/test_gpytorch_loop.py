"""Every likelihood inside a plain GPyTorch training loop."""

import gpytorch
import pytest
import torch

from gpvi.likelihoods import BernoulliLikelihood, GaussianLikelihood, PoissonLikelihood


class PlainSVGP(gpytorch.models.ApproximateGP):
    """What a user writes: M inducing points, an RBF kernel, optionally a batch of latents."""

    def __init__(self, inducing_points: torch.Tensor, num_latents: int = 1) -> None:
        batch = torch.Size([] if num_latents == 1 else [num_latents])
        distribution = gpytorch.variational.CholeskyVariationalDistribution(
            inducing_points.shape[-2], batch_shape=batch
        )
        strategy = gpytorch.variational.VariationalStrategy(
            self, inducing_points.expand(*batch, -1, -1), distribution
        )
        if num_latents > 1:
            strategy = gpytorch.variational.IndependentMultitaskVariationalStrategy(
                strategy, num_tasks=num_latents
            )
        super().__init__(strategy)
        self.mean_module = gpytorch.means.ConstantMean(batch_shape=batch)
        self.covar_module = gpytorch.kernels.ScaleKernel(
            gpytorch.kernels.RBFKernel(batch_shape=batch), batch_shape=batch
        )

    def forward(self, x):
        return gpytorch.distributions.MultivariateNormal(self.mean_module(x), self.covar_module(x))


@pytest.fixture(autouse=True)
def _seeded():
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        yield


def build(num_latents=1, num_rows=5):
    x = torch.linspace(0, 1, num_rows, dtype=torch.float64).unsqueeze(-1)
    model = PlainSVGP(x[::2].clone(), num_latents).double()
    return x, model


@pytest.mark.parametrize("objective", ["VariationalELBO", "PredictiveLogLikelihood"])
def test_a_few_steps_improve_the_objective(case, objective):
    likelihood = case.build()
    x, model = build(likelihood.num_latents)
    mll = getattr(gpytorch.mlls, objective)(likelihood, model, num_data=5)
    parameters = [*model.parameters(), *likelihood.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=0.05)
    y = case.y.clone()
    y[3] = float("nan")
    weights = torch.tensor([1.0, 2.0, 1.0, 1.0, 0.5], dtype=torch.float64)
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        loss = -mll(model(x), y, weights=weights, **case.rows)
        loss.backward()
        losses.append(loss.item())
        gradients = [p.grad for p in parameters if p.grad is not None]
        assert gradients and all(bool(g.isfinite().all()) for g in gradients)
        optimizer.step()
    assert losses[-1] < losses[0]


def test_rows_reach_the_likelihood_through_the_objective():
    x, model = build()
    likelihood = PoissonLikelihood()
    mll = gpytorch.mlls.VariationalELBO(likelihood, model, num_data=5)
    y = torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0], dtype=torch.float64)
    exposure = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0], dtype=torch.float64)
    output = model(x)
    term = likelihood.expected_log_prob(y, output, exposure=exposure).sum() / 5
    kl = model.variational_strategy.kl_divergence() / 5
    torch.testing.assert_close(mll(output, y, exposure=exposure), term - kl)
    assert mll(output, y, exposure=exposure) != mll(output, y)
    with pytest.raises(ValueError, match="exposures"):
        mll(output, y, exposures=exposure)


def test_batch_of_outputs_shares_or_owns_the_noise():
    x, model = build()
    q_f = model(x)
    batch = gpytorch.distributions.MultivariateNormal(
        q_f.mean.expand(3, 5), q_f.covariance_matrix.expand(3, 5, 5)
    )
    y = torch.randn(3, 5, dtype=torch.float64)
    for likelihood in (GaussianLikelihood(), GaussianLikelihood(batch_shape=(3,))):
        assert likelihood.expected_log_prob(y, batch).shape == (3, 5)
        assert likelihood(batch).batch_shape == (3,)


def test_predictions_keep_gpytorchs_types():
    x, model = build()
    model.eval()
    q_f = model(x)
    assert isinstance(GaussianLikelihood()(q_f), gpytorch.distributions.MultivariateNormal)
    assert isinstance(BernoulliLikelihood()(q_f), torch.distributions.Bernoulli)
    with gpytorch.settings.num_likelihood_samples(7):
        samples = PoissonLikelihood().eval()(q_f, exposure=torch.ones(5))
    assert isinstance(samples, torch.distributions.Poisson) and samples.batch_shape == (7, 5)


def test_float32_loop_with_a_likelihood_as_it_comes():
    x = torch.linspace(0, 1, 6).unsqueeze(-1)
    model = PlainSVGP(x[::2].clone())
    likelihood = GaussianLikelihood()
    mll = gpytorch.mlls.VariationalELBO(likelihood, model, num_data=6)
    loss = -mll(model(x), torch.sin(x.squeeze(-1)))
    loss.backward()
    assert loss.dtype == torch.float32 and bool(likelihood.raw_noise.grad.isfinite())
    assert likelihood(model(x)).covariance_matrix.dtype == torch.float32
