"""Our log likelihood of a series in linear time, a worker of ``bench_markov.py``.

A kernel is converted at every evaluation, as a fit would, and the gradient is by all its parameters
and the noise variance.
"""

from __future__ import annotations

import math

import torch
from gpytorch.kernels import Kernel, ScaleKernel
from markov_cases import NOISE, Stopwatch, parse_case, print_report, synthetic_series
from torch import Tensor

from gpvi.kernels import as_state_space
from gpvi.kernels.hida_matern import HidaMaternKernel
from gpvi.kernels.matern import HalfIntegerMaternKernel
from gpvi.linalg import Steps, markov_log_partition

__all__ = ["KERNELS"]

KERNELS = {
    "matern12": lambda: HalfIntegerMaternKernel(order=0),
    "matern32": lambda: HalfIntegerMaternKernel(order=1),
    "matern52": lambda: HalfIntegerMaternKernel(order=2),
    "matern72": lambda: HalfIntegerMaternKernel(order=3),
    "hida1": lambda: HidaMaternKernel(order=1),
    "hida2": lambda: HidaMaternKernel(order=2),
}


class Series(torch.nn.Module):
    """A kernel of unit variance and lengthscale, and a noise variance."""

    def __init__(self, name: str) -> None:
        super().__init__()
        base = KERNELS[name]().double()
        base.lengthscale = 1.0
        self.kernel: Kernel = ScaleKernel(base).double()
        self.kernel.outputscale = 1.0
        self.log_noise = torch.nn.Parameter(torch.tensor(2 * math.log(NOISE), dtype=torch.float64))

    def forward(self, steps: Steps, y: Tensor) -> Tensor:
        """Log likelihood of one series."""
        precision = (-self.log_noise).exp()
        model = as_state_space(self.kernel).model()
        log_z = markov_log_partition(model, steps, precision * y, precision.expand(y.shape))
        square = precision * y.square().sum()
        return log_z.sum() - 0.5 * (square + len(y) * (math.log(2 * math.pi) + self.log_noise))


def main() -> None:
    """Measure and print."""
    case = parse_case(__doc__)
    t, y = (torch.from_numpy(values) for values in synthetic_series(case))
    series = Series(case.kernel)
    # What depends on the stamps alone is computed once per data set, as in a fit.
    steps = Steps.single(t)

    def value() -> Tensor:
        with torch.no_grad():
            return series(steps, y)

    def gradient() -> None:
        series.zero_grad()
        series(steps, y).backward()

    print_report(
        "gpvi",
        case,
        float(value()),
        Stopwatch(value, case.repeats),
        Stopwatch(gradient, case.repeats),
    )


if __name__ == "__main__":
    main()
