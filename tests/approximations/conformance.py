"""Cases and dense reference formulas of the suite that every approximation passes.

A new approximation adds one `Entry`: how to build it, a kernel it takes, and the dense covariance of
its projections r = E[f | basis]. Each entry runs in every variant of batch dims that it names. The
reference is textbook algebra on dense matrices, one block of rows at a time, with nothing but
`torch.linalg.solve` in common with the package.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import gpytorch
import torch
from torch import Tensor

from gpvi.approximations import (
    Approximation,
    Exact,
    FullScale,
    GaussianProcess,
    InducingPoints,
    Plan,
    Posterior,
    Prior,
    Sites,
    SparseInverseCholesky,
    StateSpace,
    White,
)
from gpvi.approximations.coreset import Coreset
from gpvi.approximations.inter_domain import InterDomain
from gpvi.approximations.neighbor_inducing import NeighborInducing
from gpvi.approximations.orthogonal import Orthogonal
from gpvi.kernels import WhiteKernel
from gpvi.linalg import default_jitter

NUM_LATENTS = 2
NUM_INDUCING = 4
SHUFFLED_GROUPS = torch.tensor([7, 3, 7, 9, 3, 7, 7, 9, 7])  # sizes 2, 5, 2
VARIANTS = ("plain", "latents", "wide_sites", "batch", "groups")


@dataclass(frozen=True)
class Entry:
    """An approximation in the suite."""

    build: Callable[[torch.dtype], Approximation]
    kernel: Callable[[torch.Size], gpytorch.kernels.Kernel]
    # Covariance of the projections r at two sets of inputs.
    projected: Callable[[Approximation, GaussianProcess, Tensor, Tensor], Tensor]
    has_residual: bool = False
    finite_basis: bool = False
    # Inputs of the basis, where the basis is values of f.
    basis_inputs: Callable[[Approximation, Tensor], Tensor] = lambda approximation, x: x
    # Most negative site precision that leaves every posterior of the suite proper; 0 if none may be.
    lowest_precision: float = 0.0
    samples_anywhere: bool = True
    # The basis are values of f: at the rows, at inducing inputs. Otherwise it is the path of a state.
    basis_is_function: bool = True
    # Whether draws can be functions of the inputs: by random features, and a basis of function values.
    has_paths: bool = True
    # Whether everything has a derivative at a zero site; not where precisions cannot fall below zero.
    smooth_at_zero_sites: bool = True
    variants: tuple[str, ...] = VARIANTS


def uniform(*shape: int, seed: int, low: float = 0.0, high: float = 1.0) -> Tensor:
    """Repeatable numbers in [low, high)."""
    generator = torch.Generator().manual_seed(seed)
    return low + (high - low) * torch.rand(shape, dtype=torch.float64, generator=generator)


def matern(batch: torch.Size) -> gpytorch.kernels.Kernel:
    """A scaled Matern kernel whose parameters differ between latents and dimensions."""
    base = gpytorch.kernels.MaternKernel(nu=1.5, ard_num_dims=2, batch_shape=batch)
    kernel = gpytorch.kernels.ScaleKernel(base, batch_shape=batch).double()
    base.lengthscale = uniform(*batch, 1, 2, seed=1, low=0.5, high=1.5)
    kernel.outputscale = uniform(*batch, seed=2, low=0.7, high=1.8)
    return kernel


def in_time(batch: torch.Size) -> gpytorch.kernels.Kernel:
    """A sum of Markov kernels of the first column."""
    rough = gpytorch.kernels.MaternKernel(nu=1.5, active_dims=(0,), batch_shape=batch).double()
    turning = gpytorch.kernels.CosineKernel(active_dims=(0,), batch_shape=batch).double()
    rough.lengthscale = uniform(*batch, 1, 1, seed=1, low=0.5, high=1.5)
    turning.period_length = uniform(*batch, 1, 1, seed=12, low=0.5, high=1.5)
    wobble = gpytorch.kernels.MaternKernel(nu=0.5, active_dims=(0,), batch_shape=batch).double()
    parts = (rough, wobble * turning)
    scaled = [gpytorch.kernels.ScaleKernel(k, batch_shape=batch).double() for k in parts]
    scaled[0].outputscale = uniform(*batch, seed=2, low=0.7, high=1.8)
    scaled[1].outputscale = uniform(*batch, seed=13, low=0.2, high=0.5)
    return scaled[0] + scaled[1]


def white(batch: torch.Size) -> gpytorch.kernels.Kernel:
    """A white kernel whose variance differs between latents."""
    kernel = WhiteKernel(batch_shape=batch).double()
    kernel.initialize(raw_variance=uniform(*batch, seed=3))
    return kernel


def dense(approximation: Approximation, gp: GaussianProcess, x1: Tensor, x2: Tensor) -> Tensor:
    """The prior covariance itself."""
    return gp.covariance(x1, x2)


def through_inducing(
    approximation: Approximation, gp: GaussianProcess, x1: Tensor, x2: Tensor
) -> Tensor:
    """Nystrom covariance, with the jitter that Kzz carries."""
    z = getattr(approximation, "features", approximation).inducing_points
    Kzz = gp.covariance(z)
    jitter = default_jitter(z.dtype) * Kzz.diagonal(dim1=-2, dim2=-1).mean(-1)
    Kzz = Kzz + jitter[..., None, None] * torch.eye(z.shape[-2], dtype=z.dtype)
    return gp.covariance(x1, z) @ torch.linalg.solve(Kzz, gp.covariance(z, x2))


def through_neighbors(
    approximation: Approximation, gp: GaussianProcess, x1: Tensor, x2: Tensor
) -> Tensor:
    """Nystrom covariance; with all inducing points as neighbours nothing else is left."""
    z = approximation.inducing_points
    Kzz = gp.covariance(z)
    nugget = approximation.nugget * Kzz.diagonal(dim1=-2, dim2=-1)
    return gp.covariance(x1, z) @ torch.linalg.solve(
        Kzz + torch.diag_embed(nugget), gp.covariance(z, x2)
    )


def neighbor_inducing(dtype: torch.dtype) -> NeighborInducing:
    """More neighbours than inducing points and rows, so that all patterns are full."""
    return NeighborInducing(
        inducing_points=uniform(NUM_INDUCING, 2, seed=4, high=2.0).to(dtype),
        num_neighbors=12,
        num_prediction_neighbors=40,
        nugget=1e-10 if dtype == torch.float64 else 1e-6,
        learn=True,
    )


def inducing_points(*batch: int) -> Callable[[torch.dtype], InducingPoints]:
    """Builder of inducing points at fixed inputs."""
    z = uniform(*batch, NUM_INDUCING, 2, seed=4, high=2.0)
    return lambda dtype: InducingPoints(inducing_points=z.to(dtype))


def orthogonal(dtype: torch.dtype) -> Orthogonal:
    """Two sets of inducing points."""
    first, second = inducing_points()(dtype), uniform(3, 2, seed=14, high=2.0).to(dtype)
    return Orthogonal(first, InducingPoints(inducing_points=second))


def full_scale(dtype: torch.dtype) -> FullScale:
    """Inducing points, and more neighbours than rows for what they leave."""
    nugget = 1e-10 if dtype == torch.float64 else 1e-6
    return FullScale(inducing_points()(dtype), SparseInverseCholesky(12, nugget=nugget))


ENTRIES = {
    "exact": Entry(lambda dtype: Exact(), matern, dense, lowest_precision=-0.05),
    "white": Entry(
        lambda dtype: White(), white, dense, lowest_precision=-0.4, samples_anywhere=False
    ),
    "state-space": Entry(
        lambda dtype: StateSpace(),
        in_time,
        dense,
        lowest_precision=-0.05,
        basis_is_function=False,
    ),
    # With more neighbours than rows every pattern is full and every algorithm exact.
    "sparse-inverse": Entry(
        lambda dtype: SparseInverseCholesky(12, nugget=1e-10 if dtype == torch.float64 else 1e-6),
        matern,
        dense,
        lowest_precision=-0.05,
    ),
    "full-scale": Entry(
        full_scale,
        matern,
        dense,
        lowest_precision=-0.05,
        # Function values, behind those at inducing inputs: tests of its own.
        basis_is_function=False,
        has_paths=False,
    ),
    # Its points hold all rows of every variant, so that its family holds every posterior.
    "coreset": Entry(
        lambda dtype: Coreset(
            points=uniform(15, 2, seed=7, high=2.0).to(dtype),
            jitter=1e-12 if dtype == torch.float64 else 1e-6,
        ),
        matern,
        dense,
        has_residual=True,
        finite_basis=True,
        basis_inputs=lambda approximation, x: approximation.points,
        lowest_precision=-0.05,
        smooth_at_zero_sites=False,
    ),
    "inducing": Entry(
        inducing_points(),
        matern,
        through_inducing,
        has_residual=True,
        finite_basis=True,
        basis_inputs=lambda approximation, x: approximation.inducing_points,
        lowest_precision=-0.05,
    ),
    # Function values as features of the process without its mean.
    "inter-domain": Entry(
        lambda dtype: InterDomain(inducing_points()(dtype)),
        matern,
        through_inducing,
        has_residual=True,
        finite_basis=True,
        lowest_precision=-0.05,
        basis_is_function=False,
        has_paths=False,
    ),
    "orthogonal": Entry(
        orthogonal,
        matern,
        through_inducing,
        has_residual=True,
        finite_basis=True,
        basis_inputs=lambda approximation, x: approximation.inducing_points,
        lowest_precision=-0.05,
    ),
    "inducing-per-latent": Entry(
        inducing_points(NUM_LATENTS),
        matern,
        through_inducing,
        has_residual=True,
        finite_basis=True,
        basis_inputs=lambda approximation, x: approximation.inducing_points,
        lowest_precision=-0.05,
        variants=("latents", "batch", "groups"),
    ),
    "neighbor-inducing": Entry(
        neighbor_inducing,
        matern,
        through_neighbors,
        has_residual=True,
        finite_basis=True,
        basis_inputs=lambda approximation, x: approximation.inducing_points,
        smooth_at_zero_sites=False,
    ),
}


@dataclass(frozen=True)
class Problem:
    """One approximation with a process, inputs and sites."""

    entry: Entry
    variant: str
    approximation: Approximation
    gp: GaussianProcess
    x: Tensor
    sites: Sites
    groups: Tensor | None
    held_plan: Plan | None = None

    @property
    def plan(self) -> Plan:
        """Index structure of the inputs: the one that is held, or a new one."""
        if self.held_plan is not None:
            return self.held_plan
        return self.approximation.plan(self.x, self.groups)

    def prior(self) -> Prior:
        """Prior at the inputs."""
        return self.approximation.prior(self.gp, self.x, plan=self.plan)

    def posterior(self) -> Posterior:
        """Prior conditioned on the sites."""
        return self.prior().condition(self.sites)

    def with_sites(self, lam1: Tensor, lam2: Tensor) -> "Problem":
        """The same problem with other sites."""
        return replace(self, sites=Sites(lam1, lam2))

    def take(self, rows: Tensor) -> "Problem":
        """The same problem on a subset, or another order, of its rows."""
        sites = Sites(self.sites.lam1[..., rows], self.sites.lam2[..., rows])
        groups = None if self.groups is None else self.groups[rows]
        return replace(self, x=self.x[..., rows, :], sites=sites, groups=groups)

    def to(self, dtype: torch.dtype) -> "Problem":
        """The same problem in another floating-point type."""
        return replace(
            self,
            approximation=self.entry.build(dtype),
            gp=make_process(self.entry, self.gp.batch_shape).to(dtype),
            x=self.x.to(dtype),
            sites=Sites(self.sites.lam1.to(dtype), self.sites.lam2.to(dtype)),
        )

    def blocks(self) -> list[tuple[Tensor, "Problem"]]:
        """Row numbers and sub-problem of every independent block of rows (every group)."""
        if self.groups is None:
            return [(torch.arange(self.x.shape[-2]), self)]
        blocks = []
        for label in self.groups.unique():
            rows = (self.groups == label).nonzero()[:, 0]
            blocks.append((rows, replace(self.take(rows), groups=None)))
        return blocks

    def new_inputs(self, count: int = 3) -> tuple[Tensor, Tensor | None]:
        """Inputs elsewhere, and their groups."""
        shape = self.x.shape[:-2]
        x = uniform(*shape, count, 2, seed=9, high=2.0).to(self.x.dtype)
        return x, None if self.groups is None else self.groups[:count]


def make_process(entry: Entry, batch: torch.Size) -> GaussianProcess:
    """A process with a mean that varies over inputs and latents."""
    mean = gpytorch.means.LinearMean(2, batch_shape=batch).double()
    mean.weights.data = uniform(*batch, 2, 1, seed=5, low=-1.0)
    mean.bias.data = uniform(*batch, 1, seed=6)
    return GaussianProcess(entry.kernel(batch), mean)


def make_problem(entry: Entry, variant: str) -> Problem:
    """The problem of an entry in a variant of batch dims."""
    latents = torch.Size([] if variant in ("plain", "wide_sites") else [NUM_LATENTS])
    leading = (3, 1) if variant == "batch" else ()
    rows = len(SHUFFLED_GROUPS) if variant == "groups" else 5
    x = uniform(*leading, rows, 2, seed=7, high=2.0)
    shape = {
        "plain": (rows,),
        "latents": (NUM_LATENTS, rows),
        "wide_sites": (NUM_LATENTS, rows),
        "batch": (3, NUM_LATENTS, rows),
        "groups": (NUM_LATENTS, rows),
    }[variant]
    lam2 = uniform(*shape, seed=8, low=0.2, high=4.0)
    lam2[..., 1] = 0.0
    sites = Sites(lam2 * uniform(*shape, seed=10, low=-2.0, high=2.0), lam2)
    groups = SHUFFLED_GROUPS if variant == "groups" else None
    return Problem(
        entry,
        variant,
        entry.build(torch.float64),
        make_process(entry, latents),
        x,
        sites,
        groups,
    )


@dataclass(frozen=True)
class Reference:
    """Dense formulas for one block of rows."""

    problem: Problem

    def _projected(self, x1: Tensor, x2: Tensor) -> Tensor:
        return self.problem.entry.projected(self.problem.approximation, self.problem.gp, x1, x2)

    @cached_property
    def prior_mean(self) -> Tensor:
        """Mean of the rows."""
        return self.problem.gp.mean(self.problem.x)

    @cached_property
    def prior_covariance(self) -> Tensor:
        """Covariance Q of the projections."""
        return self._projected(self.problem.x, self.problem.x)

    @cached_property
    def residual(self) -> Tensor:
        """What the projections leave open."""
        whole = self.problem.gp.covariance(self.problem.x)
        return (whole - self.prior_covariance).diagonal(dim1=-2, dim2=-1)

    @cached_property
    def _system(self) -> Tensor:
        """I + Lam Q."""
        product = self.problem.sites.lam2.unsqueeze(-1) * self.prior_covariance
        return product + torch.eye(product.shape[-1], dtype=product.dtype)

    @cached_property
    def _weights(self) -> Tensor:
        """(I + Lam Q)^-1 (lam1 - Lam m), so that the mean is m + Q weights."""
        centred = self.problem.sites.lam1 - self.problem.sites.lam2 * self.prior_mean
        return torch.linalg.solve(self._system, centred)

    def predict(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and full covariance of f anywhere."""
        cross = self._projected(x, self.problem.x)
        whole = self.problem.gp.covariance(x)
        mean = self.problem.gp.mean(x) + (cross @ self._weights.unsqueeze(-1)).squeeze(-1)
        lost = self.problem.sites.lam2.unsqueeze(-1) * cross.mT
        return mean, whole - cross @ torch.linalg.solve(self._system, lost)

    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean of the rows and full covariance of their projections."""
        mean = self.prior_mean + (self.prior_covariance @ self._weights.unsqueeze(-1)).squeeze(-1)
        # (I + Q Lam)^-1 Q = Q (I + Lam Q)^-1
        covariance = torch.linalg.solve(self._system.mT, self.prior_covariance.mT).mT
        return mean, covariance

    def log_partition(self) -> Tensor:
        """log E_prior[exp(lam1'r - r'Lam r/2)], by completing the square."""
        m, sites = self.prior_mean, self.problem.sites
        centred = sites.lam1 - sites.lam2 * m
        at_mean = (sites.lam1 * m - 0.5 * sites.lam2 * m.square()).sum(-1)
        shift = (self.prior_covariance @ self._weights.unsqueeze(-1)).squeeze(-1)
        log_det = torch.linalg.slogdet(self._system).logabsdet
        return at_mean + 0.5 * ((centred * shift).sum(-1) - log_det)

    def kl(self) -> Tensor:
        """E_q[log t] - log Z."""
        mean, covariance = self.moments()
        variance = covariance.diagonal(dim1=-2, dim2=-1)
        sites = self.problem.sites
        expected = sites.lam1 * mean - 0.5 * sites.lam2 * (mean.square() + variance)
        return expected.sum(-1) - self.log_partition()


def totals(problem: Problem, function: Callable[[Reference], Tensor]) -> Tensor:
    """A total of every block, stacked in front for flat groups."""
    values = [function(Reference(block)) for _, block in problem.blocks()]
    return values[0] if problem.groups is None else torch.stack(values)


def rows(problem: Problem, function: Callable[[Reference], Tensor]) -> Tensor:
    """Row values of every block, back in the order of the rows."""
    index = torch.cat([index for index, _ in problem.blocks()])
    values = torch.cat([function(Reference(block)) for _, block in problem.blocks()], -1)
    return values[..., torch.argsort(index)]


CASES = {
    f"{name}-{variant}": make_problem(entry, variant)
    for name, entry in ENTRIES.items()
    for variant in entry.variants
}
