"""Pre-trained word vectors as the token embeddings of a model.

    found = load_word_vectors(model, tokenizer, "GoogleNews-vectors.bin", project=True)
    print(found)                           # 21,931 of 32,141 words have a vector (68.2 %), ...

A token gets the vector of its word, or of its word in lower case. The words are: the tokens of a WordTokenizer;
characters; the tokens of a BERT vocabulary that do not continue a word; and the BPE tokens that begin with a space,
because any other may be part of a word and have a different meaning. All other rows stay as they were.

Vectors of another width need `project=True`. Wider ones are projected onto the directions of largest norm (a truncated
singular value decomposition, which is PCA without subtracting the mean). Of all matrices of that width, the result
preserves the inner products of the vectors best (Eckart and Young, 1936), and inner products are what an output head
computes with embeddings. Narrower ones fill the first channels, and the others stay as they were.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .. import backends
from ..checks import number
from ..errors import UsageError
from ..tokenizers import BPETokenizer, ByteTokenizer, Tokenizer, WordPieceTokenizer, WordTokenizer
from .vector_files import VectorFile


@dataclass(frozen=True)
class WordVectors:
    """The vectors (n, width), float32, of the tokens `ids` (n,), out of `words` tokens that are words.

    lowered: how many were found in lower case only. kept: the share of the squared norm that a projection kept.
    """

    source: Path
    ids: np.ndarray
    vectors: np.ndarray
    words: int
    lowered: int
    kept: float | None = None

    @property
    def coverage(self) -> float:
        """The share of the words that have a vector."""
        return len(self.ids) / self.words

    def write(self, model: Any) -> None:
        """Copy the vectors into the model's embedding. Call it after each optimizer step to keep them fixed."""
        array = model.wte.weight.data
        library = backends.array_module(array)
        array[library.asarray(self.ids), : self.vectors.shape[1]] = library.asarray(self.vectors, dtype=array.dtype)

    def __str__(self) -> str:
        kept = "" if self.kept is None else f", projected to {self.vectors.shape[1]} numbers that keep {self.kept:.1%}"
        lowered = f", {self.lowered:,} of them in lower case" if self.lowered else ""
        return f"{len(self.ids):,} of {self.words:,} words have a vector ({self.coverage:.1%}){lowered}{kept}"


def load_word_vectors(
    model: Any,
    tokenizer: Tokenizer,
    path: str | os.PathLike[str],
    *,
    project: bool = False,
    scale: float = 1.0,
    freeze: bool = False,
) -> WordVectors:
    """Copy the vectors in a file to the rows of `model.wte` whose tokens are their words. Returns what was found.

    model: None to look only. path: word2vec (binary or text), fastText's .vec, or GloVe, plain or gzipped.
    project: also accept vectors of another width, as the module describes. scale: a factor for all vectors, which are
    often longer than the embeddings of a new model, whose elements have a standard deviation of 0.02.
    freeze: do not train any row of `wte` further, including rows without a vector, and the head if it is tied. To
    freeze only the rows found, call `write(model)` of the result after each step instead.

    Raises UsageError, and then leaves the model as it was.
    """
    scale = number("load_word_vectors", "scale", scale, above=0)
    _check_model(model, tokenizer)
    words = _words(tokenizer)
    if not words:
        raise UsageError(f"load_word_vectors: a tokenizer of type {tokenizer.type} has no words")
    with VectorFile(path) as file:
        width = file.width
        if model is not None and width != model.config.n_embd and not project:
            raise UsageError(
                f"load_word_vectors: the vectors in {path} have {width} numbers, and the model has "
                f"{model.config.n_embd} channels: project them (project=True, --project), or use n_embd={width}"
            )
        found = _read(file, {*words.values(), *(word.lower() for word in words.values())})
    exact = [(token, found[word]) for token, word in words.items() if word in found]
    lower = [
        (token, found[low]) for token, word in words.items() if word not in found and (low := word.lower()) in found
    ]
    rows = sorted([*exact, *lower], key=lambda row: row[0])
    if not rows:
        raise UsageError(f"load_word_vectors: none of the {len(words)} words of the tokenizer is in {path}")
    vectors, kept = np.stack([vector for _, vector in rows]) * np.float32(scale), None
    if model is not None and width > model.config.n_embd:
        vectors, kept = _projected(vectors, model.config.n_embd)
    ids = np.array([token for token, _ in rows], dtype=np.int64)
    result = WordVectors(Path(path), ids, vectors, len(words), len(lower), kept)
    if model is not None:
        result.write(model)
        model.wte.weight.requires_grad = model.wte.weight.requires_grad and not freeze
    return result


def _check_model(model: Any, tokenizer: Tokenizer) -> None:
    if model is None:
        return
    if model.packed:
        raise UsageError(f"load_word_vectors: a model packed into {model.packed} can't take vectors: load it unpacked")
    if tokenizer.ids_of_texts > model.config.vocab_size:
        raise UsageError(
            f"load_word_vectors: the tokenizer has {tokenizer.vocab_size} tokens, but the model "
            f"{model.config.vocab_size}: they do not belong together"
        )


def _words(tokenizer: Tokenizer) -> dict[int, str]:
    """Token -> its word, for the tokens that are words."""
    if isinstance(tokenizer, ByteTokenizer):
        return {}
    pieces = {
        number: tokenizer.token_bytes([number]).decode("utf-8", errors="replace")
        for number in range(tokenizer.vocab_size)
        if number not in tokenizer.special_ids
    }
    if isinstance(tokenizer, BPETokenizer):
        pieces = {number: piece[1:] for number, piece in pieces.items() if piece.startswith(" ")}
    elif isinstance(tokenizer, WordPieceTokenizer):
        tokens = tokenizer.vocabulary.tokens
        pieces = {number: piece for number, piece in pieces.items() if piece == tokens[number]}
    elif isinstance(tokenizer, WordTokenizer):
        del pieces[tokenizer.unknown_id]
    return {number: piece for number, piece in pieces.items() if piece.strip() == piece != "" and "\ufffd" not in piece}


def _read(file: VectorFile, wanted: set[str]) -> dict[str, np.ndarray]:
    """The vectors of these words; for a word that occurs twice, the first one."""
    found: dict[str, np.ndarray] = {}
    for word, stored in file:
        if word in wanted and word not in found:
            found[word] = file.numbers(stored)
    return found


def _projected(vectors: np.ndarray, width: int) -> tuple[np.ndarray, float]:
    """vectors (n, D) -> (n, width), and the share of the sum of their squares that is left."""
    exact = vectors.astype(np.float64)
    squares, directions = np.linalg.eigh(exact.T @ exact)  # (D,) ascending, (D, D)
    best = directions[:, ::-1][:, :width]
    # The sign of a direction is arbitrary, and may differ between libraries: let its largest number be positive.
    best = best * np.sign(best[np.abs(best).argmax(axis=0), np.arange(width)])
    total = float(squares.clip(0).sum())
    kept = float(squares[::-1][:width].clip(0).sum()) / total if total else 1.0
    return (exact @ best).astype(np.float32), kept
