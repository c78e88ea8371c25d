"""The optional libraries that a run needs, checked before anything is read: all that are missing are named at once."""

from __future__ import annotations

from collections.abc import Sequence

from ... import backends
from ...backends.precision import activation_dtype
from ...data import shakespeare
from ...data.opening import require_zstandard
from ...errors import Need, require_together
from ...interop.loading import require_libraries
from ..monitoring.picture import require_matplotlib


def require_packages(
    backend: str | None,
    dtype: str,
    files: Sequence[str | None] | None,
    *needs: Need,
    model: str | None = None,
    revision: str | None = None,
) -> None:
    """Raise one MissingExtraError for all libraries that are missing.

    files: the texts or rows; None for Shakespeare. needs: checks of what else is used. model, revision: what the run
    starts from, if it does.
    """
    device = backend or "numpy"
    start: list[Need] = [] if model is None else [lambda: require_libraries(model, revision or "main")]
    require_together(
        lambda: backends.get(device),
        lambda: activation_dtype(dtype, device),
        *start,
        *needs,
        lambda: require_zstandard(*(files or ())),
        wanted=[*([shakespeare] if files is None else []), require_matplotlib],
    )
