"""The command line, `tinygpt COMMAND`.

    tinygpt train --data FILE --out FOLDER
    tinygpt finetune --model FOLDER --data FILE.jsonl --out FOLDER
    tinygpt tokenize FILE --out FOLDER
    tinygpt sample --model FOLDER --prompt "ROMEO:"
    tinygpt chat --model gpt2
    tinygpt serve --model gpt2
    tinygpt eval --model FOLDER --data FILE
    tinygpt predict --model FOLDER --data FILE --out FILE.jsonl
    tinygpt explain --model FOLDER --text TEXT --out FILE.html
    tinygpt report FOLDER...
    tinygpt convert FOLDER TARGET
    tinygpt doctor

Exit codes: 0 success; 1 training diverged; 2 a usage error, reported in one sentence; 130 interrupted by Ctrl-C, 143 by
SIGTERM, 129 by SIGHUP (the terminal was closed): a training run saves its state first. A traceback is a bug in tinygpt.

| file | contents |
|---|---|
| `process` | exit codes; a usage error becomes a one-line message |
| `parser` | adds a command's options only when it is called, so that `tinygpt --help` imports little |
| `rows` | what `evaluate` and `predict` share: the rows of a file, and the file of predictions |
| `answers` | a language model's answers to rows with prompts, and their quality |
| `loading` | the options for a model and the format of its numbers; loading it |
| `generating` | the options for prompt and sampling; generating the text |
| `train`, `finetune`, `sample`, `chat`, `tokenize`, `evaluate`, `explain`, `convert`, `doctor` | the commands |
| `report` | the command that writes a page about runs |
| `serve` | the command that answers over HTTP |
| `chat_input` | what the user of `chat` enters |
| `together`, `handover` | a run on several processes; what process 0 hands over to the others |
| `trial`, `sweep` | trial runs: `--dry-run`, `--lr-find`; searching over settings: `--sweep` |
| `predict`, `evaluate_rows` | the commands on rows |
| `cross_validation` | `finetune --folds` |
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
    "finetune": "train a model for a task, on rows of data",
    "sample": "generate text",
    "chat": "chat with a model in the terminal",
    "serve": "serve a model over HTTP, with OpenAI's interface",
    "tokenize": "encode texts into token files ahead of training, or convert those of nanoGPT and llm.c",
    "eval": "compute the loss of a model on a text, or the accuracy of a classifier",
    "predict": "label the texts in a file, or answer its prompts",
    "explain": "write a page that shows how a model processes a text",
    "report": "write a page about training runs: curves, samples, layers, settings",
    "convert": "convert a training run, a GPT-2 directory or nanoGPT's ckpt.pt to the Hugging Face format",
    "doctor": "report what tinygpt finds on this machine, and what to install",
}


def main(arguments: Sequence[str] | None = None) -> None:
    """The command `tinygpt`; ends the process with an exit code."""
    exit_with(lambda: _command(arguments))


def _command(arguments: Sequence[str] | None) -> int | None:
    parser = OptionParser(prog="tinygpt", description="Train GPTs and generate text with them.")
    parser.add_argument("--version", action="version", version=f"tinygpt {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for name, words in COMMANDS.items():
        module = "evaluate" if name == "eval" else name
        commands.add_parser(name, help=words, source=f"{__name__}.{module}")
    options = parser.parse_args(arguments)  # imports what the command needs
    usual_interrupt()
    return options.run(options)
