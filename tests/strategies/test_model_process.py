"""A GPyTorch model read as a Gaussian process."""

import copy
import pickle
from collections.abc import Callable

import gpytorch
import pytest
import torch

from gpvi.approximations import Exact, InducingPoints, Sites, White
from gpvi.exceptions import InputError, UnsupportedError
from gpvi.kernels import WhiteKernel
from gpvi.likelihoods import GaussianLikelihood
from gpvi.strategies import ModelGaussianProcess, SiteStrategy


@pytest.fixture
def network() -> torch.nn.Module:
    generator = torch.Generator().manual_seed(0)
    linear = torch.nn.Linear(1, 3)
    with torch.no_grad():
        for parameter in linear.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return torch.nn.Sequential(linear, torch.nn.Tanh())


@pytest.fixture
def deep_model(make_model: type, rows: object, network: torch.nn.Module) -> object:
    return make_model(
        lambda m: SiteStrategy(m, InducingPoints(inducing_points=rows.z)), features=network
    )


def process(model: object, rows: object) -> ModelGaussianProcess:
    return ModelGaussianProcess(model, rows.z[:5])


def test_blocks_agree_with_forward(deep_model: object, rows: object) -> None:
    gp = process(deep_model, rows)
    prior = deep_model.forward(rows.x)
    torch.testing.assert_close(gp.mean(rows.x), prior.mean)
    torch.testing.assert_close(gp.covariance(rows.x), prior.covariance_matrix)
    torch.testing.assert_close(gp.variance(rows.x), prior.covariance_matrix.diagonal())
    cross = gp.covariance(rows.x[:6], rows.x[6:])
    torch.testing.assert_close(cross, prior.covariance_matrix[:6, 6:])


def test_only_the_block_is_evaluated(
    deep_model: object, rows: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []
    original = gpytorch.kernels.RBFKernel.forward

    def spy(self: object, x1: torch.Tensor, x2: torch.Tensor, **options: object) -> object:
        sizes.append((x1.shape[-2], x2.shape[-2]))
        return original(self, x1, x2, **options)

    monkeypatch.setattr(gpytorch.kernels.RBFKernel, "forward", spy)
    process(deep_model, rows).covariance(rows.x[:6], rows.x[6:])
    assert sizes == [(6, 34)]


def test_batch_shape_and_broadcasting(make_model: type, rows: object) -> None:
    shape = torch.Size([3])
    model = make_model(
        lambda m: SiteStrategy(m, InducingPoints(inducing_points=rows.z), batch_shape=shape),
        kernel=gpytorch.kernels.RBFKernel(batch_shape=shape),
    )
    gp = process(model, rows)
    assert gp.batch_shape == (3,)
    assert gp.mean(rows.x).shape == gp.variance(rows.x).shape == (3, 40)
    x = rows.x.expand(2, 1, -1, -1)
    assert gp.covariance(rows.z, x).shape == (2, 3, 7, 40)


def test_snapshot_keeps_values_and_passes_gradients(deep_model: object, rows: object) -> None:
    live = process(deep_model, rows)
    snapshot = live.snapshot()
    before = snapshot.covariance(rows.x[:4])
    deep_model.covar_module.outputscale = 5.0
    with torch.no_grad():
        for parameter in deep_model.features.parameters():
            parameter.add_(0.1)
    torch.testing.assert_close(snapshot.covariance(rows.x[:4]), before, rtol=0, atol=0)
    assert (live.covariance(rows.x[:4]) - before).abs().max() > 1.0
    before.sum().backward()
    assert deep_model.features[0].weight.grad.abs().sum() > 0
    names = [name for name, _ in snapshot.model.named_modules()]
    assert not any("variational_strategy" in name for name in names)


def test_detached_copy_can_be_pickled_and_is_small(deep_model: object, rows: object) -> None:
    deep_model.variational_strategy.register_buffer("ballast", torch.zeros(100_000))
    gp = process(deep_model, rows).detach()
    data = pickle.dumps(gp)
    assert len(data) < 50_000
    for twin in (pickle.loads(data), copy.deepcopy(gp)):
        torch.testing.assert_close(twin.mean(rows.x), gp.mean(rows.x))
    assert not any(value.requires_grad for value in gp.model._parameters.values() if value)


def test_detached_posterior_can_be_pickled(deep_model: object, rows: object) -> None:
    posterior = deep_model.variational_strategy.posterior(rows.x).detach()
    twin = pickle.loads(pickle.dumps(posterior))
    torch.testing.assert_close(twin.predict(rows.x).mean, posterior.predict(rows.x).mean)


def test_feature_extractor_trains(deep_model: object, rows: object) -> None:
    likelihood = GaussianLikelihood(noise=0.1)
    mll = gpytorch.mlls.VariationalELBO(likelihood, deep_model, num_data=len(rows.x))
    optimizer = torch.optim.Adam(deep_model.parameters(), lr=0.05)
    start = deep_model.features[0].weight.clone()
    trace = []
    for _ in range(15):
        optimizer.zero_grad()
        loss = -mll(deep_model(rows.x), rows.y)
        loss.backward()
        optimizer.step()
        trace.append(loss.item())
    assert trace[-1] < trace[0]
    assert not torch.equal(deep_model.features[0].weight, start)


def test_spectral_normalisation_advances_in_the_live_model(
    deep_model: object, rows: object
) -> None:
    with torch.random.fork_rng():
        torch.nn.utils.parametrizations.spectral_norm(deep_model.features[0], n_power_iterations=1)
    buffers = dict(deep_model.features.named_buffers())
    before = {name: value.clone() for name, value in buffers.items()}
    with torch.no_grad():
        deep_model.features[0].parametrizations.weight.original.add_(
            torch.tensor([[1.0], [-2.0], [3.0]], dtype=torch.float64)
        )
    deep_model(rows.x)
    assert any(not torch.equal(buffers[name], before[name]) for name in before)
    deep_model.eval()
    before = {name: value.clone() for name, value in buffers.items()}
    deep_model(rows.x)
    assert all(torch.equal(buffers[name], before[name]) for name in before)


@pytest.mark.parametrize("module", [torch.nn.Dropout(0.5), torch.nn.BatchNorm1d(1)])
def test_features_that_are_no_function_of_the_row(
    module: torch.nn.Module, make_model: type, rows: object
) -> None:
    model = make_model(
        lambda m: SiteStrategy(m, InducingPoints(inducing_points=rows.z)), features=module.train()
    )
    with pytest.raises(UnsupportedError, match="LayerNorm"):
        model(rows.x)
    module.eval()
    model(rows.x)


def test_kernel_only_if_it_is_the_whole_kernel(
    deep_model: object, make_model: type, sparse_model: Callable, rows: object
) -> None:
    plain = sparse_model()
    assert process(plain, rows).kernel is plain.covar_module
    with pytest.raises(UnsupportedError, match="disagree"):
        _ = process(deep_model, rows).kernel
    nameless = sparse_model()
    nameless.other = nameless.covar_module
    del nameless.covar_module
    with pytest.raises(UnsupportedError, match="covar_module"):
        _ = process(nameless, rows).kernel
    scaled = make_model(
        lambda m: SiteStrategy(m, White(), train_inputs=rows.x),
        kernel=WhiteKernel(),
        features=torch.nn.Identity(),
    )
    assert scaled(rows.x).variance.shape == (40,)


def test_white_refuses_a_model_with_correlations(make_model: type, rows: object) -> None:
    model = make_model(lambda m: SiteStrategy(m, White(), train_inputs=rows.x))
    with pytest.raises(UnsupportedError, match="White needs a white kernel"):
        model(rows.x)


def test_forward_must_return_one_normal_per_row(sparse_model: Callable, rows: object) -> None:
    model = sparse_model()
    single = model.forward
    model.forward = lambda x: gpytorch.distributions.MultitaskMultivariateNormal.from_repeated_mvn(
        single(x), num_tasks=2
    )
    with pytest.raises(UnsupportedError, match="MultitaskMultivariateNormal"):
        model(rows.x)
    model.forward = lambda x: single(torch.cat([x, x + 1.0], -2))
    with pytest.raises(UnsupportedError, match="2 values for 1 rows"):
        model(rows.x)
    with pytest.raises(InputError, match="a few inputs"):
        ModelGaussianProcess(model, rows.x[:0])


def test_serves_approximations_directly(deep_model: object, rows: object) -> None:
    prior = Exact().prior(process(deep_model, rows), rows.x)
    posterior = prior.condition(Sites(rows.y / 0.1, torch.full_like(rows.y, 10.0)))
    covariance = deep_model.forward(rows.x).covariance_matrix
    expected = covariance @ torch.linalg.solve(covariance + 0.1 * torch.eye(40).double(), rows.y)
    torch.testing.assert_close(posterior.marginals().mean, expected)
