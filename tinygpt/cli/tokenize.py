"""`tinygpt tokenize`: encode texts into token files ahead of training, or convert those of other programs."""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import UsageError, require_together
from ..files import user_path

if TYPE_CHECKING:
    import numpy as np

ABOUT = """Encode texts into a folder with a token file and its tokenizer, for `tinygpt train FOLDER`, or into the .bin
files of nanoGPT and llm.c. Token files of these two (train.bin val.bin) are also accepted as input."""


def add_options(parser: argparse.ArgumentParser) -> None:
    from ..data.token_bins import FORMATS
    from ..training.text.corpus import add_text_options

    add_text_options(parser)
    words = "character, byte, word or bpe (trained on the texts), or a folder with a tokenizer (default: character)"
    parser.add_argument("--tokenizer", metavar="KIND", help=words)
    words = "vocabulary size of --tokenizer bpe or word, or of a .bin"
    parser.add_argument("--vocab-size", type=int, metavar="N", help=words)
    parser.add_argument("--out", metavar="FOLDER", required=True, help="a folder that is new or empty")
    words = "fraction of the text for validation (default: 0.1)"
    parser.add_argument("--validation-fraction", type=float, default=0.1, metavar="X", help=words)
    words = "format of the token files: npy is tinygpt's, the others write train.bin and val.bin (default: npy)"
    parser.add_argument("--format", choices=("npy", *FORMATS), default="npy", help=words)
    parser.set_defaults(run=tokenize)


def tokenize(options: argparse.Namespace) -> int:
    """Write the files, and report what is in them."""
    from ..checks import number
    from ..data import open_tokens, split
    from ..data.opening import require_zstandard
    from ..training.settings.choose import require_tokenizer
    from ..training.storage.folder import TOKENS, RunFolder
    from ..training.text.corpus import given_text
    from ..training.text.token_folder import make_token_folder

    number("tokenize", "validation_fraction", options.validation_fraction, above=0, below=1)
    names, given = given_text(options)
    if names is None:
        raise UsageError("tokenize needs texts: give files, folders, patterns or - (standard input)")
    out = user_path(options.out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out} already exists and is not empty: choose another --out")
    require_together(lambda: require_tokenizer(options.tokenizer), lambda: require_zstandard(*names))
    if all(Path(name).suffix == ".bin" for name in names):
        return _convert(options, names, out)
    with RunFolder(out) as folder:
        tokenizer = make_token_folder(
            folder, names, given, options.tokenizer, options.vocab_size, options.validation_fraction,
            not options.no_cache,
        )  # fmt: skip
        parts = split(open_tokens(out / TOKENS), options.validation_fraction)
        if options.format != "npy":
            _write_bins(out, parts, options.format)
            (out / TOKENS).unlink()
    return _report(out, parts, f"a vocabulary of {tokenizer.vocab_size}")


def _convert(options: argparse.Namespace, names: tuple[str, ...], out: Path) -> int:
    """Convert a train.bin, and perhaps a val.bin."""
    from .. import tokenizers
    from ..checkpoint import fingerprint
    from ..data.opening import described
    from ..data.token_bins import open_bin, write_parts
    from ..files import folder_made
    from ..training.storage.folder import TOKENS
    from ..training.text.text_facts import save_facts

    if len(names) > 2:
        raise UsageError(f"tokenize takes one .bin, or one for training and one for validation, not {len(names)}")
    tokenizer = tokenizers.load(user_path(options.tokenizer)) if options.tokenizer is not None else None
    size = options.vocab_size
    if tokenizer is not None and size not in (None, tokenizer.vocab_size):
        raise UsageError(f"the tokenizer in {options.tokenizer} has {tokenizer.vocab_size} tokens, not {size}")
    size = size if tokenizer is None else tokenizer.vocab_size
    parts = [open_bin(user_path(name), size) for name in names]
    folder_made(out)
    if options.format == "npy":
        end = None if tokenizer is None or options.cross_documents else tokenizer.eos_token_id
        write_parts(out / TOKENS, parts, size, options.validation_fraction, end)
    else:
        _write_bins(out, parts, options.format)
    if tokenizer is not None:
        tokenizer.save(out)
        digest = hashlib.sha256("".join(map(fingerprint, parts)).encode())
        about = {"description": " and ".join(map(described, names)), "tokenizer": tokenizer.type}
        save_facts(out, about | {"tokenizer_from": options.tokenizer, "sha256": digest.hexdigest()})
    return _report(out, parts, f"a vocabulary of {size}")


def _write_bins(out: Path, parts: Sequence[np.ndarray], format: str) -> None:
    from ..data.token_bins import write_bin

    for name, tokens in zip(("train.bin", "val.bin"), parts, strict=False):
        write_bin(out / name, tokens, format)


def _report(out: Path, parts: Sequence[np.ndarray], vocabulary: str) -> int:
    counts = " and ".join(f"{len(part):,}" for part in parts)
    print(f"{out} holds {counts} tokens{' for training and validation' if len(parts) > 1 else ''}, of {vocabulary}")
    return 0
