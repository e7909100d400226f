"""Turns of q and hyperparameters: gains, agreement between priors, refusals that leave nothing behind."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from gpvi import GPClassifier
from gpvi.approximations import (
    Approximation,
    Exact,
    GaussianProcess,
    InducingPoints,
    SparseInverseCholesky,
    StateSpace,
)
from gpvi.exceptions import InputError, UnsupportedError
from gpvi.inference import FitProblem, FitResult, cvi, ep_energy, fit
from gpvi.kernels import parse_kernel
from gpvi.likelihoods import BernoulliLikelihood, GaussianLikelihood, PoissonLikelihood


def data(rows: int = 80) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = (6.0 * torch.rand(rows, 1, dtype=torch.float64, generator=generator)).sort(0).values
    f = 3.0 * torch.sin(2.0 * x[:, 0])
    chance = torch.rand(rows, dtype=torch.float64, generator=generator)
    labels = (chance < torch.special.ndtr(f)).double()
    return x, labels, torch.poisson((f / 3.0).exp(), generator=generator)


def learned(approximation: Approximation, **options: object) -> tuple[GaussianProcess, FitResult]:
    x, labels, _ = data()
    gp = GaussianProcess(parse_kernel("matern32", 1))
    options = {"objective": "ep", "generator": torch.Generator().manual_seed(0), **options}
    return gp, fit(gp, approximation, BernoulliLikelihood(), x, labels, **options)


def energy(gp: GaussianProcess) -> float:
    x, labels, _ = data()
    q = cvi(Exact().prior(gp, x), BernoulliLikelihood(), labels, tolerance=1e-9).posterior
    return ep_energy(q, BernoulliLikelihood(), labels).item()


@pytest.mark.parametrize("optimizer", ["lbfgs", "adam"])
def test_the_energy_at_fresh_sites_grows_beyond_that_of_the_elbo(optimizer):
    start = energy(GaussianProcess(parse_kernel("matern32", 1)))
    bound, _ = learned(Exact(), objective="elbo")
    gp, result = learned(Exact(), optimizer=optimizer, max_iter=300, learning_rate=0.1)
    assert result.converged
    assert result.objective == pytest.approx(energy(gp), abs=1e-3)
    assert energy(gp) > max(start, energy(bound)) - 1e-6


@pytest.mark.parametrize(
    "approximation",
    [StateSpace(), SparseInverseCholesky(num_neighbors=79)],
    ids=["state space", "sparse inverse"],
)
def test_priors_learn_the_same(approximation):
    dense, expected = learned(Exact())
    gp, result = learned(approximation)
    assert result.objective == pytest.approx(expected.objective, abs=1e-3)
    for ours, theirs in zip(gp.parameters(), dense.parameters(), strict=True):
        assert ours.item() == pytest.approx(theirs.item(), abs=0.05)


def test_gaussian_noise_makes_it_the_evidence():
    x, _, counts = data()
    values = []
    for objective in ("elbo", "ep"):
        gp = GaussianProcess(parse_kernel("matern32", 1))
        values.append(
            fit(gp, Exact(), GaussianLikelihood(), x, counts, objective=objective).objective
        )
    assert values[0] == values[1]


def test_no_turn_is_kept_that_loses(monkeypatch: pytest.MonkeyPatch):
    """Where every other point is worse, the parameters are as they were."""
    settle, seen = FitProblem.settle, []

    def value(problem: FitProblem) -> Tensor:
        names = dict(problem.gp.named_parameters())
        total = sum((p.square().sum() for p in names.values()), torch.zeros(()).double())
        # At held sites there is a slope, at fresh ones there is none to be had.
        return total if torch.is_grad_enabled() else -(total - seen[0]).abs()

    def recording(problem: FitProblem) -> None:
        settle(problem)
        with torch.no_grad():
            seen.append(sum(p.square().sum() for p in problem.gp.parameters()))

    monkeypatch.setattr(FitProblem, "value", value)
    monkeypatch.setattr(FitProblem, "settle", recording)
    gp, result = learned(Exact(), max_iter=10)
    fresh = GaussianProcess(parse_kernel("matern32", 1))
    for ours, theirs in zip(gp.parameters(), fresh.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert result.converged


def test_callbacks_stop_it():
    _, result = learned(Exact(), callbacks=[lambda record: len(record.stage) > 0])
    assert result.stopped


def refused(expected: type[Exception], match: str, call: Callable[[], object]) -> None:
    with pytest.raises(expected, match=match):
        call()


def test_refusals(tmp_path):
    refused(UnsupportedError, "leaves part of f open", lambda: learned(InducingPoints(5)))
    refused(UnsupportedError, "batch_size=10", lambda: learned(Exact(), batch_size=10))
    path = str(tmp_path / "run")
    refused(UnsupportedError, "cannot be resumed", lambda: learned(Exact(), checkpoint=path))
    refused(
        InputError, "one of auto, tighter_elbo, elbo, ep", lambda: learned(Exact(), objective="EP")
    )


def test_counts_and_estimators():
    x, labels, counts = data()
    gp = GaussianProcess(parse_kernel("matern32", 1))
    result = fit(gp, StateSpace(), PoissonLikelihood(), x, counts, objective="ep")
    assert result.converged
    model = GPClassifier(objective="ep", approximation="exact", random_state=0).fit(
        x.numpy(), labels.numpy()
    )
    assert model.score(x.numpy(), labels.numpy()) > 0.8
