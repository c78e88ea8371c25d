"""Decoding one token at a time, with a cache of the keys and values of earlier tokens.

    decoder = Decoder(model, capacity=200)          # capacity: the maximum number of tokens in a row
    logits = decoder.prefill(prompts)               # B arrays of ids, of any lengths -> (B, V)
    logits = decoder.step(ids)                      # the next token of each row, (B,) -> (B, V)
    decoder.select([0, 0, 1])                       # copy, reorder or drop rows, for beams or several samples
    logits = decoder.join(prompt, copies=2)         # two more rows, (T,) -> (1, V); the others stay as they are
    logits = decoder.append(0, ids)                 # several tokens more in one row, (T,) -> (1, V)
    decoder.truncate([9, 9])                        # forget each row's tokens beyond the ninth
    reader = decoder.reader(prompt)                 # to read a prompt in pieces before it joins: `prompt_reader`

All call `model.hidden(idx, cache)`: `prefill`, `join` and `append` on each text separately, and `step` on one token of
every row. For a plain GPT there are faster ways: prompts are read together (`joint_prompts`), and a step is one
compiled call for each block (`one_pass`). (On a GPU, `prefill` reads prompts together, padded, and a step is a
CUDA graph.) With the compiled kernels, in float32, row b of both does not depend on the other rows, bit for bit; with
the reference kernels it is the same up to rounding.
There is no padding: row b is its tokens 0 .. lengths[b] - 1.

Position embeddings are learned, for positions below block_size only, so nothing in the cache is valid after the window
slides. A step on a full row is an error; to continue, prefill with the end of the text.

A user-defined layer may need the whole text and not only the new token. Unless it says otherwise (`cache` is a
parameter of its `forward`, or it is `positionwise`), `decoder_for` returns a decoder with the same interface that calls
the model on whole texts (`stepper`).

Memory: 2 n_layer n_embd numbers for each row and each token of capacity, so give a capacity no larger than needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from .. import backends
from ..errors import RangeError, ShapeError, UsageError
from ..graph import no_grad
from ..language_model import LanguageModel
from ..nn import Embedding
from ..nn.known import is_known, keeps
from ..nn.packed import PackedEmbedding
from ..ops.cached_attention import KeyValueCache
from ..ops.packed import few_rows_product_transposed
from ..tensor import Tensor
from ..typing import Array, Ids
from .decoder_checks import checked_capacity, flat_integers, require_cache
from .graphed_decode import GraphedDecode
from .joint_prompts import JointPrompts, joint_prompts
from .one_pass import one_pass
from .padded_prompts import read_padded, worth_padding
from .prompt_reader import PromptReader, read_together

if TYPE_CHECKING:
    from ..gpt import GPT
    from .token_sampler import Draw

Joining = tuple[PromptReader, int]  # and how many rows are to hold its prompt


class Decoder:
    """Decodes B texts in parallel. It shares the model's weights, so later changes to them take effect.

    Raises UsageError for a model that does not support a cache; use `decoder_for` if it may not.
    """

    cache: Sequence[KeyValueCache] = ()  # of each block; empty until there is room for rows
    joint: JointPrompts | None = None  # reads several prompts in one pass
    _cached = True  # whether it calls the model on new tokens alone

    def __init__(self, model: GPT, capacity: int | None = None) -> None:
        self.model, self.capacity = model, checked_capacity(model, capacity)
        self.lengths = np.zeros(0, np.int64)  # (B,) number of tokens in each row
        self._start()

    def reserve(self, rows: int) -> None:
        """Take memory for `rows` rows at once, so that `join` never has to copy what is there in order to grow."""
        self._grow(max(rows, len(self.lengths)))
        self._grow(len(self.lengths))

    def _start(self) -> None:
        require_cache(self.model)

    def prefill(self, prompts: Sequence[Ids]) -> Array:
        """Replace all rows by `prompts`, B arrays of ids (T_b,) with 1 <= T_b <= capacity -> logits (B, V).

        Raises ShapeError, DtypeError, RangeError before anything changes.
        """
        rows = [self.model.check_ids([prompt]) for prompt in prompts]  # (1, T_b) each
        lengths = np.array([row.shape[1] for row in rows], np.int64)
        if len(rows) and lengths.max() > self.capacity:
            raise ShapeError(
                f"Decoder.prefill: a prompt of {lengths.max()} tokens is longer than the capacity, {self.capacity}"
            )
        self.lengths = np.zeros(0, np.int64)  # if this is interrupted, the decoder has no rows
        logits = self._begin(rows)
        self.lengths = lengths
        return logits

    def join(self, prompt: Ids | PromptReader, copies: int = 1) -> Array:
        """Append `copies` rows that hold `prompt`, ids (T,), 1 <= T <= capacity -> logits (1, V) of the token after it.

        prompt: ids, or a `reader` of them; what it has not read yet is read now, once. The next step overwrites the
        returned array. Raises ShapeError, DtypeError, RangeError before anything changes.
        """
        return self.join_all([(prompt if isinstance(prompt, PromptReader) else self.reader(prompt), copies)])

    def join_all(self, joining: Sequence[Joining]) -> Array:
        """`join` for several readers at once, (reader, copies) each -> logits (len(joining), V), in their order."""
        read_together([(reader, reader.rest) for reader, _ in joining])
        try:
            logits = self._append(joining)
        except BaseException:
            self._grow(len(self.lengths))  # without the new rows
            raise
        new = [np.full(copies, reader.size, np.int64) for reader, copies in joining]
        self.lengths = np.concatenate([self.lengths, *new])
        return logits

    def reader(self, prompt: Ids) -> PromptReader:
        """To read `prompt`, ids (T,), 1 <= T <= capacity, in pieces. Raises ShapeError, DtypeError, RangeError."""
        self._open()
        reader = PromptReader(self.model, prompt, self._cached, self.joint)
        if reader.size > self.capacity:
            raise ShapeError(
                f"Decoder.join: a prompt of {reader.size} tokens is longer than the capacity, {self.capacity}"
            )
        return reader

    def append(self, row: int, ids: Ids) -> Array:
        """Append ids (T,), T >= 1, to one row -> logits (1, V) of the token after them; the others stay as they are.

        The next step overwrites the returned array. Raises UsageError if they don't fit, ShapeError, DtypeError,
        RangeError before anything changes.
        """
        new = self.model.check_ids([ids])  # (1, T)
        if not 0 <= row < len(self.lengths):
            raise RangeError(f"Decoder.append: row must be in 0 .. {len(self.lengths) - 1}, not {row}")
        if self.lengths[row] + new.shape[1] > self.capacity:
            raise UsageError(
                f"Decoder.append: {new.shape[1]} tokens don't fit into row {row}: it has {self.lengths[row]}, and "
                f"the capacity is {self.capacity}"
            )
        logits = self._continue(row, new)
        self.lengths = self.lengths + new.shape[1] * (np.arange(len(self.lengths)) == row)
        return logits

    def truncate(self, lengths: Ids) -> None:
        """Keep the first lengths[b] tokens of row b, at most as many as it has. Raises ShapeError, RangeError."""
        lengths = flat_integers("Decoder.truncate: lengths", lengths)
        if lengths.shape != self.lengths.shape:
            raise ShapeError(f"Decoder.truncate: expected {len(self.lengths)} lengths, one a row, not {len(lengths)}")
        if (lengths < 0).any() or (lengths > self.lengths).any():
            raise RangeError(f"Decoder.truncate: the rows have {self.lengths} tokens, so {lengths} can't be kept")
        self._shorten(lengths)
        self.lengths = lengths.astype(np.int64)

    def step(self, ids: Ids, draw: Draw | None = None) -> Array:
        """Append ids (B,), one token to each row -> logits (B, V) of the token after it.

        draw: chooses the next token of each row. Where a step is a CUDA graph, it is a part of it, and the result
        is the ids (B,) that it returns.
        The next step overwrites the returned array. Raises UsageError if a row is full, ShapeError, RangeError.
        """
        ids = flat_integers("Decoder.step: ids", ids)
        if len(ids) != len(self.lengths):
            raise ShapeError(f"Decoder.step: expected {len(self.lengths)} ids, one for each row, not {len(ids)}")
        if len(ids):
            V = self.model.config.vocab_size
            if ids.min() < 0 or ids.max() >= V:
                raise RangeError(f"Decoder.step: ids must be in 0 .. {V - 1}, not {ids.min()} .. {ids.max()}")
            if self.lengths.max() >= self.capacity:
                raise UsageError(f"Decoder.step: row {self.lengths.argmax()} is full: it has {self.capacity} tokens")
        self._open()
        logits = self._extend(ids, draw)
        self.lengths = self.lengths + 1
        return logits

    def select(self, rows: Ids) -> None:
        """Row r becomes a copy of old row rows[r]. rows: (R,) integers below B, in any order, with repeats.

        Raises ShapeError, RangeError before anything changes.
        """
        rows, B = flat_integers("Decoder.select: rows", rows), len(self.lengths)
        if len(rows) and (rows.min() < 0 or rows.max() >= B):
            raise RangeError(f"Decoder.select: rows must be in 0 .. {B - 1}, not {rows.min()} .. {rows.max()}")
        self._open()
        self._reorder(rows)
        self.lengths = self.lengths[rows]

    # With a cache -----------------------------------------------------------------------------------

    def _open(self) -> None:
        """Make room for rows that come one by one, unless there is. `prefill` makes its own."""
        if not self.cache:
            self._make_room(0)

    def _make_room(self, B: int) -> None:
        model = self.model
        self.cache = model.new_cache(B, self.capacity)
        self.memory = [(layer.keys, layer.values) for layer in self.cache]  # the rows of `cache`, and room for more
        self.like = model.parameters()[0].data
        self.logits = backends.array_module(self.like).empty((B, model.config.vocab_size), self.like.dtype)
        self.one_pass = one_pass(model)
        self.joint = joint_prompts(self.one_pass)
        self.joint_prefill = on_gpu = backends.name_of(self.like) == "cupy"
        self.graphed = GraphedDecode(self._compute, self._addresses) if on_gpu and self.one_pass is not None else None
        embedding, self.head_matrix = model.output_embedding, None  # None: the head is called
        if keeps(model, LanguageModel, "head") and is_known(embedding, Embedding, PackedEmbedding):
            self.head_matrix = embedding.matrix

    def _begin(self, rows: list[Array]) -> Array:
        self._make_room(len(rows))
        caches = [[layer.row(b) for layer in self.cache] for b in range(len(rows))]
        with no_grad(), self.model.evaluating(), self.model.compute_in("float32"):
            if self.joint is not None:
                return self._head(self.joint([row[0] for row in rows], caches))
            if self.joint_prefill and worth_padding(rows):
                return self._head(read_padded(self.model, rows, self.cache))
            pairs = zip(rows, caches, strict=True)
            return self._head([self.model.hidden(row, cache).data[0, -1] for row, cache in pairs])

    def _append(self, joining: Sequence[Joining]) -> Array:
        B = len(self.lengths)
        self._grow(B + sum(copies for _, copies in joining))
        with no_grad(), self.model.evaluating(), self.model.compute_in("float32"):
            logits = self._head([reader.hidden for reader, _ in joining])
        for reader, copies in joining:
            T, rows = reader.size, slice(B, B + copies)
            for layer, read in zip(self.cache, reader.cache or (), strict=True):
                layer.keys[rows, :, :T], layer.values[rows, :, :T] = read.keys[:, :, :T], read.values[:, :, :T]
            B += copies
        return logits

    def _grow(self, B: int) -> None:
        """Let the cache have B rows: those that are there, and empty ones, in the memory that is reserved if it can."""
        self._open()
        if len(self.memory[0][0]) < B:
            old, n = self.cache, len(self.lengths)
            self.memory = [(layer.keys, layer.values) for layer in self.model.new_cache(B, self.capacity)]
            for (keys, values), layer in zip(self.memory, old, strict=True):
                keys[:n], values[:n] = layer.keys[:n], layer.values[:n]
        lengths = np.zeros(B, np.int64)
        lengths[: len(self.lengths)] = self.lengths[:B]
        pairs = zip(self.memory, self.cache, strict=True)
        self.cache = [KeyValueCache(keys[:B], values[:B], lengths, layer.last_only) for (keys, values), layer in pairs]

    def _continue(self, row: int, new: Array) -> Array:
        for layer in self.cache:
            layer.lengths = self.lengths
        with no_grad(), self.model.evaluating(), self.model.compute_in("float32"):
            hidden = self.model.hidden(new, [layer.row(row) for layer in self.cache])
            return self._head([hidden.data[0, -1]])

    def _shorten(self, lengths: np.ndarray) -> None:
        """Nothing to do: what lies beyond the end of a row is never read."""

    def _extend(self, ids: np.ndarray, draw: Draw | None = None) -> Array:
        if not len(ids):
            return self.logits
        if self.graphed is None:
            return self._compute(ids, self.lengths)
        for layer in self.cache:
            layer.lengths = self.lengths
        return self.graphed(ids, self.lengths, draw if draw is not None and draw.works(self.like) else None)

    def _compute(self, ids: np.ndarray, lengths: np.ndarray) -> Array:
        """The logits after ids (B,), one token for each row; each row has `lengths` (B,) tokens in the cache."""
        places = lengths if isinstance(self.like, np.ndarray) else backends.move(lengths, "cupy")
        for layer in self.cache:
            layer.lengths, layer.places = lengths, places
        if self.one_pass is not None:
            return self._head(self.one_pass(ids, self.cache))
        with no_grad(), self.model.evaluating(), self.model.compute_in("float32"):
            return self._head(self.model.hidden(ids[:, None], self.cache).data[:, -1])

    def _addresses(self) -> tuple[int, ...]:
        """Where the arrays are that a step reads and writes; they move when rows are added or reordered."""
        arrays = [array for layer in self.cache for array in (layer.keys, layer.values)]
        return tuple([backends.address(array) for array in (*arrays, self.logits)])

    def _head(self, rows: Array | list[Array]) -> Array:
        """The output of the last LayerNorm, (B, C) or a list of its rows -> logits (B, V)."""
        if not len(rows):
            return self.logits
        h = backends.array_module(self.like).stack(rows) if isinstance(rows, list) else rows
        if self.head_matrix is None:
            return self.model.head(Tensor(h)).data
        if len(self.logits) != len(h):
            self.logits = backends.array_module(h).empty((len(h), self.model.config.vocab_size), h.dtype)
        return few_rows_product_transposed(h, self.head_matrix, self.logits)

    def _reorder(self, rows: np.ndarray) -> None:
        for layer in self.cache:
            layer.lengths = self.lengths
            layer.select(rows)
        if len(rows) > len(self.lengths):  # the cache has moved to new arrays
            self.memory = [(layer.keys, layer.values) for layer in self.cache]
        if len(rows) != len(self.logits):
            self.logits = self.logits[:0]
