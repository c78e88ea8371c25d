"""`tinygpt explain`: a page that shows how a model processes a text."""

from __future__ import annotations

import argparse

from .loading import add_model_options

ABOUT = """Run a model on a text, and write one self-contained HTML page: the surprise of each token, what each head
attends to, after which block the answer appears, which tokens it depends on, and a model card."""


def add_options(parser: argparse.ArgumentParser) -> None:
    add_model_options(parser)
    group = parser.add_argument_group("the page")
    group.add_argument(
        "--text", required=True, metavar="TEXT", help="the text that the model reads, at most 256 tokens"
    )
    words = "explain this next token, given as its text (default: the most likely one)"
    group.add_argument("--target", metavar="TOKEN", help=words)
    words = "number of points for integrated gradients (default: 64)"
    group.add_argument("--steps", type=int, default=64, metavar="N", help=words)
    group.add_argument(
        "--out", required=True, metavar="FILE.html", help="the file to write; an existing one is replaced"
    )
    parser.set_defaults(run=explain)


def explain(options: argparse.Namespace) -> int:
    """Write the page, and print the perplexity of the text."""
    from .. import interpret
    from ..errors import UsageError
    from ..files import atomic_write, explain_os_errors, user_path
    from .loading import load

    out = user_path(options.out)
    if out.is_dir() or not out.parent.is_dir():
        problem = "is a folder" if out.is_dir() else f"is in {out.parent}, which is not a folder"
        raise UsageError(f"--out {options.out} {problem}: give the name of a file to write, such as explain.html")
    model, tokenizer, folder = load(options)
    found = interpret.explain(model, tokenizer, options.text, options.target, steps=options.steps)
    with explain_os_errors("write", out), atomic_write(out, "w") as file:
        file.write(interpret.page(str(folder.name), found))
    print(f"{out}: {len(found.tokens)} tokens, a perplexity of {2.0 ** float(found.surprise[1:].mean()):.4g}")
    return 0
