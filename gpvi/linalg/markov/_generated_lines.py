"""Lines of generated code: how the small structured matrices of a cascade are moved and added.

See :mod:`gpvi.linalg.markov._generator` for the names.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

__all__ = [
    "Block",
    "Layout",
    "Signature",
    "add",
    "add_noise",
    "coefficients",
    "indent",
    "initial_coefficients",
    "move_matrix",
    "move_vector",
    "slopes",
    "symmetric",
    "times",
]

#: Order, damped, rotating, for every block.
Signature = tuple[tuple[int, bool, bool], ...]

# Number of terms of the series of I_n(x) for 2x below 1/8 and below 2.
_SHORT, _LONG = 9, 20


@dataclass(frozen=True)
class Block:
    """Where one block's states are.

    Parameters
    ----------
    number : int
        Position in the list.
    order : int
        ``p``.
    damped, rotating : bool
        Kind of cascade.
    offset : int
        Number of its first state.
    """

    number: int
    order: int
    damped: bool
    rotating: bool
    offset: int

    @property
    def pair(self) -> int:
        """States per link of the chain."""
        return 2 if self.rotating else 1

    def state(self, link: int, part: int, flip: bool = False) -> int:
        """Number of a state; flipped chains are counted from their end."""
        link = self.order - link if flip else link
        return self.offset + self.pair * link + part

    def states(self) -> range:
        """Numbers of all states."""
        return range(self.offset, self.offset + self.pair * (self.order + 1))

    def coefficient(self, k: int) -> str:
        """Name of ``e^-x x^k / k!``; empty for a one."""
        return "" if k == 0 and not self.damped else f"a{self.number}_{k}"


@dataclass(frozen=True)
class Layout:
    """Numbering of the states of a list of blocks.

    Parameters
    ----------
    signature : Signature
        The list.
    """

    signature: Signature

    @cached_property
    def blocks(self) -> tuple[Block, ...]:
        """The blocks with their places."""
        found, offset = [], 0
        for number, (order, damped, rotating) in enumerate(self.signature):
            found.append(Block(number, order, damped, rotating, offset))
            offset += (order + 1) * (2 if rotating else 1)
        return tuple(found)

    @property
    def dimension(self) -> int:
        """Number d of states."""
        return self.blocks[-1].states().stop

    @property
    def firsts(self) -> tuple[int, ...]:
        """States whose sum is f."""
        return tuple(block.offset for block in self.blocks)

    @cached_property
    def upper(self) -> tuple[tuple[int, int], ...]:
        """Index pairs of the upper triangle, row by row."""
        d = self.dimension
        return tuple((i, j) for i in range(d) for j in range(i, d))


def symmetric(name: str, i: int, j: int) -> str:
    return f"{name}{min(i, j)}_{max(i, j)}"


def add(terms: Iterable[str]) -> str:
    return " + ".join(terms)


def times(*factors: str) -> str:
    return " * ".join(factor for factor in factors if factor)


def indent(lines: Iterable[str], depth: int) -> list[str]:
    return ["    " * depth + line for line in lines]


def slopes(layout: Layout, moving: bool) -> list[str]:
    """Derivatives by rate, frequency and noise of every block, and of the step.

    With F the generator of the motion, ``dP/dx = F P + P F' + c e e'`` and ``dm/dx = F m`` at the
    predicted moments; no derivative of a matrix is formed. For a step of length zero only the
    derivative by the step itself is left.
    """
    lines = []
    for block in layout.blocks:
        lines += _slope_by_x(layout, block)
        lines.append(f"slope += rate[{block.number}] * along")
        if moving:
            lines.append(f"dr{block.number} += step * along")
            lines.append(f"dn{block.number} += {_slope_by_noise(block)}")
        if block.rotating:
            lines += _slope_by_turn(layout, block)
            lines.append(f"slope += frequency[{block.number}] * turn")
            if moving:
                lines.append(f"df{block.number} += step * turn")
    return lines


def _slope_by_x(layout: Layout, block: Block) -> list[str]:
    last = [block.state(block.order, part) for part in range(block.pair)]
    driven = add(f"G{i}_{i}" for i in last)
    lines = [f"along = 0.5 * noise[{block.number}] * ({driven})"]
    for i in block.states():
        follower = i + block.pair
        rows = [follower] if follower in block.states() else []
        terms = [f"m{row} * r{i}" for row in rows]
        terms += [
            symmetric("P", row, other) + " * " + symmetric("G", other, i)
            for row in rows
            for other in range(layout.dimension)
        ]
        if terms:
            lines.append("along += " + add(terms))
    if block.damped:
        loss = [f"m{i} * r{i}" for i in block.states()]
        loss += [
            symmetric("P", i, other) + " * " + symmetric("G", other, i)
            for i in block.states()
            for other in range(layout.dimension)
        ]
        lines.append("along -= " + add(loss))
    return lines


def _slope_by_turn(layout: Layout, block: Block) -> list[str]:
    lines = ["turn = zero"]
    for link in range(block.order + 1):
        one, two = block.state(link, 0), block.state(link, 1)
        plus = [f"m{one} * r{two}"] + [
            symmetric("P", one, other) + " * " + symmetric("G", other, two)
            for other in range(layout.dimension)
        ]
        minus = [f"m{two} * r{one}"] + [
            symmetric("P", two, other) + " * " + symmetric("G", other, one)
            for other in range(layout.dimension)
        ]
        lines.append("turn += " + add(plus))
        lines.append("turn -= " + add(minus))
    return lines


def _slope_by_noise(block: Block) -> str:
    terms = []
    for i in range(block.order + 1):
        for j in range(i, block.order + 1):
            factor = 0.5 if i == j else 1.0
            scale = factor / _weight(block.order, i, j)
            entries = add(f"G{block.state(i, c)}_{block.state(j, c)}" for c in range(block.pair))
            terms.append(f"{scale!r} * q{block.number}_{2 * block.order - i - j} * ({entries})")
    return add(terms)


def _weight(order: int, i: int, j: int) -> float:
    return float(math.factorial(order - i) * math.factorial(order - j))


def initial_coefficients(layout: Layout) -> list[str]:
    lines = []
    for block in layout.blocks:
        b = block.number
        names = [block.coefficient(k) for k in range(block.order + 1)]
        names += [f"q{b}_{n}" for n in range(2 * block.order + 1)]
        names += [f"c{b}", f"s{b}"] if block.rotating else []
        lines.append(" = ".join(name for name in names if name) + " = 0.0")
    return lines


def coefficients(layout: Layout) -> list[str]:
    """Transition and noise integrals of a new step."""
    lines = []
    for block in layout.blocks:
        b, p = block.number, block.order
        lines.append(f"x = rate[{b}] * step")
        if block.damped:
            lines.append(f"a{b}_0 = vexp(-x)")
        for k in range(1, p + 1):
            before = block.coefficient(k - 1)
            lines.append(f"a{b}_{k} = " + times(before, "x" if k == 1 else f"x * {1.0 / k!r}"))
        if block.rotating:
            lines.append(f"c{b} = cos(frequency[{b}] * step)")
            lines.append(f"s{b} = sin(frequency[{b}] * step)")
        lines += _integrals(block)
    return lines


def _integrals(block: Block) -> list[str]:
    """``I_n(x)`` for n up to 2p; see :mod:`gpvi.linalg.markov.blocks`."""
    b, top = block.number, 2 * block.order
    powers = ["power1 = x"] + [f"power{n} = power{n - 1} * x" for n in range(2, top + 2)]
    if not block.damped:
        return powers + [f"q{b}_{n} = power{n + 1} * {1.0 / (n + 1)!r}" for n in range(top + 1)]

    def near(terms: int) -> str:
        weights = [1.0 / (top + 1)]
        for k in range(1, terms + 1):
            weights.append(weights[-1] / (top + 1 + k))
        return f"q{b}_{top} = power{top + 1} * decay * ({_horner(weights)})"

    scale = math.factorial(top) / 2.0 ** (top + 1)
    partial = _horner([1.0 / math.factorial(k) for k in range(top + 1)])
    far = f"q{b}_{top} = {scale!r} * (1.0 - decay * ({partial}) if z < 700.0 else 1.0)"
    down = [
        f"q{b}_{n - 1} = (2.0 * q{b}_{n} + (power{n} * decay if z < 700.0 else 0.0)) * {1.0 / n!r}"
        for n in range(top, 0, -1)
    ]
    return [
        "z = 2.0 * x",
        f"decay = a{b}_0 * a{b}_0",
        *powers,
        "if z < 0.125:",
        f"    {near(_SHORT)}",
        "elif z < 2.0:",
        f"    {near(_LONG)}",
        "else:",
        f"    {far}",
        *down,
    ]


def _horner(weights: list[float]) -> str:
    """Polynomial in z, lowest power first in ``weights``."""
    text = repr(weights[-1])
    for weight in reversed(weights[:-1]):
        text = f"({text}) * z + {weight!r}"
    return text


def move_vector(layout: Layout, name: str, flip: bool) -> list[str]:
    """``A m``, or ``A'r`` with flipped chains, which turn backwards."""
    lines, results = [], []
    for block in layout.blocks:
        for link in range(block.order + 1):
            new = []
            for part in range(block.pair):
                target = block.state(link, part, flip)
                terms = [
                    times(block.coefficient(k), f"{name}{block.state(link + k, part, flip)}")
                    for k in range(block.order + 1 - link)
                ]
                lines.append(f"t{target} = " + add(terms))
                new.append(target)
            if block.rotating:
                c, s = f"c{block.number}", f"s{block.number}"
                one, two = new
                sign = ("+", "-") if flip else ("-", "+")
                results.append(f"{name}{one} = {c} * t{one} {sign[0]} {s} * t{two}")
                results.append(f"{name}{two} = {c} * t{two} {sign[1]} {s} * t{one}")
            else:
                results.append(f"{name}{new[0]} = t{new[0]}")
    return lines + results


def move_matrix(layout: Layout, name: str, flip: bool) -> list[str]:
    """``A P A'``, or ``A'N A`` with flipped chains."""
    lines, results = [], []
    for row in layout.blocks:
        for column in layout.blocks[row.number :]:
            same = row is column
            for i in range(row.order + 1):
                lines += _left(row, column, i, i if same else 0, name, flip)
            for i in range(row.order + 1):
                for j in range(i if same else 0, column.order + 1):
                    results += _right(row, column, i, j, same and i == j, name, flip)
    return lines + results


def _left(row: Block, column: Block, i: int, first: int, name: str, flip: bool) -> list[str]:
    """Products of one link of the row block with the chain: ``T P``."""
    lines = []
    for part in range(row.pair):
        for link in range(first, column.order + 1):
            for other in range(column.pair):
                if row is column and link == i and other < part:
                    continue  # the lower half of a symmetric pair
                target = column.state(link, other, flip)
                terms = [
                    times(row.coefficient(k), symmetric(name, row.state(i + k, part, flip), target))
                    for k in range(row.order + 1 - i)
                ]
                lines.append(f"U{row.state(i, part, flip)}_{target} = " + add(terms))
    return lines


def _right(
    row: Block, column: Block, i: int, j: int, diagonal: bool, name: str, flip: bool
) -> list[str]:
    """``T P T'`` of a pair of links, turned from both sides."""
    lines, values = [], {}
    for part in range(row.pair):
        for other in range(column.pair):
            if diagonal and other < part:
                continue
            source = row.state(i, part, flip)
            terms = [
                times(column.coefficient(k), f"U{source}_{column.state(j + k, other, flip)}")
                for k in range(column.order + 1 - j)
            ]
            values[part, other] = f"w{part}{other}"
            lines.append(f"w{part}{other} = " + add(terms))
    if diagonal and (0, 1) in values:
        values[1, 0] = values[0, 1]
    if row.rotating:
        lines += _turn_rows(values, f"c{row.number}", f"s{row.number}", column.pair, flip)
    if column.rotating:
        names = f"c{column.number}", f"s{column.number}"
        lines += _turn_columns(values, *names, row.pair, flip, diagonal)
    for (part, other), value in values.items():
        if diagonal and other < part:
            continue
        target = symmetric(name, row.state(i, part, flip), column.state(j, other, flip))
        lines.append(f"{target} = {value}")
    return lines


def _turn_rows(values: dict, c: str, s: str, width: int, flip: bool) -> list[str]:
    minus, plus = ("+", "-") if flip else ("-", "+")
    lines = []
    for other in range(width):
        top, low = values[0, other], values[1, other]
        lines.append(f"y0{other} = {c} * {top} {minus} {s} * {low}")
        lines.append(f"y1{other} = {c} * {low} {plus} {s} * {top}")
    for other in range(width):
        values[0, other], values[1, other] = f"y0{other}", f"y1{other}"
    return lines


def _turn_columns(
    values: dict, c: str, s: str, height: int, flip: bool, diagonal: bool
) -> list[str]:
    minus, plus = ("+", "-") if flip else ("-", "+")
    lines = []
    for part in range(height):
        one, two = values[part, 0], values[part, 1]
        if not (diagonal and part == 1):
            lines.append(f"z{part}0 = {c} * {one} {minus} {s} * {two}")
        lines.append(f"z{part}1 = {c} * {two} {plus} {s} * {one}")
    for part in range(height):
        values[part, 0], values[part, 1] = f"z{part}0", f"z{part}1"
    return lines


def add_noise(layout: Layout) -> list[str]:
    lines = []
    for block in layout.blocks:
        p = block.order
        for i in range(p + 1):
            for j in range(i, p + 1):
                amount = f"noise[{block.number}] * q{block.number}_{2 * p - i - j}"
                scale = 1.0 / _weight(p, i, j)
                amount += "" if scale == 1.0 else f" * {scale!r}"
                lines += [
                    f"P{block.state(i, c)}_{block.state(j, c)} += {amount}"
                    for c in range(block.pair)
                ]
    return lines
