"""A tokenizer.json from elsewhere, looked through before the library gets it.

The library explains little and takes much: it would drop the bytes that a vocabulary lacks without a word, search for
hours with a regular expression, or double a text forty times over.
"""

from __future__ import annotations

import re
from typing import Any

from .byte_characters import byte_of_character, bytes_of_token
from .patterns import check_pattern
from .pieces import PAUSES

_MOST_GROWTH = 1000  # how much longer a normalizer may make a text


def check(description: dict[str, Any]) -> dict[str, int]:
    """The ids of all tokens. Raises ValueError with the words of what is wrong, for the sentence of the caller."""
    model = description.get("model")
    if not isinstance(model, dict) or model.get("type", "BPE") != "BPE":
        found = model.get("type") if isinstance(model, dict) else model
        raise ValueError(f"its model is {found!r}, not BPE")
    _check_steps(description)
    for name in ("continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(name):
            raise ValueError(f"it has the {name} {model[name]!r}, which byte-level tokens do not have")
    ids = _ids(model.get("vocab"), description.get("added_tokens"))
    absent = [byte for character, byte in byte_of_character().items() if character not in ids]
    if absent:
        raise ValueError(f"its vocabulary lacks {len(absent)} of the 256 bytes, the first of them 0x{absent[0]:02x}")
    return ids


def check_added(description: dict[str, Any]) -> None:
    """Refuse an added token that is written like an ordinary one of other bytes: it has the id that these need.

    And white space that strips the white space around it: in a run of n the library walks n characters n times.
    """
    merges = description["model"]["merges"]
    merged = {merge.replace(" ", "") if isinstance(merge, str) else "".join(merge) for merge in merges}
    for token in description["added_tokens"]:
        content = token["content"]
        if content.isspace() and (token.get("lstrip") or token.get("rstrip")):
            raise ValueError(f"the added token {content!r} is white space, and strips it (lstrip, rstrip)")
        if (content in merged or content in byte_of_character()) and bytes_of_token(content) != content.encode("utf-8"):
            raise ValueError(f"the added token {content!r} is also the ordinary token for {bytes_of_token(content)!r}")


def is_gpt2_scheme(description: dict[str, Any]) -> bool:
    """Whether text is cut into words by GPT-2's expression and by nothing else: then pieces.py's borders are safe.

    A token that is found in the text before that must not reach over such a border.
    """
    pre_tokenizer = description.get("pre_tokenizer") or {}
    plain = pre_tokenizer.get("type") == "ByteLevel" and pre_tokenizer.get("use_regex", True)
    plain = plain and not pre_tokenizer.get("add_prefix_space")  # which would begin every piece with a space
    added = description.get("added_tokens") or []
    over, begin = rf"\S[\s{PAUSES}]", rf"|^[\s{PAUSES}]"
    reaching = any(
        token.get("rstrip") or re.search(over + begin * token.get("single_word", False), token["content"])
        for token in added
    )
    return bool(plain and not reaching and not description.get("normalizer"))


def _check_steps(description: dict[str, Any]) -> None:
    """The steps around the model: byte-level, of bounded time and size, and decoded as bytes are."""
    for name in ("normalizer", "pre_tokenizer", "decoder", "post_processor"):
        if not isinstance(description.get(name), dict | None):
            raise ValueError(f"its {name} is {description[name]!r:.60}, not a JSON object")
    levels = [step for step in steps(description.get("pre_tokenizer")) if step.get("type") == "ByteLevel"]
    if not levels:
        raise ValueError("its pre_tokenizer is not ByteLevel, so its tokens do not stand for bytes")
    if len(levels) > 1:
        raise ValueError("its pre_tokenizer has ByteLevel twice, which would turn bytes into characters twice")
    _check_patterns([description.get(name) for name in ("normalizer", "pre_tokenizer", "decoder")])
    growth = 1.0
    for step in steps(description.get("normalizer")):
        growth *= _growth(step)
        if growth > _MOST_GROWTH:
            raise ValueError(f"its normalizer could make a text more than {_MOST_GROWTH} times longer")
    for step in steps(description.get("decoder")):
        if step.get("type") != "ByteLevel":
            raise ValueError(
                f"its decoder is {step.get('type')!r}, not ByteLevel, so its tokens do not stand for bytes"
            )
    for step in steps(description.get("post_processor")):
        single = step.get("single") if step.get("type") == "TemplateProcessing" else None
        if single is not None and _texts_of(single) != ["A"]:
            raise ValueError("its post_processor does not have the text once in its template")


def _texts_of(single: Any) -> list[Any]:
    """Which texts a template has, by their names; A is the first, and the only one here."""
    pieces = [piece for piece in single if isinstance(piece, dict)] if isinstance(single, list) else []
    found = [piece["Sequence"] for piece in pieces if "Sequence" in piece]
    return [each.get("id") if isinstance(each, dict) else each for each in found]


def steps(component: Any) -> list[dict[str, Any]]:
    """The parts of a normalizer, pre-tokenizer, post-processor or decoder, those of sequences one after the other."""
    found, waiting = [], [component]
    while waiting:
        part = waiting.pop()
        if isinstance(part, list):
            waiting.extend(reversed(part))
        elif isinstance(part, dict) and part.get("type") == "Sequence":
            waiting.extend(part.get(key) for key in ("normalizers", "pretokenizers", "processors", "decoders"))
        elif isinstance(part, dict):
            found.append(part)
    return found


def _check_patterns(content: Any) -> None:
    waiting = [content]
    while waiting:
        part = waiting.pop()
        if isinstance(part, dict):
            if isinstance(pattern := part.get("Regex"), str):
                check_pattern(pattern)
            waiting.extend(part.values())
        elif isinstance(part, list):
            waiting.extend(part)


def _growth(step: dict[str, Any]) -> float:
    """How many times longer this normalizer can make a text, about."""
    kind, content = step.get("type"), step.get("content")
    if kind == "Replace" and isinstance(content, str):
        pattern = step.get("pattern")
        found = pattern.get("String") if isinstance(pattern, dict) else None
        return max(1.0, (len(content) + 1) / len(found)) if isinstance(found, str) and found else len(content) + 1.0
    if kind == "Prepend":
        return 1.0 + len(str(step.get("prepend"))) / 100
    if kind == "Precompiled":
        raise ValueError("its normalizer is Precompiled, which byte-level BPE does not use")
    return 4.0 if kind in ("NFKD", "NFKC", "ByteLevel") else 2.0 if kind in ("NFD", "NFC", "Lowercase") else 1.0


def _ids(vocab: Any, added: Any) -> dict[str, int]:
    if not isinstance(vocab, dict):
        raise ValueError("its vocabulary is no JSON object of tokens and ids")
    if not isinstance(added, list | None):
        raise ValueError("its added_tokens are no list")
    ids = dict(vocab)
    for token in added or []:
        if not isinstance(token, dict) or not isinstance(token.get("content"), str) or not token["content"]:
            raise ValueError("its added_tokens are no list of tokens with content and id")
        if ids.setdefault(token["content"], token.get("id")) != token.get("id"):
            raise ValueError(
                f"the token {token['content']!r} has two ids, {ids[token['content']]} and {token.get('id')}"
            )
    for token, number in ids.items():
        if not isinstance(number, int) or isinstance(number, bool):
            raise ValueError(f"the id of the token {token!r} is {number!r}, not an integer")
    for expected, (token, number) in enumerate(sorted(ids.items(), key=lambda item: item[1])):
        if number != expected:
            what = f"two tokens have the id {number}" if number == expected - 1 else f"no token has the id {expected}"
            raise ValueError(f"its {len(ids)} ids are not 0 .. {len(ids) - 1}: {what} (see {token!r})")
    return ids
