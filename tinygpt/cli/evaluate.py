"""`tinygpt eval`: the loss of a model on a whole text, or the metrics of a classifier on labelled texts."""

from __future__ import annotations

import argparse
import contextlib
import math
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import UsageError
from .answers import METRICS, add_answer_options, require_metrics
from .evaluate_rows import evaluate_classifier, evaluate_language_model
from .loading import add_model_options
from .rows import add_row_options, check_targets, is_table, load_model, write_json

if TYPE_CHECKING:
    from ..tokenizers import Tokenizer

ABOUT = """A language model on a text: the mean cross-entropy in nats per token, its perplexity, and bits per byte,
which is comparable between tokenizers. A classifier on rows with the columns `text` and `label`, in JSON lines, CSV or
TSV: accuracy, macro F1, the confusion matrix. Without --data: what the training run validated on."""


def add_options(parser: argparse.ArgumentParser) -> None:
    add_model_options(parser)
    words = "a text, or rows: .jsonl, .csv, .tsv (default: the training run's own validation text or rows)"
    parser.add_argument("--data", metavar="FILE", help=words)
    parser.add_argument("--batch-size", type=int, default=12, metavar="N", help="rows per batch (default: 12)")
    words = (
        "score with overlapping windows that advance by N tokens: each token is predicted from at least "
        "block_size - N + 1 tokens, and it takes block_size / N times as long (default: block_size, no overlap)"
    )
    parser.add_argument("--stride", type=int, metavar="N", help=words)
    parser.add_argument("--json", metavar="FILE", help="also write the metrics to a file, as JSON")
    words = "also write one line of JSON per row: its columns and the model's prediction"
    parser.add_argument("--predictions", metavar="FILE.jsonl", help=words)
    words = "for rows with prompts and answers: also compute these (extra: metrics)"
    parser.add_argument("--metrics", nargs="+", choices=METRICS, help=words)
    add_answer_options(parser)
    add_row_options(parser)
    parser.set_defaults(run=evaluate_model)


def evaluate_model(options: argparse.Namespace) -> int:
    """Evaluate a model on the kind of data that it handles."""
    from ..training.storage.folder import DATA

    check_targets(options.data, options.json, options.predictions)
    of_rows = options.data is None or is_table(options.data)
    metrics = tuple(options.metrics or ()) if of_rows else ()
    model, tokenizer, folder, is_classifier = load_model(options, lambda: require_metrics(metrics))
    if is_classifier:
        if options.stride is not None:
            raise UsageError(f"--stride is for texts, but {folder} holds a classifier: leave it out")
        return evaluate_classifier(options, model, tokenizer, folder)
    if is_table(options.data) if options.data is not None else (folder / DATA).exists():
        if options.stride is not None:
            raise UsageError("--stride is for a whole text, not for rows: leave it out")
        return evaluate_language_model(options, model, tokenizer, folder)
    if options.predictions is not None:
        raise UsageError("--predictions is for rows with labels or answers: on a text there is only a loss")
    return evaluate_text(options, model, tokenizer, folder)


def evaluate_text(options: argparse.Namespace, model: Any, tokenizer: Tokenizer, folder: Path) -> int:
    """Print one line: loss, number of tokens, perplexity, bits per byte."""
    from ..data import SequentialBatches, open_tokens
    from ..generation import score
    from ..memory import require_memory
    from ..training import evaluate
    from ..training.storage.folder import TOKENS

    require_memory(model.config, options.batch_size, options.backend, training=False, packed=model.packed)
    with contextlib.ExitStack() as stack:
        if options.data is None:
            tokens = _validation_tokens(folder, options.checkpoint or "best")
        else:
            temporary = stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True))
            _write_tokens(options.data, options.encoding, tokenizer, Path(temporary) / TOKENS)
            tokens = open_tokens(Path(temporary) / TOKENS)
        if options.stride is None:
            loss = evaluate(model, tokens, options.batch_size, progress=True)
        else:
            loss = score(model, tokens, options.stride, batch_size=options.batch_size, progress=True).loss
        count = SequentialBatches(tokens, 1, model.config.block_size).target_count
        size = _size(tokenizer, tokens[1:])
        bits = loss / math.log(2) * count / size if size else None
        words = "" if bits is None else f"; {bits:.3f} bits per byte"
        print(f"loss {loss:.4f} nats per token over {count} tokens (perplexity {np.exp(loss):.2f}){words}")
        if options.json:
            figures = {"loss": loss, "tokens": count, "perplexity": float(np.exp(loss)), "bits_per_byte": bits}
            write_json(options.json, {"task": "text", "data": options.data} | figures)
        del tokens  # Windows can't remove a file that is mapped
    return 0


def _write_tokens(data: str, encoding: str, tokenizer: Tokenizer, path: Path) -> None:
    from ..data.tokens import read_text, write_token_parts
    from ..files import shown
    from ..tokenizers import UnknownCharacterError

    try:
        write_token_parts([read_text(data, encoding=encoding)], tokenizer, path, f"the file {shown(data)}")
    except UnknownCharacterError as error:
        raise UsageError(
            f"the character {error.character!r} at position {error.position} of {shown(data)} is not in the text that "
            "the model was trained on: use another text, or remove the character"
        ) from error


def _validation_tokens(folder: Path, which: str) -> np.ndarray:
    from ..data import open_tokens, split
    from ..exchange import read_whole
    from ..interop.loading import is_run
    from ..training import CheckpointFolder
    from ..training.storage.folder import TOKENS
    from ..training.storage.state import training_config

    def read(place: Path) -> np.ndarray:
        if not is_run(place):
            raise UsageError(
                f"{folder} is not a training run, so it has no validation text: give a text with --data FILE"
            )
        state = CheckpointFolder(place).load(which).state
        config = training_config(state, f"the {which} checkpoint in {folder}")
        return split(open_tokens(place / TOKENS), config.validation_fraction)[1]

    return read_whole(folder, read)


def _size(tokenizer: Any, tokens: np.ndarray, step: int = 1 << 20) -> int:
    """The number of bytes that the tokens decode to, without special tokens, which are not text."""
    parts = (np.asarray(tokens[begin : begin + step]) for begin in range(0, len(tokens), step))
    special = list(tokenizer.special_ids)
    return sum(len(tokenizer.token_bytes(part[~np.isin(part, special)] if special else part)) for part in parts)
