"""What a fit reports: one record per objective evaluation, callbacks, and the result."""

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor
from tqdm import tqdm

from gpvi.approximations import Posterior

__all__ = ["Callback", "FitRecord", "FitResult", "ProgressBar"]


@dataclass(frozen=True)
class FitRecord:
    """One objective evaluation.

    Parameters
    ----------
    stage : str
        "warm start", "full batch" (then "full batch, refresh 1" and on, where neighbours were found anew)
        or "minibatch".
    evaluation : int
        Number of the evaluation within its stage, from 1.
    objective : float
        Objective in total nats (a minibatch's estimate of it); NaN if the evaluation failed.
    best : float
        Best objective of the stage so far (for minibatches, a running mean).
    gradient_norm : float
        Largest gradient entry per row, in the optimiser's coordinates.
    seconds : float
        Seconds since the fit began.
    failed : bool
        Whether the evaluation broke down numerically and the step was taken back.
    restart : int
        Number of the start, where a fit is repeated from several.
    """

    stage: str
    evaluation: int
    objective: float
    best: float
    gradient_norm: float
    seconds: float
    failed: bool = False
    restart: int = 0


#: Called after every evaluation; returning True stops the fit.
Callback = Callable[[FitRecord], bool | None]


@dataclass(frozen=True, eq=False)
class FitResult:
    """Outcome of a fit.

    Parameters
    ----------
    posterior : Posterior
        Detached posterior at the final parameters.
    objective : float
        Objective there, total nats. For a minibatch fit, one pass over all data.
    num_iterations : int
        Optimiser iterations after the warm start.
    converged : bool
        Whether the stopping rule was met.
    message : str
        Why the fit stopped.
    history : list of FitRecord
        One per objective evaluation, all stages.
    log_v : Tensor or None
        Log residual scale of the tightened bound, where the likelihood needs one.
    stopped : bool
        Whether a callback asked to stop.
    """

    posterior: Posterior
    objective: float
    num_iterations: int
    converged: bool
    message: str
    history: list[FitRecord] = field(default_factory=list)
    log_v: Tensor | None = None
    stopped: bool = False


class ProgressBar:
    """Callback that shows the objective in a progress bar.

    Parameters
    ----------
    total : int, optional
        Expected number of evaluations.

    Examples
    --------
    >>> bar = ProgressBar(total=10)
    >>> bar.close()
    """

    def __init__(self, total: int | None = None) -> None:
        self._bar = tqdm(total=total, unit="eval", disable=None)

    def __call__(self, record: FitRecord) -> None:
        """Show one record.

        Parameters
        ----------
        record : FitRecord
            The newest evaluation.
        """
        self._bar.set_description_str(record.stage)
        self._bar.set_postfix_str(f"objective {record.best:.6g}")
        self._bar.update()

    def close(self) -> None:
        """Finish the bar."""
        self._bar.close()
