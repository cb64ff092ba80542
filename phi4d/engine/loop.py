"""The decode loop: requests come at any time, each is answered as if it were alone.

A step lets in whom there is a seat for, reads as much as may keep the others waiting, and then goes
one token on with all who are running, lane by lane. What is more than half a step is read turn by
turn, one such request at a time, and the other half is for those that are less. Tokens are looked
at a step late where looking would make the device wait: a row that has ended is then gone on with
once in vain.

Who waits longest comes first. Where memory is too small for its lane, no other lane lets anybody in
until there is enough. What fails, fails alone: its seat is free again, the others' tokens are what
they would have been.
"""

from __future__ import annotations

import itertools
import threading
from collections import deque
from collections.abc import Callable, Collection, Sequence

import torch

from phi4d.engine.arena import Arena
from phi4d.engine.embedding import Prompt
from phi4d.engine.graphs import Graphs, span_shape
from phi4d.engine.grouping import alike
from phi4d.engine.lane import Chosen, Lane, Reading, Ticket, rounded
from phi4d.engine.loader import Loaded
from phi4d.errors import DeviceError, DeviceLost

PROMPT_TOKENS = {"cpu": 1024, "cuda": 8192}
"""read in one step, at most, with what is as much work in the towers: so long the others wait for
their next token"""
SEAT_TOKENS = 1024
"""of the shortest seats in an arena: a clip of 30 s and an answer of 512 tokens are about 900"""


class Loop:
    """Answers requests on one device.

    Any thread may `submit` and `cancel`; one and the same calls `step`.

    Args:
        loaded: the model.
        stop: ids that end an answer.
        never: ids that are not to be answered.
        rows: answers that are written at a time, in each lane at most.
        cache_tokens: that there is memory for in the caches; one request is let in in any case.
        prompt_tokens: read in one step, at most; None: `PROMPT_TOKENS`.
        late: look at tokens a step late; None: on a GPU.
        sheds: too little memory for all who are running makes the younger half wait; if not, they
            all fail, so that the caller may ask for less.
        graphs: see `Lane`.
        arena: see `Lane`; all its memory is for the caches, whatever ``cache_tokens`` says.
    """

    def __init__(
        self,
        loaded: Loaded,
        *,
        stop: Collection[int],
        never: Collection[int],
        rows: int,
        cache_tokens: int,
        prompt_tokens: int | None = None,
        late: bool | None = None,
        sheds: bool = True,
        graphs: Graphs | None = None,
        arena: Arena | None = None,
    ) -> None:
        self._loaded = loaded
        self._stop = stop
        self._never = never
        self._rows = rows
        self._cache_tokens = arena.tokens if arena else cache_tokens
        device = next(iter(loaded.models.values())).device
        self._device = str(device)
        self._prompt_tokens = prompt_tokens or PROMPT_TOKENS[device.type]
        self._turn_tokens = max(1, self._prompt_tokens // 2)
        self._late = device.type != "cpu" if late is None else late
        self._sheds = sheds
        self._graphs = graphs
        self._arena = arena
        self._numbers = itertools.count()
        self._lanes: dict[tuple[str, bool], Lane] = {}
        self._unread: deque[tuple[Lane, Chosen]] = deque()
        self._new = 0
        """of these, those of this step"""
        self._ended: list[Ticket] = []
        self._lock = threading.Lock()
        self._submitted: deque[Ticket] = deque()
        self._cancelled: deque[Ticket] = deque()

    def submit(self, prompt: Prompt, adapter: str) -> Ticket:
        """Have a request answered; `step` returns its ticket when it has ended."""
        with self._lock:
            ticket = Ticket(prompt, adapter, next(self._numbers))
            self._submitted.append(ticket)
        return ticket

    def cancel(self, ticket: Ticket) -> None:
        """A request is wanted no more; its ticket ends at the next step, if it has not before."""
        with self._lock:
            self._cancelled.append(ticket)

    @property
    def busy(self) -> bool:
        """Whether there is anything to do in a step."""
        with self._lock:
            coming = bool(self._submitted or self._cancelled)
        lanes = any(lane.waiting or lane.taken for lane in self._lanes.values())
        return coming or lanes or bool(self._unread or self._ended)

    @property
    def tokens(self) -> int:
        """What all caches hold room for."""
        return sum(lane.tokens for lane in self._lanes.values())

    @property
    def room(self) -> int:
        """How many requests more would keep the rows busy, without one that waits for long."""
        with self._lock:
            here = len(self._submitted)
        lanes = self._lanes.values()
        waiting = sum(len(lane.waiting) for lane in lanes)
        taken = sum(lane.taken for lane in lanes)
        return max(0, self._rows - taken - waiting - here)

    @torch.inference_mode()
    def step(self, beat: Callable[[], None]) -> list[Ticket]:
        """Go on with all requests.

        Args:
            beat: called after each turn of reading, and after each token; what it raises ends the
                step, after which the loop is of no use.

        Returns:
            The tickets that have ended, answered or not.

        Raises:
            DeviceLost: the device failed.
        """
        self._take_in()
        self._new = 0
        self._admit(beat)
        for lane in list(self._lanes.values()):
            if lane.running:
                self._go_on(lane)
                beat()
        goes_on = any(lane.running for lane in self._lanes.values())
        self._look(self._new if goes_on and self._late else 0)
        ended, self._ended = self._ended, []
        return ended

    def _take_in(self) -> None:
        with self._lock:
            submitted, self._submitted = self._submitted, deque()
            cancelled, self._cancelled = self._cancelled, deque()
        for ticket in submitted:
            long = len(ticket.prompt.ids) > self._loaded.short_tokens
            self._lane(ticket.adapter, long=long).waiting.append(ticket)
        for ticket in cancelled:
            if not ticket.ended:
                ticket.cancelled = True
                self._end(ticket)

    def begin(self, *, stop: Collection[int], sheds: bool) -> None:
        """Another call begins, when nothing is to do: what memory was too small for is tried again.

        Args:
            stop: see `Loop`.
            sheds: the same.
        """
        self._stop, self._sheds = stop, sheds
        for lane in self._lanes.values():
            lane.most = None

    def warm(self, adapter: str, needs: int) -> int:
        """Give a lane its cache, and have its likeliest steps captured, before anybody comes.

        Where there is no room for a seat, nothing is done.

        Args:
            adapter: of its requests, which are short.
            needs: tokens that they take, prompt and answer, at most.

        Returns:
            How many steps were captured.

        Raises:
            DeviceError: out of memory.
        """
        lane, length = self._lane(adapter, long=False), self._seat(needs)
        count = min(self._room(lane, length), self._most(length)) // length
        if count < 1:
            return 0
        lane.open(count, length)
        return lane.warm(length // 4)

    def close(self) -> None:
        """Give the memory of all caches back, whoever has a seat; the loop is of no use then."""
        for lane in self._lanes.values():
            lane.close()

    def _lane(self, adapter: str, *, long: bool) -> Lane:
        key = adapter, long
        if key not in self._lanes:
            self._lanes[key] = Lane(self._loaded, adapter, self._never, self._graphs, self._arena)
        return self._lanes[key]

    def _admit(self, beat: Callable[[], None]) -> None:
        """Read: a turn of what is long, then what is short, and with the rest what is long."""
        left = self._prompt_tokens
        if (long := self._being_read()) is not None:
            left -= self._turn(*long, beat)
        while left > 0 and (lane := self._next()) is not None:
            group = self._group(lane, left)
            if not group:
                break
            for ticket in group:
                lane.waiting.remove(ticket)
            left -= self._let_in(lane, group, beat)
        while (long := self._being_read()) is not None:
            if long[1].work > left < self._prompt_tokens:
                break
            left -= self._turn(*long, beat)

    def _being_read(self) -> tuple[Lane, Reading] | None:
        """What is long, if its reading has begun."""
        return next(
            ((lane, lane.reading[0]) for lane in self._lanes.values() if lane.reading), None
        )

    def _group(self, lane: Lane, left: int) -> list[Ticket]:
        """Who is let in to a lane together; nobody, if a step has too little left for the first."""
        fit = [ticket for ticket in self._may_come(lane) if ticket.needs <= lane.length]
        if self._is_long(fit[0]):
            return fit[:1]
        if fit[0].prompt.work > left:
            return []
        chosen = alike(
            [len(ticket.prompt.ids) for ticket in fit],
            tokens=min(left, self._turn_tokens),
            rows=lane.free,
            beside=[ticket.prompt.tower_work for ticket in fit],
        )
        return [fit[i] for i in chosen]

    def _is_long(self, ticket: Ticket) -> bool:
        """Whether it is read in several turns."""
        return ticket.prompt.work > self._turn_tokens

    def _may_come(self, lane: Lane) -> list[Ticket]:
        """Who waits in a lane, but for what is long while something else that is long is read."""
        if self._being_read() is None:
            return list(lane.waiting)
        return [ticket for ticket in lane.waiting if not self._is_long(ticket)]

    def _next(self) -> Lane | None:
        """The lane whose first request is to be let in now: who waits longest, if there is room."""
        coming = {lane: them[0] for lane in self._lanes.values() if (them := self._may_come(lane))}
        for lane, first in sorted(coming.items(), key=lambda item: item[1].number):
            if first.needs <= lane.length and lane.free > 0:
                return lane
            if lane.taken:
                continue  # it is full, or runs out until it can have a longer cache
            if not self._open(lane, first):
                return None
            return lane if lane.length else self._next()
        return None

    def _open(self, lane: Lane, first: Ticket) -> bool:
        """Give a lane with no seat taken a cache, or fail its first request for want of one.

        Returns:
            False: there is no room now, but others that run will leave some.
        """
        longest = max(ticket.needs for ticket in lane.waiting)
        room = self._room(lane, self._seat(longest))
        alone = not any(other.taken for other in self._lanes.values() if other is not lane)
        refused: DeviceError | None = None
        lengths = {self._seat(longest), self._seat(first.needs), rounded(first.needs)}
        for length in sorted(lengths, reverse=True):
            count = min(room, self._most(length)) // length
            if count < 1 and length == rounded(first.needs) and alone and not self._arena:
                count = 1
            while count > 0:
                try:
                    lane.open(count, length)
                except DeviceLost:
                    raise
                except DeviceError as error:
                    refused = error
                    count //= 2
                else:
                    return True
        if not alone:
            return False
        self._fail(first, refused or self._too_long(first))
        return True

    def _room(self, lane: Lane, length: int) -> int:
        """Tokens that a lane's cache may have, which has none then, nor have others, if need be."""
        others = [other for other in self._lanes.values() if other is not lane]
        lane.close()
        for other in others:
            if not other.taken and not (self._arena and self._left(others) >= self._most(length)):
                other.close()
        return self._left(others)

    def _left(self, others: Sequence[Lane]) -> int:
        if self._arena is not None:
            return self._arena.room - 1
        return self._cache_tokens - sum(other.tokens for other in others)

    def _most(self, length: int) -> int:
        """Tokens of a lane's cache: memory that is had once is not all for one lane."""
        most = self._cache_tokens // 2 if self._arena else self._cache_tokens
        return min(self._rows * length, max(length, most))

    def _seat(self, needs: int) -> int:
        """How long seats are for such a request; where steps are captured, of few lengths."""
        if self._arena is None:
            return rounded(needs)
        return span_shape(max(needs, SEAT_TOKENS), self._loaded.longest_tokens)

    def _too_long(self, ticket: Ticket) -> DeviceError:
        return DeviceError(
            f"{self._device}: out of memory: a prompt with its answer has {ticket.needs} tokens, "
            f"the caches have room for {self._cache_tokens}. Smaller files need less"
        )

    def _let_in(self, lane: Lane, group: Sequence[Ticket], beat: Callable[[], None]) -> int:
        """Have requests read, at once if they are short; returns the work that this was."""
        try:
            reading = lane.admit(group, self._turn_tokens)
        except Exception as error:
            return self._not_read(lane, group, error, beat)
        work = 0
        while reading in lane.reading and not self._is_long(group[0]):
            work += self._turn(lane, reading, beat)
        return work

    def _turn(self, lane: Lane, reading: Reading, beat: Callable[[], None]) -> int:
        """Do the next turn of a reading; returns the work that it was."""
        work = reading.work
        try:
            chosen = lane.read(reading)
        except Exception as error:
            return work + self._not_read(lane, reading.tickets, error, beat)
        if chosen is not None:
            self._add(lane, chosen)
        beat()
        return work

    def _not_read(
        self, lane: Lane, group: Sequence[Ticket], error: Exception, beat: Callable[[], None]
    ) -> int:
        """One that cannot be read does not keep the others of its group out."""
        if isinstance(error, DeviceLost):
            raise error
        if len(group) == 1 or (isinstance(error, DeviceError) and not self._sheds):
            for ticket in group:
                self._fail(ticket, error)
            return 0
        return sum(self._let_in(lane, [ticket], beat) for ticket in group)

    def _go_on(self, lane: Lane) -> None:
        try:
            self._add(lane, lane.go_on())
        except DeviceLost:
            raise
        except Exception as error:
            self._look(0)  # some may have ended by now: it was too late to go on with them
            running = sorted(lane.running.values(), key=lambda ticket: ticket.number)
            if not running:
                return
            if not isinstance(error, DeviceError) or not self._sheds or len(running) == 1:
                for ticket in running:
                    self._fail(ticket, error)
                return
            lane.most = (len(running) + 1) // 2
            for ticket in reversed(running[lane.most :]):
                lane.leave(ticket)
                ticket.forget()
                lane.waiting.appendleft(ticket)

    def _add(self, lane: Lane, chosen: Chosen) -> None:
        self._unread.append((lane, chosen))
        self._new += 1

    def _look(self, unread: int) -> None:
        """Look at tokens, up to the last so many choices."""
        while len(self._unread) > unread:
            lane, chosen = self._unread.popleft()
            for ticket, token in zip(chosen.tickets, chosen.tokens(), strict=True):
                if ticket.ended:
                    continue
                ticket.answer.append(token)
                if token in self._stop or len(ticket.answer) == ticket.prompt.limit:
                    lane.leave(ticket)
                    self._end(ticket)

    def _fail(self, ticket: Ticket, error: Exception) -> None:
        # without its frames: they hold tensors of the call that failed
        ticket.error = error.with_traceback(None) if isinstance(error, DeviceError) else error
        self._end(ticket)

    def _end(self, ticket: Ticket) -> None:
        lane = self._lane(ticket.adapter, long=len(ticket.prompt.ids) > self._loaded.short_tokens)
        lane.leave(ticket)
        if ticket in lane.waiting:
            lane.waiting.remove(ticket)
        ticket.ended = True
        self._ended.append(ticket)
