"""`tinygpt serve` under load: clients that stream over HTTP, one alone and many at once; and llama.cpp beside it.

    python benchmarks/serve.py [--clients 16] [--tokens 48] [--prompt 32] [--rounds 3] [--weights float32] [--llama]

Starts the server in a process of its own, on a model of GPT-2's shape with random weights (or --model). In each round
one client asks for a greedy text, and then --clients of them at once; each reads its stream over a connection of its
own. Figures over all rounds: tokens per second from the first request to the last token; tokens per second of processor
time, which other programs on the machine disturb least (where the system tells it); the time between two tokens of a
text, and the time to its first token.

--llama: the same weights, prompts and threads in llama.cpp, which takes turns with us in the same rounds; through its
batch interface, without HTTP (benchmarks/serve_llama.py). Both write the same number of greedy tokens.

The goals: 16 clients get at least 5 times the tokens per second of one, and more than llama.cpp gives them.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import tinygpt as tg
from tinygpt.tokenizers import CharTokenizer

HERE = Path(__file__).parent
SHAPES = {
    "gpt2": {"vocab_size": 50257, "block_size": 1024, "n_layer": 12, "n_head": 12, "n_embd": 768},
    "baby": {"vocab_size": 8192, "block_size": 512, "n_layer": 6, "n_head": 6, "n_embd": 384},
    "test": {"vocab_size": 96, "block_size": 64, "n_layer": 1, "n_head": 2, "n_embd": 16},
}
# The options of `serve` for each kind of weights, and what llama.cpp calls it.
WEIGHTS = {"float32": [], "bfloat16": ["--dtype=bfloat16"]} | {w: [f"--quantize={w}"] for w in ("int8", "int4")}
GGUF = {"float32": "f32", "bfloat16": "bf16", "int8": "q8_0", "int4": "q4_0"}
GOAL = 5.0


@dataclass
class Load:
    """What some clients at once saw, over all rounds."""

    tokens: int = 0
    seconds: float = 0.0
    processor: float = 0.0  # seconds of the process that writes
    first: list[float] = field(default_factory=list)
    between: list[float] = field(default_factory=list)

    def add(self, times: list[list[float]], tokens: int, processor: float) -> None:
        """times: of each client, when it saw each piece of text, from the first request on; tokens: of all of them."""
        self.tokens += tokens
        self.processor += processor
        self.seconds += max(seen[-1] for seen in times)
        self.first += [seen[0] for seen in times]
        self.between += [gap for seen in times for gap in np.diff(seen)]

    @property
    def rate(self) -> float:
        return self.tokens / self.seconds

    @property
    def processor_rate(self) -> float:
        """Per second of processor time; 0 if it isn't known."""
        return self.tokens / self.processor if self.processor else 0.0


def prompts(count: int, length: int, vocab_size: int, seed: int) -> list[list[int]]:
    """Prompts that share nothing."""
    found: list[list[int]] = np.random.default_rng(seed).integers(0, vocab_size, (count, length)).tolist()
    return found


# The server and its clients -------------------------------------------------------------------------


class Server:
    """`tinygpt serve` on a free port."""

    def __init__(self, folder: Path, options: argparse.Namespace) -> None:
        command = [sys.executable, "-m", "tinygpt", "serve", f"--model={folder}", "--port=0"]
        command += [*WEIGHTS[options.weights], f"--places={max(options.clients, 16)}"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        words = self.process.stdout.readline().split()
        if not words:
            raise SystemExit(f"the server ended with exit code {self.process.wait()}")
        self.host, _, port = words[3].removeprefix("http://").removesuffix("/v1").partition(":")
        self.port = int(port)

    def write(self, prompts: list[list[int]], tokens: int) -> tuple[list[list[float]], int]:
        """Greedy texts after all prompts at once, a client each -> (when each saw its pieces, tokens of all)."""
        return asyncio.run(self._clients(prompts, tokens))

    async def _clients(self, prompts: list[list[int]], tokens: int) -> tuple[list[list[float]], int]:
        start = time.perf_counter()
        found = await asyncio.gather(*(self._client(prompt, tokens, start) for prompt in prompts))
        return [times for times, _ in found], sum(count for _, count in found)

    async def _client(self, prompt: list[int], tokens: int, start: float) -> tuple[list[float], int]:
        body = {"prompt": prompt, "max_tokens": tokens, "temperature": 0, "stream": True,
                "stream_options": {"include_usage": True}}  # fmt: skip
        content = json.dumps(body).encode()
        reader, writer = await asyncio.open_connection(self.host, self.port)
        head = f"POST /v1/completions HTTP/1.1\r\nHost: {self.host}\r\nContent-Length: {len(content)}\r\n\r\n"
        writer.write(head.encode() + content)
        times, usage = list[float](), b""
        while (line := await reader.readline()).strip() != b"data: [DONE]":
            if not line:
                raise SystemExit("the server closed a stream before its end")
            if line.startswith(b"data: ") and b'"choices":[]' in line:
                usage = line
            elif line.startswith(b"data: ") and b'"text":""' not in line:
                times.append(time.perf_counter() - start)
        writer.close()
        return times, json.loads(usage.removeprefix(b"data: "))["usage"]["completion_tokens"]

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(60)


class Llama:
    """llama.cpp, in a process of its own."""

    def __init__(self, path: Path, options: argparse.Namespace) -> None:
        context = -(-(options.prompt + options.tokens) // 256) * 256
        command = [sys.executable, str(HERE / "serve_llama.py"), str(path), *map(str, (options.clients, context))]
        self.process = subprocess.Popen(
            [*command, str(tg.get_num_threads())], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._line() == "ready"

    def _line(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline().strip()
        if not line:
            raise SystemExit(f"llama.cpp ended with exit code {self.process.wait()}")
        return line

    def write(self, prompts: list[list[int]], tokens: int) -> tuple[list[list[float]], int]:
        assert self.process.stdin is not None
        print(json.dumps({"prompts": prompts, "tokens": tokens}), file=self.process.stdin, flush=True)
        times = json.loads(self._line())["times"]
        return times, sum(map(len, times))

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(60)


# The model ------------------------------------------------------------------------------------------


def random_model(folder: Path, shape: str) -> Path:
    """Random weights, and a tokenizer of as many characters as there are ids, so that each token is a piece of text."""
    model = tg.GPT(tg.GPTConfig(**SHAPES[shape]))
    rng = np.random.default_rng(0)
    for parameter in model.parameters():  # biases and norms are zeros and ones in a new model
        parameter.data += 0.02 * rng.standard_normal(parameter.shape, dtype=np.float32)
    model.save_pretrained(folder)
    characters = [chr(i) for i in range(0x21, 0x30000) if chr(i).isalpha() or chr(i).isdigit()]
    CharTokenizer("".join(characters[: model.config.vocab_size])).save(folder)
    return folder


def gguf_of(folder: Path, out: Path, dtype: str) -> Path:
    command = [sys.executable, "-m", "tinygpt", "convert", str(folder), str(out), "--to=gguf", f"--dtype={GGUF[dtype]}"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return out


def processor_seconds(process: subprocess.Popen[str]) -> float:
    """What a process has used so far; 0 where the system doesn't tell."""
    found = Path(f"/proc/{process.pid}/stat")
    if not found.exists():
        return 0.0
    user, system = found.read_text().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


# The table ------------------------------------------------------------------------------------------


def measure(contenders: dict[str, Any], options: argparse.Namespace, vocab_size: int) -> dict[str, dict[int, Load]]:
    """Contender -> number of clients -> what they saw. The contenders take turns."""
    loads = {name: {count: Load() for count in (1, options.clients)} for name in contenders}
    for turn in range(options.rounds + 1):
        for count in (1, options.clients):
            asked = prompts(count, options.prompt, vocab_size, seed=1000 * turn + count)
            for name, contender in contenders.items():
                before = processor_seconds(contender.process)
                times, tokens = contender.write(asked, options.tokens if turn else 4)
                if turn:  # the first turn is a warm-up
                    loads[name][count].add(times, tokens, processor_seconds(contender.process) - before)
    return loads


def table(loads: dict[str, dict[int, Load]]) -> None:
    print("| contender | clients | tokens/s | per processor second ", end="")
    print("| between tokens, ms: p50 | p99 | to the first token, ms: p50 | p99 |")
    print("|---|---|---|---|---|---|---|---|")
    for name, found in loads.items():
        for count, load in found.items():
            times = [1e3 * np.percentile(seen, q) for seen in (load.between, load.first) for q in (50, 99)]
            cells = [f"{value:.1f}" for value in (load.rate, load.processor_rate, *times)]
            print(f"| {name} | {count} | {' | '.join(cells)} |")


def verdicts(loads: dict[str, dict[int, Load]]) -> None:
    (one, many), count = loads["tinygpt serve"].values(), max(loads["tinygpt serve"])
    print()
    _verdict(many, one, f"{count} clients get {{}} times the tokens per second of one", GOAL)
    if "llama.cpp" in loads:
        _verdict(many, loads["llama.cpp"][count], f"{count} clients get {{}} times those of llama.cpp", 1.0)


def _verdict(ours: Load, other: Load, words: str, goal: float) -> None:
    ratio = ours.rate / other.rate
    met = "met" if ratio >= goal else "not met"
    beside = f"; {ours.processor_rate / other.processor_rate:.2f} by processor time" if other.processor else ""
    print(f"- {met}: {words.format(f'{ratio:.2f}')}{beside} (goal: {goal:g})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="folder of a model (default: random weights of --shape)")
    parser.add_argument("--shape", choices=SHAPES, default="gpt2", help="of random weights (default: gpt2)")
    parser.add_argument("--weights", choices=WEIGHTS, default="float32", help="default: float32")
    parser.add_argument("--clients", type=int, default=16, help="how many at once (default: 16)")
    parser.add_argument("--tokens", type=int, default=48, help="of each text (default: 48)")
    parser.add_argument("--prompt", type=int, default=32, help="tokens of each prompt (default: 32)")
    parser.add_argument("--rounds", type=int, default=3, help="default: 3")
    parser.add_argument("--llama", action="store_true", help="llama.cpp beside us (llama-cpp-python, extra gguf)")
    options = parser.parse_args()
    if options.clients < 2:
        parser.error("--clients must be at least 2")
    if options.llama and not all(map(importlib.util.find_spec, ("llama_cpp", "gguf"))):
        raise SystemExit("--llama needs the packages llama-cpp-python and gguf")
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.model or random_model(Path(temporary) / "model", options.shape)
        vocab_size = json.loads((folder / "config.json").read_text(encoding="utf-8"))["vocab_size"]
        contenders: dict[str, Any] = {"tinygpt serve": Server(folder, options)}
        try:
            if options.llama:
                file = gguf_of(folder, Path(temporary) / "model.gguf", options.weights)
                contenders["llama.cpp"] = Llama(file, options)
            loads = measure(contenders, options, vocab_size)
        finally:
            for contender in contenders.values():
                contender.stop()
    where = f"{tg.get_num_threads()} threads, {os.cpu_count()} processors; {options.weights}"
    what = options.model.name if options.model else options.shape
    print(f"{what}, {where}; {options.rounds} rounds of {options.tokens} tokens after prompts of {options.prompt}\n")
    table(loads)
    verdicts(loads)


if __name__ == "__main__":
    main()
