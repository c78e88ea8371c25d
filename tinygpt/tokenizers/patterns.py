r"""Which regular expressions of a tokenizer.json are safe to run: those that take linear time, whatever the text.

The library searches with a backtracking engine. `(a+)+$` takes it exponential time on "aaaa...b", `a+b` quadratic time
on "aaaa...", hours for a megabyte, and nothing can interrupt it. A file from elsewhere may hold any expression, so only
those are taken of which it can be seen that a search never walks back over what it has read:

- an alternative has a bounded beginning, and few ways to match it: no repetition of a group, no `{0,9999}`;
- once it has met an unbounded repetition (`\p{L}+`), everything after it can match nothing: so it can't fail any more,
  and what was read is consumed;
- the known exceptions are those of GPT-2, Llama 3, Qwen and o200k, each of which another alternative makes harmless:
  `\s*[\r\n]+` may read white space and fail, but then `\s+` consumes it.

Look-behind, back references, recursion and flags other than `(?i:` are refused; the sentence quotes the expression.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_BEFORE, _AFTER = r"[^\r\n\p{L}\p{N}]?", r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
# An alternative that may read a run of characters and fail -> the one that then consumes the run.
_HARMLESS = {
    r"\s+(?!\S)": r"\s+",
    r"\s*[\r\n]+": r"\s+",
    r"\s*[\r\n]": r"\s+",
    f"{_BEFORE}{_UPPER}*{_LOWER}+": f"{_BEFORE}{_UPPER}+{_LOWER}*",
    f"{_BEFORE}{_UPPER}*{_LOWER}+{_AFTER}": f"{_BEFORE}{_UPPER}+{_LOWER}*{_AFTER}",
}
_MOST_WAYS, _LONGEST = 1000, 256
_CLASS_ESCAPES = set("dDwWsShHnrtfveaAzZbB")
_QUANTIFIER = re.compile(r"([*+?])([?+]?)|\{(\d{0,9})(?:(,)(\d{0,9}))?\}(\??)")


class UnsafePatternError(ValueError):
    """An expression that may take more than linear time, or of which that can't be seen."""


def check_pattern(pattern: str) -> None:
    """Raise UnsafePatternError unless a search for `pattern` takes linear time on every text."""
    try:
        alternatives = _split(pattern)
        for alternative in alternatives:
            if _HARMLESS.get(alternative, "") not in alternatives:
                _Reader(alternative).whole()
    except UnsafePatternError as error:
        shown = pattern if len(pattern) <= 80 else pattern[:77] + "..."
        raise UnsafePatternError(f"the regular expression {shown!r} may take forever on some text ({error})") from None


def _split(pattern: str) -> list[str]:
    """The alternatives at the top level."""
    depth, start, places = 0, 0, []
    for begin, end in _atoms(pattern):
        atom = pattern[begin:end]
        depth += (atom == "(") - (atom == ")")
        if atom == "|" and depth == 0:
            places.append((start, begin))
            start = end
    return [pattern[a:b] for a, b in [*places, (start, len(pattern))]]


def _atoms(pattern: str) -> list[tuple[int, int]]:
    """Begin and end of each character, escape or class in brackets."""
    found, i = [], 0
    while i < len(pattern):
        end = i + 1
        if pattern[i] == "\\":
            end = i + 2
            if pattern[i + 1 : i + 2] in set("pPxu") and pattern[i + 2 : i + 3] == "{":
                end = pattern.find("}", i) + 1
            elif pattern[i + 1 : i + 2] in set("xu"):
                end = i + (4 if pattern[i + 1] == "x" else 6)
        elif pattern[i] == "[":
            if pattern.startswith(("[]", "[^]"), i):
                raise UnsafePatternError("a class in brackets begins with ]")
            depth = 0
            for end_, atom in _inside(pattern, i):
                depth += (atom == "[") - (atom == "]")
                end = end_
                if depth == 0:
                    break
            if depth:
                raise UnsafePatternError("a bracket is not closed")
        if end <= i or end > len(pattern):
            raise UnsafePatternError("it ends inside an escape")
        found.append((i, end))
        i = end
    return found


def _inside(pattern: str, i: int) -> list[tuple[int, str]]:
    """The characters of a class in brackets from its `[` on, an escape counting as one, with the place after each."""
    found = []
    while i < len(pattern):
        step = 2 if pattern[i] == "\\" else 1
        found.append((i + step, pattern[i : i + step]))
        i += step
    return found


@dataclass
class _Extent:
    """How an expression can match: in how many `ways`, `length` characters at most, and whether it can fail."""

    ways: int = 1
    length: int = 0
    unbounded: bool = False
    can_fail: bool = False


class _Reader:
    """Reads one alternative and measures it."""

    def __init__(self, text: str, depth: int = 0) -> None:
        if depth > 8:
            raise UnsafePatternError("its groups are nested too deep")
        self.text, self.depth = text, depth
        self.atoms = _atoms(text)
        self.at = 0

    def whole(self) -> _Extent:
        total = _Extent()
        while self.at < len(self.atoms):
            item = self._repeated(*self._item())
            if total.unbounded and item.can_fail:
                raise UnsafePatternError("what follows an unbounded repetition in it can fail")
            total.unbounded |= item.unbounded
            total.can_fail |= item.can_fail
            total.ways *= item.ways
            total.length += item.length
            if total.ways > _MOST_WAYS or total.length > _LONGEST:
                raise UnsafePatternError("there are too many ways to match it")
        return total

    def _item(self) -> tuple[_Extent, bool]:
        """What stands next, without its quantifier, and whether it is a group."""
        begin, end = self.atoms[self.at]
        atom = self.text[begin:end]
        self.at += 1
        if atom == "(":
            return self._group(), True
        if atom in ("*", "+", "?", ")", "{"):
            raise UnsafePatternError(f"its {atom!r} has nothing to stand for")
        if atom[0] == "\\" and atom[1].isalnum() and atom[1] not in _CLASS_ESCAPES | set("pPxu"):
            raise UnsafePatternError(f"it has {atom}")
        assertion = atom in ("^", "$", r"\A", r"\z", r"\Z", r"\b", r"\B")
        return _Extent(length=0 if assertion else 1, can_fail=True), False

    def _group(self) -> _Extent:
        depth, start = 1, self.at
        while depth:
            if self.at == len(self.atoms):
                raise UnsafePatternError("a group is not closed")
            atom = self.text[slice(*self.atoms[self.at])]
            depth += (atom == "(") - (atom == ")")
            self.at += 1
        inner = self.text[self.atoms[start - 1][1] : self.atoms[self.at - 1][0]]
        looks_ahead = inner.startswith(("?=", "?!"))
        if inner.startswith("?"):
            opened = next((o for o in ("?:", "?i:", "?=", "?!") if inner.startswith(o)), None)
            if opened is None:
                raise UnsafePatternError(f"it has ({inner[:3]}...)")
            inner = inner.removeprefix(opened)
        found = [_Reader(text, self.depth + 1).whole() for text in _split(inner)]
        if any(each.unbounded for each in found):
            raise UnsafePatternError("an unbounded repetition stands in a group")
        ways, length = sum(each.ways for each in found), max(each.length for each in found)
        if looks_ahead:
            return _Extent(ways, length, can_fail=True)
        return _Extent(ways, length, can_fail=all(each.can_fail for each in found))

    def _repeated(self, item: _Extent, is_group: bool) -> _Extent:
        """`item` with the quantifier that follows it, if one does."""
        if self.at == len(self.atoms):
            return item
        match = _QUANTIFIER.match(self.text, self.atoms[self.at][0])
        if match is None:
            return item
        while self.at < len(self.atoms) and self.atoms[self.at][0] < match.end():
            self.at += 1
        sign, _, least, comma, most, _ = match.groups()
        if self.at < len(self.atoms) and self.text[match.end()] in "*+?{":
            raise UnsafePatternError("a repetition is repeated")
        if sign == "?":
            return _Extent(item.ways + 1, item.length)
        if is_group or item.length == 0:
            raise UnsafePatternError("a group is repeated")
        if sign:
            return _Extent(1, 1, unbounded=True, can_fail=sign == "+")
        low = int(least or 0)
        if comma and not most:
            if low > 1:
                raise UnsafePatternError(f"it has {match[0]}")
            return _Extent(1, 1, unbounded=True, can_fail=low == 1)
        high = int(most) if comma else low
        return _Extent(max(1, abs(high - low) + 1), max(low, high), can_fail=low > 0)
