"""What the chaos scripts share: files that tell their version, a daemon to torment, the invariants.

phi4d is met from outside alone: a configuration, folders, signals, sidecars, and the store's file
opened for reading.
"""

from __future__ import annotations

import copy
import ctypes
import json
import os
import random
import shutil
import signal
import sqlite3
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).parent
STANDIN = HERE / "standin.py"
STRACE = shutil.which("strace") or "strace"
TEMP_PREFIX = ".phi4d-"
"""begins the names of phi4d's temporary files"""
WAIT_S = 120.0
"""until a script gives up on something that must happen"""
POLL_S = 0.01
ASKED_B = 24
"""about how long a line in the file of questions is"""
_SPEECH = (HERE.parents[1] / "phi4d" / "demo" / "samples" / "digits-16k.wav").read_bytes()[44:]


# ---- files whose content tells their number


def picture(number: int) -> bytes:
    """A PNG of 2 x 1 pixels, whose six bytes are a number."""

    def chunk(name: bytes, data: bytes) -> bytes:
        crc = struct.pack(">I", zlib.crc32(name + data))
        return struct.pack(">I", len(data)) + name + data + crc

    header = struct.pack(">IIBBBBB", 2, 1, 8, 2, 0, 0, 0)
    pixels = zlib.compress(b"\0" + number.to_bytes(6, "big"))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    )


def recording(number: int) -> bytes:
    """A WAV of some spoken words, and then so many samples of silence: its size is its number."""
    data = _SPEECH + bytes(2 * number)
    form = struct.pack("<HHIIHH", 1, 1, 16_000, 32_000, 2, 16)
    body = b"WAVEfmt " + struct.pack("<I", 16) + form + b"data" + struct.pack("<I", len(data))
    return b"RIFF" + struct.pack("<I", len(body) + len(data)) + body + data


@dataclass(frozen=True)
class Source:
    """The newest version of a file in the inbox."""

    number: int
    inode: int
    size: int
    mtime_ns: int


class Sender:
    """Puts files into an inbox, in each way, and remembers the newest version of each.

    Args:
        inbox: where to.
        seed: of the choice of names and ways.
        replaced: share of the files that take an older one's place.
        recordings: share of files that are recordings.

    Attributes:
        inbox: where it is now.
        replaced: as above; both may be changed.
        newest: by the path below the inbox.
        sent: how many so far, also the number of the last one.
        ways: in which they came, counted.
    """

    def __init__(
        self, inbox: Path, seed: int = 0, *, replaced: float = 0.1, recordings: float = 0.05
    ) -> None:
        self.inbox = inbox
        self.replaced = replaced
        self.newest: dict[str, Source] = {}
        self.sent = 0
        self.ways: Counter[str] = Counter()
        self._chance = random.Random(seed)
        self._recordings = recordings

    def send(self) -> None:
        """One file, or one more version of one."""
        number = self.sent + 1
        if self.newest and self._chance.random() < self.replaced:
            name = self._chance.choice(list(self.newest))
            self.put(name, self._chance.choice(["replaced in place", "replaced by a rename"]))
        else:
            suffix = ".wav" if self._chance.random() < self._recordings else ".png"
            way = self._chance.choice(["in place", "renamed in"])
            self.put(f"{number % 7}/{number}{suffix}", way)

    def put(self, name: str, way: str) -> None:
        """A version of a file, by its path below the inbox, in some way."""
        self.sent += 1
        number = self.sent
        data = recording(number) if name.endswith(".wav") else picture(number)
        path = self.inbox / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if way.endswith("in place"):
            half = len(data) // 2
            with open(path, "wb", buffering=0) as file:
                file.write(data[:half])
                file.write(data[half:])
        else:
            aside = path.with_name(f".{number}.part")
            aside.write_bytes(data)
            os.replace(aside, path)
        status = path.stat()
        self.newest[name] = Source(number, status.st_ino, status.st_size, status.st_mtime_ns)
        self.ways[way] += 1

    def into(self, inbox: Path) -> Sender:
        """One that goes on from here in another inbox, which gets names of the same files.

        Of the same files, because a file's inode tells its version. They may be replaced by a
        rename, and not in place.
        """
        for name in self.newest:
            (inbox / name).parent.mkdir(parents=True, exist_ok=True)
            os.link(self.inbox / name, inbox / name)
        other = copy.deepcopy(self)
        other.inbox = inbox
        return other


# ---- the daemon


@dataclass
class Scene:
    """A folder with everything that one daemon needs.

    Args:
        folder: of the scene; made if need be.
        inbox: the watched folder, if it is not to be the scene's own.
        keys: lines of the configuration besides those that every scene has.
        rescan_seconds: how often the inbox is compared.
    """

    folder: Path
    inbox: Path = field(default=Path())
    keys: str = ""
    rescan_seconds: float = 60.0

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.inbox == Path():
            self.inbox = self.folder / "in"
            self.inbox.mkdir(exist_ok=True)
        self.outbox = self.folder / "out"
        self.state = self.folder / "state"
        self.store = self.state / "jobs.sqlite3"
        self.asked = self.folder / "asked"
        self.log = self.folder / "log"
        self.config = self.folder / "phi4d.toml"
        self.config.write_text(
            f'state_dir = "{self.state}"\nsettle_seconds = 0.2\npause_seconds = 0.1\n'
            f"rescan_seconds = {self.rescan_seconds}\nretry_seconds = 0.1\n{self.keys}\n"
            f'[[inbox]]\nname = "in"\npath = "{self.inbox}"\noutbox = "{self.outbox}"\n'
        )

    def start(
        self, *words: str, life: str = "", before: Sequence[str] = (), fresh_log: bool = True
    ) -> Running:
        """Start the daemon; its log goes to the scene's `log`."""
        command = [*before, sys.executable, str(STANDIN), str(self.config), *words]
        command += ["--asked", str(self.asked), "--life", life or "-"]
        # the loader's and the interpreter's own writing is no part of what is looked at
        env = {k: v for k, v in os.environ.items() if not k.startswith(("PHI4_", "COV"))}
        env["PYTHONDONTWRITEBYTECODE"] = "1"
        with open(self.log, "w" if fresh_log else "a") as log:
            popen = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=env,
                start_new_session=True,
            )
        return Running(self, popen)

    def once(self, life: str = "") -> int:
        """Let a daemon work off what is there, undisturbed; its exit code."""
        with self.start("--once", life=life) as running:
            return running.wait()

    def jobs(self, columns: str = "*", where: str = "1") -> list[tuple]:
        """Rows of the store; none if there is no store yet."""
        # who only reads cannot undo what was begun: with a journal, it is still being made
        if not self.store.exists() or self.store.with_name(f"{self.store.name}-journal").exists():
            return []
        with reading(self.store) as db:
            if not db.execute("SELECT 1 FROM sqlite_master WHERE name = 'job'").fetchone():
                return []
            # the words are this script's own
            return db.execute(f"SELECT {columns} FROM job WHERE {where}").fetchall()  # noqa: S608

    def asked_bytes(self) -> int:
        """Size of the file of questions: some `ASKED_B` for each."""
        return self.asked.stat().st_size if self.asked.exists() else 0

    def states(self) -> dict[str, int]:
        """Number of jobs by state."""
        return dict(self.jobs("state, count(*)", "1 GROUP BY state"))


class Running:
    """A daemon that was started; a context that is certain to end it."""

    def __init__(self, scene: Scene, popen: subprocess.Popen[bytes]) -> None:
        self.scene = scene
        self.popen = popen
        self.pid = popen.pid

    def ended(self) -> bool:
        return self.popen.poll() is not None

    def until(self, done: Callable[[], bool], what: str, seconds: float = WAIT_S) -> None:
        """Wait for something that the daemon is to bring about.

        Raises:
            AssertionError: it never came; with the log's end.
        """
        deadline = time.monotonic() + seconds
        while not done():
            if self.ended() and not done():
                raise AssertionError(f"the daemon ended before {what}; {self._tail()}")
            if time.monotonic() > deadline:
                raise AssertionError(f"{what} did not come in {seconds:.0f} s; {self._tail()}")
            time.sleep(POLL_S)

    def said(self, words: str) -> bool:
        return words in self.scene.log.read_text(errors="replace")

    def until_ready(self) -> None:
        self.until(lambda: self.said("ready: "), "readiness")

    def wait(self, seconds: float = WAIT_S) -> int:
        try:
            return self.popen.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"no end in {seconds:.0f} s; {self._tail()}") from None

    def kill(self, *, children: bool = False) -> None:
        """SIGKILL, and wait for the end."""
        # the daemon first: a decode process that dies before it would be the file's fault
        below = descendants(self.pid) if children else []
        self.popen.kill()
        for pid in below:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self.popen.wait()

    def stop(self) -> int:
        """SIGTERM; its exit code."""
        self.popen.terminate()
        return self.wait()

    def _tail(self) -> str:
        lines = self.scene.log.read_text(errors="replace").splitlines()[-15:]
        return "its log ends:\n  " + "\n  ".join(lines)

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *_: object) -> None:
        if not self.ended():
            below = descendants(self.pid)
            self.popen.kill()
            for pid in below:  # strace leaves its tracee behind
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
        self.popen.wait()


def descendants(pid: int) -> list[int]:
    """Children, their children, and so on."""
    found = []
    try:
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                found += [int(child), *descendants(int(child))]
    except OSError:  # it has just ended
        pass
    return found


class reading:  # noqa: N801 -- used like a function
    """A connection to the store for reading, as anybody may open it."""

    def __init__(self, path: Path) -> None:
        self._db = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
        self._db.execute("PRAGMA busy_timeout = 10000")

    def __enter__(self) -> sqlite3.Connection:
        return self._db

    def __exit__(self, *_: object) -> None:
        self._db.close()


# ---- the invariants


def broken_sidecars(folder: Path, name: str) -> str:
    """What is wrong with the sidecars of a file, by themselves; empty if nothing is."""
    try:
        record = (folder / f"{name}.json").read_bytes()
        text = (folder / f"{name}.txt").read_bytes()
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    if not text.endswith(b"\n"):
        return f"{name}.txt is cut: {text!r}"
    try:
        told = json.loads(record)
    except ValueError:
        return f"{name}.json is cut: {record!r}"
    return "" if told["text"].split() == text.decode().split() else f"{name}: they disagree"


def wrong_sidecars(outbox: Path, name: str, source: Source) -> str:
    """What is wrong with the sidecars of a version of a file; empty if nothing is."""
    if wrong := broken_sidecars(outbox, name):
        return wrong
    told = json.loads((outbox / f"{name}.json").read_bytes())
    if told["source_bytes"] != source.size:
        return f"{name}: about {told['source_bytes']} bytes, and the file has {source.size}"
    if told.get("source_mtime_ns", source.mtime_ns) != source.mtime_ns:
        return f"{name}: about another version: {told['source_modified']}"
    if name.endswith(".png") and told["text"] != f"number {source.number}":
        return f"{name}: says {told['text']!r}, and the file is number {source.number}"
    return ""


def verdict(scene: Scene, newest: dict[str, Source]) -> list[str]:
    """Every invariant that does not hold once all work is done; empty if the house is in order."""
    wrong = [f"a store was set aside: {path.name}" for path in scene.state.glob("*.broken*")]
    with reading(scene.store) as db:
        (sound,) = db.execute("PRAGMA integrity_check").fetchone()
    if sound != "ok":
        wrong.append(f"the store is damaged: {sound}")
    for path, reason in scene.jobs("path, reason", "state = 'failed'"):
        wrong.append(f"{os.fsdecode(path)}: failed: {reason}")
    for path, state in scene.jobs("path, state", "state IN ('queued', 'running')"):
        wrong.append(f"{os.fsdecode(path)}: left {state}")
    done: dict[str, list[tuple[int, int, int]]] = {}
    for path, *fingerprint in scene.jobs("path, inode, size, mtime_ns", "state = 'done'"):
        done.setdefault(os.fsdecode(path), []).append(tuple(fingerprint))
    for name, source in newest.items():
        versions = done.pop(name, [])
        if versions != [(source.inode, source.size, source.mtime_ns)]:
            wrong.append(f"{name}: lost, or done twice: done are {versions}, there is {source}")
        elif fault := wrong_sidecars(scene.outbox, name, source):
            wrong.append(f"done, but {fault}")
    wrong += [f"{name}: done, and never sent" for name in done]
    expected = {f"{name}{suffix}" for name in newest for suffix in (".txt", ".json")}
    for path in scene.outbox.rglob("*"):
        relative = str(path.relative_to(scene.outbox))
        if path.is_file() and relative not in expected:
            wrong.append(f"in the outbox: {relative}")
    return wrong


class Memory:
    """Remembers what was asked and what was done over the lives of a scene's daemons."""

    def __init__(self, scene: Scene, sender: Sender) -> None:
        self.questions: Counter[tuple[str, int]] = Counter()
        """by life and number"""
        self.wrong: list[str] = []
        self._scene = scene
        self._sender = sender
        self._read = 0
        self._done: set[int] = set()

    def look_back(self) -> None:
        """After a life: nothing may have been asked twice in it, or had been done before it."""
        lines = self._scene.asked.read_text().splitlines() if self._scene.asked.exists() else []
        for line in lines[self._read :]:
            life, number = line.split()[0], int(line.split()[1])
            self.questions[life, number] += 1
            if self.questions[life, number] > 1:
                self.wrong.append(f"number {number}: asked more than once in life {life}")
            if number in self._done:
                self.wrong.append(f"number {number}: asked in life {life}, and was done before")
        self._read = len(lines)
        done = {
            (os.fsdecode(path), *version)
            for path, *version in self._scene.jobs("path, inode, size, mtime_ns", "state = 'done'")
        }
        for name, source in list(self._sender.newest.items()):
            if (name, source.inode, source.size, source.mtime_ns) in done:
                self._done.add(source.number)

    def times(self) -> dict[int, int]:
        """How many versions were asked about so many times."""
        each = Counter[int]()
        for (_, number), n in self.questions.items():
            each[number] += n
        return dict(sorted(Counter(each.values()).items()))


# ---- eyes on the outbox


class Eyes(threading.Thread):
    """Opens every sidecar as soon as it appears, and keeps what was wrong with it.

    Args:
        outbox: watched with its subfolders; must exist.
    """

    _CREATE, _MOVED_TO, _MODIFY, _CLOSE_WRITE = 0x100, 0x80, 0x2, 0x8
    _IS_DIR, _OVERFLOW = 0x40000000, 0x4000

    def __init__(self, outbox: Path) -> None:
        super().__init__(name="eyes")
        self.seen = 0
        self.wrong: list[str] = []
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._fd = self._libc.inotify_init1(os.O_CLOEXEC)
        self._folders: dict[int, Path] = {}
        self._end, self._told = os.pipe()
        self._watch(outbox)

    def _watch(self, folder: Path) -> None:
        mask = self._CREATE | self._MOVED_TO | self._MODIFY | self._CLOSE_WRITE
        number = self._libc.inotify_add_watch(self._fd, os.fsencode(folder), mask)
        if number < 0:
            raise OSError(ctypes.get_errno(), "inotify_add_watch", str(folder))
        self._folders[number] = folder
        for entry in list(os.scandir(folder)):
            if entry.is_dir():
                self._watch(folder / entry.name)
            else:
                self._look(folder, entry.name)

    def run(self) -> None:
        import select

        while True:
            ready, _, _ = select.select([self._fd, self._end], [], [])
            if self._fd in ready:
                self._take(os.read(self._fd, 1 << 16))
            elif self._end in ready:  # only once everything was looked at
                break
        for descriptor in (self._fd, self._end, self._told):
            os.close(descriptor)

    def close(self) -> None:
        """Look at what is still to be looked at, and end."""
        os.write(self._told, b"x")
        self.join()

    def _take(self, events: bytes) -> None:
        at = 0
        while at < len(events):
            number, mask, _, length = struct.unpack_from("iIII", events, at)
            name = os.fsdecode(events[at + 16 : at + 16 + length].rstrip(b"\0"))
            at += 16 + length
            if mask & self._OVERFLOW:
                self.wrong.append("too many events for the eyes: give the script a faster machine")
            elif mask & self._IS_DIR:
                self._watch(self._folders[number] / name)
            elif not name.startswith(TEMP_PREFIX):
                if mask & self._MODIFY:
                    self.wrong.append(f"{name}: written to while it was visible")
                self._look(self._folders[number], name)

    def _look(self, folder: Path, name: str) -> None:
        if name.startswith(TEMP_PREFIX):
            return
        self.seen += 1
        if name.endswith(".json"):
            # the text was there first; between the two, a newer one may have taken its place
            try:
                json.loads((folder / name).read_bytes())
                text = (folder / f"{name.removesuffix('.json')}.txt").read_bytes()
            except (ValueError, FileNotFoundError) as error:
                self.wrong.append(f"{name}: seen before it was whole: {error}")
                return
        else:
            text = (folder / name).read_bytes()
        if not text.endswith(b"\n"):
            self.wrong.append(f"{name}: seen before it was whole: {text!r}")


# ---- what a script says


def report(rows: Sequence[tuple[str, object]], violations: Sequence[str]) -> int:
    """Print the counts and what was violated; the exit code."""
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        print(f"{name:{width}}  {value}")
    print(f"{'violations':{width}}  {len(violations)}")
    for violation in violations[:20]:
        print(f"  {violation}")
    sys.stdout.flush()
    return 1 if violations else 0
