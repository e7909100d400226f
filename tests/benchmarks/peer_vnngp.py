"""GPyTorch's variational nearest-neighbour process (VNNGP) for real targets.

All training rows are inducing points, in random order, with a diagonal variational covariance; a
step of Adam sees some of them and their nearest earlier neighbours. float32 and a jitter of 1e-3
are the defaults of the library. The variational means start at the targets and their deviations at
that of the noise: from the prior mean, where the library starts, every row would first have to be
visited a few times. Neighbours are found by distance in the standardised inputs, as the library
does, through one tree instead of one for every row.
"""

from __future__ import annotations

import gpytorch
import numpy as np
import torch
from peer_gpytorch import GPyTorchPeer, starting_kernel, starting_likelihood
from spatial_peer_vnngp import Strategy
from splits import Split

__all__ = ["NearestNeighbor"]


class _NeighborModel(gpytorch.models.ApproximateGP):
    def __init__(
        self, points: torch.Tensor, neighbors: int, batch_size: int, lengthscale: float
    ) -> None:
        distribution = gpytorch.variational.MeanFieldVariationalDistribution(len(points))
        size = min(batch_size, len(points))
        super().__init__(
            Strategy(self, points, distribution, k=neighbors, training_batch_size=size)
        )
        self.mean_module = gpytorch.means.ConstantMean()
        self.covar_module = starting_kernel(points.shape[-1], lengthscale)

    def forward(self, inputs: torch.Tensor) -> gpytorch.distributions.MultivariateNormal:
        return gpytorch.distributions.MultivariateNormal(
            self.mean_module(inputs), self.covar_module(inputs)
        )

    def __call__(
        self, inputs: torch.Tensor | None, **_: object
    ) -> gpytorch.distributions.Distribution:
        """The next batch of the training rows (None), or the posterior."""
        return self.variational_strategy(x=inputs, prior=False)

    def start_at(self, targets: torch.Tensor, deviation: float) -> None:
        """Put the variational distribution at the targets."""
        strategy = self.variational_strategy
        distribution = strategy._variational_distribution
        distribution.variational_mean.data.copy_(targets)
        distribution._variational_stddev.data.fill_(deviation)
        strategy.variational_params_initialized.fill_(1)


class NearestNeighbor(GPyTorchPeer):
    """Adam on everything, learning rate cut tenfold at 75 % and at 90 % of the steps."""

    def __init__(
        self, seed: int, steps: int, batch_size: int, learning_rate: float, num_neighbors: int
    ) -> None:
        super().__init__(seed, 0, steps, learning_rate)
        del self.settings["num_inducing"]
        self.settings |= {"batch_size": batch_size, "num_neighbors": num_neighbors}

    def _train(self, split: Split, num_inducing: int, steps: int) -> None:
        settings = self.settings
        torch.manual_seed(self._seed)
        order = np.random.default_rng(self._seed).permutation(len(split.train_targets))
        points = self._tensor(split.train_inputs[order])
        targets = self._tensor(split.train_targets[order])
        self._model = _NeighborModel(
            points, settings["num_neighbors"], settings["batch_size"], settings["lengthscale"]
        )
        self._likelihood = starting_likelihood(split.kind)
        self._model.start_at(targets, float(self._likelihood.noise.detach()) ** 0.5)
        bound = gpytorch.mlls.VariationalELBO(self._likelihood, self._model, len(targets))
        parameters = [*self._model.parameters(), *self._likelihood.parameters()]
        optimiser = torch.optim.Adam(
            [p for p in parameters if p.requires_grad], settings["learning_rate"]
        )
        schedule = torch.optim.lr_scheduler.MultiStepLR(
            optimiser, [int(0.75 * steps), int(0.9 * steps)], gamma=0.1
        )
        self._model.train()
        self._likelihood.train()
        for _ in range(steps):
            optimiser.zero_grad()
            latent = self._model(None)
            rows = self._model.variational_strategy.current_training_indices
            (-bound(latent, targets[rows])).backward()
            optimiser.step()
            schedule.step()

    def warm_up(self, split: Split, num_inducing: int) -> None:
        self._train(split, num_inducing, steps=2)
        self.predict(split.test_inputs)

    def fit(self, split: Split) -> None:
        self._train(split, 0, self.settings["steps"])

    def objective(self, split: Split) -> float | None:
        """None: the library has its bound on random minibatches only."""
        return None
