"""What every test of a worker has: decode processes, and a desk with them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from deskkit import Desk

from phi4d.media.pool import DecodePool


@pytest.fixture(scope="module")
def pool() -> Iterator[DecodePool]:
    with DecodePool(2) as pool:
        yield pool


@pytest.fixture
def desk(tmp_path: Path, pool: DecodePool) -> Iterator[Desk]:
    desk = Desk(tmp_path, pool)
    yield desk
    desk.close()
