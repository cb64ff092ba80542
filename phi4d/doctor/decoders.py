"""The codecs, and real files through the decode pool as the daemon has it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from phi4d import demo
from phi4d.doctor.check import Check, fail, ok
from phi4d.errors import Phi4dError
from phi4d.job import Kind
from phi4d.media import codecs
from phi4d.media.codecs import Codec
from phi4d.media.pool import DecodePool
from phi4d.media.probe import kind_of


def libraries(found: Iterable[Codec] | None = None) -> Iterator[Check]:
    """Each codec with its version."""
    for codec in codecs.report() if found is None else found:
        if codec.lacks:
            yield fail(
                codec.name,
                f"{codec.found}; it does not read: {codec.lacks}",
                f"pip install --force-reinstall {codec.name}",
            )
        else:
            yield ok(codec.name, codec.found)


def samples(folder: Path = demo.SAMPLES) -> Iterator[Check]:
    """Decode every sample of a folder, in a process of its own; a line for each kind."""
    files = sorted(os.listdir(os.fsencode(folder)))
    try:
        pool = DecodePool(1)
    except Phi4dError as fault:
        yield fail("decoding", str(fault), "see that processes can be started (ulimit -u)")
        return
    with pool:
        for kind in Kind:
            yield _decode(pool, folder, [name for name in files if kind_of(name) is kind], kind)


def _decode(pool: DecodePool, folder: Path, files: list[bytes], kind: Kind) -> Check:
    name = f"decoding {kind}"
    read = []
    for file in files:
        try:
            with pool.decode(os.path.join(os.fsencode(folder), file), kind) as pieces:
                for _ in pieces:
                    pass
        except Phi4dError as fault:
            return fail(
                name,
                f"{os.fsdecode(file)}: {fault}",
                "see the codecs' lines above; if they are well, install phi4d again",
            )
        read.append(os.fsdecode(file).rpartition(".")[2].upper())
    return ok(name, f"{', '.join(dict.fromkeys(read))}: real files, in a process of their own")
