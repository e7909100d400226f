"""Parameters of a sparse inverse Cholesky q, and its neighbours, as parts of a module.

Parameters live inside a ``_VariationalDistribution``, which is how GPyTorch tells them from
hyperparameters. Neighbours are buffers: they travel with state dicts, copies and devices.
"""

from dataclasses import fields
from typing import Any, NoReturn

import torch
from gpytorch.variational._variational_distribution import _VariationalDistribution
from torch import Tensor

from gpvi.approximations.neighbor_geometry import NeighborGeometry
from gpvi.exceptions import UnsupportedError
from gpvi.inference.batch_units import factor_units, shift_units

__all__ = ["FactorParameters", "NeighborBuffers"]


class FactorParameters(_VariationalDistribution):
    """Mean and sparse factor of q, as distances from where they started.

    Parameters
    ----------
    shape : torch.Size, [*b, M]
        Batch shape and number of distinct locations.
    num_entries : int
        Entries k of a column of V besides its diagonal.
    like : Tensor
        Gives dtype and device.

    Attributes
    ----------
    shift : Parameter, shape [*b, M]
        Mean of q less that of the prior, by place in the order of the locations.
    off_diagonal : Parameter, shape [*b, M, k]
        Entries of every column of V.
    log_diagonal : Parameter, shape [*b, M]
        Logarithms of the diagonal of V. All three are distances from the start, in units in which the bound
        has a curvature of about one: 0.003 to 0.01 is a good learning rate for Adam.
    """

    def __init__(self, shape: torch.Size, num_entries: int, like: Tensor) -> None:
        super().__init__(shape[-1], torch.Size(shape[:-1]), mean_init_std=0.0)
        whole = torch.Size([*shape, num_entries + 1])
        for name, size in (
            ("shift", shape),
            ("off_diagonal", torch.Size([*shape, num_entries])),
            ("log_diagonal", shape),
        ):
            self.register_parameter(name, torch.nn.Parameter(like.new_zeros(size)))
        for name, size in (
            ("start_shift", shape),
            ("shift_unit", shape),
            ("start_factor", whole),
            ("factor_unit", whole),
        ):
            self.register_buffer(name, like.new_zeros(size))

    def moments(self) -> tuple[Tensor, Tensor]:
        """Today's q with gradients to the parameters, in double precision.

        Returns
        -------
        shift : Tensor, shape [*b, M]
            Mean of q less that of the prior.
        factor : Tensor, shape [*b, M, k + 1]
            V.
        """
        start, unit = self.start_factor.double(), self.factor_unit.double()
        shift = self.start_shift.double() + self.shift_unit.double() * self.shift.double()
        off = start[..., :-1] + unit[..., :-1] * self.off_diagonal.double()
        diagonal = start[..., -1] * (unit[..., -1] * self.log_diagonal.double()).exp()
        return shift, torch.cat([off, diagonal.unsqueeze(-1)], -1)

    def start(self, shift: Tensor, factor: Tensor, deviation: Tensor, index: Tensor) -> None:
        """Start anew, in place.

        Parameters
        ----------
        shift : Tensor, shape [*b, M]
            Mean of q less that of the prior.
        factor : Tensor, shape [*b, M, k + 1]
            V.
        deviation : Tensor, shape [*b, M]
            Marginal deviations of q.
        index : Tensor of int32, shape [M, k]
            Rows of the entries of V.
        """
        with torch.no_grad():
            for parameter in (self.shift, self.off_diagonal, self.log_diagonal):
                parameter.zero_()
            self.start_shift.copy_(shift)
            self.start_factor.copy_(factor)
            self.shift_unit.copy_(shift_units(index, factor))
            self.factor_unit.copy_(factor_units(index, factor, deviation))

    def forward(self) -> NoReturn:
        """Refused: q needs neighbours, which the strategy has."""
        raise UnsupportedError(
            "These parameters are no distribution by themselves; ask the strategy for "
            "variational_distribution."
        )

    def initialize_variational_distribution(self, prior_dist: Any) -> NoReturn:
        """Refused: the strategy starts q.

        Parameters
        ----------
        prior_dist : object
            Whatever GPyTorch passes.
        """
        raise UnsupportedError("SparseInverseStrategy starts q by itself, or by initialize_from.")


class NeighborBuffers(torch.nn.Module):
    """Order and neighbours as buffers, which travel with the model.

    Parameters
    ----------
    inputs : Tensor, shape [N, D]
        Training inputs.
    num_locations, num_neighbors : int
        Distinct locations M, and the most neighbours of one.
    """

    found: Tensor
    neighbors: Tensor

    def __init__(self, inputs: Tensor, num_locations: int, num_neighbors: int) -> None:
        super().__init__()
        M, N, device = num_locations, inputs.shape[-2], inputs.device
        for name, shape, dtype in (
            ("found", (), torch.bool),
            ("first", (1, M), torch.int64),
            ("place", (1, N), torch.int64),
            ("rank", (1, M), torch.int64),
            ("real", (1, M), torch.bool),
            ("neighbors", (1, M, num_neighbors), torch.int32),
            ("schedule", (1, M), torch.int32),
            ("scale", (inputs.shape[-1],), torch.float64),
        ):
            self.register_buffer(name, torch.zeros(shape, dtype=dtype, device=device))
        self._made: tuple[Tensor, NeighborGeometry] | None = None

    def adopt(self, geometry: NeighborGeometry) -> None:
        """Overwrite the buffers.

        Parameters
        ----------
        geometry : NeighborGeometry
            Of one data set.
        """
        for part in fields(NeighborGeometry):
            getattr(self, part.name).copy_(getattr(geometry, part.name))
        self.found.fill_(True)

    def geometry(self) -> NeighborGeometry:
        """The buffers as a geometry, made once for the same neighbours.

        Returns
        -------
        NeighborGeometry
            Of copies, which later changes of the buffers do not reach.
        """
        if self._made is None or not torch.equal(self._made[0], self.neighbors):
            parts = {part.name: getattr(self, part.name) for part in fields(NeighborGeometry)}
            parts["scale"] = parts["scale"].double().cpu()
            copies = {name: value.clone() for name, value in parts.items()}
            self._made = copies["neighbors"], NeighborGeometry(**copies)
        return self._made[1]
