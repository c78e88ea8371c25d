"""Models by name: the cache is read without a library, the hub's failures are sentences. No test uses the network."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from safetensors.numpy import load_file

import tinygpt as tg
from tests.interop import torch_writer
from tests.interop.helpers import CONFIG, GENERATION, INDEX, WEIGHTS, assert_same_model, change_json, make, saved
from tinygpt import GPT, UsageError, nn
from tinygpt.errors import CheckpointError, MissingExtraError
from tinygpt.interop import cache_folder, find_model, save_adapter

COMMIT, OLDER = "a" * 40, "b" * 40


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, no network, and a current folder in which there is nothing."""
    for variable in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "XDG_CACHE_HOME", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TINYGPT_OFFLINE", "1")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "home" / "hub"


def cached(cache: Path, name: str, model: GPT, commit: str = COMMIT, ref: str | None = "main", **options: Any) -> Path:
    folder = cache / f"models--{name.replace('/', '--')}"
    if ref is not None:
        path = folder / "refs" / ref
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(commit)
    snapshot = folder / "snapshots" / commit
    snapshot.mkdir(parents=True)
    return saved(snapshot, model, **options)


# The cache ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kept", "asked"),
    [
        ("gpt2", "gpt2"), ("openai-community/gpt2", "gpt2"), ("gpt2", "openai-community/gpt2"),
        ("distilgpt2", "distilgpt2"), ("distilbert/distilgpt2", "distilgpt2"), ("some/model.2-b", "some/model.2-b"),
    ],
)  # fmt: skip
def test_a_name_is_found_in_the_cache(cache: Path, kept: str, asked: str) -> None:
    model = make()
    assert cached(cache, kept, model) == find_model(asked)
    assert_same_model(GPT.from_pretrained(asked), model)


def test_shards_and_revisions_in_the_cache(cache: Path) -> None:
    new, old = make(seed=1), make(seed=2)
    cached(cache, "some/model", new, max_shard_size=2000)
    cached(cache, "some/model", old, OLDER, "pr/1")
    assert_same_model(GPT.from_pretrained("some/model"), new)
    assert_same_model(GPT.from_pretrained("some/model", revision="pr/1"), old)
    assert_same_model(GPT.from_pretrained("some/model", revision=OLDER), old)
    for revision in ("../main", "", 3, "a/../b", "c" * 40, "other"):
        with pytest.raises(UsageError, match=r"revision must be a branch|no model 'some/model' in the cache"):
            GPT.from_pretrained("some/model", revision=revision)


def test_a_tokenizer_by_its_models_name_needs_no_weights(cache: Path) -> None:
    folder = cached(cache, "openai-community/gpt2", make())
    tg.tokenizers.CharTokenizer.from_text("abc").save(folder)
    (folder / WEIGHTS).unlink()
    assert tg.tokenizers.load("gpt2") == tg.tokenizers.Tokenizer.from_pretrained("gpt2")
    assert tg.tokenizers.load("gpt2").decode([0, 1]) == "ab"
    with pytest.raises(UsageError, match="no model 'gpt2' in the cache"):
        GPT.from_pretrained("gpt2")
    with pytest.raises(UsageError, match="no model 'gpt3' in the cache"):
        tg.tokenizers.load("gpt3")
    with pytest.raises(UsageError, match="there is no folder"):
        tg.tokenizers.load("no/such/folder")


def test_a_folder_comes_before_the_cache(cache: Path) -> None:
    cached(cache, "gpt2", make(seed=1))
    saved(Path("gpt2"), make(seed=2))
    assert_same_model(GPT.from_pretrained("gpt2"), make(seed=2))


def test_where_the_cache_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache_folder() == tmp_path / "home" / "hub"
    monkeypatch.setenv("HUGGINGFACE_HUB_CACHE", str(tmp_path / "old"))
    assert cache_folder() == tmp_path / "old"
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "new"))
    assert cache_folder() == tmp_path / "new"
    for variable in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME"):
        monkeypatch.delenv(variable)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "huggingface" / "hub"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "huggingface" / "hub"


def test_what_is_not_whole_in_the_cache_is_not_taken(cache: Path) -> None:
    snapshot = cached(cache, "some/model", make(), max_shard_size=2000)
    shard = sorted(snapshot.glob("model-0*"))[1]
    content = shard.read_bytes()
    shard.unlink()
    with pytest.raises(UsageError, match="no model 'some/model' in the cache"):
        find_model("some/model")
    shard.write_bytes(content)
    assert find_model("some/model") == snapshot
    for name in (INDEX, CONFIG):
        (snapshot / name).unlink()
        with pytest.raises(UsageError, match="no model 'some/model' in the cache"):
            find_model("some/model")


@pytest.mark.parametrize("content", ["", "../..", "main", "\xff\n"])
def test_a_damaged_cache_is_as_good_as_none(cache: Path, content: str) -> None:
    cached(cache, "some/model", make())
    (cache / "models--some--model" / "refs" / "main").write_text(content, encoding="latin-1")
    with pytest.raises(UsageError, match="no model 'some/model' in the cache"):
        find_model("some/model")


@pytest.mark.parametrize("variable", ["TINYGPT_OFFLINE", "HF_HUB_OFFLINE"])
def test_offline_is_one_sentence(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.delenv("TINYGPT_OFFLINE")
    monkeypatch.setenv(variable, "1")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(
        UsageError, match=f"there is no folder gpt2 and no model 'gpt2' in the cache .*{variable} forbids"
    ):
        GPT.from_pretrained("gpt2")


@pytest.mark.parametrize("name", ["a/b/c", "../gpt2", "/nowhere/at/all", "a b", "~/nothing", ".hidden", "ä", "a\nb"])
def test_what_is_no_name_is_a_folder_that_is_missing(name: str) -> None:
    with pytest.raises(UsageError, match="there is no folder"):
        find_model(name)


# The hub, whose library is replaced by one that has the same names ---------------------------------------


class Hub:
    """A hub with one repository: the files of a folder, and what goes wrong."""

    def __init__(self, files: Path, cache: Path) -> None:
        self.files, self.snapshot = files, cache / "models--some--model" / "snapshots" / COMMIT
        self.fetched: list[tuple[str, str]] = []
        self.error: Exception | None = None

        class EntryNotFoundError(Exception):
            pass

        class LocalEntryNotFoundError(FileNotFoundError, EntryNotFoundError):
            pass

        class RepositoryNotFoundError(OSError):
            pass

        class GatedRepoError(RepositoryNotFoundError):
            pass

        class RevisionNotFoundError(OSError):
            pass

        self.errors = ModuleType("huggingface_hub.errors")
        for error in (
            EntryNotFoundError, LocalEntryNotFoundError, RepositoryNotFoundError, GatedRepoError, RevisionNotFoundError,
        ):  # fmt: skip
            setattr(self.errors, error.__name__, error)
        self.module = ModuleType("huggingface_hub")
        self.module.errors = self.errors  # type: ignore[attr-defined]
        self.module.hf_hub_download = self.download  # type: ignore[attr-defined]

    def download(self, repository: str, file: str, *, revision: str) -> str:
        assert repository == "some/model"
        if self.error is not None:
            raise self.error
        if not (self.files / file).exists():
            raise self.errors.EntryNotFoundError(f"404 for {file}")
        self.fetched.append((file, revision))
        self.snapshot.mkdir(parents=True, exist_ok=True)
        (self.snapshot / file).write_bytes((self.files / file).read_bytes())
        return str(self.snapshot / file)


@pytest.fixture
def hub(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    hub = Hub(saved(tmp_path / "files"), cache)
    monkeypatch.delenv("TINYGPT_OFFLINE")
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub.module)
    monkeypatch.setitem(sys.modules, "huggingface_hub.errors", hub.errors)
    return hub


def test_a_model_is_fetched_and_nothing_more_than_it(hub: Hub) -> None:
    for name in ("pytorch_model.bin", "tf_model.h5", "README.md", "vocab.json", "merges.txt", "tokenizer.json"):
        (hub.files / name).write_text("x")
    assert_same_model(GPT.from_pretrained("some/model"), make())
    # The configuration first; the rest from the commit that it came from, whatever becomes of the branch.
    assert hub.fetched[0] == (CONFIG, "main")
    assert sorted(hub.fetched[1:]) == sorted((name, COMMIT) for name in (GENERATION, WEIGHTS, "tokenizer.json"))


def test_shards_and_the_older_tokenizers_files_are_fetched(hub: Hub) -> None:
    saved(hub.files, max_shard_size=2000)
    for name in ("vocab.json", "merges.txt"):
        (hub.files / name).write_text("x")
    assert_same_model(GPT.from_pretrained("some/model", revision="v1.0"), make())
    assert hub.fetched[0] == (CONFIG, "v1.0")
    assert {name for name, _ in hub.fetched} == {path.name for path in hub.files.iterdir()}


def test_an_adapter_is_fetched_and_so_is_its_base(hub: Hub, cache: Path) -> None:
    base, model = cached(cache, "some/base", make().eval()), nn.add_lora(make().eval())
    model.h[0].attn.c_attn.lora_B.data[...] = 0.5
    for path in hub.files.iterdir():
        path.unlink()
    save_adapter(model, hub.files, base="some/base")
    (hub.files / "tokenizer.json").write_text("x")
    assert base.is_dir()
    found = GPT.from_pretrained("some/model")
    ids = [[1, 2, 3]]
    assert found(ids).data.tobytes() == model(ids).data.tobytes()
    assert hub.fetched == [("adapter_config.json", "main"), ("adapter_model.safetensors", COMMIT)]


def test_a_model_of_another_kind_is_refused_before_its_weights_come(hub: Hub) -> None:
    change_json(hub.files / CONFIG, model_type="llama")
    with pytest.raises(CheckpointError, match="model_type is 'llama'"):
        GPT.from_pretrained("some/model")
    assert [name for name, _ in hub.fetched] == [CONFIG]


def test_an_older_model_is_fetched_as_pytorch_model_bin(hub: Hub) -> None:
    torch_writer.write(hub.files / "pytorch_model.bin", load_file(hub.files / WEIGHTS))
    (hub.files / WEIGHTS).unlink()
    assert_same_model(GPT.from_pretrained("some/model"), make())
    assert "pytorch_model.bin" in {name for name, _ in hub.fetched}


def test_a_model_without_weights_is_refused(hub: Hub) -> None:
    (hub.files / WEIGHTS).rename(hub.files / "tf_model.h5")
    with pytest.raises(
        CheckpointError, match=r"has no weights on the hub that tinygpt reads: none of model.safetensors,"
    ):
        GPT.from_pretrained("some/model")
    (hub.files / CONFIG).unlink()
    with pytest.raises(
        CheckpointError, match=r"the model 'some/model' on the hub has no config.json at revision 'main'"
    ):
        GPT.from_pretrained("some/model")


@pytest.mark.parametrize(
    ("error", "words"),
    [
        ("LocalEntryNotFoundError", r"cannot download config.json of the model 'some/model': the hub can't be reached"),
        ("RepositoryNotFoundError", "there is neither a folder some/model nor a model of that name on the hub"),
        ("GatedRepoError", "access needs its owner's approval: .* log in"),
        ("RevisionNotFoundError", "there is no revision 'main'"),
        (OSError(28, "No space left on device"), r"cannot download .*: \[Errno 28\] No space left on device$"),
        (RuntimeError("first line\nand a page of advice"), "cannot download config.json .*: first line$"),
        (RuntimeError(), "cannot download config.json of the model 'some/model': RuntimeError$"),
    ],
)  # fmt: skip
def test_failures_of_the_hub_are_one_sentence(hub: Hub, error: str | Exception, words: str) -> None:
    hub.error = getattr(hub.errors, error)("404\nlong advice") if isinstance(error, str) else error
    with pytest.raises(UsageError, match=words) as caught:
        GPT.from_pretrained("some/model")
    assert "\n" not in str(caught.value)


def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TINYGPT_OFFLINE")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(MissingExtraError, match=r"there is no folder gpt2 .*pip install huggingface_hub"):
        GPT.from_pretrained("gpt2")
