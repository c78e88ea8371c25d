"""llama.cpp's batch interface for benchmarks/serve.py: several greedy texts at once, in a process of its own.

    python benchmarks/serve_llama.py MODEL.gguf SEQUENCES CONTEXT THREADS

Answers lines of JSON {"prompts": [[ids, ...], ...], "tokens": N} with {"times": [[seconds, ...], ...], "ids": ...}:
when each token of each text was there. All prompts go into one batch, then each step is a batch of one token per
text. There is no HTTP. (The server of llama-cpp-python writes one text at a time; that of llama.cpp is not in it.)
"""

from __future__ import annotations

import ctypes
import json
import sys
import time
from typing import Any

import llama_cpp
import numpy as np

_SILENT = llama_cpp.llama_log_callback(lambda *_: None)


class Sequences:
    """A context for `count` texts of at most `context` tokens each."""

    def __init__(self, path: str, count: int, context: int, threads: int) -> None:
        llama_cpp.llama_log_set(_SILENT, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        self.model = llama_cpp.llama_model_load_from_file(path.encode(), llama_cpp.llama_model_default_params())
        settings = llama_cpp.llama_context_default_params()
        settings.n_ctx, settings.n_seq_max = count * context, count
        settings.n_batch = settings.n_ubatch = 512
        settings.n_threads = settings.n_threads_batch = threads
        settings.kv_unified = False  # faster for texts that share no beginning, says its header
        self.context = llama_cpp.llama_init_from_model(self.model, settings)
        assert self.context, f"llama.cpp can't load {path}"
        self.vocab_size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))
        self.batch = llama_cpp.llama_batch_init(512, 0, 1)

    def decode(self, tokens: list[tuple[int, int, int, bool]]) -> list[int]:
        """(id, position, text, whether the next token is wanted), any number -> the likeliest tokens wanted."""
        found = []
        for first in range(0, len(tokens), 512):
            part, batch = tokens[first : first + 512], self.batch
            batch.n_tokens = len(part)
            for i, (token, position, text, wanted) in enumerate(part):
                batch.token[i], batch.pos[i], batch.logits[i] = token, position, wanted
                batch.n_seq_id[i], batch.seq_id[i][0] = 1, text
            assert llama_cpp.llama_decode(self.context, batch) == 0
            found += [self._likeliest(i) for i, (*_, wanted) in enumerate(part) if wanted]
        return found

    def _likeliest(self, place: int) -> int:
        logits = llama_cpp.llama_get_logits_ith(self.context, place)
        return int(np.ctypeslib.as_array(logits, (self.vocab_size,)).argmax())

    def write(self, prompts: list[list[int]], tokens: int) -> dict[str, Any]:
        """`tokens` tokens after each prompt."""
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), False)
        start = time.perf_counter()
        last = [len(prompt) - 1 for prompt in prompts]
        read = [(token, i, text, i == last[text]) for text, ids in enumerate(prompts) for i, token in enumerate(ids)]
        steps, times = [self.decode(read)], [time.perf_counter() - start]
        for step in range(1, tokens):
            steps.append(self.decode([(token, last[i] + step, i, True) for i, token in enumerate(steps[-1])]))
            times.append(time.perf_counter() - start)
        return {"times": [times] * len(prompts), "ids": [list(ids) for ids in zip(*steps, strict=True)]}


def main() -> None:
    path, count, context, threads = sys.argv[1], *map(int, sys.argv[2:])
    sequences = Sequences(path, count, context, threads)
    print("ready", flush=True)
    for line in sys.stdin:
        print(json.dumps(sequences.write(**json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
