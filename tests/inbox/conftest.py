"""Watchers that end with their test."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from inboxkit import WAIT_SECONDS, Bench, Hands

from phi4d.inbox import Root, Rules, Watcher


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    folder.mkdir()
    return folder


@pytest.fixture
def make_bench(folder: Path) -> Iterator[Callable[..., Bench]]:
    """Makes a bench over the inbox as it is then; ``begin=False`` leaves it unbegun."""
    benches: list[Bench] = []

    def make(path: Path = folder, *, begin: bool = True, **options: Any) -> Bench:
        bench = Bench(path, **options)
        benches.append(bench)
        if begin:
            bench.begin()
        return bench

    yield make
    for bench in benches:
        bench.watcher.end()


@pytest.fixture
def bench(make_bench: Callable[..., Bench]) -> Bench:
    return make_bench()


@pytest.fixture
def watch(folder: Path) -> Iterator[Callable[..., tuple[Watcher, Hands]]]:
    """Starts a real watcher, thread and clock and all."""
    watchers: list[Watcher] = []

    def start(path: Path = folder, **options: Any) -> tuple[Watcher, Hands]:
        hands = Hands()
        root = Root("in", os.fsencode(path), Rules(os.fsencode(path)), "inotify")
        options = {"settle_seconds": 0.05, "rescan_seconds": 3600.0} | options
        watcher = Watcher([root], hands.take, **hands.arguments(), **options)
        watchers.append(watcher)
        watcher.start()
        assert watcher.armed.wait(WAIT_SECONDS)
        return watcher, hands

    yield start
    for watcher in watchers:
        watcher.stop()
        watcher.join()
