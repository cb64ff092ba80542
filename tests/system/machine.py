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
import time
from collections.abc import Callable, Iterator
from pathlib import Path

SUITE = "bookworm"
PACKAGES = (
    "systemd", "systemd-sysv", "dbus", "procps", "python3", "python3-venv", "python3-systemd",
    "acl", "adduser", "make",
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
MARK = "PHI4D_SYSTEM_TEST"


def why_not() -> str:
    """Why no machine can be had here; empty: one can."""
    if platform.system() != "Linux":
        return "needs Linux"
    if os.geteuid() != 0:
        return "needs root, to boot a system in a folder"
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


class Failed(Exception):
    """A command in the machine ended badly, or something did not come in time."""


def make_base(folder: Path) -> None:
    """Make a minimal Debian, unless it is there."""
    if (folder / "etc" / "debian_version").exists():
        return
    aside = folder.with_name(folder.name + ".new")
    shutil.rmtree(aside, ignore_errors=True)
    subprocess.run(
        ["debootstrap", "--variant=minbase", f"--include={','.join(PACKAGES)}", SUITE, aside],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    shutil.rmtree(folder, ignore_errors=True)
    aside.rename(folder)


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
        """Boot it, and wait until its systemd has started everything."""
        command = ["systemd-nspawn", "-q", "-D", self.root, "--register=no", "--keep-unit"]
        command += ["--console=pipe", "--kill-signal=SIGRTMIN+3", "--resolv-conf=copy-host"]
        command += [f"--bind-ro={source}:{place}" for place, source in self._binds.items()]
        self._nspawn = subprocess.Popen(
            [*command, "-b"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        children = Path(f"/proc/{self._nspawn.pid}/task/{self._nspawn.pid}/children")
        self.until(lambda: bool(children.read_text().split()), "the machine's first process", 20)
        self._leader = int(children.read_text().split()[0])
        self.until(
            lambda: self.ask("systemctl", "is-system-running") in ("running", "degraded"),
            "the machine to be up",
            60,
        )

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
        enter += ["HOME=/root", "LANG=C.UTF-8", "DEBIAN_FRONTEND=noninteractive", "COLUMNS=160"]
        if user != "root":
            enter += ["runuser", "-u", user, "--"]
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
