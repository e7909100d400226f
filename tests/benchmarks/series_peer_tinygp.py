"""tinygp's quasiseparable kernels, a worker of ``bench_markov.py``: Matern-1/2, -3/2 and -5/2."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import tinygp
from markov_cases import NOISE, Stopwatch, parse_case, print_report, synthetic_series
from tinygp.kernels import quasisep


def main() -> None:
    """Measure and print."""
    case = parse_case(__doc__)
    kernels = {
        "matern12": quasisep.Exp,
        "matern32": quasisep.Matern32,
        "matern52": quasisep.Matern52,
    }
    if case.kernel not in kernels:
        raise SystemExit(f"tinygp has no kernel {case.kernel!r}; it has {', '.join(kernels)}")
    jax.config.update("jax_enable_x64", True)
    t, y = (jnp.asarray(values) for values in synthetic_series(case))

    def log_likelihood(parameters: jax.Array, t: jax.Array, y: jax.Array) -> jax.Array:
        deviation, lengthscale, noise = jnp.exp(parameters)
        kernel = kernels[case.kernel](scale=lengthscale, sigma=deviation)
        return tinygp.GaussianProcess(kernel, t, diag=noise**2, assume_sorted=True).log_probability(
            y
        )

    parameters = jnp.log(jnp.array([1.0, 1.0, NOISE]))
    value = jax.jit(log_likelihood)
    gradient = jax.jit(jax.value_and_grad(log_likelihood))
    print_report(
        "tinygp",
        case,
        float(value(parameters, t, y)),
        Stopwatch(lambda: jax.block_until_ready(value(parameters, t, y)), case.repeats),
        Stopwatch(lambda: jax.block_until_ready(gradient(parameters, t, y)), case.repeats),
    )


if __name__ == "__main__":
    main()
