"""What a service must bear, tried from outside by dpkg, systemctl, journalctl, phi4d and files.

Each scenario begins with the service as the one before left it: running, with nothing to do.
"""

from __future__ import annotations

import json
import re
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field

from machine import Failed, Machine

INBOX, OUTBOX = "/srv/phi4d/inbox", "/srv/phi4d/outbox"
STORE = "/var/lib/phi4d/jobs.sqlite3"
CONF = "/etc/phi4d/conf.d/50-test.toml"
DROP_IN = "/etc/systemd/system/phi4d.service.d/90-test.conf"
KEEP = "Dpkg::Options::=--force-confold"
"""nobody is there to be asked about a changed configuration"""
MEMBER = "ada"
"""a user in the group phi4d, and in no other"""


@dataclass
class Scene:
    """The machine, and what is there for it."""

    machine: Machine
    expected: dict[str, str]
    """samples, and what the toy model answers"""
    load: list[str]
    """names of pictures that differ from each other, in /load"""
    package: str
    """the package to install, in /packages"""
    newer: str
    """a newer one"""
    told: dict[str, object] = field(default_factory=dict)
    """what was measured"""

    # ---- what an operator does

    def systemctl(self, verb: str) -> None:
        """Have something done to the service; it must work."""
        self.machine.run("systemctl", verb, "phi4d")

    def show(self, what: str) -> str:
        """A property of the service."""
        return self.machine.ask("systemctl", "show", "phi4d", "--value", "-p", what)

    def journal(self, *matches: str) -> list[dict[str, str]]:
        """What stands in the journal of the service, with all fields."""
        unit = matches or ("_SYSTEMD_UNIT=phi4d.service",)
        text = self.machine.run("journalctl", "-o", "json", "--no-pager", *unit)
        return [json.loads(line) for line in text.splitlines()]

    def told_of(self, words: str, after: str) -> bool:
        """Whether the service, or systemd of it, said something after a cursor."""
        text = self.machine.ask(
            "journalctl", "-u", "phi4d", "-o", "cat", "--no-pager", f"--after-cursor={after}"
        )
        return re.search(words, text) is not None

    def now(self) -> str:
        """The journal's cursor."""
        text = self.machine.run("journalctl", "-n1", "--show-cursor", "--no-pager", "-o", "cat")
        return text.splitlines()[-1].removeprefix("-- cursor: ")

    # ---- what a member of the group does

    def drop(self, *files: str, to: str = INBOX) -> None:
        """Copy files of the machine into an inbox, as a member of the group."""
        self.machine.run("cp", *files, f"{to}/", user=MEMBER)

    def answer(self, name: str, seconds: float = 120, outbox: str = OUTBOX) -> str:
        """The answer about a file, read by a member of the group."""
        place = f"{outbox}/{name}.txt"
        there = self.machine.path(f"{outbox}/{name}.json")
        self.machine.until(there.exists, f"the answer about {name}", seconds)
        return self.machine.run("cat", place, user=MEMBER).strip()

    # ---- what must hold

    def states(self) -> dict[str, int]:
        """Jobs by state, straight from the store."""
        with closing(self.store()) as db:
            return dict(db.execute("SELECT state, count(*) FROM job GROUP BY 1").fetchall())

    def versions(self, name: bytes) -> list[tuple[int, int, int]]:
        """Which versions of a file are done: inode, size, time."""
        with closing(self.store()) as db:
            return db.execute(
                "SELECT inode, size, mtime_ns FROM job WHERE path = ? AND state = 'done'", (name,)
            ).fetchall()

    def store(self) -> sqlite3.Connection:
        """The store, read-only."""
        uri = f"file:{self.machine.path(STORE)}?mode=ro"
        return sqlite3.connect(uri, uri=True, timeout=30)

    def settled(self, what: str, seconds: float = 300) -> None:
        """Wait until nothing waits or runs, and every file of the load is done, once, and whole."""
        expected = {}
        for name in self.load:
            status = self.machine.path(f"{INBOX}/{name}").stat()
            expected[name.encode()] = (status.st_ino, status.st_size, status.st_mtime_ns)

        def done() -> bool:
            states = self.states()
            return (
                not states.get("queued")
                and not states.get("running")
                and all(self.versions(name) == [version] for name, version in expected.items())
            )

        self.machine.until(done, f"{what}: the newest version of {len(expected)} files", seconds)
        states = self.states()
        check(not states.get("failed"), f"{what}: failed: {states}")
        for name in self.load:
            record = json.loads(self.machine.path(f"{OUTBOX}/{name}.json").read_text())
            check(
                record["size"] == expected[name.encode()][1], f"{name}: not this version's sidecar"
            )
        left = [p.name for p in self.machine.path(OUTBOX).iterdir() if p.name.startswith(".")]
        check(not left, f"{what}: left in the outbox: {left}")

    def flood(self, to: str = INBOX) -> None:
        """Drop the whole load, as new versions of the same files; work is then under way."""
        before = self.states().get("done", 0)
        for begin in range(0, len(self.load), 50):
            self.drop(*(f"/load/{name}" for name in self.load[begin : begin + 50]), to=to)
        self.machine.until(
            lambda: self.states().get("queued", 0) > 0 or self.states().get("done", 0) > before,
            "files under way",
            60,
        )

    def active(self, seconds: float = 120) -> float:
        """Wait until the service runs, ready."""
        return self.machine.until(
            lambda: self.show("ActiveState") == "active", "the service to be active", seconds
        )


def check(true: bool, words: str) -> None:
    """Say what does not hold.

    Raises:
        Failed: it does not.
    """
    if not true:
        raise Failed(words)


# ---- the scenarios, in their order


def install(scene: Scene) -> None:
    """From a bare system to the first transcript, dropped and read by a member of the group."""
    m = scene.machine
    begun = time.monotonic()
    m.run("apt-get", "install", "-y", "-q", f"/packages/{scene.package}")
    installed = time.monotonic()
    m.run("useradd", "-m", "-G", "phi4d", MEMBER)
    # the same pictures come again and again: each is to be asked about anew
    m.write(CONF, 'model_path = "demo"\nreuse = false\n')
    m.run("phi4d", "config", "check")
    m.run("systemctl", "enable", "--now", "phi4d")
    check(scene.show("ActiveState") == "active", "systemctl start came back before READY")
    scene.drop("/samples/digits-16k.wav")
    said = scene.answer("digits-16k.wav")
    ended = time.monotonic()
    check(said == scene.expected["digits-16k.wav"], f"digits-16k.wav: {said}")
    scene.told["installed in"] = f"{installed - begun:.0f} s"
    scene.told["first transcript after"] = f"{ended - begun:.0f} s"
    check(ended - begun < 300, "the first transcript took more than five minutes")


def private_files(scene: Scene) -> None:
    """What a member drops with a closed umask, and in folders of its own, is answered too."""
    m = scene.machine
    folder = f"{INBOX}/private"
    script = f"umask 077; mkdir {folder}; cat /samples/shapes-640x480.jpg > {folder}/a.jpg"
    m.run("sh", "-c", script, user=MEMBER)
    said = scene.answer("private/a.jpg")
    check(said == scene.expected["shapes-640x480.jpg"], f"private/a.jpg: {said}")
    other = m.command("cat", f"{OUTBOX}/private/a.jpg.txt", user="nobody")
    check(other.returncode != 0, "a sidecar can be read by who is not in the group")


def operated_by_a_member(scene: Scene) -> None:
    """What the commands say to a member of the group, without being root."""
    m = scene.machine
    told = json.loads(m.run("phi4d", "status", "--json", user=MEMBER))
    check("digits" not in json.dumps(told) or bool(told), "status --json is empty")
    m.run("phi4d", "status", user=MEMBER)
    m.run("phi4d", "pause", user=MEMBER)
    scene.drop("/samples/shapes-300x400.png")
    m.until(lambda: scene.states().get("queued", 0) == 1, "the file to wait", 30)
    m.run("phi4d", "resume", user=MEMBER)
    said = scene.answer("shapes-300x400.png")
    check(said == scene.expected["shapes-300x400.png"], f"shapes-300x400.png: {said}")
    m.run("phi4d", "explain", f"{INBOX}/shapes-300x400.png", user=MEMBER)
    m.run("phi4d", "regenerate", f"{INBOX}/shapes-300x400.png", user=MEMBER)
    m.until(lambda: scene.states().get("queued", 0) == 0, "it to be done anew", 60)


def journal_fields(scene: Scene) -> None:
    """The journal knows files, inboxes and faults, and tells no content."""
    m = scene.machine
    scene.drop("/packages/" + scene.package)  # no picture, whatever its name says
    m.run("cp", "/etc/hostname", f"{INBOX}/broken.jpg", user=MEMBER)
    m.until(lambda: scene.states().get("failed", 0) == 1, "the broken file to fail", 60)
    m.run("rm", "-f", f"{INBOX}/broken.jpg", f"{INBOX}/{scene.package}", user=MEMBER)
    (failed,) = scene.journal("PHI4D_FILE=broken.jpg", "PHI4D_FAULT=file")
    check(failed["PRIORITY"] == "3", f"a failure has priority {failed['PRIORITY']}")
    check(failed["PHI4D_INBOX"] == "inbox", "PHI4D_INBOX")
    done = scene.journal("PHI4D_FILE=digits-16k.wav")
    check(any(entry["PRIORITY"] == "6" for entry in done), "no INFO line for a finished file")
    check(all("MESSAGE_ID" in entry for entry in [failed, done[-1]]), "no MESSAGE_ID")
    text = m.run("journalctl", "-u", "phi4d", "-o", "cat", "--no-pager")
    for words in scene.expected.values():
        check(words not in text, f"the log has content: {words}")
    explained = m.run("journalctl", "-x", "-u", "phi4d", "--no-pager", "-n", "50")
    check("-- Subject" in explained or "Subject:" in explained, "the catalog is not installed")


def reload(scene: Scene) -> None:
    """A new inbox by a reload: the service stays, with the same process."""
    m = scene.machine
    pid = scene.show("MainPID")
    m.run("install", "-d", "-o", "phi4d", "-g", "phi4d", "-m", "2775", "/srv/phi4d/second")
    m.write(
        "/etc/phi4d/conf.d/60-second.toml",
        f'[[inbox]]\npath = "/srv/phi4d/second"\noutbox = "{OUTBOX}2"\n',
    )
    scene.systemctl("reload")
    check(scene.show("MainPID") == pid, "a reload began another process")
    scene.drop("/samples/digits-48k.ogg", to="/srv/phi4d/second")
    said = scene.answer("digits-48k.ogg", outbox=f"{OUTBOX}2")
    check(said == scene.expected["digits-48k.ogg"], f"digits-48k.ogg: {said}")


def bad_reload(scene: Scene) -> None:
    """A bad file is refused by name, and the old configuration works on."""
    m = scene.machine
    pid = scene.show("MainPID")
    m.write("/etc/phi4d/conf.d/70-bad.toml", 'batch_sise = 4\ntemperature = "hot"\n')
    cursor = scene.now()
    done = m.command("systemctl", "reload", "phi4d")
    check(done.returncode != 0, "systemctl reload does not tell that the configuration is bad")
    check(scene.show("MainPID") == pid, "a bad reload ended the process")
    check(scene.show("ActiveState") == "active", f"after it: {scene.show('ActiveState')}")
    for key in ("batch_sise", "temperature"):
        check(
            scene.told_of(f"70-bad.toml:[0-9]+: {key}", cursor), f"{key} is not named with its line"
        )
    scene.drop("/samples/shapes-448x448.png")
    said = scene.answer("shapes-448x448.png")
    check(said == scene.expected["shapes-448x448.png"], f"shapes-448x448.png: {said}")
    m.path("/etc/phi4d/conf.d/70-bad.toml").unlink()
    scene.systemctl("reload")


def killed_under_load(scene: Scene) -> None:
    """`kill -9` with files under way: the service comes back, and every file is done."""
    m = scene.machine
    m.write(DROP_IN, "[Service]\nRestartSec=1\nWatchdogSec=5\n")
    m.run("systemctl", "daemon-reload")
    scene.systemctl("restart")
    scene.flood()
    pid = scene.show("MainPID")
    m.run("kill", "-9", pid)
    m.until(lambda: scene.show("MainPID") not in (pid, "0"), "another process", 60)
    scene.active()
    scene.settled("after kill -9")


def hung(scene: Scene) -> None:
    """A process that gives no sign of life is replaced by the watchdog."""
    m = scene.machine
    scene.flood()
    pid, cursor = scene.show("MainPID"), scene.now()
    m.run("kill", "-STOP", pid)
    m.until(lambda: scene.show("MainPID") not in (pid, "0"), "the watchdog to act", 180)
    check(scene.told_of("[Ww]atchdog", cursor), "systemd does not tell of the watchdog")
    scene.active()
    scene.settled("after a hang")


def stopped_under_load(scene: Scene) -> None:
    """A stop in the midst of work ends in time, with nothing left running or half written."""
    scene.flood()
    begun = time.monotonic()
    scene.systemctl("stop")
    scene.told["stopped under load in"] = f"{time.monotonic() - begun:.1f} s"
    check(scene.show("Result") == "success", f"the stop ended with {scene.show('Result')}")
    check(not scene.states().get("running"), "jobs are left running")
    scene.systemctl("start")
    scene.settled("after a stop")


def crash_loop(scene: Scene) -> None:
    """A service that dies again and again is given up, says so, and can be started again."""
    m = scene.machine
    cursor = scene.now()
    for _ in range(20):
        pid = scene.show("MainPID")
        if scene.show("ActiveState") == "failed":
            break
        if pid != "0":
            m.command("kill", "-9", pid)
        time.sleep(1)
        m.until(
            lambda old=pid: (
                scene.show("MainPID") not in (old, "0")  # type: ignore[misc]
                or scene.show("ActiveState") == "failed"
            ),
            "a restart or the end of them",
            60,
        )
    check(scene.show("ActiveState") == "failed", "the service is restarted without end")
    check(scene.told_of("[Ss]tart request repeated too quickly", cursor), "no limit is told")
    m.run("systemctl", "reset-failed", "phi4d")
    scene.systemctl("start")
    scene.active()


def bad_config(scene: Scene) -> None:
    """A bad configuration: exit code 78, every fault named, and no second try."""
    m = scene.machine
    m.write("/etc/phi4d/conf.d/70-bad.toml", 'batch_sise = 4\ntemperature = "hot"\n')
    scene.systemctl("stop")
    cursor = scene.now()
    check(m.command("systemctl", "start", "phi4d").returncode != 0, "it starts all the same")
    check(scene.show("ExecMainStatus") == "78", f"exit code {scene.show('ExecMainStatus')}")
    time.sleep(3)  # longer than RestartSec
    state = scene.show("ActiveState")
    check(state == "failed", f"it is tried again: {state}")
    for key in ("batch_sise", "temperature"):
        check(
            scene.told_of(f"70-bad.toml:[0-9]+: {key}", cursor), f"{key} is not named with its line"
        )
    check(not scene.told_of("Traceback", cursor), "a traceback for a bad configuration")
    m.path("/etc/phi4d/conf.d/70-bad.toml").unlink()
    m.run("systemctl", "reset-failed", "phi4d")
    scene.systemctl("start")


def upgraded(scene: Scene) -> None:
    """The package is upgraded with files in the queue: none is lost, the configuration stays."""
    m = scene.machine
    own = "\n# my own line\n"
    with m.path("/etc/phi4d/phi4d.toml").open("a") as file:
        file.write(own)
    scene.flood()
    before = m.run("phi4d", "--version").strip()
    m.run("apt-get", "install", "-y", "-q", "-o", KEEP, f"/packages/{scene.newer}")
    check(scene.states().get("done", 0) > 0, "the store was begun anew")
    check(scene.active() >= 0, "")
    check(
        m.path("/etc/phi4d/phi4d.toml").read_text().endswith(own), "the configuration was changed"
    )
    scene.settled("after the upgrade")
    scene.told["upgraded"] = f"{before} → {m.run('dpkg-query', '-W', 'phi4d').split()[-1]}"


def removed(scene: Scene) -> None:
    """Removed, the package leaves configuration, state and sidecars; purged, the sidecars."""
    m = scene.machine
    m.run("apt-get", "remove", "-y", "-q", "phi4d")
    check(not m.path("/opt/phi4d/bin").exists(), "/opt/phi4d is left")
    for path in ("/etc/phi4d/phi4d.toml", STORE, f"{OUTBOX}/digits-16k.wav.txt"):
        check(m.path(path).exists(), f"{path} went with the package")
    check(m.command("systemctl", "is-active", "phi4d").returncode != 0, "the service still runs")
    m.run("apt-get", "purge", "-y", "-q", "phi4d")
    check(not m.path("/etc/phi4d/phi4d.toml").exists(), "a purge leaves /etc/phi4d/phi4d.toml")
    check(m.path(f"{OUTBOX}/digits-16k.wav.txt").exists(), "a purge takes the sidecars")
    check(m.path(f"{INBOX}/digits-16k.wav").exists(), "a purge takes the inbox's files")


def from_source(scene: Scene) -> None:
    """`make install` from a clone does the same, and `make uninstall` leaves what is people's."""
    m = scene.machine
    m.run("cp", "-r", "/source", "/usr/src/phi4d")
    m.run("make", "-C", "/usr/src/phi4d", "install")
    m.write(CONF, 'model_path = "demo"\n')
    m.run("systemctl", "enable", "--now", "phi4d")
    scene.drop("/samples/shapes-800x600.webp")
    said = scene.answer("shapes-800x600.webp")
    check(said == scene.expected["shapes-800x600.webp"], f"shapes-800x600.webp: {said}")
    m.run("phi4d", "status", user=MEMBER)
    m.run("make", "-C", "/usr/src/phi4d", "uninstall")
    check(m.command("systemctl", "is-active", "phi4d").returncode != 0, "the service still runs")
    check(not m.path("/opt/phi4d/bin").exists(), "/opt/phi4d is left")
    for path in ("/etc/phi4d/phi4d.toml", STORE, f"{OUTBOX}/shapes-800x600.webp.txt"):
        check(m.path(path).exists(), f"make uninstall takes {path}")


ALL: tuple[Callable[[Scene], None], ...] = (
    install,
    private_files,
    operated_by_a_member,
    journal_fields,
    reload,
    bad_reload,
    killed_under_load,
    hung,
    stopped_under_load,
    crash_loop,
    bad_config,
    upgraded,
    removed,
    from_source,
)


def aftermath(scene: Scene) -> str:
    """What helps to understand a failure."""
    m = scene.machine
    parts = [
        m.ask("systemctl", "status", "--no-pager", "-l", "phi4d"),
        m.ask("journalctl", "-u", "phi4d", "--no-pager", "-n", "40", "-o", "short"),
    ]
    return "\n".join(parts)
