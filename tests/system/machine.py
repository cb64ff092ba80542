"""A small Debian with a systemd of its own, in a folder: made once, copied, booted, entered.

debootstrap makes it, systemd-nspawn boots it, nsenter enters it; all need root. The network is the
host's, and is used for Debian's packages alone. Never boot systemd without a root of its own: its
tmpfiles rules would empty the host's temporary folder.
"""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

SUITE = "bookworm"
SUITES_PYTHON = (3, 11)
MIRROR = os.environ.get("MIRROR", "http://deb.debian.org/debian")
"""where debootstrap has Debian from"""
MIRROR_SECONDS = 20.0
BOOT_SECONDS = 120.0
PACKAGES = (
    "systemd", "systemd-sysv", "libpam-systemd", "dbus", "procps", "python3", "python3-venv",
    "python3-systemd", "acl", "adduser", "make",
)  # fmt: skip
TOOLS = {
    "debootstrap": "debootstrap",
    "systemd-nspawn": "systemd-container",
    "nsenter": "util-linux",
    "dpkg-buildpackage": "dpkg-dev",
    "dh": "debhelper",
    "cpio": "cpio",
}
"""commands, and the Debian packages that bring them"""
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Failed(Exception):
    """A command in the machine ended badly, or something did not come in time."""


class NoMachine(Exception):
    """No machine can be had here; the text says why."""


def why_not() -> str:
    """Why no machine can be had here; empty: one can."""
    if platform.system() != "Linux":
        return "needs Linux"
    if os.geteuid() != 0:
        return "needs root, to boot a system in a folder"
    if sys.version_info[:2] != SUITES_PYTHON:
        return "needs a .venv of Python 3.11, for the wheels that Debian's own can use"
    missing = {tool: package for tool, package in TOOLS.items() if not shutil.which(tool)}
    if missing:
        return f"needs {', '.join(missing)}: apt install {' '.join(missing.values())}"
    done = subprocess.run(
        ["unshare", "--mount", "--pid", "--uts", "--ipc", "--fork", "true"],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        return f"namespaces cannot be made here: {done.stderr.strip()}"
    return ""


def make_base(folder: Path) -> None:
    """Make a minimal Debian, unless it is there.

    Raises:
        NoMachine: the mirror does not have it.
    """
    mark = folder / "etc" / "debian_version"
    listed = folder.with_name("base.packages")
    wanted = "\n".join((SUITE, *PACKAGES))
    if mark.exists() and listed.exists() and listed.read_text() == wanted:
        return
    release = f"{MIRROR}/dists/{SUITE}/Release"
    try:
        urllib.request.urlopen(release, timeout=MIRROR_SECONDS).close()  # noqa: S310 -- whatever serves debootstrap
    except (OSError, urllib.error.URLError) as error:
        raise NoMachine(f"Debian cannot be had from {MIRROR} (MIRROR): {error}") from None
    aside = folder.with_name(folder.name + ".new")
    shutil.rmtree(aside, ignore_errors=True)
    command = ["debootstrap", "--variant=minbase", f"--include={','.join(PACKAGES)}"]
    done = subprocess.run(
        [*command, SUITE, aside, MIRROR],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        last = done.stdout.strip().rpartition("\n")[2]
        raise NoMachine(f"debootstrap from {MIRROR} (MIRROR) ended badly: {last}")
    shutil.rmtree(folder, ignore_errors=True)
    aside.rename(folder)
    listed.write_text(wanted)


class Machine:
    """A machine that runs.

    Args:
        root: its root folder; it is changed.
        binds: folders of the host that it sees read-only, by their place in it.
    """

    def __init__(self, root: Path, binds: dict[str, Path]) -> None:
        self.root = root
        self._binds = binds
        self._nspawn: subprocess.Popen[bytes] | None = None
        self._leader = 0

    def boot(self) -> None:
        """Boot it, and wait until its systemd has started everything.

        Raises:
            NoMachine: systemd-nspawn cannot do it here.
        """
        command = ["systemd-nspawn", "-q", "-D", self.root, "--register=no", "--keep-unit"]
        command += ["--console=pipe", "--kill-signal=SIGRTMIN+3", "--resolv-conf=copy-host"]
        command += [f"--bind-ro={source}:{place}" for place, source in self._binds.items()]
        told = tempfile.TemporaryFile("w+")  # noqa: SIM115 -- closed with the last of its readers
        self._nspawn = subprocess.Popen(
            [*command, "-b"], stdin=subprocess.DEVNULL, stdout=told, stderr=told
        )

        def last() -> str:
            told.seek(0)
            return told.read().strip().rpartition("\n")[2]

        def booted() -> bool:
            assert self._nspawn is not None
            if self._nspawn.poll() is not None:
                raise NoMachine(f"systemd-nspawn ended: {last()}")
            if not self._leader:
                self._leader = _first_of_its_own(self._nspawn.pid)
                return False
            return self.ask("systemctl", "is-system-running") in ("running", "degraded")

        try:
            self.until(booted, "the machine to be up", BOOT_SECONDS)
        except Failed as failed:
            raise NoMachine(f"systemd-nspawn: {failed}; it said: {last()}") from None

    def power_off(self) -> None:
        """Shut it down. Idempotent."""
        if self._nspawn is None:
            return
        self._nspawn.send_signal(signal.SIGTERM)
        try:
            self._nspawn.wait(60)
        except subprocess.TimeoutExpired:
            self._nspawn.kill()
            self._nspawn.wait()
        self._nspawn = None

    def command(self, *words: str | Path, user: str = "root") -> subprocess.CompletedProcess[str]:
        """Run a command in the machine, whatever becomes of it."""
        enter = ["nsenter", "-t", str(self._leader), "-a", "env", "-i", f"PATH={PATH}"]
        enter += ["LANG=C.UTF-8", "DEBIAN_FRONTEND=noninteractive", "COLUMNS=160"]
        if user == "root":
            enter += ["HOME=/root"]
        else:
            enter += [f"HOME=/home/{user}", "runuser", "-u", user, "--"]
        return subprocess.run(
            [*enter, *words],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=900,
        )

    def run(self, *words: str | Path, user: str = "root") -> str:
        """Run a command in the machine that must end well.

        Returns:
            What it printed.

        Raises:
            Failed: it did not.
        """
        done = self.command(*words, user=user)
        if done.returncode:
            line = " ".join(map(str, words))
            raise Failed(f"{line}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
        return done.stdout

    def ask(self, *words: str) -> str:
        """What a command prints, without a look at how it ends."""
        return self.command(*words).stdout.strip()

    def write(self, path: str, text: str) -> None:
        """Write a file into the machine, as root."""
        self.path(path).parent.mkdir(parents=True, exist_ok=True)
        self.path(path).write_text(text, "utf-8")

    def path(self, path: str) -> Path:
        """Where a file of the machine is on the host."""
        return self.root / path.lstrip("/")

    @staticmethod
    def until(true: Callable[[], bool], what: str, seconds: float) -> float:
        """Wait for something.

        Returns:
            The seconds that it took.

        Raises:
            Failed: it did not come in time.
        """
        begun = time.monotonic()
        while not true():
            if time.monotonic() - begun > seconds:
                raise Failed(f"{what}: not within {seconds:.0f} s")
            time.sleep(0.1)
        return time.monotonic() - begun


def _first_of_its_own(nspawn: int) -> int:
    """The child of systemd-nspawn that is process 1 to itself: the machine's systemd; or 0."""
    with contextlib.suppress(OSError):  # ended meanwhile
        for child in Path(f"/proc/{nspawn}/task/{nspawn}/children").read_text().split():
            status = Path(f"/proc/{child}/status").read_text()
            (numbers,) = (line for line in status.splitlines() if line.startswith("NSpid:"))
            if numbers.split()[-1] == "1":
                return int(child)
    return 0


@contextlib.contextmanager
def machine(base: Path, root: Path, binds: dict[str, Path]) -> Iterator[Machine]:
    """A machine that runs in a copy of a base, until the end of the block."""
    shutil.rmtree(root, ignore_errors=True)
    subprocess.run(["cp", "-a", "--reflink=auto", base, root], check=True)
    one = Machine(root, binds)
    try:
        one.boot()
        yield one
    finally:
        one.power_off()
        shutil.rmtree(root, ignore_errors=True)
