"""What `sample` and `chat` share: generation options, and generating the text."""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..errors import UsageError

if TYPE_CHECKING:
    from ..generation import GenerationConfig
    from ..gpt import GPT
    from ..tokenizers import Tokenizer

MAX_NEW_TOKENS, TEMPERATURE = 500, 0.8


def _ids(text: str) -> list[int]:
    """ "3,17" as token ids."""
    return [int(word) for word in text.split(",")]


_ids.__name__ = "list of token ids"  # what argparse calls it


class Option(NamedTuple):
    """A field of GenerationConfig on the command line."""

    name: str
    type: Any
    metavar: str
    help: str
    choices: tuple[str, ...] | None = None


HOW_LONG = [
    Option("max_new_tokens", int, "N", f"maximum number of new tokens (default: {MAX_NEW_TOKENS})"),
    Option("min_new_tokens", int, "N", "no end-of-text token before N new tokens"),
    Option("eos_token_id", _ids, "ID,...", "tokens that end the text (default: the model's)"),
    Option("overflow", str, "", "when the block is full (default: slide the window)", ("slide", "stop")),
]
HOW_CHOSEN = [
    Option("temperature", float, "X", f"0 is greedy (default: the model's own, else {TEMPERATURE})"),
    Option("top_k", int, "N", "sample from the N most likely tokens (default: all)"),
    Option("top_p", float, "P", "sample from the most likely tokens whose probabilities add up to P"),
    Option("min_p", float, "P", "sample from tokens at least P times as likely as the most likely one"),
    Option("repetition_penalty", float, "X", "above 1 makes tokens that already occur less likely"),
    Option("no_repeat_ngram_size", int, "N", "never repeat a sequence of N tokens"),
    Option("suppress_tokens", _ids, "ID,...", "never choose these tokens"),
]
HOW_MANY = [
    Option("num_return_sequences", int, "N", "number of texts (default: 1)"),
    Option("num_beams", int, "N", "above 1: beam search with N beams; the text is shown when it is complete"),
    Option("length_penalty", float, "X", "of beam search: above 0 favours longer texts (default: 1)"),
]


# Options ------------------------------------------------------------------------------------------


def add_sampling_options(parser: Any) -> None:
    """The prompt and all options that determine its continuation, except the seed."""
    group = parser.add_argument_group("the prompt")
    either = group.add_mutually_exclusive_group()
    words = "the text to continue (default: a line break); '' starts a new text, from the model's end-of-text token"
    either.add_argument("--prompt", metavar="TEXT", help=words)
    words = "read the prompt from a UTF-8 file; - is standard input"
    either.add_argument("--prompt-file", metavar="FILE", help=words)
    words = "put the prompt into this template, as a question to answer: as for `chat`, or own for the model's own"
    group.add_argument("--template", dest="prompt_template", metavar="NAME_OR_FILE", help=words)
    words = "read <|endoftext|> and other special tokens in the prompt as such, not as characters"
    group.add_argument("--allow-special", action="store_true", help=words)
    add_generation_options(parser, HOW_LONG, HOW_CHOSEN)
    _add_fields(parser.add_argument_group("several texts, and beam search"), HOW_MANY)
    parser.set_defaults(default_new_tokens=MAX_NEW_TOKENS)


def add_generation_options(parser: Any, how_long: list[Option], how_chosen: list[Option]) -> None:
    """Options for these fields, and those that differ on the command line: texts instead of tokens, --greedy."""
    group = parser.add_argument_group("length of the text")
    _add_fields(group, how_long)
    words = "stop before this text (may be given several times)"
    group.add_argument("--stop", dest="stop_strings", action="append", metavar="TEXT", help=words)
    group = parser.add_argument_group("how the next token is chosen")
    group.add_argument("--greedy", action="store_true", help="always choose the most likely token")
    _add_fields(group, how_chosen)
    words = "never write this text, as the tokenizer encodes it (may be given several times)"
    group.add_argument("--bad-words", action="append", metavar="TEXT", help=words)


def _add_fields(group: Any, fields: list[Option]) -> None:
    for option in fields:
        settings: dict[str, Any] = {"type": option.type, "help": option.help, "choices": option.choices}
        if option.choices is None:
            settings["metavar"] = option.metavar
        group.add_argument("--" + option.name.replace("_", "-"), **settings)


def generation_config(
    options: argparse.Namespace, tokenizer: Tokenizer, model: GPT | None = None, seed: int | None = None
) -> GenerationConfig:
    """The model's own generation settings, overridden by the options. Raises UsageError for an invalid one."""
    from ..data.dialogue import as_template
    from ..generation import GenerationConfig, config_from_dict
    from ..generation.options import SAMPLING_OPTIONS

    own: Any = getattr(model, "generation_config", None)
    base = own if isinstance(own, GenerationConfig) else config_from_dict(own or {})
    names = [option.name for option in (*HOW_LONG, *HOW_CHOSEN, *HOW_MANY)] + ["stop_strings"]
    given = {name: value for name in names if (value := getattr(options, name, None)) is not None}
    if (template := getattr(options, "prompt_template", None)) is not None:
        given["stop_strings"] = [*given.get("stop_strings", []), *as_template(template).stops] or None
    if options.bad_words:
        given["bad_words_ids"] = [_encode(tokenizer, words, "--bad-words").tolist() for words in options.bad_words]
    if "max_new_tokens" not in given:
        given["max_new_tokens"] = max(options.default_new_tokens, given.get("min_new_tokens", 0))
    if options.greedy or (given.get("num_beams", 1) > 1 and not given.keys() & set(SAMPLING_OPTIONS)):
        given["do_sample"] = False
    elif "temperature" not in given and base.temperature == 1.0:
        given["temperature"] = TEMPERATURE
    if "eos_token_id" not in given and base.eos_token_id is None and tokenizer.eos_token_id is not None:
        given["eos_token_id"] = tokenizer.eos_token_id
    if seed is not None:
        given["seed"] = seed
    return base.with_options(given)


def check_sampling_options(tokenizer: Tokenizer, options: argparse.Namespace) -> None:
    """Raise what `sample_text` would raise, without a model, so that a mistake is reported before training."""
    _prompt(tokenizer, options)
    generation_config(options, tokenizer)


# The text -----------------------------------------------------------------------------------------


class Counter:
    """Counts generated tokens; for streamed text, as a logits processor that changes nothing."""

    def __init__(self) -> None:
        self.tokens = 0

    def __call__(self, rows: Any, logits: np.ndarray) -> np.ndarray:
        self.tokens += len(logits)
        return logits


def sample_text(
    model: GPT, tokenizer: Tokenizer, options: argparse.Namespace, seed: int, counter: Counter | None = None
) -> Iterator[str]:
    """Yield the prompt, then its continuation piece by piece as it is generated; several texts one after another.

    Raises UsageError before the first piece.
    """
    from ..generation import stream_text

    prompt, ids = _prompt(tokenizer, options)
    config = generation_config(options, tokenizer, model, seed)
    if config.num_beams == 1 and config.num_return_sequences == 1:
        processors = [] if counter is None else [counter]
        pieces = stream_text(model, tokenizer, ids, config=config, logits_processor=processors)
        yield prompt
        yield from pieces
        return
    texts = _several(model, tokenizer, ids, config, counter or Counter())
    for number, text in enumerate(texts, 1):
        heading = f"--- {number} of {len(texts)} ---\n" if len(texts) > 1 else ""
        yield f"{heading}{prompt}{text}" + ("\n" if number < len(texts) else "")


def _several(
    model: GPT, tokenizer: Tokenizer, ids: np.ndarray, config: GenerationConfig, counter: Counter
) -> list[str]:
    """Several continuations of the prompt, or those of beam search."""
    from ..generation import generate
    from ..generation.text_pieces import text_of

    if config.padding is None:
        config = config.with_options({"pad_token_id": 0})  # padding after the end of a text is ignored
    mask = np.ones((1, len(ids)))  # the prompt has no padding, whatever pad_token_id is
    found = generate(model, ids[None], attention_mask=mask, config=config, tokenizer=tokenizer, return_details=True)
    counter.tokens += int(found.lengths.sum())
    rows = zip(found.sequences[:, len(ids) :], found.lengths, strict=True)
    return [text_of(row[:length], tokenizer, ids, config) for row, length in rows]


def _prompt(tokenizer: Tokenizer, options: argparse.Namespace) -> tuple[str, np.ndarray]:
    """The prompt as text, and as ids (T,)."""
    from ..data import read_text
    from ..data.dialogue import as_template, with_start

    if options.prompt_file is not None:
        options.prompt = read_stdin() if options.prompt_file == "-" else "".join(read_text(options.prompt_file))
        options.prompt_file = None  # read only once: it may be a pipe
    prompt = _line_break(tokenizer) if options.prompt is None else options.prompt
    if (template := getattr(options, "prompt_template", None)) is not None:
        template, question = as_template(template), prompt
        prompt = "".join(text for text, _ in template.opening("", question))
        _encode(tokenizer, prompt, "the prompt in its template")  # raises for an unknown character
        ids = template.prompt(tokenizer, "", [], question)
    else:
        ids = with_start(tokenizer, _encode(tokenizer, prompt, "the prompt", options.allow_special))
    if ids.size == 0:
        # As transformers does without a prompt. In GPT-2's training data this token separates texts.
        start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
        if start is None:
            raise UsageError(
                "the prompt is empty, and this model's tokenizer has no token that begins a text: give at least one "
                "character"
            )
        ids = np.array([start])
    return prompt, ids


def read_stdin() -> str:
    """All of standard input, decoded as UTF-8 whatever the locale."""
    if sys.stdin is None:
        raise UsageError("standard input is closed, so the prompt can't be read from it")
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(encoding="utf-8", newline="")
    try:
        return sys.stdin.read()
    except UnicodeDecodeError as error:
        raise UsageError(f"the standard input is not UTF-8 text: byte {error.start} fits no character") from error


def _encode(tokenizer: Tokenizer, text: str, where: str, allow_special: bool = False) -> np.ndarray:
    from ..tokenizers import UnknownCharacterError

    if allow_special:
        if not tokenizer.knows_special:
            raise UsageError(
                f"--allow-special: a tokenizer of type {tokenizer.type} has no special tokens: leave it out"
            )
        return tokenizer.encode_special(text)
    try:
        return tokenizer.encode(text)
    except UnknownCharacterError as error:
        raise UsageError(
            f"the character {error.character!r} at position {error.position} of {where} is not in the text that the "
            "model was trained on: leave it out"
        ) from error


def _line_break(tokenizer: Tokenizer) -> str:
    try:
        tokenizer.encode("\n")
    except UsageError:  # trained on a single line: begin with its first character
        return tokenizer.decode([0])
    return "\n"
