"""The form itself, and kernels of a user that bring their own."""

import gpytorch
import pytest
import torch
from torch import Tensor

from gpvi.exceptions import InputError
from gpvi.kernels import StateSpaceForm, StateSpaceKernel, as_state_space
from gpvi.kernels.state_space import PowerWeight, ProductWeight
from gpvi.linalg.markov.launched import SteadyBlock


def constant(variance: float = 1.0) -> SteadyBlock:
    return SteadyBlock.make(torch.tensor(variance, dtype=torch.float64))


class Level(gpytorch.kernels.Kernel):
    """A constant of variance two, by a user."""

    has_lengthscale = False

    def forward(self, x1: Tensor, x2: Tensor, diag: bool = False, **params) -> Tensor:
        value = 2.0 * torch.ones(x1.shape[-2], x2.shape[-2]).to(x1)
        return value.diagonal() if diag else value

    def state_space(self) -> StateSpaceForm:
        return StateSpaceForm((constant(2.0),), (0,), ("level",))


def test_a_kernel_of_a_user_takes_part(state_space_covariance):
    assert isinstance(Level(), StateSpaceKernel)
    assert not isinstance(gpytorch.kernels.MaternKernel(), StateSpaceKernel)
    kernel = Level() * gpytorch.kernels.MaternKernel().double() + Level()
    x = torch.tensor([[0.0], [0.4], [1.0]], dtype=torch.float64)
    form = as_state_space(kernel)
    assert form.labels == ("level * matern52", "level")
    assert torch.allclose(state_space_covariance(form, x), kernel(x).to_dense(), atol=1e-12)


def test_model_without_row_weights_ignores_the_rows():
    form = StateSpaceForm((constant(), constant()), (0, 1), ("a", "b"))
    assert not form.needs_rows and form.model().rows is None and form.dimension == 2
    assert form.model(torch.zeros(3, 1)).is_cascade
    assert form.component(0).tolist() == [1.0, 0.0] and form.component(1).dtype == torch.float64


def test_row_weights():
    one, origin = torch.ones(2, dtype=torch.float64), torch.tensor(1.0, dtype=torch.float64)
    line = PowerWeight(1, one, origin, column=1)
    form = StateSpaceForm(
        (constant(), constant()),
        (0, 0),
        ("a",),
        time_dim=1,
        weights=(None, ProductWeight(line, line)),
    )
    x = torch.tensor([[9.0, 2.0], [9.0, -1.0], [9.0, 4.0]], dtype=torch.float64)
    rows = form.model(x).rows
    assert rows.shape == (2, 3, 2)
    assert rows[1].tolist() == [[1.0, 1.0], [1.0, 4.0], [1.0, 9.0]]
    with pytest.raises(InputError, match="pass the rows x"):
        form.model()


def test_row_weights_of_a_batch_of_rows():
    kernel = gpytorch.kernels.LinearKernel() * gpytorch.kernels.MaternKernel(nu=0.5)
    x = torch.randn(4, 1, 5, 1, generator=torch.Generator().manual_seed(0))
    assert as_state_space(kernel).model(x).rows.shape == (4, 1, 5, 1)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (((constant(),), (0, 0), ("a",)), "1 blocks, 2 terms"),
        (((constant(),), (0,), ("a", "a")), "unique"),
        (((constant(),), (1,), ("a",)), "must number the 1 labels"),
    ],
)
def test_forms_are_checked(arguments, message):
    with pytest.raises(InputError, match=message):
        StateSpaceForm(*arguments)


def test_terms_are_checked():
    with pytest.raises(InputError, match=r"one of 0..0, got 1"):
        StateSpaceForm((constant(),), (0,), ("a",)).component(1)
