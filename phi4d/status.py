"""What the daemon is doing, in numbers and words, from what it and its store tell."""

from __future__ import annotations

import time
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, Self

from phi4d.job import State

COLUMNS = (State.QUEUED, State.RUNNING, State.DONE, State.FAILED)
JSON_SCHEMA = 2
"""of `Snapshot.fields`; a key that goes or changes its meaning makes the next. docs/status.md"""
HEADINGS = {
    State.QUEUED: "waiting",
    State.RUNNING: "running",
    State.DONE: "done",
    State.FAILED: "failed",
}
FILES = 3
"""of those that a slot has, so many are named"""
SPARSE_COLUMNS = 72
"""a narrower terminal is drawn on as if it were so wide"""


def totals(counts: Mapping[str, Mapping[State, int]]) -> dict[State, int]:
    """Jobs of all inboxes by state."""
    return {state: sum(of_inbox.get(state, 0) for of_inbox in counts.values()) for state in State}


def line(
    counts: Mapping[str, Mapping[State, int]],
    paused: Sequence[str] = (),
    models: Sequence[str] = (),
    rate: str = "",
) -> str:
    """One line, such as ``3 running, 128 waiting, 2 failed``, as systemd shows it.

    Args:
        counts: jobs by inbox and state.
        paused: inboxes that wait.
        rate: how fast it goes, in words.
        models: what there is to say of models that are not loaded.
    """
    total = totals(counts)
    words = (
        f"{total[State.RUNNING]} running, {total[State.QUEUED]} waiting, "
        f"{total[State.FAILED]} failed"
    )
    if rate:
        words += f", {rate}"
    if paused:
        words += f"; paused: {', '.join(paused)}"
    return "; ".join([words, *models])


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The state of the daemon at one moment."""

    daemon_pid: int | None
    counts: Mapping[str, Mapping[State, int]]
    running: Sequence[tuple[str, str, float]] = field(default_factory=list)
    """file, device, since when (seconds since the epoch)"""
    notices: Sequence[tuple[str, str, float]] = field(default_factory=list)
    """inbox, what keeps it from working, since when (seconds since the epoch)"""
    put_off: Sequence[tuple[str, str, float]] = field(default_factory=list)
    """file that waits for its next try, why, and when that is (seconds since the epoch)"""
    failures: Sequence[tuple[str, str, float]] = field(default_factory=list)
    """file, reason, seconds since the epoch"""
    paused: Sequence[tuple[str, str, float]] = field(default_factory=list)
    """inbox that somebody paused, who and why, since when (seconds since the epoch)"""
    oldest: Mapping[str, float] = field(default_factory=dict)
    """since when the longest waiting job of each inbox waits (seconds since the epoch)"""
    cancelled: Mapping[str, int] = field(default_factory=dict)
    """how many files of each inbox somebody cancelled; they are in no other number"""
    live: Mapping[str, Any] | None = None
    """what the daemon answered to the order `status`; None: it did not"""
    starting: bool = False
    """it does not answer because it has only just begun"""

    @classmethod
    def of(
        cls,
        stored: Mapping[str, Any],
        live: Mapping[str, Any] | None = None,
        *,
        pid: int | None = None,
        starting: bool = False,
    ) -> Self:
        """From what store and daemon tell, see `phi4d.desk.telling`."""
        counts = {
            inbox: {State(state): n for state, n in by_state.items()}
            for inbox, by_state in stored["counts"].items()
        }
        lists: dict[str, Any] = {
            key: [tuple(each) for each in stored[key]]
            for key in ("running", "notices", "put_off", "failures", "paused")
        }
        told: dict[str, Any] = {key: stored[key] for key in ("oldest", "cancelled")}
        return cls(pid, counts, live=live, starting=starting, **told, **lists)

    @property
    def state(self) -> str:
        """What the daemon does; "silent" if it does not answer, "down" if there is none."""
        if self.daemon_pid is None:
            return "down"
        if self.live is None:
            return "loading" if self.starting else "silent"
        return str(self.live["state"])

    @property
    def troubles(self) -> list[str]:
        """What is wrong with it, a line each. What an operator paused is not."""
        if self.daemon_pid is None:
            return ["it does not run"]
        if self.live is None:
            return [] if self.starting else ["it does not answer"]
        return [
            *(f"{name}: no sign of life" for name in self.live["hung"]),
            *(f"{name}: has ended" for name in self.live["dead"]),
            *(
                f"{each['device']}: the model {each['state']}"
                for each in self.live["slots"]
                if each["state"].startswith("waits")
            ),
            *(f"{inbox}: {why}" for inbox, why, _ in self.notices),
        ]

    @property
    def health(self) -> str:
        """In a word: healthy, degraded, or down. One that loads its model is healthy."""
        if self.daemon_pid is None:
            return "down"
        return "degraded" if self.troubles else "healthy"

    def fields(self) -> dict[str, Any]:
        """Everything as JSON has it; times are seconds since the epoch."""
        live = dict(self.live) if self.live is not None else None
        inboxes = live.pop("inboxes") if live is not None else {}
        if live is not None:
            live.pop("stored", None)
        return {
            "schema": JSON_SCHEMA,
            "health": self.health,
            "state": self.state,
            "troubles": self.troubles,
            "pid": self.daemon_pid,
            "daemon": live,
            "inboxes": {
                name: {HEADINGS[s]: self.counts.get(name, {}).get(s, 0) for s in COLUMNS}
                | {"cancelled": self.cancelled.get(name, 0)}
                | {"oldest_waiting": self.oldest.get(name)}
                | {
                    key: inboxes.get(name, {}).get(key)
                    for key in ("mode", "kinds", "priority", "next_try")
                }
                | {"paused": next((why for n, why, _ in self.paused if n == name), None)}
                | {"held_up": [why for n, why, _ in self.notices if n == name]}
                for name in sorted({*self.counts, *inboxes})
            },
            "paused": [{"inbox": n, "why": why, "since": at} for n, why, at in self.paused],
            "held_up": [{"inbox": n, "why": why, "since": at} for n, why, at in self.notices],
            "running": [{"file": n, "device": on, "since": at} for n, on, at in self.running],
            "put_off": [{"file": n, "why": why, "next_try": at} for n, why, at in self.put_off],
            "failures": [{"file": n, "why": why, "when": at} for n, why, at in self.failures],
        }


def render(snapshot: Snapshot, columns: int | None = None, now: float | None = None) -> str:
    """The snapshot for people.

    Args:
        snapshot: what there is to tell.
        columns: of the terminal: nothing is wider; None: as wide as it takes.
        now: seconds since the epoch; None: this moment.
    """
    now = time.time() if now is None else now
    columns = None if columns is None else max(columns, SPARSE_COLUMNS)
    sections = [_head(snapshot), _slots(snapshot, now), _table(snapshot, columns, now)]
    if snapshot.live is None and snapshot.running:
        sections.append(
            ["running"]
            + [f"  {name}  on {device}, {span(now - at)}" for name, device, at in snapshot.running]
        )
    if snapshot.cancelled:
        of_each = ", ".join(f"{inbox} {n:,}" for inbox, n in sorted(snapshot.cancelled.items()))
        sections.append([f"cancelled: {of_each}; phi4d retry takes them up again"])
    notices = [
        (inbox, why + _next_try(snapshot, inbox, now), at) for inbox, why, at in snapshot.notices
    ]
    for heading, of_it in (
        ("paused since", snapshot.paused),
        ("held up since", notices),
        ("next try at", snapshot.put_off),
        ("last failures", snapshot.failures),
    ):
        if of_it:
            sections.append(
                [heading, *(f"  {at(when)}  {name}: {why}" for name, why, when in of_it)]
            )
    lines: list[str] = []
    for section in filter(None, sections):
        lines += [""] * bool(lines) + [part for each in section for part in _fold(each, columns)]
    return "\n".join(lines)


def _head(snapshot: Snapshot) -> list[str]:
    live = snapshot.live
    if snapshot.daemon_pid is None:
        return ["phi4d is not running"]
    if live is None:
        how = "is starting" if snapshot.starting else "runs, but does not answer"
        return [f"phi4d {how}, pid {snapshot.daemon_pid}"]
    eta = live["eta_seconds"]
    speed = f"{live['files_per_minute']:.0f} files/min"
    if live["times_real_time"]:
        speed += f", speech at {live['times_real_time']:.1f} × real time"  # noqa: RUF001 -- the sign is meant
    total = totals(snapshot.counts)
    if not total[State.QUEUED] and not total[State.RUNNING]:
        left = "nothing waits"
    else:
        left = f"all done in {span(eta)}" if eta is not None else "time left unknown"
        if eta is not None and (snapshot.paused or snapshot.notices):
            left += " but for what is paused or held up"
    lines = [
        f"phi4d {live['version']}, pid {snapshot.daemon_pid}, up {span(live['uptime_seconds'])}: "
        f"{snapshot.state}",
        f"{speed}, {left}",
    ]
    notices = {f"{inbox}: {why}" for inbox, why, _ in snapshot.notices}  # they follow below
    return lines + [words for words in snapshot.troubles if words not in notices]


def _slots(snapshot: Snapshot, now: float) -> list[str]:
    lines = []
    for slot in snapshot.live["slots"] if snapshot.live else ():
        state = "" if slot["state"] == "loaded" else f": {slot['state']}"
        if slot["next_try"]:
            state += f" (next try in {span(slot['next_try'] - now)})"
        lines.append(f"{slot['device']}  {slot['model']}, {slot['precision']}{state}")
        facts = [_memory(slot)] if slot["memory"] else []
        if slot["tokens_per_second"]:
            facts.append(f"{slot['tokens_per_second']:.0f} tokens/s")
        if slot["batch"]:
            facts.append(f"{slot['batch']:.1f} at a time")
        if facts:
            lines.append("  " + ", ".join(facts))
        files = slot["files"]
        for each in files[:FILES]:
            lines.append(f"  {each['file']}, {span(each['seconds'])}")
        if len(files) > FILES:
            lines.append(f"  … and {len(files) - FILES} more")
        if not files and slot["state"] == "loaded":
            lines.append("  has nothing to do")
    return lines


def _memory(slot: Mapping[str, Any]) -> str:
    memory = slot["memory"]
    if slot["device"] == "cpu":
        return f"{memory['own_bytes'] / 1e9:.1f} GB of main memory"
    return f"{memory['used_bytes'] / 1e9:.1f} of {memory['size_bytes'] / 1e9:.1f} GB in use"


def _next_try(snapshot: Snapshot, inbox: str, now: float) -> str:
    """When an inbox that waits for its surroundings is tried again, as the end of a sentence."""
    told = snapshot.live["inboxes"].get(inbox, {}) if snapshot.live else {}
    when = told.get("next_try")
    if when is None:
        return ""
    return f" (next try in {span(when - now)})" if when > now else " (next try with the next file)"


def _table(snapshot: Snapshot, columns: int | None, now: float) -> list[str]:
    inboxes = snapshot.live["inboxes"] if snapshot.live else {}
    names = sorted({*snapshot.counts, *inboxes})
    if not names:
        return ["no file has come in yet"]
    headings = ("inbox", "mode", *(HEADINGS[state] for state in COLUMNS), "oldest")
    rows: list[Sequence[str]] = [headings]
    for name in names:
        since = snapshot.oldest.get(name)
        rows.append(
            (
                name,
                _mode(snapshot, name, inboxes.get(name)),
                *(str(snapshot.counts.get(name, {}).get(state, 0)) for state in COLUMNS),
                "" if since is None else span(now - since),
            )
        )
    if len(names) > 1:
        total = totals(snapshot.counts)
        rows.append(("all", "", *(str(total[state]) for state in COLUMNS), ""))
    if not any(row[1] for row in rows[1:]):  # without a daemon nobody can tell
        rows = [(row[0], *row[2:]) for row in rows]
    widths = [max(_width(row[i]) for row in rows) for i in range(len(rows[0]))]
    if columns is not None:
        others = sum(width + 2 for width in widths[1:])
        widths[0] = min(widths[0], max(columns - others, len("inbox")))
    left = {0} | ({1} if rows[0][1] == "mode" else set())
    return [
        "  ".join(
            _padded(_cut(cell, width), width, right=i not in left)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _mode(snapshot: Snapshot, inbox: str, told: Mapping[str, Any] | None) -> str:
    if any(name == inbox for name, _, _ in snapshot.paused):
        return "paused"
    if any(name == inbox for name, _, _ in snapshot.notices):
        return "held up"
    if told is None:
        return "" if snapshot.live is None else "not configured"
    mode = str(told["mode"] or "")
    how = "watch" if mode.startswith("inotify") else mode.partition(" ")[0]
    kinds = told["kinds"]
    words = f"{how} {kinds[0]}".lstrip() if len(kinds) == 1 else how
    priority = told["priority"]
    return words if priority == "normal" else f"{words}, {priority}".removeprefix(", ")


def at(when: float) -> str:
    """Seconds since the epoch as people here write them, to the minute."""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(when))


def span(seconds: float) -> str:
    """How long something takes, in the largest units: ``3 s``, ``41 min``, ``2 h 5 min``."""
    s = max(0, round(seconds))
    for size, unit, part, smaller in ((86_400, "d", 3600, "h"), (3600, "h", 60, "min")):
        if s >= size:
            rest = s % size // part
            return f"{s // size} {unit}" + (f" {rest} {smaller}" if rest else "")
    return f"{s // 60} min" if s >= 120 else f"{s} s"


def _width(text: str) -> int:
    """How many columns of a terminal a text takes."""
    return sum(
        0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1
        for c in text
    )


def _cut(text: str, columns: int) -> str:
    if _width(text) <= columns:
        return text
    return _fitting(text, columns - 1) + "…"


def _fitting(text: str, columns: int) -> str:
    """As much of a text's beginning as fits."""
    for n, width in enumerate(accumulate(map(_width, text))):
        if width > columns:
            return text[:n]
    return text


def _padded(text: str, columns: int, *, right: bool) -> str:
    space = " " * (columns - _width(text))
    return space + text if right else text + space


def _fold(line: str, columns: int | None) -> Iterator[str]:
    """A line in as many as it takes, the later ones indented more than the first."""
    if columns is None or _width(line) <= columns:
        yield line
        return
    margin = line[: len(line) - len(line.lstrip())]
    now, words = margin, line[len(margin) :].split(" ")
    for n, word in enumerate(words):
        begun = f"{now} {word}" if n else now + word
        if n and _width(begun) > columns:
            yield now
            begun = f"{margin}  {word}"
        while _width(begun) > columns:  # a name that is wider than a line
            part = _fitting(begun, columns)
            yield part
            begun = f"{margin}  {begun[len(part) :]}"
        now = begun
    yield now
