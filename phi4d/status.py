"""What the daemon is doing, in numbers and words, from what the store says."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from phi4d.job import State

COLUMNS = (State.QUEUED, State.RUNNING, State.DONE, State.FAILED)
JSON_SCHEMA = 1
"""of `Snapshot.fields`; a key that goes or changes its meaning makes the next"""
HEADINGS = {
    State.QUEUED: "waiting",
    State.RUNNING: "running",
    State.DONE: "done",
    State.FAILED: "failed",
}


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
    """file, device, seconds since it was begun"""
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
    live: Mapping[str, Any] | None = None
    """what the daemon answered to the order `status`; None: it did not"""

    @property
    def health(self) -> str:
        """In a word: healthy, degraded, or down. What an operator paused is healthy."""
        if self.daemon_pid is None:
            return "down"
        if self.live is None or self.live["hung"] or self.notices:
            return "degraded"
        return "healthy"

    def fields(self) -> dict[str, Any]:
        """Everything as JSON has it; times are seconds since the epoch."""
        return {
            "schema": JSON_SCHEMA,
            "health": self.health,
            "pid": self.daemon_pid,
            "daemon": self.live,
            "inboxes": {
                name: {HEADINGS[state]: of_inbox.get(state, 0) for state in COLUMNS}
                | {"oldest_waiting": self.oldest.get(name)}
                for name, of_inbox in sorted(self.counts.items())
            },
            "paused": [{"inbox": n, "why": why, "since": at} for n, why, at in self.paused],
            "held_up": [{"inbox": n, "why": why, "since": at} for n, why, at in self.notices],
            "running": [{"file": n, "device": on, "seconds": s} for n, on, s in self.running],
            "put_off": [{"file": n, "why": why, "next_try": at} for n, why, at in self.put_off],
            "failures": [{"file": n, "why": why, "when": at} for n, why, at in self.failures],
        }


def _live(live: Mapping[str, Any]) -> list[str]:
    """What the daemon answered, in lines."""
    words = f"{live['state']}, phi4d {live['version']}, {live['files_per_minute']:.0f} files/min"
    eta = live["eta_seconds"]
    words += f", all done in {eta / 60:.0f} min" if eta is not None else ", time left unknown"
    lines = [words]
    for device, model in live["slots"]:
        rate = live["devices"].get(device)
        how = (
            f", {rate['tokens_per_second']:.0f} tokens/s, {rate['batch']:.1f} in a call"
            if rate
            else ""
        )
        lines.append(f"{device}: {model}{how}")
    lines += [f"{name}: no sign of life" for name in live["hung"]]
    return lines


def render(snapshot: Snapshot) -> str:
    """The snapshot as a small table for people."""
    if snapshot.daemon_pid is None:
        lines = ["phi4d is not running"]
    else:
        lines = [f"phi4d is running, pid {snapshot.daemon_pid}"]
        if snapshot.live is not None:
            lines += _live(snapshot.live)
    rows = [("inbox", *(HEADINGS[state] for state in COLUMNS))]
    rows += [
        (name, *(str(of_inbox.get(state, 0)) for state in COLUMNS))
        for name, of_inbox in sorted(snapshot.counts.items())
    ]
    if len(snapshot.counts) > 1:
        total = totals(snapshot.counts)
        rows.append(("all", *(str(total[state]) for state in COLUMNS)))
    if snapshot.counts:
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines.append("")
        for row in rows:
            cells = [row[0].ljust(widths[0])]
            cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
            lines.append("  ".join(cells))
    else:
        lines.append("no file has come in yet")
    if snapshot.running:
        lines += ["", "running"]
        lines += [f"  {name}  on {device}, {s:.0f} s" for name, device, s in snapshot.running]
    for heading, of_it in (
        ("paused since", snapshot.paused),
        ("held up since", snapshot.notices),
        ("next try at", snapshot.put_off),
        ("last failures", snapshot.failures),
    ):
        if of_it:
            lines += ["", heading]
            lines += [f"  {at(when)}  {name}: {why}" for name, why, when in of_it]
    return "\n".join(lines)


def at(when: float) -> str:
    """Seconds since the epoch as people here write them, to the minute."""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(when))
