"""The ways through the code in CONTRIBUTING.md are those that the code takes: it is watched while two commands run.

The files of a way stand in the order in which the run first calls a function of each, every file that is called on the
way is named, and none calls one that stands before it, except where `ASKED_AGAIN` says why.

What counts is calls of functions: not that an object is made, nor that a property or an item of it is read, nor that a
generator goes on, which returns to it.
"""

from __future__ import annotations

import gc
import inspect
import re
import sys
from importlib import import_module
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import pytest

import tinygpt
from tinygpt.cli import OptionParser
from tinygpt.kernel import compiled_part

PACKAGE = Path(tinygpt.__file__).parent
PAGE = Path(__file__).parents[2] / "CONTRIBUTING.md"

# Called from everywhere, and read as one reads a library. Calls go through them: what `Tensor.backward` calls counts.
EVERYWHERE = {
    "errors, checks, random, graph, console, changes, torch_names": "small things of every file",
    "backends, kernel, tensor, function": "the way of an operation is a row of its own",
    "nn/module, nn/known, nn/packed, nn/precision": "what all layers share",
    "ops/_, ops/cast, ops/cross_entropy, ops/cached_attention": "what several operations share",
}
# What they do is no part of the way: neither they nor what they call counts.
ASIDE = {
    "ops/arithmetic, ops/layer_norm, ops/linear.py, ops/gelu": "operations, which are all built like another",
    "nn/lora, training/adapters": "adapters, which neither run has",
    "cli/needs, training/settings/packages": "optional packages that are missing",
}
ASIDE_OF_A_BATCH = {
    "training/epochs, training/settings/options, training/settings/config": "the settings: another row",
    "training/text/corpus, cli/handover, cli/process, parallel": "options, and several processes",
    "training/text/text_facts, training/text/token": "`prepare.py` says what it makes of the text",
    "data/token, data/documents, data/opening, data/character_vocabulary, tokenizers": "and with what",
    "training/evaluation, training/final": "an evaluation",
    "training/storage, training/urgent, training/interrupt, checkpoint, exchange, files, lock": "the files of a run",
    "training/monitoring, training/result, memory": "what is shown",
    "training/step/loss_scale": "float16",
}
ASIDE_OF_A_PROMPT = {
    "exchange, files, checkpoint, safetensors_io, array_file, memory": "the files of a model",
    "interop/hub, interop/nanogpt, interop/peft, interop/weights, interop/packed, interop/saving": "their formats",
    "data, tokenizers, generation/config_file": "templates, the tokenizer, and the settings of a model",
    "nn, ops": "the layers, which are those of a batch",
    "generation/prompt_cache, generation/decoder_checks": "checks of arguments",
}
# What a file was handed it may call, and what was read whole it may ask again.
ASKED_AGAIN = {
    ("training/step/accumulation.py", "training/step/share.py"): "for its rows and for the sums over all processes",
    ("training/step/planned_step.py", "training/objective.py"): "accumulation.py hands it what a batch computes",
    ("nn/residual.py", "gpt.py"): "gpt.py hands it the blocks and layers",
    ("nn/residual.py", "nn/layers.py"): "of which the first norm is one",
    ("engine.py", "ops/"): "the operations have left it their backward passes",
    ("ops/linear_cross_entropy.py", "ops/"): "an operation makes again what was not kept of its result",
    ("optim/adamw.py", "optim/optimizer.py"): "its base class",
    ("generation/request.py", "generation/options.py"): "the command's options are of any call, these of this one",
    ("generation/joint_prompts.py", "gpt.py"): "decoder.py has let it make the cache",
    ("generation/text_pieces.py", "generation/stopping.py"): "for stop strings, which the text ends before",
}
# Of the class LanguageModel, and only passed on.
FACADES = {"check_ids", "compute_in", "train", "eval"}


def ways() -> dict[str, list[str]]:
    """The rows of the page: what is followed, and through which files."""
    page = PAGE.read_text(encoding="utf-8").replace("\\", "").partition("## Add an operation")[0]
    return {way: files.split(", ") for way, files in re.findall(r"^\| (.+) \| (.+\.py.*) \|$", page, re.MULTILINE)}


class Walk:
    """Watches a run: which files are called, first to last, and which calls which."""

    def __init__(self, aside: dict[str, str]) -> None:
        self.everywhere, self.aside = _beginnings(EVERYWHERE), _beginnings(ASIDE | aside)
        self.met: set[str] = set()  # of these beginnings
        self.first: dict[str, str] = {}  # file -> the function that was called
        self.calls: dict[tuple[str, str], str] = {}
        self.files: dict[CodeType, str | None] = {}
        found = [one.fget for one in gc.get_objects() if type(one) is property]
        self.properties = {get.__code__ for get in found if inspect.isfunction(get)}

    def __call__(self, frame: FrameType, event: str, _: Any) -> None:
        if event != "call" or not self._counts(frame.f_code):
            return
        file, callers = self._file(frame.f_code), []
        above = frame.f_back
        while above is not None:
            caller = self._file(above.f_code)
            if caller is not None:
                if self._is(caller, self.aside) or above.f_code.co_name in ("__init__", "__post_init__", "<module>"):
                    return
                if not self._is(caller, self.everywhere):
                    callers.append(caller)
            above = above.f_back
        assert file is not None
        what = frame.f_code.co_qualname
        self.first.setdefault(file, what)
        if callers and callers[0] != file:
            self.calls.setdefault((callers[0], file), what)

    def _counts(self, code: CodeType) -> bool:
        file, name = self._file(code), code.co_name
        if file is None or self._is(file, self.everywhere + self.aside):
            return False
        read = name in ("__init__", "__post_init__", "__getitem__", "__len__", "__iter__") or code in self.properties
        passed_on = file == "language_model.py" and name in FACADES
        return not (read or passed_on or name.startswith("<") or code.co_flags & inspect.CO_GENERATOR)

    def _is(self, file: str, beginnings: tuple[str, ...]) -> bool:
        if not file.startswith(beginnings):
            return False
        self.met.update(one for one in beginnings if file.startswith(one))
        return True

    def _file(self, code: CodeType) -> str | None:
        if code not in self.files:
            path = Path(code.co_filename)
            self.files[code] = path.relative_to(PACKAGE).as_posix() if path.is_relative_to(PACKAGE) else None
        return self.files[code]


def _beginnings(named: dict[str, str]) -> tuple[str, ...]:
    return tuple(", ".join(named).split(", "))


def faults(way: list[str], walk: Walk) -> list[str]:
    """A sentence for each place in which a way is not the one that was walked."""
    found = [f"{file} is called ({what}), but not named" for file, what in walk.first.items() if file not in way]
    found += [f"{file} is named, but not called" for file in way if file not in walk.first]
    met = [file for file in walk.first if file in way]
    found += [f"the order is: {', '.join(met)}"] * (not found and met != way)
    for (caller, file), what in walk.calls.items():
        back = caller in way and file in way and way.index(file) < way.index(caller)
        if back and not any(caller == one and file.startswith(other) for one, other in ASKED_AGAIN):
            found.append(f"{caller} calls {what} of {file}, which stands before it")
    return found


def run(command: str, *arguments: Any, walk: Walk | None = None) -> None:
    module, parser = import_module(f"tinygpt.cli.{command}"), OptionParser()
    module.add_options(parser)
    options = parser.parse_args([*map(str, arguments)])
    before = sys.getprofile()
    sys.setprofile(before if walk is None else walk)
    try:
        assert options.run(options) == 0
    finally:
        sys.setprofile(before)


@pytest.fixture(scope="module")
def walks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Walk]:
    """Two runs, after one of each that is not watched, since a file that is imported calls others."""
    if compiled_part("start_threads") is None:
        pytest.skip("without the compiled kernels there is no plan of a step, and the way is a shorter one")
    place = tmp_path_factory.mktemp("ways")
    text = place / "text.txt"
    text.write_text("To be, or not to be, that is the question.\n" * 50, encoding="utf-8")
    sizes = {"n-layer": 1, "n-head": 1, "n-embd": 16, "block-size": 16, "batch-size": 2, "dropout": 0.1, "steps": 1}
    train = ["--data", text, *(f"--{name}={value}" for name, value in sizes.items()), "--no-cache", "--out"]
    sample = ["--model", place / "first", "--prompt", "To be", "--top-k", "5", "--max-new-tokens", "1", "--stop", "!"]
    run("train", *train, place / "first")
    run("sample", *sample)
    batch, prompt = Walk(ASIDE_OF_A_BATCH), Walk(ASIDE_OF_A_PROMPT)
    run("train", *train, place / "second", walk=batch)
    run("sample", *sample, walk=prompt)
    return {"a batch, from the text to the optimizer": batch, "a prompt, to a token": prompt}


@pytest.mark.parametrize("way", ["a batch, from the text to the optimizer", "a prompt, to a token"])
def test_a_way_is_the_one_that_the_code_takes(walks: dict[str, Walk], way: str) -> None:
    assert not faults(ways()[way], walks[way]), "\n".join(faults(ways()[way], walks[way]))


def test_each_reason_is_needed(walks: dict[str, Walk]) -> None:
    back = [
        call for way, walk in walks.items() for call in walk.calls
        if {*call} <= {*ways()[way]} and ways()[way].index(call[1]) < ways()[way].index(call[0])
    ]  # fmt: skip
    for one, other in ASKED_AGAIN:
        assert any(caller == one and file.startswith(other) for caller, file in back), (one, other)


def test_each_exemption_is_of_a_file_that_is_met(walks: dict[str, Walk]) -> None:
    met = {one for walk in walks.values() for one in walk.met}
    assert sorted({one for walk in walks.values() for one in walk.everywhere + walk.aside} - met) == []


@pytest.mark.parametrize("way", ["a batch, from the text to the optimizer", "a prompt, to a token"])
def test_another_way_is_noticed(walks: dict[str, Walk], way: str) -> None:
    """Two neighbours that change places, a file that is left out, and one that nobody calls."""
    files = ways()[way]
    for i in range(len(files) - 1):
        assert faults([*files[:i], files[i + 1], files[i], *files[i + 2 :]], walks[way]), files[i]
    assert all(faults([other for other in files if other != file], walks[way]) for file in files)
    assert faults([*files, "classifier.py"], walks[way])


def test_each_way_names_a_file_once() -> None:
    assert len(ways()) == 5
    for way, files in ways().items():
        assert len(set(files)) == len(files), way
        assert all((PACKAGE / file).is_file() for file in files), way
