"""From the configuration to the roots that are watched."""

from __future__ import annotations

import os
from pathlib import Path

from phi4d.config import Config, Inbox
from phi4d.inbox.place import Root
from phi4d.inbox.rules import Rules
from phi4d.job import Kind


def roots(config: Config) -> list[Root]:
    """The inboxes of a configuration.

    Raises:
        ConfigError: a pattern of an inbox is none.
    """
    boxes = config.inboxes()
    return [
        Root(
            name=box.name,
            path=os.fsencode(box.path),
            rules=Rules(
                os.fsencode(box.path),
                include=box.include,
                exclude=box.exclude,
                apart=_apart(box.path, config, boxes),
                inbox=box.name,
            ),
            mode=box.watch,
            kinds=frozenset(Kind(kind) for kind in box.kinds),
        )
        for box in boxes
    ]


def _apart(root: Path, config: Config, boxes: tuple[Inbox, ...]) -> dict[bytes, str]:
    """Folders of phi4d's own below an inbox: what it puts there is not to come in again."""
    folders: list[tuple[Path | None, str]] = [
        (config.state_dir, "state_dir"),
        (config.runtime_dir, "runtime_dir"),
    ]
    for box in boxes:
        folders += [
            (box.outbox_root(), f'the outbox of inbox "{box.name}"'),
            (box.done_dir, f'the done_dir of inbox "{box.name}"'),
            (box.failed_dir, f'the failed_dir of inbox "{box.name}"'),
        ]
    real = Path(os.path.realpath(root))
    found: dict[bytes, str] = {}
    for folder, what in folders:
        if folder is None:
            continue
        below = Path(os.path.realpath(folder))  # one of them may be given by a link
        if real in below.parents:
            found[os.fsencode(root / below.relative_to(real))] = what
    return found
