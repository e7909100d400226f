r"""The energy of expectation propagation as a function of any posterior, for learning hyperparameters.

The ELBO charges every row with :math:`E_q \log p(y_n \mid f_n)`. Expectation propagation puts the row's
likelihood where its site was, in the posterior without that site (the cavity), and integrates:

.. math:: \log Z_{EP} = \log Z_t + \frac1\alpha \sum_n \Big[ \log \int p(y_n \mid f)^\alpha q_{-n}(f)\, df
          - \log \int t_n(r)^\alpha q_{-n}(r)\, dr \Big].

Any sites may enter, also those of conjugate-computation variational inference. The energy is no bound, but
mostly closer to the log evidence than the ELBO.

The rows are computed in a form without cancellation. With the row's marginal :math:`N(m, v)`, cavity
:math:`N(m_-, v_-)`, gap :math:`g = v / v_-` and the pull :math:`w = \lambda_1 - \lambda_2 m`,

.. math:: \log Z_{EP} = -KL(q \| p) + \sum_n \Big[ \frac1\alpha \log \int p^\alpha q_{-n}
          + \tfrac12 w (m - m_-) - \tfrac1{2\alpha} (\log g + 1 - g) \Big].

References
----------
Minka, T. (2001). Expectation propagation for approximate Bayesian inference. UAI.
Bui, T. D., Yan, J. & Turner, R. E. (2017). A unifying framework for Gaussian process pseudo-point
approximations using power expectation propagation. JMLR.
Li, R., John, S. T. & Solin, A. (2023). Improving hyperparameter learning under approximate inference in
Gaussian process models. ICML.
"""

from gpytorch.likelihoods import Likelihood as GPyTorchLikelihood
from torch import Tensor

from gpvi.approximations import Posterior
from gpvi.approximations.cavity import check_rows_have_sites
from gpvi.exceptions import InputError
from gpvi.inference.objectives import assemble
from gpvi.inference.tilted import Cavity, Fractions, check_one_latent, log_tilted
from gpvi.likelihoods import as_likelihood

__all__ = ["ep_energy"]


def ep_energy(
    posterior: Posterior,
    likelihood: GPyTorchLikelihood,
    y: Tensor,
    num_data: int | None = None,
    *,
    power: float = 1.0,
    weights: Tensor | None = None,
    **rows: Tensor,
) -> Tensor:
    r"""Energy of (power) expectation propagation at the sites of a posterior, total nats.

    Equal to the log evidence of the approximation's own model for a Gaussian likelihood and its exact
    sites; not a bound for any other. The gradient is the one **at held sites**: sites of
    :func:`gpvi.inference.cvi` do not make the energy stationary, so it is not the derivative of the energy
    as a function of the hyperparameters alone. Alternate between a few steps on the energy and
    new sites.

    Parameters
    ----------
    posterior : Posterior
        q, conditioned on data sites, at the rows of ``y``.
    likelihood : gpytorch or gpvi likelihood
        With one latent function.
    y : Tensor, shape [N] or [*b, N]
        Targets; NaN means not observed.
    num_data : int, optional
        Rows of the whole data set, which these must be.
    power : float
        :math:`\alpha` in (0, 1]: how much of a site is taken out. Towards zero the energy becomes the
        ELBO.
    weights : Tensor, shape [N], optional
        Row weights; a row of integer weight counts as so many rows, each with its part of the site.
    **rows : Tensor, shape [N]
        Per-row extras of the likelihood.

    Returns
    -------
    Tensor, shape [*b] (or [G, *b] for flat groups)
        Total nats.

    Raises
    ------
    InputError
        For a power outside (0, 1], and for minibatches: q and KL would be those of the minibatch.
    UnsupportedError
        For sites on a basis, which belong to no single row, and likelihoods of several latents.

    References
    ----------
    Li, R., John, S. T. & Solin, A. (2023). Improving hyperparameter learning under approximate inference in
    Gaussian process models. ICML.

    Examples
    --------
    >>> import gpytorch, torch
    >>> from gpvi.approximations import Exact, GaussianProcess
    >>> from gpvi.inference import cvi, elbo
    >>> from gpvi.likelihoods import BernoulliLikelihood
    >>> x, y = torch.zeros(1, 1).double(), torch.ones(1).double()
    >>> prior = Exact().prior(GaussianProcess(gpytorch.kernels.RBFKernel().double()), x)
    >>> q = cvi(prior, BernoulliLikelihood(), y).posterior
    >>> bound, energy = elbo(q, BernoulliLikelihood(), y), ep_energy(q, BernoulliLikelihood(), y)
    >>> round(bound.item(), 4), round(energy.item(), 4)  # log Phi(0) = log 1/2
    (-0.6947, -0.6931)
    """
    model = as_likelihood(likelihood)
    check_one_latent(model)
    check_rows_have_sites(type(posterior).__name__, posterior.sites)
    size = posterior.sites.lam1.shape[-1]
    if num_data is not None and num_data != size:
        raise InputError(
            f"The energy of {size} rows out of {num_data}: cavities need the sites of all rows. Leave "
            "num_data out and pass all rows, or use elbo."
        )
    parts = Fractions.of(model, y, power, weights, posterior.sites.lam1)
    cavity = Cavity.of(posterior, parts.fraction)
    tilted = log_tilted(model, y, cavity, parts, rows)
    moments, sites = posterior.marginals(), posterior.sites
    pull = sites.lam1 - sites.lam2 * moments.mean
    spread = (cavity.gap.log() + 1.0 - cavity.gap) / parts.fraction
    term = tilted / parts.fraction + 0.5 * pull * (moments.mean - cavity.mean) - 0.5 * spread
    return assemble(posterior, model, term, None)
