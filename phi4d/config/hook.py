"""What is run or told when a file has ended: a command, or a webhook by its URL."""

from __future__ import annotations

import re
from collections.abc import Sequence
from urllib.parse import urlsplit

EXPECTED = (
    'a command as a list, such as ["notify-send", "{name} is done"], or the URL of a webhook, '
    'such as "https://example.com/done"'
)
WORDS = (
    "path", "sidecars", "sidecar", "state", "inbox", "name", "kind", "id", "device", "model",
    "seconds", "tokens", "fault", "reason",
)  # fmt: skip
"""what is replaced in a command's arguments, in braces"""
_BRACED = re.compile(r"\{\{\w+\}\}|\{(\w+)\}")


def unknown(words: Sequence[str]) -> list[str]:
    """Words in braces in a command's arguments that are none, and would stay as they are."""
    found = [match[1] for word in words[1:] for match in _BRACED.finditer(word)]
    return [word for word in dict.fromkeys(found) if word and word not in WORDS]


def url(text: str) -> str:
    """The URL of a webhook.

    Raises:
        ValueError: it is none; its text says what is expected.
    """
    try:
        place = urlsplit(text)
        port = place.port
    except ValueError:
        raise ValueError(f"expected {EXPECTED}") from None
    if place.scheme not in ("http", "https") or not place.hostname or port == 0:
        raise ValueError(f"expected {EXPECTED}")
    if place.username is not None:
        raise ValueError(
            "expected no user and password in it: webhook_secret_file lets the receiver know who "
            "sends it"
        )
    if place.fragment or not text.isprintable() or " " in text:
        raise ValueError("expected a URL without spaces, control characters and a fragment (#)")
    return text


def command(words: Sequence[object]) -> tuple[str, ...]:
    """A program and its arguments.

    Raises:
        ValueError: they are none; its text says what is expected.
    """
    found = tuple(word for word in words if isinstance(word, str))
    if not found or len(found) < len(words) or any("\0" in word for word in found):
        raise ValueError(f"expected {EXPECTED}")
    program = found[0]
    if not program or ("/" in program and not program.startswith("/")):
        raise ValueError(
            "expected a program first: its name, to be found in PATH, or its absolute path"
        )
    return found
