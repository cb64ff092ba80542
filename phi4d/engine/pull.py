"""Gets a model from the Hugging Face hub onto this machine. No torch.

``remote.py`` tells what there is and brings it; here is decided what is needed, and where it goes:
into folders as the hub's library keeps them (``docs/decisions/0003-own-transfer.md``).
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from phi4d.engine import checkpoint, hub
from phi4d.engine.layout import MODEL_TYPE, layout_of
from phi4d.engine.remote import PAUSE_SECONDS, File, Remote, size
from phi4d.errors import ConfigError, EnvironmentFault

Progress = Callable[[str, int, int], None]
"""called with a file's name, the bytes that are here of all files, and the bytes of all files"""


@dataclass(frozen=True, slots=True)
class Pulled:
    """A whole model on this machine."""

    folder: Path
    fetched_bytes: int = 0
    """what came over the network"""
    unasked: str = ""
    """why the hub could not be asked whether there is a newer one; empty if it need not, or was"""


def pull(
    model: str,
    revision: str,
    cache_dir: Path,
    progress: Progress | None = None,
    *,
    endpoint: str | None = None,
    pause_seconds: float = PAUSE_SECONDS,
) -> Pulled:
    """Download what is not here yet of the files that phi4d needs of a model.

    What breaks off goes on from there at the next call, within a file too. What the hub's library
    has in its own cache is taken as it is. A copy that cannot be read is compared with the hub, and
    what differs comes again.

    Args:
        model: name on the hub.
        revision: branch, tag or commit.
        cache_dir: where to; made if it is missing.
        progress: told of each file and each piece.
        endpoint: address of the hub; None for ``HF_ENDPOINT``, or the usual one.
        pause_seconds: see `phi4d.engine.remote.PAUSE_SECONDS`.

    Raises:
        ConfigError: there is no such model or revision, it may not be had, or it is another kind
            of model.
        EnvironmentFault: no network, the hub is down, the disk is full or cannot be written.
    """
    try:
        return _pull(Remote(model, endpoint, pause_seconds), revision, cache_dir, progress)
    except OSError as error:
        raise EnvironmentFault(
            f"{error.filename or cache_dir}: {error.strerror or error}. Mend that; cache_dir, and "
            "HF_HOME for what the hub's library keeps, say where else to go"
        ) from error


def _pull(remote: Remote, revision: str, cache_dir: Path, progress: Progress | None) -> Pulled:
    model = remote.model
    whole = [f for f in hub.snapshots(model, revision, cache_dir) if not hub.missing(f)]
    here = next(filter(_can_be_read, whole), None)
    if here and hub.is_commit(revision):
        return Pulled(here)
    try:
        commit, files = remote.list(revision)
    except EnvironmentFault as fault:
        if here:
            return Pulled(here, unasked=str(fault))
        raise
    if here and here.name == commit:
        return Pulled(here)
    with _alone(model, cache_dir):
        storage = hub.storage_of(model, cache_dir)
        download = _Download(remote, storage, commit, progress)
        if whole and not here:
            download.remove_damaged(files)
        return download.run(revision, files)


def _can_be_read(folder: Path) -> bool:
    try:
        checkpoint.read(folder)
    except ConfigError:
        return False
    return True


class _Download:
    """One model on its way into a cache."""

    def __init__(
        self, remote: Remote, storage: Path, commit: str, progress: Progress | None
    ) -> None:
        self._remote = remote
        self._storage = storage
        self._commit = commit
        self._progress = progress
        self._blobs = storage / "blobs"
        self._folder = storage / "snapshots" / commit
        self._here = self._total = self._fetched = 0

    def run(self, revision: str, files: dict[str, File]) -> Pulled:
        """Download what is needed of a model's files."""
        self._blobs.mkdir(parents=True, exist_ok=True)
        self._folder.mkdir(parents=True, exist_ok=True)
        # What the other files are is known from these two, which are small.
        for name in (hub.CONFIG, hub.INDEX):
            if name in files:
                self._get(files[name])
        wanted = _wanted(self._remote.model, self._folder, files)
        once = {file.digest: file for file in wanted}.values()  # some files are equal
        self._total = sum(file.size for file in once)
        self._here = sum(map(self._present_bytes, once))
        _expect_room(self._total - self._here, self._storage.parent)
        reference = self._storage / "refs" / revision
        if not reference.exists():  # else the old version is used until the new one is whole
            _refer(reference, self._commit)
        for file in wanted:
            self._tell(file)
            self._get(file)
        _refer(reference, self._commit)
        return Pulled(self._folder, self._fetched)

    def remove_damaged(self, files: dict[str, File]) -> None:
        """Remove files that are not what the hub has, so that they come again. Reads them all."""
        for file in files.values():
            place = self._folder / file.name
            if place.is_file() and _digest(place, file) != file.digest:
                place.resolve().unlink()
                place.unlink(missing_ok=True)

    def _get(self, file: File) -> None:
        def arrived(count: int) -> None:
            self._here += count
            self._fetched += count
            self._tell(file)

        place, blob = self._folder / file.name, self._blobs / file.digest
        if place.is_file():
            return
        if not blob.is_file():
            part = self._part(file)
            self._remote.fetch(file, self._commit, part, arrived)
            _verify(part, file)
            part.replace(blob)
        _link(blob, place)

    def _tell(self, file: File) -> None:
        if self._progress and self._total:
            self._progress(file.name, self._here, self._total)

    def _part(self, file: File) -> Path:
        return self._blobs / f"{file.digest}.incomplete"

    def _present_bytes(self, file: File) -> int:
        """How many bytes of a file need not come."""
        if (self._folder / file.name).is_file() or (self._blobs / file.digest).is_file():
            return file.size
        part = self._part(file)
        return min(part.stat().st_size, file.size) if part.exists() else 0


def _wanted(model: str, folder: Path, files: dict[str, File]) -> list[File]:
    """The files to download, from the configuration and the index that are here already."""
    try:
        config = json.loads((folder / hub.CONFIG).read_text("utf-8"))
        found, layout = config.get("model_type"), layout_of(config)
    except (OSError, ValueError, AttributeError):
        found = layout = None
    if layout is None:
        raise ConfigError(
            f"{model}: its config.json has model_type {found!r}, expected {MODEL_TYPE!r} or "
            f"'phi4mm': no Phi-4-multimodal. Give another model, such as {hub.HUB_ID}"
        )
    weight_map = {}
    if checkpoint.WEIGHTS not in files and hub.INDEX in files:
        try:
            weight_map = checkpoint.shards(json.loads((folder / hub.INDEX).read_text("utf-8")))
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"{model}: its {hub.INDEX} is no index of shards ({error}). Give another revision"
            ) from error
    names = hub.needed(files, weight_map)
    if absent := [name for name in names if name not in files]:
        raise ConfigError(
            f"{model}: not a whole model: the hub has no {', '.join(absent)}. Give another "
            "model or revision"
        )
    return [files[name] for name in names]


@contextmanager
def _alone(model: str, cache_dir: Path) -> Iterator[None]:
    """See that nobody else downloads the model to the same place."""
    path = cache_dir / ".locks" / f"{hub.storage_of(model, cache_dir).name}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise EnvironmentFault(
                f"{cache_dir}: another phi4d downloads {model} to it. Wait for it, or stop it"
            ) from error
        yield


def _expect_room(count: int, cache_dir: Path) -> None:
    free = shutil.disk_usage(cache_dir).free
    if count > free:
        raise EnvironmentFault(
            f"{cache_dir}: {size(count)} are to be downloaded, but its disk has {size(free)} free. "
            "Make room, or give another cache_dir"
        )


def _verify(part: Path, file: File) -> None:
    """See that what came is what the hub has, and that it is on the disk."""
    with part.open("rb+") as content:
        os.fsync(content)
    if _digest(part, file) != file.digest:
        part.unlink()
        raise EnvironmentFault(
            f"{part}: {file.name} arrived damaged and was removed. Download it again with the same "
            "command"
        )


def _digest(path: Path, file: File) -> str:
    """What the hub would call this content of a file."""
    with path.open("rb") as content:
        if len(file.digest) == 64:
            return hashlib.file_digest(content, "sha256").hexdigest()
        # git's own hash of a file, which says nothing of who made it
        known = hashlib.sha1(usedforsecurity=False)
        known.update(f"blob {path.stat().st_size}\0".encode())
        known.update(content.read())
        return known.hexdigest()


def _link(blob: Path, place: Path) -> None:
    """Put a file into the model's folder, by a link or, where there are none, by moving it."""
    place.parent.mkdir(parents=True, exist_ok=True)
    place.unlink(missing_ok=True)  # a link whose blob was removed
    try:
        place.symlink_to(os.path.relpath(blob, place.parent))
    except OSError:
        blob.replace(place)


def _refer(reference: Path, commit: str) -> None:
    """Note which commit a branch or tag is; a commit needs no note."""
    if hub.is_commit(reference.name):
        return
    reference.parent.mkdir(parents=True, exist_ok=True)
    new = reference.with_name(f"{reference.name}.new")
    new.write_text(commit, "utf-8")
    new.replace(reference)
