"""Question answering: answer a question from given facts about a country.

    python examples/recipes/facts.py                     # takes minutes
    python examples/recipes/facts.py --slice             # takes half a minute: three short facts on each country

    Its capital is Nairobi. It lies in Sub-Saharan Africa. Its people are called Kenyan. It pays in KES. ...
    Which city is the capital?
    Nairobi

Data: capital, region, demonym, currency, calling code and internet domain of the countries in the package countryinfo
1.0.1 (MIT). The facts are real, but the sentences are made from templates, so a rule of a few lines would find every
answer. The recipe measures whether a small model learns to copy an answer, letter by letter, from a text that it has
never seen. The split is by country, not by question: 70 % for training, 10 % for validation and 20 % for testing. The
training part is extended with made-up countries, each with facts from several real ones, so that memorizing does not
help.

A model of 2 layers and 64 channels, with bytes as tokens, is pre-trained on these texts, then fine-tuned on the
answers. The metric is exact match. The baseline is the most frequent answer to that question, counted over the real
training countries.

Result of the first command (276 test questions, 3 minutes on one core): exact match 0.0036, token F1 0.0127; the most
frequent answer 0.0616 and 0.0640. The model does not beat the baseline: in 2,000 steps it learns what kind of answer a
question wants ("55" for a calling code of +65), but not to copy it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
from _answers import Baseline, Row, Sizes, answer, most_frequent
from _data import Archive, Package, fetch
from _recipe import parse

from tinygpt.cli import exit_with

PACKAGE = Package(
    "countryinfo", "1.0.1", "countryinfo-1.0.1-py3-none-any.whl",
    "b02f6f534f0a3b9cdc73fba7e08f247e39826acfa54bf080f8e4eba812066350",
)  # fmt: skip
KINDS = {  # a fact as a sentence, and the question for it
    "capital": ("Its capital is {}.", "Which city is the capital?"),
    "subregion": ("It lies in {}.", "Where does it lie?"),
    "demonym": ("Its people are called {}.", "What are its people called?"),
    "currencies": ("It pays in {}.", "Which currency does it use?"),
    "callingCodes": ("Calls begin with +{}.", "What is its calling code?"),
    "tld": ("Its sites end in {}.", "In what do its sites end?"),
}
MADE_UP = 4000
WHOLE = Sizes(
    {"tokenizer": "byte", "n_layer": 2, "n_head": 4, "n_embd": 64, "block_size": 288,
     "batch_size": 16, "steps": 2000, "eval_every": 500, "lr": 2e-3},
    {"batch_size": 16, "epochs": 4, "lr": 1e-3, "weight_decay": 0.1},
    new_tokens=40,
)  # fmt: skip
# Looking an answer up is learned late, and the sooner the shorter the text: a slice has three facts on each country.
SLICE_KINDS = ("currencies", "callingCodes", "tld")
SLICE = Sizes(
    {"tokenizer": "byte", "n_layer": 2, "n_head": 2, "n_embd": 32, "block_size": 112, "batch_size": 16, "steps": 1200,
     "warmup_steps": 50, "eval_every": 300, "eval_batches": 5, "lr": 5e-3},
    {"batch_size": 16, "epochs": 3, "lr": 3e-3}, new_tokens=16, rows=4000, test_rows=60,
)  # fmt: skip

Facts = dict[str, str]  # kind -> fact


def countries(archive: Archive) -> Iterator[tuple[str, Facts]]:
    """Name and facts of each country that has all of them; of several currencies, codes or domains the first."""
    for _, content in archive.files("countryinfo/data/*.json"):
        country: dict[str, Any] = json.loads(content)
        facts = {}
        for kind in KINDS:
            value = country.get(kind)
            value = value[0] if isinstance(value, list) and value else value
            if isinstance(value, str) and value.strip():
                facts[kind] = value.strip()
        if len(facts) == len(KINDS):
            yield country["name"], facts


def row(facts: Facts, kind: str, draw: np.random.Generator) -> Row:
    """A question of this kind, after the facts in random order."""
    text = " ".join(KINDS[name][0].format(facts[name]) for name in draw.permutation(list(facts)))
    return {"question": f"{text}\n{KINDS[kind][1]}", "answer": facts[kind], "kind": kind}


def made_up(rows: list[Row]) -> list[Row]:
    """The rows, and others on countries of which each fact is that of a country drawn anew."""
    draw = np.random.default_rng(1)
    kinds = [kind for kind in KINDS if any(row["kind"] == kind for row in rows)]
    known = {kind: sorted({row["answer"] for row in rows if row["kind"] == kind}) for kind in kinds}
    others = []
    for _ in range(MADE_UP):
        facts = {kind: str(draw.choice(values)) for kind, values in known.items()}
        others.append(row(facts, str(draw.choice(kinds)), draw))
    return rows + others


def main() -> int:
    options = parse(__doc__, "facts")
    draw = np.random.default_rng(0)
    rows, names = [], []
    kinds = SLICE_KINDS if options.slice else tuple(KINDS)
    for name, all_facts in countries(fetch(PACKAGE, options.package)):
        facts = {kind: all_facts[kind] for kind in kinds}
        rows += [row(facts, kind, draw) for kind in kinds]
        names += [name] * len(kinds)
    baseline = Baseline("the most frequent answer", most_frequent)
    answer(rows, names, options, WHOLE, baseline, "exact match", more=made_up, part=SLICE)
    return 0


if __name__ == "__main__":
    exit_with(main)
