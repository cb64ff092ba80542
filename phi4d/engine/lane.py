"""A lane: the requests that may share a batch, those who wait and those whose answers are written.

Pictures and recordings have lanes of their own (fault G), and so have prompts on either side of
4,096 tokens (fault H). A lane does what `phi4d.engine.loop` decides: it opens its cache, lets
requests in, reads them turn by turn, and goes one token on. What it does to the device it does
whole or, as far as anybody can see, not at all: a step that failed can be done again.
"""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from phi4d.engine.copies import to_device
from phi4d.engine.decoding import go_on, read_prompts
from phi4d.engine.embedding import Embedding, Prompt
from phi4d.engine.faults import device_faults
from phi4d.engine.graphs import Captured, Graphs, rows_shape, shapes, span_shape
from phi4d.engine.grouping import evenly
from phi4d.engine.loader import Loaded
from phi4d.engine.sampling import Chooser, Ways
from phi4d.engine.seats import SPAN, Filling, Going, Seats, stretches

if TYPE_CHECKING:
    from torch import Tensor

    from phi4d.engine.arena import Arena


@dataclass(eq=False, slots=True)
class Ticket:
    """A request in the loop, and what becomes of it."""

    prompt: Prompt
    adapter: str
    number: int
    """in order of arrival"""
    answer: list[int] = field(default_factory=list)
    """its tokens, the one that ended it included; all of them once it has ended"""
    error: Exception | None = None
    """why there is no answer"""
    cancelled: bool = False
    """nobody wants its answer any more"""
    ended: bool = False
    """it was answered, failed, or was cancelled"""
    seat: int | None = None
    chosen: int = 0
    """tokens that were chosen, a few of which may not be known here yet"""

    @property
    def needs(self) -> int:
        """The places that it takes in the cache; the last token is not fed back."""
        return len(self.prompt.ids) + self.prompt.limit - 1

    def forget(self) -> None:
        """Begin again from the prompt."""
        self.answer = []
        self.chosen = 0


class Chosen:
    """Tokens on their way from the device: looking at them waits, having them brought does not."""

    def __init__(self, tickets: Sequence[Ticket], tokens: Tensor) -> None:
        self.tickets = tickets
        self._tokens, self._there = tokens, None
        if tokens.is_cuda:
            self._tokens = torch.empty(tokens.shape, dtype=tokens.dtype, pin_memory=True)
            self._tokens.copy_(tokens, non_blocking=True)
            self._there = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._there.record(torch.cuda.current_stream(tokens.device))

    def tokens(self) -> list[int]:
        """One for each ticket."""
        if self._there is not None:
            self._there.synchronize()
        return self._tokens.tolist()


@dataclass(eq=False, slots=True)
class Reading:
    """Requests whose prompts are being read; one alone, if it takes several steps."""

    tickets: Sequence[Ticket]
    seats: Sequence[int]
    """of the tickets"""
    index: Tensor
    """the same on the device"""
    embedding: Embedding
    stretches: deque[int]
    """tokens of each stretch that is still to be read"""
    begin: int = 0
    """where the next one begins"""

    @property
    def work(self) -> int:
        """Of the next turn, in tokens."""
        turns = self.embedding.turns
        return turns[0] if turns else self.stretches[0] * len(self.seats)


class Lane:
    """One adapter's requests on one side of 4,096 tokens.

    Args:
        loaded: the model.
        adapter: ``vision`` or ``speech``.
        never: ids that are not to be answered.
        graphs: by which steps are replayed; None: each step has no more than it needs.
        arena: where the memory of the cache comes from; None: from the device.

    Attributes:
        waiting: in order of arrival.
        reading: have seats already.
        running: by seat.
        most: rows at a time that memory has been enough for; None: any.
    """

    def __init__(
        self,
        loaded: Loaded,
        adapter: str,
        never: Collection[int],
        graphs: Graphs | None = None,
        arena: Arena | None = None,
    ) -> None:
        self._loaded = loaded
        self._adapter = adapter
        self._never = never
        self._graphs = graphs
        self._arena = arena
        self._captured: Captured = {}
        self._model = loaded.models[adapter]
        self._device = str(self._model.device)
        self._seats: Seats | None = None
        self._batch: tuple[Tensor, list[tuple[int, int, int]]] | None = None
        self.waiting: deque[Ticket] = deque()
        self.reading: list[Reading] = []
        self.running: dict[int, Ticket] = {}
        self.most: int | None = None

    @property
    def length(self) -> int:
        """The most tokens of a prompt with its answer; 0 while there is no cache."""
        return self._seats.length if self._seats else 0

    @property
    def tokens(self) -> int:
        """What the cache holds room for in all."""
        return self._seats.length * self._seats.count if self._seats else 0

    @property
    def free(self) -> int:
        """How many requests may be let in."""
        free = self._seats.free if self._seats else 0
        return free if self.most is None else min(free, self.most - self.taken)

    @property
    def taken(self) -> int:
        """How many requests have seats."""
        return len(self.running) + sum(len(reading.seats) for reading in self.reading)

    def open(self, count: int, length: int) -> None:
        """Have a cache; no seat may be taken.

        Args:
            count: rows.
            length: tokens of each.

        Raises:
            DeviceError: out of memory.
        """
        self.close()
        with device_faults(self._device, f"making room for {count} answers of {length} tokens"):
            self._chooser = Chooser(
                count,
                never=self._never,
                vocabulary=self._model.config.vocab_size,
                device=self._device,
            )
            self._tokens = torch.zeros(count, dtype=torch.int64, device=self._device)
            self._positions = torch.zeros_like(self._tokens)
            self._live = torch.zeros_like(self._tokens, dtype=torch.bool)
            self._seats = Seats(self._model, count, length, self._arena)

    def close(self) -> None:
        """Have no cache; no seat may be taken."""
        if self._seats is not None:
            self._seats.close()
        self._captured = {}
        self._seats = self._batch = None

    @torch.inference_mode()
    def warm(self, shortest: int) -> int:
        """Have the likeliest steps captured before anybody waits for them.

        Args:
            shortest: tokens that rows are expected to have at least.

        Returns:
            How many.
        """
        seats, graphs = self._open_seats(), self._graphs
        if graphs is None:
            return 0
        ways = Ways(draws=False, penalizes=False)
        with device_faults(self._device, f"capturing steps of {seats.count} answers"):
            for shape in shapes(seats.count, seats.length, shortest):
                step = functools.partial(self._step, *shape, ways)
                graphs.run(self._captured, (*shape, ways), step)
        return len(self._captured)

    def admit(self, tickets: Sequence[Ticket], most: int) -> Reading:
        """Let requests in: they have seats, and `read` reads them.

        Args:
            tickets: of this lane, no more than `free`.
            most: the work of a turn of reading, in tokens.

        Raises:
            DeviceError: out of memory; nothing has changed.
        """
        seats = self._open_seats()
        prompts = [ticket.prompt for ticket in tickets]
        length = max(len(prompt.ids) for prompt in prompts)
        taken: list[int] = []
        try:
            taken += (seats.take() for _ in tickets)
            embedding = Embedding(self._loaded.use(self._adapter), prompts, most)
            with device_faults(self._device, f"reading {len(prompts)} prompts of {length} tokens"):
                index = to_device(torch.tensor(taken), self._device)
                for seat, ticket in zip(taken, tickets, strict=True):
                    seats.clear(seat, length, ticket.needs)
        except BaseException:
            for seat in taken:
                seats.leave(seat)
            raise
        reading = Reading(tickets, taken, index, embedding, deque(evenly(length, most)))
        self.reading.append(reading)
        return reading

    def read(self, reading: Reading) -> Chosen | None:
        """Do the next turn of reading: a call of the tower, or a stretch of the prompts.

        Returns:
            The first tokens of the answers, if the prompts have been read.

        Raises:
            DeviceError: out of memory; what was being read has lost its seats.
        """
        try:
            if reading.embedding.turns:
                self._loaded.use(self._adapter)
                reading.embedding.turn()
                return None
            return self._read(reading)
        except BaseException:
            self.drop(reading)
            raise

    def drop(self, reading: Reading) -> None:
        """Read no further; the seats are free."""
        self.reading.remove(reading)
        for seat in reading.seats:
            self._open_seats().leave(seat)

    def _read(self, reading: Reading) -> Chosen | None:
        seats, embedding = self._open_seats(), reading.embedding
        end = reading.begin + reading.stretches[0]
        filling = Filling.at(seats, reading.index, reading.begin, end)
        with device_faults(self._device, f"reading {len(reading.seats)} prompts up to {end}"):
            model = self._loaded.use(self._adapter)
            logits = read_prompts(model, embedding.embeds, embedding.lengths, filling)
            reading.begin += reading.stretches.popleft()
            if logits is None:
                return None
            for seat, ticket in zip(reading.seats, reading.tickets, strict=True):
                self._chooser.join(seat, ticket.prompt.sampling, ticket.prompt.ids)
            tokens = self._chooser.choose(logits, reading.seats, reading.index)
            self._tokens[reading.index] = tokens
            self._positions[reading.index] = embedding.lengths
        self._batch = None
        self.reading.remove(reading)
        for seat, ticket in zip(reading.seats, reading.tickets, strict=True):
            ticket.seat = seat
            self.running[seat] = ticket
        return self._chosen(reading.tickets, tokens)

    def go_on(self) -> Chosen:
        """Choose the next token of each answer that is being written.

        Raises:
            DeviceError: out of memory; the same may be tried again.
        """
        seats = self._open_seats()
        rows = sorted(self.running)
        tickets = [self.running[row] for row in rows]
        longest = max(len(ticket.prompt.ids) + ticket.chosen - 1 for ticket in tickets)
        with device_faults(self._device, f"answering {len(rows)} requests"):
            if self._batch is None:
                index = to_device(torch.tensor(rows), self._device)
                self._live.zero_()[index] = True
                self._batch = index, stretches(rows)
            index, runs = self._batch
            if self._graphs is not None:
                shape = rows_shape(rows[-1] + 1, seats.count), span_shape(longest + 1, seats.length)
                ways = self._chooser.ways(rows)
                step = functools.partial(self._step, *shape, ways)
                self._graphs.run(self._captured, (*shape, ways), step)
                tokens = self._tokens[index]
            else:
                positions = self._positions[index]
                going = Going.at(seats, index, runs, positions, longest)
                logits = go_on(self._loaded.use(self._adapter), self._tokens[index], going)
                tokens = self._chooser.choose(logits, rows, index)
                self._tokens[index] = tokens
                self._positions[index] = positions + 1
        return self._chosen(tickets, tokens)

    def _step(self, count: int, span: int, ways: Ways) -> None:
        """A step of the lowest seats in their places, the tokens of those that are taken."""
        rows = slice(count)
        tokens, positions, live = self._tokens[rows], self._positions[rows], self._live[rows]
        going = Going.over(self._open_seats(), positions, live, span)
        logits = go_on(self._loaded.use(self._adapter), tokens, going)
        chosen = self._chooser.pick(logits, rows, ways)
        self._chooser.note(chosen, rows, ways, live)
        tokens.copy_(torch.where(live, chosen, tokens))
        positions.add_(live)

    def leave(self, ticket: Ticket) -> None:
        """A request needs its seat no more, if it has one or is being read."""
        for reading in [one for one in self.reading if ticket in one.tickets]:
            self.drop(reading)
        if ticket.seat is not None:
            del self.running[ticket.seat]
            self._open_seats().leave(ticket.seat)
            ticket.seat = self._batch = None

    def _chosen(self, tickets: Sequence[Ticket], tokens: Tensor) -> Chosen:
        """Who has as many tokens as are allowed leaves at once: that wants no look at them."""
        for ticket in tickets:
            ticket.chosen += 1
            if ticket.chosen == ticket.prompt.limit:
                self.leave(ticket)
        return Chosen(tickets, tokens)

    def _open_seats(self) -> Seats:
        if self._seats is None:
            raise RuntimeError("the lane has no cache")
        return self._seats


def rounded(length: int) -> int:
    """A length for seats: whole spans."""
    return -(-length // SPAN) * SPAN
