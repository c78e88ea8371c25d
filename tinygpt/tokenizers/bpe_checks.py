"""Check an untrusted tokenizer.json before the library gets it.

The library accepts too much and explains too little: it would silently drop bytes that are missing from the vocabulary,
spend hours in a regular expression, or let a normalizer double a text forty times over.
"""

from __future__ import annotations

import re
from typing import Any

from .byte_characters import byte_of_character, bytes_of_token
from .patterns import check_pattern
from .pieces import PAUSES

_MAX_GROWTH = 1000  # by what factor a normalizer may lengthen a text


def check(description: dict[str, Any]) -> dict[str, int]:
    """Check `description` and return the ids of all tokens. Raises ValueError; the caller's message quotes it."""
    model = description.get("model")
    if not isinstance(model, dict) or model.get("type", "BPE") != "BPE":
        found = model.get("type") if isinstance(model, dict) else model
        raise ValueError(f"its model is {found!r}, not BPE")
    _check_steps(description)
    for name in ("continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(name):
            raise ValueError(f"it has the {name} {model[name]!r}, which byte-level BPE does not use")
    ids = _ids(model.get("vocab"), description.get("added_tokens"))
    missing = [byte for character, byte in byte_of_character().items() if character not in ids]
    if missing:
        raise ValueError(f"its vocabulary lacks {len(missing)} of the 256 bytes, the first being 0x{missing[0]:02x}")
    return ids


def check_added(description: dict[str, Any]) -> None:
    """Raise ValueError for an added token spelled like an ordinary token of other bytes, whose id it would take.

    Also for a white-space token that strips the white space around it: in a run of n white-space characters, the
    library would scan n characters n times.
    """
    merges = description["model"]["merges"]
    merged = {merge.replace(" ", "") if isinstance(merge, str) else "".join(merge) for merge in merges}
    for token in description["added_tokens"]:
        content = token["content"]
        if content.isspace() and (token.get("lstrip") or token.get("rstrip")):
            raise ValueError(f"the added token {content!r} is white space that strips white space (lstrip, rstrip)")
        if (content in merged or content in byte_of_character()) and bytes_of_token(content) != content.encode("utf-8"):
            raise ValueError(f"the added token {content!r} is also the ordinary token for {bytes_of_token(content)!r}")


def is_gpt2_scheme(description: dict[str, Any]) -> bool:
    """Whether only GPT-2's expression splits the text, so that the boundaries of pieces.py are safe.

    Added tokens are matched in the text before it is split, so none of them may extend across such a boundary.
    """
    pre_tokenizer = description.get("pre_tokenizer") or {}
    plain = pre_tokenizer.get("type") == "ByteLevel" and pre_tokenizer.get("use_regex", True)
    plain = plain and not pre_tokenizer.get("add_prefix_space")  # it would add a space to every piece
    added = description.get("added_tokens") or []
    across, at_start = rf"\S[\s{PAUSES}]", rf"|^[\s{PAUSES}]"
    crossing = any(
        token.get("rstrip") or re.search(across + at_start * token.get("single_word", False), token["content"])
        for token in added
    )
    return bool(plain and not crossing and not description.get("normalizer"))


def _check_steps(description: dict[str, Any]) -> None:
    """Check the steps around the model: byte-level, bounded in time and output size, decoded as bytes."""
    for name in ("normalizer", "pre_tokenizer", "decoder", "post_processor"):
        if not isinstance(description.get(name), dict | None):
            raise ValueError(f"its {name} is {description[name]!r:.60}, not a JSON object")
    levels = [step for step in steps(description.get("pre_tokenizer")) if step.get("type") == "ByteLevel"]
    if not levels:
        raise ValueError("its pre_tokenizer is not ByteLevel, so its tokens do not represent bytes")
    if len(levels) > 1:
        raise ValueError("its pre_tokenizer has ByteLevel twice, which would map bytes to characters twice")
    _check_patterns([description.get(name) for name in ("normalizer", "pre_tokenizer", "decoder")])
    growth = 1.0
    for step in steps(description.get("normalizer")):
        growth *= _growth(step)
        if growth > _MAX_GROWTH:
            raise ValueError(f"its normalizer could make a text more than {_MAX_GROWTH} times longer")
    for step in steps(description.get("decoder")):
        if step.get("type") != "ByteLevel":
            raise ValueError(
                f"its decoder is {step.get('type')!r}, not ByteLevel, so its tokens do not represent bytes"
            )
    for step in steps(description.get("post_processor")):
        single = step.get("single") if step.get("type") == "TemplateProcessing" else None
        if single is not None and _texts_of(single) != ["A"]:
            raise ValueError("its post_processor has a template that does not contain the text exactly once")


def _texts_of(single: Any) -> list[Any]:
    """Names of the texts in a template. A is the first text of a pair, and the only one here."""
    pieces = [piece for piece in single if isinstance(piece, dict)] if isinstance(single, list) else []
    found = [piece["Sequence"] for piece in pieces if "Sequence" in piece]
    return [text.get("id") if isinstance(text, dict) else text for text in found]


def steps(component: Any) -> list[dict[str, Any]]:
    """The steps of a normalizer, pre-tokenizer, post-processor or decoder, with nested sequences flattened."""
    found, stack = [], [component]
    while stack:
        part = stack.pop()
        if isinstance(part, list):
            stack.extend(reversed(part))
        elif isinstance(part, dict) and part.get("type") == "Sequence":
            stack.extend(part.get(key) for key in ("normalizers", "pretokenizers", "processors", "decoders"))
        elif isinstance(part, dict):
            found.append(part)
    return found


def _check_patterns(content: Any) -> None:
    stack = [content]
    while stack:
        part = stack.pop()
        if isinstance(part, dict):
            if isinstance(pattern := part.get("Regex"), str):
                check_pattern(pattern)
            stack.extend(part.values())
        elif isinstance(part, list):
            stack.extend(part)


def _growth(step: dict[str, Any]) -> float:
    """Roughly how many times longer this normalizer can make a text."""
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
        raise ValueError("its vocabulary is not a JSON object that maps tokens to ids")
    if not isinstance(added, list | None):
        raise ValueError("its added_tokens is not a list")
    ids = dict(vocab)
    for token in added or []:
        if not isinstance(token, dict) or not isinstance(token.get("content"), str) or not token["content"]:
            raise ValueError("its added_tokens is not a list of tokens with content and id")
        if ids.setdefault(token["content"], token.get("id")) != token.get("id"):
            raise ValueError(
                f"the token {token['content']!r} has two ids, {ids[token['content']]} and {token.get('id')}"
            )
    for token, token_id in ids.items():
        if not isinstance(token_id, int) or isinstance(token_id, bool):
            raise ValueError(f"the id of the token {token!r} is {token_id!r}, not an integer")
    for expected, (token, token_id) in enumerate(sorted(ids.items(), key=lambda item: item[1])):
        if token_id != expected:
            twice = token_id == expected - 1
            problem = f"two tokens have the id {token_id}" if twice else f"no token has the id {expected}"
            raise ValueError(f"its {len(ids)} ids are not 0 .. {len(ids) - 1}: {problem} (see {token!r})")
    return ids
