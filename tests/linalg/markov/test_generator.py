"""Generated passes: the checked-in files, and the code for other lists of blocks."""

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch import Tensor

from gpvi.linalg.markov import _generated_code as generated_code
from gpvi.linalg.markov import smoothing
from gpvi.linalg.markov._compiled import CascadePasses
from gpvi.linalg.markov._generator import (
    CHECKED_IN,
    Layout,
    Signature,
    passes_source,
    signature_tag,
)
from gpvi.linalg.markov.blocks import CascadeBlock, matern_noise, stationary_cascade
from gpvi.linalg.markov.model import MarkovModel, Steps

# Every kind of block, alone and beside every other kind.
SIGNATURES: list[Signature] = [
    *CHECKED_IN,
    ((2, True, True),),
    ((2, False, False),),
    ((1, False, True),),
    ((1, True, False), (0, False, True)),
    ((0, False, True), (1, True, True), (2, True, False)),
    ((1, False, False), (1, True, True), (0, True, False), (0, False, False)),
]


def block(kind: tuple[int, bool, bool], values: Tensor) -> CascadeBlock:
    """A cascade as a function of rate, noise, frequency and size of the start."""
    order, damped, turning = kind
    rate, variance, frequency, size = values.unbind()
    noise = matern_noise(order) * variance if damped else variance
    width = (order + 1) * (2 if turning else 1)
    start = size * torch.eye(width).double()
    if damped:
        start = start + stationary_cascade(order, noise, turning)
    return CascadeBlock(order, rate, noise, start, frequency if turning else None, damped)


def tag(signature: Signature) -> str:
    return signature_tag(signature)


@pytest.mark.parametrize("signature", CHECKED_IN, ids=tag)
def test_the_checked_in_files_are_what_the_generator_writes(signature: Signature) -> None:
    module = generated_code.checked_in(signature)
    assert Path(module.__file__).read_text() == passes_source(signature)


def test_tags_tell_all_blocks_apart() -> None:
    kinds = [(p, damped, turns) for p in (0, 3) for damped in (0, 1) for turns in (0, 1)]
    assert len({tag(((p, bool(a), bool(b)),)) for p, a, b in kinds}) == len(kinds)
    assert tag(((1, True, False), (0, False, True))) == "m1_v0"


def test_states_are_numbered_without_gaps() -> None:
    layout = Layout(((1, True, False), (2, True, True), (0, False, False)))
    assert (
        [s for b in layout.blocks for s in b.states()]
        == list(range(layout.dimension))
        == [*range(9)]
    )
    assert layout.firsts == (0, 2, 8)
    turning = layout.blocks[1]
    assert [turning.state(1, part) for part in (0, 1)] == [4, 5]
    assert turning.state(0, 1, flip=True) == 7


@pytest.mark.parametrize("signature", SIGNATURES, ids=tag)
def test_the_code_does_what_the_dense_formulas_say(
    signature: Signature, dense: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Run as plain Python: the arithmetic is what is tested, and nothing need be compiled."""
    monkeypatch.setenv("GPVI_CACHE_DIR", str(tmp_path))
    module = generated_code.generated(signature)
    monkeypatch.delitem(sys.modules, module.__name__)
    plain = SimpleNamespace(forward=module.forward.py_func, backward=module.backward.py_func)
    monkeypatch.setattr(
        smoothing, "choose_passes", lambda model, steps: CascadePasses(model, steps, plain)
    )
    generator = torch.Generator().manual_seed(len(signature))
    values = 0.4 + torch.rand(len(signature), 4, generator=generator, dtype=torch.float64)
    steps = dense.stamps(9, seed=4, series=2)
    # Steps beyond every switch of the series for the noise, and one of length zero.
    time = steps.time.clone()
    time[2:4] += 3.0
    # The covariance of an undamped process grows with time, and the dense formulas lose digits.
    time[6:] += 40.0 if all(damped for _, damped, _ in signature) else 2.0
    time[7] = time[8]
    leaves = [values, time, *dense.sites(9, seed=2)]
    weight = torch.randn(9, generator=generator, dtype=torch.float64)

    def gradients(use_dense: bool) -> tuple[list[Tensor], list[Tensor]]:
        inputs = [leaf.clone().requires_grad_() for leaf in leaves]
        model = MarkovModel(tuple(map(block, signature, inputs[0])))
        placed = Steps(inputs[1], steps.starts)
        if use_dense:
            full = dense.posterior(model, placed, *inputs[2:])
            found = [full.mean, full.covariance.diagonal(), full.log_partition]
        else:
            s = smoothing.markov_smooth(model, placed, *inputs[2:], engine="compiled")
            found = [s.mean, s.variance, s.log_partition]
        loss = weight @ found[0] + weight.flip(0) @ found[1] + weight[:2] @ found[2]
        return [f.detach() for f in found], list(torch.autograd.grad(loss, inputs))

    for value, expected in zip(gradients(False), gradients(True), strict=True):
        for a, b in zip(value, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10 * (1.0 + float(b.abs().max())))
