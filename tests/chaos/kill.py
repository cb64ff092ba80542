"""Kill the running daemon again and again while files arrive; then look whether all is in order.

    python tests/chaos/kill.py [--short] [--kills N] [--jobs M] [--seed S] [--folder F]

The daemon is killed at random moments, also while it starts, alone or with its decode processes.
Files arrive all the while, in place, renamed in and replaced, also while no daemon runs. Then one
is left in peace. Prints counts; exits 1 if any of these does not hold:

- 0 lost: the newest version of each file is done, with whole sidecars about just that version;
- 0 done twice: no version is asked about twice in one life, or again after the store said done;
- 0 partial sidecars ever visible, to somebody who opens each as it appears;
- 0 failed; the store is sound; no file is left in the outbox that does not belong there.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

from chaoskit import ASKED_B, Eyes, Memory, Scene, Sender, report, verdict

START_S = 0.5
"""about how long a start takes"""
LONGEST_LIFE_S = 2.0
"""after readiness, if there is nothing to work on"""


class Feeder(threading.Thread):
    """Sends files up to a target that moves."""

    def __init__(self, sender: Sender, seed: int) -> None:
        super().__init__(name="feeder")
        self._sender = sender
        self._chance = random.Random(seed)
        self._target = 0
        self._changed = threading.Condition()
        self._ended = False

    def up_to(self, target: int) -> None:
        with self._changed:
            self._target = target
            self._changed.notify()

    def close(self) -> None:
        """Send what is missing, and end."""
        with self._changed:
            self._ended = True
            self._changed.notify()
        self.join()

    def run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._ended or self._sender.sent < self._target)
                if self._sender.sent >= self._target:
                    return
                hurried = self._ended
            self._sender.send()
            if not hurried:
                time.sleep(self._chance.random() * 0.03)


def torment(scene: Scene, args: argparse.Namespace) -> int:
    """All lives of the daemon, and the verdict."""
    chance = random.Random(args.seed)
    sender = Sender(scene.inbox, args.seed)
    feeder = Feeder(sender, args.seed)
    scene.outbox.mkdir()
    eyes = Eyes(scene.outbox)
    memory = Memory(scene, sender)
    lives = Counter[str]()
    begun = time.monotonic()
    eyes.start()
    feeder.start()
    try:
        for life in range(args.kills):
            feeder.up_to(args.jobs * (life + 1) // args.kills)
            with scene.start(life=str(life)) as running:
                when = chance.choices(["at its start", "soon", "at work"], [2, 2, 6])[0]
                lives[when] += 1
                if when == "at its start":
                    time.sleep(chance.random() * START_S)
                elif when == "soon":
                    running.until_ready()
                    time.sleep(chance.random() * START_S)
                else:
                    running.until_ready()
                    enough = chance.randint(1, 2 * args.jobs // args.kills)
                    wait_for_answers(scene, scene.asked_bytes() + ASKED_B * enough)
                    time.sleep(chance.random() * 0.02)
                children = chance.random() < 0.5
                lives["with its decode processes" if children else "the daemon alone"] += 1
                running.kill(children=children)
            memory.look_back()
            if args.kills >= 100 and (life + 1) % 50 == 0:
                print(
                    f"  {life + 1} kills, {sender.sent} files, {scene.states()}, "
                    f"{time.monotonic() - begun:.0f} s",
                    flush=True,
                )
    finally:
        feeder.close()
        eyes_end = scene.states()
        code = scene.once(life="last")
        memory.look_back()
        eyes.close()

    attempts = Counter(n for (n,) in scene.jobs("attempts", "state = 'done'"))
    wrong = verdict(scene, sender.newest)
    violations = [*wrong, *memory.wrong, *eyes.wrong]
    if code:
        violations.append(f"the last life ended with exit code {code}")
    rows: list[tuple[str, object]] = [
        ("kills", args.kills),
        *((f"  {how}", n) for how, n in sorted(lives.items())),
        ("files sent", sender.sent),
        *((f"  {way}", n) for way, n in sorted(sender.ways.items())),
        ("done before the last life", eyes_end.get("done", 0)),
        ("jobs at the end", scene.states()),
        ("answers asked for, by times a version was asked", memory.times()),
        ("done jobs by attempts counted", dict(sorted(attempts.items()))),
        ("sidecars opened as they appeared", eyes.seen),
        ("lost, wrong, failed or left over", len(wrong)),
        ("done twice", len(memory.wrong)),
        ("partial sidecars seen", len(eyes.wrong)),
        ("seconds", round(time.monotonic() - begun)),
    ]
    return report(rows, violations)


def wait_for_answers(scene: Scene, size: int) -> None:
    """Until the file of questions has a size, or nothing more seems to come."""
    deadline = time.monotonic() + LONGEST_LIFE_S
    while scene.asked_bytes() < size and time.monotonic() < deadline:
        time.sleep(0.005)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--short", action="store_true", help="15 kills over 300 jobs")
    parser.add_argument("--kills", type=int)
    parser.add_argument("--jobs", type=int)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="keep everything there")
    args = parser.parse_args()
    args.kills = args.kills or (15 if args.short else 1000)
    args.jobs = args.jobs or (300 if args.short else 20_000)
    folder = args.folder or Path(tempfile.mkdtemp(prefix="phi4d-kill-"))
    # the attempts are counted, but a kill is no file's fault: none is to be given up for them
    keys = 'device = "cpu,cpu"\ndecode_processes = 1\nmax_attempts = 100'
    code = torment(Scene(folder, keys=keys), args)
    if code == 0 and not args.folder:
        shutil.rmtree(folder)
    else:
        print(f"everything is in {folder}")
    return code


if __name__ == "__main__":
    sys.exit(main())
