"""Saving fitted objects to one file, and reading them back without executing anything from it.

A pickle runs code of its author's choosing when it is read, and breaks when a class moves. Here a file
holds tensors (safetensors format) and a JSON description of the objects around them. Reading it builds
instances of known classes only: those of GPyTorch and gpvi that models consist of, and those that
:func:`register_class` adds.
"""

from gpvi.persistence.files import load_object, save_object
from gpvi.persistence.registry import register_class

__all__ = ["load_object", "register_class", "save_object"]
