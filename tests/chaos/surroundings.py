"""Break what is around a running daemon, mend it again, and look whether all gets done by itself.

    python tests/chaos/surroundings.py [--short] [--list] [SCENARIO…] [--folder F]

In each scenario a daemon has done some files. Then its surroundings are broken, more files come,
and it must say in its log what is wrong, not more than twice, and fail no job. Then they are
mended, and without anything else all must be done. The script mounts, so it needs root, or must be
allowed a user namespace in which it is root; it works in a mount namespace of its own. Exits 1 if
an invariant is violated, 77 if it cannot be run.
"""

from __future__ import annotations

import argparse
import errno
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from chaoskit import STRACE, Running, Scene, Sender, report, verdict

FILES = 6
"""that come before anything is broken; so many again while it is, and after"""
PATIENCE_S = 40.0
WAIT_S = 1.0
"""how long what is wrong stays so after it was said"""
MOST_SAID = 2
"""how often the same warning may come while one thing is wrong"""
EXIT_SKIPPED = 77
INSIDE = "PHI4D_CHAOS_INSIDE"
"""is set in the environment in the namespace of our own"""
_TROUBLE = re.compile(r"^\S+ \S+ (?:WARNING|ERROR) +(.*)", re.MULTILINE)


def shell(*command: object) -> None:
    subprocess.run([str(word) for word in command], check=True)


def fill(folder: Path) -> None:
    """Use up all bytes of a file system."""
    with open(folder / "ballast", "wb", buffering=0) as file:
        for size in (1 << 16, 1 << 12, 1):
            try:
                while True:
                    file.write(bytes(size))
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise


class Scenario:
    """Nothing is broken: what the others have in common.

    Attributes:
        keys: of the configuration.
        rescan_seconds: of the configuration.
        before: command that the daemon is started with.
        from_start: it is broken from the start.
    """

    keys = ""
    rescan_seconds = 60.0
    before: tuple[str, ...] = ()
    from_start = False

    def __init__(self, folder: Path) -> None:
        self.scene = Scene(folder, keys=self.keys, rescan_seconds=self.rescan_seconds)
        self.sender = Sender(self.scene.inbox, replaced=0)

    def prepare(self) -> None:
        """Before the daemon starts."""
        self.scene.outbox.mkdir()

    def damage(self, running: Running) -> None:
        """Break something."""

    def send(self) -> None:
        """Files come while it is broken."""
        for _ in range(FILES):
            self.sender.send()

    def mend(self, running: Running) -> None:
        """Make it whole again."""


class FullDisk(Scenario):
    """full disk: no byte is left in the outbox"""

    def prepare(self) -> None:
        self.scene.outbox.mkdir()
        shell("mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", self.scene.outbox)

    def damage(self, _: Running) -> None:
        fill(self.scene.outbox)

    def mend(self, _: Running) -> None:
        (self.scene.outbox / "ballast").unlink()


class NoInodes(Scenario):
    """no inodes: none is left in the outbox"""

    def prepare(self) -> None:
        self.scene.outbox.mkdir()
        shell("mount", "-t", "tmpfs", "-o", "size=9m,nr_inodes=200", "tmpfs", self.scene.outbox)

    def damage(self, _: Running) -> None:
        folder = self.scene.outbox / "ballast"
        folder.mkdir()
        for number in range(1000):
            try:
                (folder / str(number)).touch()
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
                return

    def mend(self, _: Running) -> None:
        shutil.rmtree(self.scene.outbox / "ballast")


class ReadOnly(FullDisk):
    """read-only outbox: its mount, as after an error of the disk"""

    def damage(self, _: Running) -> None:
        shell("mount", "-o", "remount,ro", self.scene.outbox)

    def mend(self, _: Running) -> None:
        shell("mount", "-o", "remount,rw", self.scene.outbox)


class OutboxMissing(Scenario):
    """outbox missing: the disk that it is on is not mounted"""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._disk, self._mount = folder / "disk", folder / "mount"
        self.scene.outbox = self._mount / "out"
        config = self.scene.config.read_text()
        self.scene.config.write_text(config.replace(str(folder / "out"), str(self.scene.outbox)))

    def prepare(self) -> None:
        (self._disk / "out").mkdir(parents=True)
        self._mount.mkdir()
        shell("mount", "--bind", self._disk, self._mount)

    def damage(self, _: Running) -> None:
        shell("umount", "-l", self._mount)

    def mend(self, _: Running) -> None:
        if any(self._mount.iterdir()):
            raise AssertionError("something was written where the disk was to be mounted")
        shell("mount", "--bind", self._disk, self._mount)


class NoAccess(Scenario):
    """no access: the daemon may not write the outbox"""

    _dropped = "-dac_override,-dac_read_search"
    before = ("setpriv", f"--bounding-set={_dropped}", f"--inh-caps={_dropped}")

    def damage(self, _: Running) -> None:
        for folder in (self.scene.outbox, *self.scene.outbox.glob("*/")):
            folder.chmod(0o555)

    def mend(self, _: Running) -> None:
        for folder in (self.scene.outbox, *self.scene.outbox.glob("*/")):
            folder.chmod(0o755)


class Failing(Scenario):
    """Each call of some syscall fails."""

    syscall = ""

    def damage(self, running: Running) -> None:
        trace, fault = f"-etrace={self.syscall}", f"-einject={self.syscall}:error=EIO"
        self._strace = subprocess.Popen(
            [STRACE, "-f", "-s0", trace, fault, "-o", "/dev/null", "-p", str(running.pid)],
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self._strace.stderr
        if "attached" not in (line := self._strace.stderr.readline()):
            raise AssertionError(f"strace: {line}")

    def mend(self, _: Running) -> None:
        self._strace.terminate()  # and so detach
        self._strace.communicate()


class FailingOutbox(Failing):
    """failing disk of the outbox: fsync says EIO"""

    syscall = "fsync"


class FailingStore(Failing):
    """failing disk of the store: fdatasync says EIO"""

    syscall = "fdatasync"
    rescan_seconds = 1.0


class FullStore(Scenario):
    """full disk of the store"""

    rescan_seconds = 1.0

    def prepare(self) -> None:
        super().prepare()
        self.scene.state.mkdir()
        shell("mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", self.scene.state)

    def damage(self, _: Running) -> None:
        fill(self.scene.state)

    def mend(self, _: Running) -> None:
        (self.scene.state / "ballast").unlink()


class InboxUnmounted(Scenario):
    """inbox unmounted: an empty folder is in its place"""

    rescan_seconds = 1.0

    def prepare(self) -> None:
        super().prepare()
        disk = self.scene.folder / "disk"
        disk.mkdir()
        shell("mount", "--bind", disk, self.scene.inbox)

    def damage(self, _: Running) -> None:
        shell("umount", "-l", self.scene.inbox)

    def send(self) -> None:
        self.sender.inbox = self.scene.folder / "disk"
        super().send()

    def mend(self, _: Running) -> None:
        shell("mount", "--bind", self.scene.folder / "disk", self.scene.inbox)
        self.sender.inbox = self.scene.inbox


class InboxRenamed(Scenario):
    """inbox renamed: nothing is in its place, until it comes back"""

    rescan_seconds = 1.0

    def damage(self, _: Running) -> None:
        self.sender.inbox = self.scene.inbox.rename(self.scene.folder / "away")

    def mend(self, _: Running) -> None:
        self.sender.inbox = self.sender.inbox.rename(self.scene.inbox)


class InboxReplaced(Scenario):
    """inbox replaced: another folder comes in its place while files come into the old one"""

    rescan_seconds = 1.0

    def damage(self, _: Running) -> None:
        self._away = self.scene.inbox.rename(self.scene.folder / "away")
        self.scene.inbox.mkdir()

    def mend(self, _: Running) -> None:
        pass  # there is nothing to mend: the new folder is the inbox


class InboxMadeAgain(Scenario):
    """inbox deleted and made again"""

    rescan_seconds = 1.0

    def damage(self, _: Running) -> None:
        shutil.rmtree(self.scene.inbox)

    def send(self) -> None:
        pass

    def mend(self, _: Running) -> None:
        self.scene.inbox.mkdir()


class NoWatches(Scenario):
    """watch limit: fewer watches than folders"""

    rescan_seconds = 1.0
    from_start = True
    # the limit of a user namespace of its own: nobody else's is touched
    before = (
        "unshare",
        "-Ur",
        "sh",
        "-c",
        'echo 3 >/proc/sys/user/max_inotify_watches; exec "$@"',
        "sh",
    )

    def mend(self, running: Running) -> None:
        limit = "echo 10000 >/proc/sys/user/max_inotify_watches"
        shell("nsenter", "-t", running.pid, "-U", "--preserve-credentials", "sh", "-c", limit)


SCENARIOS: dict[str, type[Scenario]] = {
    (kind.__doc__ or "").partition(":")[0]: kind
    for kind in (
        FullDisk,
        NoInodes,
        ReadOnly,
        OutboxMissing,
        NoAccess,
        FailingOutbox,
        FailingStore,
        FullStore,
        InboxUnmounted,
        InboxRenamed,
        InboxReplaced,
        InboxMadeAgain,
        NoWatches,
    )
}
SHORT = ("full disk", "outbox missing", "inbox renamed")


def torment(kind: type[Scenario], folder: Path) -> tuple[list[str], list[str]]:
    """One scenario.

    Returns:
        What the daemon said while it was broken, and what was violated.
    """
    trial = kind(folder)
    scene, sender = trial.scene, trial.sender
    trial.prepare()
    for _ in range(FILES):
        sender.send()
    wrong: list[str] = []

    def all_done() -> bool:
        try:
            states = scene.states()
        except sqlite3.Error:  # its disk is what is broken
            return False
        done = sum(states.values()) == states.get("done", 0) == len(sender.newest)
        return done or "failed" in states

    with scene.start(before=trial.before) as running:
        running.until(all_done, "the first files' end", PATIENCE_S)
        begun = 0 if trial.from_start else scene.log.stat().st_size

        def said() -> list[str]:
            return _TROUBLE.findall(scene.log.read_bytes()[begun:].decode(errors="replace"))

        trial.damage(running)
        trial.send()
        try:
            running.until(lambda: bool(said()), "a word of what is wrong", PATIENCE_S)
            time.sleep(WAIT_S)
        except AssertionError as error:
            wrong.append(str(error))
        trouble = said()
        trial.mend(running)
        for _ in range(FILES):
            sender.send()
        try:
            running.until(all_done, "the end of all files", PATIENCE_S)
        except AssertionError as error:
            wrong.append(str(error))
        if running.ended():
            wrong.append(f"the daemon ended with exit code {running.wait()}")
        elif code := running.stop():
            wrong.append(f"told to stop, it ended with exit code {code}")
    wrong += verdict(scene, sender.newest)
    wrong += [
        f"said {times} times: {text}"
        for text, times in Counter(trouble).items()
        if times > MOST_SAID
    ]
    return trouble, wrong


def enter() -> None:
    """Go on in a mount namespace of our own; ends the script where that is not possible."""
    if os.environ.get(INSIDE):
        return
    unshare = ["unshare", "--mount", "--propagation=private"]
    if os.geteuid() != 0:
        unshare.append("--map-root-user")
    if subprocess.run([*unshare, "true"], check=False, capture_output=True).returncode:
        print("skipped: needs root, or user namespaces")
        sys.exit(EXIT_SKIPPED)
    os.environ[INSIDE] = "1"
    os.execvp(unshare[0], [*unshare, sys.executable, *sys.argv])  # noqa: S606 -- none is wanted


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("scenario", nargs="*", help="only these")
    parser.add_argument("--short", action="store_true", help=f"only {', '.join(SHORT)}")
    parser.add_argument("--list", action="store_true", help="print their names")
    parser.add_argument("--folder", type=Path, help="keep everything there")
    args = parser.parse_args()
    if args.list:
        print(*(kind.__doc__ for kind in SCENARIOS.values()), sep="\n")
        return 0
    chosen = args.scenario or (SHORT if args.short else SCENARIOS)
    for name in chosen:
        if name not in SCENARIOS:
            parser.error(f"{name}: no such scenario; there are: {', '.join(SCENARIOS)}")
    enter()
    folder = args.folder or Path(tempfile.mkdtemp(prefix="phi4d-around-"))
    begun = time.monotonic()
    mended = 0
    violations: list[str] = []
    for name in chosen:
        try:
            trouble, wrong = torment(SCENARIOS[name], folder / name.replace(" ", "-"))
        except AssertionError as error:
            trouble, wrong = [], [str(error)]
        mended += not wrong
        print(f"{name}: {'violated' if wrong else f'mended; said: {trouble[0]}'}", flush=True)
        violations += [f"{name}: {each}" for each in wrong]
    print()
    rows: list[tuple[str, object]] = [
        ("scenarios", len(chosen)),
        ("mended, and all done by itself", mended),
        ("seconds", round(time.monotonic() - begun)),
    ]
    code = report(rows, violations)
    if code == 0 and not args.folder:
        shutil.rmtree(folder, ignore_errors=True)  # mount points are still busy
    else:
        print(f"everything is in {folder}")
    return code


if __name__ == "__main__":
    sys.exit(main())
