"""A decoding step as a CUDA graph: one launch for each token, instead of about ten for each layer.

    step = GraphedDecode(compute, addresses)
    logits = step(ids, lengths)                   # compute(ids, lengths), replayed where possible
    ids = step(ids, lengths, draw)                # draw(compute(ids, lengths)), still a single launch

Python takes longer to launch the kernels of a decoding step than the GPU takes to run them: GPT-2's weights are read in
a tenth of a millisecond, and its 120 launches take five. What changes from step to step is in memory: ids, lengths and
the random numbers of the draw, which are copied to their places before each replay, and the cache of keys and values,
which the kernels extend where the lengths say. So a graph is valid as long as the arrays stay where they are;
`addresses` tells where.

The first steps of a text run eagerly, since a short text is not worth a graph. Then one is recorded, replayed and
compared with the eager step, bit for bit (a step that is repeated writes the same keys and values to the same places).
If anything fails, the text continues without graphs.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import backends
from ..backends.cupy_graph import CaptureError, Recorder

if TYPE_CHECKING:
    from .token_sampler import Draw

EAGER = 4  # steps before a graph is recorded, which takes about as long as four


class GraphedDecode:
    """`step(ids, lengths)` is `compute(ids, lengths)` or, with `draw`, `draw` of that: an array that the next step may
    overwrite.

    addresses: returns what must not change while a graph is used.
    """

    def __init__(self, compute: Callable[[np.ndarray, np.ndarray], Any], addresses: Callable[[], Hashable]) -> None:
        self.compute, self.addresses = compute, addresses
        self.recorder: Any = None
        self.graph: Any = None
        self.recorded: Hashable = None  # the batch size, draw and addresses of the graph
        self.results: tuple[Any, ...] = ()  # what a replay writes: logits, and ids if it draws
        self.runs = 0  # eager ones of the same kind
        self.failed = False
        self.replays = 0

    def __call__(self, ids: np.ndarray, lengths: np.ndarray, draw: Draw | None = None) -> Any:
        if self.failed:
            return self._eager(ids, lengths, draw)[-1]
        kind = (len(ids), None if draw is None else draw.settings, self.addresses())
        if kind != self.recorded:
            self.recorded, self.graph, self.results, self.runs = kind, None, (), 0
        if self.graph is not None:
            return self._replay(ids, lengths, draw)[-1]
        self.runs += 1
        if self.runs <= EAGER:
            return self._eager(ids, lengths, draw)[-1]
        try:
            return self._record(ids, lengths, draw)[-1]
        except Exception:  # any error of CUDA and its libraries: if graphs are not the cause, it recurs
            self.failed, self.graph, self.recorder = True, None, None
            return self._eager(ids, lengths, draw)[-1]

    def _eager(self, ids: np.ndarray, lengths: np.ndarray, draw: Draw | None) -> tuple[Any, ...]:
        logits = self.compute(ids, lengths)
        return (logits,) if draw is None else (logits, draw(logits))

    def _replay(self, ids: np.ndarray, lengths: np.ndarray, draw: Draw | None) -> tuple[Any, ...]:
        self.graph.replay((ids, lengths) if draw is None else (ids, lengths, draw.number), 0)
        self.replays += 1
        return self.results

    def _record(self, *step: Any) -> tuple[Any, ...]:
        """step: ids, lengths and the draw or None."""
        ids, lengths, draw = step
        if self.recorder is None:
            self.recorder = Recorder()
        self.recorder.fill((ids, lengths) if draw is None else (ids, lengths, draw.number))
        with self.recorder.warm_up():
            expected = [result.copy() for result in self._eager(*step)]
        made: list[Any] = []
        self.graph = self.recorder.capture(lambda: made.extend(self._eager(*step)), 0)
        self.results = tuple(made)
        replayed = self._replay(*step)
        for result, wanted in zip(replayed, expected, strict=True):
            same = backends.array_module(result).array_equal(result, wanted, equal_nan=result.dtype.kind == "f")
            if not bool(same):
                raise CaptureError("a replayed step did not give the same bits as an eager one")
        return replayed
