r"""Accept only those regular expressions of a tokenizer.json that run in linear time on every text.

The library uses a backtracking engine. `(a+)+$` takes exponential time on "aaaa...b"; `a+b` takes quadratic time on
"aaaa...", which means hours for a megabyte that can't be interrupted. A downloaded file may hold any expression, so we
accept one only if we can show that a search never backtracks over a long run of text:

- up to its first unbounded repetition (`\p{L}+`), an alternative matches a bounded number of characters in few ways:
  no repeated groups, no `{0,9999}`;
- everything after an unbounded repetition can match the empty string, so the alternative can no longer fail, and
  what it has read is consumed;
- the exceptions are known alternatives of GPT-2, Llama 3, Qwen and o200k that another alternative makes harmless:
  `\s*[\r\n]+` may read white space and then fail, but then `\s+` consumes it.

Look-behind, back references, recursion and flags other than `(?i:` are refused. The message quotes the expression.
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
_MAX_WAYS, _LONGEST = 1000, 256
_CLASS_ESCAPES = set("dDwWsShHnrtfveaAzZbB")
_QUANTIFIER = re.compile(r"([*+?])([?+]?)|\{(\d{0,9})(?:(,)(\d{0,9}))?\}(\??)")


class UnsafePatternError(ValueError):
    """The expression may take more than linear time, or we can't tell."""


def check_pattern(pattern: str) -> None:
    """Raise UnsafePatternError unless a search for `pattern` takes linear time on every text."""
    try:
        alternatives = _split(pattern)
        for alternative in alternatives:
            if _HARMLESS.get(alternative, "") not in alternatives:
                _Parser(alternative).parse()
    except UnsafePatternError as error:
        shown = pattern if len(pattern) <= 80 else pattern[:77] + "..."
        raise UnsafePatternError(f"the regular expression {shown!r} may take forever on some text ({error})") from None


def _split(pattern: str) -> list[str]:
    """Split a pattern into its top-level alternatives."""
    depth, start, spans = 0, 0, []
    for begin, end in _atoms(pattern):
        atom = pattern[begin:end]
        depth += (atom == "(") - (atom == ")")
        if atom == "|" and depth == 0:
            spans.append((start, begin))
            start = end
    return [pattern[a:b] for a, b in [*spans, (start, len(pattern))]]


def _atoms(pattern: str) -> list[tuple[int, int]]:
    """(begin, end) of each character, escape or character class."""
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
                raise UnsafePatternError("a character class begins with ]")
            depth = 0
            for position, atom in _class_characters(pattern, i):
                depth += (atom == "[") - (atom == "]")
                end = position
                if depth == 0:
                    break
            if depth:
                raise UnsafePatternError("a bracket is not closed")
        if end <= i or end > len(pattern):
            raise UnsafePatternError("it ends inside an escape")
        found.append((i, end))
        i = end
    return found


def _class_characters(pattern: str, i: int) -> list[tuple[int, str]]:
    """(end, text) of each character from the `[` of a character class on; an escape counts as one character."""
    found = []
    while i < len(pattern):
        step = 2 if pattern[i] == "\\" else 1
        found.append((i + step, pattern[i : i + step]))
        i += step
    return found


@dataclass
class _Extent:
    """How an expression can match: in how many `ways`, at most how many characters (`length`), whether it can fail."""

    ways: int = 1
    length: int = 0
    unbounded: bool = False
    can_fail: bool = False


class _Parser:
    """Parse one alternative and compute its _Extent."""

    def __init__(self, text: str, depth: int = 0) -> None:
        if depth > 8:
            raise UnsafePatternError("its groups are nested too deeply")
        self.text, self.depth = text, depth
        self.atoms = _atoms(text)
        self.at = 0

    def parse(self) -> _Extent:
        total = _Extent()
        while self.at < len(self.atoms):
            item = self._repeated(*self._next_item())
            if total.unbounded and item.can_fail:
                raise UnsafePatternError("what follows an unbounded repetition can fail to match")
            total.unbounded |= item.unbounded
            total.can_fail |= item.can_fail
            total.ways *= item.ways
            total.length += item.length
            if total.ways > _MAX_WAYS or total.length > _LONGEST:
                raise UnsafePatternError("there are too many ways to match it")
        return total

    def _next_item(self) -> tuple[_Extent, bool]:
        """The next item without its quantifier, and whether it is a group."""
        begin, end = self.atoms[self.at]
        atom = self.text[begin:end]
        self.at += 1
        if atom == "(":
            return self._group(), True
        if atom in ("*", "+", "?", ")", "{"):
            raise UnsafePatternError(f"there is nothing for {atom!r} to repeat or close")
        if atom[0] == "\\" and atom[1].isalnum() and atom[1] not in _CLASS_ESCAPES | set("pPxu"):
            raise UnsafePatternError(f"it contains {atom}")
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
                raise UnsafePatternError(f"it contains ({inner[:3]}...)")
            inner = inner.removeprefix(opened)
        found = [_Parser(text, self.depth + 1).parse() for text in _split(inner)]
        if any(extent.unbounded for extent in found):
            raise UnsafePatternError("a group contains an unbounded repetition")
        ways, length = sum(extent.ways for extent in found), max(extent.length for extent in found)
        if looks_ahead:
            return _Extent(ways, length, can_fail=True)
        return _Extent(ways, length, can_fail=all(extent.can_fail for extent in found))

    def _repeated(self, item: _Extent, is_group: bool) -> _Extent:
        """Apply the quantifier that follows `item`, if there is one."""
        if self.at == len(self.atoms):
            return item
        match = _QUANTIFIER.match(self.text, self.atoms[self.at][0])
        if match is None:
            return item
        while self.at < len(self.atoms) and self.atoms[self.at][0] < match.end():
            self.at += 1
        sign, _, low, comma, high, _ = match.groups()
        if self.at < len(self.atoms) and self.text[match.end()] in "*+?{":
            raise UnsafePatternError("a repetition is repeated")
        if sign == "?":
            return _Extent(item.ways + 1, item.length)
        if is_group or item.length == 0:
            raise UnsafePatternError("a group is repeated")
        if sign:
            return _Extent(1, 1, unbounded=True, can_fail=sign == "+")
        least = int(low or 0)
        if comma and not high:
            if least > 1:
                raise UnsafePatternError(f"it contains {match[0]}")
            return _Extent(1, 1, unbounded=True, can_fail=least == 1)
        most = int(high) if comma else least
        return _Extent(max(1, abs(most - least) + 1), max(least, most), can_fail=least > 0)
