"""From a name such as `gpt2` or `owner/name` to a folder: the local Hugging Face cache, then the hub.

`find_model` looks in this order: a folder of that name; the cache that all programs of Hugging Face share (its layout
is simple: models--owner--name/refs/main names a commit, snapshots/COMMIT holds its files), for which no library is
needed; the hub itself, through `huggingface_hub` (extra `hub`). What is in the cache is used as it is, without asking
the network whether there is a newer one. Environment variables:

    TINYGPT_OFFLINE=1, HF_HUB_OFFLINE=1     never try the network
    HF_HUB_CACHE, HF_HOME, XDG_CACHE_HOME   where the cache is, as for Hugging Face's own programs
"""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path

from ..errors import CheckpointError, UsageError, missing_extra
from .config import CONFIG, GENERATION, read_config
from .weights import HOW_TO_CONVERT, INDEX, SINGLE, shards_of

# The first models were there before names had owners; the hub still knows both names.
_OWNERS = {
    "gpt2": "openai-community", "gpt2-medium": "openai-community", "gpt2-large": "openai-community",
    "gpt2-xl": "openai-community", "distilgpt2": "distilbert",
}  # fmt: skip
_NAME = re.compile(r"[A-Za-z0-9_][\w.-]*(/[A-Za-z0-9_][\w.-]*)?", re.ASCII)
_REVISION = re.compile(r"\w[\w-]*([./]\w[\w-]*)*", re.ASCII)  # a branch, a tag or a commit: never a path upwards
_COMMIT = re.compile(r"[0-9a-f]{40}")


def find_model(folder_or_name: str | os.PathLike[str], revision: str = "main") -> Path:
    """The folder with the model's files. revision: a branch, a tag or a commit, for names.

    Raises UsageError where there is none, MissingExtraError where it could be fetched with `huggingface_hub`.
    """
    path = find_here(folder_or_name, revision)
    return _fetch(os.fspath(folder_or_name), revision) if path is None else path


def find_here(folder_or_name: str | os.PathLike[str], revision: str = "main") -> Path | None:
    """As `find_model`, but None for what has to be fetched; MissingExtraError where that is not possible."""
    text = os.fspath(folder_or_name)
    if not isinstance(text, str) or not text:
        raise UsageError(f"a model is given by its folder or its name, not by {folder_or_name!r}")
    path = Path(text).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise UsageError(f"{path} is a file: give the folder that holds config.json and the weights")
    if not _NAME.fullmatch(text):
        raise UsageError(f"there is no folder {path}, and a model's name is like gpt2 or owner/name")
    if not isinstance(revision, str) or not _REVISION.fullmatch(revision):
        raise UsageError(f"a revision is a branch, a tag or a commit, not {revision!r}")
    found = _in_cache(text, revision)
    if found is not None:
        return found
    for variable in ("TINYGPT_OFFLINE", "HF_HUB_OFFLINE"):
        if os.environ.get(variable, "").upper() not in ("", "0", "OFF", "NO", "FALSE"):
            raise UsageError(
                f"there is no folder {path} and no model {text!r} in the cache {cache_folder()}, and {variable} "
                "forbids to fetch it"
            )
    _Hub(text, revision)
    return None


# The cache ----------------------------------------------------------------------------------------------


def cache_folder() -> Path:
    """Where Hugging Face's programs keep what they fetch."""
    for variable in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if chosen := os.environ.get(variable):
            return Path(os.path.expandvars(chosen)).expanduser()
    if home := os.environ.get("HF_HOME"):
        return Path(os.path.expandvars(home)).expanduser() / "hub"
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "huggingface" / "hub"


def _in_cache(name: str, revision: str) -> Path | None:
    """The cached snapshot of a model, if all that is needed of it is there."""
    owner, _, short = name.rpartition("/")
    names = [name]
    if not owner and name in _OWNERS:
        names.append(f"{_OWNERS[name]}/{name}")
    elif owner and _OWNERS.get(short) == owner:
        names.append(short)
    for one in names:
        folder = cache_folder() / f"models--{one.replace('/', '--')}"
        commit = revision
        with contextlib.suppress(OSError, ValueError):
            commit = (folder / "refs" / revision).read_text(encoding="ascii").strip()
        snapshot = folder / "snapshots" / commit
        if _COMMIT.fullmatch(commit) and _is_whole(snapshot):
            return snapshot
    return None


def _is_whole(snapshot: Path) -> bool:
    if not (snapshot / CONFIG).exists():
        return False
    if (snapshot / SINGLE).exists():
        return True
    try:
        return all((snapshot / name).exists() for name in shards_of(snapshot).values())
    except CheckpointError:  # no index, or a damaged one
        return False


# The hub ------------------------------------------------------------------------------------------------


def _fetch(name: str, revision: str) -> Path:
    """Fetch what is needed of a model, and nothing else, into the cache; its folder there."""
    hub = _Hub(name, revision)
    folder = hub.get(CONFIG).parent
    if _COMMIT.fullmatch(folder.name):
        hub.revision = folder.name  # the rest from the same commit, whatever happens to the branch meanwhile
    read_config(folder, dropout=0.0)  # a model that is none of ours is refused before its weights come
    for optional in (GENERATION, "tokenizer_config.json", "special_tokens_map.json"):
        hub.get_if_there(optional)
    if not hub.get_if_there("tokenizer.json"):
        for part in ("vocab.json", "merges.txt", "tokenizer.tinygpt.json"):
            hub.get_if_there(part)
    if not hub.get_if_there(SINGLE):
        if not hub.get_if_there(INDEX):
            raise CheckpointError(
                f"the model {name!r} has no weights as safetensors on the hub, neither {SINGLE} nor {INDEX}: "
                + HOW_TO_CONVERT.format(name)
            )
        for shard in sorted(set(shards_of(folder).values())):
            hub.get(shard)
    return folder


class _Hub:
    """One model on the hub. Every failure becomes a sentence."""

    def __init__(self, name: str, revision: str) -> None:
        try:
            import huggingface_hub
            from huggingface_hub import errors
        except ImportError as error:
            raise missing_extra(
                "huggingface_hub", f"there is no folder {name} and no such model in the cache; fetching {name!r}"
            ) from error
        self.hub, self.errors, self.name, self.revision = huggingface_hub, errors, name, revision

    def get(self, file: str) -> Path:
        """The file in the cache, fetched if need be."""
        path = self.get_if_there(file)
        if path is None:
            raise CheckpointError(f"the model {self.name!r} on the hub has no {file} at revision {self.revision!r}")
        return path

    def get_if_there(self, file: str) -> Path | None:
        """As `get`; None where the model has no such file."""
        errors, what = self.errors, f"cannot fetch {file} of the model {self.name!r}"
        try:
            return Path(self.hub.hf_hub_download(self.name, file, revision=self.revision))
        except errors.LocalEntryNotFoundError as error:  # a kind of EntryNotFoundError: so it comes before
            raise UsageError(f"{what}: the hub can't be reached, and the file is not in the cache") from error
        except errors.EntryNotFoundError:
            return None
        except errors.GatedRepoError as error:
            raise UsageError(
                f"{what}: its owner gives it to users who asked for it; log in with `hf auth login`"
            ) from error
        except errors.RevisionNotFoundError as error:
            raise UsageError(f"{what}: there is no revision {self.revision!r}") from error
        except errors.RepositoryNotFoundError as error:
            raise UsageError(f"there is neither a folder {self.name} nor a model of this name on the hub") from error
        except Exception as error:  # the library, its transport and the disk have many more
            first = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise UsageError(f"{what}: {first}") from error
