"""Lazy attributes that do not depend on who asks first."""

from contextlib import AbstractContextManager

import torch


def on_graph() -> AbstractContextManager:
    """Record the graph whatever the caller's mode: a value that is kept serves later callers too.

    Leaving inference mode also switches gradients on; ``enable_grad`` alone would keep an inference
    tensor, which no later backward pass may touch.
    """
    return torch.inference_mode(False)
