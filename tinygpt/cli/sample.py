"""`tinygpt sample`: a prompt and its continuation, printed as it is generated."""

from __future__ import annotations

import argparse
import os
import sys
import time

from ..console import Lenient
from .generating import Counter, add_sampling_options, sample_text
from .loading import add_model_options, load
from .needs import template_need

ABOUT = "Generate text. It appears as it is generated; several texts, and those of beam search, when they are complete."


def add_options(parser: argparse.ArgumentParser) -> None:
    add_model_options(parser)
    add_sampling_options(parser)
    parser.add_argument("--seed", type=int, metavar="N", help="makes the text reproducible (default: random)")
    parser.add_argument("--stats", action="store_true", help="print the speed on stderr at the end")
    parser.set_defaults(run=sample)


def sample(options: argparse.Namespace) -> int:
    """Print the prompt and what follows."""
    from ..data.jinja_template import template_for

    template = options.prompt_template
    model, tokenizer, folder = load(options, *([template_need(options, template)] if template is not None else []))
    if template is not None:
        options.prompt_template = template_for(folder, tokenizer, template)
    seed = options.seed if options.seed is not None else int.from_bytes(os.urandom(6))
    counter = Counter() if options.stats else None
    start = time.perf_counter()
    for piece in sample_text(model, tokenizer, options, seed, counter):
        print(piece, end="", flush=True)
    print()
    if counter is not None:
        print(speed(counter.tokens, time.perf_counter() - start), file=Lenient(sys.stderr))
    return 0


def speed(tokens: int, seconds: float) -> str:
    """Tokens per second, including the time for the prompt."""
    return f"{tokens} tokens in {seconds:.2f} s: {tokens / max(seconds, 1e-9):.1f} tokens/s"
