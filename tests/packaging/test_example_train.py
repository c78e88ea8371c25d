"""The Shakespeare example, as a user runs it: a process of its own, Ctrl-C, and the command it says to type next."""

from __future__ import annotations

import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.processes import Process
from tests.training.helpers import ENVIRONMENT, OPTIONS, VERSE, assert_same_outcome, write_text

pytestmark = pytest.mark.slow

EXAMPLE = Path(__file__).parents[2] / "examples" / "train_shakespeare.py"


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    text = write_text(tmp_path / "verse.txt")
    return [sys.executable, str(EXAMPLE), *OPTIONS, f"--data={text}", "--max-new-tokens=40"]


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=ENVIRONMENT)


def test_from_text_to_sample(command: list[str], tmp_path: Path) -> None:
    done = run([*command, f"--out={tmp_path / 'run'}", "--prompt=To be"])
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("Text:  the file ")
    assert lines[1].startswith("Model: 1 layers, 2 heads, 8 channels")
    end = r"Loss over the whole validation text: \d\.\d{4} \(the best weights, from step 1\d\)\n\n(To be.{40})\n\Z"
    sample = re.search(end, done.stdout, re.DOTALL)
    assert sample is not None, done.stdout
    assert set(sample[1]) <= set(VERSE)
    assert "step 10: validation loss" in done.stderr
    assert (tmp_path / "run" / "metrics.jsonl").exists()


def test_a_prompt_the_model_can_not_read_is_refused_before_training(command: list[str], tmp_path: Path) -> None:
    done = run([*command, f"--out={tmp_path / 'run'}", "--prompt=#"])
    assert done.returncode == 2
    assert "the character '#'" in done.stderr
    assert "validation loss" not in done.stderr
    assert not (tmp_path / "run" / "checkpoints.json").exists()


def test_a_mistake_found_late_does_not_cost_the_older_run(command: list[str], tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert run([*command, f"--out={out}"]).returncode == 0
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    for mistake in ("--prompt=#", "--prompt=", "--temperature=nan", "--top-k=0", "--max-new-tokens=-1"):
        done = run([*command, f"--out={out}", "--overwrite", "--seed=3", mistake])
        assert done.returncode == 2, done.stderr
        assert len(done.stderr.splitlines()) == 1, done.stderr
        assert {path.name: path.read_bytes() for path in out.iterdir()} == before, mistake


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGINT between processes")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_stopped_and_gone_on_with_as_it_says(command: list[str], tmp_path: Path, number: int, code: int) -> None:
    command = [*command, "--steps=1200", "--checkpoint-every=100", "--eval-every=100"]
    stopped = tmp_path / "stopped"
    with Process(
        [*command, f"--out={stopped}"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT
    ) as process:
        while not (stopped / "checkpoints.json").exists() and process.poll() is None:
            time.sleep(0.005)
        process.send_signal(number)
        out, errors = process.communicate(timeout=60)
    assert process.returncode == code, errors
    assert "Finishing this step, then saving" in errors
    assert "Traceback" not in errors
    typed = shlex.split(out.splitlines()[-1])
    assert typed[:2] == ["python", str(EXAMPLE)]
    for arguments in (typed[1:], [*command[1:], f"--out={tmp_path / 'undisturbed'}"]):
        done = run([sys.executable, *arguments])
        assert done.returncode == 0, done.stderr
    assert_same_outcome(stopped, tmp_path / "undisturbed")
