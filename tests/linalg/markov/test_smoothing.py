"""Both engines, straight-line code and loops, against dense formulas."""

import builtins
from types import ModuleType

import pytest
import torch
from torch import Tensor

from gpvi.exceptions import EngineWarning, InputError, NumericalError, UnsupportedError
from gpvi.linalg.markov import smoothing
from gpvi.linalg.markov._compiled import PackedPasses, to_double
from gpvi.linalg.markov.blocks import (
    CascadeBlock,
    MarkovBlock,
    matern_noise,
    stationary_cascade,
)
from gpvi.linalg.markov.dense_blocks import KroneckerBlock, ScaledBlock
from gpvi.linalg.markov.launched import LaunchedBlock, SteadyBlock
from gpvi.linalg.markov.model import MarkovModel, Steps
from gpvi.linalg.markov.rational import RationalBlock
from gpvi.linalg.markov.smoothing import (
    Smoothed,
    expected_log_sites,
    markov_log_partition,
    markov_marginals,
    markov_smooth,
)
from gpvi.linalg.markov.wiener_bank import WienerBankBlock

ENGINES = ["tensor", "straight", "loops"]


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Name of an engine; "loops" keeps the compiled one from taking straight-line code."""
    if request.param == "loops":
        take_loops(monkeypatch)
    return "tensor" if request.param == "tensor" else "compiled"


def take_loops(monkeypatch: pytest.MonkeyPatch) -> None:
    def choose(model: MarkovModel, steps: Steps) -> PackedPasses:
        return PackedPasses(to_double(model), to_double(steps))

    monkeypatch.setattr(smoothing, "choose_passes", choose)


def close(value: Tensor, expected: Tensor, tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(value, expected.expand_as(value), rtol=tolerance, atol=tolerance)


def dense_smooth(
    dense: ModuleType, model: MarkovModel, steps: Steps, lam1: Tensor, lam2: Tensor
) -> Smoothed:
    full = dense.posterior(model, steps, lam1, lam2)
    variance = full.covariance.diagonal(dim1=-2, dim2=-1)
    rows = lam1 * full.mean - 0.5 * lam2 * (full.mean.square() + variance)
    total = torch.zeros_like(full.log_partition).index_add(-1, steps.series, rows)
    return Smoothed(full.log_partition, full.mean, variance, total - full.log_partition)


def parts(smoothed: Smoothed) -> tuple[Tensor, ...]:
    return smoothed.log_partition, smoothed.mean, smoothed.variance, smoothed.divergence


@pytest.mark.parametrize("rows", [1, 2, 3, 257])
def test_everything_is_the_dense_posterior(
    markov_model: MarkovModel, rows: int, engine: str, dense: ModuleType
) -> None:
    steps = dense.stamps(rows, series=min(rows, 3))
    site = dense.sites(rows, markov_model.batch_shape)
    expected = dense_smooth(dense, markov_model, steps, *site)
    smoothed = markov_smooth(markov_model, steps, *site, engine=engine)
    for value, wanted in zip(parts(smoothed), parts(expected), strict=True):
        assert value.shape == wanted.shape
        close(value, wanted, 1e-11)
    total = markov_log_partition(markov_model, steps, *site, engine=engine)
    close(total, expected.log_partition, 1e-12)
    mean, variance = markov_marginals(markov_model, steps, *site, engine=engine)
    assert torch.equal(mean, smoothed.mean) and torch.equal(variance, smoothed.variance)


KINDS = [
    *(f"matern{p}" for p in range(4)),
    *(f"hida{p}" for p in range(3)),
    "cosine",
    "wiener",
    "sum",
    "rows",
    "scaled",
    "product",
    "launched",
    "line",
    "bank",
]


def make(kind: str, dense: ModuleType, values: Tensor) -> MarkovModel:
    """Models of every kind as functions of a rate, a variance and a frequency."""
    rate, variance, frequency = values.unbind()
    one, zero = torch.ones_like(rate), torch.zeros_like(rate)
    unit = torch.eye(2).double()
    if kind.startswith("matern"):
        return MarkovModel((dense.matern(int(kind[-1]), rate, variance),))
    if kind.startswith("hida"):
        return MarkovModel((dense.matern(int(kind[-1]), rate, variance, frequency),))
    cosine = CascadeBlock(0, one, zero, variance * unit, frequency, damped=False)
    if kind == "sum":
        return MarkovModel((dense.matern(2, rate, frequency), cosine, dense.matern(0, variance)))
    if kind == "rows":
        readouts = torch.randn(7, 4, generator=torch.Generator().manual_seed(1)).double()
        blocks = (dense.matern(1, rate, frequency), cosine)
        return MarkovModel(blocks, rows=readouts * variance + 0.1 * rate)
    half_line = {"damped": False, "origin": torch.tensor(-1.0).double()}
    single: dict[str, MarkovBlock] = {
        "cosine": cosine,
        "wiener": CascadeBlock(1, one, variance, rate * unit, damped=False),
        "scaled": ScaledBlock(RationalBlock.rbf(4, rate), variance),
        "product": KroneckerBlock(
            SteadyBlock.make(variance, frequency), dense.matern(1, rate, frequency)
        ),
        "launched": LaunchedBlock(
            1, one, variance, rate * unit, frequency=None, noiseless=False, **half_line
        ),
        "line": LaunchedBlock(1, one, zero, rate * unit, noiseless=True, **half_line),
        "bank": WienerBankBlock(
            torch.stack([rate, frequency]),
            torch.stack([variance, one]),
            "increments",
            half_line["origin"],
        ),
    }
    return MarkovModel((single[kind],))


@pytest.mark.parametrize("kind", KINDS)
def test_first_derivatives_of_everything_in_everything(
    kind: str, engine: str, dense: ModuleType
) -> None:
    """Log partitions have an adjoint, moments an imaginary step; both weigh every entry."""
    steps = dense.stamps(7, seed=1, series=2, duplicates=False)
    steps.time[5] = steps.time[4]
    values = torch.tensor([1.3, 0.7, 2.1]).double()
    leaves = [values, steps.time, *dense.sites(7, seed=5)]
    generator = torch.Generator().manual_seed(3)
    weights = [torch.randn(n, generator=generator).double() for n in (2, 7, 7, 2)]

    def gradients(use_dense: bool, chosen: slice) -> tuple[Tensor, ...]:
        inputs = [leaf.clone().requires_grad_() for leaf in leaves]
        arguments = (make(kind, dense, inputs[0]), Steps(inputs[1], steps.starts), *inputs[2:])
        if use_dense:
            smoothed = dense_smooth(dense, *arguments)
        else:
            smoothed = markov_smooth(*arguments, engine=engine)
        pairs = zip(weights[chosen], parts(smoothed)[chosen], strict=True)
        loss = sum(weight @ value for weight, value in pairs)
        return torch.autograd.grad(loss, inputs, materialize_grads=True)

    for chosen in (slice(0, 1), slice(1, 3), slice(0, 4)):
        for value, wanted in zip(gradients(False, chosen), gradients(True, chosen), strict=True):
            torch.testing.assert_close(value, wanted, rtol=1e-8, atol=1e-10)


def test_gradient_of_the_log_partition_alone(
    engine: str, markov_model: MarkovModel, dense: ModuleType
) -> None:
    steps, batch = dense.stamps(30, series=3), markov_model.batch_shape
    lam1, lam2 = (site.requires_grad_() for site in dense.sites(30, batch))
    weight = torch.randn(*batch, 3, generator=torch.Generator().manual_seed(0)).double()
    total = markov_log_partition(markov_model, steps, lam1, lam2, engine=engine)
    slopes = torch.autograd.grad((weight * total).sum(), (lam1, lam2))
    smoothed = dense_smooth(dense, markov_model, steps, lam1.detach(), lam2.detach())
    rows = weight[..., steps.series]
    close(slopes[0], rows * smoothed.mean, 1e-11)
    close(slopes[1], -0.5 * rows * (smoothed.mean.square() + smoothed.variance), 1e-11)


@pytest.mark.parametrize("kind", ["matern1", "hida0", "sum"])
def test_gradcheck(kind: str, dense: ModuleType) -> None:
    steps = dense.stamps(6, seed=3, series=2, duplicates=False)
    arguments = (torch.tensor([1.3, 0.7, 2.1]).double(), steps.time, *dense.sites(6, seed=1))

    def values(parameters: Tensor, time: Tensor, lam1: Tensor, lam2: Tensor) -> tuple[Tensor, ...]:
        model, placed = make(kind, dense, parameters), Steps(time, steps.starts)
        total = markov_log_partition(model, placed, lam1, lam2, engine="compiled")
        smoothed = markov_smooth(model, placed, lam1, lam2, engine="compiled")
        return total, smoothed.mean, smoothed.variance

    leaves = tuple(leaf.clone().requires_grad_() for leaf in arguments)
    assert torch.autograd.gradcheck(values, leaves)


@pytest.mark.parametrize("shared_sites", [False, True])
@pytest.mark.parametrize("kind", ["matern", "sum"])
def test_batch_dims_are_a_loop(
    kind: str, shared_sites: bool, engine: str, dense: ModuleType
) -> None:
    """Parameters [L], stamps [G, 1, T], sites [S, 1, L, T] or [T]."""
    S, G, L, T = 2, 3, 2, 6
    start = torch.tensor([0])
    time = torch.stack([dense.stamps(T, seed=s).time for s in range(G)])[:, None]
    lam1, lam2 = dense.sites(T) if shared_sites else dense.sites(T, (S, 1, L))
    leaves = [torch.tensor([0.8, 1.9]).double(), torch.tensor([1.1]).double(), time, lam1, lam2]

    def model(rate: Tensor, variance: Tensor) -> MarkovModel:
        blocks = (dense.matern(1, rate, variance),)
        return MarkovModel(blocks if kind == "matern" else (*blocks, dense.cosine()))

    def gradients(loop: bool) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        inputs = [leaf.clone().requires_grad_() for leaf in leaves]
        rate, variance, stamps, j, w = inputs
        if not loop:
            smoothed = markov_smooth(
                model(rate, variance), Steps(stamps, start), j, w, engine=engine
            )
            found = parts(smoothed)
            assert found[1].shape == ((G, L, T) if shared_sites else (S, G, L, T))
            assert found[0].shape == (*found[1].shape[:-1], 1)
        else:
            alone = []
            for s in range(1 if shared_sites else S):
                for g in range(G):
                    for k in range(L):
                        site = (j, w) if shared_sites else (j[s, 0, k], w[s, 0, k])
                        one = model(rate[k], variance[0])
                        smoothed = markov_smooth(
                            one, Steps(stamps[g, 0], start), *site, engine=engine
                        )
                        alone.append(parts(smoothed))
            found = tuple(torch.stack(values) for values in zip(*alone, strict=True))
        found = tuple(value.reshape(-1, value.shape[-1]) for value in found)
        waves = [torch.sin(torch.arange(value.numel())).double().view_as(value) for value in found]
        loss = sum((wave * value).sum() for wave, value in zip(waves, found, strict=True))
        return found, torch.autograd.grad(loss, inputs)

    for value, wanted in zip(gradients(False), gradients(True), strict=True):
        for a, b in zip(value, wanted, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-11)


def test_a_batch_as_large_as_the_series_is_no_matrix(engine: str, dense: ModuleType) -> None:
    """lam2 [T, T] with lam1 [T] is T problems of scalar sites."""
    model, steps = dense.MODELS["matern32"], dense.stamps(4)
    lam1, lam2 = dense.sites(4)[0], dense.sites(4, (4,))[1]
    smoothed = markov_smooth(model, steps, lam1, lam2, engine=engine)
    for b in range(4):
        alone = markov_smooth(model, steps, lam1, lam2[b], engine=engine)
        for value, wanted in zip(parts(smoothed), parts(alone), strict=True):
            close(value[b], wanted)


@pytest.mark.parametrize("order", [0, 1, 2, 3])
def test_fine_grids(order: int, engine: str, dense: ModuleType) -> None:
    """Rate times step of 1e-4: differences of covariances would have lost all digits."""
    steps = Steps.single(1e-4 * torch.arange(150).double())
    lam1, lam2 = dense.sites(150)

    def run(use_dense: bool) -> tuple[Tensor, ...]:
        values = torch.tensor([1.0, 1.3]).double().requires_grad_()
        model = MarkovModel((dense.matern(order, *values.unbind()),))
        if use_dense:
            smoothed = dense_smooth(dense, model, steps, lam1, lam2)
        else:
            smoothed = markov_smooth(model, steps, lam1, lam2, engine=engine)
        slopes = torch.autograd.grad(smoothed.log_partition.sum(), values)
        return (*(part.detach() for part in parts(smoothed)), *slopes)

    for value, wanted in zip(run(False), run(True), strict=True):
        close(value, wanted, 1e-9)


@pytest.mark.parametrize("kind", ["matern32", "sum"])
def test_divergence_keeps_its_digits_for_precise_sites(
    kind: str, dense: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """E_q[log t] and log Z are 1e10 times as large here as the digits that are asked for."""
    mpmath = pytest.importorskip("mpmath")
    model, steps, T = dense.MODELS[kind], dense.stamps(12, duplicates=False), 12
    lam2 = torch.full((T,), 1e8).double()
    lam1 = lam2 * torch.sin(steps.time)
    H = dense.readout_matrix(model, T)
    K = H @ dense.joint_covariance(model, steps) @ H.mT
    with mpmath.workdps(50):
        # S = s^2 (K + s^2)^-1 is the covariance of q times the precision of the prior.
        Kmp, unit = mpmath.matrix(K.tolist()), mpmath.eye(T)
        S = mpmath.inverse(unit + Kmp * 1e8)
        trace = sum(S[i, i] for i in range(T))
        alpha = S * mpmath.matrix(lam1.tolist())
        square = (alpha.T * Kmp * alpha)[0]
        wanted = float((trace - T - mpmath.log(mpmath.det(S)) + square) / 2)
    for straight in (True, False):
        smoothed = markov_smooth(model, steps, lam1, lam2, engine="compiled")
        assert smoothed.divergence.item() == pytest.approx(wanted, rel=1e-9), straight
        assert ((smoothed.variance * 1e8 - 1.0).abs() < 1e-2).all()
        take_loops(monkeypatch)


@pytest.mark.parametrize("kind", ["matern52", "sum"])
def test_float32(kind: str, dense: ModuleType) -> None:
    """Inputs in single precision are computed on in double and come back in single."""
    steps = dense.stamps(300)
    site = [value.float() for value in dense.sites(300)]
    blocks = [dense.matern(2, dtype=torch.float32)]
    if kind == "sum":
        blocks.append(dense.matern(0, 0.3, dtype=torch.float32, frequency=2.0))
        blocks.append(dense.matern(0, 0.3, dtype=torch.float32))
    model, short = MarkovModel(tuple(blocks)), Steps.single(steps.time.float())
    smoothed = markov_smooth(model, short, *site, engine="compiled")
    wide = (value.double() for value in site)
    expected = markov_smooth(to_double(model), to_double(short), *wide, engine="compiled")
    for value, wanted in zip(parts(smoothed), parts(expected), strict=True):
        assert value.dtype == torch.float32
        torch.testing.assert_close(value.double(), wanted, rtol=1e-6, atol=1e-6)
    total = markov_log_partition(model, short, *site, engine="compiled")
    assert total.dtype == torch.float32
    site[0].requires_grad_()
    smoothed = markov_smooth(model, short, *site, engine="compiled")
    (slope,) = torch.autograd.grad(sum(part.sum() for part in parts(smoothed)), site[0])
    assert slope.dtype == torch.float32 and torch.isfinite(slope).all()


def test_negative_precisions(engine: str, markov_model: MarkovModel, dense: ModuleType) -> None:
    steps = dense.stamps(25, series=2)
    lam1, lam2 = dense.sites(25, markov_model.batch_shape)
    lam2 = torch.where(lam2 == 0, -0.02, lam2)
    expected = dense_smooth(dense, markov_model, steps, lam1, lam2)
    smoothed = markov_smooth(markov_model, steps, lam1, lam2, engine=engine)
    for value, wanted in zip(parts(smoothed), parts(expected), strict=True):
        close(value, wanted, 1e-10)


@pytest.mark.parametrize("kind", ["matern32", "sum"])
def test_an_improper_posterior_is_refused_by_row(kind: str, engine: str, dense: ModuleType) -> None:
    model, steps = dense.MODELS[kind], dense.stamps(6, series=2, duplicates=False)
    lam1, lam2 = dense.sites(6)
    lam2[4] = -50.0
    for function in (markov_log_partition, markov_smooth, markov_marginals):
        with pytest.raises(NumericalError, match="row 4"):
            function(model, steps, lam1, lam2, engine=engine)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_sites_that_are_not_finite(value: float, engine: str, dense: ModuleType) -> None:
    lam1, lam2 = dense.sites(4)
    lam1[2] = value
    with pytest.raises(NumericalError, match="NaN or infinite"):
        markov_smooth(dense.MODELS["matern32"], dense.stamps(4), lam1, lam2, engine=engine)


def test_shapes_are_checked(engine: str, dense: ModuleType) -> None:
    model, steps = dense.MODELS["matern32"], dense.stamps(4)
    lam1, lam2 = dense.sites(4)
    for function in (markov_log_partition, markov_smooth, markov_marginals):
        with pytest.raises(InputError, match=r"\(3,\)"):
            function(model, steps, lam1[:3], lam2, engine=engine)
        with pytest.raises(InputError, match=r"\(4, 1\)"):
            function(model, steps, lam1, lam2[:, None], engine=engine)
        with pytest.raises(InputError, match=r"\(\)"):
            function(model, steps, lam1[0], lam2, engine=engine)
    uneven = MarkovModel(model.blocks, rows=torch.ones(3, 2).double())
    with pytest.raises(InputError, match="3 readouts for 4 rows"):
        markov_smooth(uneven, steps, lam1, lam2, engine=engine)


def test_unknown_engines_are_refused(dense: ModuleType) -> None:
    model, steps = dense.MODELS["matern32"], dense.stamps(4)
    with pytest.raises(InputError, match="'numba'"):
        markov_smooth(model, steps, *dense.sites(4), engine="numba")
    elsewhere = [site.to("meta") for site in dense.sites(4)]
    with pytest.raises(InputError, match="meta"):
        smoothing.runs_compiled("compiled", elsewhere[0])
    assert not smoothing.runs_compiled("auto", elsewhere[0])


def test_without_numba_the_tensor_engine_serves(
    dense: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, steps, site = dense.MODELS["matern32"], dense.stamps(5), dense.sites(5)
    whole_import = builtins.__import__

    def without_numba(name: str, *rest: object) -> ModuleType:
        if name == "numba":
            raise ImportError("no such module")
        return whole_import(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without_numba)
    with pytest.warns(EngineWarning, match="not available"):
        mean, _ = markov_marginals(model, steps, *site)
    monkeypatch.undo()
    assert torch.equal(mean, markov_marginals(model, steps, *site, engine="tensor")[0])


def test_expected_log_sites_by_series(dense: ModuleType) -> None:
    steps = dense.stamps(5, series=2)
    lam1, lam2 = dense.sites(5)
    mean, variance = torch.arange(5.0).double(), torch.ones(5).double()
    model = dense.MODELS["matern32"]
    total = expected_log_sites(model, steps, lam1, lam2, mean, variance)
    rows = lam1 * mean - 0.5 * lam2 * (mean**2 + 1.0)
    close(total, torch.stack([rows[:2].sum(), rows[2:].sum()]))


def test_unused_gradients_are_not_computed(dense: ModuleType) -> None:
    model, steps = dense.MODELS["matern32"], dense.stamps(5)
    lam1, lam2 = dense.sites(5)
    assert not markov_smooth(model, steps, lam1, lam2).mean.requires_grad
    lam2.requires_grad_()
    total = markov_log_partition(model, steps, lam1, lam2)
    total.sum().backward()
    assert lam1.grad is None and lam2.grad is not None


def test_second_derivatives_are_refused_not_lost() -> None:
    rate = torch.tensor(1.3, dtype=torch.float64, requires_grad=True)
    noise = matern_noise(1) * torch.ones_like(rate)
    model = MarkovModel((CascadeBlock(1, rate, noise, stationary_cascade(1, noise)),))
    steps, site = Steps.single(torch.linspace(0, 1, 4).double()), torch.ones(4).double()
    value = markov_log_partition(model, steps, site, site, engine="compiled").sum()
    with pytest.raises(UnsupportedError, match="create_graph"):
        torch.autograd.grad(value, rate, create_graph=True)
    value = markov_log_partition(model, steps, site, site, engine="tensor").sum()
    (slope,) = torch.autograd.grad(value, rate, create_graph=True)
    (curvature,) = torch.autograd.grad(slope, rate)
    assert bool(torch.isfinite(curvature)) and curvature != 0
