"""Find the folder of a model by name, such as `gpt2` or `owner/name`, in the local Hugging Face cache or on the hub.

`find_model` tries, in this order: a local folder of that name, or a checkpoint of nanoGPT, which is a file; the cache
shared by all Hugging Face programs, which needs no library to read (models--owner--name/refs/main contains a commit
hash, and snapshots/COMMIT its files); and the hub, through `huggingface_hub` (extra `hub`). A cached model is used
without checking the hub for a newer version.
Environment variables:

    TINYGPT_OFFLINE=1, HF_HUB_OFFLINE=1     never use the network
    HF_HUB_CACHE, HF_HOME, XDG_CACHE_HOME   location of the cache, as for Hugging Face's own programs
"""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path

from ..errors import CheckpointError, UsageError, missing_extra
from ..files import user_path
from ..tokenizers import FILES as TOKENIZER_FILES
from .config import CONFIG, GENERATION, read_config
from .nanogpt import SUFFIXES, checkpoint_in
from .weights import ADAPTER, ADAPTER_CONFIG, INDEXES, ORDER, TORCH_ADAPTER, WHOLE, shards_of, weights_file

# The first models predate owners in names; the hub still accepts both forms.
_OWNERS = {
    "gpt2": "openai-community", "gpt2-medium": "openai-community", "gpt2-large": "openai-community",
    "gpt2-xl": "openai-community", "distilgpt2": "distilbert",
}  # fmt: skip
_NAME = re.compile(r"[A-Za-z0-9_][\w.-]*(/[A-Za-z0-9_][\w.-]*)?", re.ASCII)
_REVISION = re.compile(r"\w[\w-]*([./]\w[\w-]*)*", re.ASCII)  # a branch, tag or commit; never contains ".."
_COMMIT = re.compile(r"[0-9a-f]{40}")


def find_model(folder_or_name: str | os.PathLike[str], revision: str = "main", weights: bool = True) -> Path:
    """The folder with the model's files, or nanoGPT's file.

    revision: a branch, tag or commit, if the model is given by name. weights: False if the small files, such as the
    tokenizer's, are enough.
    Raises UsageError if the model is not found, and MissingExtraError if downloading it needs `huggingface_hub`.
    """
    path = find_here(folder_or_name, revision, weights)
    return _fetch(os.fspath(folder_or_name), revision, weights) if path is None else path


def find_here(folder_or_name: str | os.PathLike[str], revision: str = "main", weights: bool = True) -> Path | None:
    """As `find_model`, but returns None if the model must be downloaded. Raises MissingExtraError if it can't be."""
    text = os.fspath(folder_or_name)
    if not isinstance(text, str) or not text:
        raise UsageError(f"a model must be given by its folder or its name, not {folder_or_name!r}")
    path = user_path(text)
    if path.is_dir():
        return checkpoint_in(path)
    if path.exists():
        if path.suffix in SUFFIXES:
            return path
        raise UsageError(f"{path} is a file: give the folder that contains config.json and the weights")
    if not _NAME.fullmatch(text):
        raise UsageError(f"there is no folder {path}, and it is not a model name such as gpt2 or owner/name")
    if not isinstance(revision, str) or not _REVISION.fullmatch(revision):
        raise UsageError(f"revision must be a branch, tag or commit, not {revision!r}")
    found = _in_cache(text, revision, weights)
    if found is not None:
        return found
    for variable in ("TINYGPT_OFFLINE", "HF_HUB_OFFLINE"):
        if os.environ.get(variable, "").upper() not in ("", "0", "OFF", "NO", "FALSE"):
            raise UsageError(
                f"there is no folder {path} and no model {text!r} in the cache {cache_folder()}, and {variable} "
                "forbids downloading it: unset it, or give a folder"
            )
    _Hub(text, revision)
    return None


# The cache ----------------------------------------------------------------------------------------------


def cache_folder() -> Path:
    """The download cache of Hugging Face's programs."""
    for variable in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if chosen := os.environ.get(variable):
            return user_path(os.path.expandvars(chosen))
    if home := os.environ.get("HF_HOME"):
        return user_path(os.path.expandvars(home)) / "hub"
    return user_path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface" / "hub"


def _in_cache(name: str, revision: str, weights: bool) -> Path | None:
    """The cached snapshot of a model, or None if any of the files wanted are missing."""
    owner, _, short = name.rpartition("/")
    names = [name]
    if not owner and name in _OWNERS:
        names.append(f"{_OWNERS[name]}/{name}")
    elif owner and _OWNERS.get(short) == owner:
        names.append(short)
    for candidate in names:
        folder = cache_folder() / f"models--{candidate.replace('/', '--')}"
        commit = revision
        with contextlib.suppress(OSError, ValueError):
            commit = (folder / "refs" / revision).read_text(encoding="ascii").strip()
        snapshot = folder / "snapshots" / commit
        if _COMMIT.fullmatch(commit) and (_is_complete(snapshot) or (not weights and _has_tokenizer(snapshot))):
            return snapshot
    return None


def _is_complete(snapshot: Path) -> bool:
    if (snapshot / ADAPTER_CONFIG).exists() and any((snapshot / name).exists() for name in (ADAPTER, TORCH_ADAPTER)):
        return True
    if not (snapshot / CONFIG).exists():
        return False
    found = weights_file(snapshot)
    if found is None or found in WHOLE:
        return found is not None
    try:
        return all((snapshot / name).exists() for name in shards_of(snapshot, found).values())
    except CheckpointError:  # a damaged index
        return False


def _has_tokenizer(snapshot: Path) -> bool:
    return any((snapshot / name).exists() for name in TOKENIZER_FILES)


# The hub ------------------------------------------------------------------------------------------------


def _fetch(name: str, revision: str, with_weights: bool = True) -> Path:
    """Download only the needed files of a model into the cache. Returns its folder there."""
    hub = _Hub(name, revision)
    config = hub.get_if_there(CONFIG)
    adapter = hub.get_if_there(ADAPTER_CONFIG) if config is None else None
    folder = (config or adapter or hub.get(CONFIG)).parent
    if _COMMIT.fullmatch(folder.name):
        hub.revision = folder.name  # take all files from the same commit, even if the branch moves meanwhile
    if adapter is not None:
        if not hub.get_if_there(ADAPTER):
            hub.get(TORCH_ADAPTER)
        return folder
    read_config(folder, dropout=0.0)  # refuse an unsupported model before downloading its weights
    for optional in (GENERATION, "tokenizer_config.json", "special_tokens_map.json"):
        hub.get_if_there(optional)
    if not hub.get_if_there("tokenizer.json"):
        for part in ("vocab.json", "merges.txt", "vocab.txt", "tokenizer.tinygpt.json"):
            hub.get_if_there(part)
    if not with_weights:
        return folder
    weights = next((file for file in ORDER if hub.get_if_there(file)), None)
    if weights is None:
        raise CheckpointError(
            f"the model {name!r} has no weights on the hub that tinygpt reads: none of {', '.join(ORDER)}"
        )
    for shard in sorted(set(shards_of(folder, weights).values())) if weights in INDEXES else ():
        hub.get(shard)
    return folder


class _Hub:
    """One model on the hub. Every failure raises a UsageError."""

    def __init__(self, name: str, revision: str) -> None:
        try:
            import huggingface_hub
            from huggingface_hub import errors
        except ImportError as error:
            raise missing_extra(
                "huggingface_hub", f"there is no folder {name} and no such model in the cache; downloading {name!r}"
            ) from error
        self.hub, self.errors, self.name, self.revision = huggingface_hub, errors, name, revision

    def get(self, file: str) -> Path:
        """The path of the file in the cache, downloaded if necessary."""
        path = self.get_if_there(file)
        if path is None:
            raise CheckpointError(f"the model {self.name!r} on the hub has no {file} at revision {self.revision!r}")
        return path

    def get_if_there(self, file: str) -> Path | None:
        """As `get`, but None if the model has no such file."""
        errors, what = self.errors, f"cannot download {file} of the model {self.name!r}"
        try:
            return Path(self.hub.hf_hub_download(self.name, file, revision=self.revision))
        except errors.LocalEntryNotFoundError as error:  # must come first: a subclass of EntryNotFoundError
            raise UsageError(f"{what}: the hub can't be reached, and the file is not in the cache") from error
        except errors.EntryNotFoundError:
            return None
        except errors.GatedRepoError as error:
            raise UsageError(
                f"{what}: access needs its owner's approval: request it on the hub, then log in with `hf auth login`"
            ) from error
        except errors.RevisionNotFoundError as error:
            raise UsageError(f"{what}: there is no revision {self.revision!r}") from error
        except errors.RepositoryNotFoundError as error:
            raise UsageError(f"there is neither a folder {self.name} nor a model of that name on the hub") from error
        except Exception as error:  # the library, the network and the disk can fail in many more ways
            first = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise UsageError(f"{what}: {first}") from error
