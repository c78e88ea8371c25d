"""Decoding speed of tinygpt, llama.cpp and transformers, on a model of GPT-2's shape with random weights.

    python benchmarks/generate.py [--rounds 5] [--tokens 48] [--only decode prefill batch load quality]

Each contender is a separate process with the same weights. They take turns, one burst each, so that if the machine
slows down, all of them slow down, and the figures are medians over the rounds. A burst is a greedy continuation of a
prompt, after a prefill that is timed separately. All contenders use the same number of threads. Those that are not
installed are left out, with a message: llama.cpp (packages llama-cpp-python and gguf), transformers with PyTorch.

The lower bound: a token needs all weights once (except the position embeddings), so its time is at least their size
divided by the read bandwidth of all threads, measured in this run. Quality is measured on a small model trained here on
Shakespeare, because the perplexity of random weights means nothing.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

import tinygpt as tg
from tinygpt import GPT, GPTConfig

SHAPE = GPTConfig(vocab_size=50257, block_size=1024, n_layer=12, n_head=12, n_embd=768)
PARTS = ("decode", "prefill", "batch", "load", "quality")
OURS: dict[str, dict[str, str]] = {
    "tinygpt float32": {}, "tinygpt bfloat16": {"dtype": "bfloat16"}, "tinygpt int8": {"quantize": "int8"},
    "tinygpt int8 x int8": {"quantize": "int8", "activations": "int8"},
    "tinygpt int4": {"quantize": "int4"}, "tinygpt int4 x int8": {"quantize": "int4", "activations": "int8"},
}  # fmt: skip
LLAMA = {f"llama.cpp {dtype}": f"{dtype}.gguf" for dtype in ("f32", "f16", "q8_0", "q4_0")}
TRANSFORMERS = "transformers float32"
# (ours, theirs, target ratio)
AIMS = (
    ("tinygpt float32", "llama.cpp f32", 1.2),
    ("tinygpt float32", TRANSFORMERS, 3.0),
    ("tinygpt bfloat16", "llama.cpp f16", 1.1),
    ("tinygpt int8", "llama.cpp q8_0", 1.2),
    ("tinygpt int8 x int8", "llama.cpp q8_0", 1.2),  # which rounds the activations too
    ("tinygpt int4", "llama.cpp q4_0", 1.2),
    ("tinygpt int4 x int8", "llama.cpp q4_0", 1.2),  # as above
)


# The contenders. Each process answers lines "batch prompt tokens" with "prefill_seconds seconds_per_token".


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
            [sys.executable, __file__, "--serve", name, "--folder", str(folder)],
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


def take_turns(contenders: dict[str, Contender], rounds: int, batch: int, prompt: int, tokens: int) -> dict[str, Any]:
    """Name -> medians (prefill seconds, seconds per token)."""
    seen: dict[str, list[tuple[float, float]]] = {name: [] for name in contenders}
    for turn in range(rounds + 1):
        for name, contender in contenders.items():
            result = contender.burst(batch, prompt, tokens)
            if turn:  # the first turn is a warm-up
                seen[name].append(result)
    return {name: tuple(map(statistics.median, zip(*results, strict=True))) for name, results in seen.items()}


# The weights, in each contender's format.


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


# The tables.


def decode_table(contenders: dict[str, Contender], rounds: int, tokens: int, bandwidth: float) -> None:
    found = take_turns(contenders, rounds, 1, 16, tokens)
    print(f"\n## One sequence, {tokens} tokens after a prompt of 16\n")
    print("| contender | ms a token | tokens/s | weights read, GB/s | of the read bandwidth |")
    print("|---|---|---|---|---|")
    for name, (_, step) in found.items():
        rate = bytes_per_token(name) / step
        print(f"| {name} | {1e3 * step:.2f} | {1 / step:.1f} | {rate / 1e9:.1f} | {rate / bandwidth:.0%} |")
    print("\n| ratio | measured | aim |\n|---|---|---|")
    for ours, theirs, aim in AIMS:
        if theirs in found and ours in found:
            print(f"| {ours} over {theirs} | {found[theirs][1] / found[ours][1]:.2f} | {aim} |")
    if "tinygpt float32" in found:
        share = bytes_per_token("tinygpt float32") / found["tinygpt float32"][1] / bandwidth
        print(f"| tinygpt float32 over the read bandwidth | {share:.2f} | 0.6 |")


def bytes_per_token(name: str) -> float:
    """Bytes of weights that a token needs; q8_0, q4_0 and int4 have a 16-bit scale for every 32. With 4 bits, the head
    has 8."""
    head, blocks = SHAPE.vocab_size * SHAPE.n_embd, 12 * SHAPE.n_layer * SHAPE.n_embd**2
    each = {"float32": 4, "f32": 4, "bfloat16": 2, "f16": 2, "int8": 1, "q8_0": 34 / 32}
    each["int4"] = each["q4_0"] = 18 / 32
    kind = name.split()[1]
    return each[kind] * blocks + each[{"int4": "int8", "q4_0": "q8_0"}.get(kind, kind)] * head


def prefill_table(contenders: dict[str, Contender], rounds: int) -> None:
    found = take_turns(contenders, rounds, 1, 256, 0)
    print("\n## Prefill of 256 tokens\n\n| contender | ms | tokens/s |\n|---|---|---|")
    for name, (prefill, _) in found.items():
        print(f"| {name} | {1e3 * prefill:.0f} | {256 / prefill:.0f} |")
    if {"llama.cpp f32", "tinygpt float32"} <= found.keys():
        ratio = found["llama.cpp f32"][0] / found["tinygpt float32"][0]
        print(f"\ntinygpt float32 over llama.cpp f32: {ratio:.2f} (aim: 1.3)")


def batch_table(contenders: dict[str, Contender], rounds: int, tokens: int) -> None:
    ours = {name: contenders[name] for name in OURS if name in contenders}
    one, eight = (take_turns(ours, rounds, batch, 16, tokens) for batch in (1, 8))
    print(f"\n## A batch of 8, {tokens} tokens after prompts of 16\n")
    print("| contender | tokens/s, one sequence | tokens/s, eight | ratio | aim |\n|---|---|---|---|---|")
    for name in ours:
        a, b = 1 / one[name][1], 8 / eight[name][1]
        print(f"| {name} | {a:.1f} | {b:.1f} | {b / a:.2f} | 6 |")


LOAD = """
import sys, time
import numpy, tinygpt

def peak():  # not getrusage: its peak includes the parent process
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM:"))

before = peak()
start = time.perf_counter()
model = tinygpt.GPT.from_pretrained(sys.argv[1], **eval(sys.argv[2]))
print(time.perf_counter() - start, 1024 * (peak() - before))
"""


def load_table(folder: Path, rounds: int) -> None:
    weights = (folder / "gpt2" / "model.safetensors").stat().st_size
    print(f"\n## Loading: {weights / 1e6:.0f} MB of float32 weights, from a warm disk\n")
    print("| as | seconds | peak memory, of the file's size | aim |\n|---|---|---|---|")
    for name, options in OURS.items():
        seen = []
        for _ in range(rounds):
            command = [sys.executable, "-c", LOAD, str(folder / "gpt2"), repr(options)]
            seen.append(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split())
        seconds = statistics.median(float(words[0]) for words in seen)
        peak = statistics.median(float(words[1]) for words in seen)
        aim = "under 1 s, under 1.2" if name == "tinygpt float32" else ""
        print(f"| {name} | {seconds:.2f} | {peak / weights:.2f} | {aim} |")


def quality_table(folder: Path, steps: int) -> None:
    """Train a model, and print its perplexity in each format."""
    from tinygpt.data import open_tokens, shakespeare, split, write_tokens
    from tinygpt.tokenizers import CharTokenizer

    corpus = shakespeare()
    tokenizer = CharTokenizer.from_text(tg.data.read_text(corpus.path))
    write_tokens(corpus.path, tokenizer, folder / "tokens.npy")
    train, validation = split(open_tokens(folder / "tokens.npy"), 0.1)
    settings = {"vocab_size": tokenizer.vocab_size, "block_size": 64, "n_layer": 4, "n_head": 4, "n_embd": 128}
    model = GPT(GPTConfig(**settings))
    optimizer = tg.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.99), weight_decay=0.1)
    batches = tg.data.RandomBatches(train, batch_size=12, block_size=64, seed=0)
    for step in range(steps):
        loss = model.loss(*batches.batch(step))
        loss.backward()
        tg.optim.clip_grad_norm(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    model.save_pretrained(folder / "trained")
    print(f"\n## Perplexity on {len(validation):,} characters, after {steps} steps of training `tiny` on Shakespeare\n")
    print("| weights | perplexity | over float32 | aim |\n|---|---|---|---|")
    base = None
    grouped = {f"{name}, groups of 32": o for name, o in OURS.items() if o.get("quantize") == "int8"}
    for name, options in {**OURS, **grouped}.items():
        if name in OURS:
            packed = GPT.from_pretrained(folder / "trained", **options)
        else:
            packed = GPT.from_pretrained(folder / "trained")
            packed.pack("int8", group=32, activations=options.get("activations"))
        perplexity = float(np.exp(tg.training.evaluate(packed, validation, 32)))
        base = base or perplexity
        aim = "under 1.01" if name in OURS and "quantize" in OURS[name] else ""
        print(f"| {name} | {perplexity:.4f} | {perplexity / base:.5f} | {aim} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="bursts per contender (default: 7)")
    parser.add_argument("--tokens", type=int, default=48, help="tokens per burst (default: 48)")
    parser.add_argument("--train-steps", type=int, default=1000, help="steps for the perplexity model (default: 1000)")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="which tables (default: all)")
    parser.add_argument("--contenders", nargs="+", metavar="WORD", default=[""], help="those whose names have a word")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.serve, options.folder)
        return
    import machine

    bandwidth = machine.read_bandwidth()
    if bandwidth is None:
        raise SystemExit("this benchmark needs the compiled extension: pip install -e . with a C compiler")
    print(f"{machine.headline()}; all threads read {bandwidth / 1e9:.1f} GB/s from memory")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        installed = write_models(folder)
        names = [name for name in installed if any(word in name for word in options.contenders)]
        missing = [name for name in (*LLAMA, TRANSFORMERS) if name not in installed]
        print(
            f"Contenders: {', '.join(map(version, names))}"
            + (f"; not installed: {', '.join(missing)}" if missing else "")
        )
        if set(options.only) & {"decode", "prefill", "batch"}:
            contenders = {name: Contender(name, folder) for name in names}
            if "decode" in options.only:
                decode_table(contenders, options.rounds, options.tokens, bandwidth)
            if "prefill" in options.only:
                prefill_table(contenders, options.rounds)
            if "batch" in options.only:
                batch_table(contenders, options.rounds, options.tokens)
            for contender in contenders.values():
                contender.process.terminate()
        if "load" in options.only:
            load_table(folder, options.rounds)
        if "quality" in options.only:
            quality_table(folder, options.train_steps)


def version(name: str) -> str:
    package = {"llama.cpp": "llama-cpp-python", "transformers": "transformers"}.get(name.split()[0])
    if package is None:
        return name
    try:
        return f"{name} ({package} {importlib.metadata.version(package)})"
    except importlib.metadata.PackageNotFoundError:  # found by PYTHONPATH alone
        return f"{name} ({package})"


if __name__ == "__main__":
    main()
