"""GPyTorch's variational nearest-neighbour process (VNNGP), a worker of ``bench_sparse_inverse.py``.

``NNVariationalStrategy`` with the kernel of the others, trained by Adam for a given CPU time, set-up
included; the learning rate is cut tenfold at 75 % and at 90 % of it. Rows are in random order; float32
and a jitter of 1e-3 are the defaults of the library. The variational means start at the prior mean, as
the library has it, or at the targets (``--start targets``), which needs fewer epochs.

Without faiss the library refits a scikit-learn tree for every row to find its earlier neighbours (minutes to
hours from 50,000 rows on). They are found here by a few queries of one tree per doubling block: the same
neighbours, in a second or two.
"""

from __future__ import annotations

import time
import warnings
from dataclasses import replace
from typing import Any

import gpytorch
import numpy as np
import torch
from scipy.spatial import cKDTree
from spatial_cases import (
    COVARIANCE_CASE,
    ISOTROPIC,
    Array,
    Job,
    Split,
    covariance_scores,
    cpu_seconds,
    load_case,
    parse_job,
    print_row,
    scores,
)
from splits import synthetic_split
from torch import Tensor

__all__ = ["MEASURES", "earlier_neighbors"]

MIN_LEARNING_RATE_AFTER = ((0.9, 0.01), (0.75, 0.1))
STARTING_LENGTHSCALE = {"modis50k": 0.3, "uniform": 0.3}
STARTING_NOISE = 0.1
PREDICTION_ROWS = 4096
WARM_UP_ROWS = 300
WARM_UP_SECONDS = 0.5


def earlier_neighbors(points: Array, neighbors: int) -> Array:
    """Numbers of the nearest earlier points of points ``neighbors`` and later, [M - k, k]."""
    found = np.empty((len(points), neighbors), np.int64)
    first = neighbors
    while first < len(points):
        end = min(2 * first, len(points))
        tree = cKDTree(points[:end])
        rows, asked = np.arange(first, end), 2 * neighbors + 4
        while len(rows):
            asked = min(asked, end)
            near = tree.query(points[rows], asked)[1]
            earlier = near < rows[:, None]
            done = earlier.sum(1) >= neighbors
            # A stable sort moves earlier ones to the front and keeps them by distance.
            front = np.argsort(~earlier[done], axis=1, kind="stable")[:, :neighbors]
            found[rows[done]] = np.take_along_axis(near[done], front, 1)
            rows, asked = rows[~done], 2 * asked
        first = end
    return found[neighbors:]


class Strategy(gpytorch.variational.NNVariationalStrategy):
    """The library's strategy with its neighbours found faster."""

    def _compute_nn(self) -> Strategy:
        points = self.inducing_points.detach()
        self.nn_util.set_nn_idx(points.float())
        found = earlier_neighbors(points.double().numpy(), self.k)
        self.nn_xinduce_idx = torch.from_numpy(found)
        return self


class NearestNeighborProcess(gpytorch.models.ApproximateGP):
    """A process through its values at all training inputs, with a diagonal variational covariance."""

    def __init__(
        self, points: Tensor, job: Job, mean: gpytorch.means.Mean, kernel: gpytorch.kernels.Kernel
    ) -> None:
        distribution = gpytorch.variational.MeanFieldVariationalDistribution(len(points))
        batch_size = min(job.batch_size, len(points))
        strategy = Strategy(
            self, points, distribution, k=job.neighbors, training_batch_size=batch_size
        )
        super().__init__(strategy)
        self.mean_module, self.covar_module = mean, kernel

    def forward(self, x: Tensor) -> gpytorch.distributions.MultivariateNormal:
        """The prior."""
        return gpytorch.distributions.MultivariateNormal(self.mean_module(x), self.covar_module(x))

    def __call__(self, x: Tensor | None, **_: object) -> gpytorch.distributions.Distribution:
        """The next batch of the training points (None), or the posterior."""
        return self.variational_strategy(x=x, prior=False)


class Trained:
    """A model and its likelihood, trained until the CPU time is spent."""

    def __init__(
        self, job: Job, split: Split, mean: gpytorch.means.Mean, kernel: gpytorch.kernels.Kernel
    ) -> None:
        start = time.process_time()
        torch.manual_seed(job.seed)
        order = np.random.default_rng(job.seed).permutation(len(split.train_targets))
        self._split, self._job = split, job
        points, self._targets = (
            torch.from_numpy(values[order]).float()
            for values in (split.train_inputs, split.train_targets)
        )
        self.model = NearestNeighborProcess(points, job, mean, kernel)
        self.likelihood = gpytorch.likelihoods.GaussianLikelihood()
        self.likelihood.noise = STARTING_NOISE
        if job.start == "targets":
            self._start_at_targets()
        self.set_up_cpu_s = time.process_time() - start
        self.steps = 0
        self._start = start

    def _start_at_targets(self) -> None:
        strategy = self.model.variational_strategy
        distribution = strategy._variational_distribution
        distribution.variational_mean.data.copy_(self._targets)
        distribution._variational_stddev.data.fill_(STARTING_NOISE**0.5)
        strategy.variational_params_initialized.fill_(1)

    def train(self) -> None:
        """Adam until the time is up, counted from the start of the set-up."""
        job = self._job
        objective = gpytorch.mlls.VariationalELBO(self.likelihood, self.model, len(self._targets))
        trained = [*self.model.parameters(), *self.likelihood.parameters()]
        optimizer = torch.optim.Adam([p for p in trained if p.requires_grad], job.learning_rate)
        self.model.train()
        self.likelihood.train()
        while (used := (time.process_time() - self._start) / job.seconds) < 1.0:
            cut = next((cut for share, cut in MIN_LEARNING_RATE_AFTER if used >= share), 1.0)
            optimizer.param_groups[0]["lr"] = cut * job.learning_rate
            optimizer.zero_grad()
            output = self.model(None)
            rows = self.model.variational_strategy.current_training_indices
            (-objective(output, self._targets[rows])).backward()
            optimizer.step()
            self.steps += 1
        self.fit_cpu_s = time.process_time() - self._start
        self.model.eval()
        self.likelihood.eval()

    def latent(self) -> tuple[Array, Array]:
        """Mean and covariance of the function at the test inputs, as the library returns it."""
        inputs = torch.from_numpy(self._split.test_inputs).float()
        with torch.no_grad():
            found = self.model(inputs)
        return found.mean.double().numpy(), found.covariance_matrix.double().numpy()

    def predict(self) -> tuple[Array, Array]:
        """Mean and variance of the noisy test targets."""
        parts = []
        with torch.no_grad():
            for piece in torch.from_numpy(self._split.test_inputs).float().split(PREDICTION_ROWS):
                found = self.likelihood(self.model(piece))
                parts.append(torch.stack([found.mean, found.variance]).double())
        mean, variance = torch.cat(parts, -1).numpy()
        return mean, variance


def fit(job: Job, split: Split) -> dict[str, Any]:
    """Train everything and score the predictions."""
    columns = None if job.case in ISOTROPIC else split.train_inputs.shape[1]
    kernel = gpytorch.kernels.ScaleKernel(
        gpytorch.kernels.MaternKernel(nu=1.5, ard_num_dims=columns)
    )
    kernel.base_kernel.lengthscale = STARTING_LENGTHSCALE.get(job.case, 1.0)
    kernel.outputscale = 1.0
    trained = Trained(job, split, gpytorch.means.ConstantMean(), kernel)
    trained.train()
    found: list[tuple[Array, Array]] = []
    predict = cpu_seconds(lambda: found.append(trained.predict()))
    return {
        "fit_cpu_s": trained.fit_cpu_s,
        "set_up_cpu_s": trained.set_up_cpu_s,
        "predict_cpu_s": predict,
        "steps": trained.steps,
        "epochs": round(trained.steps * job.batch_size / len(split.train_targets), 2),
        **scores(split, *found[0]),
    }


def covariance(job: Job, split: Split) -> dict[str, Any]:
    """Train the variational distribution alone, for the hyperparameters of the comparison."""
    kernel = gpytorch.kernels.ScaleKernel(gpytorch.kernels.MaternKernel(nu=2.5))
    kernel.base_kernel.lengthscale = COVARIANCE_CASE["lengthscale"]
    kernel.outputscale = COVARIANCE_CASE["outputscale"]
    trained = Trained(job, split, gpytorch.means.ZeroMean(), kernel)
    trained.likelihood.noise = COVARIANCE_CASE["noise"]
    kernel.requires_grad_(False)
    trained.likelihood.requires_grad_(False)
    trained.train()
    return {
        "fit_cpu_s": trained.fit_cpu_s,
        "steps": trained.steps,
        **covariance_scores(split, *trained.latent()),
    }


def warm_up(job: Job, split: Split) -> None:
    """A small fit and prediction: what the libraries load at their first call is not timed."""
    small = synthetic_split(WARM_UP_ROWS, split.train_inputs.shape[1], "regression")
    fit(replace(job, case="airfoil", seconds=WARM_UP_SECONDS), small)


MEASURES = {"fit": fit, "covariance": covariance}


def main() -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    job = parse_job(__doc__)
    if job.measure not in MEASURES:
        raise SystemExit(f"VNNGP has no measure {job.measure!r}; it has {', '.join(MEASURES)}")
    # It says so for every model that faiss is not there, which does not matter here.
    warnings.filterwarnings("ignore", message="Tried to import faiss")
    split = load_case(job)
    warm_up(job, split)
    found = MEASURES[job.measure](job, split)
    print_row("vnngp", job, len(split.train_targets), found)


if __name__ == "__main__":
    main()
