"""What is cancelled waits no more, and can be taken up again: a real store."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from phi4d.config import Inbox
from phi4d.desk import cancelling
from phi4d.explain import standing
from phi4d.job import Arrival, Fingerprint, Kind, State
from phi4d.store import Chosen, Store

WHY = "cancelled by ada; phi4d retry takes it up again"


def test_what_waits_is_given_up_and_what_runs_is_told_to_stop(tmp_path: Path) -> None:
    box = Inbox(path=tmp_path, outbox=tmp_path / "out", name="in")
    with Store(tmp_path / "jobs") as store:
        store.add(Arrival("in", b"%d" % n, Kind.IMAGE, Fingerprint(n, 1, 1)) for n in range(4))
        done, runs = store.claim([1, 4], "cpu")
        store.finish(done)
        # when a file that runs, one that waits, one that is done and one elsewhere are named
        paths = [os.fsencode(tmp_path / name) for name in "310"] + [b"/nowhere"]
        outcome = cancelling.carry_out(paths, None, store, [box], "ada")
        # then the one that waits has failed, the one that runs is marked, of the others is told why
        assert (outcome.taken, outcome.first, outcome.stopping) == (1, ("in/1",), 1)
        assert store.cancelled([done, runs]) == {4: WHY}
        assert [why for _, why in outcome.left] == [
            "is in no inbox", "neither waits nor is being worked on",
        ]  # fmt: skip
        row = store.versions("in", b"1")[0]
        assert (row.state, row.fault) == (State.FAILED, "operator")
        assert row.reason == WHY
        assert standing._state(row, running=False).endswith(f": {WHY}")
        (row,) = store.versions("in", b"3")
        assert standing._state(row, running=True).endswith(f"is about to stop: {WHY}")
        # when all that waits is, so is the rest, but not what runs; and it can be taken up again
        assert store.requeue(runs, count=False)
        store.retry("in", b"3")
        store.claim([4], "cpu")
        outcome = cancelling.carry_out([], "in", store, [box], "ada")
        assert (outcome.taken, outcome.stopping) == (1, 0)
        assert store.waiting(9, ["in"]) == []
        assert store.retry("in", b"1") == Chosen(1, (b"1",))


def test_an_order_survives_json_and_what_is_none_is_refused() -> None:
    assert cancelling.of(cancelling.fields([b"/a\xff"], "in")) == ([b"/a\xff"], "in")
    for told in ({"paths": "a"}, {"paths": [1]}, {"inbox": 1}):
        with pytest.raises(ValueError, match="expected"):
            cancelling.of(told)
