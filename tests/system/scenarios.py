"""What a service must bear, tried from outside by dpkg, systemctl, journalctl, phi4d and files.

Each scenario but those about the installation begins with the service running and nothing to do;
`Scene.at_rest` sees to it. Waits are for what must come, and end long after it should have.
"""

from __future__ import annotations

import json
import re
import sqlite3
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field

from machine import Failed, Machine

INBOX, OUTBOX = "/srv/phi4d/inbox", "/srv/phi4d/outbox"
STORE = "/var/lib/phi4d/jobs.sqlite3"
CONF = "/etc/phi4d/conf.d/50-test.toml"
THREADS = "/etc/systemd/system/phi4d.service.d/10-threads.conf"
BAD = "/etc/phi4d/conf.d/70-bad.toml"
DROP_IN = "/etc/systemd/system/phi4d.service.d/90-test.conf"
KEEP = "Dpkg::Options::=--force-confold"
"""nobody is there to be asked about a changed configuration"""
MEMBER = "ada"
"""a user in the group phi4d, and in no other"""
TELL = """#!/bin/sh
echo "$(id -un) $PHI4D_STATE $*" >> /var/lib/phi4d/told.log
touch /etc/harm 2> /dev/null && echo harm >> /var/lib/phi4d/told.log
echo end >> /var/lib/phi4d/told.log
"""
"""a command of a hook: says who it is and what it was told, and tries to do harm"""
PORT = 8765
RECEIVE = f"""
import base64, hmac, json
from http.server import BaseHTTPRequestHandler, HTTPServer

class Receiver(BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        ours = [self.headers["webhook-id"], self.headers["webhook-timestamp"], body.decode()]
        digest = hmac.digest(b"open sesame", ".".join(ours).encode(), "sha256")
        signed = self.headers["webhook-signature"] == "v1," + base64.b64encode(digest).decode()
        told = json.loads(body)
        print(signed, told["type"], told["data"]["name"])
        self.send_response(204)
        self.end_headers()

HTTPServer(("127.0.0.1", {PORT}), Receiver).serve_forever()
"""
"""receives webhooks, and says of each whether it is signed, and what it tells"""
PATIENCE_SECONDS = 300.0
"""the machine may be a slow one, and busy with other things"""


@dataclass
class Scene:
    """The machine, and what is there for it."""

    machine: Machine
    expected: dict[str, str | Sequence[str]]
    """samples, and what the toy model answers: to a long recording, piece by piece"""
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
        self.machine.run("journalctl", "--sync")
        unit = matches or ("_SYSTEMD_UNIT=phi4d.service",)
        text = self.machine.run("journalctl", "-o", "json", "--no-pager", *unit)
        return [json.loads(line) for line in text.splitlines()]

    def told_of(self, words: str, after: str) -> bool:
        """Whether the service, or systemd of it, said something after a cursor."""
        # what was said just now may be on its way
        self.machine.run("journalctl", "--sync")
        text = self.machine.ask(
            "journalctl", "-u", "phi4d", "-o", "cat", "--no-pager", f"--after-cursor={after}"
        )
        return re.search(words, text) is not None

    def now(self) -> str:
        """The journal's cursor."""
        self.machine.run("journalctl", "--sync")
        text = self.machine.run("journalctl", "-n1", "--show-cursor", "--no-pager", "-o", "cat")
        return text.splitlines()[-1].removeprefix("-- cursor: ")

    # ---- what a member of the group does

    def drop(self, *files: str, to: str = INBOX) -> None:
        """Copy files of the machine into an inbox, as a member of the group."""
        self.machine.run("cp", *files, f"{to}/", user=MEMBER)

    def answer(self, name: str, outbox: str = OUTBOX) -> str:
        """The answer about a file, read by a member of the group."""
        place = f"{outbox}/{name}.txt"
        there = self.machine.path(f"{outbox}/{name}.json")
        self.machine.until(there.exists, f"the answer about {name}", PATIENCE_SECONDS)
        return self.machine.run("cat", place, user=MEMBER).strip()

    def answers(self, sample: str, name: str = "", to: str = INBOX, outbox: str = OUTBOX) -> None:
        """Drop a sample, perhaps by another name, and see that the answer is right."""
        name = name or sample
        sidecar = self.machine.path(f"{outbox}/{name}.json")
        check(not sidecar.exists(), f"{name} is answered already: this would show nothing")
        self.machine.run("cp", f"/samples/{sample}", f"{to}/{name}", user=MEMBER)
        self.says(name, sample, outbox)

    def says(self, name: str, sample: str, outbox: str = OUTBOX) -> None:
        """Wait for an answer, and see that it is the right one for a sample."""
        said = self.answer(name, outbox)
        check(said == self.expected[sample], f"{name}: {said!r}, not {self.expected[sample]!r}")

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

    def settled(self, what: str) -> None:
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

        self.machine.until(
            done, f"{what}: the newest version of {len(expected)} files", PATIENCE_SECONDS
        )
        states = self.states()
        check(not states.get("failed"), f"{what}: failed: {states}")
        for name in self.load:
            record = json.loads(self.machine.path(f"{OUTBOX}/{name}.json").read_text())
            version = (record["source_bytes"], record["source_mtime_ns"])
            check(version == expected[name.encode()][1:], f"{name}: not this version's sidecar")
        left = [p.name for p in self.machine.path(OUTBOX).iterdir() if p.name.startswith(".")]
        check(not left, f"{what}: left in the outbox: {left}")

    def flood(self) -> None:
        """Drop the whole load, as new versions of the same files; some are then worked on."""
        self.machine.run("phi4d", "pause", user=MEMBER)
        self.drop(*(f"/load/{name}" for name in self.load))
        self.machine.until(
            lambda: self.states().get("queued", 0) == len(self.load),
            "all files to wait",
            PATIENCE_SECONDS,
        )
        self.machine.run("phi4d", "resume", user=MEMBER)

        def under_way() -> bool:
            states = self.states()
            return states.get("running", 0) > 0 and states.get("queued", 0) > 0

        self.machine.until(under_way, "files under way", PATIENCE_SECONDS)

    def active(self) -> None:
        """Wait until the service runs, ready."""
        self.machine.until(
            lambda: self.show("ActiveState") == "active",
            "the service to be active",
            PATIENCE_SECONDS,
        )

    def another_process(self, than: str) -> None:
        """Wait until the service was started anew by systemd, and is ready."""
        self.machine.until(
            lambda: self.show("MainPID") not in (than, "0"), "another process", PATIENCE_SECONDS
        )
        self.active()

    def begin_with(self, lines: str) -> None:
        """Have the unit changed, and the service started anew by it."""
        self.machine.write(DROP_IN, f"[Service]\n{lines}\n")
        self.machine.run("systemctl", "daemon-reload")
        self.systemctl("restart")

    def at_rest(self) -> None:
        """See that the service runs with nothing to do, whatever became of the scenario before."""
        self.machine.path(BAD).unlink(missing_ok=True)
        if self.machine.path(DROP_IN).exists():
            self.machine.path(DROP_IN).unlink()
            self.machine.run("systemctl", "daemon-reload")
            self.systemctl("stop")
        # the count of starts begins anew, too: all scenarios together have more than are allowed
        self.machine.run("systemctl", "reset-failed", "phi4d")
        self.systemctl("start")
        self.machine.until(
            lambda: not {"queued", "running"} & set(self.states()),
            "the service to have nothing to do",
            PATIENCE_SECONDS,
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
    # the same pictures come again and again: each is to be asked about anew. The toy, which does
    # not know what they show, goes on to the last token that it is allowed
    m.write(CONF, 'model_path = "demo"\nreuse = false\nmax_new_tokens = 128\nbatch_size = 4\n')
    # torch's threads wait for each other: where others have the cores, two take far longer than one
    m.write(THREADS, "[Service]\nEnvironment=OMP_NUM_THREADS=1\n")
    m.run("systemctl", "daemon-reload")
    m.run("phi4d", "config", "check")
    m.run("systemctl", "enable", "--now", "phi4d")
    check(scene.show("ActiveState") == "active", "systemctl start came back before READY")
    scene.answers("digits-16k.wav")
    scene.told["installed in"] = f"{installed - begun:.0f} s"
    scene.told["first transcript after"] = f"{time.monotonic() - begun:.0f} s"


def private_files(scene: Scene) -> None:
    """What a member drops with a closed umask, and in folders of its own, is answered too."""
    m = scene.machine
    folder = f"{INBOX}/private"
    script = f"umask 077; mkdir {folder}; cat /samples/shapes-640x480.jpg > {folder}/a.jpg"
    m.run("sh", "-c", script, user=MEMBER)
    scene.says("private/a.jpg", "shapes-640x480.jpg")
    for path in (f"{folder}/a.jpg", f"{OUTBOX}/private/a.jpg.txt"):
        other = m.command("cat", path, user="nobody")
        check(other.returncode != 0, f"{path} can be read by who is not in the group")


def operated_by_a_member(scene: Scene) -> None:
    """A member of the group operates the service, without being root; others do not."""
    m = scene.machine

    def ordered(*words: str) -> str:
        return m.run("phi4d", *words, user=MEMBER)

    def state(name: str) -> str:
        with closing(scene.store()) as db:
            found = db.execute(
                "SELECT state FROM job WHERE path = ? ORDER BY id DESC", (name.encode(),)
            ).fetchone()
        return found[0] if found else ""

    def becomes(name: str, wanted: str) -> None:
        m.until(lambda: state(name) == wanted, f"{name} to be {wanted}", PATIENCE_SECONDS)

    told = json.loads(ordered("status", "--json"))
    check(str(told["pid"]) == scene.show("MainPID"), f"status tells of process {told['pid']}")
    check(told["health"] == "healthy", f"health: {told['health']}")

    ordered("pause", "--why", "tidying up")
    (paused,) = json.loads(ordered("status", "--json"))["paused"]
    check(MEMBER in paused["why"] and "tidying up" in paused["why"], f"paused: {paused['why']}")
    scene.drop("/samples/shapes-300x400.png", "/samples/shapes-448x448.png")
    becomes("shapes-300x400.png", "queued")
    becomes("shapes-448x448.png", "queued")
    ordered("cancel", f"{INBOX}/shapes-448x448.png")
    ordered("resume")
    scene.says("shapes-300x400.png", "shapes-300x400.png")
    sidecar = m.path(f"{OUTBOX}/shapes-448x448.png.json")
    check(not sidecar.exists(), "what was cancelled was done")
    ordered("retry", f"{INBOX}/shapes-448x448.png")
    scene.says("shapes-448x448.png", "shapes-448x448.png")

    ordered("explain", f"{INBOX}/shapes-300x400.png")
    before = sidecar.stat().st_ino
    ordered("regenerate", f"{INBOX}/shapes-448x448.png")
    m.until(lambda: sidecar.stat().st_ino != before, "another answer", PATIENCE_SECONDS)
    ordered("rescan")

    other = m.command("phi4d", "pause", user="nobody")
    check(other.returncode != 0, "who is not in the group can pause inboxes")
    check("Traceback" not in other.stderr, other.stderr)


def journal_fields(scene: Scene) -> None:
    """The journal knows jobs, files, inboxes and faults, explains events, and tells no content."""
    m = scene.machine
    scene.answers("digits-44k-stereo.flac")
    m.run("cp", "/etc/hostname", f"{INBOX}/broken.jpg", user=MEMBER)
    m.until(lambda: scene.states().get("failed") == 1, "the broken file to fail", PATIENCE_SECONDS)

    (failed,) = scene.journal("PHI4D_FILE=broken.jpg", "PHI4D_FAULT=file")
    (done,) = scene.journal("PHI4D_FILE=digits-44k-stereo.flac", "PHI4D_EVENT=file-done")
    for entry, priority in ((failed, "3"), (done, "6")):
        said = entry["MESSAGE"]
        check(entry["PRIORITY"] == priority, f"{said}: priority {entry['PRIORITY']}")
        check(entry["PHI4D_INBOX"] == "inbox", f"{said}: inbox {entry['PHI4D_INBOX']}")
        check(entry["PHI4D_JOB"].isdecimal(), f"{said}: job {entry['PHI4D_JOB']}")
        check(entry["_SYSTEMD_UNIT"] == "phi4d.service", f"{said}: {entry['_SYSTEMD_UNIT']}")
    check(done["PHI4D_DEVICE"] == "cpu", f"on {done['PHI4D_DEVICE']}")
    check(failed["MESSAGE_ID"] != done["MESSAGE_ID"], "both have one MESSAGE_ID")
    for entry in (failed, done):
        wanted = f"MESSAGE_ID={entry['MESSAGE_ID']}"
        explained = m.run("journalctl", "-x", "--no-pager", "-n1", wanted)
        check("Defined-By: phi4d" in explained, f"the catalog does not explain: {explained}")

    text = m.run("journalctl", "-u", "phi4d", "-o", "cat", "--no-pager")
    for answer in scene.expected.values():
        check(not isinstance(answer, str) or answer not in text, f"the log has content: {answer}")
    m.run("cp", "/samples/shapes-640x480.jpg", f"{INBOX}/broken.jpg", user=MEMBER)
    scene.says("broken.jpg", "shapes-640x480.jpg")
    m.until(lambda: "failed" not in scene.states(), "the failure to be gone", PATIENCE_SECONDS)


def hooks(scene: Scene) -> None:
    """A hook's command runs as hardened as the service; a webhook, once `phi4d unit` lets it."""
    m = scene.machine
    inbox, outbox = "/srv/phi4d/told", "/srv/phi4d/told-out"
    own, secret = "/etc/phi4d/conf.d/66-told.toml", "/etc/phi4d/webhook.secret"
    drop_in = "/etc/systemd/system/phi4d.service.d/phi4d.conf"
    m.run("install", "-d", "-o", "phi4d", "-g", "phi4d", "-m", "2775", inbox, outbox)
    m.write(secret, "open sesame\n")
    m.run("chown", "phi4d:", secret)
    m.run("chmod", "400", secret)
    m.write("/usr/local/bin/tell", TELL)
    m.run("chmod", "755", "/usr/local/bin/tell")
    m.write("/usr/local/bin/receive", RECEIVE)
    m.run("systemd-run", "-q", "--unit=receiver", "python3", "-u", "/usr/local/bin/receive")
    m.write(
        own,
        f'[[inbox]]\npath = "{inbox}"\noutbox = "{outbox}"\n'
        'on_done = ["tell", "{path}", "{sidecars}"]\n'
        f'on_failed = "http://127.0.0.1:{PORT}/"\nwebhook_secret_file = "{secret}"\n',
    )
    check("ok" in m.run("phi4d", "config", "check"), "config check is not content")
    scene.systemctl("reload")
    # a command
    scene.answers("shapes-640x480.jpg", to=inbox, outbox=outbox)
    told = m.path("/var/lib/phi4d/told.log")
    m.until(lambda: told.exists() and told.read_text().endswith("end\n"), "the command", 60)
    sidecar = f"{outbox}/shapes-640x480.jpg"
    expected = f"phi4d done {inbox}/shapes-640x480.jpg {sidecar}.txt {sidecar}.json\nend\n"
    check(told.read_text() == expected, f"the command was told: {told.read_text()}")
    # a webhook, first without a network
    m.run("cp", "/etc/hostname", f"{inbox}/broken.jpg", user=MEMBER)
    m.until(lambda: bool(scene.journal("PHI4D_EVENT=hook-failed")), "the webhook to fail", 60)
    (failed,) = scene.journal("PHI4D_EVENT=hook-failed")
    check("cannot be reached" in failed["MESSAGE"], failed["MESSAGE"])
    check((failed["PRIORITY"], failed["PHI4D_FILE"]) == ("4", "broken.jpg"), str(failed))
    m.run("sh", "-c", f"phi4d unit | install -D -m 644 /dev/stdin {drop_in}")
    m.run("systemctl", "daemon-reload")
    scene.systemctl("restart")
    wanted = "True file.failed told/broken.jpg"
    m.until(
        lambda: wanted in m.ask("journalctl", "-u", "receiver", "-o", "cat", "--no-pager"),
        "the webhook to come, signed",
        60,
    )
    m.run("cp", "/samples/shapes-300x400.png", f"{inbox}/broken.jpg", user=MEMBER)
    m.until(lambda: "failed" not in scene.states(), "the failure to be gone", PATIENCE_SECONDS)
    for path in (own, drop_in):
        m.path(path).unlink()
    m.run("systemctl", "stop", "receiver")
    m.run("systemctl", "daemon-reload")
    scene.systemctl("restart")


def reload(scene: Scene) -> None:
    """A new inbox by a reload: the service stays, with the same process."""
    m = scene.machine
    pid, cursor = scene.show("MainPID"), scene.now()
    inbox, outbox = "/srv/phi4d/second", "/srv/phi4d/second-out"
    m.run("install", "-d", "-o", "phi4d", "-g", "phi4d", "-m", "2775", inbox, outbox)
    m.write(
        "/etc/phi4d/conf.d/60-second.toml",
        f'[[inbox]]\npath = "{inbox}"\noutbox = "{outbox}"\n',
    )
    scene.systemctl("reload")
    # with the reload's end it is in force
    check(scene.show("MainPID") == pid, "a reload began another process")
    check(scene.show("ActiveState") == "active", f"after it: {scene.show('ActiveState')}")
    scene.answers("digits-48k.ogg", to=inbox, outbox=outbox)
    check(scene.told_of("Reloaded", cursor), "systemd does not tell of the reload")


def bad_reload(scene: Scene) -> None:
    """A bad file is refused by name, and the old configuration works on."""
    m = scene.machine
    pid, cursor = scene.show("MainPID"), scene.now()
    m.write(BAD, 'batch_sise = 4\ntemperature = "hot"\n')
    done = m.command("systemctl", "reload", "phi4d")
    check(done.returncode != 0, "systemctl reload does not tell that the configuration is bad")
    check(scene.show("MainPID") == pid, "a bad reload ended the process")
    check(scene.show("ActiveState") == "active", f"after it: {scene.show('ActiveState')}")
    named_with_their_lines(scene, cursor)
    scene.answers("shapes-800x600.webp")
    m.path(BAD).unlink()
    scene.systemctl("reload")
    check(scene.show("MainPID") == pid, "the good reload after it began another process")


def folders_elsewhere(scene: Scene) -> None:
    """Folders that the unit does not open are opened by the drop-in that `phi4d unit` prints."""
    m = scene.machine
    inbox, outbox = f"/home/{MEMBER}/inbox", "/data/outbox"
    own, drop_in = (
        "/etc/phi4d/conf.d/65-elsewhere.toml",
        "/etc/systemd/system/phi4d.service.d/phi4d.conf",
    )
    m.run("chmod", "755", f"/home/{MEMBER}")
    m.run("mkdir", inbox, user=MEMBER)
    m.run("install", "-d", "-o", "phi4d", "-g", "phi4d", "-m", "2775", "/data", outbox)
    m.write(own, f'[[inbox]]\nname = "elsewhere"\npath = "{inbox}"\noutbox = "{outbox}"\n')

    before = m.command("phi4d", "doctor")
    check("phi4d unit" in before.stdout, f"doctor misses no drop-in:\n{before.stdout}")
    m.run("sh", "-c", f"phi4d unit | install -D -m 644 /dev/stdin {drop_in}")
    m.run("systemctl", "daemon-reload")
    scene.systemctl("restart")
    scene.answers("shapes-640x480.jpg", "elsewhere.jpg", to=inbox, outbox=outbox)
    after = m.command("phi4d", "doctor")
    check("phi4d unit" not in after.stdout, f"doctor misses one still:\n{after.stdout}")

    m.path(own).unlink()
    m.path(drop_in).unlink()
    m.run("systemctl", "daemon-reload")
    scene.systemctl("restart")


def of_a_user(scene: Scene) -> None:
    """A user has a service of its own beside the system's, without root, logged in or not."""
    m = scene.machine
    number = m.run("id", "-u", MEMBER).strip()

    def systemctl(*words: str) -> str:
        runtime = f"XDG_RUNTIME_DIR=/run/user/{number}"
        return m.run("env", runtime, "systemctl", "--user", *words, user=MEMBER)

    m.run("loginctl", "enable-linger", MEMBER)
    m.until(
        lambda: m.ask("systemctl", "is-active", f"user@{number}") == "active",
        "a systemd of the user's",
        PATIENCE_SECONDS,
    )
    config = f"/home/{MEMBER}/.config/phi4d/phi4d.toml"
    m.run("mkdir", "-p", f"/home/{MEMBER}/mine", config.rpartition("/")[0], user=MEMBER)
    m.write(
        config,
        """model_path = "demo"
state_dir = "~/.local/state/phi4d"
runtime_dir = "~/.local/state/phi4d"
inbox = [{ path = "~/mine", outbox = "~/answers" }]
""",
    )
    systemctl("enable", "--now", "phi4d")
    home = f"/home/{MEMBER}"
    scene.answers("shapes-300x400.png", "mine.png", to=f"{home}/mine", outbox=f"{home}/answers")
    told = json.loads(m.run("phi4d", "status", "--json", user=MEMBER))
    main = systemctl("show", "phi4d", "--value", "-p", "MainPID").strip()
    check(str(told["pid"]) == main, f"status tells of {told['pid']}, not of {main}")
    check(scene.show("MainPID") not in ("0", main), "the system's service went")
    systemctl("disable", "--now", "phi4d")
    m.path(config).unlink()
    m.run("loginctl", "disable-linger", MEMBER)


def killed_under_load(scene: Scene) -> None:
    """`kill -9` with files under way: the service comes back, and every file is done."""
    m = scene.machine
    scene.begin_with("RestartSec=1")
    scene.flood()
    pid, cursor = scene.show("MainPID"), scene.now()
    m.run("kill", "-9", pid)
    scene.another_process(than=pid)
    check(scene.told_of("being worked on when phi4d ended", cursor), "no files were under way")
    scene.settled("after kill -9")


def hung(scene: Scene) -> None:
    """A process that gives no sign of life is replaced by the watchdog."""
    m = scene.machine
    scene.begin_with("RestartSec=1\nWatchdogSec=10")
    scene.flood()
    pid, cursor = scene.show("MainPID"), scene.now()
    m.run("kill", "-STOP", pid)
    scene.another_process(than=pid)
    check(scene.told_of("Failed with result 'watchdog'", cursor), "it was not the watchdog")
    scene.settled("after a hang")


def held_and_let_go(scene: Scene) -> None:
    """A process that is stopped for shorter than the watchdog waits goes on as if nothing were."""
    m = scene.machine
    scene.flood()
    pid = scene.show("MainPID")
    # longer than the daemon ever waits by itself
    m.run("sh", "-c", f"kill -STOP {pid}; sleep 3; kill -CONT {pid}")
    scene.settled("after it was let go")
    check(scene.show("MainPID") == pid, "it was replaced")


def stopped_under_load(scene: Scene) -> None:
    """A stop in the midst of work ends in time, with nothing left running or half written."""
    m = scene.machine
    scene.flood()
    begun = time.monotonic()
    scene.systemctl("stop")
    scene.told["stopped under load in"] = f"{time.monotonic() - begun:.1f} s"
    check(scene.show("Result") == "success", f"the stop ended with {scene.show('Result')}")
    states = scene.states()
    check(not states.get("running"), f"left running: {states}")
    check(states.get("queued", 0) > 0, f"nothing was left to be done: {states}")
    told = json.loads(m.command("phi4d", "status", "--json", user=MEMBER).stdout)
    check(told["health"] == "down", f"status: {told['health']}")
    scene.systemctl("start")
    scene.settled("after a stop")


def crash_loop(scene: Scene) -> None:
    """A service that dies again and again is given up, says so, and can be started again."""
    m = scene.machine
    scene.begin_with("RestartSec=100ms")
    cursor, killed = scene.now(), 0

    def state() -> str:
        return scene.show("ActiveState")

    allowed = int(scene.show("StartLimitBurst"))
    while state() != "failed":
        check(killed <= allowed, f"it is started more than {allowed} times")
        killed += 1
        pid = scene.show("MainPID")
        if pid != "0":
            m.command("kill", "-9", pid)
        m.until(
            lambda old=pid: (  # type: ignore[misc]
                scene.show("MainPID") not in (old, "0") or state() == "failed"
            ),
            "a restart, or the end of them",
            PATIENCE_SECONDS,
        )
    check(scene.told_of("[Ss]tart request repeated too quickly", cursor), "no limit is told")
    check(killed > 1, "it was given up at once")
    m.run("systemctl", "reset-failed", "phi4d")
    scene.systemctl("start")
    scene.active()


def bad_config(scene: Scene) -> None:
    """A bad configuration: exit code 78, every fault named, and no second try."""
    m = scene.machine
    scene.begin_with("RestartSec=100ms")
    m.write(BAD, 'batch_sise = 4\ntemperature = "hot"\n')
    scene.systemctl("stop")
    cursor = scene.now()
    check(m.command("systemctl", "start", "phi4d").returncode != 0, "it starts all the same")
    check(scene.show("ExecMainStatus") == "78", f"exit code {scene.show('ExecMainStatus')}")
    # while it waits for another try, it is "activating"
    state = scene.show("ActiveState")
    check(state == "failed", f"it is tried again: {state}")
    check(scene.show("NRestarts") == "0", f"restarts: {scene.show('NRestarts')}")
    named_with_their_lines(scene, cursor)
    m.path(BAD).unlink()
    scene.systemctl("start")


def named_with_their_lines(scene: Scene, cursor: str) -> None:
    """Both faults of a bad file stand in the log, without a traceback."""
    for key in ("batch_sise", "temperature"):
        told = scene.told_of(f"70-bad.toml:[0-9]+: {key}", cursor)
        check(told, f"{key} is not named with its line")
    check(not scene.told_of("Traceback", cursor), "a traceback for a bad configuration")


def upgraded(scene: Scene) -> None:
    """The package is upgraded with files in the queue: none is lost, the configuration stays."""
    m = scene.machine
    own = "\n# my own line\n"
    with m.path("/etc/phi4d/phi4d.toml").open("a") as file:
        file.write(own)
    before = m.run("dpkg-query", "-W", "phi4d").split()[-1]
    jobs = sum(scene.states().values())
    scene.flood()
    pid = scene.show("MainPID")
    m.run("apt-get", "install", "-y", "-q", "-o", KEEP, f"/packages/{scene.newer}")
    check(sum(scene.states().values()) >= jobs, "the store was begun anew")
    scene.another_process(than=pid)
    text = m.path("/etc/phi4d/phi4d.toml").read_text()
    check(text.endswith(own), "the configuration was changed")
    scene.settled("after the upgrade")
    check(scene.show("NRestarts") == "0", f"it failed {scene.show('NRestarts')} times")
    after = m.run("dpkg-query", "-W", "phi4d").split()[-1]
    check(after != before, f"still version {after}")

    # what was stopped stays so
    scene.systemctl("stop")
    m.run("apt-get", "install", "-y", "-q", "--reinstall", f"/packages/{scene.newer}")
    check(scene.show("ActiveState") == "inactive", "an upgrade started what was stopped")
    scene.systemctl("start")


def removed(scene: Scene) -> None:
    """Removed, the package leaves configuration, state and sidecars; purged, the sidecars."""
    m = scene.machine
    m.run("apt-get", "remove", "-y", "-q", "phi4d")
    check(not m.path("/opt/phi4d").exists(), "/opt/phi4d is left")
    for path in ("/etc/phi4d/phi4d.toml", STORE, f"{OUTBOX}/digits-16k.wav.txt"):
        check(m.path(path).exists(), f"{path} went with the package")
    check(m.command("systemctl", "is-active", "phi4d").returncode != 0, "the service still runs")
    m.run("apt-get", "purge", "-y", "-q", "phi4d")
    for path in ("/etc/phi4d/phi4d.toml", "/var/lib/phi4d", "/var/cache/phi4d"):
        check(not m.path(path).exists(), f"a purge leaves {path}")
    check(m.path(f"{OUTBOX}/digits-16k.wav.txt").exists(), "a purge takes the sidecars")
    check(m.path(f"{INBOX}/digits-16k.wav").exists(), "a purge takes the inbox's files")
    left = m.ask("systemctl", "list-unit-files", "--no-legend", "phi4d*")
    check(not left, f"units are left: {left}")


def from_source(scene: Scene) -> None:
    """`make install` from a clone does the same, and `make uninstall` leaves what is people's."""
    m = scene.machine
    m.run("cp", "-r", "/source", "/usr/src/phi4d")
    m.run("make", "-C", "/usr/src/phi4d", "install")
    m.write(CONF, 'model_path = "demo"\n')
    m.run("systemctl", "enable", "--now", "phi4d")
    scene.answers("shapes-800x600.webp", "from-source.webp")
    m.run("phi4d", "status", user=MEMBER)
    m.run("make", "-C", "/usr/src/phi4d", "uninstall")
    check(m.command("systemctl", "is-active", "phi4d").returncode != 0, "the service still runs")
    check(not m.path("/opt/phi4d").exists(), "/opt/phi4d is left")
    for path in ("/etc/phi4d/phi4d.toml", STORE, f"{OUTBOX}/from-source.webp.txt"):
        check(m.path(path).exists(), f"make uninstall takes {path}")


ALL: tuple[Callable[[Scene], None], ...] = (
    install,
    private_files,
    operated_by_a_member,
    journal_fields,
    hooks,
    reload,
    bad_reload,
    folders_elsewhere,
    of_a_user,
    killed_under_load,
    hung,
    held_and_let_go,
    stopped_under_load,
    crash_loop,
    bad_config,
    upgraded,
    removed,
    from_source,
)


BARE: tuple[Callable[[Scene], None], ...] = (install, from_source)
"""those that begin without phi4d"""


def aftermath(scene: Scene) -> str:
    """What helps to understand a failure."""
    m = scene.machine
    parts = [
        m.ask("systemctl", "status", "--no-pager", "-l", "-n0", "phi4d"),
        m.ask("journalctl", "-u", "phi4d", "--no-pager", "-n", "60", "-o", "short-precise"),
        m.ask("systemctl", "list-jobs", "--no-pager", "--no-legend"),
    ]
    return "\n".join(part for part in parts if part)
