"""Where a model lies on this machine, and which of its files are needed. No torch, no network.

Models are kept as the hub's own library keeps them (``models--OWNER--NAME/snapshots/COMMIT``), so
that what it has downloaded before is found. Getting a model here is ``pull.py``'s, what is in the
folder is ``checkpoint.py``'s to judge.
"""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Collection, Mapping
from pathlib import Path

from phi4d.engine.checkpoint import ADAPTER_WEIGHTS, PROCESSOR_CONFIGS, WEIGHTS, shards
from phi4d.engine.layout import ADAPTERS
from phi4d.errors import ConfigError

HUB_ID = "microsoft/Phi-4-multimodal-instruct"
REVISION = "main"
"""the hub's name for the newest version of a model"""
CONFIG = "config.json"
INDEX = f"{WEIGHTS}.index.json"
"""tells which shard holds which tensor, where the weights are not one file"""
ADAPTER_FILES = ("adapter_config.json", ADAPTER_WEIGHTS)
WHERE_THERE = ("generation_config.json", "tokenizer_config.json")
"""files that are taken along but can be done without"""


def resolve(model: str, revision: str | None = None, cache_dir: str | Path | None = None) -> Path:
    """Find the folder of a model on this machine. Never downloads.

    Args:
        model: a folder, or a name on the Hugging Face hub such as `HUB_ID`. An existing folder, or
            a text that begins with ``/``, ``.`` or ``~``, is a folder; so is anything that cannot
            be a hub's name.
        revision: branch, tag or commit of the hub's model; None for `REVISION`.
        cache_dir: looked in first, then the hub library's own cache (``HF_HUB_CACHE``); None for
            the second alone.

    Raises:
        ConfigError: the hub's model is not here, or not whole; the message has the command that
            downloads it, and says which cache this user may not read.
    """
    if not is_remote(model):
        return Path(model).expanduser()
    revision = revision or REVISION
    command = pull_command(model, revision, cache_dir)
    lacking: list[str] = []
    for folder in snapshots(model, revision, cache_dir):
        absent = missing(folder)
        if not absent:
            return folder
        lacking = lacking or [str(folder / name) for name in absent]
    if lacking:
        raise ConfigError(
            f"{model}: the download is incomplete, {len(lacking)} files are missing, {lacking[0]} "
            f"first. Go on with: {command}"
        )
    looked = [f"{cache}{_refused(storage_of(model, cache))}" for cache in caches(cache_dir)]
    raise ConfigError(
        f"{model}: neither a folder nor downloaded, at revision {revision}; looked in "
        f"{' and '.join(looked)}. Download it with: {command}"
    )


def pull_command(
    model: str = HUB_ID, revision: str = REVISION, cache_dir: str | Path | None = None
) -> str:
    """The command line that downloads a model where `resolve` finds it."""
    words = ["phi4d", "model", "pull"]
    if model != HUB_ID:
        words.append(model)
    if revision != REVISION:
        words += ["--revision", revision]
    if cache_dir:
        words += ["--cache-dir", str(cache_dir)]
    return shlex.join(words)


def is_remote(model: str) -> bool:
    """Whether a text names a model on the hub, ``owner/name``, and no folder that is here."""
    named = re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", model)
    # os.path, because a working folder that this user may not read, such as root's, holds none
    return named is not None and not os.path.isdir(model)


def caches(cache_dir: str | Path | None) -> list[Path]:
    """The folders in which models are kept, in the order in which they are looked in."""
    from huggingface_hub.constants import HF_HUB_CACHE

    folders = [Path(cache_dir)] if cache_dir else []
    return [*dict.fromkeys([*folders, Path(HF_HUB_CACHE)])]


def storage_of(model: str, cache: Path) -> Path:
    """The folder in a cache for all revisions of a model: ``refs``, ``snapshots``, ``blobs``."""
    return cache / f"models--{model.replace('/', '--')}"


def is_commit(revision: str) -> bool:
    """Whether a revision is a commit, which never changes, and not a branch or a tag."""
    return re.fullmatch(r"[0-9a-f]{40}", revision) is not None


def snapshots(model: str, revision: str, cache_dir: str | Path | None) -> list[Path]:
    """The folders that hold a revision of the hub's model, whole or not; the first goes first."""
    found = []
    for cache in caches(cache_dir):
        storage = storage_of(model, cache)
        commit = revision if is_commit(revision) else _commit(storage / "refs" / revision)
        # os.path, because a cache that this user may not read must not stand before the next
        if commit and os.path.isdir(storage / "snapshots" / commit):
            found.append(storage / "snapshots" / commit)
    return found


def missing(folder: Path) -> list[str]:
    """Files that a model needs and a folder lacks; empty if it may be whole.

    A file that cannot be read as what it should be is not missing: to check the folder finds it.
    """
    present = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    weight_map: Mapping[str, str] = {}
    if WEIGHTS not in present and INDEX in present:
        try:
            weight_map = shards(json.loads((folder / INDEX).read_text("utf-8")))
        except (OSError, ValueError):
            return []
    return [name for name in needed(present, weight_map) if name not in present]


def needed(present: Collection[str], weight_map: Mapping[str, str]) -> list[str]:
    """The files that phi4d reads, of all that a model consists of.

    Args:
        present: the model's files, below its folder.
        weight_map: a tensor's name to its shard (`shards`); empty if the weights are one file.

    Returns:
        Names in the order of their size, about: if a download breaks off, no later file is there
        while an earlier one is not. A name that is not in `present` is missing.
    """
    names = [CONFIG, *(name for name in WHERE_THERE if name in present), "tokenizer.json"]
    names += [name for name in PROCESSOR_CONFIGS if name in present] or PROCESSOR_CONFIGS[-1:]
    if weight_map:
        names.append(INDEX)
    for adapter, folder in ADAPTERS.items():
        files = [f"{folder}/{name}" for name in ADAPTER_FILES]
        if not weight_map:  # only the weights' own file can tell whether the adapter is in it
            names += [name for name in files if name in present]
        elif not any(f".lora_A.{adapter}." in key for key in weight_map):
            names += files
    return names + (sorted(set(weight_map.values())) or [WEIGHTS])


def _commit(reference: Path) -> str | None:
    """The commit that a branch or tag was when it was downloaded; None if it was not."""
    try:
        commit = reference.read_text("utf-8").strip()
    except (OSError, ValueError):
        return None
    return commit if is_commit(commit) else None


def _refused(folder: Path) -> str:
    """Why a folder cannot be looked into, in brackets; nothing if it can, or is not there."""
    try:
        os.scandir(folder).close()
    except (FileNotFoundError, NotADirectoryError):
        return ""
    except OSError as error:
        return f" ({error.strerror})"
    return ""
