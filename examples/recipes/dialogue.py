"""Dialogue: a model learns to answer, in English or Chinese.

    python examples/recipes/dialogue.py                           # English: takes minutes
    python examples/recipes/dialogue.py --language chinese
    python examples/recipes/dialogue.py --slice                   # takes seconds, to see that it works

    tinygpt chat --model out/dialogue/model                       # talk to the model

Data: the conversations of the package chatterbot-corpus 1.3.3 (BSD): 2,026 in English, of which 898 are distinct, and
467 in Chinese; small talk, jokes, trivia. Most consist of one statement and one answer; of longer ones the first two
turns are used. A statement that occurs with several answers is in one part only; in the test it occurs once, and each
of its answers counts as correct. (`tinygpt eval`, which the recipe runs, counts only one.)

A model of 2 layers and 64 channels is pre-trained on the training conversations, then fine-tuned on the answers. The
tokens are Chinese characters, or BPE in English, because with a vocabulary of whole words one in nine would be unknown.
The metric is the F1 of words (in Chinese: characters). The baseline is the answer to the most similar training
statement.

Result of the first command (146 test questions, half a minute on one core): token F1 0.0676, the answer to the most
similar statement 0.0920; with --language chinese (43 test questions): 0.0914 and 0.1401. The model does not beat the
baseline in either language: from so few conversations it learns how answers begin, but hardly what they are about.

Needs PyYAML and tokenizers: pip install -e '.[examples,bpe]'.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from _answers import Baseline, Row, Sizes, answer, most_similar
from _data import Archive, Package, fetch
from _recipe import parse

from tinygpt.cli import exit_with
from tinygpt.errors import UsageError

PACKAGE = Package(
    "chatterbot-corpus", "1.3.3", "chatterbot_corpus-1.3.3-py2.py3-none-any.whl",
    "86de5300afb9a80826386339d3bec79c0a72eb0358abb8327e2ecef5ae0ce154",
)  # fmt: skip
TOKENS = {
    "english": {"tokenizer": "bpe", "vocab_size": 1000},
    "chinese": {"tokenizer": "word", "vocab_size": 4000},
}
WHOLE = Sizes(
    {"n_layer": 2, "n_head": 4, "n_embd": 64, "block_size": 128,
     "batch_size": 16, "steps": 600, "eval_every": 100, "lr": 2e-3, "dropout": 0.1},
    {"batch_size": 16, "epochs": 8, "lr": 5e-4, "weight_decay": 0.1, "dropout": 0.1},
    new_tokens=40,
)  # fmt: skip


def conversations(archive: Archive, language: str) -> Iterator[tuple[str, str]]:
    """What is said, and the answer."""
    try:
        import yaml
    except ImportError:
        raise UsageError("the conversations are in YAML files: pip install pyyaml") from None
    for name, content in archive.files(f"chatterbot_corpus/data/{language}/*.yml"):
        try:
            found: Any = yaml.safe_load(content)
        except yaml.YAMLError as error:
            raise UsageError(f"{name} is no YAML that can be read: {' '.join(str(error).split())}") from error
        for turns in found["conversations"]:
            said, reply = (" ".join(str(turn).split()) for turn in [*turns, "", ""][:2])  # a bare number is a number
            if said and reply:
                yield said, reply


def rows_of(pairs: Iterator[tuple[str, str]]) -> list[Row]:
    """A row for each pair, with all answers to the same thing said."""
    distinct = list(dict.fromkeys(pairs))
    answers: dict[str, list[str]] = {}
    for said, reply in distinct:
        answers.setdefault(said.casefold(), []).append(reply)
    return [{"question": said, "answer": reply, "answers": answers[said.casefold()]} for said, reply in distinct]


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--language", choices=("english", "chinese"), default="english", help="(default: english)")


def main() -> int:
    options = parse(__doc__, "dialogue", add_options)
    rows = rows_of(conversations(fetch(PACKAGE, options.package), options.language))
    keys = [row["question"].casefold() for row in rows]
    baseline = Baseline("the answer to the most similar", most_similar)
    whole = replace(WHOLE, pretraining=TOKENS[options.language] | WHOLE.pretraining)
    answer(rows, keys, options, whole, baseline, "token F1", block_size=128)
    return 0


if __name__ == "__main__":
    exit_with(main)
