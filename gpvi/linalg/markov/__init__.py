"""Gauss-Markov processes in linear time: blocks, filtering and smoothing, two engines."""

from gpvi.linalg.markov.block_cholesky import (
    BlockCholesky,
    CyclicReduction,
    SequentialCholesky,
)
from gpvi.linalg.markov.block_tridiagonal import (
    BlockTridiagonal,
    markov_precision,
)
from gpvi.linalg.markov.blocks import (
    CascadeBlock,
    MarkovBlock,
    matern_noise,
    stationary_cascade,
)
from gpvi.linalg.markov.conditioning import condition_last
from gpvi.linalg.markov.cross_operator import CrossCovarianceLinearOperator
from gpvi.linalg.markov.dense_blocks import (
    KroneckerBlock,
    ScaledBlock,
)
from gpvi.linalg.markov.innovations import (
    innovation_factors,
    run_affine,
)
from gpvi.linalg.markov.launched import (
    LaunchedBlock,
    SteadyBlock,
)
from gpvi.linalg.markov.model import (
    MarkovModel,
    Steps,
)
from gpvi.linalg.markov.operators import SemiseparableLinearOperator
from gpvi.linalg.markov.path import (
    MarkovPath,
    markov_path,
)
from gpvi.linalg.markov.plus_diagonal_operator import SemiseparablePlusDiagonalLinearOperator
from gpvi.linalg.markov.precision_operator import BlockTridiagonalLinearOperator
from gpvi.linalg.markov.rational import (
    RationalBlock,
)
from gpvi.linalg.markov.sampling import markov_sample
from gpvi.linalg.markov.scan import (
    affine,
    associative_scan,
    congruence,
    interleave,
)
from gpvi.linalg.markov.smoothing import (
    Engine,
    Smoothed,
    markov_log_partition,
    markov_marginals,
    markov_smooth,
)
from gpvi.linalg.markov.state_path import (
    StatePath,
)
from gpvi.linalg.markov.tensor_engine import (
    tensor_log_partition,
    tensor_marginals,
    tensor_sample,
    tensor_state_path,
)
from gpvi.linalg.markov.wiener_bank import (
    WienerBankBlock,
)

__all__ = [
    "BlockCholesky",
    "BlockTridiagonal",
    "BlockTridiagonalLinearOperator",
    "CascadeBlock",
    "CrossCovarianceLinearOperator",
    "CyclicReduction",
    "Engine",
    "KroneckerBlock",
    "LaunchedBlock",
    "MarkovBlock",
    "MarkovModel",
    "MarkovPath",
    "RationalBlock",
    "ScaledBlock",
    "SemiseparableLinearOperator",
    "SemiseparablePlusDiagonalLinearOperator",
    "SequentialCholesky",
    "Smoothed",
    "StatePath",
    "SteadyBlock",
    "Steps",
    "WienerBankBlock",
    "affine",
    "associative_scan",
    "condition_last",
    "congruence",
    "innovation_factors",
    "interleave",
    "markov_log_partition",
    "markov_marginals",
    "markov_path",
    "markov_precision",
    "markov_sample",
    "markov_smooth",
    "matern_noise",
    "run_affine",
    "stationary_cascade",
    "tensor_log_partition",
    "tensor_marginals",
    "tensor_sample",
    "tensor_state_path",
]
