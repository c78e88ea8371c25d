"""The command line: `tinygpt train | sample | chat | eval | convert | doctor`.

    tinygpt train --data FILE --out FOLDER
    tinygpt sample --model FOLDER --prompt "ROMEO:"
    tinygpt chat --model gpt2
    tinygpt eval --model FOLDER --data FILE
    tinygpt convert FOLDER TARGET
    tinygpt doctor

Exit codes: 0 done; 1 the training diverged; 2 a mistake in what was asked for, said in one sentence; 130 stopped by
Ctrl-C, 143 by SIGTERM, 129 by SIGHUP (the terminal was closed), and a run that trains has saved everything then. A
traceback means a defect of ours.

| file | what is in it |
|---|---|
| `process` | exit codes; a mistake becomes a sentence |
| `parser` | options that are made when their command is called, so that `tinygpt --help` imports little |
| `generating` | the options that choose a model, a prompt and how to go on from it; the text |
| `train`, `sample`, `chat`, `evaluate`, `convert`, `doctor` | the commands; `dialogue`: what chat knows of templates |
"""

from __future__ import annotations

from collections.abc import Sequence

from .. import __version__
from ..console import usual_interrupt
from .generating import add_sampling_options, check_sampling_options, sample_text
from .parser import OptionParser
from .process import again, exit_with

__all__ = [
    "OptionParser", "add_sampling_options", "again", "check_sampling_options", "exit_with", "main", "sample_text",
]  # fmt: skip

COMMANDS = {
    "train": "train a GPT on a text",
    "sample": "let a model write",
    "chat": "talk with a model in the terminal",
    "eval": "the loss of a model over a text",
    "convert": "a training run or another GPT-2 directory as a GPT-2 directory of the Hugging Face format",
    "doctor": "what tinygpt finds on this machine, and what to install",
}


def main(arguments: Sequence[str] | None = None) -> None:
    """The command `tinygpt`; ends the process with an exit code."""
    exit_with(lambda: _command(arguments))


def _command(arguments: Sequence[str] | None) -> int | None:
    parser = OptionParser(prog="tinygpt", description="Train a GPT, and let it write.")
    parser.add_argument("--version", action="version", version=f"tinygpt {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for name, words in COMMANDS.items():
        module = "evaluate" if name == "eval" else name
        commands.add_parser(name, help=words, source=f"{__name__}.{module}")
    options = parser.parse_args(arguments)  # imports what the command needs
    usual_interrupt()
    return options.run(options)
