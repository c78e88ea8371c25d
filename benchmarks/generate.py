"""Decoding speed of tinygpt, llama.cpp and transformers, on a model of GPT-2's shape with random weights.

    python benchmarks/generate.py [--rounds 5] [--tokens 48] [--only decode prefill batch load quality]

Each contender is a separate process with the same weights (`generate_contenders.py`). They take turns, one burst each,
so that if the machine slows down, all of them slow down. Times are medians over the rounds, and so are ratios, each of
two bursts of the same round. A burst is a greedy continuation of a prompt, after a prefill that is timed separately.
All contenders use the same number of threads. Those that are not installed are left out, with a message: llama.cpp
(packages llama-cpp-python and gguf), transformers with PyTorch.

The floor: a token needs all weights once (except the position embeddings), so its time is at least their size divided
by the read bandwidth of all threads. Several tokens at once also need a multiply-add for each of them and each weight,
so their time is at least that of these at the rate of our product's block. Both are measured in each round, and are
medians too. The floor of products of 8-bit numbers ("x int8") is memory's alone. Quality is measured on a small model
trained here on Shakespeare, because the perplexity of random weights means nothing.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

import machine
from generate_contenders import (
    BLOCKS,
    HEAD,
    LLAMA,
    OURS,
    TRANSFORMERS,
    WEIGHTS,
    Contender,
    llama_instructions,
    take_turns,
    version,
    write_models,
)

import tinygpt as tg
from tinygpt import GPT, GPTConfig

PARTS = ("decode", "prefill", "batch", "load", "quality")
# (ours, theirs, target ratio)
AIMS = (
    ("tinygpt float32", "llama.cpp f32", 1.2),
    ("tinygpt float32", TRANSFORMERS, 3.0),
    ("tinygpt bfloat16", "llama.cpp f16", 1.2),
    ("tinygpt int8", "llama.cpp q8_0", 1.2),
    ("tinygpt int8 x int8", "llama.cpp q8_0", 1.2),  # which rounds the activations too
    ("tinygpt int4", "llama.cpp q4_0", 1.2),
    ("tinygpt int4 x int8", "llama.cpp q4_0", 1.2),  # as above
)
AIM_PREFILL, AIM_BATCH, AIM_PERPLEXITY, AIM_LOAD = 1.5, 6, 1.01, (1.0, 1.2)


class Limits:
    """What the machine allows: medians over the rounds in which they were measured.

    bandwidth: bytes per second that all threads read; block: FLOP/s of our product's block, or 0 without one.
    """

    def __init__(self, bandwidth: float = 0.0, block: float = 0.0) -> None:
        self.bandwidth, self.block = bandwidth, block
        self.seen: list[tuple[float, float]] = []

    def measure(self) -> None:
        bandwidth = machine.read_bandwidth()
        assert bandwidth is not None
        self.seen.append((bandwidth, (machine.block_rate() or (0.0, 0.0))[0]))
        self.bandwidth, self.block = map(statistics.median, zip(*self.seen, strict=True))

    def __str__(self) -> str:
        return (
            f"Meanwhile all threads read {self.bandwidth / 1e9:.1f} GB/s from memory, and the block of our product did "
            f"{self.block / 1e9:.0f} GFLOP/s."
        )

    def floor(self, name: str, tokens: int = 1) -> float:
        """The least seconds in which a contender can take `tokens` tokens through the model at once."""
        read = bytes_per_token(name) / self.bandwidth
        if tokens == 1 or "x int8" in name or not self.block:
            return read
        return max(read, 2 * tokens * WEIGHTS / self.block)


def over(a: np.ndarray, b: np.ndarray) -> float:
    """The ratio of two times (rounds,): the median over the rounds."""
    return statistics.median(a / b)


def decode_table(contenders: dict[str, Contender], rounds: int, tokens: int) -> list[str]:
    """Prints the table; returns the targets."""
    limits = Limits()
    bursts = take_turns(contenders, rounds, [(1, 16, tokens)], limits.measure)
    found = {name: seconds[:, 1] for name, (seconds,) in bursts.items()}
    print(f"\n## One sequence, {tokens} tokens after a prompt of 16\n\n{limits}\n")
    print("| contender | ms a token | at least | tokens/s | weights read, GB/s | of the read bandwidth |")
    print("|---|---|---|---|---|---|")
    for name, seconds in found.items():
        step, floor = statistics.median(seconds), limits.floor(name)
        rate = bytes_per_token(name) / step
        print(f"| {name} | {1e3 * step:.2f} | {1e3 * floor:.2f} | {1 / step:.1f} | {rate / 1e9:.1f} "
              f"| {rate / limits.bandwidth:.0%} |")  # fmt: skip
    said = []
    for ours, theirs, aim in AIMS:
        if theirs in found and ours in found:
            ratio, most = over(found[theirs], found[ours]), statistics.median(found[theirs]) / limits.floor(ours)
            words = f"a token: {ours} {ratio:.2f} times {theirs}"
            said.append(machine.verdict(ratio >= aim, words, str(aim), f"at the bandwidth {most:.2f}"))
    return said


def bytes_per_token(name: str) -> float:
    """Bytes of weights that a token needs; q8_0, q4_0 and int4 have a 16-bit scale for every 32. With 4 bits, the head
    has 8."""
    each = {"float32": 4, "f32": 4, "bfloat16": 2, "f16": 2, "int8": 1, "q8_0": 34 / 32}
    each["int4"] = each["q4_0"] = 18 / 32
    kind = name.split()[1]
    return each[kind] * BLOCKS + each[{"int4": "int8", "q4_0": "q8_0"}.get(kind, kind)] * HEAD


def prefill_table(contenders: dict[str, Contender], rounds: int) -> list[str]:
    """Prints the table; returns the targets: each width beside llama.cpp's."""
    limits = Limits()
    bursts = take_turns(contenders, rounds, [(1, 256, 0)], limits.measure)
    found = {name: seconds[:, 0] for name, (seconds,) in bursts.items()}
    print(f"\n## Prefill of 256 tokens\n\n{limits}\n\n| contender | ms | at least | tokens/s |\n|---|---|---|---|")
    for name, seconds in found.items():
        prefill = statistics.median(seconds)
        print(f"| {name} | {1e3 * prefill:.0f} | {1e3 * limits.floor(name, 256):.0f} | {256 / prefill:.0f} |")
    said = []
    for ours, theirs, _ in AIMS:
        if theirs in found and ours in found and theirs in LLAMA:
            ratio, most = over(found[theirs], found[ours]), statistics.median(found[theirs]) / limits.floor(ours, 256)
            words = f"prefill: {ours} {ratio:.2f} times {theirs}"
            said.append(machine.verdict(ratio >= AIM_PREFILL, words, str(AIM_PREFILL), f"at its floor {most:.2f}"))
    return said


def batch_table(contenders: dict[str, Contender], rounds: int, tokens: int) -> list[str]:
    """Prints the table; returns the targets."""
    limits, ours = Limits(), {name: contenders[name] for name in OURS if name in contenders}
    found = take_turns(ours, rounds, [(1, 16, tokens), (8, 16, tokens)], limits.measure)
    print(f"\n## A batch of 8, {tokens} tokens after prompts of 16\n\n{limits}\n")
    print("| contender | tokens/s, one sequence | tokens/s, eight | tokens/s, at most | ratio | ratio, at most |")
    print("|---|---|---|---|---|---|")
    said = []
    for name, (one, eight) in found.items():
        a, b, most = 1 / statistics.median(one[:, 1]), 8 / statistics.median(eight[:, 1]), 8 / limits.floor(name, 8)
        ratio = 8 * over(one[:, 1], eight[:, 1])
        print(f"| {name} | {a:.1f} | {b:.1f} | {most:.1f} | {ratio:.2f} | {most / a:.2f} |")
        words = f"a batch of 8: {name} {ratio:.2f} times one sequence"
        said.append(machine.verdict(ratio >= AIM_BATCH, words, str(AIM_BATCH), f"at its floor {most / a:.2f}"))
    return said


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


def load_table(folder: Path, rounds: int) -> list[str]:
    """Prints the table; returns the target."""
    weights = (folder / "gpt2" / "model.safetensors").stat().st_size
    print(f"\n## Loading: {weights / 1e6:.0f} MB of float32 weights, from a warm disk\n")
    print("| as | seconds | peak memory, of the file's size |\n|---|---|---|")
    said = []
    for name, options in OURS.items():
        seen = []
        for _ in range(rounds):
            command = [sys.executable, "-c", LOAD, str(folder / "gpt2"), repr(options)]
            seen.append(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split())
        seconds = statistics.median(float(words[0]) for words in seen)
        peak = statistics.median(float(words[1]) for words in seen)
        print(f"| {name} | {seconds:.2f} | {peak / weights:.2f} |")
        if name == "tinygpt float32":
            met = seconds < AIM_LOAD[0] and peak < AIM_LOAD[1] * weights
            said.append(machine.verdict(met, f"loading: {seconds:.2f} s, {peak / weights:.2f} of the file's size",
                                f"under {AIM_LOAD[0]:g} s, {AIM_LOAD[1]}", "at least 1 of it"))  # fmt: skip
    return said


def quality_table(folder: Path, steps: int) -> list[str]:
    """Train a model, and print its perplexity in each format; returns the targets."""
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
    print("| weights | perplexity | over float32 |\n|---|---|---|")
    base, said = 0.0, []
    grouped = {f"{name}, groups of 32": o for name, o in OURS.items() if o.get("quantize") == "int8"}
    for name, options in {**OURS, **grouped}.items():
        if name in OURS:
            packed = GPT.from_pretrained(folder / "trained", **options)
        else:
            packed = GPT.from_pretrained(folder / "trained")
            packed.pack("int8", group=32, activations=options.get("activations"))
        perplexity = float(np.exp(tg.training.evaluate(packed, validation, 32)))
        base = base or perplexity
        ratio = perplexity / base
        print(f"| {name} | {perplexity:.4f} | {ratio:.5f} |")
        if OURS.get(name, {}).get("quantize") == "int8":
            words = f"perplexity: {name} {ratio:.5f} times float32's"
            said.append(machine.verdict(ratio < AIM_PERPLEXITY, words, f"under {AIM_PERPLEXITY}", "at least 1"))
    return said


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="bursts per contender (default: 7)")
    parser.add_argument("--tokens", type=int, default=48, help="tokens per burst (default: 48)")
    parser.add_argument("--train-steps", type=int, default=1000, help="steps for the perplexity model (default: 1000)")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="which tables (default: all)")
    parser.add_argument("--contenders", nargs="+", metavar="WORD", default=[""], help="those whose names have a word")
    options = parser.parse_args()
    if machine.fma_peak(1) is None:
        raise SystemExit("this benchmark needs the compiled extension: pip install -e . with a C compiler")
    print(f"{machine.headline()}\n{machine.peers()}; llama.cpp {llama_instructions()}")
    said: list[str] = []
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
                said += decode_table(contenders, options.rounds, options.tokens)
            if "prefill" in options.only:
                said += prefill_table(contenders, options.rounds)
            if "batch" in options.only:
                said += batch_table(contenders, options.rounds, options.tokens)
            for contender in contenders.values():
                contender.process.terminate()
        if "load" in options.only:
            said += load_table(folder, options.rounds)
        if "quality" in options.only:
            said += quality_table(folder, options.train_steps)
    print("\n" + "\n".join(said))


if __name__ == "__main__":
    main()
