"""Writes straight-line code for the two passes over a sum of cascades.

A loop over states inside the loop over time costs several times the arithmetic it steers: the
matrices are tiny, structured and of fixed size. So the passes are written out, one scalar per entry
of the state, for every list of blocks. The lists that are common are checked in; further ones go
to a cache folder on first use (see ``gpvi.linalg.markov._compiled``). Call
:func:`write_checked_in` to rewrite the checked-in files.

Names in the generated code: state mean ``m``, covariance ``P`` (upper triangle), their adjoints
``r`` and ``N``, coefficients ``a{block}_{k} = e^-x x^k / k!`` of the transition, ``q{block}_{n}`` for
``I_n(x)``, ``c`` and ``s`` for cosine and sine of the turn.
"""

from pathlib import Path

from gpvi.linalg.markov._generated_lines import (
    Layout,
    Signature,
    add,
    add_noise,
    coefficients,
    indent,
    initial_coefficients,
    move_matrix,
    move_vector,
    slopes,
    symmetric,
)

__all__ = ["CHECKED_IN", "passes_source", "signature_tag", "write_checked_in"]

_MATERNS: tuple[Signature, ...] = tuple(((p, True, False),) for p in range(4))
_HIDAS: tuple[Signature, ...] = tuple(((p, True, True),) for p in range(2))
#: Lists of blocks whose passes come with the package.
CHECKED_IN: tuple[Signature, ...] = (*_MATERNS, *_HIDAS)

_LETTERS = {(True, False): "m", (True, True): "h", (False, False): "u", (False, True): "v"}


def signature_tag(signature: Signature) -> str:
    """Short name of a list of blocks, usable in file names.

    Parameters
    ----------
    signature : Signature
        Blocks.

    Returns
    -------
    str
        For instance "m1_h0".
    """
    return "_".join(f"{_LETTERS[damped, turns]}{order}" for order, damped, turns in signature)


def passes_source(signature: Signature) -> str:
    """Text of a module with the functions ``forward`` and ``backward``.

    Parameters
    ----------
    signature : Signature
        Blocks.

    Returns
    -------
    str
        Python source that Numba compiles.
    """
    layout = Layout(signature)
    lines = [
        f'"""Passes over the sum of blocks {signature_tag(signature)}, written by',
        '``gpvi.linalg.markov._generator``; do not edit."""',
        "",
        *(["from math import cos, sin", ""] if any(turns for *_, turns in signature) else []),
        "import numpy as np",
        "from numba import njit",
        "",
        "from gpvi.linalg._vexp import vexp",
        "",
        '__all__ = ["backward", "forward"]',
        "",
        '_FLAGS = {"contract", "nsz", "arcp"}',
        "",
        "",
        *_forward(layout),
        "",
        "",
        *_backward(layout),
    ]
    return "\n".join(lines) + "\n"


def _header(name: str, arguments: tuple[str, ...]) -> list[str]:
    listed = [f"    {argument}: np.ndarray," for argument in arguments]
    return [
        '@njit(cache=True, nogil=True, fastmath=_FLAGS, error_model="numpy")',
        f"def {name}(",
        *listed,
        ") -> int:  # pragma: no cover - compiled",
    ]


def _forward(layout: Layout) -> list[str]:
    d = layout.dimension
    begin = [f"m{i} = zero" for i in range(d)]
    begin += [f"P{i}_{j} = start[first, {n}] + zero" for n, (i, j) in enumerate(layout.upper)]
    store = [f"store[k, {i}] = m{i}" for i in range(d)]
    store += [f"store[k, {d + n}] = P{i}_{j}" for n, (i, j) in enumerate(layout.upper)]
    update = [
        *_project(layout),
        "if D.real <= 0.0:",
        "    return k",
        "e = j[k] - w[k] * a",
        "inverse = 1.0 / D",
        "gain = e * inverse",
        "shrink = w[k] * inverse",
        "total += (j[k] * a + 0.5 * (j[k] * j[k] * s - w[k] * a * a)) * inverse",
        *_keep_log("total -= 0.5 * np.log(product)"),
        *[f"m{i} += u{i} * gain" for i in range(d)],
        *[f"P{i}_{j} -= shrink * u{i} * u{j}" for i, j in layout.upper],
    ]
    return [
        *_header(
            "forward",
            ("dt", "starts", "rate", "frequency", "noise", "start", "j", "w", "store", "out"),
        ),
        '    """Predicted moments into `store` (if it has rows), log partition of every series into',
        '    `out`; returns -1, or the row whose site is too negative."""',
        "    zero = 0.0 * j[0]",
        *indent(initial_coefficients(layout), 1),
        "    last = 0.0",
        "    for g in range(starts.shape[0] - 1):",
        "        first = min(g, start.shape[0] - 1)",
        "        total = zero",
        "        product = zero + 1.0",
        *indent(begin, 2),
        "        for k in range(starts[g], starts[g + 1]):",
        "            step = dt[k]",
        "            if step != 0.0:",
        "                if step != last:",
        "                    last = step",
        *indent(coefficients(layout), 5),
        *indent(move_vector(layout, "m", flip=False), 4),
        *indent(move_matrix(layout, "P", flip=False), 4),
        *indent(add_noise(layout), 4),
        "            if store.shape[0] > 0:",
        *indent(store, 4),
        *indent(update, 3),
        "        out[g] = total - 0.5 * np.log(product)",
        "    return -1",
    ]


def _backward(layout: Layout) -> list[str]:
    d, upper = layout.dimension, layout.upper
    arguments = ("dt", "starts", "rate", "frequency", "noise", "j", "w", "store", "weight")
    results = (
        "mean",
        "variance",
        "by_rate",
        "by_frequency",
        "by_noise",
        "by_start",
        "by_dt",
        "adjoint",
        "divergence",
    )
    keep = [f"adjoint[k, {i}] = r{i}" for i in range(d)]
    keep += [f"adjoint[k, {d + n}] = N{i}_{j}" for n, (i, j) in enumerate(upper)]
    outer = [f"G{i}_{j} = r{i} * r{j} - N{i}_{j}" for i, j in upper]
    sums = _accumulators(layout)
    return [
        *_header("backward", arguments + results),
        '    """Posterior moments of the rows, derivatives of the weighted sum of log partitions (added',
        "    up), from the moments that `forward` stored; adjoints into `adjoint` (if it has rows), KL",
        '    divergences from the prior into `divergence`."""',
        "    zero = 0.0 * j[0]",
        *indent(initial_coefficients(layout), 1),
        "    last = 0.0",
        "    for g in range(starts.shape[0] - 1):",
        "        first = min(g, by_start.shape[0] - 1)",
        "        total = zero",
        "        product = zero + 1.0",
        "        " + " = ".join(name for name, _ in sums) + " = zero",
        *indent([f"r{i} = zero" for i in range(d)], 2),
        *indent([f"N{i}_{j} = zero" for i, j in upper], 2),
        "        for k in range(starts[g + 1] - 1, starts[g] - 1, -1):",
        *indent([f"m{i} = store[k, {i}]" for i in range(d)], 3),
        *indent([f"P{i}_{j} = store[k, {d + n}]" for n, (i, j) in enumerate(upper)], 3),
        *indent(_project(layout), 3),
        *indent(_site_backwards(layout), 3),
        "            if adjoint.shape[0] > 0:",
        *indent(keep, 4),
        "            if k == starts[g]:",
        *indent(outer, 4),
        *indent(
            [
                f"by_start[first, {n}] += 0.5 * weight[g] * G{i}_{j}"
                for n, (i, j) in enumerate(upper)
            ],
            4,
        ),
        "                if by_dt.shape[0] > 0:",
        "                    by_dt[k] = zero",
        "            elif dt[k] == 0.0:",
        *indent(outer, 4),
        "                slope = zero",
        *indent(slopes(layout, moving=False), 4),
        "                if by_dt.shape[0] > 0:",
        "                    by_dt[k] = weight[g] * slope",
        "            else:",
        "                step = dt[k]",
        "                if step != last:",
        "                    last = step",
        *indent(coefficients(layout), 5),
        *indent(outer, 4),
        "                slope = zero",
        *indent(slopes(layout, moving=True), 4),
        "                if by_dt.shape[0] > 0:",
        "                    by_dt[k] = weight[g] * slope",
        *indent(move_vector(layout, "r", flip=True), 4),
        *indent(move_matrix(layout, "N", flip=True), 4),
        "        divergence[g] = total + 0.5 * np.log(product)",
        *indent([f"{target} += weight[g] * {name}" for name, target in sums], 2),
        "    return -1",
    ]


def _accumulators(layout: Layout) -> list[tuple[str, str]]:
    """Local sums, which stay in registers, and where they go in the end."""
    sums = []
    for block in layout.blocks:
        b = block.number
        sums += [(f"dr{b}", f"by_rate[{b}]"), (f"dn{b}", f"by_noise[{b}]")]
        sums += [(f"df{b}", f"by_frequency[{b}]")] if block.rotating else []
    return sums


def _keep_log(spill: str) -> list[str]:
    """One logarithm per many steps: the determinants are multiplied up."""
    return [
        "product *= D",
        "if product.real > 1e150 or product.real < 1e-150:",
        f"    {spill}",
        "    product = zero + 1.0",
    ]


def _project(layout: Layout) -> list[str]:
    """``u = P h``, ``a = h'm``, ``s = h'P h``, ``D = 1 + w s``."""
    firsts = layout.firsts
    lines = [
        f"u{i} = " + add(symmetric("P", i, f) for f in firsts) for i in range(layout.dimension)
    ]
    lines.append("a = " + add(f"m{f}" for f in firsts))
    lines.append("s = " + add(f"u{f}" for f in firsts))
    return [*lines, "D = 1.0 + w[k] * s"]


def _site_backwards(layout: Layout) -> list[str]:
    d, firsts = layout.dimension, layout.firsts
    lines = [
        "inverse = 1.0 / D",
        "e = j[k] - w[k] * a",
        "shrink = w[k] * inverse",
        "ur = " + add(f"u{i} * r{i}" for i in range(d)),
        *[
            f"v{i} = " + add(f"{symmetric('N', i, other)} * u{other}" for other in range(d))
            for i in range(d)
        ],
        "uv = " + add(f"u{i} * v{i}" for i in range(d)),
        "centre = (a + s * j[k] + ur) * inverse",
        "spread = (s - uv * inverse) * inverse",
        "mean[k] = centre",
        "variance[k] = spread",
        "shift = centre - a",
        "total += shift * e - 0.5 * w[k] * (shift * shift + spread) - 0.5 * e * e * s * inverse",
        *_keep_log("total += 0.5 * np.log(product)"),
        "pull = e * inverse - shrink * ur",
        "push = shrink * shrink * uv + shrink",
        *[f"r{f} += pull" for f in firsts],
    ]
    for i, j in layout.upper:
        terms = ([f"v{j}"] if i in firsts else []) + ([f"v{i}"] if j in firsts else [])
        if terms:
            change = f"shrink * ({add(terms)})"
            both = " - push" if i in firsts and j in firsts else ""
            lines.append(f"N{i}_{j} -= {change}{both}")
    return lines


def write_checked_in() -> None:
    """Rewrite the checked-in files."""
    for signature in CHECKED_IN:
        path = Path(__file__).with_name(f"_passes_{signature_tag(signature)}.py")
        path.write_text(passes_source(signature))
