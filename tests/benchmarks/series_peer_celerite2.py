"""celerite2 with its JAX interface, a worker of ``bench_markov.py``; it has Matern-3/2 only.

Its own approximation of that kernel, with its default accuracy.
"""

from __future__ import annotations

import celerite2.jax
import jax
import jax.numpy as jnp
from celerite2.jax import terms
from markov_cases import NOISE, Stopwatch, parse_case, print_report, synthetic_series


def main() -> None:
    """Measure and print."""
    case = parse_case(__doc__)
    if case.kernel != "matern32":
        raise SystemExit(f"celerite2 has no kernel {case.kernel!r}; it has matern32")
    jax.config.update("jax_enable_x64", True)
    t, y = (jnp.asarray(values) for values in synthetic_series(case))

    def log_likelihood(parameters: jax.Array, t: jax.Array, y: jax.Array) -> jax.Array:
        deviation, lengthscale, noise = jnp.exp(parameters)
        kernel = terms.Matern32Term(sigma=deviation, rho=lengthscale)
        process = celerite2.jax.GaussianProcess(kernel, mean=0.0)
        process.compute(t, diag=jnp.full_like(t, noise**2), check_sorted=False)
        return process.log_likelihood(y)

    parameters = jnp.log(jnp.array([1.0, 1.0, NOISE]))
    value = jax.jit(log_likelihood)
    gradient = jax.jit(jax.value_and_grad(log_likelihood))
    print_report(
        "celerite2",
        case,
        float(value(parameters, t, y)),
        Stopwatch(lambda: jax.block_until_ready(value(parameters, t, y)), case.repeats),
        Stopwatch(lambda: jax.block_until_ready(gradient(parameters, t, y)), case.repeats),
    )


if __name__ == "__main__":
    main()
