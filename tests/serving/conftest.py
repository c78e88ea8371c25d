"""A server in a process of its own; and a client of an application in this one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

from tests.generation.helpers import make
from tests.processes import Process
from tests.serving.clients import MODEL, client_of
from tests.training.helpers import ENVIRONMENT
from tinygpt.serving.engine import Engine
from tinygpt.tokenizers import CharTokenizer

KEY = "sk-not-to-be-logged"


@dataclass
class Server:
    """A running `tinygpt serve`."""

    process: Process
    url: str
    folder: Path

    def stop(self, number: int = signal.SIGTERM) -> tuple[int, str, str]:
        """Exit code, standard output and error."""
        self.process.send_signal(number)
        out, err = self.process.communicate(timeout=60)
        return self.process.returncode, out, err


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with opinions and room for long texts."""
    folder = tmp_path_factory.mktemp("served") / "tiny"
    make(np.float32, vocab_size=96, block_size=2048, n_layer=1, n_head=2, n_embd=16).save_pretrained(folder)
    CharTokenizer("\n" + "".join(map(chr, range(32, 127)))).save(folder)
    return folder


@pytest.fixture
def server(folder: Path) -> Iterator[Server]:
    command = [sys.executable, "-m", "tinygpt", "serve", f"--model={folder}", "--port=0", "--api-key-env=SERVE_KEY"]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with Process(command, env=ENVIRONMENT | {"SERVE_KEY": KEY}, cwd=os.sep, **pipes) as process:
        try:
            line = process.stdout.readline() if process.stdout is not None else ""
            assert line.startswith("Serving tiny at http://127.0.0.1:"), process.communicate(timeout=60)
            yield Server(process, line.split()[3].removesuffix("/v1"), folder)
        finally:
            process.kill()


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    engine = Engine(MODEL, places=3, waiting=6)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def client(engine: Engine) -> Iterator[TestClient]:
    with client_of(engine) as client:
        yield client
