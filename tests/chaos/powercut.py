"""Cut the power at every sync of a daemon's life, lose what was not synced, and start again.

    python tests/chaos/powercut.py [--short] [--files N] [--seed S] [--folder F]

strace (Debian package of that name) records every call that changes a file while a daemon works off
some files, is stopped, and a second one works off newer versions of some of them. `disk` replays
the calls. A cut before and after each sync, and between, leaves what was synced and nothing else;
or of the rest what a seeded draw lets reach the disk, by whole files or torn into blocks. Of each:

- the store is sound, and each job that it calls done has whole sidecars about its version;
- of some: a daemon that starts upon it ends with all done, nothing lost and nothing failed.

Then the same with the syncs taken out, by strace, which keeps them from the kernel. The script must
find faults there, or it would find none anywhere. Exits 1 if it does not, or finds one otherwise.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import sqlite3
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from chaoskit import Scene, Sender, broken_sidecars, report, verdict
from disk import CALLS, RECORD, SYNCS, ByFile, Call, Disk, Everything, Fate, Strict, Torn, calls

FATES: dict[str, Callable[[random.Random], Fate]] = {
    "only what was synced": lambda _: Strict(),
    "some files whole": ByFile,
    "some blocks": Torn,
}
WITHOUT = {
    "no fsync and no fdatasync": "fsync,fdatasync",
    "no fsync": "fsync",
}
"""what is taken out, to see whether it is noticed"""


@dataclass
class Life:
    """What was recorded.

    Attributes:
        scene: whose daemons ran.
        sender: knows the newest version of each file.
        calls: of both daemons, in order.
    """

    scene: Scene
    sender: Sender
    calls: list[Call]


@dataclass
class Findings:
    """Counts, and what was wrong."""

    cuts: Counter[str] = field(default_factory=Counter)
    done: Counter[str] = field(default_factory=Counter)
    """jobs that a store called done, by fate, all cuts together"""
    faults: list[str] = field(default_factory=list)
    starts: int = 0


def record(folder: Path, files: int, seed: int, *, without: str = "") -> Life:
    """Two daemons' lives in a fresh scene; the first makes the folders of store and sidecars.

    Args:
        folder: of the scene.
        files: how many there are for the first; half as many, newer ones or more, for the second.
        seed: of the files.
        without: syscalls that strace keeps from the kernel.
    """
    scene = Scene(folder, keys="max_attempts = 100")
    sender = Sender(scene.inbox, seed, replaced=0, recordings=0.1)
    found: list[Call] = []
    inject = [f"-einject={without}:retval=0"] if without else []
    for life, replaced in enumerate((0.0, 0.5)):
        sender.replaced = replaced
        for _ in range(files // (life + 1)):
            sender.send()
        trace = folder / f"strace-{life}"
        strace = [*RECORD, f"-etrace={CALLS}", *inject, "-o", str(trace)]
        with scene.start("--once", before=strace) as running:
            if code := running.wait():
                raise AssertionError(f"an undisturbed daemon ended with exit code {code}")
        found += calls(trace)
        trace.unlink()
    return Life(scene, sender, found)


def replay(life: Life) -> Iterator[tuple[Disk, bool, int]]:
    """The disk after each call that changed it, whether that was a sync, and the call's number."""
    roots = (life.scene.state, life.scene.outbox)
    disk = Disk(life.scene.folder, [root.name for root in roots], made=False)
    for number, call in enumerate(life.calls):
        before = disk.changes
        synced = disk.apply(call)
        if synced or disk.changes > before:
            yield disk, synced, number
    whole = life.scene.folder / "whole"
    disk.cut(whole, Everything())
    for root in roots:
        if differs := difference(root, whole / root.name):
            raise AssertionError(f"the model of the disk is wrong about {differs}")
    shutil.rmtree(whole)


def difference(real: Path, modelled: Path) -> str:
    """The first file that is not in both folders with the same bytes."""
    names = {
        path.relative_to(top)
        for top in (real, modelled)
        for path in top.rglob("*")
        if path.is_file()
    }
    for name in sorted(names):
        one, other = real / name, modelled / name
        if not (one.exists() and other.exists() and one.read_bytes() == other.read_bytes()):
            return str(name)
    return ""


def cut_everywhere(
    life: Life, chance: random.Random, *, starts: float, between: float, draws: float
) -> Findings:
    """Cut, look at each, and start a daemon upon some.

    Args:
        life: what was recorded.
        chance: decides fates, and which are started upon.
        starts: how many daemons are started.
        between: share of the changes between syncs after which there is a cut as well.
        draws: cuts at a moment for each fate that is drawn.
    """
    findings = Findings()
    moments = sum(1 for _, synced, _ in replay(life) if synced)
    to_start = starts / max(1, 2 * moments * (1 + 2 * draws))
    for disk, synced, number in replay(life):
        # before a sync, most is at stake
        following = life.calls[number + 1 : number + 2]
        before = any(call.name in SYNCS for call in following)
        if not synced and not before and chance.random() >= between:
            continue
        for fate, make in FATES.items():
            for _ in range(1 if fate == "only what was synced" else int(draws)):
                tree = life.scene.folder / "cut"
                disk.cut(tree, make(chance))
                findings.cuts[fate] += 1
                where = f"call {number} ({life.calls[number].name}), {fate}"
                done, wrong = looked_at(tree)
                findings.done[fate] += done
                if not wrong and starts and chance.random() < to_start:
                    wrong = start_upon(tree, life)
                    findings.starts += 1
                findings.faults += [f"{where}: {each}" for each in wrong]
                shutil.rmtree(tree)
    return findings


def looked_at(tree: Path) -> tuple[int, list[str]]:
    """What a power cut left, before any daemon looks at it.

    Returns:
        How many jobs the store calls done, and what is wrong.
    """
    if not (tree / "state" / "jobs.sqlite3").exists():
        return 0, []
    # on a copy: looking at it writes to it
    copy = tree.with_name("copy")
    shutil.copytree(tree / "state", copy)
    try:
        db = sqlite3.connect(copy / "jobs.sqlite3")
        try:
            (sound,) = db.execute("PRAGMA integrity_check").fetchone()
            if sound != "ok":
                return 0, [f"the store is damaged: {sound.splitlines()[0]}"]
            if not db.execute("SELECT 1 FROM sqlite_master WHERE name = 'job'").fetchone():
                return 0, []
            rows = db.execute("SELECT id, path, size, mtime_ns, state FROM job").fetchall()
        finally:
            db.close()
    except sqlite3.DatabaseError as error:
        return 0, [f"the store cannot be read: {error}"]
    finally:
        shutil.rmtree(copy)
    wrong = []
    done = [row for row in rows if row[4] == "done"]
    for job, path, *_ in done:
        name = os.fsdecode(path)
        if fault := broken_sidecars(tree / "out", name):
            wrong.append(f"done, but {fault}")
            continue
        told = json.loads((tree / "out" / f"{name}.json").read_bytes())
        # a newer version may be under way, whose row is not done yet
        versions = [row[2:4] for row in rows if row[1] == path and row[0] >= job]
        if (told["source_bytes"], told["source_mtime_ns"]) not in versions:
            wrong.append(f"done, but the sidecars of {name} are about an older version")
    return len(done), wrong


def start_upon(tree: Path, life: Life) -> list[str]:
    """Let a daemon start upon what a power cut left: what is wrong when it has ended."""
    scene = Scene(tree, inbox=life.scene.inbox, keys=life.scene.keys)
    if code := scene.once():
        return [f"the daemon ended with exit code {code}"]
    return verdict(scene, life.sender.newest)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--short", action="store_true", help="few files, few starts")
    parser.add_argument("--files", type=int)
    parser.add_argument("--starts", type=int, help="upon how many of the cuts a daemon is started")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="keep everything there")
    args = parser.parse_args()
    files = args.files or (12 if args.short else 150)
    starts = args.starts if args.starts is not None else (6 if args.short else 150)
    between, draws = (0.02, 1) if args.short else (0.1, 2)
    folder = args.folder or Path(tempfile.mkdtemp(prefix="phi4d-power-"))
    begun = time.monotonic()
    chance = random.Random(args.seed)

    rows: list[tuple[str, object]] = []
    wrong: list[str] = []

    def examine(what: str, life: Life, **how: float) -> Findings:
        print(f"{what}: {len(life.calls)} calls recorded", flush=True)
        found = cut_everywhere(life, chance, **how)
        rows.append((what, f"{len(life.calls)} calls recorded"))
        for fate, n in found.cuts.items():
            rows.append((f"  cuts, {fate}", f"{n}, with {found.done[fate]} done jobs looked at"))
        rows.append(("  daemons started upon a cut", found.starts))
        rows.append(("  faults", len(found.faults)))
        return found

    life = record(folder / "life", files, args.seed)
    how = {"starts": starts, "between": between, "draws": draws}
    found = examine(f"as it is, {files} files, then {files // 2}", life, **how)
    wrong += found.faults
    wrong += [f"{fate}: no job was ever done" for fate in FATES if not found.done[fate]]
    for what, syscalls in WITHOUT.items():
        life = record(folder / what, min(files, 12), args.seed, without=syscalls)
        found = examine(f"with {what}", life, starts=0, between=0, draws=1)
        if found.faults:
            rows.append(("  the first", found.faults[0]))
        else:
            wrong.append(f"with {what}, no fault was found: this script does not bite")
    rows.append(("seconds", round(time.monotonic() - begun)))
    code = report(rows, wrong)
    if code == 0 and not args.folder:
        shutil.rmtree(folder)
    else:
        print(f"everything is in {folder}")
    return code


if __name__ == "__main__":
    sys.exit(main())
