"""Encoding a large text: processor time, time and peak memory, beside `tokenizers` and nanoGPT's way (tiktoken).

    python benchmarks/data.py --size 50          # MB of generated text; 1000 for the whole measurement

The text is generated: sentences of words whose frequencies follow Zipf's law, from a vocabulary with prefixes and
endings, with numbers, punctuation, names and paragraphs. One BPE tokenizer, learnt from its first MB, serves all three.
Every way runs in a process of its own, which reads the file and writes a token file:

| way | what it does |
|---|---|
| tinygpt, bpe | `write_documents`: in pieces, each different word encoded once |
| tokenizers | the library's `encode_batch` on the lines, a thousand at a time |
| tiktoken | nanoGPT's prepare.py: the whole text in memory, `encode_ordinary`, a NumPy array; needs tiktoken |
| tinygpt, characters | `write_documents` with a vocabulary that is found on the way |
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from machine import processor

WAYS = ("tinygpt, bpe", "tokenizers", "tiktoken", "tinygpt, characters")


def words(dice: random.Random, count: int) -> list[str]:
    """A vocabulary whose words are made of syllables, the frequent ones short."""
    syllables = [a + b + c for a in "bcdfghklmnprstvw" for b in ("a", "e", "i", "o", "u", "ea", "ou") for c in " nrstl"]
    syllables = [syllable.strip() for syllable in syllables]
    endings = ["", "", "", "s", "ed", "ing", "ly", "er", "tion"]
    found: dict[str, None] = {}
    while len(found) < count:
        length = 1 + min(3, int(len(found) ** 0.16 * dice.random()))
        found["".join(dice.choices(syllables, k=length)) + dice.choice(endings)] = None
    return list(found)


def generate(path: Path, size: int) -> None:
    """Write about `size` bytes of text."""
    dice = random.Random(0)
    vocabulary = words(dice, 60_000)
    weights = [1 / (rank + 2.7) for rank in range(len(vocabulary))]
    cumulative: list[float] = []
    for weight in weights:
        cumulative.append(weight + (cumulative[-1] if cumulative else 0.0))
    written = 0
    with open(path, "w", encoding="utf-8") as file:
        while written < size:
            written += file.write(_paragraph(dice, vocabulary, cumulative) + "\n\n")


def _paragraph(dice: random.Random, vocabulary: list[str], cumulative: list[float]) -> str:
    sentences = []
    for _ in range(dice.randint(2, 7)):
        sentence = dice.choices(vocabulary, cum_weights=cumulative, k=dice.randint(4, 25))
        if dice.random() < 0.3:
            sentence[dice.randrange(len(sentence))] = str(dice.randint(1, 3000))
        if dice.random() < 0.4:
            sentence[dice.randrange(len(sentence) - 1)] += ","
        if dice.random() < 0.2:
            place = dice.randrange(len(sentence))
            sentence[place] = sentence[place].capitalize()
        sentences.append(" ".join(sentence).capitalize() + dice.choice("....?!"))
    return " ".join(sentences)


# One way, in a process of its own ---------------------------------------------------------------------


def work(way: str, text: Path, tokenizer: Path, out: Path) -> int:
    """Encode the text; return the number of tokens."""
    import numpy as np

    if way.startswith("tinygpt"):
        from tinygpt import tokenizers
        from tinygpt.data import CharacterVocabulary, Documents, write_documents

        made = tokenizers.load(tokenizer) if way == "tinygpt, bpe" else CharacterVocabulary(end_token=False)
        return sum(write_documents(Documents(text), made, out, "the text").tokens)
    if way == "tokenizers":
        from tokenizers import Tokenizer

        library, count = Tokenizer.from_file(str(tokenizer / "tokenizer.json")), 0
        with open(text, encoding="utf-8", newline="") as file, open(out, "wb") as target:
            while lines := file.readlines(100_000):
                for encoding in library.encode_batch(lines, add_special_tokens=False):
                    target.write(np.array(encoding.ids, np.uint16).tobytes())
                    count += len(encoding.ids)
        return count
    import tiktoken

    encoder = tiktoken.Encoding("measured", pat_str=GPT2, mergeable_ranks=_ranks(tokenizer), special_tokens={})
    ids = encoder.encode_ordinary(text.read_text(encoding="utf-8"))
    np.array(ids, dtype=np.uint16).tofile(out)
    return len(ids)


GPT2 = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"""


def _ranks(tokenizer: Path) -> dict[bytes, int]:
    """The tokens in the order of their merges, as tiktoken wants them."""
    from tinygpt import tokenizers
    from tinygpt.tokenizers.byte_characters import bytes_of_token

    description = tokenizers.load(tokenizer).config()["tokenizer"]
    vocabulary = description["model"]["vocab"]
    special = {entry["content"] for entry in description["added_tokens"]}
    return {bytes_of_token(token): number for token, number in vocabulary.items() if token not in special}


def measure(way: str, *paths: Path) -> dict[str, float]:
    """Run one way in a process; seconds, processor seconds, peak MB and tokens."""
    code = f"import data; data.child({way!r}, {[str(path) for path in paths]!r})"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["?"])[-1]
        raise RuntimeError(f"{way}: {last}")
    return dict(json.loads(done.stdout))


def child(way: str, paths: list[str]) -> None:
    """In the process that is measured."""
    begin, cpu = time.perf_counter(), time.process_time()
    count = work(way, *map(Path, paths))
    figures = {"seconds": time.perf_counter() - begin, "cpu": time.process_time() - cpu, "peak": peak() / 1e6}
    print(json.dumps(figures | {"tokens": count}))


def peak() -> float:
    """The most bytes of memory that this process has had."""
    try:  # getrusage counts those of the process that started this one
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024.0 for line in lines if line.startswith("VmHWM:"))
    except OSError:
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=float, default=50, metavar="MB", help="of the text (default: 50)")
    parser.add_argument("--vocab-size", type=int, default=8192, metavar="N", help="of the tokenizer (default: 8192)")
    parser.add_argument("--runs", type=int, default=1, metavar="N", help="of all ways, in turn (default: 1)")
    parser.add_argument("--only", nargs="+", choices=WAYS, default=list(WAYS), metavar="WAY", help="of the table")
    options = parser.parse_args()
    from tinygpt.tokenizers import BPETokenizer

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        text = folder / "text.txt"
        generate(text, int(options.size * 1e6))
        with open(text, encoding="utf-8") as file:
            BPETokenizer.train(file.read(1_000_000), options.vocab_size).save(folder)
        size = text.stat().st_size / 1e6
        print(f"{size:.0f} MB of text, {processor()}, {os.cpu_count()} processors, medians of {options.runs}\n")
        print("| way | seconds | processor seconds | MB/s of processor | peak MB | tokens |\n|---|---|---|---|---|---|")
        medians = {}
        for way, found in medians_of(options.only, options.runs, text, folder).items():
            if isinstance(found, str):
                print(f"| {way} | not measured: {found} |")
                continue
            medians[way] = found["cpu"]
            print(
                f"| {way} | {found['seconds']:.1f} | {found['cpu']:.1f} | {size / found['cpu']:.1f} | "
                f"{found['peak']:.0f} | {found['tokens']:,.0f} |"
            )
        if {"tinygpt, bpe", "tiktoken"} <= medians.keys():
            print(f"\nBPE takes {medians['tinygpt, bpe'] / medians['tiktoken']:.2f} of tiktoken's processor time.")


def medians_of(ways: list[str], runs: int, text: Path, folder: Path) -> dict[str, dict[str, float] | str]:
    """Each way's figures, or why there are none. The ways take turns, so that other work slows all of them."""
    found: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
    failed: dict[str, str] = {}
    for _ in range(runs):
        for way in ways:
            if way not in failed:
                try:
                    found[way].append(measure(way, text, folder, folder / "tokens.npy"))
                except RuntimeError as error:
                    failed[way] = str(error)
    return {
        way: failed.get(way) or {key: statistics.median(row[key] for row in rows) for key in rows[0]}
        for way, rows in found.items()
    }


if __name__ == "__main__":
    main()
