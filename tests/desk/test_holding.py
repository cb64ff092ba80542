"""Inboxes that somebody pauses: in a real store, with a daemon and without one."""

from __future__ import annotations

from pathlib import Path

import pytest

from phi4d.desk.holding import Held, Hold, carry_out
from phi4d.job import Arrival, Fingerprint, Kind
from phi4d.store import Store

KNOWN = ["a", "b"]


def test_what_is_paused_is_not_claimed_until_it_goes_on(tmp_path: Path) -> None:
    with Store(tmp_path / "jobs") as store:
        store.add([Arrival(name, b"x", Kind.IMAGE, Fingerprint(1, 1, 1)) for name in KNOWN])
        # when one of two is paused
        assert carry_out(Hold(("a",), why="moving"), store, KNOWN, "ada") == Held(("a",))
        assert store.paused()["a"].words == "paused by ada: moving"
        # then only the other's are claimed, and it can be said again
        assert [job.inbox for job in store.claim([1, 2], "cpu")] == ["b"]
        assert carry_out(Hold(), store, KNOWN, "bob") == Held(("b",), ("a",))
        # and when all go on, so is the first's
        assert carry_out(Hold(pause=False), store, KNOWN, "ada") == Held(("a", "b"))
        assert [job.inbox for job in store.claim([1], "cpu")] == ["a"]
        assert carry_out(Hold(("a",), pause=False), store, KNOWN, "ada") == Held((), ("a",))


def test_one_that_is_configured_no_more_can_go_on(tmp_path: Path) -> None:
    with Store(tmp_path / "jobs") as store:
        carry_out(Hold(("a",)), store, KNOWN, "ada")
        with pytest.raises(ValueError, match="no inbox is named 'a'; there are: b"):
            carry_out(Hold(("a",)), store, ["b"], "ada")
        assert carry_out(Hold(("a",), pause=False), store, ["b"], "ada") == Held(("a",))


@pytest.mark.parametrize("fields", [{"inboxes": "a"}, {"inboxes": [1]}, {"why": 3}])
def test_fields_that_are_none_are_refused(fields: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="expected"):
        Hold.of(fields, pause=True)


def test_an_order_and_what_came_of_it_survive_json() -> None:
    order = Hold(("a",), why="a  reason")
    assert Hold.of({"inboxes": ["a"], "why": order.why}, pause=True) == Hold(("a",), why="a reason")
    assert Held.of({"changed": ["a"], "already": []}) == Held(("a",))
