"""`tinygpt chat`: a dialogue in the terminal, or with lines from a pipe."""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ..console import Lenient
from ..errors import UsageError
from .generating import (
    HOW_CHOSEN,
    HOW_LONG,
    Counter,
    add_generation_options,
    add_model_options,
    generation_config,
    load,
)
from .sample import speed

if TYPE_CHECKING:
    from ..gpt import GPT
    from ..tokenizers import Tokenizer

ABOUT = """Chat with a model. A template turns the dialogue into text, which the model continues. Ctrl-C stops an
answer, Ctrl-D quits; commands: /reset, /help, /quit. From a pipe, each line is a message and only the answers are
printed."""
NEW_TOKENS = 200
HELP = "/reset clears the dialogue, /quit or Ctrl-D quits, Ctrl-C stops an answer; anything else is a message."


def add_options(parser: argparse.ArgumentParser) -> None:
    add_model_options(parser)
    group = parser.add_argument_group("the dialogue")
    words = (
        "plain (User: ... Assistant: ...), lines, play, chatml, raw, or a TOML file (default: the model's, else plain)"
    )
    group.add_argument("--template", metavar="NAME_OR_FILE", help=words)
    group.add_argument("--system", default="", metavar="TEXT", help="text before the dialogue, never dropped")
    words = f"maximum length of an answer in tokens (default: {NEW_TOKENS})"
    how_long = [option._replace(help=words) if option.name == "max_new_tokens" else option for option in HOW_LONG]
    add_generation_options(parser, how_long, HOW_CHOSEN)
    parser.add_argument("--seed", type=int, metavar="N", help="makes the answers reproducible (default: random)")
    parser.add_argument("--stats", action="store_true", help="print the speed of each answer on stderr")
    parser.set_defaults(run=chat, default_new_tokens=NEW_TOKENS)


def chat(options: argparse.Namespace) -> int:
    """Answer until the input ends."""
    from ..data.chat_template import other_template
    from ..data.dialogue import TEMPLATE, Dialogue, read_template

    template = None if options.template is None else read_template(options.template)
    model, tokenizer, folder = load(options)
    if template is None:
        template = read_template(str(folder / TEMPLATE) if (folder / TEMPLATE).exists() else "plain")
        if (words := other_template(folder)) is not None:
            note(f"Answering in the template plain, since {words}.")
    options.stop_strings = [*(options.stop_strings or []), *template.stops]
    conversation = Conversation(model, tokenizer, Dialogue(template, options.system), options)
    for message in messages():
        command = message.strip()
        if command == "/quit":
            break
        if command == "/reset":
            conversation.dialogue.turns.clear()
            note("The dialogue is cleared.")
        elif command.startswith("/"):
            note(HELP if command == "/help" else f"Unknown command {command}. {HELP}")
        elif command:
            with contextlib.suppress(KeyboardInterrupt):  # before the answer has begun
                conversation.answer(message)
    return 0


class Conversation:
    """A dialogue with a model."""

    def __init__(self, model: GPT, tokenizer: Tokenizer, dialogue: Any, options: argparse.Namespace) -> None:
        self.model, self.tokenizer, self.dialogue, self.options = model, tokenizer, dialogue, options
        self.config = generation_config(options, tokenizer, model)
        self.seed = options.seed if options.seed is not None else int.from_bytes(os.urandom(6))
        block = model.config.block_size
        # Reserve room for an answer, at most half the block.
        self.room = block - min(self.config.max_new_tokens or 0, block // 2)

    def answer(self, message: str) -> None:
        """Print the answer as it is generated and add both to the dialogue. After Ctrl-C the partial answer counts."""
        from ..generation import stream_text

        try:
            ids, dropped = self.dialogue.prompt(self.tokenizer, message, self.room)
        except UsageError as error:  # a character the model does not know, or too long a message
            note(f"This can't be answered: {error}")
            return
        if dropped:
            note(f"The context is full: dropped the oldest {'turn' if dropped == 1 else f'{dropped} turns'}.")
        config = self.config.with_options({"seed": self.seed})
        self.seed = (self.seed + 1) % 2**48  # a different sample for each answer
        counter, start, said = Counter(), time.perf_counter(), ""
        processors = [counter] if self.options.stats else []
        try:
            for piece in stream_text(self.model, self.tokenizer, ids, config=config, logits_processor=processors):
                piece = piece if said else piece.lstrip()
                print(piece, end="", flush=True)
                said += piece
        except KeyboardInterrupt:
            pass
        print(flush=True)
        self.dialogue.turns.append((message, said.rstrip()))
        if self.options.stats:
            print(speed(counter.tokens, time.perf_counter() - start), file=Lenient(sys.stderr), flush=True)


def messages() -> Iterator[str]:
    """The user's messages, one per line, until the input ends."""
    if sys.stdin is None:
        return
    if sys.stdin.isatty():
        yield from _typed()
        return
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(encoding="utf-8")
    try:
        for line in sys.stdin:
            yield line.rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise UsageError(f"the standard input is not UTF-8 text: {error}") from error


def _typed() -> Iterator[str]:
    """Lines typed in a terminal, with arrow keys and history where `readline` exists."""
    with contextlib.suppress(ImportError):  # Windows has none
        import readline  # noqa: F401  (input() uses it once it is imported)
    note(HELP)
    while True:
        try:
            yield input("> ")
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            print()
            note("Ctrl-D or /quit quits.")


def note(text: str) -> None:
    """A message about the dialogue, not part of it: on stderr, so that a pipe receives only the answers."""
    print(f"[{text}]", file=Lenient(sys.stderr), flush=True)
