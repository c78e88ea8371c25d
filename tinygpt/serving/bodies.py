"""What a body asks for: prompts as ids, options of generation, the form of the answer.

Beyond OpenAI's fields, top_k, min_p and repetition_penalty are read, as other servers do, and two that our page needs
to continue from any token, since a token may be part of a character:

    return_token_ids  the answer has the ids of a completion's prompt (prompt_token_ids, as vLLM does) and of each
                      token in `logprobs`; a completion's `logprobs` then have `content`, as a chat's do
    answer_token_ids  in a chat, the first tokens of the answer: the model continues after them

Options that a body leaves out are the model's own (its `generation_config`), or else OpenAI's defaults.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..data.dialogue import AnyTemplate, Dialogue, with_start
from ..errors import UsageError
from ..generation.config_file import config_from_dict
from ..generation.options import GenerationConfig
from ..generation.request import prepare
from .errors import ApiError
from .fields import Fields
from .penalties import penalties
from .samples import Wanted

SHARED = {
    "model", "max_tokens", "temperature", "top_p", "n", "stream", "stream_options", "stop", "seed", "logprobs",
    "frequency_penalty", "presence_penalty", "logit_bias", "top_k", "min_p", "repetition_penalty", "return_token_ids",
}  # fmt: skip
COMPLETION, COMPLETION_REFUSED = SHARED | {"prompt"}, {"suffix": ("",), "echo": (False,), "best_of": (1,)}
CHAT = SHARED | {"messages", "max_completion_tokens", "top_logprobs", "answer_token_ids"}
CHAT_REFUSED: dict[str, tuple[Any, ...]] = {
    "tools": ([],), "tool_choice": ("none", "auto"), "functions": ([],), "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},), "modalities": (["text"],), "audio": (), "prediction": (),
    "reasoning_effort": (), "verbosity": (), "web_search_options": (),
}  # fmt: skip
DEFAULT_NEW_TOKENS, MOST_STOPS, MOST_TOP, MOST_CHAT_TOP = 16, 4, 5, 20


@dataclass(frozen=True)
class Served:
    """A model, and the name by which clients know it. most: the number of texts that a request may ask for."""

    model: Any
    tokenizer: Any
    name: str
    template: AnyTemplate
    created: int
    most: int = 64

    @property
    def vocab_size(self) -> int:
        return min(int(self.model.config.vocab_size), int(self.tokenizer.vocab_size))


@dataclass(frozen=True)
class Asked:
    """A parsed body: text i is sample i % n of prompt i // n.

    token_ids: whether the answer has ids. begun: whether the prompt contains the beginning of the answer.
    """

    chat: bool
    wanted: list[Wanted]
    n: int
    stream: bool
    include_usage: bool
    token_ids: bool = False
    begun: bool = False

    @property
    def texts(self) -> list[Wanted]:
        """The prompt of each text."""
        return [one for one in self.wanted for _ in range(self.n)]


def read_completion(served: Served, body: dict[str, Any]) -> Asked:
    """The body of /v1/completions. Raises ApiError."""
    fields = Fields(body, COMPLETION, COMPLETION_REFUSED)
    prompts = _prompts(served, fields)
    top = fields.whole("logprobs", 0, MOST_TOP)
    most = fields.whole("max_tokens", 0, 2**31)
    return _asked(served, fields, prompts, top, most, chat=False)


def read_chat(served: Served, body: dict[str, Any]) -> Asked:
    """The body of /v1/chat/completions. Raises ApiError."""
    fields = Fields(body, CHAT, CHAT_REFUSED)
    begun = _token_ids(served, fields.get("answer_token_ids") or [], "answer_token_ids")
    if begun is None:
        raise fields.wrong("answer_token_ids", "an array of token ids")
    prompt = np.concatenate([_dialogue(served, fields), begun])
    top = fields.whole("top_logprobs", 0, MOST_CHAT_TOP)
    if not fields.flag("logprobs"):
        if top is not None:
            raise ApiError("top_logprobs needs logprobs: true", "top_logprobs")
    else:
        top = top or 0
    most = fields.whole("max_completion_tokens", 1, 2**31)
    most = fields.whole("max_tokens", 1, 2**31) if most is None else most
    return _asked(served, fields, [prompt], top, most, chat=True, begun=bool(len(begun)))


def _asked(
    served: Served, fields: Fields, prompts: list[np.ndarray], top: int | None, most: int | None, chat: bool,
    begun: bool = False,
) -> Asked:  # fmt: skip
    name = fields.get("model")
    if name is not None and not isinstance(name, str):
        raise fields.wrong("model", "a string")
    if name not in (None, served.name):
        raise unknown_model(fields.text(name, "model"))
    n = fields.whole("n", 1, 128) or 1
    if n * len(prompts) > served.most:
        raise ApiError(f"this server writes at most {served.most} texts per request, not {n * len(prompts)}", "n")
    stream = fields.flag("stream")
    options = _options(served, fields, chat)
    processors = penalties(
        fields.bias("logit_bias", served.vocab_size),
        fields.number("frequency_penalty", -2, 2, 0),
        fields.number("presence_penalty", -2, 2, 0),
    )
    wanted = []
    for ids in prompts:
        limit = _limit(served, ids, most, "messages" if chat else "prompt", None if chat else DEFAULT_NEW_TOKENS)
        mask = np.ones((1, len(ids)))  # the prompt has no padding, whatever pad_token_id is
        try:
            changes = options | {"max_new_tokens": limit}
            config = _own_config(served).with_options(changes)
            request = prepare(served.model, ids[None], mask, config, processors, served.tokenizer, _LIMIT | changes)
        except UsageError as error:
            raise ApiError(str(error)) from error
        wanted.append(Wanted(request, n, top))
    usage, token_ids = _include_usage(fields, stream), fields.flag("return_token_ids")
    return Asked(chat, wanted, n, stream, usage, token_ids, begun)


_LIMIT: dict[str, Any] = {"max_new_tokens": None}


def _include_usage(fields: Fields, stream: bool) -> bool:
    options = fields.get("stream_options")
    if options is None:
        return False
    if not isinstance(options, dict):
        raise fields.wrong("stream_options", "an object")
    if not stream:
        raise ApiError("stream_options needs stream: true", "stream_options")
    return Fields(options, {"include_usage", "include_obfuscation"}, {}).flag("include_usage")


def _own_config(served: Served) -> GenerationConfig:
    """The model's own options, for one text of one prompt."""
    own = getattr(served.model, "generation_config", None)
    base = own if isinstance(own, GenerationConfig) else config_from_dict(own or {})
    if base.eos_token_id is None and served.tokenizer.eos_token_id is not None:
        base = base.with_options({"eos_token_id": served.tokenizer.eos_token_id})
    return base.with_options({"num_return_sequences": 1}).with_options({"num_beams": 1})


def _options(served: Served, fields: Fields, chat: bool) -> dict[str, Any]:
    own = _own_config(served)
    found: dict[str, Any] = {
        "overflow": "stop",
        "temperature": fields.number("temperature", 0, 2, own.temperature),
        "repetition_penalty": fields.number("repetition_penalty", 0.01, 100, own.repetition_penalty),
        "min_new_tokens": 0,
    }
    top_p, min_p = fields.number("top_p", 0, 1, own.top_p or 1), fields.number("min_p", 0, 1, own.min_p or 0)
    top_k = fields.whole("top_k", -1, 2**31)
    if found["temperature"] > 0:
        found |= {"top_p": top_p, "min_p": min_p, "do_sample": True}
        found |= {} if top_k is None else {"top_k": top_k if top_k > 0 else None}
    seed = fields.whole("seed", -(2**63), 2**63 - 1)
    found["seed"] = int.from_bytes(os.urandom(6), "big") if seed is None else seed % 2**63
    stops = [*fields.strings("stop", MOST_STOPS), *own.stops, *(served.template.stops if chat else ())]
    return found | {"stop_strings": stops or None}


def _limit(served: Served, ids: np.ndarray, asked: int | None, param: str, default: int | None) -> int:
    """The number of new tokens: as requested, or else the default, or all that fit."""
    block, T = served.model.config.block_size, len(ids)
    if block <= T or (asked is not None and T + asked > block):
        more = "" if asked is None else f" and {asked} in the completion"
        raise ApiError(
            f"This model's maximum context length is {block} tokens. However, you requested {T} tokens in the "
            f"{param}{more}. Please shorten the {param} or the completion.",
            param,
            "context_length_exceeded",
        )
    if asked is None:
        return block - T if default is None else min(default, block - T)
    return asked


def unknown_model(name: str) -> ApiError:
    return ApiError(f"The model {name[:80]!r} does not exist here", "model", "model_not_found", 404)


# Prompts ------------------------------------------------------------------------------------------


def _prompts(served: Served, fields: Fields) -> list[np.ndarray]:
    """A string, an array of strings, an array of ids, or an array of these, as ids (T,) each."""
    prompt = fields.get("prompt")
    if prompt is None:
        raise ApiError("you must provide a prompt", "prompt")
    many = prompt if isinstance(prompt, list) and prompt and isinstance(prompt[0], (str, list)) else [prompt]
    if len(many) > served.most:
        raise ApiError(f"this server writes at most {served.most} texts per request, not {len(many)}", "prompt")
    return [_ids(served, fields, one) for one in many]


def _ids(served: Served, fields: Fields, prompt: Any) -> np.ndarray:
    if isinstance(prompt, str):
        try:
            ids = with_start(served.tokenizer, served.tokenizer.encode(fields.text(prompt, "prompt")))
        except UsageError as error:  # a character that the model does not know
            raise ApiError(f"prompt: {error}", "prompt") from error
    else:
        given = _token_ids(served, prompt, "prompt")
        if given is None:
            raise fields.wrong("prompt", "a string, an array of token ids, or an array of one of these")
        ids = given
    if len(ids):
        return ids
    start = served.tokenizer.bos_token_id
    start = served.tokenizer.eos_token_id if start is None else start
    if start is None:
        raise ApiError("the prompt is empty, and this model has no token that begins a text", "prompt")
    return np.array([start])


def _token_ids(served: Served, given: Any, name: str) -> np.ndarray | None:
    """An array of ids, as (T,); None if it is something else. Raises ApiError for ids that don't exist."""
    if not isinstance(given, list) or not all(isinstance(i, int) and not isinstance(i, bool) for i in given):
        return None
    if not all(0 <= i < served.vocab_size for i in given):
        raise ApiError(f"{name}: token ids must be 0 to {served.vocab_size - 1}", name)
    return np.array(given, np.int64)


def _dialogue(served: Served, fields: Fields) -> np.ndarray:
    """The messages in the model's template, up to where the answer begins."""
    messages = fields.get("messages")
    if not isinstance(messages, list) or not messages:
        raise ApiError("messages must be an array of at least one message", "messages")
    said = [_message(fields, message, f"messages[{i}]") for i, message in enumerate(messages)]
    system = [text for role, text in said if role == "system"]
    turns = [text for role, text in said if role != "system"]
    roles = [role for role, _ in said]
    if roles != ["system"] * len(system) + ["user", "assistant"] * (len(turns) // 2) + ["user"] or not len(turns) % 2:
        raise ApiError(
            "messages must be those of the system, if any, then of user and assistant in turn, the user's last",
            "messages",
        )
    dialogue = Dialogue(served.template, "\n\n".join(system), list(zip(turns[0:-1:2], turns[1::2], strict=True)))
    try:
        ids, _ = dialogue.prompt(served.tokenizer, turns[-1], 2**62)
    except UsageError as error:
        raise ApiError(f"messages: {error}", "messages") from error
    if not len(ids):
        raise ApiError("the messages are empty", "messages")
    return ids


def _message(fields: Fields, message: Any, where: str) -> tuple[str, str]:
    """(role, text) of a message. Its content is a string, or an array of parts that are text."""
    if not isinstance(message, dict):
        raise ApiError(f"{where} must be an object with role and content", "messages")
    role, content = message.get("role"), message.get("content")
    if role not in ("system", "developer", "user", "assistant"):
        raise ApiError(f"{where}.role must be system, developer, user or assistant", f"{where}.role")
    extra = sorted(
        name for name, value in message.items() if name not in ("role", "content", "name") and value not in (None, [])
    )
    if extra:
        raise ApiError(f"{where}: {fields.text(extra[0], where)[:80]} is not supported by this server", where)
    if isinstance(content, list):
        if not all(isinstance(p, dict) and p.get("type") == "text" and isinstance(p.get("text"), str) for p in content):
            raise ApiError(f"{where}.content may have parts of type text only", f"{where}.content")
        content = "".join(part["text"] for part in content)
    if not isinstance(content, str):
        raise ApiError(f"{where}.content must be a string or an array of parts", f"{where}.content")
    return "system" if role == "developer" else role, fields.text(content, where)
