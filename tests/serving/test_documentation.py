"""docs/serving.md names what the server has, and nothing else."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from tests.serving.clients import MODEL, TOKENIZER
from tinygpt.cli import serve
from tinygpt.data.dialogue import PRESETS
from tinygpt.serving import app, protocol, server
from tinygpt.serving.app import application
from tinygpt.serving.bodies import CHAT, CHAT_REFUSED, COMPLETION, COMPLETION_REFUSED, Served
from tinygpt.serving.engine import MANY, PIECE, Engine

PAGE = (Path(__file__).parents[2] / "docs" / "serving.md").read_text(encoding="utf-8")


def test_fields() -> None:
    named = set(re.findall(r"`([a-z_]+)`", PAGE))
    assert (CHAT | COMPLETION) - named - {"prompt"} == set()
    refused = re.search(r"can't be honoured \((.*), \.\.\.\)", PAGE)
    assert refused is not None
    assert set(refused[1].replace("`", "").split(", ")) <= {*CHAT_REFUSED, *COMPLETION_REFUSED}


def test_options() -> None:
    parser = argparse.ArgumentParser()
    serve.add_options(parser)
    known = {option for action in parser._actions for option in action.option_strings}
    before_figures = PAGE.partition("## How fast")[0]
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", before_figures))
    assert named - known == {"--greedy"}  # an option of `sample`
    wanted = "places waiting prefix-cache api-key-env allow-host allow-origin host name"
    assert {f"--{name}" for name in wanted.split()} <= named


def test_paths_and_limits() -> None:
    engine = Engine(MODEL, places=1)
    served = Served(MODEL, TOKENIZER, "tiny", PRESETS["plain"], 1)
    paths = {getattr(route, "path", "") for route in application(served, engine).routes}
    engine.close()
    assert set(re.findall(r"^\| `(/[^`]*)` \|", PAGE, re.MULTILINE)) == {
        path for path in paths if not path.startswith("/page/") and "{" not in path
    }
    assert f"at most {PIECE} tokens of prompts" in PAGE
    assert f"up to {MANY * PIECE}, of several prompts" in PAGE
    assert f"{protocol.MOST_CONNECTIONS} connections" in PAGE
    assert f"open for {server.KEEP_ALIVE} s" in PAGE
    assert app.MOST_SECONDS == protocol.MOST_SECONDS == 30
    assert app.MOST_BYTES == 1 << 20
