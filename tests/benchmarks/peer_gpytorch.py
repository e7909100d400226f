"""GPyTorch: stochastic variational GP by Adam, the same by natural gradients, and SGPR.

All run in float32, the library's default, unless told otherwise; inducing points start at mini-batch
k-means centres.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import gpytorch
import numpy as np
import torch
from sklearn.cluster import MiniBatchKMeans
from splits import Array, Split

__all__ = [
    "Collapsed",
    "GPyTorchPeer",
    "NaturalVariational",
    "Variational",
    "starting_kernel",
    "starting_likelihood",
]

Latent: TypeAlias = gpytorch.distributions.MultivariateNormal

CHUNK = 4096
"""Rows predicted or scored at a time."""


def starting_kernel(num_inputs: int, lengthscale: float) -> gpytorch.kernels.Kernel:
    """Matern-5/2 with a lengthscale per input, all at the same value."""
    base = gpytorch.kernels.MaternKernel(nu=2.5, ard_num_dims=num_inputs)
    base.lengthscale = lengthscale
    return gpytorch.kernels.ScaleKernel(base)


def starting_likelihood(kind: str) -> gpytorch.likelihoods.Likelihood:
    """Of a kind of targets; the noise variance of real ones starts at a tenth."""
    if kind == "binary":
        return gpytorch.likelihoods.BernoulliLikelihood()
    if kind == "counts":
        return gpytorch.likelihoods.PoissonLikelihood()
    likelihood = gpytorch.likelihoods.GaussianLikelihood()
    likelihood.noise = 0.1
    return likelihood


def _centres(inputs: Array, num_inducing: int, seed: int) -> Array:
    means = MiniBatchKMeans(num_inducing, random_state=seed, n_init=1, batch_size=CHUNK)
    return np.asarray(means.fit(inputs).cluster_centers_)


class _VariationalModel(gpytorch.models.ApproximateGP):
    def __init__(self, inducing: torch.Tensor, natural: bool, lengthscale: float) -> None:
        variational = gpytorch.variational
        family = (
            variational.NaturalVariationalDistribution
            if natural
            else variational.CholeskyVariationalDistribution
        )
        super().__init__(
            variational.VariationalStrategy(
                self, inducing, family(len(inducing)), learn_inducing_locations=True
            )
        )
        self.mean_module = gpytorch.means.ConstantMean()
        self.covar_module = starting_kernel(inducing.shape[-1], lengthscale)

    def forward(self, inputs: torch.Tensor) -> gpytorch.distributions.MultivariateNormal:
        return gpytorch.distributions.MultivariateNormal(
            self.mean_module(inputs), self.covar_module(inputs)
        )


class _CollapsedModel(gpytorch.models.ExactGP):
    def __init__(
        self,
        inputs: torch.Tensor,
        targets: torch.Tensor,
        likelihood: gpytorch.likelihoods.GaussianLikelihood,
        inducing: torch.Tensor,
        lengthscale: float,
    ) -> None:
        super().__init__(inputs, targets, likelihood)
        self.mean_module = gpytorch.means.ConstantMean()
        self.covar_module = gpytorch.kernels.InducingPointKernel(
            starting_kernel(inputs.shape[-1], lengthscale), inducing, likelihood
        )

    def forward(self, inputs: torch.Tensor) -> gpytorch.distributions.MultivariateNormal:
        return gpytorch.distributions.MultivariateNormal(
            self.mean_module(inputs), self.covar_module(inputs)
        )


class GPyTorchPeer:
    """What its models share: tensors of one precision and prediction in chunks."""

    settings: dict[str, Any]
    _model: gpytorch.models.GP
    _likelihood: gpytorch.likelihoods.Likelihood

    def __init__(
        self,
        seed: int,
        num_inducing: int,
        steps: int,
        learning_rate: float,
        lengthscale: float = 1.0,
        dtype: str = "float32",
    ) -> None:
        torch.set_num_threads(1)
        # Parameters of its modules are made in the default precision.
        torch.set_default_dtype(getattr(torch, dtype))
        self.settings = {
            "num_inducing": num_inducing,
            "steps": steps,
            "learning_rate": learning_rate,
            "lengthscale": lengthscale,
            "dtype": dtype,
        }
        self._seed = seed

    def _train(self, split: Split, num_inducing: int, steps: int) -> None:
        raise NotImplementedError

    def _tensor(self, values: Array) -> torch.Tensor:
        return torch.as_tensor(values, dtype=getattr(torch, self.settings["dtype"]))

    def warm_up(self, split: Split, num_inducing: int) -> None:
        self._train(split, num_inducing, steps=2)
        self._collected(split.test_inputs, lambda latent: (latent.mean, latent.variance))

    def fit(self, split: Split) -> None:
        self._train(split, self.settings["num_inducing"], self.settings["steps"])

    def _collected(
        self, inputs: Array, function: Callable[[Latent], tuple[torch.Tensor, ...]]
    ) -> tuple[Array, ...]:
        """What ``function`` makes of the latent prediction, for some rows at a time."""
        self._model.eval()
        self._likelihood.eval()
        with torch.no_grad():
            pieces = [function(self._model(rows)) for rows in self._tensor(inputs).split(CHUNK)]
        return tuple(torch.cat(columns).double().numpy() for columns in zip(*pieces, strict=True))

    def predict(self, inputs: Array) -> tuple[Array, Array]:
        def moments(latent: Latent) -> tuple[torch.Tensor, ...]:
            predictive = self._likelihood(latent)
            return predictive.mean, predictive.variance

        mean, variance = self._collected(inputs, moments)
        return mean, variance


class Variational(GPyTorchPeer):
    """Minibatch SVGP: Adam on everything, learning rate cut tenfold at 75 % and at 90 %.

    Labels have a probit link; the rate of counts is the softplus of the latent function, as the
    library has it.
    """

    natural = False

    def __init__(
        self,
        seed: int,
        num_inducing: int,
        steps: int,
        batch_size: int,
        learning_rate: float,
        lengthscale: float = 1.0,
        dtype: str = "float32",
    ) -> None:
        super().__init__(seed, num_inducing, steps, learning_rate, lengthscale, dtype)
        self.settings["batch_size"] = batch_size

    def _optimisers(self, num_data: int) -> list[torch.optim.Optimizer]:
        parameters = [*self._model.parameters(), *self._likelihood.parameters()]
        return [torch.optim.Adam(parameters, lr=self.settings["learning_rate"])]

    def _train(self, split: Split, num_inducing: int, steps: int) -> None:
        torch.manual_seed(self._seed)
        inputs, targets = self._tensor(split.train_inputs), self._tensor(split.train_targets)
        centres = self._tensor(_centres(split.train_inputs, num_inducing, self._seed))
        self._model = _VariationalModel(centres, self.natural, self.settings["lengthscale"])
        self._likelihood = starting_likelihood(split.kind)
        bound = gpytorch.mlls.VariationalELBO(self._likelihood, self._model, len(targets))
        optimisers = self._optimisers(len(targets))
        schedule = torch.optim.lr_scheduler.MultiStepLR(
            optimisers[0], [int(0.75 * steps), int(0.9 * steps)], gamma=0.1
        )
        self._model.train()
        self._likelihood.train()
        done = 0
        while done < steps:
            for batch in torch.randperm(len(targets)).split(self.settings["batch_size"]):
                for optimiser in optimisers:
                    optimiser.zero_grad()
                loss = -bound(self._model(inputs[batch]), targets[batch])
                loss.backward()
                for optimiser in optimisers:
                    optimiser.step()
                schedule.step()
                done += 1
                if done == steps:
                    break

    def predict_proba(self, inputs: Array) -> Array:
        (probability,) = self._collected(inputs, lambda latent: (self._likelihood(latent).mean,))
        return probability

    def predict_counts(self, inputs: Array, counts: Array) -> tuple[Array, Array]:
        remaining = iter(self._tensor(counts).split(CHUNK))

        def rate_and_density(latent: Latent) -> tuple[torch.Tensor, ...]:
            rate = self._likelihood.quadrature(lambda f: self._likelihood.forward(f).mean, latent)
            return rate, self._likelihood.log_marginal(next(remaining), latent)

        rate, log_density = self._collected(inputs, rate_and_density)
        return rate, log_density

    def objective(self, split: Split) -> float | None:
        self._model.train()
        inputs, targets = self._tensor(split.train_inputs), self._tensor(split.train_targets)
        total = 0.0
        with torch.no_grad():
            for rows, values in zip(inputs.split(CHUNK), targets.split(CHUNK), strict=True):
                latent = self._model(rows)
                total += float(self._likelihood.expected_log_prob(values, latent).double().sum())
            total -= float(self._model.variational_strategy.kl_divergence())
        return total


class NaturalVariational(Variational):
    """The same with natural gradients for the variational distribution and Adam for the rest."""

    natural = True

    def __init__(
        self,
        seed: int,
        num_inducing: int,
        steps: int,
        batch_size: int,
        learning_rate: float,
        natural_learning_rate: float,
    ) -> None:
        super().__init__(seed, num_inducing, steps, batch_size, learning_rate)
        self.settings["natural_learning_rate"] = natural_learning_rate

    def _optimisers(self, num_data: int) -> list[torch.optim.Optimizer]:
        others = [*self._model.hyperparameters(), *self._likelihood.parameters()]
        return [
            torch.optim.Adam(others, lr=self.settings["learning_rate"]),
            gpytorch.optim.NGD(
                self._model.variational_parameters(),
                num_data=num_data,
                lr=self.settings["natural_learning_rate"],
            ),
        ]


class Collapsed(GPyTorchPeer):
    """SGPR (collapsed bound) through ``InducingPointKernel``, full-batch Adam."""

    def __init__(
        self,
        seed: int,
        num_inducing: int,
        steps: int,
        learning_rate: float,
        dtype: str = "float32",
    ) -> None:
        super().__init__(seed, num_inducing, steps, learning_rate, dtype=dtype)

    def _train(self, split: Split, num_inducing: int, steps: int) -> None:
        torch.manual_seed(self._seed)
        inputs, targets = self._tensor(split.train_inputs), self._tensor(split.train_targets)
        centres = self._tensor(_centres(split.train_inputs, num_inducing, self._seed))
        self._likelihood = starting_likelihood(split.kind)
        self._model = _CollapsedModel(
            inputs, targets, self._likelihood, centres, self.settings["lengthscale"]
        )
        bound = gpytorch.mlls.ExactMarginalLogLikelihood(self._likelihood, self._model)
        optimiser = torch.optim.Adam(self._model.parameters(), lr=self.settings["learning_rate"])
        self._model.train()
        self._likelihood.train()
        for _ in range(steps):
            optimiser.zero_grad()
            loss = -bound(self._model(inputs), targets)
            loss.backward()
            optimiser.step()
        self._last = -float(np.float64(loss.detach())) * len(targets)

    def objective(self, split: Split) -> float | None:
        return self._last
