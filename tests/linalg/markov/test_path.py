"""Posterior states between rows: the same as inserting rows without a site."""

import copy
import pickle
from types import ModuleType

import pytest
import torch
from torch import Tensor

from gpvi.exceptions import InputError, NumericalError
from gpvi.linalg.markov.dense_blocks import KroneckerBlock
from gpvi.linalg.markov.launched import LaunchedBlock, SteadyBlock
from gpvi.linalg.markov.model import MarkovModel, Steps
from gpvi.linalg.markov.path import MarkovPath, markov_path
from gpvi.linalg.markov.rational import RationalBlock

ENGINES = ["compiled", "tensor"]


def close(value: Tensor, expected: Tensor, tolerance: float = 1e-11) -> None:
    torch.testing.assert_close(value, expected.expand_as(value), rtol=tolerance, atol=tolerance)


def inserted(
    dense: ModuleType,
    model: MarkovModel,
    steps: Steps,
    site: tuple[Tensor, Tensor],
    time: Tensor,
    series: Tensor,
) -> tuple[Tensor, Tensor]:
    """States at the times by the dense formulas with one more row each."""
    means, covariances = [], []
    ends = [*steps.starts.tolist()[1:], steps.num_rows]
    for t, g in zip(time, series.tolist(), strict=True):
        first = int(steps.starts[g])
        place = first + int(torch.searchsorted(steps.time[first : ends[g]], t, right=True))
        stamps = torch.cat([steps.time[:place], t[None], steps.time[place:]])
        starts = steps.starts + (torch.arange(steps.num_series) > g)
        lam1, lam2 = (
            torch.cat([v[..., :place], torch.zeros_like(v[..., :1]), v[..., place:]], -1)
            for v in site
        )
        wide = model
        if model.rows is not None:
            rows = model.rows
            rows = torch.cat([rows[..., :place, :], rows[..., :1, :], rows[..., place:, :]], -2)
            wide = MarkovModel(model.blocks, rows=rows)
        full = dense.posterior(wide, Steps(stamps, starts), lam1, lam2)
        own = slice(place * model.dimension, (place + 1) * model.dimension)
        means.append(full.state_mean[..., own])
        covariances.append(full.state_covariance[..., own, own])
    return torch.stack(means, -2), torch.stack(covariances, -3)


def queries(steps: Steps) -> tuple[Tensor, Tensor]:
    """Before, at, between and after the rows of every series, in no order."""
    times, series = [], []
    ends = [*steps.starts.tolist()[1:], steps.num_rows]
    for g, (first, end) in enumerate(zip(steps.starts.tolist(), ends, strict=True)):
        own = steps.time[first:end]
        own = torch.cat([own[:1] - 0.7, own[-1:] + 1.3, own, 0.5 * (own[1:] + own[:-1])])
        times.append(own)
        series.append(torch.full((len(own),), g))
    time, number = torch.cat(times), torch.cat(series)
    order = torch.randperm(len(time), generator=torch.Generator().manual_seed(0))
    return time[order], number[order]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("rows", [1, 2, 9])
def test_states_are_those_of_an_inserted_row(
    markov_model: MarkovModel, rows: int, engine: str, dense: ModuleType
) -> None:
    steps = dense.stamps(rows, seed=2, series=min(rows, 2), duplicates=False)
    if rows > 6:
        steps.time[6] = steps.time[5]
    site = dense.sites(rows, markov_model.batch_shape)
    path = markov_path(markov_model, steps, *site, engine=engine)
    time, series = queries(steps)
    if markov_model is dense.MODELS["wiener"]:
        # Its start is known at the first row, and there is nothing before that.
        later = time >= steps.first[series]
        time, series = time[later], series[later]
    mean, covariance = path.states(time, series)
    assert mean.shape == (*markov_model.batch_shape, len(time), markov_model.dimension)
    expected = inserted(dense, markov_model, steps, site, time, series)
    close(mean, expected[0])
    close(covariance, expected[1])


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("kind", ["rows", "product", "rational", "launched"])
def test_other_blocks_and_a_readout_per_row(kind: str, engine: str, dense: ModuleType) -> None:
    one = torch.ones(()).double()
    if kind == "rows":
        readouts = torch.randn(8, 4, generator=torch.Generator().manual_seed(0)).double()
        model = MarkovModel((dense.matern(1), dense.cosine()), rows=readouts)
    elif kind == "product":
        model = MarkovModel((KroneckerBlock(SteadyBlock.make(one, 3.0 * one), dense.matern(1)),))
    elif kind == "rational":
        model = MarkovModel((RationalBlock.rbf(4, 0.8 * one),))
    else:
        unit, origin = torch.eye(2).double(), -2.0 * one
        model = MarkovModel(
            (LaunchedBlock(1, one, one, unit, damped=False, origin=origin, noiseless=False),)
        )
    steps, site = dense.stamps(8, seed=1, series=2), dense.sites(8)
    path = markov_path(model, steps, *site, engine=engine)
    time, series = queries(steps)
    for value, wanted in zip(
        path.states(time, series),
        inserted(dense, model, steps, site, time, series),
        strict=True,
    ):
        close(value, wanted)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("per_group", [False, True])
def test_batch_dims_are_a_loop(engine: str, per_group: bool, dense: ModuleType) -> None:
    """Parameters [L], stamps [G, 1, T], sites [S, 1, L, T], times [M] or [G, 1, M]."""
    rate = torch.tensor([0.8, 1.9]).double()
    time = torch.stack([dense.stamps(6, seed=s).time for s in range(3)])[:, None]
    begin, site = torch.tensor([0]), dense.sites(6, (2, 1, 2))
    model = MarkovModel((dense.matern(1, rate),))
    path = markov_path(model, Steps(time, begin), *site, engine=engine)
    places = torch.tensor([3.0, -1.0, 0.5, 20.0]).double()
    if per_group:
        places = places + torch.arange(3)[:, None, None]
    mean, covariance = path.states(places)
    assert mean.shape == (2, 3, 2, 4, 2) and covariance.shape == (2, 3, 2, 4, 2, 2)
    for s in range(2):
        for g in range(3):
            for k in range(2):
                alone = markov_path(
                    MarkovModel((dense.matern(1, rate[k]),)),
                    Steps(time[g, 0], begin),
                    site[0][s, 0, k],
                    site[1][s, 0, k],
                    engine=engine,
                )
                m, P = alone.states(places[g, 0] if per_group else places)
                close(mean[s, g, k], m)
                close(covariance[s, g, k], P)


def test_both_engines_leave_the_same(markov_model: MarkovModel, dense: ModuleType) -> None:
    steps, site = dense.stamps(20, series=2), dense.sites(20, markov_model.batch_shape)
    one, two = (markov_path(markov_model, steps, *site, engine=engine) for engine in ENGINES)
    close(one.store, two.store)
    close(one.adjoint, two.adjoint)


def test_shared_parameters_and_sites_in_batches(dense: ModuleType) -> None:
    model, steps, site = dense.MODELS["matern32"], dense.stamps(5), dense.sites(5, (3,))
    path = markov_path(model, steps, *site)
    mean, _ = path.states(torch.tensor([0.1, 9.0]).double())
    for b in range(3):
        alone = markov_path(model, steps, site[0][b], site[1][b])
        close(mean[b], alone.states(torch.tensor([0.1, 9.0]).double())[0])


def test_a_path_is_off_the_graph_and_can_be_kept(dense: ModuleType) -> None:
    rate = torch.tensor(1.3).double().requires_grad_()
    steps, site = dense.stamps(5), dense.sites(5)
    path = markov_path(MarkovModel((dense.matern(1, rate),)), steps, *site)
    time = torch.tensor([0.3]).double()
    assert not path.store.requires_grad and not path.adjoint.requires_grad
    expected = path.states(time)[0].detach()
    for other in (pickle.loads(pickle.dumps(path)), copy.deepcopy(path)):
        assert isinstance(other, MarkovPath)
        assert torch.equal(other.states(time)[0].detach(), expected)


def test_float32(dense: ModuleType) -> None:
    steps, site = dense.stamps(6), dense.sites(6)
    path = markov_path(dense.MODELS["matern32"], steps, *site)
    single = MarkovModel((dense.matern(1, dtype=torch.float32),))
    short = markov_path(single, Steps.single(steps.time.float()), *(s.float() for s in site))
    time = torch.tensor([0.2, 1.7, 30.0])
    mean, covariance = short.states(time)
    assert mean.dtype == covariance.dtype == torch.float64
    close(mean, path.states(time.double())[0], 1e-5)


def test_wrong_calls_are_refused(dense: ModuleType) -> None:
    model, steps, site = dense.MODELS["matern32"], dense.stamps(6, series=2), dense.sites(6)
    wide = MarkovModel(model.blocks, outputs=torch.eye(2).double())
    with pytest.raises(InputError, match="outputs"):
        markov_path(wide, steps, *site)
    with pytest.raises(InputError, match=r"\(5,\)"):
        markov_path(model, steps, site[0][:5], site[1])
    with pytest.raises(InputError, match="2 series"):
        markov_path(model, steps, *site).states(torch.zeros(1).double())
    for engine in ENGINES:
        with pytest.raises(NumericalError, match="row 3"):
            lam2 = site[1].clone()
            lam2[3] = -50.0
            markov_path(model, steps, site[0], lam2, engine=engine)
