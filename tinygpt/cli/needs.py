"""What a command needs beyond the core: checked before its work begins, and all that is missing is named at once."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from ..errors import Need, require_together


def require_for_model(options: argparse.Namespace, *needs: Need, wanted: Sequence[Need] = ()) -> None:
    """Raise one MissingExtraError for all that --model, --backend and `needs` lack. wanted: see `require_together`."""
    from ..interop.loading import require_libraries

    model = (options.model, options.revision, options.backend)
    require_together(lambda: require_libraries(*model), *needs, wanted=wanted)


def template_need(options: argparse.Namespace, given: str | None) -> Need:
    """A check of the template that is given, or else of the model's own as far as it is known before a download.

    It raises UsageError for a template that can't be read.
    """

    def check() -> None:
        from ..data.jinja_template import check_given, require_jinja2
        from ..interop.hub import find_here

        check_given(given)
        require_jinja2(find_here(options.model, options.revision), given)

    return check
