"""A sparse inverse Cholesky q in a plain GPyTorch loop: estimates, training, copies, errors."""

import copy
import pickle

import gpytorch
import pytest
import torch
from gpytorch.distributions import MultivariateNormal
from torch import Tensor

from gpvi.approximations import Exact
from gpvi.approximations.sparse_inverse import SparseInverseCholesky
from gpvi.exceptions import InputError, UnsupportedError
from gpvi.inference import cvi, elbo
from gpvi.likelihoods import BernoulliLikelihood, GaussianLikelihood
from gpvi.strategies import SiteStrategy, SparseInverseStrategy

SIZE = 60
GENERATOR = torch.Generator().manual_seed(0)
X = torch.rand(SIZE, 2, generator=GENERATOR, dtype=torch.float64)
X[3] = X[7]  # one location
CHANCE = torch.rand(SIZE, generator=GENERATOR, dtype=torch.float64)
LABELS = (CHANCE < torch.sigmoid(4 * (6 * X[:, 0]).sin())).double()
NEW = torch.rand(5, 2, generator=GENERATOR, dtype=torch.float64)


class Model(gpytorch.models.ApproximateGP):
    """A user's model."""

    def __init__(self, *batch: int, x: Tensor = X, wrap=lambda strategy: strategy, **options):
        shape = torch.Size(batch)
        options = {"num_neighbors": 8, **options}
        strategy = SparseInverseStrategy(
            self, SparseInverseCholesky(**options), x, batch_shape=shape
        )
        super().__init__(wrap(strategy))
        self.mean_module = gpytorch.means.ConstantMean(batch_shape=shape)
        base = gpytorch.kernels.MaternKernel(nu=1.5, ard_num_dims=2, batch_shape=shape)
        base.lengthscale = 0.4
        self.covar_module = gpytorch.kernels.ScaleKernel(base, batch_shape=shape)
        self.double()

    def forward(self, x: Tensor) -> MultivariateNormal:
        return MultivariateNormal(self.mean_module(x), self.covar_module(x))

    @property
    def strategy(self) -> SparseInverseStrategy:
        return self.variational_strategy


def started(*batch: int, **options) -> Model:
    model = Model(*batch, **options)
    model.strategy.initialize_from(BernoulliLikelihood(), LABELS)
    with torch.no_grad():
        for i, parameter in enumerate(model.variational_parameters()):
            generator = torch.Generator().manual_seed(i)
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.add_(0.1 * noise)
    return model


def bound(model: Model, likelihood=None) -> gpytorch.mlls.VariationalELBO:
    likelihood = BernoulliLikelihood() if likelihood is None else likelihood
    return gpytorch.mlls.VariationalELBO(likelihood, model, num_data=SIZE)


def on_rows(model: Model, rows: Tensor) -> Tensor:
    return SIZE * bound(model)(model(X[rows], indices=rows), LABELS[rows])


class TestEstimates:
    @pytest.mark.parametrize("family", ["sic", "diagonal", "first_points"])
    def test_all_batches_average_to_the_whole(self, family):
        """Value and gradient of GPyTorch's own objective, against the bound of this package."""
        model = Model(num_neighbors=4, family=family)
        model(X)
        with torch.no_grad():
            for parameter in model.variational_parameters():
                parameter.add_(0.05 * torch.rand(parameter.shape, dtype=torch.float64))
        whole = elbo(model.strategy.posterior(), BernoulliLikelihood(), LABELS)
        order = torch.randperm(SIZE, generator=torch.Generator().manual_seed(3))
        mean = sum(on_rows(model, order.roll(i)[:7]) for i in range(SIZE)) / SIZE
        torch.testing.assert_close(mean, whole, rtol=1e-9, atol=0)
        parameters = [p for p in model.parameters() if p.numel()]
        for a, b in zip(
            torch.autograd.grad(mean, parameters),
            torch.autograd.grad(whole, parameters),
            strict=True,
        ):
            torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9)

    def test_all_rows_without_indices(self):
        model = started()
        whole = elbo(model.strategy.posterior(), BernoulliLikelihood(), LABELS)
        torch.testing.assert_close(SIZE * bound(model)(model(X), LABELS), whole)
        rows = torch.arange(SIZE)
        torch.testing.assert_close(on_rows(model, rows), whole)

    def test_divergence_is_that_of_the_last_rows(self):
        model = started()
        whole = model.strategy.posterior().kl()
        rows = torch.tensor([1, 8, 3])
        model(X[rows], indices=rows)
        estimate = model.strategy.kl_divergence()
        torch.testing.assert_close(estimate, model.strategy.posterior().rows(rows).kl())
        assert abs(estimate.item() - whole.item()) > 1e-6
        model(X)
        torch.testing.assert_close(model.strategy.kl_divergence(), whole)
        model(X[rows], indices=rows)
        model.eval()
        torch.testing.assert_close(model.strategy.kl_divergence(), whole)

    def test_basis_distributions(self):
        model = started()
        q, p = model.strategy.variational_distribution, model.strategy.prior_distribution
        expected = model.strategy.posterior().kl()
        torch.testing.assert_close(torch.distributions.kl_divergence(q, p), expected)
        samples = q.rsample((3,))
        assert samples.shape == (3, SIZE - 1) and p.log_prob(samples).shape == (3,)


class TestStart:
    @pytest.mark.parametrize("family", ["sic", "diagonal"])
    def test_near_the_fixed_point(self, family):
        model = Model(family=family)
        likelihood = BernoulliLikelihood()
        model.strategy.initialize_from(likelihood, LABELS)
        q = model.strategy.posterior()
        best = cvi(q.prior.detach(), likelihood, LABELS)
        assert elbo(q, likelihood, LABELS).item() == pytest.approx(best.objective, abs=1e-5)

    def test_at_the_prior(self):
        model = Model()
        marginals = model(X)
        torch.testing.assert_close(marginals.mean, torch.zeros(SIZE).double())
        assert model.strategy.kl_divergence().item() == pytest.approx(0.0, abs=1e-3)
        torch.testing.assert_close(marginals.variance, model.forward(X).variance, rtol=0.2, atol=0)

    def test_extras_of_rows(self):
        weights = torch.ones(SIZE).double()
        weights[:30] = 0.0
        model, other = Model(), Model()
        model.strategy.initialize_from(BernoulliLikelihood(), LABELS, weights=weights)
        missing = torch.where(weights > 0, LABELS, torch.nan)
        other.strategy.initialize_from(BernoulliLikelihood(), missing)
        a, b = (m.strategy.posterior().marginals() for m in (model, other))
        torch.testing.assert_close(a.mean, b.mean)

    def test_refresh(self):
        model = started(num_neighbors=4)
        likelihood = BernoulliLikelihood()
        assert not model.strategy.refresh(likelihood, LABELS)
        assert any(parameter.any() for parameter in model.variational_parameters())
        before = model.strategy._neighbors.neighbors.clone()
        model.covar_module.base_kernel.lengthscale = torch.tensor([0.1, 2.0])
        assert model.strategy.refresh(likelihood, LABELS)
        assert not torch.equal(before, model.strategy._neighbors.neighbors)
        assert not any(parameter.any() for parameter in model.variational_parameters())
        assert not model.strategy.refresh(likelihood, LABELS)


class TestTraining:
    def test_minibatches_raise_the_bound(self):
        model, likelihood = Model(), BernoulliLikelihood()
        model.strategy.initialize_from(likelihood, LABELS)
        with torch.no_grad():
            start = elbo(model.strategy.posterior(), likelihood, LABELS).item()
        optimizer = torch.optim.Adam(
            [
                {"params": [*model.variational_parameters()], "lr": 0.005},
                {"params": [*model.hyperparameters()], "lr": 0.02},
            ]
        )
        objective, generator = bound(model, likelihood), torch.Generator().manual_seed(0)
        for _ in range(60):
            rows = torch.randperm(SIZE, generator=generator)[:15]
            optimizer.zero_grad()
            (-objective(model(X[rows], indices=rows), LABELS[rows])).backward()
            optimizer.step()
        assert all(parameter.grad is not None for parameter in model.parameters())
        with torch.no_grad():
            assert elbo(model.strategy.posterior(), likelihood, LABELS).item() > start + 0.5

    def test_parameters_are_sorted(self):
        model = Model()
        names = [name for name, _ in model.named_variational_parameters()]
        assert {name.rsplit(".", 1)[1] for name in names} == {
            "shift",
            "off_diagonal",
            "log_diagonal",
        }
        assert len([*model.hyperparameters()]) == 3


class TestPredict:
    def test_joint_covariance(self):
        model = started().eval()
        with torch.no_grad():
            ours, q = model(NEW), model.strategy.posterior()
            theirs = q.predict(NEW, joint=True)
        torch.testing.assert_close(ours.mean, q.predict(NEW).mean)
        torch.testing.assert_close(ours.covariance_matrix, theirs.covariance_matrix)
        off = ours.covariance_matrix - ours.covariance_matrix.diagonal().diag()
        assert off.abs().max() > 1e-3

    def test_joint_covariance_in_training(self):
        """As wrappers of several outputs ask for."""
        model, rows = started(), torch.tensor([4, 0, 9])
        joint = model(X[rows], indices=rows, diag=False)
        expected = model.strategy.posterior().predict(X[rows], joint=True)
        torch.testing.assert_close(joint.covariance_matrix, expected.covariance_matrix)
        assert joint.covariance_matrix.requires_grad

    def test_follows_changes(self):
        model = started().eval()
        with torch.no_grad():
            before = model(NEW).mean
            torch.testing.assert_close(model(NEW).mean, before, rtol=0, atol=0)
            model.strategy._variational_distribution.shift.add_(0.5)
            assert not torch.equal(model(NEW).mean, before)

    def test_prior(self):
        torch.testing.assert_close(Model()(NEW, prior=True).mean, torch.zeros(5).double())


class TestCopies:
    def same(self, first: Model, second: Model) -> None:
        with torch.no_grad():
            a, b = first.eval()(NEW), second.eval()(NEW)
            assert torch.equal(a.mean, b.mean)
            assert torch.equal(a.covariance_matrix, b.covariance_matrix)

    def test_deepcopy_and_pickle(self):
        model = started()
        model(X)
        self.same(model, copy.deepcopy(model))
        self.same(model, pickle.loads(pickle.dumps(model)))

    def test_state_dict(self):
        """Neighbours come along, also where the new model would find others."""
        model = started()
        model.covar_module.base_kernel.lengthscale = torch.tensor([0.1, 2.0])
        other = Model()
        other(X)
        other.load_state_dict(model.state_dict())
        self.same(model, other)

    def test_dtypes(self):
        model = started()
        half = copy.deepcopy(model).float().eval()
        assert half.strategy._neighbors.neighbors.dtype == torch.int32
        with torch.no_grad():
            mean = half(NEW.float()).mean
            assert mean.dtype == torch.float32
            torch.testing.assert_close(mean.double(), model.eval()(NEW).mean, rtol=0, atol=1e-3)
            back = half.double().to("cpu")(NEW).mean
            torch.testing.assert_close(back, mean.double(), rtol=0, atol=1e-3)

    def test_single_precision_from_the_start(self):
        model = Model(x=X.float()).float()
        model.strategy.initialize_from(BernoulliLikelihood(), LABELS.float())
        rows = torch.tensor([4, 2])
        output = model(X[rows].float(), indices=rows)
        loss = bound(model)(output, LABELS[rows].float())
        loss.backward()
        assert loss.dtype == torch.float32
        assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())


class TestBatches:
    def test_several_latents(self):
        model = Model(2)
        y = torch.stack([LABELS, 1.0 - LABELS])
        model.strategy.initialize_from(GaussianLikelihood(noise=0.5), y)
        rows = torch.tensor([9, 1, 30])
        output = model(X[rows], indices=rows)
        assert output.batch_shape == (2,)
        assert model.strategy.kl_divergence().shape == (2,)
        value = bound(model, GaussianLikelihood(noise=0.5))(output, y[:, rows])
        value.sum().backward()
        assert all(parameter.grad is not None for parameter in model.parameters())
        model.eval()
        assert model(NEW).covariance_matrix.shape == (2, 5, 5)

    def test_independent_tasks(self):
        def wrap(strategy):
            return gpytorch.variational.IndependentMultitaskVariationalStrategy(
                strategy, num_tasks=2
            )

        model = Model(2, wrap=wrap)
        rows = torch.tensor([9, 1, 30])
        output = model(X[rows], indices=rows)
        assert output.event_shape == (3, 2)
        likelihood = gpytorch.likelihoods.MultitaskGaussianLikelihood(num_tasks=2).double()
        targets = torch.stack([LABELS, LABELS], -1)[rows]
        value = gpytorch.mlls.VariationalELBO(likelihood, model, num_data=SIZE)(output, targets)
        assert torch.isfinite(value)

    def test_batch_shapes_must_agree(self):
        model = Model()
        model.covar_module = gpytorch.kernels.ScaleKernel(
            gpytorch.kernels.MaternKernel(batch_shape=torch.Size([2])), batch_shape=torch.Size([2])
        ).double()
        with pytest.raises(InputError, match=r"pass batch_shape=torch.Size\(\[2\]\)"):
            model(X)


class TestErrors:
    @pytest.mark.parametrize(
        ("x", "indices", "message"),
        [
            (X[:5], None, "is not the training rows"),
            (X[:5], torch.arange(1, 6), "is not the training rows"),
            (X[:5], torch.arange(4), "the int64 numbers of the 5"),
            (X[:2], torch.tensor([0.0, 1.0]), "the int64 numbers of the 2"),
            (X[:2], torch.tensor([0, SIZE]), "beyond the 60"),
            (X[:2], torch.tensor([-1, 1]), "beyond the 60"),
            (X[:0], torch.zeros(0, dtype=torch.int64), "at least one"),
        ],
    )
    def test_other_rows(self, x, indices, message):
        with pytest.raises(InputError, match=message):
            Model()(x, indices=indices)

    def test_indices_in_eval_mode(self):
        with pytest.raises(InputError, match="eval mode"):
            Model().eval()(X[:2], indices=torch.arange(2))

    @pytest.mark.parametrize("x", [X.unsqueeze(0), X[:0], torch.full((2, 2), torch.nan)])
    def test_inputs(self, x):
        with pytest.raises(InputError, match=r"finite numbers of shape \[N, D\]"):
            Model(x=x)

    def test_other_approximations(self):
        with pytest.raises(UnsupportedError, match="approximation is a Exact"):
            SparseInverseStrategy(gpytorch.models.ApproximateGP(None), Exact(), X)

    def test_strategies_inside(self):
        model = Model()
        with pytest.raises(UnsupportedError, match="is a strategy itself"):
            SparseInverseStrategy(model.strategy, SparseInverseCholesky(), X)

    def test_fantasies(self):
        with pytest.raises(UnsupportedError, match="fantasy"):
            Model().strategy.get_fantasy_model()

    def test_parameters_alone(self):
        with pytest.raises(UnsupportedError, match="ask the strategy"):
            Model().strategy._variational_distribution()

    def test_kernels_inside_features(self):
        """Neighbours need the whole kernel."""
        model = Model()
        model.forward = lambda x: MultivariateNormal(
            model.mean_module(x), model.covar_module(3.0 * x)
        )
        with pytest.raises(UnsupportedError, match="disagree"):
            model(X)


class TestSites:
    @pytest.mark.parametrize("site_parameters", ["gradient", "natural"])
    def test_data_sites(self, site_parameters):
        """The strategy of sites takes this approximation as well, for all rows at once."""

        class Sited(Model):
            def __init__(self) -> None:
                super().__init__()
                self.variational_strategy = SiteStrategy(
                    self,
                    SparseInverseCholesky(8),
                    train_inputs=X,
                    site_parameters=site_parameters,
                ).double()

        model, likelihood = Sited(), BernoulliLikelihood()
        if site_parameters == "natural":
            for _ in range(5):
                model.variational_strategy.natural_step(likelihood, X, LABELS, step_size=0.8)
        values, optimizer = [], torch.optim.Adam(model.parameters(), lr=0.05)
        for _ in range(8):
            optimizer.zero_grad()
            loss = -bound(model, likelihood)(model(X), LABELS)
            loss.backward()
            optimizer.step()
            values.append(-loss.item())
        assert values[-1] > values[0]
        assert model.eval()(NEW).covariance_matrix.shape == (5, 5)
