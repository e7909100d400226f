r"""The inverse of a semiseparable matrix plus a diagonal, as two recursions.

With predicted covariances P, :math:`S_k = h_k^\top P_k h_k + D_k` and gains
:math:`g_k = P_k h_k / S_k`, the innovations of a Kalman filter are
:math:`e_k = y_k - h_k^\top m_k`, :math:`m_k = A_k (m_{k-1} + g_{k-1} e_{k-1})`. They are linear in y and
independent, with variances S: :math:`(K + D)^{-1} = E^\top S^{-1} E`.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gpvi.linalg.markov._adjoint import prepare, run_forward
from gpvi.linalg.markov._compiled import choose_passes, unpack
from gpvi.linalg.markov._sweeps import sweep
from gpvi.linalg.markov._tensor_chain import build_chain
from gpvi.linalg.markov._tensor_passes import predicted
from gpvi.linalg.markov.model import MarkovModel, Steps
from gpvi.linalg.markov.smoothing import runs_compiled

__all__ = ["KalmanFactor"]


@dataclass(frozen=True, eq=False)
class KalmanFactor:
    """What :meth:`solve` needs, off the graph.

    Parameters
    ----------
    transition : Tensor, shape [*b, N, d, d]
        ``A_k (I - g_{k-1} h_{k-1}')``, how predictions move.
    gain : Tensor, shape [*b, N, d, 1]
        ``A_k g_{k-1}``, what the value of the row before adds to them.
    spread : Tensor, shape [*b, N]
        ``S``.
    readout : Tensor, shape [*b, N, d]
        ``h``.
    """

    transition: Tensor
    gain: Tensor
    spread: Tensor
    readout: Tensor

    @classmethod
    def factorize(
        cls, model: MarkovModel, steps: Steps, transition: Tensor, diagonal: Tensor
    ) -> "KalmanFactor":
        """Run the filter once.

        Parameters
        ----------
        model : MarkovModel
            With a readout per row.
        steps : Steps
            Stamps.
        transition : Tensor, shape [*b, N, d, d]
            ``A`` of the model.
        diagonal : Tensor, shape [*b, N]
            ``D``, positive.

        Returns
        -------
        KalmanFactor
            Of ``K + D``.
        """
        assert model.rows is not None
        with torch.no_grad():
            h = model.rows
            P = _predicted_covariances(model, steps, diagonal.reciprocal())
            u = (P @ h.unsqueeze(-1)).squeeze(-1)
            spread = (h * u).sum(-1) + diagonal
            gain = transition @ _before(u / spread.unsqueeze(-1)).unsqueeze(-1)
            return cls(transition - gain * _before(h).unsqueeze(-2), gain, spread, h.detach())

    def solve(self, columns: Tensor) -> Tensor:
        """``(K + D)^-1 Y``.

        Parameters
        ----------
        columns : Tensor, shape [*b, N, C]
            ``Y``, in order of time.

        Returns
        -------
        Tensor, shape [*b, N, C]
            In order of time.
        """
        h = self.readout.unsqueeze(-1)
        states = sweep(self.transition, self.gain * _before(columns).unsqueeze(-2))
        z = (columns - (h * states).sum(-2)) / self.spread.unsqueeze(-1)
        back = sweep(self.transition, h * z.unsqueeze(-2), reverse=True)
        return z - _after((self.gain * back).sum(-2))


def _predicted_covariances(model: MarkovModel, steps: Steps, lam2: Tensor) -> Tensor:
    """Covariances of the states given all earlier rows, shape [*b, N, d, d]."""
    zero = torch.zeros_like(lam2)
    if not runs_compiled("auto", lam2):
        return predicted(build_chain(model, steps, zero, lam2))[1]
    passes = choose_passes(model, steps)
    (lam1, lam2, *tensors), shape = prepare(passes, zero, lam2)
    _, stores = run_forward(passes, lam1, lam2, tuple(tensors), True)
    P = np.stack([unpack(store, model.dimension)[1] for store in stores])
    return torch.from_numpy(P).reshape(*shape, *P.shape[1:]).to(zero.dtype)


def _before(rows: Tensor) -> Tensor:
    """Rows [*b, N, C] of the row before; zero in the first."""
    return torch.nn.functional.pad(rows[..., :-1, :], (0, 0, 1, 0))


def _after(rows: Tensor) -> Tensor:
    """Rows [*b, N, C] of the row after; zero in the last."""
    return torch.nn.functional.pad(rows[..., 1:, :], (0, 0, 0, 1))
