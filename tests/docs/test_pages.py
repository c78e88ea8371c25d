"""Every page of docs/ and the README: its commands have the options that it gives them, its files are there, its Python
runs, and its figures are those of the files of results."""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest

import tinygpt as tg
from tests.packaging.test_readme import blocks
from tinygpt.cli import OptionParser
from tinygpt.training import PRESETS

ROOT = Path(__file__).parents[2]
DOCS, RESULTS = ROOT / "docs", ROOT / "benchmarks" / "results"
PAGES = ["README.md", "README.zh.md", *sorted(f"docs/{path.name}" for path in DOCS.glob("*.md"))]
# Pages whose Python is run by tests of their own: tests/docs/test_from_pytorch.py, tests/packaging, tests/serving.
ELSEWHERE = {
    "docs/from_pytorch.md",
    "docs/inside.md",
    "docs/watch_a_run.md",
    "docs/serving.md",
    "README.md",
    "README.zh.md",
}


def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


# Commands -------------------------------------------------------------------------------------------


def commands(page: str) -> list[list[str]]:
    lines = "".join(blocks(page, "sh")).replace("\\\n", " ").splitlines()
    found = []
    for line in lines:
        words = shlex.split(line, comments=True)
        while "&&" in words:
            found.append(words[: words.index("&&")])
            words = words[words.index("&&") + 1 :]
        found.append(words)
    return [words for words in found if words]


def check(words: list[str], folder: Path) -> None:
    """Fail unless the command could be run: the program has these options, the script is there, the extras exist."""
    while re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words = words[1:]
    if "<" in words:
        words = words[: words.index("<")]
    program, *rest = words
    if program == "mpirun":
        program, *rest = words[words.index("tinygpt") :]
    if program == "tinygpt":
        command, *arguments = rest
        for place, word in enumerate(arguments):
            if word == "--config":
                (folder / "config.toml").write_text("", encoding="utf-8")
                arguments[place + 1] = str(folder / "config.toml")
        module = "evaluate" if command == "eval" else command
        assert callable(OptionParser(source=f"tinygpt.cli.{module}").parse_args(arguments).run)
    elif program == "pip":
        extras = tomllib.loads(text_of("pyproject.toml"))["project"]["optional-dependencies"]
        (asked,) = re.findall(r"^\.\[(.*)\]$", rest[-1])
        assert set(asked.split(",")) <= extras.keys()
    elif program in ("python", "bash") and rest[0] not in ("-m", "-c"):
        script = (ROOT / rest[0]).read_text(encoding="utf-8")
        if not re.search("add_run_options|add_model_options|_recipe", script):  # else some are of another file
            options = [word.partition("=")[0] for word in rest[1:] if word.startswith("--")]
            assert not [option for option in options if f'"{option}"' not in script]
    elif program == "make":
        assert f"\n{rest[0]}:" in text_of("Makefile")
    else:
        assert words[:3] in (["python", "-m", "tinygpt.kernel"], ["python3", "-m", "venv"]) or program in (
            ".", "pytest", "python",
        )  # fmt: skip


@pytest.mark.parametrize("page", PAGES)
def test_commands(page: str, tmp_path: Path) -> None:
    for words in commands(page):
        check(list(words), tmp_path)


@pytest.mark.parametrize(
    "line",
    ["tinygpt train --no-such 1", "python examples/none.py", "pip install -e '.[none]'", "make none", "unknown x",
     "python benchmarks/generate.py --none"],
)  # fmt: skip
def test_a_wrong_command_is_noticed(line: str, tmp_path: Path) -> None:
    with pytest.raises((SystemExit, AssertionError, FileNotFoundError)):
        check(shlex.split(line), tmp_path)


# Files and code -------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES)
def test_files_are_there(page: str) -> None:
    text = text_of(page)
    for path in re.findall(r"`((?:tinygpt|tests|benchmarks|examples|docs|\.ci)/[\w./]+)`", text):
        assert (ROOT / path).exists(), path
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", text):
        place = (ROOT / page).parent / target
        made = target.startswith(("operations/", "reference/"))  # by the build, which checks the links itself
        assert made or place.exists(), target


def test_the_python_of_the_library_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "library"}
    for block in blocks("docs/library.md", "python"):
        exec(compile(block, "docs/library.md", "exec"), names)
    assert capsys.readouterr().out == "(4, 8) (8, 16)\n"
    assert names["logits"].shape == (8, 64, 65)
    assert names["ids"].shape == (1, 25)
    assert names["state"].keys() == dict(names["model"].named_parameters()).keys()
    assert not list(tmp_path.iterdir())


def test_all_python_is_run_somewhere() -> None:
    assert {page for page in PAGES if blocks(page, "python")} == ELSEWHERE | {"docs/library.md"}


# Figures --------------------------------------------------------------------------------------------


def table_rows(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("| ").split("|")] for line in text.splitlines() if line[:1] == "|"]


@pytest.mark.slow
def test_sizes_of_the_presets() -> None:
    text = text_of("docs/training.md")
    for name in ("tiny", "fast", "baby"):
        config = tg.GPTConfig(vocab_size=65, **PRESETS[name].model)
        assert f"| `{name}` | {tg.GPT(config).num_parameters():,} |" in text


def parameters(preset: str, vocab_size: int) -> int:
    """The number of parameters with biases, by the formula on the page about the model, without making them."""
    model = PRESETS[preset].model
    L, C, T = model["n_layer"], model["n_embd"], 1024  # GPT-2's block; that of the preset gpt2 is shorter
    return vocab_size * C + T * C + L * (12 * C * C + 13 * C) + 2 * C


def test_sizes_of_gpt2() -> None:
    smallest, largest = parameters("gpt2", 50257), parameters("gpt2-xl", 50257)
    assert (round(smallest / 1e6), round(largest / 1e9, 1)) == (124, 1.6)
    for page in ("docs/training.md", "docs/what_gpt2_is_not.md"):
        assert "124 million to 1.6 billion" in text_of(page)
    assert "GPT-2 (124 million parameters)" in text_of("docs/generating.md")
    assert f"all {4 * smallest / 1e6:.0f} MB of weights" in text_of("docs/generating.md")


@pytest.mark.slow
def test_sizes_of_several_processes() -> None:
    """In float32: what a step sends and receives, twice a gradient; and AdamW's two numbers per parameter."""
    count = tg.GPT(tg.GPTConfig(vocab_size=65, **PRESETS["baby"].model)).num_parameters()
    page, megabytes = text_of("docs/more_than_one_machine.md"), 8 * count / 1e6
    assert f"{megabytes:.0f} MB for the preset `baby`" in page
    assert f"1 Gbit/s that takes {8e-3 * megabytes:.1f} s, at 10 Gbit/s {8e-4 * megabytes:.2f} s" in page
    assert f"{megabytes / 2:.1f} MB on each of two, instead of {megabytes:.1f}" in page


def test_figures_of_training() -> None:
    every = (RESULTS / "optimizers-all.txt").read_text(encoding="utf-8")
    fast = (RESULTS / "optimizers-fast.txt").read_text(encoding="utf-8")
    loss = re.findall(r"^\| adamw \|.*\| (1\.\d{4}) \| 1\.\d{4} to", every, re.M)[0]
    time, quick = re.findall(r"^\| fast \|.*\| (0\.\d\d) \| (1\.\d{4}) \|", fast, re.M)[0]
    for page in ("README.md", "docs/training.md"):
        text = text_of(page)
        assert f"{float(loss):.3f}" in text
        assert f"{quick} in {time} of the time" in text or f"in {time} of the time, with Muon | {quick} |" in text


def test_figures_of_generation() -> None:
    """Those of the second run, rounded."""
    second = (RESULTS / "generate.md").read_text(encoding="utf-8").partition("# Second run")[2]
    rows = {row[0]: row for row in reversed(table_rows(second)) if row[0].startswith(("tiny", "llama", "trans"))}
    speeds = [rows[f"tinygpt {dtype}"][2] for dtype in ("float32", "bfloat16", "int8")]
    theirs = [rows[f"llama.cpp {dtype}"][2] for dtype in ("f32", "f16", "q8_0")]
    many = re.findall(r"^\| tinygpt float32 \| [\d.]+ \| ([\d.]+) \| [\d.]+ \| 4 \|$", second, re.M)
    prompts = dict(re.findall(r"^\| (\S+ \S+) \| \d+ \| (\d+) \|$", second, re.M))
    page = text_of("docs/generating.md")
    ours = [*speeds, *many, prompts["tinygpt float32"]]
    assert f"| tinygpt | {' | '.join(f'{float(value):.0f}' for value in ours)} |" in page
    ours = [*theirs, prompts["llama.cpp f32"]]
    assert "| llama.cpp | {:.0f} | {:.0f} | {:.0f} | | {:.0f} |".format(*map(float, ours)) in page
    transformers = (rows["transformers float32"][2], prompts["transformers float32"])
    assert "| transformers | {:.0f} | | | | {:.0f} |".format(*map(float, transformers)) in page
    assert "faster than 14.9 ms" in (RESULTS / "generate.md").read_text(encoding="utf-8")
    assert "faster than 14.9 ms" in page
    readme = text_of("README.md")
    assert "| 58 | llama.cpp 51, transformers 42 |" in readme
    assert "| 104, 159 | llama.cpp 71, 99 |" in readme


def test_figures_of_the_gpu() -> None:
    record = (RESULTS / "gpu_first_contact.md").read_text(encoding="utf-8")
    page, readme = text_of("docs/gpu.md"), text_of("README.md")
    rows = re.findall(r"^\| (gpt2|baby) \(.*?\) \| .*? \| ([\d.]+ ms), [\d,]+ tokens/s \| ([\d.]+ ms)", record, re.M)
    assert len(rows) == 2
    for _, ours, theirs in rows:
        assert f"| {ours} | {theirs} |" in page
    assert f"{rows[0][1]} | PyTorch eager {rows[0][2]} |" in readme


def test_figures_of_the_recipes() -> None:
    """Each is in the docstring of its script."""
    rows = [row for row in table_rows(text_of("docs/finetuning.md")) if row[0].startswith("`") and ".py" in row[0]]
    scripts = sorted(path.name for path in (ROOT / "examples" / "recipes").glob("[!_]*.py"))
    assert sorted(row[0].split("`")[1] for row in rows) == scripts
    assert (len(scripts), "Nine scripts" in text_of("docs/finetuning.md")) == (9, True)
    assert "from 542 pairs" in text_of("examples/recipes/translation.py")
    assert "from 542 examples" in text_of("docs/finetuning.md")
    for name, _, model, baseline in rows:
        docstring = text_of(f"examples/recipes/{name.split('`')[1]}").split('"""')[1]
        for figure in (model, baseline.split(",")[0]):
            assert re.search(rf"(?<![\d.]){re.escape(figure)}(?![\d]|\.\d)", docstring), (name, figure)


# The picture ----------------------------------------------------------------------------------------


def test_the_terminal_shows_the_record() -> None:
    from tests.docs.test_site import module

    terminal = module("terminal")
    record = (DOCS / "terminal.txt").read_text(encoding="utf-8")
    picture = (DOCS / "terminal.svg").read_text(encoding="utf-8")
    assert picture == terminal.picture(record)
    assert len(picture) < 10_000
    assert [line[2:] for line in record.splitlines() if line.startswith("$ ")] == list(terminal.COMMANDS)
    for command in terminal.COMMANDS:
        check(shlex.split(command), DOCS)
    assert "Loss over the whole validation text: 1.8" in record
