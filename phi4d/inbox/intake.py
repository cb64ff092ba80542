"""From a file that was noticed to one that is handed on.

It settles, the store is asked whether it has this version, and only then is it looked into: a
comparison of files that are all done opens none of them.
"""

from __future__ import annotations

import os
import stat
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence

from phi4d.errors import EnvironmentFault, FileChanged, SourceFault
from phi4d.inbox.place import Place
from phi4d.inbox.rules import worth_opening
from phi4d.inbox.settle import Key, Look, Settler
from phi4d.job import Arrival, Fingerprint, Inspection, Kind

INSPECTED_AT_ONCE = 250  # files that are opened in one step: some 10 ms
REJECTS = 1 << 20  # of 8 bytes each; a later one may take an earlier one's place

Found = tuple[Place, bytes, Look]
"""a file: its inbox, its path below it, and what it looked like"""


class Intake:
    """Deals with files; `Watcher` describes the arguments.

    Args:
        owe: is told that the store could not be asked, or not be given files, of an inbox; and with
            None that it could.
    """

    def __init__(
        self,
        places: Mapping[str, Place],
        settler: Settler,
        hand_on: Callable[[list[Arrival]], None],
        *,
        known: Callable[[Sequence[tuple[str, bytes, Fingerprint]]], list[bool]],
        inspect: Callable[[bytes, Fingerprint], Inspection],
        by_name: Callable[[bytes], Kind | None],
        owe: Callable[[str, EnvironmentFault | None], None],
        settle_seconds: float,
        clock: Callable[[], float],
        wall_clock: Callable[[], float],
    ) -> None:
        self._places = places
        self._settler = settler
        self._hand_on = hand_on
        self._known = known
        self._inspect = inspect
        self._by_name = by_name
        self._owe = owe
        self._settle_seconds = settle_seconds
        self._clock = clock
        self._wall_clock = wall_clock
        # hashes of files that are none of ours, whatever their names say
        self._rejects = array("Q", bytes(8 * REJECTS))

    def change(self, places: Mapping[str, Place], settle_seconds: float) -> None:
        """Deal with the files of these inboxes, and so; what was none of ours may be by now."""
        self._places = places
        self._settle_seconds = settle_seconds
        self._rejects = array("Q", bytes(8 * REJECTS))

    def worth(self, name: bytes) -> bool:
        """Whether a file of that name may be a picture or a recording."""
        return worth_opening(name, self._by_name)

    def look_at_due(self) -> None:
        """Look at files whose time is up; what is complete is handed on."""
        now, wall = self._clock(), self._wall_clock()
        ready: list[Found] = []
        for key in self._settler.due(now, INSPECTED_AT_ONCE):
            place = self._places[key[0]]
            try:
                status = os.lstat(os.path.join(place.root.path, key[1]))
            except OSError:  # gone; or the next comparison finds it
                self._settler.forget(key)
                continue
            look = place.look(status, wall)
            if not stat.S_ISREG(status.st_mode):
                self._settler.forget(key)
            elif self._settler.is_complete(key, look, now):
                ready.append((place, key[1], look))
        unknown = self._unknown(ready)
        if len(unknown) < len(ready):
            for key in {_key(file) for file in ready} - {_key(file) for file in unknown}:
                self._settler.forget(key)
        for _ in self.examine(unknown):
            pass

    def sort(self, place: Place, batch: list[tuple[bytes, os.stat_result]]) -> list[Found]:
        """Of files that were found by listing, those that are new and complete; others settle."""
        now, wall = self._clock(), self._wall_clock()
        found: list[Found] = []
        for path, status in batch:
            look = place.look(status, wall)
            if look.age < self._settle_seconds and not place.polled:
                self._settler.found((place.name, path), look, now)
            else:
                found.append((place, path, look))
        ready: list[Found] = []
        for file in self._unknown(found):
            if file[2].age < self._settle_seconds:
                self._settler.found(_key(file), file[2], now)
            elif _key(file) not in self._settler:
                ready.append(file)
        return ready

    def _unknown(self, files: list[Found]) -> list[Found]:
        """Those that the store does not have, and that were not rejected before."""
        if not files:
            return []
        try:
            known = self._known([(p.name, path, look.fingerprint) for p, path, look in files])
        except EnvironmentFault as fault:
            for inbox in {file[0].name for file in files}:
                self._owe(inbox, fault)
            return []
        unknown = [file for file, is_known in zip(files, known, strict=True) if not is_known]
        return [file for file in unknown if self._rejects[_slot(file)] != _hash(file)]

    def examine(self, files: list[Found]) -> Iterator[None]:
        """Look into files that are complete by time, and hand on what is ours and whole."""
        arrivals = []
        for n, file in enumerate(files, 1):
            arrival = self._arrival(file)
            if arrival is not None:
                arrivals.append(arrival)
            if n % INSPECTED_AT_ONCE == 0:
                yield
        if not arrivals:
            return
        trouble: EnvironmentFault | None = None
        try:
            self._hand_on(arrivals)
        except EnvironmentFault as fault:
            trouble = fault
        for inbox in {arrival.inbox for arrival in arrivals}:
            self._owe(inbox, trouble)

    def _arrival(self, file: Found) -> Arrival | None:
        place, path, look = file
        key = _key(file)
        try:
            seen = self._inspect(os.path.join(place.root.path, path), look.fingerprint)
        except FileChanged:
            self._settler.changed(key, self._clock())
            return None
        except SourceFault:
            kind = self._by_name(os.path.basename(path))  # whoever decodes it waits for it
        else:
            if not seen.whole and not self._settler.gives_up(key, look, self._clock()):
                return None
            kind = seen.kind
            if kind not in place.root.kinds:
                self._rejects[_slot(file)] = _hash(file)
        self._settler.forget(key)
        if kind is None or kind not in place.root.kinds:
            return None
        return Arrival(place.name, path, kind, look.fingerprint)


def _key(file: Found) -> Key:
    return file[0].name, file[1]


def _hash(file: Found) -> int:
    place, path, look = file
    return hash((place.name, path, look.fingerprint)) & 0xFFFF_FFFF_FFFF_FFFF


def _slot(file: Found) -> int:
    return _hash(file) % REJECTS
