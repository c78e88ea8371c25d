"""The page of `tinygpt report`: what it says is what the runs were, in HTML that needs nothing else."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from html import escape
from pathlib import Path
from typing import Any

import pytest

from tests.cli.helpers import assert_one_sentence
from tests.report.helpers import Page, layers, usual, write_run
from tinygpt.report import find_runs, page

CONFIG = 'data = "/a/<b>.txt"\nlr = 0.001\nsteps = 40\nn_layer = 2\n'


def read(*folders: Path) -> tuple[str, Page]:
    html = page(find_runs(folders))
    return html, Page(html)


def test_one_run(tmp_path: Path) -> None:
    records = [*usual(), {"step": 40, "sample": "To <be>\n\x1b[31m"}, layers(40, 1e-3)]
    html, found = read(write_run(tmp_path / "<run>", records, CONFIG))
    assert found.of("h1") == ["<run>"]
    assert found.of("h2") == ["Loss", "Over the steps", "Layers", "Samples", "Settings"]
    assert found.of("figcaption") == ["Loss "] * 3 + [
        "Learning rate", "Gradient norm ", "Speed ", "Share of the processor's peak",
    ]  # fmt: skip
    facts = found.table
    assert facts["best validation loss"] == "3.2000, at step 40 (perplexity 24.53)"
    assert facts["last training loss"] == "3.2500, at step 40"
    assert facts["tokens"] == "3,840"
    assert facts["time in training"] == "20.0 s"
    assert facts["speed"] == "215 tokens/s (median)"
    assert facts["energy (an estimate)"] == "0.4 Wh"
    assert facts["data"] == "/a/<b>.txt"
    assert facts["lr"] == "0.001"
    assert found.of("pre") == ["To <be>\n\ufffd[31m"]
    assert "finished, 40 steps." in found.of("p")
    assert {"validation: 3.4 at 20", "validation: 3.4 at 1,920"} <= {*found.tooltips}
    assert "layers0-ratio" in html


def test_it_is_whole_alone_and_without_scripts(tmp_path: Path) -> None:
    html, found = read(write_run(tmp_path, [*usual(), layers(40, 1e-3)], CONFIG))
    assert not [attributes for _, attributes in found.found if {"src", "href"} & attributes.keys()]
    assert not re.search(r"https?://|url\(|@import|<script", html)
    assert "default-src 'none'" in html
    assert "width=device-width" in html
    assert "prefers-color-scheme: dark" in html
    identities = [attributes["id"] for _, attributes in found.found if "id" in attributes]
    assert len(identities) == len(set(identities))
    labels = [attributes["for"] for tag, attributes in found.found if tag == "label"]
    assert set(labels) == set(identities)


def test_several_runs_in_one_picture(tmp_path: Path) -> None:
    a = write_run(tmp_path / "a", [*usual(loss=3.0), layers(40, 1e-3)], CONFIG)
    b = write_run(tmp_path / "b", usual(loss=2.0), CONFIG.replace("0.001", "0.002") + "seed = 1\n")
    html, found = read(a, b)
    assert found.of("h1") == ["2 runs"]
    assert found.of("figcaption").count("Loss ") == 3
    assert {"a: training", "b: validation"} <= {*found.tooltips}
    row = html[html.index("<tr class=best>") :]
    assert row[: row.index("</tr>")].count("<td") == 7
    assert "<th>b</th>" in row[: row.index("</tr>")]
    assert "2.2000" in row[: row.index("</tr>")]
    head = [text for text in found.of("th") if text in ("lr", "seed", "n_layer", "data")]
    assert head == ["lr", "seed", "data", "n_layer"]  # the first two differ, the others are shared
    assert "Settings that all runs share" in found.of("h2")
    assert found.of("h3") == ["a"]  # whose layers they are


def test_accuracy_and_f1_of_finetune(tmp_path: Path) -> None:
    records: list[dict[str, Any]] = [
        {"step": 5, "loss": 0.7, "lr": 1e-4, "grad_norm": 1.0},
        {"step": 5, "validation_loss": 0.69, "accuracy": 0.5, "macro_f1": 0.4},
        {"step": 10, "validation_loss": 0.60, "accuracy": 0.75, "macro_f1": 0.7},
    ]
    _, found = read(write_run(tmp_path / "a", records))
    assert found.table["accuracy there"] == "0.7500"
    assert "perplexity" not in found.table["best validation loss"]
    assert found.of("figcaption")[-4:-2] == ["Accuracy", "Macro f1"]
    assert "a: 0.75 at 10" in found.tooltips
    html, found = read(write_run(tmp_path / "b", records), tmp_path / "a")
    assert {"accuracy", "macro f1"} <= {*found.of("th")}
    assert html.count("<td class=number>0.7500</td>") == 2


def test_a_run_of_old_has_only_what_it_recorded(tmp_path: Path) -> None:
    html, found = read(write_run(tmp_path, [{"step": 10, "loss": 2.0}]))
    assert found.of("h2") == ["Loss"]
    assert found.of("figcaption") == ["Loss "]
    assert "minutes" not in html
    assert found.table == {"last training loss": "2.0000, at step 10"}
    _, found = read(write_run(tmp_path / "evaluated", [{"step": 0, "validation_loss": 2.0}]))
    assert found.table["best validation loss"].startswith("2.0000, at step 0")


def test_what_was_changed_and_what_is_damaged_is_said(tmp_path: Path) -> None:
    records = [*usual(), {"step": 40, "changed": {"lr": [0.1, 0.01], "x": 3}}]
    html, _ = read(write_run(tmp_path, records, end="nonsense\n\n"))
    assert "At step 40 the run was resumed with lr 0.01 instead of 0.1, x 3 instead of ?." in html
    assert "2 damaged lines of" in html
    assert "are left out." in html


def test_many_samples_and_many_runs(tmp_path: Path) -> None:
    samples = [{"step": step, "sample": f"sample {step} " + "x" * 5000} for step in range(1, 41)]
    _, found = read(write_run(tmp_path / "one", samples))
    texts = found.of("pre")
    assert len(texts) == 12
    assert texts[0].startswith("sample 1 ")
    assert texts[-1].startswith("sample 40 ")
    assert all(len(text) == 3001 for text in texts)
    for i in range(40):
        write_run(tmp_path / "sweep" / f"lr={i}", [*usual(loss=i), layers(40, 1e-3)], f"lr = {i}\n")
    html, found = read(tmp_path / "sweep")
    assert found.of("h1") == ["40 runs"]
    assert "32 more runs recorded their layers" in html
    assert len(html) < 1_500_000


@pytest.mark.slow
def test_a_long_run_makes_no_long_page(tmp_path: Path) -> None:
    steps = range(1, 30_001)
    records = [{"step": step, "loss": 1 / step, "lr": 0.1, "tokens": step, "seconds": step} for step in steps]
    html, found = read(write_run(tmp_path, records))
    assert len(html) < 100_000
    assert found.of("h2") == ["Loss", "Over the steps"]


# The command ------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_command(run: Any, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.training.helpers import OPTIONS

    monkeypatch.setattr("tinygpt.training.monitoring.reporting.draw_loss_curve", lambda *paths: None)
    monkeypatch.chdir(tmp_path)
    options = [*OPTIONS, "--data", text, "--watch-layers", "4", "--sample-every", "6", "--sample-tokens", "5"]
    assert run("train", "--out", "a", *options).code == 0
    assert run("train", "--out", "b", *options, "--lr", "0.02", "--steps", "8").code == 0
    found = run("report", "a", "b")
    assert found.code == 0
    lines = found.out.splitlines()
    assert lines[0].startswith("a: finished, 12 steps; the best validation loss was ")
    assert lines[1].startswith("b: finished, 8 steps")
    assert lines[2] == "The page is report.html"
    seen = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert {"lr", "steps"} <= {*seen.of("th")}
    assert seen.of("h2") == ["Loss", "Over the steps", "Layers", "Samples", "Settings that all runs share"]
    assert run("report", "a", "--out", "report.html").code == 0  # a report is replaced
    assert Page((tmp_path / "report.html").read_text(encoding="utf-8")).of("h1") == ["a"]
    assert sorted(os.listdir(tmp_path)) == ["a", "b", "report.html"]


def test_what_it_refuses(run: Any, tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", usual())
    (tmp_path / "mine.html").write_text("<html>mine")
    (tmp_path / "empty").mkdir()
    for arguments, words in (
        ([tmp_path / "nowhere"], "there is no folder .*nowhere"),
        ([folder, tmp_path / "empty"], "empty is not the folder of a run"),
        ([folder, "--out", tmp_path], "is a folder: give the name of a file"),
        ([folder, "--out", tmp_path / "no" / "x.html"], "which is not a folder"),
        ([folder, "--out", tmp_path / "mine.html"], "mine.html exists, and is not an earlier report"),
    ):
        out = [] if "--out" in arguments else ["--out", tmp_path / "x.html"]
        assert_one_sentence(run("report", *arguments, *out), words)
    assert (tmp_path / "mine.html").read_text() == "<html>mine"
    assert sorted(os.listdir(tmp_path)) == ["empty", "mine.html", "run"]
    assert run("report").code == 2


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs the program chromium")
@pytest.mark.parametrize("width", [360, 1440])
def test_it_is_laid_out_in_a_browser(tmp_path: Path, width: int) -> None:
    """The page needs no sideways scrolling, and a map is shown. It stands in a frame, since a window is never narrower
    than 500 px."""
    records = [*usual(), layers(20, 1e-4), layers(40, 1e-3), {"step": 40, "sample": "word " * 100}]
    html, _ = read(write_run(tmp_path / ("a-long-name-" * 8), records, CONFIG))
    script = (
        "<script>parent.document.title = document.documentElement.scrollWidth + ' ' + innerWidth + ' ' + "
        "document.querySelector('.heat svg').getBoundingClientRect().height</script>"
    )
    html = html.replace("style-src", "script-src 'unsafe-inline'; style-src").replace("</body>", script + "</body>")
    frame = f'<title></title><iframe style="width: {width}px; border: 0" srcdoc="{escape(html)}"></iframe>'
    (tmp_path / "page.html").write_text(frame, encoding="utf-8")
    command = [
        str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}",
        "--window-size=1600,900", "--dump-dom", (tmp_path / "page.html").as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    found = re.search(r"<title>(\d+) (\d+) ([\d.]+)</title>", done.stdout)
    assert found is not None, done.stdout[:500]
    assert int(found[1]) <= int(found[2]) == width
    assert float(found[3]) > 20
