"""Who decodes in `generate.py`: tinygpt in each format, llama.cpp, transformers; each a process with the same weights.

A process answers each line "batch prompt tokens" on its standard input with "prefill_seconds seconds_per_token".

    python benchmarks/generate_contenders.py "tinygpt int8" folder-with-the-models
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import tinygpt as tg
from tinygpt import GPT, GPTConfig

SHAPE = GPTConfig(vocab_size=50257, block_size=1024, n_layer=12, n_head=12, n_embd=768)
HEAD, BLOCKS = SHAPE.vocab_size * SHAPE.n_embd, 12 * SHAPE.n_layer * SHAPE.n_embd**2
WEIGHTS = HEAD + BLOCKS  # that a token is multiplied by
OURS: dict[str, dict[str, str]] = {
    "tinygpt float32": {}, "tinygpt bfloat16": {"dtype": "bfloat16"}, "tinygpt int8": {"quantize": "int8"},
    "tinygpt int8 x int8": {"quantize": "int8", "activations": "int8"},
    "tinygpt int4": {"quantize": "int4"}, "tinygpt int4 x int8": {"quantize": "int4", "activations": "int8"},
}  # fmt: skip
LLAMA = {f"llama.cpp {dtype}": f"{dtype}.gguf" for dtype in ("f32", "f16", "q8_0", "q4_0")}
TRANSFORMERS = "transformers float32"


def serve(name: str, folder: Path) -> None:
    """Answer the lines on standard input until it ends."""
    burst = tinygpt_bursts(name, folder) if name in OURS else None
    burst = burst or (llama_bursts(folder / LLAMA[name]) if name in LLAMA else transformers_bursts(folder))
    print("ready", flush=True)
    for line in sys.stdin:
        print(*burst(*map(int, line.split())), flush=True)


def tinygpt_bursts(name: str, folder: Path) -> Any:
    model = GPT.from_pretrained(folder / "gpt2", **OURS[name])

    def burst(batch: int, prompt: int, tokens: int) -> tuple[float, float]:
        idx = prompts(batch, prompt)
        start = time.perf_counter()
        steps = tg.generation.stream(model, idx, tokens + 1, do_sample=False)
        next(steps)
        begin = time.perf_counter()
        for _ in steps:
            pass
        return begin - start, (time.perf_counter() - begin) / max(1, tokens)

    return burst


def llama_bursts(path: Path) -> Any:
    from llama_cpp import Llama

    threads = tg.get_num_threads()
    model = Llama(str(path), n_ctx=1024, n_threads=threads, n_threads_batch=threads, n_batch=512, verbose=False)

    def burst(batch: int, prompt: int, tokens: int) -> tuple[float, float]:
        assert batch == 1
        model.reset()
        start = time.perf_counter()
        model.eval(prompts(1, prompt)[0].tolist())
        begin = time.perf_counter()
        for i in range(tokens):
            model.eval([1000 + i])
        return begin - start, (time.perf_counter() - begin) / max(1, tokens)

    return burst


def transformers_bursts(folder: Path) -> Any:
    import torch
    from transformers import GPT2LMHeadModel

    torch.set_num_threads(tg.get_num_threads())
    model = GPT2LMHeadModel.from_pretrained(folder / "gpt2").eval()

    def seconds(idx: Any, tokens: int) -> float:
        start = time.perf_counter()
        model.generate(
            idx, attention_mask=torch.ones_like(idx), do_sample=False, min_new_tokens=tokens, max_new_tokens=tokens,
            pad_token_id=0,
        )  # fmt: skip
        return time.perf_counter() - start

    def burst(batch: int, prompt: int, tokens: int) -> tuple[float, float]:
        idx = torch.tensor(prompts(batch, prompt))
        first = seconds(idx, 1)
        return first, (seconds(idx, tokens + 1) - first) / max(1, tokens)

    return burst


def prompts(batch: int, length: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, SHAPE.vocab_size, (batch, length))


class Contender:
    def __init__(self, name: str, folder: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, __file__, name, str(folder)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self._answer(name)

    def _answer(self, name: str = "") -> list[str]:
        assert self.process.stdout is not None
        words = self.process.stdout.readline().split()
        if not words:
            raise SystemExit(f"{name} exited without an answer: exit code {self.process.wait()}")
        return words

    def burst(self, batch: int, prompt: int, tokens: int) -> tuple[float, float]:
        assert self.process.stdin is not None
        print(batch, prompt, tokens, file=self.process.stdin, flush=True)
        prefill, step = map(float, self._answer())
        return prefill, step


def take_turns(
    contenders: dict[str, Contender], rounds: int, bursts: Sequence[tuple[int, int, int]], between: Callable[[], object]
) -> dict[str, list[Any]]:
    """Name -> for each of the bursts (batch, prompt, tokens) an array (rounds, 2): seconds of the prefill, seconds per
    token. Every contender takes all bursts in each round, which begins with a call of `between`."""
    from quiet import quietly

    seen: dict[str, list[list[tuple[float, float]]]] = {name: [] for name in contenders}
    for turn in range(rounds + 1):
        if turn:
            quietly(between)
        for name, contender in contenders.items():
            calls = [partial(contender.burst, *burst) for burst in bursts]
            results = [quietly(call) if turn else call() for call in calls]
            if turn:  # the first turn is a warm-up
                seen[name].append(results)
    return {name: list(np.swapaxes(results, 0, 1)) for name, results in seen.items()}


def write_models(folder: Path) -> list[str]:
    """Write the model for all installed contenders; returns their names."""
    model = GPT(SHAPE)
    rng = np.random.default_rng(0)
    for parameter in model.parameters():
        if parameter.ndim == 1:  # biases and norm weights are all zeros or ones in a new model
            parameter.data += 0.02 * rng.standard_normal(parameter.shape, dtype=np.float32)
    model.save_pretrained(folder / "gpt2")
    names = list(OURS)
    if importlib.util.find_spec("llama_cpp") and importlib.util.find_spec("gguf"):
        for name, file in LLAMA.items():  # only the ids count: any tokenizer will do
            tg.interop.save_gguf(model, tg.tokenizers.ByteTokenizer(), folder / file, dtype=name.split()[-1])
        names += LLAMA
    if importlib.util.find_spec("transformers") and importlib.util.find_spec("torch"):
        names.append(TRANSFORMERS)
    return names


def llama_instructions() -> str:
    """The instruction sets llama.cpp was built for, as it reports; it has no switch."""
    if not importlib.util.find_spec("llama_cpp"):
        return "not installed"
    import llama_cpp

    words = llama_cpp.llama_print_system_info().decode()
    return " ".join(re.findall(r"(\w+) = 1", words))


def version(name: str) -> str:
    package = {"llama.cpp": "llama-cpp-python", "transformers": "transformers"}.get(name.split()[0])
    if package is None:
        return name
    try:
        return f"{name} ({package} {importlib.metadata.version(package)})"
    except importlib.metadata.PackageNotFoundError:  # found by PYTHONPATH alone
        return f"{name} ({package})"


if __name__ == "__main__":
    serve(sys.argv[1], Path(sys.argv[2]))
