"""What a shell asks when somebody presses TAB: what could come next.

The shell gives the line up to the cursor in ``_PHI4D_COMPLETE`` and calls phi4d; the scripts in
``completion/`` do. The answers are lines, a word and after a tab what it is; ``:files`` and
``:folders`` ask the shell for those. It must be fast, and never say anything else: whatever is
wrong, no answer is the answer.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

VARIABLE = "_PHI4D_COMPLETE"
FILES, FOLDERS = ":files", ":folders"


def main(command: Any) -> None:
    """Answer for the line in the environment.

    Args:
        command: what typer made of the whole command line.
    """
    from phi4d.errors import Phi4dError

    try:
        lines = list(answers(command, os.environ[VARIABLE]))
    except Phi4dError:
        return  # a configuration that cannot be read has no inboxes to name
    sys.stdout.writelines(f"{line}\n" for line in lines)


def answers(command: Any, line: str) -> Iterator[str]:
    """What could stand at the end of a line.

    Args:
        command: what typer made of the whole command line.
        line: up to the cursor, with ``phi4d`` in it, perhaps behind ``sudo``.

    Yields:
        A word and, after a tab, what it is; or `FILES`, or `FOLDERS`.

    Raises:
        ConfigError: inboxes are asked for, and the configuration cannot be used.
    """
    *given, last = split(line)
    place = _Place(command)
    for word in given:
        if not place.after(word):
            return
    command, told = place.command, place.told

    if place.option is not None:
        yield from _values(place.option, last, told)
    elif last.startswith("-") and not place.literal:
        name, equals, value = last.partition("=")
        options = _options(command)
        if equals and name in options:
            found = _values(options[name], value, told)
            yield from (one if one in {FILES, FOLDERS} else f"{name}={one}" for one in found)
        else:
            known = [(name, option.help) for name, option in options.items()]
            yield from _fitting([*known, ("--help", "Tell how it is used.")], last)
    elif hasattr(command, "commands"):
        shown = ((n, c.help) for n, c in command.commands.items() if not c.hidden)
        yield from _fitting(shown, last)
    else:
        places = [one for one in command.params if one.param_type_name == "argument"]
        if places and (place.arguments < len(places) or places[-1].nargs < 0):
            yield from _values(places[min(place.arguments, len(places) - 1)], last, told)


class _Place:
    """Where on the command line one is, after so many words."""

    def __init__(self, command: Any) -> None:
        self.command = command
        self.option: Any = None  # which wants its value next
        self.told: dict[str, str] = {}
        self.arguments = 0
        self.literal = False  # behind --, nothing is an option

    def after(self, word: str) -> bool:
        """Go on by a word.

        Returns:
            Whether there is such a place.
        """
        if self.option is not None:
            self.told[self.option.opts[0]] = word
            self.option = None
        elif word == "--" and not self.literal:
            self.literal = True
        elif word.startswith("-") and not self.literal:
            name, equals, value = word.partition("=")
            found = _options(self.command).get(name)
            if equals:
                self.told[name] = value
            elif found is not None and not found.is_flag:
                self.option = found
        elif hasattr(self.command, "commands"):
            if word not in self.command.commands:
                return False
            self.command = self.command.commands[word]
        else:
            self.arguments += 1
        return True


def split(line: str) -> list[str]:
    """The words behind ``phi4d``; the last is the one that the cursor is in, perhaps empty."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=False)
    lexer.whitespace_split = True
    lexer.commenters = ""
    words: list[str] = []
    try:
        words.extend(lexer)
    except ValueError:  # a quote is still open
        words.append(lexer.token)
    else:
        if not line or (line[-1].isspace() and line[-2:-1] != "\\"):
            words.append("")
    for place, word in enumerate(words):
        if os.path.basename(word) == "phi4d":
            return words[place + 1 :] or [""]
    return words[1:] or [""]


def _options(command: Any) -> dict[str, Any]:
    """Every way to write each of its options."""
    return {
        name: option
        for option in command.params
        if option.param_type_name == "option" and not option.hidden
        for name in (*option.opts, *option.secondary_opts)
    }


def _fitting(pairs: Iterable[tuple[str, str | None]], last: str) -> Iterator[str]:
    """Words that begin like the last, with the first line of what they are."""
    for word, meaning in pairs:
        if word.startswith(last):
            yield f"{word}\t{(meaning or '').partition(chr(10))[0]}".rstrip("\t")


def _values(parameter: Any, last: str, told: dict[str, str]) -> Iterator[str]:
    """What may stand for an option's value, or an argument: its metavar says what that is."""
    words = (parameter.metavar or "").rstrip("….").split("|")
    for word in words:
        if word in _KNOWN:
            yield from _fitting(_KNOWN[word](last, told), last)
        if word in {"FILE", "PATH"}:
            yield FILES
        elif word in {"DIR", "FOLDER", "MODEL"}:
            yield FOLDERS


def _inboxes(_last: str, told: dict[str, str]) -> list[tuple[str, str]]:
    from pathlib import Path

    from phi4d.config import load

    config = Path(told["--config"]) if "--config" in told else None
    return [(box.name, str(box.path)) for box in load(config=config).inbox]


def _keys(_last: str, _told: dict[str, str]) -> list[tuple[str, str]]:
    from phi4d.config import Config, Inbox

    keys = [*Config.model_fields, *(f"inbox.{key}" for key in Inbox.model_fields)]
    return [(key, "") for key in keys]


def _settings(last: str, _told: dict[str, str]) -> list[tuple[str, str]]:
    from typing import Literal, get_args, get_origin

    from phi4d.config import Config

    key, equals, _ = last.partition("=")
    if not equals:
        return [(f"{key}=", "") for key in Config.model_fields]
    kind = Config.model_fields[key].annotation if key in Config.model_fields else None
    values = get_args(kind) if get_origin(kind) is Literal else ()
    if kind is bool:
        values = ("true", "false")
    return [(f"{key}={value}", "") for value in values]


def _models(_last: str, _told: dict[str, str]) -> list[tuple[str, str]]:
    return [("demo", "a tiny toy to try")]


def _devices(_last: str, _told: dict[str, str]) -> list[tuple[str, str]]:
    return [
        ("auto", "the GPUs, or the CPU where there is none"),
        ("cpu", "the CPU"),
        ("cuda", "every GPU"),
        ("cuda:0", "the first GPU"),
    ]


_KNOWN: dict[str, Callable[[str, dict[str, str]], list[tuple[str, str]]]] = {
    "INBOX": _inboxes,
    "NAME": _inboxes,
    "KEY": _keys,
    "KEY=VALUE": _settings,
    "MODEL": _models,
    "DEVICE": _devices,
}
