"""Where metrics are served: an address and a port, or a socket in the file system."""

from __future__ import annotations

import ipaddress
import os
import re
from dataclasses import dataclass
from pathlib import Path

EXPECTED = 'an address with a port, such as "127.0.0.1:9464" or "[::1]:9464", or "unix:/PATH"'
SUN_PATH_BYTES = 108  # of a socket's address, its last zero included; see unix(7)


@dataclass(frozen=True, slots=True)
class Listen:
    """A place to listen at: an address with a port, or a path."""

    address: str = ""
    """IPv4 or IPv6, without brackets; empty: `path` it is"""
    port: int = 0
    path: Path | None = None

    def __str__(self) -> str:
        if self.path is not None:
            return f"unix:{self.path}"
        host = f"[{self.address}]" if ":" in self.address else self.address
        return f"{host}:{self.port}"

    @property
    def is_local(self) -> bool:
        """Whether nobody from another machine can reach it."""
        return self.path is not None or ipaddress.ip_address(self.address).is_loopback


def listen(text: str) -> Listen:
    """What the words of a configuration mean.

    Raises:
        ValueError: they mean no such place; its text says what is expected.
    """
    if text.startswith("unix:"):
        return _socket(text.removeprefix("unix:"))
    if text.startswith("/"):
        raise ValueError(f'expected {EXPECTED}; of a socket "unix:" is the beginning')
    found = re.fullmatch(r"(?:\[(?P<six>[^\]]*)\]|(?P<four>[^:]*)):(?P<port>[0-9]{1,5})", text)
    if found is None:
        raise ValueError(f"expected {EXPECTED}")
    host = found["six"] if found["four"] is None else found["four"]
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        name = "; a name may mean another machine at any time" if re.search("[a-z]", host) else ""
        raise ValueError(f"expected {EXPECTED}{name}") from None
    if (address.version == 6) != (found["four"] is None):
        raise ValueError(f"expected {EXPECTED}")
    port = int(found["port"])
    if not 1 <= port <= 65535:
        raise ValueError("expected a port from 1 to 65535")
    return Listen(str(address), port)


def _socket(text: str) -> Listen:
    if not text.startswith("/") or "\0" in text or text.endswith("/"):
        raise ValueError('expected "unix:" and the whole path of the socket, "unix:/PATH"')
    try:
        size = len(os.fsencode(text))
    except UnicodeEncodeError:
        raise ValueError("expected a path, which this cannot be") from None
    if size >= SUN_PATH_BYTES:
        raise ValueError(f"expected a path of less than {SUN_PATH_BYTES} bytes, found {size}")
    return Listen(path=Path(text))
