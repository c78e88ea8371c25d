"""The folder of a run that started from a model, loaded by transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.compat import torch, transformers
from tests.training.helpers import OPTIONS
from tests.training.test_pretrained import MORE
from tinygpt import interop


def test_transformers_loads_what_a_run_leaves(run: Any, text: Path, tmp_path: Path, without_picture: None) -> None:
    bpe, folder = tmp_path / "bpe", tmp_path / "run"
    options = ["--tokenizer=bpe", "--vocab-size=270", f"--data={text}"]
    assert run("train", *OPTIONS, *options, f"--out={bpe}").code == 0
    command = ["train", f"--init-from={bpe}", *MORE, "--add-token=be,", "--add-token=<|user|>", f"--data={text}"]
    assert run(*command, f"--out={folder}").code == 0
    ours, tokenizer = interop.load(folder)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    their_tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    for words in ("To be, or not", "<|user|>To be,", "é <|user|> be, nobler"):
        ids = tokenizer.encode(words)
        assert their_tokenizer(words)["input_ids"] == ids.tolist()
        assert their_tokenizer.decode(ids) == tokenizer.decode(ids)
        with torch.no_grad():
            logits = theirs(torch.tensor(ids[None, :8])).logits.numpy()
        np.testing.assert_allclose(ours(ids[None, :8]).data, logits, rtol=1e-4, atol=1e-5)
    assert theirs.generation_config.eos_token_id == tokenizer.eos_token_id is not None
    assert theirs.config.vocab_size == tokenizer.vocab_size == their_tokenizer.vocab_size + 2


def test_a_model_of_transformers_is_trained_further(run: Any, text: Path, tmp_path: Path) -> None:
    """Its generation settings and its padded vocabulary stay."""
    pytest.importorskip("tokenizers")
    from tests.compat import make_theirs
    from tinygpt.tokenizers import BPETokenizer

    source, folder = tmp_path / "theirs", tmp_path / "run"
    tokenizer = BPETokenizer.train(text.read_text(encoding="utf-8"), 270)
    theirs = make_theirs(vocab_size=275, n_positions=8)
    theirs.generation_config.temperature, theirs.generation_config.do_sample = 0.7, True
    theirs.generation_config.eos_token_id = 3
    theirs.save_pretrained(source)
    tokenizer.save(source)
    answer = run("train", f"--init-from={source}", *MORE, "--lr=1e-9", f"--data={text}", f"--out={folder}")
    assert answer.code == 0, answer.err
    again = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    assert (again.config.vocab_size, again.generation_config.temperature) == (275, 0.7)
    assert again.generation_config.eos_token_id == 3
    ids = torch.tensor(tokenizer.encode("To be")[None])
    with torch.no_grad():
        np.testing.assert_allclose(again(ids).logits.numpy(), theirs(ids).logits.numpy(), atol=1e-4)
    assert interop.load(folder)[0].generation_config["temperature"] == 0.7
