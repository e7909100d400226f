"""The algebra of sites."""

import copy
import pickle

import pytest
import torch
from torch import Tensor

from gpvi.approximations import Sites
from gpvi.exceptions import InputError


def normal(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, dtype=torch.float64, generator=generator)


FIRST = Sites(normal(2, 3), normal(2, 3, seed=1))
SECOND = Sites(normal(2, 3, seed=2), normal(2, 3, seed=3))
FULL = Sites(normal(2, 3, seed=4), normal(2, 3, 3, seed=5), on="basis")
VALUES = normal(5, 2, 3, seed=6)


def test_sums_and_multiples_act_on_log_values():
    for left, right in ((FIRST, SECOND), (FULL, FULL)):
        both = left.log_value(VALUES) + right.log_value(VALUES)
        torch.testing.assert_close((left + right).log_value(VALUES), both)
    for factor in (2.5, torch.tensor(2.5)):
        torch.testing.assert_close((factor * FULL).log_value(VALUES), 2.5 * FULL.log_value(VALUES))
        torch.testing.assert_close((FULL * factor).lam2, (factor * FULL).lam2)
    rows = torch.tensor([1.0, 0.0, 2.0]).double()
    torch.testing.assert_close((rows * FIRST).lam2, rows * FIRST.lam2)


def test_log_value_is_the_quadratic_form():
    expected = torch.einsum("bi,sbi->sb", FULL.lam1, VALUES) - 0.5 * torch.einsum(
        "sbi,bij,sbj->sb", VALUES, FULL.lam2, VALUES
    )
    torch.testing.assert_close(FULL.log_value(VALUES), expected)
    diagonal = Sites(FIRST.lam1, torch.diag_embed(FIRST.lam2), on="basis")
    torch.testing.assert_close(FIRST.log_value(VALUES), diagonal.log_value(VALUES))


def test_diagonal_and_full_sites_add_up():
    diagonal = Sites(FIRST.lam1, FIRST.lam2, on="basis")
    for both in (diagonal + FULL, FULL + diagonal):
        assert both.full
        torch.testing.assert_close(
            both.log_value(VALUES), diagonal.log_value(VALUES) + FULL.log_value(VALUES)
        )


def test_lerp():
    torch.testing.assert_close(FIRST.lerp(SECOND, 0.0).lam1, FIRST.lam1)
    torch.testing.assert_close(FIRST.lerp(SECOND, 1.0).lam2, SECOND.lam2)
    torch.testing.assert_close(
        FIRST.lerp(SECOND, 0.25).lam1, 0.75 * FIRST.lam1 + 0.25 * SECOND.lam1
    )


def test_mask_also_removes_nan():
    observed = torch.tensor([True, False, True])
    poisoned = Sites(torch.where(observed, FIRST.lam1, torch.nan), FIRST.lam2)
    masked = poisoned.mask(observed)
    assert bool((masked.lam1[:, 1] == 0).all() and (masked.lam2[:, 1] == 0).all())
    assert torch.equal(masked.lam1[:, 0], FIRST.lam1[:, 0])


def test_zeros_and_detach():
    zeros = Sites.zeros((2, 3), on="basis", full=True, dtype=torch.float32)
    assert zeros.full and zeros.lam2.shape == (2, 3, 3) and zeros.lam1.dtype == torch.float32
    assert not Sites.zeros((3,)).full
    live = Sites(FIRST.lam1.clone().requires_grad_(), FIRST.lam2)
    assert live.lam1.requires_grad and not live.detach().lam1.requires_grad


def test_from_moments_is_a_quotient_of_gaussians():
    mean, variance = normal(4), normal(4, seed=1).square() + 0.1
    prior_mean, prior_variance = normal(4, seed=2), normal(4, seed=3).square() + 0.5
    sites = Sites.from_moments(mean, variance, prior_variance, prior_mean)
    precision = 1 / prior_variance + sites.lam2
    torch.testing.assert_close(1 / precision, variance)
    torch.testing.assert_close((prior_mean / prior_variance + sites.lam1) / precision, mean)


def test_copies():
    for copied in (pickle.loads(pickle.dumps(FULL)), copy.deepcopy(FULL)):
        assert torch.equal(copied.lam2, FULL.lam2) and copied.on == "basis"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.zeros(3), torch.zeros(3), "rows"), "on is 'rows'"),
        ((torch.zeros(3), torch.zeros(3).double()), "use one dtype"),
        ((torch.zeros(3), torch.zeros(2)), r"shape \(3,\) and lam2 \(2,\)"),
        ((torch.zeros(3), torch.zeros(2, 3), "basis"), r"lam2 \(2, 3\)"),
        ((torch.zeros(3), torch.zeros(3, 3)), "diagonal"),
        ((torch.zeros(()), torch.zeros(())), "shape"),
    ],
)
def test_impossible_sites(arguments, message):
    with pytest.raises(InputError, match=message):
        Sites(*arguments)


def test_impossible_combinations():
    with pytest.raises(InputError, match="'data' and on 'basis'"):
        FIRST + FULL
    with pytest.raises(InputError, match="3 and 4 entries"):
        FIRST + Sites.zeros((4,))
    with pytest.raises(TypeError):
        FIRST + 1.0
    with pytest.raises(InputError, match="no rows to mask"):
        FULL.mask(torch.tensor(True))
    with pytest.raises(InputError, match="one number"):
        FULL * torch.ones(3)
