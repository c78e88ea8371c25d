"""The texts of an answer in OpenAI's form: whole, or as the chunks of a stream."""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..generation.stopping import BLOCK, LENGTH, bytes_after
from ..generation.text_pieces import TextPieces
from .bodies import Asked, Served
from .samples import Token, Wanted

Json = dict[str, Any]


@dataclass
class _Text:
    """A text as it arrives."""

    pieces: TextPieces
    before: int  # the last token, on which the bytes of the next may depend
    hidden: frozenset[int]
    text: str = ""
    offset: int = 0
    tokens: int = 0
    reason: str | None = None
    logprobs: list[Json] = field(default_factory=list)


class Answer:
    """Collects the tokens of all texts of a request."""

    def __init__(self, served: Served, asked: Asked) -> None:
        self.served, self.asked = served, asked
        self.id = ("chatcmpl-" if asked.chat else "cmpl-") + uuid.uuid4().hex
        self.created = int(time.time())
        self.texts = [self._text(one) for one in asked.texts]
        self.unfinished = len(self.texts)

    def _text(self, wanted: Wanted) -> _Text:
        config, tokenizer = wanted.request.config, self.served.tokenizer
        hidden = frozenset({*config.eos_ids, *getattr(tokenizer, "special_ids", ())})
        return _Text(TextPieces(tokenizer, wanted.prompt, config), int(wanted.prompt[-1]), hidden)

    def add(self, number: int, token: Token) -> list[Json]:
        """A new token of text `number` -> the chunks that are now final: none, one, or two at the end of the text."""
        text, piece, logprobs = self.texts[number], "", list[Json]()
        if token.id is not None:
            text.tokens += 1
            piece = text.pieces.feed(token.id)
            if token.log_prob is not None and token.id not in text.hidden:
                logprobs = [self._logprob(text, token)]
            text.before = token.id
        if token.reason is not None:
            piece += text.pieces.end()
            text.reason = "length" if token.reason in (LENGTH, BLOCK) else "stop"
            self.unfinished -= 1
        if self.asked.chat and not text.text and not self.asked.begun:
            piece = piece.lstrip()  # the blank between the mark of the assistant and its answer
        text.text += piece
        text.logprobs += logprobs
        chunks = [self._chunk(number, piece, logprobs, None)] if piece or logprobs else []
        if text.reason is not None:
            chunks.append(self._chunk(number, "", [], text.reason))
        return chunks

    # Whole ------------------------------------------------------------------------------------------

    def whole(self) -> Json:
        """The answer without a stream."""
        kind = "chat.completion" if self.asked.chat else "text_completion"
        choices = [self._choice(number, text) for number, text in enumerate(self.texts)]
        return self._frame(kind) | {"choices": choices, "usage": self.usage()}

    def _choice(self, number: int, text: _Text) -> Json:
        found: Json = {"index": number, "finish_reason": text.reason, "logprobs": self._shown(number, text.logprobs)}
        if self.asked.chat:
            return found | {"message": {"role": "assistant", "content": text.text, "refusal": None}}
        return found | {"text": text.text} | self._prompt_ids(number)

    def _prompt_ids(self, number: int) -> Json:
        """If they were asked for."""
        return {"prompt_token_ids": self.asked.texts[number].prompt.tolist()} if self.asked.token_ids else {}

    def usage(self) -> Json:
        """Tokens read and written. A prompt is counted once, however many samples it has."""
        prompt, new = sum(len(one.prompt) for one in self.asked.wanted), sum(text.tokens for text in self.texts)
        return {"prompt_tokens": prompt, "completion_tokens": new, "total_tokens": prompt + new}

    # A stream ---------------------------------------------------------------------------------------

    def first(self) -> list[Json]:
        """What a stream begins with: in a chat, whose turn it is; the ids of the prompt, if they were asked for."""
        if not self.asked.chat:
            empty = {"text": "", "logprobs": None, "finish_reason": None}
            return [self._of_choice({"index": i} | empty | self._prompt_ids(i))
                    for i in range(len(self.texts)) if self.asked.token_ids]  # fmt: skip
        delta = {"role": "assistant", "content": ""}
        return [self._of_choice({"index": i, "delta": delta, "logprobs": None, "finish_reason": None})
                for i in range(len(self.texts))]  # fmt: skip

    def last(self) -> list[Json]:
        """What a stream ends with: the usage, if it was asked for."""
        return [self._frame(self._kind) | {"choices": [], "usage": self.usage()}] if self.asked.include_usage else []

    def _chunk(self, number: int, piece: str, logprobs: list[Json], reason: str | None) -> Json:
        found: Json = {"index": number, "finish_reason": reason, "logprobs": self._shown(number, logprobs)}
        if reason is not None:
            found["logprobs"] = None
        if self.asked.chat:
            return self._of_choice(found | {"delta": {} if reason is not None else {"content": piece}})
        return self._of_choice(found | {"text": piece})

    def _of_choice(self, choice: Json) -> Json:
        frame = self._frame(self._kind) | {"choices": [choice]}
        return frame | {"usage": None} if self.asked.include_usage else frame

    @property
    def _kind(self) -> str:
        return "chat.completion.chunk" if self.asked.chat else "text_completion"

    def _frame(self, kind: str) -> Json:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.served.name}

    # Log-probabilities ------------------------------------------------------------------------------

    def _logprob(self, text: _Text, token: Token) -> Json:
        """A token in the form of a chat, and where it begins in the text, for the other form."""
        assert token.id is not None
        top = [self._named(text, i, log_prob) for i, log_prob in token.top or ()]
        found = self._named(text, token.id, token.log_prob) | {"top_logprobs": top, "offset": text.offset}
        text.offset += len(found["token"])
        return found

    def _named(self, text: _Text, token: int, log_prob: float | None) -> Json:
        data = bytes_after(self.served.tokenizer, text.before, np.array([token]))
        found: Json = {"token": data.decode("utf-8", "replace"), "logprob": log_prob, "bytes": list(data)}
        return found | {"id": token} if self.asked.token_ids else found

    def _shown(self, number: int, found: list[Json]) -> Json | None:
        """In the form of the endpoint; None if they were not asked for."""
        if self.asked.texts[number].top is None:
            return None
        content = [{key: value for key, value in one.items() if key != "offset"} for one in found]
        if self.asked.chat:
            return {"content": content, "refusal": None}
        return ({"content": content} if self.asked.token_ids else {}) | {
            "tokens": [one["token"] for one in found],
            "token_logprobs": [one["logprob"] for one in found],
            "top_logprobs": [{t["token"]: t["logprob"] for t in one["top_logprobs"]} for one in found],
            "text_offset": [one["offset"] for one in found],
        }
