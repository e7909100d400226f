"""The flat parameter vector, the box, and coordinates for quasi-Newton optimisers."""

import math

import gpytorch
import numpy as np
import pytest
import torch
from gpytorch.constraints import GreaterThan, Interval, Positive
from gpytorch.kernels import RBFKernel, ScaleKernel
from gpytorch.priors import GammaPrior, NormalPrior
from torch import Tensor

from gpvi.inference import ParameterVector, log_prior
from gpvi.inference.coordinates import Coordinates, Curvature
from gpvi.inference.parameters import unchanged_on_error


class Mixed(gpytorch.Module):
    """Parameters under every kind of constraint."""

    def __init__(self) -> None:
        super().__init__()
        for name, constraint in {
            "raw_positive": Positive(),
            "raw_above": GreaterThan(0.5),
            "raw_between": Interval(1.0, 3.0),
            "raw_free": None,
        }.items():
            self.register_parameter(name, torch.nn.Parameter(torch.tensor([0.3, -1.2]).double()))
            if constraint is not None:
                self.register_constraint(name, constraint.double())

    def value(self) -> Tensor:
        positive = self.raw_positive_constraint.transform(self.raw_positive)
        above = self.raw_above_constraint.transform(self.raw_above)
        between = self.raw_between_constraint.transform(self.raw_between)
        return (positive.square() * above.log() + between.sin() * self.raw_free).sum()


class TestVector:
    def test_round_trip(self):
        module = Mixed()
        vector = ParameterVector({"m": module})
        values = vector.values()
        assert values.shape == (8,) and vector.size == 8
        moved = values + np.linspace(-1, 1, 8)
        vector.assign(moved)
        assert np.allclose(vector.values(), moved, atol=1e-12)
        vector.assign(values)
        assert torch.allclose(module.raw_above, torch.tensor([0.3, -1.2]).double(), atol=1e-12)

    def test_scales(self):
        module = Mixed()
        vector = ParameterVector({"m": module})
        values = dict(zip(vector.names, np.split(vector.values(), 4), strict=True))
        softplus = torch.nn.functional.softplus(torch.tensor([0.3, -1.2]).double()).numpy()
        assert np.allclose(values["m.raw_positive"], np.log(softplus))
        assert np.allclose(values["m.raw_above"], np.log(softplus))  # log of (value - 0.5)
        assert np.allclose(values["m.raw_between"], [0.3, -1.2])
        assert np.allclose(values["m.raw_free"], [0.3, -1.2])

    def test_gradient_against_finite_differences(self):
        module = Mixed()
        vector = ParameterVector({"m": module})
        point = vector.values()
        gradient = vector.gradient(module.value())
        for i in range(len(point)):
            ends = []
            for step in (1e-6, -1e-6):
                moved = point.copy()
                moved[i] += step
                vector.assign(moved)
                ends.append(module.value().item())
            assert gradient[i] == pytest.approx((ends[0] - ends[1]) / 2e-6, rel=1e-6, abs=1e-7)

    def test_gradient_is_zero_for_what_does_not_matter(self):
        module = Mixed()
        gradient = ParameterVector({"m": module}).gradient(module.raw_free.sum())
        assert gradient.tolist() == [0] * 6 + [1, 1]

    def test_shared_parameters_count_once(self):
        kernel = RBFKernel().double()
        vector = ParameterVector({"a": kernel, "b": ScaleKernel(kernel).double()})
        assert vector.names == ["a.raw_lengthscale", "b.raw_outputscale"]

    def test_frozen_parameters_are_left_out(self):
        kernel = ScaleKernel(RBFKernel()).double()
        kernel.raw_outputscale.requires_grad_(False)
        assert ParameterVector({"k": kernel}).names == ["k.base_kernel.raw_lengthscale"]

    def test_nothing_to_train(self):
        vector = ParameterVector({"m": torch.nn.Identity()})
        assert vector.values().shape == (0,) and vector.size == 0
        low, high = vector.box()
        assert low.shape == high.shape == (0,)

    def test_float32(self):
        kernel = RBFKernel()
        kernel.lengthscale = 2.0
        vector = ParameterVector({"k": kernel})
        assert vector.values().dtype == np.float64
        vector.assign(np.array([1.5]))
        assert kernel.raw_lengthscale.dtype == torch.float32
        assert kernel.lengthscale.item() == pytest.approx(math.exp(1.5), rel=1e-6)
        assert vector.gradient(kernel.lengthscale.sum())[0] == pytest.approx(
            math.exp(1.5), rel=1e-5
        )

    @pytest.mark.parametrize("theta", [-25.0, -10.0, 0.0, 10.0, 25.0])
    def test_extreme_values_stay_finite(self, theta):
        kernel = RBFKernel().double()
        vector = ParameterVector({"k": kernel})
        vector.assign(np.array([theta]))
        assert vector.values()[0] == pytest.approx(theta, abs=1e-6)
        gradient = vector.gradient(kernel.lengthscale.log().sum())
        assert gradient[0] == pytest.approx(1.0, rel=1e-6)

    def test_slices_and_box(self):
        module = Mixed()
        vector = ParameterVector({"m": module})
        assert vector.slices()["m.raw_between"] == slice(4, 6)
        low, high = vector.box()
        assert np.allclose(high[:4] - low[:4], 28.0)
        assert np.isinf(low[4:]).all() and np.isinf(high[4:]).all()

    def test_ordinary_torch_modules(self):
        layer = torch.nn.Linear(2, 1).double()
        vector = ParameterVector({"net": layer})
        assert vector.names == ["net.weight", "net.bias"]
        vector.assign(np.arange(3.0))
        assert layer.weight.tolist() == [[0.0, 1.0]]


class TestLogPrior:
    def test_counts_a_prior_once(self):
        kernel = RBFKernel(lengthscale_prior=GammaPrior(2.0, 3.0)).double()
        kernel.lengthscale = 0.7
        alone = GammaPrior(2.0, 3.0).log_prob(torch.tensor(0.7)).item()
        assert log_prior([kernel]).item() == pytest.approx(alone, rel=1e-5)
        twice = kernel + ScaleKernel(kernel)
        assert log_prior([twice, kernel]).item() == pytest.approx(alone, rel=1e-5)

    def test_several_and_gradient(self):
        kernel = ScaleKernel(
            RBFKernel(lengthscale_prior=GammaPrior(2.0, 3.0), ard_num_dims=2),
            outputscale_prior=NormalPrior(0.0, 1.0),
        ).double()
        value = log_prior([kernel])
        expected = GammaPrior(2.0, 3.0).log_prob(kernel.base_kernel.lengthscale).sum()
        expected = expected + NormalPrior(0.0, 1.0).log_prob(kernel.outputscale)
        assert torch.allclose(value, expected)
        value.backward()
        assert kernel.raw_outputscale.grad is not None

    def test_none(self):
        assert log_prior([RBFKernel(), torch.nn.Linear(1, 1)]) == 0.0


class TestUnchangedOnError:
    def test_restores_bit_by_bit_and_forgets_what_is_new(self):
        module = Mixed()
        module.register_parameter("late", None)
        before = {name: value.clone() for name, value in module.state_dict().items()}
        free = module.raw_free
        with pytest.raises(KeyboardInterrupt), unchanged_on_error([module]):
            ParameterVector({"m": module}).assign(np.ones(8))
            module.late = torch.nn.Parameter(torch.ones(1))
            raise KeyboardInterrupt
        assert module.late is None and module.raw_free is free
        after = module.state_dict()
        assert after.keys() == before.keys()
        assert all(torch.equal(after[name], before[name]) for name in before)

    def test_keeps_changes_otherwise(self):
        module = Mixed()
        with unchanged_on_error([module]):
            module.raw_free.data.fill_(7.0)
        assert module.raw_free.tolist() == [7.0, 7.0]


class TestCoordinates:
    def vector(self) -> tuple[Mixed, ParameterVector]:
        module = Mixed()
        return module, ParameterVector({"m": module})

    def curvature(self, names: list[str]) -> Curvature:
        slices = {name: slice(2 * i, 2 * i + 2) for i, name in enumerate(names)}
        generator = np.random.default_rng(0)
        root = generator.normal(size=(2 * len(names), 2 * len(names)))
        return Curvature(slices, root @ root.T + np.eye(2 * len(names)))

    def test_origin(self):
        _, vector = self.vector()
        for curvature in (None, self.curvature(["m.raw_free"])):
            coordinates = Coordinates(vector, curvature)
            assert np.array_equal(coordinates.values(np.zeros(8)), vector.values())

    @pytest.mark.parametrize("names", [[], ["m.raw_above", "m.raw_free"]])
    def test_pull_back_against_finite_differences(self, names):
        module, vector = self.vector()
        curvature = self.curvature(names) if names else None
        coordinates = Coordinates(vector, curvature)
        point = np.linspace(-0.3, 0.3, 8)

        def value(at: np.ndarray) -> float:
            vector.assign(coordinates.values(at))
            return module.value().item()

        value(point)
        pulled = coordinates.pull_back(point, vector.gradient(module.value()))
        for i in range(8):
            step = 1e-6 * np.eye(8)[i]
            numeric = (value(point + step) - value(point - step)) / 2e-6
            assert pulled[i] == pytest.approx(numeric, rel=1e-5, abs=1e-7)

    def test_clips_at_the_box(self):
        _, vector = self.vector()
        coordinates = Coordinates(vector)
        far = np.full(8, 100.0)
        low, high = vector.box()
        assert np.array_equal(coordinates.values(far)[:4], high[:4])
        assert np.array_equal(coordinates.values(-far)[:4], low[:4])
        pulled = coordinates.pull_back(far, np.ones(8))
        assert pulled.tolist() == [0.0] * 4 + [1.0] * 4

    def test_whitens_by_name(self):
        _, vector = self.vector()
        # The curvature knows two parameters in another order, and one that is not here.
        names = ["m.raw_free", "m.elsewhere", "m.raw_positive"]
        curvature = self.curvature(names)
        coordinates = Coordinates(vector, curvature)
        unit = np.eye(8)
        columns = np.stack([coordinates.values(e) - coordinates.origin for e in unit], axis=1)
        known = [6, 7, 0, 1]  # places of raw_free and raw_positive in the vector
        learned = curvature.inverse[np.ix_([0, 1, 4, 5], [0, 1, 4, 5])]
        got = (columns @ columns.T)[np.ix_(known, known)]
        assert np.allclose(got, learned)
        assert np.allclose(columns[2:6, 2:6], np.eye(4))

    def test_unknown_names_and_sizes_change_nothing(self):
        _, vector = self.vector()
        curvature = Curvature({"m.raw_free": slice(0, 3), "other": slice(3, 4)}, np.eye(4))
        coordinates = Coordinates(vector, curvature)
        assert np.allclose(coordinates.values(np.ones(8)), coordinates.origin + 1.0)

    def test_wild_curvature_is_tamed(self):
        _, vector = self.vector()
        inverse = np.diag([1e-30, 1.0, 1.0, 1e30])
        names = {"m.raw_above": slice(0, 2), "m.raw_free": slice(2, 4)}
        coordinates = Coordinates(vector, Curvature(names, inverse))
        columns = [coordinates.values(0.01 * e) - coordinates.origin for e in np.eye(8)]
        lengths = np.linalg.norm(columns, axis=1)[[2, 3, 6, 7]] / 0.01
        assert np.allclose(np.sort(lengths), [1e-3**0.5, 1.0, 1.0, 1e3**0.5])
        broken = Coordinates(vector, Curvature(names, np.full((4, 4), np.nan)))
        assert np.allclose(broken.values(0.1 * np.ones(8)), broken.origin + 0.1)
