"""Start a run from a pretrained model, instead of from random weights.

    start = start_from("gpt2", block_size=256, add_tokens=["<gene>"])
    start.model, start.tokenizer, start.name

Weights, tokenizer and generation settings come from the best checkpoint of a training run, from a GPT-2 directory or
from a model's name. The model computes exactly what it did there, so the first evaluation of the run is its own.

A shorter block keeps the first position embeddings. A new token's embedding is the mean of the others: a likely point
of their distribution, while a random one would be far out and win or lose every prediction at first.
Source: Hewitt, "Initializing New Word Embeddings for Pretrained Language Models", 2021.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .. import backends, interop
from ..backends import array_module
from ..classifier import GPTForSequenceClassification
from ..data.chat_template import chat_template_in
from ..data.dialogue import TEMPLATE, Template, read_template
from ..errors import UsageError
from ..exchange import read_whole
from ..gpt import GPT, GPTConfig
from ..interop.classifier import is_classifier, load_with_tokenizer
from ..interop.loading import with_tokenizer
from ..interop.packed_run import shorten
from ..nn import Parameter
from ..nn.lora import LoRA, insert_lora
from ..random import Generator
from ..tokenizers import Tokenizer
from .settings.options import given_options


@dataclass(frozen=True)
class Start:
    """A model to train further, its tokenizer, and the folder or name that it came from.

    classifier: the classifier that the model is part of, if it came with a head. template: that of its training;
    chat_template: its template for other programs, in Jinja.
    """

    model: GPT
    tokenizer: Tokenizer
    name: str
    classifier: GPTForSequenceClassification | None = None
    template: Template | None = None
    chat_template: str | None = None


def start_as_asked(options: argparse.Namespace, name: str, lora: LoRA | None, seed: int, **more: Any) -> Start:
    """The model `name` with the changes of the command line, and with an adapter if one is trained.

    more: further arguments of `start_from`. Raises UsageError.
    """
    if lora is not None and options.add_token:
        raise UsageError(
            "--add-token adds embeddings, which have to be learned, but with --lora-rank all embeddings are frozen: "
            "leave out one of them"
        )
    start = start_from(
        name, **given_options(options, GPTConfig), add_tokens=options.add_token or (), seed=seed,
        revision=options.revision or "main", **more,
    )  # fmt: skip
    if lora is not None:
        insert_lora(start.model, lora, seed)
    return start


def start_from(
    folder_or_name: str,
    *,
    block_size: int | None = None,
    dropout: float | None = None,
    add_tokens: Sequence[str] = (),
    seed: int = 0,
    revision: str = "main",
    classifiers: bool = False,
    packed: str | None = None,
) -> Start:
    """The model in a run's folder or a GPT-2 directory, or of that name, ready for training, in main memory.

    block_size: at most the model's. dropout: overrides the model's own. add_tokens: texts that become one token each.
    seed: of the dropout masks. classifiers: also accept a classifier. packed: "int8", "int4" or "bfloat16", for a base
    that is trained through an adapter; it stays in evaluation mode until it has one. Raises UsageError.
    """
    Generator(seed)  # otherwise an invalid seed would be reported as an error in the model's file
    with backends.use_backend("numpy"):
        options: dict[str, Any] = {"revision": revision, "dropout": dropout, "seed": seed}
        if packed is not None:
            options |= {"dtype": packed} if packed == "bfloat16" else {"quantize": packed}
        clf = None
        if classifiers and _is_classifier(folder_or_name, revision):
            clf, tokenizer = load_with_tokenizer(folder_or_name, **options)
            model = clf.transformer
        else:
            model, tokenizer = interop.load(folder_or_name, **options)
    if block_size is not None:
        shorten(model, block_size)
    known = tokenizer.vocab_size
    if add_tokens:
        tokenizer = tokenizer.with_tokens(add_tokens)
        add_rows(model, known, tokenizer.vocab_size)
    if packed is None:
        (model if clf is None else clf).train()
    template, chat_template = read_whole(interop.find_model(folder_or_name, revision), _templates)
    return Start(model, tokenizer, folder_or_name, clf, template, chat_template)


def _templates(place: Path) -> tuple[Template | None, str | None]:
    folder = with_tokenizer(place)
    if not folder.is_dir():  # a checkpoint of nanoGPT
        return None, None
    own = folder / TEMPLATE
    return read_template(str(own)) if own.exists() else None, chat_template_in(folder)


def _is_classifier(folder_or_name: str, revision: str) -> bool:
    interop.loading.require_libraries(folder_or_name, revision)
    return read_whole(interop.find_model(folder_or_name, revision), is_classifier)


def add_rows(model: GPT, known: int, vocab_size: int) -> None:
    """Set the rows of the tokens known .. vocab_size - 1 to the mean of the rows before them, in embedding and head.

    Padding rows, which belong to no token, are used first; the vocabulary grows only when they are used up.
    """
    for table in {id(table): table for table in (model.wte, model.output_embedding)}.values():
        table.weight = Parameter(_with_mean_rows(table.weight.data, known, vocab_size))
    model.config = dataclasses.replace(model.config, vocab_size=len(model.wte.weight.data))


def _with_mean_rows(weight: Any, known: int, vocab_size: int) -> Any:
    """weight (V, C) -> (max(V, vocab_size), C)."""
    mean = weight[:known].mean(axis=0, dtype=np.float64)  # (C,)
    grown = array_module(weight).empty((max(len(weight), vocab_size), weight.shape[1]), weight.dtype)
    grown[: len(weight)] = weight
    grown[min(known, len(weight)) : vocab_size] = mean
    return grown
