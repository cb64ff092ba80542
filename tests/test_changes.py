"""What differs between two configurations, and what of it is live."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from phi4d.changes import AT_START, LIVE, OF_INBOX, compare
from phi4d.config import Config, Inbox


def config(**keys: Any) -> Config:
    keys.setdefault("inbox", [box("in")])
    return Config.model_validate(keys)


def box(name: str, **keys: Any) -> dict[str, Any]:
    return {"path": f"/{name}", "outbox": f"/{name}-out", "name": name, **keys}


def test_every_key_is_in_one_class_and_no_other() -> None:
    keys = set(Config.model_fields)
    both, neither = LIVE & AT_START, keys - LIVE - AT_START
    assert not both, f"in both classes: {both}"
    assert not neither, f"say in phi4d/changes.py whether it is live or for the start: {neither}"
    assert keys >= LIVE | AT_START
    assert set(Inbox.model_fields) == OF_INBOX, "a new key of an inbox must be live; then add it"


def test_the_same_changes_nothing() -> None:
    changes = compare(config(), config())
    assert changes.words() == ""
    assert changes.at_start == ()
    assert changes.config == config()


def test_live_keys_are_taken_and_the_others_kept() -> None:
    old = config(device="cpu", dtype="float32")
    new = config(device="cuda:0", dtype="float32", batch_size=3, seed=4)
    changes = compare(old, new)
    assert changes.keys == ("batch_size", "seed")
    assert changes.at_start == ("device",)
    assert changes.config == config(device="cpu", dtype="float32", batch_size=3, seed=4)


def test_what_waits_for_the_start_is_named_each_time_until_then() -> None:
    old, new = config(), config(model_path="other")
    in_force = compare(old, new).config
    assert compare(in_force, new).at_start == ("model_path",)


def test_inboxes_are_told_apart_by_their_names() -> None:
    old = config(inbox=[box("a"), box("b"), box("c")])
    new = config(inbox=[box("d"), box("c", kinds=["image"], image_prompt="?"), box("a")])
    changes = compare(old, new)
    assert (changes.added, changes.removed) == (("d",), ("b",))
    assert changes.changed == {"c": ("kinds", "image_prompt")}
    assert changes.words() == 'inbox "d" added, inbox "b" removed, inbox "c" (kinds, image_prompt)'
    assert changes.config.inbox == new.inbox


def test_an_inbox_that_moves_keeps_its_name() -> None:
    moved = {**box("in"), "path": "/elsewhere"}
    assert compare(config(), config(inbox=[moved])).changed == {"in": ("path",)}


def test_every_key_of_an_inbox_is_noticed() -> None:
    other: dict[str, Any] = {
        "path": Path("/p"), "outbox": Path("/o"), "kinds": ("image",), "watch": "poll",
        "include": ("*.a",), "exclude": ("*.b",), "priority": "low", "originals": "delete",
        "done_dir": Path("/d"), "failed_dir": Path("/f"), "on_done": ("true",),
        "on_failed": "https://example.com/", "hook_seconds": 1.0,
        "webhook_secret_file": Path("/s"), "webhook_hours": 1.0, "webhook_text": True,
        "image_prompt": "?", "speech_prompt": "!",
    }  # fmt: skip
    old = config()
    for key, value in other.items():
        (inbox,) = old.inbox
        assert getattr(inbox, key) != value
        new = old.model_copy(update={"inbox": (inbox.model_copy(update={key: value}),)})
        assert compare(old, new).changed == {"in": (key,)}, key
    assert other.keys() == OF_INBOX - {"name"}  # another name is another inbox
