"""The exact log evidence against a dense density and finite differences."""

import pytest
import torch

from gpvi.exceptions import InputError, NotPositiveDefiniteError
from gpvi.linalg import gaussian_log_evidence


def problem(batch: tuple[int, ...] = (), size: int = 5) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(*batch, size, size, generator=generator, dtype=torch.float64)
    targets = torch.randn(*batch, size, generator=generator, dtype=torch.float64)
    noise = 0.1 + torch.rand(*batch, size, generator=generator, dtype=torch.float64)
    return root, targets, noise


@pytest.mark.parametrize("batch", [(), (3,), (2, 3)])
def test_value_is_the_dense_density(batch: tuple[int, ...]) -> None:
    root, targets, noise = problem(batch)
    total = root @ root.mT + torch.diag_embed(noise)
    dense = torch.distributions.MultivariateNormal(torch.zeros_like(targets), total)
    value = gaussian_log_evidence(root @ root.mT, targets, noise)
    assert value.shape == batch
    torch.testing.assert_close(value, dense.log_prob(targets), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("batch", [(), (2,)])
@pytest.mark.parametrize("scalar", [True, False])
def test_adjoint(batch: tuple[int, ...], scalar: bool) -> None:
    root, targets, noise = problem(batch, 4)
    noise = torch.tensor(0.3, dtype=torch.float64) if scalar else noise
    arguments = tuple(value.requires_grad_() for value in (root, targets, noise))
    assert torch.autograd.gradcheck(
        lambda r, t, n: gaussian_log_evidence(r @ r.mT, t, n), arguments
    )


def test_no_gradient_is_prepared_where_none_is_asked_for() -> None:
    root, targets, noise = problem()
    assert not gaussian_log_evidence(root @ root.mT, targets, noise).requires_grad


def test_shapes_are_checked() -> None:
    with pytest.raises(InputError, match=r"\(2, 3\)"):
        gaussian_log_evidence(torch.zeros(2, 3), torch.zeros(3), torch.ones(()))


def test_an_indefinite_matrix_is_refused() -> None:
    with pytest.raises(NotPositiveDefiniteError, match="Kxx"):
        gaussian_log_evidence(
            -torch.eye(2, dtype=torch.float64), torch.zeros(2).double(), torch.zeros(()).double()
        )
