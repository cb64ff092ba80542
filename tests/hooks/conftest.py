"""What the tests of hooks share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hookkit import Receiver


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    receiver = Receiver()
    yield receiver
    receiver.close()
