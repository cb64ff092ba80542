"""A claimed job on its way: what was asked, what was answered so far, what the result is.

Holds no engine, no store and no file; the worker drives it.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

from phi4d.job import (
    GREEDY,
    Completion,
    FinishReason,
    Job,
    Kind,
    Piece,
    Priority,
    Request,
    Result,
    Sampling,
    Segment,
    State,
    display_name,
)
from phi4d.ladder import reduction
from phi4d.prepared.cutting import parts, size

Hook = tuple[str, ...] | str
"""a command with its arguments, or the URL of a webhook"""


@dataclass(frozen=True, slots=True)
class Rule:
    """What a worker must know of an inbox."""

    path: bytes
    """the inbox folder"""
    outbox: bytes
    """the root of the sidecars"""
    prompts: Mapping[Kind, str]
    priority: Priority = "normal"
    """whether its files go before or after those of other inboxes"""
    originals: Literal["leave", "move", "delete"] = "leave"
    """what becomes of a file that is done"""
    done_dir: bytes | None = None
    """where files that are done are moved"""
    failed_dir: bytes | None = None
    """where files that are at fault are moved; None: they stay"""
    on_done: Hook | None = None
    """what is run or told when a file is done"""
    on_failed: Hook | None = None
    """the same when one has failed"""
    hook_seconds: float = 30.0
    """how long a command may run, or a webhook take to answer"""
    webhook_secret_file: bytes | None = None
    """holds what webhooks are signed with"""
    webhook_seconds: float = 86_400.0
    """after the end of its job, a webhook is tried no more"""
    webhook_text: bool = False
    """whether a webhook is told the answer itself"""

    def hook(self, state: State) -> Hook | None:
        """What is run or told when a job has ended so."""
        return {State.DONE: self.on_done, State.FAILED: self.on_failed}.get(state)

    def source(self, job: Job) -> bytes:
        """Where a job's file is."""
        return os.path.join(self.path, job.path)


class RuleBook(Mapping[str, Rule]):
    """The rules of all inboxes by name, which are replaced as a whole while workers read them.

    Who needs several answers that go together takes a copy, `dict(book)`. Any thread may read.
    """

    def __init__(self, rules: Mapping[str, Rule] | None = None) -> None:
        self._now = dict(rules or {})

    def replace(self, rules: Mapping[str, Rule]) -> None:
        """From now on these, and no others."""
        self._now = dict(rules)

    def __getitem__(self, inbox: str) -> Rule:
        return self._now[inbox]

    def __iter__(self) -> Iterator[str]:
        return iter(self._now)

    def __len__(self) -> int:
        return len(self._now)


@dataclass(eq=False, slots=True)
class Task:
    """One attempt at a job."""

    job: Job
    rule: Rule
    log: logging.LoggerAdapter[logging.Logger]
    """its lines carry the job"""
    began: float
    """monotonic seconds"""
    sampling: Sampling = GREEDY
    facts: dict[str, float] = field(default_factory=dict)
    """what decoding found out about the source"""
    begun: bool = False
    """a piece of it has been given out"""
    decoded: bool = False
    """all its pieces have been given out"""
    ended: bool = False
    """it is done, failed, or back in the queue"""
    outstanding: int = 0
    """pieces that were given out and have no answer yet"""
    reduced: str = ""
    """what the model is given less of than usual, and why; empty: nothing"""
    question: bytes = b""
    """see `phi4d.job.question`"""
    digest: str = ""
    """SHA-256 of the file's bytes, in hexadecimal, once it was read"""
    answered: dict[str, tuple[str, bytes]] = field(default_factory=dict)
    """digests of which the answer is known, with the inbox and path of a file that has it"""
    _answers: list[tuple[float, float, Completion]] = field(default_factory=list)

    @property
    def source(self) -> bytes:
        """Where the file is."""
        return self.rule.source(self.job)

    @property
    def name(self) -> str:
        """The file as people see it: the inbox, then the path below it."""
        return display_name(self.job.inbox, self.job.path)

    @property
    def prompt(self) -> str:
        """What is asked about it."""
        return self.rule.prompts[self.job.kind]

    @property
    def complete(self) -> bool:
        """Everything that was to be answered is."""
        return self.decoded and not self.outstanding and not self.ended

    def shorter(self, piece: Piece, seconds: int) -> list[Piece]:
        """A piece of a recording in parts of at most so many seconds, each to be answered."""
        cut = parts(piece, seconds)
        if len(cut) > 1:
            self.outstanding += len(cut) - 1
            self.reduced = f"{reduction(self.job.kind, seconds)}: device memory"
        return cut

    def request(self, piece: Piece, max_new_tokens: int, max_crops: int | None = None) -> Request:
        """What the engine is asked about a piece."""
        if max_crops is not None and size(self.job.kind, piece.media) > max_crops:
            self.reduced = f"{reduction(self.job.kind, max_crops)}: device memory"
        return Request(
            self.job.kind, self.prompt, piece.media, max_new_tokens, self.sampling, max_crops
        )

    def answer(self, piece: Piece, completion: Completion) -> None:
        """Take the answer about a piece; the media itself, which may be large, is let go."""
        self._answers.append((piece.start, piece.end, completion))
        self.outstanding -= 1

    def result(self, model: str, device: str, now: float) -> Result:
        """All answers together; of a recording in which nobody speaks, an empty one."""
        answers = sorted(self._answers, key=lambda answer: answer[0])  # they end in any order
        completions = [completion for _, _, completion in answers]
        cut = any(c.finish_reason is FinishReason.LENGTH for c in completions)
        spoken = answers if self.job.kind is Kind.AUDIO else []
        return Result(
            kind=self.job.kind,
            text=" ".join(c.text for c in completions if c.text),
            prompt=self.prompt,
            model=model,
            device=device,
            segments=tuple(
                Segment(start, end, c.text, c.finish_reason) for start, end, c in spoken
            ),
            prompt_tokens=sum(c.prompt_tokens for c in completions),
            new_tokens=sum(c.new_tokens for c in completions),
            finish_reason=FinishReason.LENGTH if cut else FinishReason.STOP,
            sampling=self.sampling,
            seconds=now - self.began,
            media=tuple(self.facts.items()),
            reduced=self.reduced,
        )
