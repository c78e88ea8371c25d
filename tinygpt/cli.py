"""The command line: `tinygpt train | sample | eval`.

    tinygpt train --data FILE --out FOLDER
    tinygpt sample --model FOLDER --prompt "ROMEO:"
    tinygpt eval --model FOLDER --data FILE

Exit codes: 0 done; 1 the training diverged; 2 a mistake in what was asked for, said in one sentence; 130 stopped by
Ctrl-C, 143 by SIGTERM, in both cases with everything saved. A traceback means a defect of ours.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import shlex
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from . import __version__, backends
from .errors import UsageError

if TYPE_CHECKING:
    from .generation import GenerationConfig
    from .gpt import GPT
    from .tokenizers import Tokenizer

DIVERGED, MISTAKE = 1, 2


def main(arguments: Sequence[str] | None = None) -> None:
    """The command `tinygpt`; ends the process with an exit code."""
    from .training import OptionParser

    parser = OptionParser(prog="tinygpt", description="Train a GPT, and let it write.")
    parser.add_argument("--version", action="version", version=f"tinygpt {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _add_train(commands)
    _add_sample(commands)
    _add_eval(commands)
    options = parser.parse_args(arguments)
    exit_with(lambda: options.run(options))


def exit_with(work: Callable[[], int | None]) -> None:
    """End the process with `work`'s exit code; a mistake of the user's becomes a sentence and code 2."""
    from .training import DivergedError

    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal may lack a character that the model has
    try:
        code = work() or 0
        if sys.stdout is not None:  # None: closed by the caller, who wants no output
            sys.stdout.flush()
    except DivergedError as error:
        code = _say(error, DIVERGED)
    except BrokenPipeError:  # `tinygpt sample | head`: the reader has what it wanted
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except (UsageError, OSError) as error:
        code = _say(error, MISTAKE)
    except MemoryError as error:
        code = _say(f"there is not enough memory ({error}): take a smaller model or a smaller batch", MISTAKE)
    except KeyboardInterrupt:
        code = _say("stopped", 128 + signal.SIGINT)
    sys.exit(code)


def _say(what: object, code: int) -> int:
    program = Path(sys.argv[0]).name
    if sys.stderr is None:
        return code
    with contextlib.suppress(OSError):  # nobody reads it; the exit code says it all the same
        print(f"{'tinygpt' if program == '__main__.py' else program}: {what}", file=sys.stderr, flush=True)
    return code


def again(*arguments: str) -> str:
    """The command that was typed, with other arguments: what to type next."""
    program = Path(sys.argv[0])
    if program.name == "__main__.py":
        words = ["python", "-m", "tinygpt"]
    else:
        words = ["python", sys.argv[0]] if program.suffix == ".py" else [program.name]
    return shlex.join([*words, *arguments])


# train --------------------------------------------------------------------------------------------


def _add_train(commands: Any) -> None:
    from .training import add_run_options

    about = "Train a GPT on a text. Ctrl-C saves; --resume goes on bit for bit."
    parser = commands.add_parser("train", help="train a GPT on a text", description=about)
    add_run_options(parser, out="out/{preset}")
    parser.set_defaults(run=train)


def train(options: argparse.Namespace) -> int:
    """`tinygpt train`: a new run, or an old one gone on with, and how good its model is in the end."""
    from .data import split
    from .gpt import GPT, GPTConfig
    from .training import Trainer, choose_settings, describe_run, evaluate, prepare_text

    settings = choose_settings(options)
    backends.use_backend(settings.backend)
    text = prepare_text(settings)
    train_tokens, validation_tokens = split(text.tokens, settings.training.validation_fraction)
    model = GPT(GPTConfig(vocab_size=text.tokenizer.vocab_size, **settings.model), seed=settings.training.seed)
    trainer = Trainer(model, train_tokens, validation_tokens, settings.training, settings.folder)
    if settings.checkpoint is not None:
        trainer.resume(settings.checkpoint)
    print(describe_run(settings, text, model), flush=True)
    result = trainer.run()
    if result.signal is not None:
        print(
            f"Saved at step {result.step}. Go on with:\n    {again('train', '--resume', '--out', str(settings.folder))}"
        )
        return 128 + result.signal
    print(result.summary())
    loss = evaluate(model, validation_tokens, settings.training.batch_size, progress=True)
    print(f"Loss over the whole validation text: {loss:.4f}")
    print(f"Let it write with:\n    {again('sample', '--model', str(settings.folder))}")
    return 0


# sample -------------------------------------------------------------------------------------------


def _add_sample(commands: Any) -> None:
    parser = commands.add_parser("sample", help="let a trained model write", description="Let a trained model write.")
    _add_model_options(parser)
    add_sampling_options(parser)
    parser.add_argument("--seed", type=int, metavar="N", help="the same seed, the same text (default: a new text)")
    parser.set_defaults(run=sample)


def _add_model_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, metavar="FOLDER", help="the folder of a training run")
    parser.add_argument(
        "--checkpoint", choices=("best", "latest"), default="best", help="which of its checkpoints (default: best)"
    )
    parser.add_argument("--backend", choices=backends.NAMES, default="numpy", help="CPU or GPU (default: numpy)")


def add_sampling_options(parser: Any) -> None:
    """What decides the text of `sample_text`, but for its seed."""
    parser.add_argument("--prompt", help="the text to go on from (default: a line break)")
    parser.add_argument("--max-new-tokens", type=int, default=500, metavar="N", help="how many (default: 500)")
    parser.add_argument("--temperature", type=float, default=0.8, metavar="X", help="0: greedy (default: 0.8)")
    parser.add_argument("--top-k", type=int, metavar="N", help="draw from the N likeliest (default: from all)")


def sample(options: argparse.Namespace) -> int:
    """`tinygpt sample`: prints the prompt and what follows as it is made."""
    from .training import load_model

    backends.use_backend(options.backend)
    model, tokenizer, _ = load_model(options.model, options.checkpoint)
    seed = options.seed if options.seed is not None else int.from_bytes(os.urandom(6))
    for piece in sample_text(model, tokenizer, options, seed):
        print(piece, end="", flush=True)
    print()
    return 0


def check_sampling_options(tokenizer: Tokenizer, options: argparse.Namespace) -> None:
    """Raise what `sample_text` would raise, without a model: a mistake is found before the training, not after it."""
    _prompt(tokenizer, options)
    _generation_config(options)


def _generation_config(options: argparse.Namespace) -> GenerationConfig:
    from .generation import GenerationConfig

    return GenerationConfig(max_new_tokens=options.max_new_tokens, temperature=options.temperature, top_k=options.top_k)


def sample_text(model: GPT, tokenizer: Tokenizer, options: argparse.Namespace, seed: int) -> Iterator[str]:
    """The prompt, then what the model makes of it, piece by piece as it is made. Raises UsageError."""
    from .generation import stream_text

    prompt, _ = _prompt(tokenizer, options)
    pieces = stream_text(model, tokenizer, prompt, config=_generation_config(options), seed=seed)
    yield prompt
    yield from pieces


def _prompt(tokenizer: Tokenizer, options: argparse.Namespace) -> tuple[str, np.ndarray]:
    """The prompt as text, and as ids (1, T)."""
    from .tokenizers import UnknownCharacterError

    prompt = options.prompt if options.prompt is not None else _line_break(tokenizer)
    try:
        idx = tokenizer.encode(prompt)[None, :]
    except UnknownCharacterError as error:
        raise UsageError(
            f"the character {error.character!r} at position {error.position} of the prompt is not in the text that the "
            "model is trained on: leave it out"
        ) from error
    if idx.size == 0:
        raise UsageError("the prompt is empty: give at least one character to go on from")
    return prompt, idx


def _line_break(tokenizer: Tokenizer) -> str:
    try:
        tokenizer.encode("\n")
    except UsageError:  # a text of one line: begin with its first character
        return tokenizer.decode([0])
    return "\n"


# eval ---------------------------------------------------------------------------------------------


def _add_eval(commands: Any) -> None:
    about = "The mean cross-entropy of a trained model over the whole of a text."
    parser = commands.add_parser("eval", help="the loss of a model over a text", description=about)
    _add_model_options(parser)
    parser.add_argument("--data", metavar="FILE", help="a UTF-8 text (default: the run's own validation text)")
    parser.add_argument("--batch-size", type=int, default=12, metavar="N", help="rows at a time (default: 12)")
    parser.set_defaults(run=evaluate_text)


def evaluate_text(options: argparse.Namespace) -> int:
    """`tinygpt eval`: one line with the loss, in nats per token, and the number of tokens."""
    from .data import open_tokens, split, write_tokens
    from .training import evaluate, load_model
    from .training.run import TOKENS

    backends.use_backend(options.backend)
    model, tokenizer, checkpoint = load_model(options.model, options.checkpoint)
    with contextlib.ExitStack() as stack:
        if options.data is None:
            fraction = checkpoint.state["training_config"]["validation_fraction"]
            tokens: np.ndarray = split(open_tokens(Path(options.model) / TOKENS), fraction)[1]
        else:
            folder = stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True))
            write_tokens(options.data, tokenizer, Path(folder) / TOKENS)
            tokens = open_tokens(Path(folder) / TOKENS)
        loss = evaluate(model, tokens, options.batch_size, progress=True)
        print(f"loss {loss:.4f} nats per token over {len(tokens) - 1} tokens (perplexity {np.exp(loss):.2f})")
        del tokens  # Windows removes no file that is mapped
    return 0
