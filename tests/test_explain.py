"""Why a file is taken or not, and where it stands: real files, a real store, a real lock."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from kit import unprivileged

from phi4d import config as configuration
from phi4d.config import BESIDE, Config, Inbox
from phi4d.errors import EnvironmentFault
from phi4d.explain import Explanation, as_json, render, taking
from phi4d.explain import explain as explain_path
from phi4d.job import Arrival, Fingerprint, Job, Kind, State
from phi4d.outputs import names
from phi4d.store import Reader, Store

TIME = r"\d{4}-\d\d-\d\d \d\d:\d\d"


@pytest.fixture(autouse=True)
def _folders(tmp_path: Path) -> None:
    for folder in ("in/2024", "out/2024", "notes", "done", "state"):
        (tmp_path / folder).mkdir(parents=True)


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """Of an inbox of pictures with an outbox of its own, and one with its sidecars beside."""
    file = tmp_path / "phi4d.toml"
    file.write_text(
        'state_dir = "state"\n'
        '[[inbox]]\npath = "in"\noutbox = "out"\nkinds = ["image"]\nexclude = ["*.bak", "raw/"]\n'
        'originals = "move"\ndone_dir = "done"\n'
        '[[inbox]]\npath = "notes"\noutbox = "beside"\npriority = "low"\n'
    )
    return configuration.load(config=file, environ={})


@pytest.fixture
def store(config: Config) -> Iterator[Store]:
    with Store(config.store_path) as store:
        yield store


@pytest.fixture
def explain(config: Config, tmp_path: Path) -> Callable[[str], Explanation]:
    return lambda path: explain_path(str(tmp_path / path), config)


@pytest.fixture
def running(store: Store, config: Config) -> Iterator[int]:
    """A process holds the lock, as a daemon does; its id."""
    script = (
        "import sys; from pathlib import Path; from phi4d.lock import Lock\n"
        "lock = Lock(Path(sys.argv[1])); print(flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", script, str(config.state_dir / "lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout
        process.stdout.readline()
        yield process.pid


def facts(told: Explanation) -> dict[str, str]:
    """What is said, by what it is about; of several, all."""
    found: dict[str, str] = {}
    for about, text in told.facts:
        found[about] = f"{found[about]}\n{text}" if about in found else text
    return found


def begun(store: Store, path: Path, inbox: str = "in") -> Job:
    """A job of a file that is there."""
    relative = os.fsencode(str(path).split(f"/{inbox}/")[-1])
    store.add([Arrival(inbox, relative, Kind.IMAGE, Fingerprint.of(path.lstat()))])
    (waiting,) = (j for j in store.waiting(99, [inbox]) if j.path == relative)
    (job,) = store.claim([waiting.id], "cuda:0")
    return job


class TestWhatIsPassedOver:
    @pytest.mark.parametrize(
        ("name", "why"),
        [
            (".hidden.png", r'excluded by "\.\*" \(usual litter\)'),
            ("a.part", r'excluded by "\*\.part" \(usual litter\)'),
            ("2024/a.bak", r'excluded by "\*\.bak" \(exclude\)'),
            ("raw/2024/a.png", r'its folder raw is excluded by "raw/" \(exclude\)'),
            ("2024/draft.png", r'excluded by "draft\*" in 2024/\.phi4dignore'),
            ("a.png.txt", r"named like what phi4d writes itself"),
            ("notes.pdf", r"by its name it is neither a picture nor a recording"),
        ],
    )
    @pytest.mark.parametrize("there", [True, False])
    def test_by_its_name(
        self,
        explain: Callable[[str], Explanation],
        tmp_path: Path,
        name: str,
        why: str,
        there: bool,
    ) -> None:
        (tmp_path / "in/2024/.phi4dignore").write_text("draft*\n")
        if there:
            (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "in" / name).write_text("x")
        told = explain(f"in/{name}")
        assert re.search(why, facts(told)["passed over"]), told.facts
        assert not told.ok
        assert told.advice

    def test_what_is_no_regular_file(
        self, explain: Callable[[str], Explanation], tmp_path: Path
    ) -> None:
        (tmp_path / "real.png").touch()
        (tmp_path / "in/link.png").symlink_to(tmp_path / "real.png")
        (tmp_path / "in/nowhere.png").symlink_to("nowhere")
        (tmp_path / "in/loop.png").symlink_to("loop.png")
        os.mkfifo(tmp_path / "in/fifo.png")
        for name, what in {
            "link": "a symbolic link, which is not followed",
            "nowhere": "a symbolic link, which is not followed",
            "loop": "a symbolic link, which is not followed",
            "fifo": "a FIFO, which is never opened",
        }.items():
            told = explain(f"in/{name}.png")
            assert facts(told)["file"] == what
            assert facts(told)["passed over"] == "only regular files are taken"
            assert not told.ok

    def test_a_socket_is_not_opened(
        self, explain: Callable[[str], Explanation], config: Config, tmp_path: Path
    ) -> None:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(str(tmp_path / "in/s.png"))
            assert facts(explain("in/s.png"))["file"] == "a socket, which is never opened"

    def test_what_lies_behind_a_link_to_a_folder(
        self, explain: Callable[[str], Explanation], tmp_path: Path
    ) -> None:
        (tmp_path / "elsewhere").mkdir()
        (tmp_path / "elsewhere/a.png").touch()
        (tmp_path / "in/link").symlink_to(tmp_path / "elsewhere")
        told = explain("in/link/a.png")
        assert f"{tmp_path}/in/link is a symbolic link" in facts(told)["passed over"]
        assert "hard link" in told.advice

    def test_a_kind_that_its_inbox_does_not_take(
        self,
        explain: Callable[[str], Explanation],
        tmp_path: Path,
        make_recording: Callable[..., Path],
    ) -> None:
        make_recording(tmp_path / "in/a.wav")
        told = explain("in/a.wav")
        assert facts(told)["content"] == "a WAV recording by its content"
        assert facts(told)["passed over"] == "it is a recording, and its inbox takes only pictures"
        assert told.advice == 'if it is to be taken, add "audio" to kinds of inbox "in"'

    def test_a_strange_file_without_an_extension(
        self, explain: Callable[[str], Explanation], tmp_path: Path
    ) -> None:
        (tmp_path / "in/strange").write_text("just text")
        told = explain("in/strange")
        assert facts(told)["content"] == "holds text"
        assert facts(told)["passed over"] == "it is neither a picture nor a recording"


class TestWhatIsTaken:
    def test_a_picture_that_phi4d_has_not_seen(
        self,
        explain: Callable[[str], Explanation],
        tmp_path: Path,
        make_picture: Callable[..., Path],
        running: int,
    ) -> None:
        make_picture(tmp_path / "in/2024/a.png")
        told = explain("in/2024/a.png")
        assert facts(told)["inbox"] == f"in ({tmp_path}/in)"
        assert facts(told)["content"] == "a PNG picture by its content"
        assert facts(told)["taken"] == "no pattern excludes it"
        assert facts(told)["state"] == "phi4d does not know it"
        assert facts(told)["daemon"] == f"runs, pid {running}"
        assert told.advice.startswith("nothing: it is taken when it is complete")
        assert told.ok

    def test_one_that_is_not_whole(
        self,
        explain: Callable[[str], Explanation],
        tmp_path: Path,
        make_picture: Callable[..., Path],
    ) -> None:
        path = make_picture(tmp_path / "in/a.png")
        path.write_bytes(path.read_bytes()[:-20])
        told = explain("in/a.png")
        assert "not whole: only when it is" in facts(told)["taken"]
        assert told.ok
        assert told.advice == "start phi4d"

    def test_one_that_this_user_may_not_read(self, make_picture: Callable[..., Path]) -> None:
        with tempfile.TemporaryDirectory() as folder:  # pytest's are root's alone
            path = make_picture(Path(folder) / "a.png")
            Path(folder).chmod(0o755)
            box = Inbox(path=Path(folder), outbox=BESIDE, name="in")
            with unprivileged(path):
                told = explain_path(str(path), Config(inbox=(box,), state_dir=Path(folder)))
        assert facts(told)["content"] == "may not be read by this user"
        assert facts(told)["taken"] == "no pattern excludes it"

    def test_a_name_that_is_not_there(self, explain: Callable[[str], Explanation]) -> None:
        told = explain("in/none.png")
        assert facts(told)["file"] == "is not there"
        assert facts(told)["rules"].startswith("a file of this name may be taken")
        assert not told.ok

    def test_folders(self, explain: Callable[[str], Explanation], tmp_path: Path) -> None:
        for name in ("in", "in/2024"):
            told = explain(name)
            assert facts(told)["file"] == "a folder"
            assert facts(told)["taken"].endswith("its files are taken one by one")
            assert told.ok
        (tmp_path / "in/raw").mkdir()
        assert not explain("in/raw").ok

    def test_any_name(
        self,
        config: Config,
        tmp_path: Path,
        make_picture: Callable[..., Path],
    ) -> None:
        made = make_picture(tmp_path / "in/a.png")
        for name in (b"caf\xe9\n\x1b[31m.png", b"-x.png", b"x" * 251 + b".png"):
            path = os.path.join(os.fsencode(tmp_path / "in"), name)
            os.rename(made, path)
            made = Path(os.fsdecode(path))
            told = explain_path(str(made), config)
            assert told.ok
            assert all(line.isprintable() for line in render(told).splitlines())


class TestWhereItStands:
    @pytest.fixture
    def path(self, tmp_path: Path, make_picture: Callable[..., Path]) -> Path:
        return make_picture(tmp_path / "in/a.png")

    def test_done(
        self, explain: Callable[[str], Explanation], store: Store, path: Path, tmp_path: Path
    ) -> None:
        store.finish(begun(store, path))
        (tmp_path / "out/a.png.txt").touch()
        (tmp_path / "out/a.png.json").write_text('{"source": "a.png", "phi4d": "0.1.0"}')
        told = explain("in/a.png")
        assert re.fullmatch(f"done {TIME} on cuda:0 after 1 attempt", facts(told)["state"])
        assert facts(told)["sidecar"] == f"{tmp_path}/out/a.png.txt\n{tmp_path}/out/a.png.json"
        assert (told.ok, told.state, told.advice) == (True, State.DONE, "")
        os.unlink(tmp_path / "out/a.png.txt")
        os.unlink(tmp_path / "out/a.png.json")
        assert facts(explain("in/a.png"))["sidecar"].startswith("not there any more")

    def test_done_by_its_sidecars(
        self, explain: Callable[[str], Explanation], store: Store, path: Path
    ) -> None:
        a = Arrival("in", b"a.png", Kind.IMAGE, Fingerprint.of(path.lstat()))
        store.adopt([(a, None, None)])
        told = explain("in/a.png")
        assert facts(told)["state"].endswith("by the sidecars that were there")

    def test_failed(self, explain: Callable[[str], Explanation], store: Store, path: Path) -> None:
        job = begun(store, path)
        store.requeue(job, count=True, crashed=True)
        (job,) = store.claim([job.id], "cpu")
        store.fail(job, "file", "crashed its decoder, 2 times", "decode")
        told = explain("in/a.png")
        assert re.fullmatch(f"failed {TIME} on cpu after 2 attempts", facts(told)["state"])
        assert facts(told)["crashes"] == "its decode process died once"
        assert facts(told)["fault"] == "file, at decode: crashed its decoder, 2 times"
        assert told.advice == f"mend or replace it, or have it tried again: phi4d retry {path}"
        assert not told.ok

    def test_waiting_for_its_turn_and_for_its_next_try(
        self, explain: Callable[[str], Explanation], store: Store, path: Path, running: int
    ) -> None:
        job = begun(store, path)
        store.requeue(job, count=False)
        told = explain("in/a.png")
        assert re.fullmatch(f"waits for its turn, since {TIME}", facts(told)["state"])
        assert facts(told)["turn"] == "first of the pictures of its inbox"
        assert told.advice == ""
        for _ in range(2):
            (job,) = store.claim([job.id], "cpu")
            store.requeue(job, count=True, wait=60, fault="environment", reason="cannot be read")
        told = explain("in/a.png")
        assert re.fullmatch(f"waits for its next try, at {TIME}", facts(told)["state"])
        assert "turn" not in facts(told)
        assert facts(told)["attempts"] == "begun 2 times, put off 2 times"
        assert facts(told)["fault"] == "environment: cannot be read"
        assert told.ok

    def test_what_goes_before_it(
        self, explain: Callable[[str], Explanation], store: Store, tmp_path: Path
    ) -> None:
        # given files of a kind in one inbox, and others
        for n, (inbox, kind) in enumerate(
            [("notes", Kind.IMAGE)] * 3 + [("notes", Kind.AUDIO), ("in", Kind.IMAGE)]
        ):
            store.add([Arrival(inbox, b"%d.png" % n, kind, Fingerprint(n, 1, 1))])
        # then those of its queue are counted that came earlier
        assert facts(explain("notes/2.png"))["turn"] == (
            "2 of the pictures of its inbox go before it; the inbox has low priority"
        )
        assert facts(explain("notes/0.png"))["turn"].startswith("first of the pictures")

    def test_running_with_a_daemon(
        self, explain: Callable[[str], Explanation], store: Store, path: Path, running: int
    ) -> None:
        begun(store, path)
        told = explain("in/a.png")
        assert re.fullmatch(f"runs on cuda:0, since {TIME}", facts(told)["state"])

    def test_running_when_the_daemon_was_killed(
        self, explain: Callable[[str], Explanation], store: Store, path: Path
    ) -> None:
        job = begun(store, path)
        store.requeue(job, count=True, died=True)
        store.claim([job.id], "cpu")
        told = explain("in/a.png")
        assert facts(told)["state"] == (
            "ran on cpu when phi4d ended; is begun again at its next start"
        )
        assert facts(told)["crashes"] == "the device was lost once over it alone"
        assert facts(told)["daemon"] == "does not run"
        assert (told.ok, told.advice) == (True, "start phi4d")

    def test_a_newer_version_is_there(
        self,
        explain: Callable[[str], Explanation],
        store: Store,
        path: Path,
        running: int,
        make_picture: Callable[..., Path],
    ) -> None:
        store.fail(begun(store, path), "file", "x")
        make_picture(path, (80, 80))
        os.utime(path, (1, 1))
        told = explain("in/a.png")
        assert "the file is a newer one than that" in facts(told)["version"]
        assert told.ok
        assert told.advice.startswith("nothing: it is taken")
        # when it has been taken in
        store.finish(begun(store, path))
        told = explain("in/a.png")
        assert "version" not in facts(told)
        assert re.fullmatch(
            f"1 older version; the last: set aside {TIME}: a newer version followed",
            facts(told)["before"],
        )

    def test_what_became_of_the_original(
        self, explain: Callable[[str], Explanation], store: Store, path: Path, tmp_path: Path
    ) -> None:
        job = begun(store, path)
        store.finish(job, original=True)
        assert facts(explain("in/a.png"))["original"] == "is about to be moved or deleted"
        moved = tmp_path / "done/a.png"
        path.rename(moved)
        store.settle_original(job, "moved", os.fsencode(moved))
        told = explain("in/a.png")
        assert facts(told)["original"] == f"was moved to {moved}"
        assert told.ok
        moved.unlink()
        assert facts(explain("in/a.png"))["original"].endswith(", and is not there any more")

    def test_a_failed_one_that_was_moved_is_to_be_put_back(
        self, explain: Callable[[str], Explanation], store: Store, path: Path
    ) -> None:
        job = begun(store, path)
        store.fail(job, "file", "x", original=True)
        store.settle_original(job, "moved", b"/failed/a.png")
        assert explain("in/a.png").advice == (
            f"put it back from /failed/a.png, then: phi4d retry {path}"
        )

    def test_deleted(self, explain: Callable[[str], Explanation], store: Store, path: Path) -> None:
        job = begun(store, path)
        store.finish(job, original=True)
        store.settle_original(job, "deleted")
        path.unlink()
        assert facts(explain("in/a.png"))["original"] == "was deleted when it was done with"

    def test_gone(self, explain: Callable[[str], Explanation], store: Store, path: Path) -> None:
        store.drop(begun(store, path), "is gone")
        path.unlink()
        told = explain("in/a.png")
        assert re.fullmatch(f"set aside {TIME}: is gone", facts(told)["state"])
        assert not told.ok

    def test_an_inbox_that_is_held_up(
        self, explain: Callable[[str], Explanation], store: Store, path: Path
    ) -> None:
        store.notice("in", "outbox", "/out: disk full")
        store.notice("notes", "watch", "not this one's")
        assert re.fullmatch(
            f"inbox in, since {TIME}: /out: disk full", facts(explain("in/a.png"))["held up"]
        )


class TestSidecars:
    @pytest.mark.parametrize("suffix", [names.TEXT, names.RECORD, names.ERROR])
    def test_one_in_an_outbox_explains_its_source(
        self, explain: Callable[[str], Explanation], tmp_path: Path, suffix: bytes
    ) -> None:
        told = explain(f"out/2024/a.png{suffix.decode()}")
        assert told.path == os.fsencode(tmp_path / "in/2024/a.png")
        assert facts(told)["sidecar"] == f"of {tmp_path}/in/2024/a.png, which this is about"

    def test_one_beside_its_source(
        self,
        explain: Callable[[str], Explanation],
        tmp_path: Path,
        make_picture: Callable[..., Path],
    ) -> None:
        source = make_picture(tmp_path / "notes/a.png")
        (tmp_path / "notes/a.png.json").touch()
        assert explain("notes/a.png.json").path == os.fsencode(source)

    def test_somebody_else_s_in_its_place(
        self,
        explain: Callable[[str], Explanation],
        tmp_path: Path,
        make_picture: Callable[..., Path],
    ) -> None:
        make_picture(tmp_path / "notes/a.png")
        foreign = tmp_path / "notes/a.png.json"
        foreign.write_text('{"title": "by a photo service"}')
        told = facts(explain("notes/a.png"))
        assert told["in the way"] == f"{foreign}, which is not phi4d's"
        assert "sidecar" not in told
        foreign.write_text('{"source": "a.png", "phi4d": "0.1.0"}')
        told = facts(explain("notes/a.png"))
        assert told["sidecar"] == str(foreign)
        assert "in the way" not in told

    def test_somebody_else_s_text_among_the_sources(
        self, explain: Callable[[str], Explanation], tmp_path: Path
    ) -> None:
        (tmp_path / "notes/shopping.txt").write_text("milk")
        told = explain("notes/shopping.txt")
        assert told.path == os.fsencode(tmp_path / "notes/shopping.txt")
        assert "named like what phi4d writes itself" in facts(told)["passed over"]


class TestOutside:
    def test_a_path_in_no_inbox(
        self, explain: Callable[[str], Explanation], tmp_path: Path
    ) -> None:
        told = explain("elsewhere/a.png")
        assert facts(told)["inboxes"] == f"in ({tmp_path}/in), notes ({tmp_path}/notes)"
        assert told.advice.startswith("put it into an inbox")
        assert (told.inbox, told.ok) == (None, False)

    def test_other_folders_of_phi4d_s(self, explain: Callable[[str], Explanation]) -> None:
        assert facts(explain("done/a.png"))["folder"] == 'in the done_dir of inbox "in"'
        assert facts(explain("out/a.png"))["folder"] == 'in the outbox of inbox "in"'

    def test_no_inbox_at_all(self, tmp_path: Path) -> None:
        config = Config(state_dir=tmp_path)
        assert facts(explain_path("/a.png", config))["inboxes"] == "none configured"

    def test_an_inbox_that_is_not_there(
        self, explain: Callable[[str], Explanation], tmp_path: Path
    ) -> None:
        (tmp_path / "notes").rmdir()
        told = explain("notes/a.png")
        assert facts(told)["inbox"] == f"notes ({tmp_path}/notes), which is not there"


class TestTheStore:
    def test_there_is_none(self, explain: Callable[[str], Explanation]) -> None:
        told = explain("in/a.png")
        assert "jobs.sqlite3 is not there" in facts(told)["state"]
        assert facts(told)["daemon"] == "does not run"

    def test_this_user_may_not_read_it(
        self, explain: Callable[[str], Explanation], store: Store, config: Config
    ) -> None:
        with unprivileged(config.state_dir):
            told = explain("in/a.png")
        assert "be the daemon's user, or in its group" in facts(told)["state"]
        assert facts(told)["daemon"] == "not known: this user may not look"
        assert not told.advice  # the file is not there, whatever the store says

    def test_it_is_damaged(
        self,
        explain: Callable[[str], Explanation],
        config: Config,
        tmp_path: Path,
        make_picture: Callable[..., Path],
    ) -> None:
        make_picture(tmp_path / "in/a.png")
        config.store_path.write_bytes(b"not a database, but long enough to be looked at" * 100)
        told = explain("in/a.png")
        assert "start phi4d anew" in facts(told)["state"]
        assert "daemon's user" not in told.advice

    def test_it_fails_half_way(
        self,
        explain: Callable[[str], Explanation],
        store: Store,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        def fail(*_: object) -> None:
            raise EnvironmentFault("the disk is failing")

        monkeypatch.setattr(Reader, "versions", fail)
        assert facts(explain("in/a.png"))["state"] == "not known: the disk is failing"


def test_as_json(explain: Callable[[str], Explanation], tmp_path: Path) -> None:
    shown = as_json(explain("in/a.png"))
    assert shown["path"] == str(tmp_path / "in/a.png")
    assert (shown["ok"], shown["inbox"], shown["taken"], shown["state"]) == (
        False,
        "in",
        False,
        None,
    )
    assert {"about": "file", "text": "is not there"} in shown["facts"]


def test_for_people(explain: Callable[[str], Explanation], tmp_path: Path) -> None:
    lines = render(explain("elsewhere/a.png")).splitlines()
    assert lines[0] == f"{tmp_path}/elsewhere/a.png"
    assert lines[1] == "  inbox    none: only what is below an inbox is taken"
    assert lines[-1].startswith("  → put it into an inbox")


def test_a_file_that_changes_under_its_eyes(
    explain: Callable[[str], Explanation],
    tmp_path: Path,
    make_picture: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = make_picture(tmp_path / "in/a.png")

    def kind_of(name: bytes) -> Kind:
        os.utime(path, (1, 1))
        return Kind.IMAGE

    monkeypatch.setattr(taking, "kind_of", kind_of)
    assert "it changed after it was seen" in facts(explain("in/a.png"))["taken"]
