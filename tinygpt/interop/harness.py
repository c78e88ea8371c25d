"""A model in EleutherAI's lm-evaluation-harness.

    import lm_eval
    from tinygpt.interop import load
    from tinygpt.interop.harness import harness_model

    lm = harness_model(*load("gpt2"))
    lm_eval.simple_evaluate(model=lm, tasks=["hellaswag", "lambada_openai"])

The harness asks for three things: the log-likelihood of a text after a context and whether greedy decoding would write
it, the log-likelihood of a whole text, and a continuation up to a stop string. `Requests` answers them without the
harness; `harness_model` turns it into the class that the harness expects.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..errors import missing_extra
from ..generation import log_likelihood, stream_text
from ..metrics.choice import continuation
from ..tokenizers import Tokenizer

MAX_NEW_TOKENS = 256  # if a task doesn't say


def harness_model(model: Any, tokenizer: Tokenizer) -> Any:
    """A model with its tokenizer as an `lm_eval.api.model.LM`. Raises MissingExtraError without the harness."""
    try:
        from lm_eval.api.model import LM
    except ImportError:
        raise missing_extra("lm_eval", "lm-evaluation-harness") from None

    class TinyGPT(Requests, LM):
        def __init__(self) -> None:
            LM.__init__(self)
            Requests.__init__(self, model, tokenizer)

    return TinyGPT()


class Requests:
    """The requests of the harness, answered one after another. `request.args` holds a request's arguments."""

    def __init__(self, model: Any, tokenizer: Tokenizer) -> None:
        self.model, self.tokenizer = model.eval(), tokenizer

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """(context, text) -> (log-likelihood in nats, whether each token of the text is the likeliest)."""
        return [continuation(self.model, self.tokenizer, *request.args) for request in requests]

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """(text,) -> its log-likelihood, in windows of block_size tokens; the first follows the start token.

        Without a start token (characters, bytes) the first token can't be predicted and is not counted.
        """
        found, begin = [], begin_of(self.tokenizer)
        for request in requests:
            ids = np.asarray(self.tokenizer.encode(request.args[0]))
            nothing = len(ids) + len(begin) < 2
            stride = self.model.config.block_size
            found.append(0.0 if nothing else log_likelihood(self.model, ids, begin, stride).total)
        return found

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """(context, {"until": [...], "max_gen_toks": N, "do_sample": ..., ...}) -> the continuation, without the stop.

        Greedy unless do_sample. The context is truncated on the left to leave room for the new tokens in the block.
        """
        return [self._generate(*request.args) for request in requests]

    def _generate(self, context: str, options: dict[str, Any]) -> str:
        until = options.get("until") or []
        new = int(options.get("max_gen_toks") or options.get("max_new_tokens") or MAX_NEW_TOKENS)
        sampling: dict[str, Any] = {"do_sample": False}
        if options.get("do_sample"):
            names = ("temperature", "top_k", "top_p", "min_p")
            sampling = {name: options[name] for name in names if options.get(name) is not None}
        ids = np.concatenate([np.asarray(self.tokenizer.start_ids, np.int64), self.tokenizer.encode(context)])
        ids = ids if len(ids) else begin_of(self.tokenizer)
        room = max(1, self.model.config.block_size - new)
        stops = [until] if isinstance(until, str) else list(until)
        if self.tokenizer.eos_token_id is not None:
            sampling["eos_token_id"] = self.tokenizer.eos_token_id
        pieces = stream_text(self.model, self.tokenizer, ids[-room:], new, stop_strings=stops or None, **sampling)
        return "".join(pieces)


def begin_of(tokenizer: Tokenizer) -> np.ndarray:
    """The token that begins a text, as an array of one id; empty if the tokenizer has none."""
    ids = [id for id in (tokenizer.bos_token_id, tokenizer.eos_token_id) if id is not None]
    return np.asarray(tokenizer.start_ids or ids[:1], np.int64)
