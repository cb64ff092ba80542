"""A model of a disk that forgets what was not synced, fed with what strace saw of a daemon.

Strict as POSIX is: a file's bytes are on the disk after fsync or fdatasync of the file, and a name
after fsync of the folder that it is in. What was not synced may have reached the disk or not, whole
or torn: `Disk.cut` draws one such fate.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from chaoskit import STRACE

CALLS = (
    "open,openat,creat,write,pwrite64,writev,pwritev,pwritev2,ftruncate,truncate,fallocate,"
    "copy_file_range,sendfile,rename,renameat,renameat2,link,linkat,symlink,symlinkat,unlink,"
    "unlinkat,rmdir,mkdir,mkdirat,fsync,fdatasync,sync,syncfs,sync_file_range"
)
"""what strace has to record; those that are not modelled are refused when they are met"""
RECORD = [STRACE, "-f", "--detach-on=execve", "-qq", "-y", "-xx", "-s1000000"]
"""data and names in full, as hexadecimal digits; without what the children do"""
SYNCS = ("fsync", "fdatasync")
TORN_B = (512, 4096)
"""borders at which a write may be torn: a sector, a page"""


_LINE = re.compile(r"(\d+) +(\w+)\((.*)\) += (-?\d+|\?)(.*)")
_UNFINISHED = re.compile(r"(\d+) +(\w+\(.*) <unfinished \.\.\.>")
_RESUMED = re.compile(r"(\d+) +<\.\.\. \w+ resumed>(.*)")
_DESCRIPTOR = re.compile(r"(?:AT_FDCWD|\d+)<([^>]*)>(\(deleted\))?")


@dataclass(frozen=True)
class Call:
    """One syscall.

    Attributes:
        name: strace's.
        paths: of the files or folders that it is about; absolute.
        data: that it writes.
        numbers: its arguments that are numbers, in order, without descriptors.
        flags: its arguments that are names, in one text.
        result: what it returned; negative: it failed.
        injected: it never reached the kernel.
    """

    name: str
    paths: tuple[str, ...]
    data: bytes = field(repr=False)
    numbers: tuple[int, ...]
    flags: str
    result: int
    injected: bool

    @property
    def failed(self) -> bool:
        return self.result < 0


def calls(record: Path) -> Iterator[Call]:
    """What strace recorded with `RECORD` and `CALLS`, in the order in which the calls returned."""
    begun: dict[str, str] = {}
    with open(record) as lines:
        for line in lines:
            if unfinished := _UNFINISHED.match(line):
                begun[unfinished[1]] = unfinished[2]
                continue
            if resumed := _RESUMED.match(line):
                whole = f"{resumed[1]} {begun.pop(resumed[1])}{resumed[2]}"
            else:
                whole = line
            if (found := _LINE.match(whole)) and found[4] != "?":
                yield _call(found)


def _call(found: re.Match[str]) -> Call:
    _, name, arguments, result, rest = found.groups()
    paths: list[str] = []
    data = b""
    numbers: list[int] = []
    flags: list[str] = []
    above = ""
    for argument in arguments.split(", "):
        if descriptor := _DESCRIPTOR.fullmatch(argument):
            # a file that was unlinked while open is nowhere
            above = "" if descriptor[2] else _unquoted(descriptor[1]).decode()
            paths.append(above)
            continue
        if argument.startswith('"') and "write" in name:
            data = _unquoted(argument.strip('"'))
        elif argument.startswith('"'):
            if above:  # the folder that the name is below
                paths.pop()
            paths.append(str(Path(above or Path.cwd(), _unquoted(argument.strip('"')).decode())))
        elif argument.isdigit():
            numbers.append(int(argument))
        else:
            flags.append(argument)
        above = ""
    injected = "(INJECTED)" in rest
    return Call(name, tuple(paths), data, tuple(numbers), "|".join(flags), int(result), injected)


def _unquoted(text: str) -> bytes:
    return bytes.fromhex(text.replace("\\x", ""))


@dataclass
class File:
    """A file's bytes, by what happened to them.

    Attributes:
        synced: what is on the disk for certain.
        later: writes and truncations since then, in order.
    """

    synced: bytes = b""
    later: list[tuple[int, bytes | None]] = field(default_factory=list)
    """offset and data; None for data: cut or extended to that length"""

    def content(self, later: Iterable[tuple[int, bytes | None]] | None = None) -> bytes:
        data = bytearray(self.synced)
        for offset, written in self.later if later is None else later:
            if len(data) < offset:
                data.extend(bytes(offset - len(data)))
            if written is None:
                del data[offset:]
            else:
                data[offset : offset + len(written)] = written
        return bytes(data)

    def sync(self) -> None:
        self.synced, self.later = self.content(), []


@dataclass
class Folder:
    """Names of a folder: those on the disk for certain, and changes since then, in order."""

    synced: dict[str, File | Folder] = field(default_factory=dict)
    later: list[Change] = field(default_factory=list)

    def names(self) -> dict[str, File | Folder]:
        """As programs see it."""
        names = dict(self.synced)
        for change in self.later:
            change.apply(self, names)
        return names

    def sync(self) -> None:
        self.synced, self.later = self.names(), []


@dataclass(eq=False)
class Change:
    """One syscall's change of names, which a journal keeps together: both folders of a rename."""

    entries: list[tuple[Folder, str, File | Folder | None]]
    """folder, name, and what it now names; None: the name is gone"""

    def apply(self, folder: Folder, names: dict[str, File | Folder]) -> None:
        for where, name, node in self.entries:
            if where is folder:
                if node is None:
                    names.pop(name, None)
                else:
                    names[name] = node


class Fate:
    """What becomes of what was not synced."""

    def writes(self, file: File) -> list[tuple[int, bytes | None]]:
        """Those that reached the disk."""
        raise NotImplementedError

    def changes(self, folder: Folder) -> list[Change]:
        """Those that reached the disk."""
        raise NotImplementedError


class Strict(Fate):
    """Nothing that was not synced reached the disk."""

    def writes(self, file: File) -> list[tuple[int, bytes | None]]:
        return []

    def changes(self, folder: Folder) -> list[Change]:
        return []


class Everything(Fate):
    """All of it reached the disk: what programs see."""

    def writes(self, file: File) -> list[tuple[int, bytes | None]]:
        return file.later

    def changes(self, folder: Folder) -> list[Change]:
        return folder.later


class ByFile(Fate):
    """A file's or a folder's changes all reached the disk, or none: each is written back apart."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance

    def writes(self, file: File) -> list[tuple[int, bytes | None]]:
        return file.later if self._chance.random() < 0.5 else []

    def changes(self, folder: Folder) -> list[Change]:
        return folder.later if self._chance.random() < 0.5 else []


class Torn(Fate):
    """Any of the changes, and any of the blocks of a write, reached the disk: it reorders."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self._block = chance.choice(TORN_B)
        self._reached: dict[int, bool] = {}

    def writes(self, file: File) -> list[tuple[int, bytes | None]]:
        kept: list[tuple[int, bytes | None]] = []
        for offset, data in file.later:
            if data is None:
                kept += [(offset, data)] if self._chance.random() < 0.5 else []
                continue
            at = 0
            while at < len(data):
                border = ((offset + at) // self._block + 1) * self._block
                end = min(len(data), border - offset)
                if self._chance.random() < 0.5:
                    kept.append((offset + at, data[at:end]))
                at = end
        return kept

    def changes(self, folder: Folder) -> list[Change]:
        # a rename between folders is drawn once for both
        for change in folder.later:
            self._reached.setdefault(id(change), self._chance.random() < 0.5)
        return [change for change in folder.later if self._reached[id(change)]]


class Disk:
    """What is below some folders, which were empty or missing when the record began.

    Args:
        root: the folder that they are in; what happens elsewhere is passed over.
        names: of the folders.
        made: they were there already, and are there for certain.
    """

    def __init__(self, root: Path, names: Sequence[str], *, made: bool) -> None:
        self.top = Folder({name: Folder() for name in names} if made else {})
        self.changes = 0
        """calls so far that changed something"""
        self._root = PurePosixPath(root)
        self._tops = [PurePosixPath(root, name) for name in names]
        self._positions: dict[str, int] = {}

    def cut(self, into: Path, fate: Fate) -> None:
        """Lay out in an empty folder what a power cut at this moment leaves."""

        def lay(folder: Folder, path: Path) -> None:
            path.mkdir(exist_ok=True)
            names = dict(folder.synced)
            for change in fate.changes(folder):
                change.apply(folder, names)
            for name, node in names.items():
                if isinstance(node, Folder):
                    lay(node, path / name)
                else:
                    (path / name).write_bytes(node.content(fate.writes(node)))

        lay(self.top, into)

    # ---- what strace saw

    def apply(self, call: Call) -> bool:
        """Take one call in.

        Returns:
            Whether it synced something below the root, or claimed to.

        Raises:
            NotImplementedError: it changed something below the root in a way that has no model.
        """
        syncs = call.name in SYNCS
        of_root = syncs and call.paths[0] == str(self._root)
        if call.failed or not (of_root or any(self._below(path) for path in call.paths)):
            return False
        model = getattr(self, f"_{call.name}", None)
        if model is None:
            raise NotImplementedError(f"{call.name} is not modelled: {call}")
        if not call.injected:  # else strace has kept it from the kernel
            model(call)
        self.changes += call.name not in ("open", "openat") or "O_CREAT" in call.flags
        return syncs

    def _below(self, path: str) -> bool:
        parts = (PurePosixPath(path), *PurePosixPath(path).parents)
        return any(top in parts for top in self._tops)

    def _place(self, path: str) -> tuple[Folder, str]:
        """The folder that a path is in, and its name there."""
        *above, name = PurePosixPath(path).relative_to(self._root).parts
        folder = self.top
        for part in above:
            below = folder.names()[part]
            assert isinstance(below, Folder)
            folder = below
        return folder, name

    def _node(self, path: str) -> File | Folder | None:
        if PurePosixPath(path) == self._root:
            return self.top
        folder, name = self._place(path)
        return folder.names().get(name)

    def _change(self, *entries: tuple[Folder, str, File | Folder | None]) -> None:
        change = Change(list(entries))
        for folder in {id(folder): folder for folder, _, _ in entries}.values():
            folder.later.append(change)

    def _openat(self, call: Call) -> None:
        (path,) = call.paths
        if "O_CREAT" in call.flags and self._node(path) is None:
            self._change((*self._place(path), File()))
        if "O_TRUNC" in call.flags and isinstance(file := self._node(path), File):
            file.later.append((0, None))
        if "O_APPEND" in call.flags:
            raise NotImplementedError(f"O_APPEND is not modelled: {call}")
        self._positions[path] = 0

    _open = _openat

    def _write(self, call: Call) -> None:
        path = call.paths[0]
        if isinstance(file := self._node(path), File):  # else it was unlinked while open
            data = call.data[: call.result]
            file.later.append((self._positions[path], data))
            self._positions[path] += len(data)

    def _pwrite64(self, call: Call) -> None:
        if isinstance(file := self._node(call.paths[0]), File):
            file.later.append((call.numbers[-1], call.data[: call.result]))

    def _ftruncate(self, call: Call) -> None:
        if isinstance(file := self._node(call.paths[0]), File):
            length = call.numbers[-1]
            if len(file.content()) < length:
                file.later.append((length, b""))
            file.later.append((length, None))

    def _renameat(self, call: Call) -> None:
        old, new = call.paths
        (from_folder, from_name), (to_folder, to_name) = self._place(old), self._place(new)
        node = from_folder.names()[from_name]
        self._change((from_folder, from_name, None), (to_folder, to_name, node))
        if old in self._positions:
            self._positions[new] = self._positions.pop(old)

    _rename = _renameat2 = _renameat

    def _unlinkat(self, call: Call) -> None:
        self._change((*self._place(call.paths[0]), None))

    _unlink = _rmdir = _unlinkat

    def _mkdirat(self, call: Call) -> None:
        self._change((*self._place(call.paths[0]), Folder()))

    _mkdir = _mkdirat

    def _linkat(self, call: Call) -> None:
        node = self._node(call.paths[0])
        self._change((*self._place(call.paths[1]), node))

    _link = _linkat

    def _fsync(self, call: Call) -> None:
        if (node := self._node(call.paths[0])) is not None:
            node.sync()

    _fdatasync = _fsync
