"""The fields of a request's body, read one by one: of the right type, within bounds, none unknown."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping
from typing import Any

from .errors import ApiError

# Fields of OpenAI's that don't change a text here.
WITHOUT_EFFECT = {
    "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention",
    "parallel_tool_calls",
}  # fmt: skip


def parse(body: bytes) -> dict[str, Any]:
    """The JSON object in a body. Raises ApiError."""
    try:
        found = json.loads(body.decode("utf-8"), parse_constant=_no_number)
    except UnicodeDecodeError as error:
        raise ApiError(f"the body is not UTF-8 text: byte {error.start} fits no character") from None
    except RecursionError:
        raise ApiError("the body is nested too deeply") from None
    except ValueError as error:
        raise ApiError(f"the body is not JSON: {str(error)[:200]}") from None
    if not isinstance(found, dict):
        raise ApiError(f"the body must be a JSON object, not {_kind(found)}")
    return found


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is not a number of JSON")


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "an array", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")


class Fields:
    """A body. A field that is null counts as absent."""

    def __init__(self, body: Mapping[str, Any], known: Collection[str], refused: Mapping[str, tuple[Any, ...]]) -> None:
        """refused: fields that can't be honoured, and with which values they ask for nothing."""
        self.body = {name: value for name, value in body.items() if value is not None}
        for name, value in self.body.items():
            if name in refused:
                if not any(type(value) is type(harmless) and value == harmless for harmless in refused[name]):
                    raise ApiError(f"{name} is not supported by this server: leave it out", name, "unsupported_value")
            elif name not in known and name not in WITHOUT_EFFECT:
                raise ApiError(f"Unrecognized request argument supplied: {printable(name)}", printable(name))

    def get(self, name: str) -> Any:
        return self.body.get(name)

    def wrong(self, name: str, expected: str) -> ApiError:
        """The error for a field of the wrong type."""
        return ApiError(f"{name} must be {expected}, not {_kind(self.get(name))}", name)

    def number(self, name: str, low: float, high: float, default: float) -> float:
        value = self.get(name)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise self.wrong(name, "a number")
        if not low <= value <= high or not math.isfinite(value):
            raise ApiError(f"{name} must be between {low:g} and {high:g}, not {_shown(value)}", name)
        return float(value)

    def whole(self, name: str, low: int, high: int) -> int | None:
        value = self.get(name)
        if value is None:
            return None
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.wrong(name, "a whole number")
        if not low <= value <= high:
            raise ApiError(f"{name} must be between {low} and {high}, not {_shown(value)}", name)
        return value

    def flag(self, name: str) -> bool:
        value = self.get(name)
        if value is not None and not isinstance(value, bool):
            raise self.wrong(name, "true or false")
        return bool(value)

    def strings(self, name: str, most: int) -> list[str]:
        """A string, or at most `most` of them; none of them empty."""
        value = self.get(name)
        if value is None:
            return []
        texts = [value] if isinstance(value, str) else value
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise self.wrong(name, "a string or an array of strings")
        if len(texts) > most:
            raise ApiError(f"{name} may have at most {most} strings, not {len(texts)}", name)
        if not all(texts):
            raise ApiError(f"{name} must not contain an empty string", name)
        return [self.text(text, name) for text in texts]

    def text(self, text: str, name: str) -> str:
        """`text`, if it is text: JSON can write halves of a surrogate pair, which no encoding has."""
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            raise ApiError(f"{name} contains half of a surrogate pair, which is not a character", name) from None
        return text

    def bias(self, name: str, vocab_size: int) -> dict[int, float]:
        """{"17": -100}: ids and what is added to their logits."""
        value = self.get(name)
        if value is None:
            return {}
        if not isinstance(value, dict):
            raise self.wrong(name, "an object of token ids and numbers")
        found = {}
        for key, number in value.items():
            if not (key.isascii() and key.isdigit() and len(key) < 10 and int(key) < vocab_size):
                raise ApiError(f"{name}: {printable(key)!r} is not a token id: ids are 0 to {vocab_size - 1}", name)
            if isinstance(number, bool) or not isinstance(number, (int, float)) or not -100 <= number <= 100:
                raise ApiError(f"{name}: the value of {key} must be a number between -100 and 100", name)
            found[int(key)] = float(number)
        return found


def printable(text: str) -> str:
    """What a client sent, short and safe to send back."""
    return text[:80].encode("utf-8", "replace").decode("utf-8")


def _shown(value: float) -> str:
    return f"{value:.6g}" if isinstance(value, float) or abs(value) < 10**18 else "a number of many digits"
