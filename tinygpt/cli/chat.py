"""`tinygpt chat`: a dialogue in the terminal, or with lines from a pipe."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import time
from typing import TYPE_CHECKING, Any

from ..console import Lenient
from ..errors import UsageError
from .chat_input import Entry, entries, note
from .generating import HOW_CHOSEN, HOW_LONG, Counter, add_generation_options, generation_config
from .loading import add_model_options, load
from .needs import template_need
from .sample import speed

if TYPE_CHECKING:
    from ..gpt import GPT
    from ..tokenizers import Tokenizer

ABOUT = '''Chat with a model. A template turns the dialogue into text, which the model continues. Ctrl-C stops an
answer, Ctrl-D quits. Commands: /help, /quit, /reset (start over), /system TEXT, /undo (take back the last exchange).
Several lines are one message between two """, or if all but the last end in a backslash. From a pipe, each line is a
message and only the answers are printed. When the block is full, the oldest turns are dropped until half of it is free;
the system text stays. A turn reads what is new; the keys and values of the rest are kept.'''
NEW_TOKENS = 200
HELP = (
    "/reset begins a new dialogue, /undo takes back the last exchange, /system TEXT sets the system text, /quit or "
    'Ctrl-D quits, Ctrl-C stops an answer; anything else is a message: several lines between two """, or with a '
    "backslash at the end of each but the last."
)
OTHER_NAMES = {"/?": "/help", "/exit": "/quit", "/bye": "/quit", "/clear": "/reset"}  # as other programs call them


def add_options(parser: argparse.ArgumentParser) -> None:
    add_model_options(parser)
    group = parser.add_argument_group("the dialogue")
    words = (
        "plain (User: ... Assistant: ...), lines, play, chatml, raw, or a file in TOML or Jinja (default: the model's "
        "own, else plain; Jinja needs the extra `chat`)"
    )
    group.add_argument("--template", metavar="NAME_OR_FILE", help=words)
    group.add_argument("--system", default="", metavar="TEXT", help="text before the dialogue, never dropped")
    words = f"maximum length of an answer in tokens (default: {NEW_TOKENS})"
    how_long = [option._replace(help=words) if option.name == "max_new_tokens" else option for option in HOW_LONG]
    add_generation_options(parser, how_long, HOW_CHOSEN)
    parser.add_argument("--seed", type=int, metavar="N", help="makes the answers reproducible (default: random)")
    words = "print on stderr how many tokens were read for each answer, and its speed"
    parser.add_argument("--stats", action="store_true", help=words)
    parser.set_defaults(run=chat, default_new_tokens=NEW_TOKENS)


def chat(options: argparse.Namespace) -> int:
    """Answer until the input ends."""
    from ..data.dialogue import Dialogue
    from ..data.jinja_template import template_for

    model, tokenizer, folder = load(options, template_need(options, options.template))
    template = template_for(folder, tokenizer, options.template)
    options.stop_strings = [*(options.stop_strings or []), *template.stops]
    conversation = Conversation(model, tokenizer, Dialogue(template, options.system), options)
    for entry in entries(HELP):
        with contextlib.suppress(KeyboardInterrupt):  # before the answer has begun
            if not conversation.take(entry):
                break
    return 0


class Conversation:
    """A dialogue with a model."""

    def __init__(self, model: GPT, tokenizer: Tokenizer, dialogue: Any, options: argparse.Namespace) -> None:
        from ..generation import PromptCache

        self.model, self.tokenizer, self.dialogue, self.options = model, tokenizer, dialogue, options
        self.config = generation_config(options, tokenizer, model)
        self.seed = options.seed if options.seed is not None else int.from_bytes(os.urandom(6))
        self.cache = PromptCache(model)  # so that a turn reads only what is new, not the whole dialogue
        block = model.config.block_size
        # Reserve room for an answer, at most half the block.
        self.room = block - min(self.config.max_new_tokens or 0, block // 2)

    def take(self, entry: Entry) -> bool:
        """Answer a message or obey a command. Returns False after the last one."""
        if entry.command is None:
            if entry.text.strip():
                self.answer(entry.text)
            return True
        command = OTHER_NAMES.get(entry.command, entry.command)
        if command == "/quit":
            return False
        if command == "/help":
            note(HELP)
        elif command == "/reset":
            self.dialogue.turns.clear()
            note("The dialogue is cleared.")
        elif command == "/undo":
            self._undo()
        elif command == "/system":
            self._system(entry.text)
        else:
            note(f"Unknown command {command}. {HELP}")
        return True

    def _undo(self) -> None:
        if not self.dialogue.turns:
            note("There is nothing to take back.")
            return
        message, _ = self.dialogue.turns.pop()
        first, *more = message.splitlines()
        note(f"Taken back: {first}{' ...' if more else ''}")

    def _system(self, text: str) -> None:
        """Set the system text. The turns stay. As in ollama, quotes around it don't count, so "" removes it."""
        if not text:
            now = f"The system text is: {self.dialogue.system}" if self.dialogue.system else "There is no system text"
            note(f'{now}. /system TEXT sets it, /system "" removes it.')
            return
        if len(text) > 1 and text[0] == text[-1] == '"':
            text = text[1:-1]
        self.dialogue.system = text
        note("The system text is set." if text else "The system text is removed.")

    def answer(self, message: str) -> None:
        """Print the answer as it is generated and add both to the dialogue. After Ctrl-C the partial answer counts."""
        from ..generation import stream_text
        from ..tokenizers import UnknownCharacterError

        try:
            # Half at once: every turn that is dropped moves all others, which are then read again.
            ids, dropped = self.dialogue.prompt(self.tokenizer, message, self.room, keep=self.room // 2)
        except UnknownCharacterError as error:
            note(f"This can't be answered: {self._unknown(error.character, message)}")
            return
        except UsageError as error:  # too long a message, or one that the template refuses
            note(f"This can't be answered: {error}")
            return
        if dropped:
            note(f"The context is full: dropped the oldest {'turn' if dropped == 1 else f'{dropped} turns'}.")
        config = self.config.with_options({"seed": self.seed})
        self.seed = (self.seed + 1) % 2**48  # a different sample for each answer
        counter, start, said = Counter(), time.perf_counter(), ""
        processors = [counter] if self.options.stats else []
        try:
            for piece in stream_text(self.model, self.tokenizer, ids, config=config, logits_processor=processors,
                                     prompt_cache=self.cache):  # fmt: skip
                piece = piece if said else piece.lstrip()
                print(piece, end="", flush=True)
                said += piece
        except KeyboardInterrupt:
            if not said:
                print(flush=True)
                note("Stopped before the answer began: the message is not part of the dialogue.")
                return
        print(flush=True)
        self.dialogue.turns.append((message, said.rstrip()))
        if self.options.stats:
            print(self._stats(counter.tokens, time.perf_counter() - start), file=Lenient(sys.stderr), flush=True)

    def _unknown(self, character: str, message: str) -> str:
        name = f"the character {character!r} (U+{ord(character):04X})"
        if character in message:
            return f"{name} is not in the text that the model was trained on"
        return (
            f"{name} of the template or the system text is not in the text that the model was trained on: give another "
            "--template"
        )

    def _stats(self, tokens: int, seconds: float) -> str:
        return f"{self.cache.tokens_read} tokens read, {self.cache.tokens_kept} known; {speed(tokens, seconds)}"
