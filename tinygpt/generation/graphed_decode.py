"""A decoding step as a CUDA graph: one launch for each token, instead of about ten for each layer.

    step = GraphedDecode(compute, addresses)
    logits = step(ids, lengths)                   # compute(ids, lengths), replayed where possible

Python takes longer to launch the kernels of a decoding step than the GPU to run them: GPT-2's weights are read in a
tenth of a millisecond, and its 120 launches take five. What changes from step to step is in memory: ids and lengths,
which are copied to their places before each replay, and the cache of keys and values, which the kernels extend where
the lengths say. So a graph is right as long as the arrays stay where they are; `addresses` tells where.

The first steps of a text run eagerly, since a short text is not worth a graph. Then one is recorded, replayed and
compared with the eager step, bit for bit (a step that is repeated writes the same keys and values to the same places).
If anything fails, the text continues without graphs.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import numpy as np

from .. import backends
from ..backends.cupy_graph import CaptureError, Recorder

EAGER = 4  # steps before a graph is recorded, which takes about as long as four


class GraphedDecode:
    """`step(ids, lengths)` is `compute(ids, lengths)`, an array that the next step may overwrite.

    addresses: returns what must not change while a graph is used.
    """

    def __init__(self, compute: Callable[[np.ndarray, np.ndarray], Any], addresses: Callable[[], Hashable]) -> None:
        self.compute, self.addresses = compute, addresses
        self.recorder: Any = None
        self.graph: Any = None
        self.recorded: Hashable = None  # for which batch size and addresses
        self.logits: Any = None  # what a replay writes
        self.runs = 0  # eager ones of the same kind
        self.failed = False
        self.replays = 0

    def __call__(self, ids: np.ndarray, lengths: np.ndarray) -> Any:
        if self.failed:
            return self.compute(ids, lengths)
        kind = (len(ids), self.addresses())
        if kind != self.recorded:
            self.recorded, self.graph, self.logits, self.runs = kind, None, None, 0
        if self.graph is not None:
            return self._replay(ids, lengths)
        self.runs += 1
        if self.runs <= EAGER:
            return self.compute(ids, lengths)
        try:
            return self._record(ids, lengths)
        except Exception:  # any error of CUDA and its libraries: without graphs it shows again, if it is not theirs
            self.failed, self.graph, self.recorder = True, None, None
            return self.compute(ids, lengths)

    def _replay(self, ids: np.ndarray, lengths: np.ndarray) -> Any:
        self.graph.replay((ids, lengths), 0)
        self.replays += 1
        return self.logits

    def _record(self, ids: np.ndarray, lengths: np.ndarray) -> Any:
        if self.recorder is None:
            self.recorder = Recorder()
        self.recorder.fill((ids, lengths))
        with self.recorder.warm_up():
            expected = self.compute(ids, lengths).copy()
        made: list[Any] = []
        self.graph = self.recorder.capture(lambda: made.append(self.compute(ids, lengths)), 0)
        self.logits = made[0]
        replayed = self._replay(ids, lengths)
        if not bool(backends.array_module(replayed).array_equal(replayed, expected, equal_nan=True)):
            raise CaptureError("a replayed step did not give the same bits as an eager one")
        return replayed
