"""Sparse inverse Cholesky factors: orderings, neighbours, columns, and what is solved with them."""

from gpvi.linalg.sparse_inverse.ancestors import inverse_norms, posterior_norms
from gpvi.linalg.sparse_inverse.closure import inverse_diagonal, inverse_gram
from gpvi.linalg.sparse_inverse.columns import inverse_columns, row_log_densities
from gpvi.linalg.sparse_inverse.conjugate_gradients import precision_solve
from gpvi.linalg.sparse_inverse.correlation import correlation_neighbors
from gpvi.linalg.sparse_inverse.incomplete import incomplete_cholesky
from gpvi.linalg.sparse_inverse.levels import order_by_level
from gpvi.linalg.sparse_inverse.neighbors import (
    NeighborSearch,
    earlier_neighbors,
    nearest_points,
    neighbor_pattern,
)
from gpvi.linalg.sparse_inverse.operator import SparseInverseCholeskyLinearOperator
from gpvi.linalg.sparse_inverse.ordering import maximin_order, merge_duplicates, spatial_order
from gpvi.linalg.sparse_inverse.pattern import NeighborPattern
from gpvi.linalg.sparse_inverse.products import factor_product, factor_transpose_product
from gpvi.linalg.sparse_inverse.rectangular import SparseRows, rows_product, rows_transpose_product
from gpvi.linalg.sparse_inverse.row_evidence import row_log_evidence
from gpvi.linalg.sparse_inverse.solves import factor_solve, factor_transpose_solve
from gpvi.linalg.sparse_inverse.stationary_columns import stationary_inverse_columns

__all__ = [
    "NeighborPattern",
    "NeighborSearch",
    "SparseInverseCholeskyLinearOperator",
    "SparseRows",
    "correlation_neighbors",
    "earlier_neighbors",
    "factor_product",
    "factor_solve",
    "factor_transpose_product",
    "factor_transpose_solve",
    "incomplete_cholesky",
    "inverse_columns",
    "inverse_diagonal",
    "inverse_gram",
    "inverse_norms",
    "maximin_order",
    "merge_duplicates",
    "nearest_points",
    "neighbor_pattern",
    "order_by_level",
    "posterior_norms",
    "precision_solve",
    "row_log_densities",
    "row_log_evidence",
    "rows_product",
    "rows_transpose_product",
    "spatial_order",
    "stationary_inverse_columns",
]
