"""Small values sent between processes: as JSON, so that reading them gives nothing but data.

A value is None, a bool, an int, a float, a str, or a list, a tuple or a dict (with str keys) of these. Floats keep all
their digits, NaN and infinity included; a tuple arrives as a list. Anything else is refused, so that nothing arrives
changed: NumPy's numbers and arrays, bytes, sets, objects. For arrays there is `Communicator.share_arrays`.

Not pickle, as elsewhere in tinygpt: reading a pickle runs code.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from ..errors import DtypeError


def encoded(value: Any) -> np.ndarray:
    """The value as bytes, uint8 (n,). Raises DtypeError."""
    _require_plain(value)
    return np.frombuffer(json.dumps(value, separators=(",", ":")).encode("ascii"), np.uint8)


def decoded(content: np.ndarray) -> Any:
    """The value in bytes made by `encoded`."""
    return json.loads(content.tobytes())


def _require_plain(value: Any) -> None:
    if isinstance(value, dict):
        for key, item in value.items():
            if type(key) is not str:  # JSON would make one of a number
                raise DtypeError(f"a value for other processes may have str as keys, not {key!r}")
            _require_plain(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            _require_plain(item)
    elif value is not None and not isinstance(value, (bool, int, float, str)):
        raise DtypeError(
            f"a value for other processes may be None, a bool, int, float or str, or a list or dict of them, not "
            f"{type(value).__name__}: arrays go by share_arrays"
        )
