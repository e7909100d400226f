"""Where to draw: given axes, or a new figure."""

from typing import TYPE_CHECKING

from gpvi._optional import import_optional

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["axes_for", "require_matplotlib"]

_COMMAND = 'pip install "gpvi[plot]"'


def require_matplotlib(purpose: str) -> None:
    """Raise before any computing if matplotlib is missing."""
    import_optional("matplotlib", purpose, _COMMAND)


def axes_for(ax: "Axes | None", purpose: str) -> "Axes":
    """The given axes, or those of a new figure."""
    if ax is not None:
        return ax
    return import_optional("matplotlib.pyplot", purpose, _COMMAND).subplots()[1]
