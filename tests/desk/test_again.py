"""What is done again, and why the rest is not: a real store, real files."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from phi4d import config as configuration
from phi4d.config import BESIDE, Config, Inbox
from phi4d.desk.again import Order, Outcome, carry_out, locate, todays
from phi4d.job import Arrival, Fingerprint, Job, Kind, Sampling, question
from phi4d.outputs import names
from phi4d.store import Reader, Store


class Desk:
    """A store, an inbox whose sidecars go elsewhere, and one with its sidecars beside."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = Store(folder / "jobs.sqlite3")
        self.boxes = [
            Inbox(path=folder / "in", outbox=folder / "out", name="in"),
            Inbox(path=folder / "notes", outbox=BESIDE, name="notes"),
        ]
        for box in self.boxes:
            box.path.mkdir()
        self.question = b"today's"

    def path(self, name: bytes, inbox: str = "in") -> bytes:
        return os.path.join(os.fsencode(self.folder / inbox), name)

    def add(self, *files: bytes, inbox: str = "in", kind: Kind = Kind.IMAGE) -> list[Job]:
        """Files that are there, and are being worked on."""
        before = {job.id for job in self.store.waiting(99, [inbox])}
        for name in files:
            path = self.path(name, inbox)
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, "wb") as file:
                file.write(b"x")
            self.store.add([Arrival(inbox, name, kind, Fingerprint.of(os.lstat(path)))])
        new = [job.id for job in self.store.waiting(99, [inbox]) if job.id not in before]
        return self.store.claim(new, "cpu")

    def failed(self, *files: bytes, inbox: str = "in") -> list[Job]:
        jobs = self.add(*files, inbox=inbox)
        for job in jobs:
            self.store.fail(job, "file", "is empty", "decode")
        return jobs

    def done(self, *files: bytes, asked: bytes = b"today's", **how: Any) -> list[Job]:
        jobs = self.add(*files, **how)
        for job in jobs:
            self.store.finish(job, question=asked)
        return jobs

    def order(self, *paths: bytes, **how: Any) -> Outcome:
        return carry_out(Order(paths, **how), self.store, self.boxes, lambda *_: self.question)

    def why(self, path: bytes, **how: Any) -> str:
        """Why a path led to nothing."""
        outcome = self.order(path, **how)
        assert (outcome.taken, outcome.first) == (0, ())
        ((_, why),) = outcome.left
        return why


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    desk = Desk(tmp_path)
    with desk.store:
        yield desk


class TestRetry:
    def test_all_that_failed_of_all_inboxes_or_of_one(self, desk: Desk) -> None:
        desk.failed(b"a.jpg", b"x/b.jpg")
        desk.failed(b"n.jpg", inbox="notes")
        desk.done(b"d.jpg")
        assert desk.order(inbox="notes") == Outcome(1, ("notes/n.jpg",))
        assert desk.order() == Outcome(2, ("in/a.jpg", "in/x/b.jpg"))
        assert desk.order() == Outcome()

    def test_files_and_folders(self, desk: Desk) -> None:
        desk.failed(b"x/a.jpg", b"x/b.jpg", b"xy.jpg", b"c.jpg")
        assert desk.order(desk.path(b"c.jpg"), desk.path(b"x")) == Outcome(
            3, ("in/c.jpg", "in/x/a.jpg", "in/x/b.jpg")
        )
        assert desk.order(desk.path(b"")[:-1]).first == ("in/xy.jpg",)

    @pytest.mark.parametrize("name", [b"caf\xe9\n.jpg", b"x" * 251 + b".jpg", b"-a", b"a.json"])
    @pytest.mark.parametrize("suffix", [names.ERROR, names.TEXT, names.RECORD])
    @pytest.mark.parametrize("inbox", ["in", "notes"])
    def test_a_sidecar_means_its_source(
        self, desk: Desk, name: bytes, suffix: bytes, inbox: str
    ) -> None:
        desk.failed(b"2024/" + name, inbox=inbox)
        sidecar = b"2024/" + names.sidecar(name, suffix)
        found = desk.order(desk.path(sidecar, "out" if inbox == "in" else inbox))
        assert found.taken == 1

    def test_a_folder_that_is_named_like_a_sidecar_is_a_folder(self, desk: Desk) -> None:
        desk.failed(b"x.txt/a.jpg", inbox="notes")
        assert desk.order(desk.path(b"x.txt", "notes")).taken == 1

    def test_what_was_moved_away_is_told_and_taken_when_it_is_back(self, desk: Desk) -> None:
        # given a file that failed and was moved away
        (job,) = desk.failed(b"a.jpg")
        desk.store._db.execute("UPDATE job SET original = 'due'")
        elsewhere = os.fsencode(desk.folder / "failed.jpg")
        os.rename(desk.path(b"a.jpg"), elsewhere)
        desk.store.settle_original(job, "moved", elsewhere)
        # then it is not taken up, and it is said where it is
        assert desk.why(desk.path(b"a.jpg")) == (
            f"has failed, and was moved to {desk.folder}/failed.jpg: put it back, then phi4d retry"
        )
        assert desk.order() == Outcome()
        # when another file is in its place, nothing changes
        Path(os.fsdecode(desk.path(b"a.jpg"))).write_text("another")
        assert "was moved to" in desk.why(desk.path(b"a.jpg"))
        # when it is put back
        os.rename(elsewhere, desk.path(b"a.jpg"))
        assert desk.order() == Outcome(1, ("in/a.jpg",))

    def test_why_a_file_is_not_taken_up(self, desk: Desk) -> None:
        desk.done(b"done.jpg")
        desk.add(b"runs.jpg")
        desk.failed(b"waits.jpg")
        desk.order()
        (dropped,) = desk.add(b"gone.jpg")
        desk.store.drop(dropped, "is gone")
        (deleted,) = desk.failed(b"deleted.jpg")
        desk.store._db.execute("UPDATE job SET original = 'due' WHERE id = ?", (deleted.id,))
        desk.store.settle_original(deleted, "deleted")
        os.unlink(desk.path(b"deleted.jpg"))
        for name, why in {
            b"done.jpg": "is done: phi4d regenerate does it again",
            b"runs.jpg": "is being worked on",
            b"waits.jpg": "waits for its turn already",
            b"gone.jpg": "was set aside (is gone); if it is there, it is taken by itself",
            b"deleted.jpg": "has failed, and was deleted: copy it here again",
            b"new.jpg": "is not known; phi4d explain tells why",
            b"": "nothing in it has failed or waits for its next try",
        }.items():
            assert desk.why(desk.path(name).rstrip(b"/")) == why

    def test_a_path_that_is_in_no_inbox_names_those_that_are(self, desk: Desk) -> None:
        (left,) = desk.order(b"/none/a\xff.jpg").left
        assert left[0] == r"/none/a\xff.jpg"
        assert left[1] == f"is in no inbox; inboxes: {desk.folder}/in, {desk.folder}/notes"


class TestRegenerate:
    def test_files_and_folders_that_are_done(self, desk: Desk) -> None:
        desk.done(b"x/a.jpg", b"b.jpg")
        desk.failed(b"x/f.jpg")
        assert desk.order(desk.path(b"x"), anew=True) == Outcome(1, ("in/x/a.jpg",))
        (job,) = desk.store.waiting(9, ["in"])
        assert (job.path, job.fresh) == (b"x/a.jpg", True)

    def test_all_that_was_asked_something_else(self, desk: Desk) -> None:
        desk.done(b"new.jpg")
        desk.done(b"old.jpg", asked=b"older")
        desk.done(b"old.wav", asked=b"older", kind=Kind.AUDIO)
        desk.done(b"n.jpg", asked=b"older", inbox="notes")
        (unsaid,) = desk.add(b"unsaid.jpg")
        desk.store.finish(unsaid)  # as older stores have it
        found = ("in/old.jpg", "in/unsaid.jpg", "in/old.wav", "notes/n.jpg")
        assert desk.order(anew=True, stale=True, dry_run=True) == Outcome(4, found)
        assert desk.order(anew=True, stale=True, inbox="notes") == Outcome(1, found[3:])
        assert desk.order(desk.path(b"old.jpg"), anew=True, stale=True).first == found[:1]
        assert desk.order(anew=True, stale=True) == Outcome(2, found[1:3])
        assert not any(job.fresh for job in desk.store.waiting(9, ["in", "notes"]))

    def test_why_a_file_is_not_done_anew(self, desk: Desk) -> None:
        desk.done(b"x/done.jpg")
        desk.failed(b"f/failed.jpg")
        how = {"anew": True, "stale": True}
        for name, why in {
            b"x/done.jpg": "is not stale: it was asked the same, of the same model",
            b"f/failed.jpg": "has failed: phi4d retry does it again",
            b"x": "nothing in it is stale",
        }.items():
            assert desk.why(desk.path(name), **how) == why
        assert desk.why(desk.path(b"f"), anew=True) == "nothing in it is done"

    def test_what_is_asked_today(self, tmp_path: Path) -> None:
        settled = config(tmp_path, 'image_prompt = "What?"\ntemperature = 0.5\nseed = 3')
        asked = todays(settled, "a model")
        (box,) = settled.inboxes()
        sampling = Sampling(0.5, 1.0, 3)
        assert asked(box, Kind.IMAGE) == question(Kind.IMAGE, "a model", "What?", sampling)
        assert asked(box, Kind.AUDIO) == question(
            Kind.AUDIO, "a model", settled.speech_prompt, sampling
        )


def config(folder: Path, keys: str) -> Config:
    file = folder / "phi4d.toml"
    file.write_text(f'{keys}\nstate_dir = "."\n[[inbox]]\npath = "in"\noutbox = "out"\n')
    return configuration.load(config=file, environ={})


class TestLocate:
    def test_a_sidecar_of_a_file_that_is_gone(self, desk: Desk) -> None:
        # its whole name is known, or it is not
        known: Callable[..., bool] = lambda *_: False  # noqa: E731
        assert locate(desk.path(b"a.jpg.txt", "out"), desk.boxes, known) == (
            desk.boxes[0],
            b"a.jpg",
        )
        cut = names.sidecar(b"x" * 255, names.TEXT)
        assert locate(desk.path(cut, "out"), desk.boxes, known) is None
        assert locate(desk.path(cut, "notes"), desk.boxes, known) == (desk.boxes[1], cut)


class TestJson:
    @pytest.mark.parametrize(
        "order",
        [
            Order(),
            Order((b"/in/a\xff\n.jpg", b"/x"), "in"),
            Order((b"/a",), None, anew=True),
            Order((), "in", anew=True, stale=True, dry_run=True),
        ],
    )
    def test_an_order_survives(self, order: Order) -> None:
        assert Order.of(json.loads(json.dumps(order.fields())), anew=order.anew) == order

    @pytest.mark.parametrize(
        "outcome", [Outcome(), Outcome(7, ("in/a", "in/b"), (("/x", "is done"),))]
    )
    def test_an_outcome_survives(self, outcome: Outcome) -> None:
        assert Outcome.of(json.loads(json.dumps(outcome.fields()))) == outcome

    @pytest.mark.parametrize(
        "fields",
        [
            {"paths": "x"},
            {"paths": [7]},
            {"paths": ["relative"]},
            {"inbox": 7, "paths": ["/a"]},
            {},
            {"stale": 1},
        ],
    )
    def test_what_is_no_order_is_refused(self, fields: dict[str, Any]) -> None:
        with pytest.raises(ValueError, match="expected"):
            Order.of(fields, anew=True)

    def test_the_first_few_of_several_are_named(self) -> None:
        both = Outcome(8, tuple("abcdefgh"), (("/x", "1"),)) + Outcome(8, tuple("ijklmnop"))
        assert both == Outcome(16, tuple("abcdefghij"), (("/x", "1"),))


def test_a_reader_of_the_store_sees_it(desk: Desk, tmp_path: Path) -> None:
    desk.failed(b"a.jpg")
    desk.order()
    reader = Reader(tmp_path / "jobs.sqlite3")
    (row,) = reader.versions("in", b"a.jpg")
    reader.close()
    assert (row.state, row.job.attempts) == ("queued", 0)
