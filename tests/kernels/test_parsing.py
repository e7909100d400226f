"""Kernel expressions against kernels made by hand."""

import ast
import pickle
from copy import deepcopy

import pytest
import torch
from gpytorch.kernels import (
    AdditiveKernel,
    ConstantKernel,
    CosineKernel,
    Kernel,
    LinearKernel,
    MaternKernel,
    PeriodicKernel,
    ProductKernel,
    RBFKernel,
    RQKernel,
    ScaleKernel,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.gaussian_process import kernels as sklearn_kernels

from gpvi.exceptions import GPVIError, InputError
from gpvi.kernels import (
    KERNELS,
    HalfIntegerMaternKernel,
    HammingKernel,
    HidaMaternKernel,
    IntegratedWienerKernel,
    KernelEntry,
    PowerKernel,
    SeasonalKernel,
    WhiteKernel,
    from_sklearn,
    parse_kernel,
    set_lengthscales,
)
from gpvi.kernels.arc_cosine import ArcCosineKernel
from gpvi.kernels.parsing import kernel_terms
from gpvi.kernels.zonal import ZonalKernel

NUM_FEATURES = 3

# The others are kernels of time, or need numbers.
PLAIN = [name for name, e in KERNELS.items() if not e.one_column]
TIMED = {
    "trend": "trend",
    "season": "season(0.7)",
    "quasi_season": "quasi_season(0.7)",
    "cosine": "cosine(0.7)",
    "hida": "hida(1, 0.7)",
}


def inputs(*shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(4)
    return torch.randn(*(shape or (7, NUM_FEATURES)), dtype=torch.float64, generator=generator).to(
        dtype
    )


def scrambled(kernel: Kernel) -> Kernel:
    """The kernel with a different value in every trainable parameter."""
    with torch.no_grad():
        for position, parameter in enumerate(kernel.parameters()):
            if parameter.requires_grad:
                offsets = torch.arange(parameter.numel(), dtype=parameter.dtype)
                parameter.copy_((0.3 * position + 0.1 * offsets).view_as(parameter))
    return kernel


def unit(kernel: Kernel, name: str) -> Kernel:
    setattr(kernel.double(), name, torch.ones(1).double())
    getattr(kernel, f"raw_{name}").requires_grad_(False)
    return kernel


def scale(kernel: Kernel) -> Kernel:
    return ScaleKernel(kernel)


def rbf() -> Kernel:
    return RBFKernel(ard_num_dims=NUM_FEATURES)


def matern(nu: float) -> Kernel:
    return MaternKernel(nu=nu, ard_num_dims=NUM_FEATURES)


def periodic() -> Kernel:
    return PeriodicKernel(ard_num_dims=NUM_FEATURES)


def rational_quadratic() -> Kernel:
    return RQKernel(ard_num_dims=NUM_FEATURES)


def zonal(shape: str) -> Kernel:
    return ZonalKernel(shape, ard_num_dims=NUM_FEATURES)


def linear() -> Kernel:
    return unit(LinearKernel(), "variance")


def white() -> Kernel:
    return unit(WhiteKernel(), "variance")


def constant() -> Kernel:
    return unit(ConstantKernel(), "constant")


BY_HAND = {
    "matern12": lambda: scale(matern(0.5)),
    "matern32": lambda: scale(matern(1.5)),
    "matern52": lambda: scale(matern(2.5)),
    "matern72": lambda: scale(HalfIntegerMaternKernel(3, ard_num_dims=NUM_FEATURES)),
    "rbf": lambda: scale(rbf()),
    "rational_quadratic": lambda: scale(rational_quadratic()),
    "periodic": lambda: scale(periodic()),
    "hamming": lambda: scale(HammingKernel(ard_num_dims=NUM_FEATURES)),
    "arc_cosine": lambda: scale(ArcCosineKernel(ard_num_dims=NUM_FEATURES)),
    "zonal_matern12": lambda: scale(zonal("matern12")),
    "zonal_matern32": lambda: scale(zonal("matern32")),
    "zonal_matern52": lambda: scale(zonal("matern52")),
    "zonal_rbf": lambda: scale(zonal("rbf")),
    "linear": LinearKernel,
    "constant": ConstantKernel,
    "white": WhiteKernel,
    "matern52 + linear": lambda: scale(matern(2.5)) + LinearKernel(),
    "rbf * periodic + white": lambda: scale(rbf() * periodic()) + WhiteKernel(),
    "white + rbf * periodic": lambda: WhiteKernel() + scale(rbf() * periodic()),
    "linear * linear": lambda: scale(linear() * linear()),
    "rbf * white * constant": lambda: scale(rbf() * white() * constant()),
    "rbf + matern12 + constant": lambda: scale(rbf()) + scale(matern(0.5)) + ConstantKernel(),
    "rbf + (matern12 + constant)": lambda: scale(rbf()) + scale(matern(0.5)) + ConstantKernel(),
    "(rbf + linear) * periodic": lambda: ProductKernel(scale(rbf()) + LinearKernel(), periodic()),
    "periodic * (rbf + linear)": lambda: ProductKernel(periodic(), scale(rbf()) + LinearKernel()),
    "(rbf + linear) * (white + constant)": lambda: ProductKernel(
        scale(rbf()) + LinearKernel(), white() + ConstantKernel()
    ),
    "(rbf + linear) * (matern12 + rbf)": lambda: ProductKernel(
        scale(rbf()) + LinearKernel(), matern(0.5) + scale(rbf())
    ),
    "rbf * (linear * (periodic + constant) + white)": lambda: ProductKernel(
        rbf(), ProductKernel(linear(), scale(periodic()) + ConstantKernel()) + WhiteKernel()
    ),
}


# GPyTorch's linear kernel sets off factorisations in sums.
@pytest.mark.filterwarnings("ignore:A not p.d.")
@pytest.mark.parametrize("expression", BY_HAND)
def test_expression_equals_the_kernel_made_by_hand(expression):
    parsed = scrambled(parse_kernel(expression, NUM_FEATURES))
    by_hand = scrambled(BY_HAND[expression]().double())
    assert list(parsed.state_dict()) == list(by_hand.state_dict())
    assert [p.requires_grad for p in parsed.parameters()] == [
        p.requires_grad for p in by_hand.parameters()
    ]
    x = inputs()
    # With gradients GPyTorch's distances carry rounding errors of 1e-8 on the diagonal.
    with torch.no_grad():
        expected = by_hand(x).to_dense()
        assert torch.allclose(parsed(x).to_dense(), expected, rtol=1e-12, atol=1e-13)
        assert torch.allclose(parsed(x, diag=True), expected.diagonal(), rtol=1e-12)


def test_every_short_name_is_compared():
    assert set(PLAIN) <= set(BY_HAND)
    assert set(TIMED) == set(KERNELS) - set(PLAIN)
    assert all(
        isinstance(entry, KernelEntry) and name.isidentifier() for name, entry in KERNELS.items()
    )


@pytest.mark.parametrize("name", PLAIN)
def test_every_term_has_one_amplitude(name):
    """Either a scale around the kernel, or a variance that scales the covariance."""
    kernel = parse_kernel(name, NUM_FEATURES)
    if KERNELS[name].variance is None:
        assert type(kernel) is ScaleKernel and kernel.outputscale.shape == ()
    else:
        value = getattr(kernel, KERNELS[name].variance)
        covariance = kernel(inputs()).to_dense().detach()
        setattr(kernel, KERNELS[name].variance, 2 * value.detach())
        assert torch.allclose(kernel(inputs()).to_dense(), 2 * covariance)


def test_multiplication_binds_tighter_than_addition():
    x = inputs()
    plain = parse_kernel("rbf + matern12 * linear", NUM_FEATURES)
    grouped = parse_kernel("(rbf + matern12) * linear", NUM_FEATURES)
    assert type(plain) is AdditiveKernel and type(grouped) is ProductKernel
    parts = [parse_kernel(name, NUM_FEATURES)(x).to_dense() for name in ("rbf", "matern12")]
    inner = x @ x.mT
    scale_of_product = plain.kernels[1].outputscale
    expected = parts[0] + parts[1] / parts[1][0, 0] * scale_of_product * inner
    assert torch.allclose(plain(x).to_dense(), expected)
    assert torch.allclose(grouped(x).to_dense(), (parts[0] + parts[1]) * inner)


@pytest.mark.parametrize(
    "text", ["rbf*linear+white", " rbf *\tlinear + white ", "((rbf)*linear)+(white)"]
)
def test_spacing_and_redundant_parentheses(text):
    assert repr(parse_kernel(text, 2)) == repr(parse_kernel("rbf * linear + white", 2))


@pytest.mark.parametrize("name", [name for name in PLAIN if KERNELS[name].variance is None])
def test_one_lengthscale_or_one_for_each_dimension(name):
    separate = parse_kernel(name, NUM_FEATURES).base_kernel
    shared = parse_kernel(name, NUM_FEATURES, ard=False).base_kernel
    assert separate.lengthscale.shape == (1, NUM_FEATURES)
    assert shared.lengthscale.shape == (1, 1)
    if name == "periodic":
        assert separate.period_length.shape == (1, NUM_FEATURES)
        assert shared.period_length.shape == (1, 1)


@pytest.mark.parametrize(
    ("text", "position", "message"),
    [
        ("matern25", 0, "did you mean 'matern[57]2'\\? Use matern12, matern32"),
        ("rbf + Linear", 6, "Unknown kernel 'Linear'.*did you mean 'linear'"),
        ("  rbf * zzz", 8, "Unknown kernel 'zzz'.*; use matern12"),
        ("2 * rbf", 0, "Cannot read '2' as a kernel"),
        ("rbf ** 2", 0, "Cannot read 'rbf \\*\\* 2' as a kernel"),
        ("rbf - linear", 4, "Unexpected character '-'"),
        ("rbf\n+ rbf", 3, "Unexpected character"),
        ("rbf\0", 3, "Unexpected character"),
        ("rbf # note", 4, "Unexpected character '#'"),
        ("µ", 0, "Unexpected character"),
        ("rbf +", 5, "Incomplete or misplaced"),
        ("rbf linear", 4, "Incomplete or misplaced"),
        ("(rbf", 0, "Incomplete or misplaced"),
        (" rbf)", 4, "Incomplete or misplaced"),
        ("rbf * * linear", 0, "Cannot read 'rbf \\*\\* linear'|Incomplete or misplaced"),
        ("rbf ** linear", 0, "Cannot read"),
        ("rbf(linear)", 0, "'rbf' takes no number\\(s\\) in parentheses.*; write 'rbf' alone"),
        ("rbf()(2)", 0, "Cannot read"),
        ("linear + saeson(3)", 9, "Unknown kernel 'saeson'.*did you mean 'season'"),
        ("rbf + +linear", 6, "Cannot read '\\+linear'"),
        ("rbf or linear", 0, "Cannot read"),
        ("rbf + ()", 6, "Cannot read"),
        ("lambda", 6, "Incomplete or misplaced"),
    ],
)
def test_errors_name_the_problem_and_its_position(text, position, message):
    with pytest.raises(InputError, match=message) as raised:
        parse_kernel(text, 2)
    if "* *" not in text:
        assert f"at position {position} of {text!r}" in str(raised.value)


@pytest.mark.parametrize("text", ["", "  "])
def test_empty_expression(text):
    with pytest.raises(InputError, match="empty; use matern12"):
        parse_kernel(text, 2)


@pytest.mark.parametrize("text", ["rbf+" * 200 + "rbf", "(" * 300 + "rbf" + ")" * 300])
def test_very_long_expressions_are_refused(text):
    with pytest.raises(InputError, match="more than 500"):
        parse_kernel(text, 2)


@pytest.mark.parametrize("text", ["rbf+" * 124 + "rbf", "(" * 190 + "rbf" + ")" * 190])
def test_long_expressions_are_read(text):
    assert isinstance(parse_kernel(text, 2), Kernel)


@given(st.text(max_size=40) | st.text(alphabet="rbflinear+*() ", max_size=40))
def test_no_text_fails_with_anything_but_our_error(text):
    try:
        kernel = parse_kernel(text, 2)
    except GPVIError as error:
        assert str(error)
    else:
        assert isinstance(kernel, Kernel)


def expressions() -> st.SearchStrategy[str]:
    return st.recursive(
        st.sampled_from(sorted(PLAIN)),
        lambda children: (
            st.builds(
                "{}{} {} {}{}".format,
                st.just("("),
                children,
                st.sampled_from("+*"),
                children,
                st.just(")"),
            )
            | st.builds("{} {} {}".format, children, st.sampled_from("+*"), children)
        ),
        max_leaves=5,
    )


@settings(max_examples=60)
@given(expressions(), st.booleans())
def test_every_expression_is_a_covariance_function(text, ard):
    kernel = scrambled(parse_kernel(text, NUM_FEATURES, ard=ard))
    x = inputs()
    covariance = kernel(x).to_dense()
    assert torch.allclose(covariance, covariance.mT)
    eigenvalues = torch.linalg.eigvalsh(covariance)
    assert eigenvalues[0] > -1e-10 * eigenvalues[-1]
    assert torch.allclose(kernel(x, diag=True), covariance.diagonal())
    # The same sums and products of plain matrices.
    assert torch.allclose(covariance, evaluate(ast.parse(text, mode="eval").body, text, kernel, x))


def evaluate(node: ast.expr, text: str, kernel: Kernel, x: torch.Tensor) -> torch.Tensor:
    """Matrix of an expression by plain sums and products, down the tree of the parsed kernel."""
    if type(kernel) is ScaleKernel:
        return kernel.outputscale * evaluate(node, text, kernel.base_kernel, x)
    if isinstance(node, ast.Name):
        return kernel(x).to_dense()
    operands = []
    pending = [node]
    while pending:
        current = pending.pop()
        if isinstance(current, ast.BinOp) and type(current.op) is type(node.op):
            pending += [current.right, current.left]
        else:
            operands.append(current)
    matrices = [evaluate(o, text, k, x) for o, k in zip(operands, kernel.kernels, strict=True)]
    stacked = torch.stack(matrices)
    return stacked.sum(0) if isinstance(node.op, ast.Add) else stacked.prod(0)


BATCHED = "rbf * linear + matern32 + periodic + rational_quadratic + white * constant + linear"


@pytest.mark.parametrize("batch_shape", [(2,), (2, 3)])
def test_batch_shape_reaches_every_parameter(batch_shape):
    kernel = scrambled(parse_kernel(BATCHED, NUM_FEATURES, batch_shape=torch.Size(batch_shape)))
    assert kernel.batch_shape == batch_shape
    for name, parameter in kernel.named_parameters():
        assert parameter.shape[: len(batch_shape)] == batch_shape, name
    x = inputs()
    covariance = kernel(x).to_dense()
    assert covariance.shape == (*batch_shape, 7, 7)
    single = parse_kernel(BATCHED, NUM_FEATURES)
    last = (-1,) * len(batch_shape)
    with torch.no_grad():
        for target, source in zip(single.parameters(), kernel.parameters(), strict=True):
            target.copy_(source[last])
    assert torch.allclose(single(x).to_dense(), covariance[last])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "spec", [BATCHED, ScaleKernel(RBFKernel()), 2.0 * sklearn_kernels.RBF(1.0)], ids=repr
)
def test_dtype_of_every_parameter_and_constraint(spec, dtype):
    kernel = parse_kernel(spec, NUM_FEATURES, dtype=dtype)
    assert {value.dtype for value in kernel.state_dict().values()} == {dtype}
    x = inputs(dtype=dtype)
    covariance = kernel(x).to_dense()
    assert covariance.dtype == dtype
    reference = parse_kernel(spec, NUM_FEATURES)(x.double()).to_dense()
    assert torch.allclose(covariance.double(), reference, rtol=1e-4, atol=1e-4)


def test_fixed_variances_are_exactly_one():
    kernel = parse_kernel("rbf * linear * white * constant", 2)
    _, line, noise, level = kernel.base_kernel.kernels
    for value in (line.variance, noise.variance, level.constant):
        assert abs(value.item() - 1) < 1e-15


def test_gradients_reach_every_trainable_parameter():
    kernel = parse_kernel(BATCHED, NUM_FEATURES)
    weights = torch.linspace(-1.0, 3.0, 49, dtype=torch.float64).view(7, 7)
    (weights * kernel(inputs()).to_dense()).sum().backward()
    for name, parameter in kernel.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
        if parameter.requires_grad:
            assert torch.isfinite(parameter.grad).all() and parameter.grad.abs().sum() > 0, name


def test_copies_keep_the_values():
    kernel = scrambled(parse_kernel(BATCHED, NUM_FEATURES))
    loaded = parse_kernel(BATCHED, NUM_FEATURES)
    loaded.load_state_dict(kernel.state_dict())
    for copy in (pickle.loads(pickle.dumps(kernel)), deepcopy(kernel), loaded):
        assert torch.equal(copy(inputs()).to_dense(), kernel(inputs()).to_dense())
        assert [p.requires_grad for p in copy.parameters()] == [
            p.requires_grad for p in kernel.parameters()
        ]


def test_building_kernels_leaves_the_global_generator_alone():
    state = torch.get_rng_state()
    parse_kernel(BATCHED, NUM_FEATURES)
    assert torch.equal(torch.get_rng_state(), state)


def test_kernel_object_is_copied():
    original = ScaleKernel(RBFKernel(ard_num_dims=NUM_FEATURES)) + LinearKernel(active_dims=(0, 2))
    original.kernels[0].base_kernel.raw_lengthscale.requires_grad_(False)
    kernel = parse_kernel(original, NUM_FEATURES)
    assert {p.dtype for p in original.parameters()} == {torch.float32}
    assert {p.dtype for p in kernel.parameters()} == {torch.float64}
    assert not kernel.kernels[0].base_kernel.raw_lengthscale.requires_grad
    kernel.kernels[0].outputscale = 5.0
    assert original.kernels[0].outputscale < 1.0


def test_kernel_object_and_batch_shape():
    shape = torch.Size([2])
    shared = parse_kernel(RBFKernel(), 2, batch_shape=shape)
    assert shared.batch_shape == ()
    own = parse_kernel(RBFKernel(batch_shape=shape), 2, batch_shape=shape)
    assert own.batch_shape == shape
    for requested in (torch.Size(), torch.Size([3])):
        with pytest.raises(InputError, match=r"batch shape \(2,\)"):
            parse_kernel(RBFKernel(batch_shape=shape), 2, batch_shape=requested)


@pytest.mark.parametrize(
    ("kernel", "message"),
    [
        (RBFKernel(ard_num_dims=2), "RBFKernel has ard_num_dims=2 but is given 3 of the 3"),
        (ScaleKernel(RBFKernel(ard_num_dims=3, active_dims=(0, 1))), "is given 2 of the 3"),
        (PowerKernel(RBFKernel(active_dims=(3,)), 2), "active_dims=\\(3,\\)"),
    ],
)
def test_kernel_object_must_fit_the_inputs(kernel, message):
    with pytest.raises(InputError, match=message):
        parse_kernel(kernel, NUM_FEATURES)


def test_scikit_learn_kernel_is_converted():
    source = 2.0 * sklearn_kernels.RBF(0.5) + sklearn_kernels.WhiteKernel(0.1)
    x = inputs()
    kernel = parse_kernel(source, NUM_FEATURES, batch_shape=torch.Size([2]))
    expected = from_sklearn(source, NUM_FEATURES)(x).to_dense()
    assert torch.allclose(kernel(x).to_dense(), expected.expand(2, 7, 7))


@pytest.mark.parametrize("spec", [None, 3, RBFKernel, ["rbf"], b"rbf"])
def test_other_types_are_refused(spec):
    with pytest.raises(InputError, match="matern52 \\+ linear"):
        parse_kernel(spec, 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_features": 0}, "num_features must be at least 1"),
        ({"num_features": 2.0}, "num_features must be an integer"),
        ({"num_features": True}, "num_features must be an integer"),
        ({"num_features": 2, "dtype": torch.int64}, "floating-point"),
        ({"num_features": 2, "dtype": "float64"}, "floating-point"),
    ],
)
def test_invalid_arguments(arguments, message):
    with pytest.raises(InputError, match=message):
        parse_kernel("rbf", **arguments)


class TestTime:
    """Names of kernels of one column, with numbers."""

    @pytest.mark.parametrize("text", TIMED.values())
    def test_positive_definite_with_one_amplitude(self, text):
        kernel = parse_kernel(text, 1)
        covariance = kernel(inputs(7, 1).abs()).to_dense()
        assert torch.linalg.eigvalsh(covariance)[0] > -1e-12
        names = [name.rpartition(".")[2] for name, _ in kernel.named_parameters()]
        assert sum(name in ("raw_outputscale", "raw_variance") for name in names) == 1

    def test_values(self):
        kernel = parse_kernel("season(365.25) + quasi_season(7, drift=50) + cosine(24)", 1)
        season, drifting, wave = (term.base_kernel for term in kernel.kernels)
        assert type(season) is SeasonalKernel and season.drift_order is None
        assert season.period_length.item() == pytest.approx(365.25, rel=1e-12)
        assert drifting.period_length.item() == pytest.approx(7.0)
        assert drifting.lengthscale.item() == pytest.approx(50.0)
        # GPyTorch's cosine has half the period.
        assert type(wave) is CosineKernel and wave.period_length.item() == pytest.approx(12.0)
        full = torch.tensor([[0.0], [12.0], [24.0]], dtype=torch.float64)
        assert torch.allclose(
            wave(full).to_dense()[0], torch.tensor([1.0, -1.0, 1.0], dtype=torch.float64)
        )

    def test_a_drift_of_ten_periods(self):
        kernel = parse_kernel("quasi_season(7)", 1).base_kernel
        assert kernel.lengthscale.item() == pytest.approx(70.0)
        assert kernel.raw_lengthscale.requires_grad

    def test_trend_and_hida(self):
        assert type(parse_kernel("trend", 1)) is IntegratedWienerKernel
        assert parse_kernel("trend", 1).order == 1 and parse_kernel("trend(0)", 1).order == 0
        wave = parse_kernel("hida(2, period=5)", 1).base_kernel
        assert type(wave) is HidaMaternKernel and wave.order == 2
        assert 2 * torch.pi / wave.frequency.item() == pytest.approx(5.0)

    @pytest.mark.parametrize("name", ["season", "quasi_season", "cosine"])
    def test_periods_are_fixed_unless_learned(self, name):
        fixed, learned = (
            parse_kernel(text, 1).base_kernel for text in (f"{name}(3)", f"{name}(3, learn=True)")
        )
        assert not fixed.raw_period_length.requires_grad
        assert learned.raw_period_length.requires_grad
        for kernel in (fixed, learned):
            before = kernel.period_length.item()
            set_lengthscales(kernel, torch.tensor([40.0]))
            assert kernel.period_length.item() == before

    def test_numbers_are_in_units_of_time(self):
        kernel = parse_kernel("quasi_season(10, 30) + hida(1, 5)", 1, time_scale=2.0)
        season, wave = (term.base_kernel for term in kernel.kernels)
        assert season.period_length.item() == pytest.approx(5.0)
        assert season.lengthscale.item() == pytest.approx(15.0)
        assert wave.frequency.item() == pytest.approx(2 * torch.pi / 2.5)
        assert wave.order == 1

    @pytest.mark.parametrize("number", ["365.25", "3.6525e2", "36525e-2", ".36525E3", "365.250"])
    def test_ways_to_write_a_number(self, number):
        kernel = parse_kernel(f"season( {number} )", 1).base_kernel
        assert kernel.period_length.item() == pytest.approx(365.25)

    def test_products(self):
        kernel = parse_kernel("season(3) * matern32 + trend * linear", 1)
        assert [type(term) for term in kernel.kernels] == [ScaleKernel, ScaleKernel]
        assert not kernel.kernels[1].base_kernel.kernels[0].raw_variance.requires_grad

    @pytest.mark.parametrize(
        ("text", "position", "message"),
        [
            (
                "season",
                0,
                "'season' needs its period.*; write season\\(period\\), optionally with learn",
            ),
            ("linear + season()", 9, "'season' needs its period"),
            ("season(0)", 7, "period is 0 and must be a positive number"),
            ("season(-1)", 7, "Unexpected character '-'"),
            ("season(1e999)", 7, "period is inf and must be a positive number"),
            ("season(True)", 7, "period is True and must be a positive number"),
            ("season(3 + 4)", 7, "period is '3 \\+ 4' and must be"),
            ("season(linear)", 7, "period is 'linear' and must be"),
            ("season(3, True, 4)", 0, "takes at most 2 number"),
            ("season(3, period=4)", 10, "'period' is given twice to 'season'"),
            ("season(3, decay=4)", 10, "'decay' names nothing that 'season' takes"),
            ("season(3, learn=1)", 16, "learn is 1 and must be True or False"),
            ("trend(1.5)", 6, "order is 1.5 and must be a whole number from 0 to 8"),
            ("hida", 0, "'hida' needs its order"),
            ("hida(9)", 5, "order is 9 and must be"),
            ("matern32(3)", 0, "'matern32' takes no number"),
            ("season(period=3, period=4)", 17, "period.* is given twice|Incomplete or misplaced"),
            ("season(3", 6, "Incomplete or misplaced"),
            ("season(*linear)", 7, "Incomplete or misplaced|must be a positive number"),
            ("season(**linear)", 7, "names nothing|Incomplete"),
        ],
    )
    def test_errors(self, text, position, message):
        with pytest.raises(InputError, match=message) as raised:
            parse_kernel(text, 1)
        assert f"at position {position} of {text!r}" in str(raised.value)

    @pytest.mark.parametrize("text", TIMED.values())
    def test_several_columns_are_refused(self, text):
        with pytest.raises(InputError, match="is a kernel of time and X has 2 columns"):
            parse_kernel(f"rbf + {text}", 2)

    @settings(max_examples=200)
    @given(st.text(alphabet="season()3.,=trudlnp +*eE", max_size=30))
    def test_no_text_fails_with_anything_but_our_error(self, text):
        try:
            parse_kernel(text, 1)
        except GPVIError as error:
            assert str(error)

    def test_copies_keep_given_starts(self):
        kernel = parse_kernel("season(3, learn=True)", 1)
        for copy in (pickle.loads(pickle.dumps(kernel)), deepcopy(kernel)):
            set_lengthscales(copy, torch.tensor([40.0]))
            assert copy.base_kernel.period_length.item() == pytest.approx(3.0)

    def test_terms(self):
        assert kernel_terms("trend+season( 7 ) * (matern32+linear)+ (linear + linear)") == (
            "trend",
            "season(7) * (matern32 + linear)",
            "linear",
            "linear (2)",
        )
        with pytest.raises(InputError, match="Incomplete"):
            kernel_terms("trend +")
