from __future__ import annotations

import hashlib
import os
import resource
import select
import selectors
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import mediakit
import numpy as np
import pytest
import soundfile
from PIL import Image

from phi4d.errors import (
    DecoderDied,
    EnvironmentFault,
    FileChanged,
    FileError,
    Phi4dError,
    SourceFault,
    Stopped,
)
from phi4d.job import Fingerprint, Kind, Piece
from phi4d.media import process as process_module
from phi4d.media.pool import DecodePool, Decoding
from phi4d.meter import Meter
from phi4d.prepared.preparation import Preparation


def children() -> set[int]:
    """The processes of ours that run."""
    found = set()
    for task in Path("/proc/self/task").iterdir():
        found |= {int(pid) for pid in (task / "children").read_text().split()}
    return found


@pytest.fixture(autouse=True)
def nothing_leaks() -> Iterator[None]:
    before = children(), set(os.listdir("/proc/self/fd")), threading.active_count()
    yield
    assert (children(), set(os.listdir("/proc/self/fd")), threading.active_count()) == before


@pytest.fixture
def pool() -> Iterator[DecodePool]:
    """One process that has decoded a file, so that it is known to run."""
    with DecodePool(1) as found:
        warm(found)
        yield found


def warm(pool: DecodePool) -> None:
    with pytest.raises(FileChanged):
        next(pool.decode(b"/nothing", Kind.IMAGE))


def pid(pool: DecodePool) -> int:
    (process,) = pool._all
    return process.pid


@pytest.fixture
def png(tmp_path: Path) -> Path:
    path = tmp_path / "a.png"
    mediakit.picture().save(path)
    return path


@pytest.fixture
def noise(tmp_path: Path) -> Path:
    """A picture whose process waits for us to take it."""
    path = tmp_path / "noise.bmp"
    samples = np.random.default_rng(0).integers(0, 256, (1000, 1000, 3), np.uint8)
    Image.fromarray(samples).save(path)
    return path


def read(pool: DecodePool, path: Path, kind: Kind = Kind.IMAGE) -> list[Piece]:
    return list(pool.decode(os.fsencode(path), kind))


def error(pool: DecodePool, path: Path, kind: Kind = Kind.IMAGE) -> Phi4dError:
    with pytest.raises(Phi4dError) as caught:
        read(pool, path, kind)
    return caught.value


def test_a_picture_comes_as_one_piece(pool: DecodePool, png: Path) -> None:
    with pool.decode(os.fsencode(png), Kind.IMAGE, Fingerprint.of(png.stat())) as decoding:
        (piece,) = decoding
    assert piece.media.shape == (64, 96, 3)
    assert mediakit.corners(piece.media) == ["red", "green", "blue", "white"]
    assert decoding.facts == {"width": 96.0, "height": 64.0}


def test_a_recording_comes_in_pieces_with_times(pool: DecodePool, tmp_path: Path) -> None:
    voice = mediakit.spoken("One two three four five six seven eight nine ten. " * 3, tmp_path)
    sentence = np.concatenate((voice, np.zeros(22_050, np.float32)))
    samples = np.tile(sentence, 1 + int(70 * 22_050 / len(sentence)))
    soundfile.write(tmp_path / "a.flac", samples, 22_050)

    decoding = pool.decode(os.fsencode(tmp_path / "a.flac"), Kind.AUDIO)
    pieces = list(decoding)

    assert len(pieces) >= 3
    assert all(0 < piece.end - piece.start <= 30 for piece in pieces)
    assert all(len(piece.media) == round((piece.end - piece.start) * 16_000) for piece in pieces)
    assert decoding.facts["duration"] == pytest.approx(len(samples) / 22_050, abs=0.01)
    assert decoding.facts["rate"] == 22_050


def test_a_short_recording_is_one_piece(pool: DecodePool, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", mediakit.tone(2, 8000), 8000)
    (piece,) = read(pool, tmp_path / "a.wav", Kind.AUDIO)
    assert (piece.start, piece.end) == (0.0, 2.0)
    assert piece.media.dtype == np.float32


def test_a_picture_is_prepared_as_it_would_be_here(pool: DecodePool, tmp_path: Path) -> None:
    prepare = Preparation(max_crops=4)
    mediakit.picture(1500, 1000).save(tmp_path / "a.png")
    source = os.fsencode(tmp_path / "a.png")
    (whole,) = pool.decode(source, Kind.IMAGE)
    decoding = pool.decode(source, Kind.IMAGE, prepare=prepare)
    (piece,) = decoding
    here = prepare.picture(whole.media)
    assert np.array_equal(piece.media.picture, here.picture)
    assert piece.media.tokens == here.tokens
    assert decoding.facts == {"width": 1500.0, "height": 1000.0}


def test_sound_is_prepared_as_it_would_be_here(pool: DecodePool, tmp_path: Path) -> None:
    prepare = Preparation()
    voice = mediakit.spoken("One two three four five six seven eight nine ten. " * 12, tmp_path)
    soundfile.write(tmp_path / "a.flac", voice, 22_050)
    source = os.fsencode(tmp_path / "a.flac")
    whole = list(pool.decode(source, Kind.AUDIO))
    pieces = list(pool.decode(source, Kind.AUDIO, prepare=prepare))
    assert len(pieces) == len(whole) > 1
    for piece, raw in zip(pieces, whole, strict=True):
        assert (piece.start, piece.end) == (raw.start, raw.end)
        here = prepare.sound(raw.media).features
        assert piece.media.features.shape == here.shape
        # it has one thread, so sums may be added up in another order
        assert np.abs(piece.media.features - here).max() < 1e-5


def test_silence_has_no_pieces(pool: DecodePool, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.zeros(16_000), 16_000)
    decoding = pool.decode(os.fsencode(tmp_path / "a.wav"), Kind.AUDIO)
    assert list(decoding) == []
    assert decoding.facts["duration"] == 1.0


def test_any_name_is_read(pool: DecodePool, png: Path) -> None:
    odd = os.path.join(os.fsencode(png.parent), b"\xff\xfe new\nline")
    os.rename(png, odd)
    assert len(list(pool.decode(odd, Kind.IMAGE))) == 1


BAD: dict[str, tuple[Kind, Callable[[Path], object], str]] = {
    "an empty picture": (Kind.IMAGE, lambda p: p.touch(), "is empty"),
    "an empty recording": (Kind.AUDIO, lambda p: p.touch(), "is empty"),
    "a text": (Kind.IMAGE, lambda p: p.write_text("hello there"), "it holds text"),
    "a cut-off picture": (
        Kind.IMAGE,
        lambda p: p.write_bytes(mediakit.saved(mediakit.picture(500, 500), "JPEG")[:-900]),
        "JPEG picture that is cut off",
    ),
    "ten samples": (
        Kind.AUDIO,
        lambda p: soundfile.write(p, np.zeros(10), 16_000, format="WAV"),
        "holds 0.0006 s of sound; at least 0.1 s",
    ),
    "a folder": (Kind.IMAGE, lambda p: p.mkdir(), "is a directory"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_a_clear_line(pool: DecodePool, tmp_path: Path, case: str) -> None:
    kind, make, words = BAD[case]
    make(tmp_path / "bad")
    before = pid(pool)

    found = error(pool, tmp_path / "bad", kind)

    assert type(found) is FileError
    assert words in str(found)
    assert "\n" not in str(found)
    assert pid(pool) == before  # the process is not to blame


def test_a_file_that_cannot_be_read_now_is_not_at_fault(pool: DecodePool, png: Path) -> None:
    # given a process that may open no more files
    before = pid(pool)
    resource.prlimit(before, resource.RLIMIT_NOFILE, (0, 1 << 10))

    found = error(pool, png)

    assert type(found) is SourceFault
    assert "too many open files" in str(found)
    resource.prlimit(before, resource.RLIMIT_NOFILE, (1 << 10, 1 << 10))
    assert len(read(pool, png)) == 1
    assert pid(pool) == before


def test_limits_reach_the_process(png: Path, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", mediakit.tone(2), 16_000)
    with DecodePool(
        1, max_pixels=1000, max_frames=1, max_duration_s=1, max_file_bytes=100_000
    ) as pool:
        assert "megapixels" in str(error(pool, png))
        still = Image.new("L", (4, 4))
        still.save(tmp_path / "a.gif", save_all=True, append_images=[Image.new("L", (4, 4), 255)])
        assert "more than 1 frames" in str(error(pool, tmp_path / "a.gif"))
        assert "at most 1.0 s" in str(error(pool, tmp_path / "a.wav", Kind.AUDIO))
        (tmp_path / "large").write_bytes(bytes(100_001))
        assert "MB are read" in str(error(pool, tmp_path / "large"))


def test_another_version_is_a_change(pool: DecodePool, png: Path) -> None:
    queued = Fingerprint.of(png.stat())
    png.write_bytes(png.read_bytes() + b"\0")
    with pytest.raises(FileChanged, match="after it was queued"):
        list(pool.decode(os.fsencode(png), Kind.IMAGE, queued))


def test_a_change_while_it_is_read_is_found(pool: DecodePool, noise: Path) -> None:
    # given a process that reads, or has read and waits for us to take the picture
    decoding = pool.decode(os.fsencode(noise), Kind.IMAGE, Fingerprint.of(noise.stat()))
    with noise.open("ab") as file:
        file.write(b"\0")
    with pytest.raises(FileChanged):
        list(decoding)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT])
def test_a_process_that_dies_is_named_and_replaced(
    pool: DecodePool, noise: Path, png: Path, number: signal.Signals
) -> None:
    # given a process that is at work
    decoding = pool.decode(os.fsencode(noise), Kind.IMAGE)
    victim = pid(pool)

    # when it dies
    os.kill(victim, number)

    # then the file is told so, and the next one has a new process
    with pytest.raises(DecoderDied, match=f"was killed by {number.name}"):
        list(decoding)
    assert len(read(pool, png)) == 1
    assert pid(pool) != victim


def test_a_process_that_died_while_idle_is_replaced_and_blames_no_file(
    pool: DecodePool, png: Path
) -> None:
    (process,) = pool._all
    os.kill(process.pid, signal.SIGKILL)
    process.ended()
    assert len(read(pool, png)) == 1


def test_a_process_that_hangs_is_killed_and_replaced(png: Path) -> None:
    with DecodePool(1, timeout_s=0.2) as pool:
        pool.timeout_s = 60  # to start is not to hang
        warm(pool)
        pool.timeout_s = 0.2
        victim = pid(pool)
        os.kill(victim, signal.SIGSTOP)

        found = error(pool, png)

        assert isinstance(found, DecoderDied)
        assert "took longer than 0.2 s" in str(found)
        pool.timeout_s = 60
        assert len(read(pool, png)) == 1
        assert pid(pool) != victim
    assert victim not in children()


def test_a_process_without_memory_says_so_and_is_replaced(png: Path, tmp_path: Path) -> None:
    Image.new("L", (9_000, 9_000)).save(tmp_path / "large.png", compress_level=1)
    with DecodePool(1, memory_bytes=600 << 20) as pool:
        found = error(pool, tmp_path / "large.png")
        assert isinstance(found, DecoderDied)
        assert "ran out of its memory limit of 0.6 GB" in str(found)
        assert len(read(pool, png)) == 1


@pytest.fixture
def spinning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recording over which the codec computes for ever, because it is another one."""
    codecs = tmp_path / "codecs"
    codecs.mkdir()
    (codecs / "soxr.py").write_text(
        "class ResampleStream:\n"
        "    def __init__(self, *args, **options):\n"
        "        while True:\n"
        "            pass\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(codecs))
    path = tmp_path / "spinning.wav"
    soundfile.write(path, mediakit.tone(1, 8000), 8000)
    return path


def test_a_process_that_computes_for_ever_is_killed_and_replaced(spinning: Path, png: Path) -> None:
    with DecodePool(1, cpu_s=0.5) as pool:
        found = error(pool, spinning, Kind.AUDIO)
        assert isinstance(found, DecoderDied)
        assert "used more than 0.5 s of CPU time (decode_seconds)" in str(found)
        assert len(read(pool, png)) == 1


def test_a_file_that_nobody_waits_for_yet_is_limited_as_well(spinning: Path) -> None:
    with DecodePool(1, cpu_s=0.5) as pool:
        decoding = pool.decode(os.fsencode(spinning), Kind.AUDIO)
        child = os.pidfd_open(pid(pool))
        assert select.select([child], [], [], 60)[0]
        os.close(child)
        with pytest.raises(DecoderDied, match="of CPU time"):
            next(decoding)


def test_a_process_that_cannot_start_is_nobodys_file(png: Path) -> None:
    with DecodePool(1, memory_bytes=100 << 20) as pool:
        found = error(pool, png)
        assert isinstance(found, EnvironmentFault)
        assert "before its first file" in str(found)


def test_a_pool_that_can_start_none_tells_and_holds_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(process_module.sys, "executable", "/nothing/python")
    with pytest.raises(EnvironmentFault, match="cannot be started"):
        DecodePool(2)


def test_a_place_whose_process_cannot_be_replaced_is_tried_again(
    pool: DecodePool, png: Path, noise: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(process_module.sys, "executable", "/nothing/python")
        pool.decode(os.fsencode(noise), Kind.IMAGE).close()
        with pytest.raises(EnvironmentFault, match="cannot be started"):
            pool.decode(os.fsencode(png), Kind.IMAGE)
    assert len(read(pool, png)) == 1


def test_a_pool_grows_and_never_shrinks(png: Path) -> None:
    with DecodePool(1) as pool:
        pool.grow(3)
        held = [pool.try_decode(os.fsencode(png), Kind.IMAGE) for _ in range(4)]
        assert [decoding is not None for decoding in held] == [True, True, True, False]
        pool.grow(2)
        assert len(pool._all) == 3
        for decoding in held[:3]:
            assert len(list(decoding or ())) == 1


def test_whoever_waits_gets_a_process_that_is_new(pool: DecodePool, noise: Path, png: Path) -> None:
    waiting = threading.Event()
    with ThreadPoolExecutor(1) as threads, pool.decode(os.fsencode(noise), Kind.IMAGE):
        later = threads.submit(
            lambda: list(pool.decode(os.fsencode(png), Kind.IMAGE, on_wait=waiting.set))
        )
        assert waiting.wait(10)
        pool.grow(2)
        assert len(later.result(10)) == 1


def test_a_digest_is_known_before_the_first_piece(pool: DecodePool, png: Path) -> None:
    digest = hashlib.sha256(png.read_bytes()).hexdigest()

    decoding = pool.decode(os.fsencode(png), Kind.IMAGE, known=())
    next(decoding)
    assert (decoding.digest, decoding.is_known) == (digest, False)
    assert list(decoding) == []

    decoding = pool.decode(os.fsencode(png), Kind.IMAGE, known={digest})
    assert list(decoding) == []
    assert (decoding.digest, decoding.is_known) == (digest, True)


def test_a_digest_that_nobody_asks_for_is_not_made(pool: DecodePool, png: Path) -> None:
    decoding = pool.decode(os.fsencode(png), Kind.IMAGE)
    assert len(list(decoding)) == 1
    assert (decoding.digest, decoding.is_known) == ("", False)


def test_a_process_is_replaced_after_so_many_files(png: Path) -> None:
    meter = Meter()
    with DecodePool(1, replace_after=2, meter=meter) as pool:
        seen = []
        for _ in range(5):
            seen.append(pid(pool))
            read(pool, png)
        assert meter.numbers().restarts == {"worn out": 2}
        assert len(set(seen)) == 3
        assert seen[0] == seen[1] != seen[2] == seen[3] != seen[4]


def test_replacements_are_counted_by_their_reason(noise: Path, png: Path) -> None:
    meter = Meter()
    with DecodePool(1, meter=meter) as pool:
        os.kill(pid(pool), signal.SIGKILL)  # while it is idle
        with suppress(DecoderDied, EnvironmentFault):  # it may be noticed only when it is asked
            read(pool, png)
        assert meter.numbers().restarts == {"died": 1}
        pool.decode(os.fsencode(noise), Kind.IMAGE).close()
        assert meter.numbers().restarts == {"died": 1, "broken off": 1}
        process = pool._idle[-1]
        decoding = pool.decode(os.fsencode(noise), Kind.IMAGE)
        os.kill(process.pid, signal.SIGKILL)
        with pytest.raises((DecoderDied, EnvironmentFault)):
            list(decoding)
        assert meter.numbers().restarts == {"died": 2, "broken off": 1}


def test_a_decoding_tells_how_long_was_waited_for_it(pool: DecodePool, png: Path) -> None:
    decoding = pool.decode(os.fsencode(png), Kind.IMAGE)
    assert decoding.seconds == 0
    list(decoding)
    assert decoding.seconds > 0


def polled(*decodings: Decoding) -> list[list[Piece]]:
    """The pieces of decodings that are waited for together, each poll without a wait."""
    pieces: dict[Decoding, list[Piece]] = {decoding: [] for decoding in decodings}
    with selectors.DefaultSelector() as readable:
        waited = {d: readable.register(d.fileno(), selectors.EVENT_READ, d).fd for d in decodings}
        ready = list(decodings)  # one poll before the first wait
        while waited:
            for decoding in ready:
                while (piece := decoding.poll()) is not None:
                    pieces[decoding].append(piece)
                if decoding.over:
                    readable.unregister(waited.pop(decoding))
            ready = [key.data for key, _ in readable.select(10)] if waited else []
            assert ready or not waited
    return list(pieces.values())


def test_several_decodings_are_polled_by_one_thread(noise: Path, png: Path, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", mediakit.tone(2), 16_000)
    digest = hashlib.sha256(png.read_bytes()).hexdigest()
    with DecodePool(3) as pool:
        one = pool.decode(os.fsencode(noise), Kind.IMAGE)
        two = pool.decode(os.fsencode(png), Kind.IMAGE, known=())
        three = pool.decode(os.fsencode(tmp_path / "a.wav"), Kind.AUDIO)

        (picture,), (small,), (sound,) = polled(one, two, three)

    assert picture.media.shape == (1000, 1000, 3)
    assert mediakit.corners(small.media) == ["red", "green", "blue", "white"]
    assert (sound.start, sound.end) == (0.0, 2.0)
    assert (two.digest, two.is_known) == (digest, False)
    assert (two.facts, three.facts["duration"]) == ({"width": 96.0, "height": 64.0}, 2.0)
    assert all(decoding.seconds > 0 for decoding in (one, two, three))


def test_a_poll_finds_out_that_the_answer_is_known(pool: DecodePool, png: Path) -> None:
    digest = hashlib.sha256(png.read_bytes()).hexdigest()
    decoding = pool.decode(os.fsencode(png), Kind.IMAGE, known={digest})
    assert polled(decoding) == [[]]
    assert (decoding.over, decoding.is_known, decoding.digest) == (True, True, digest)


def test_a_poll_does_not_wait(pool: DecodePool, png: Path) -> None:
    # given a process that does nothing for now
    victim = pid(pool)
    os.kill(victim, signal.SIGSTOP)
    decoding = pool.decode(os.fsencode(png), Kind.IMAGE)

    assert decoding.poll() is None
    assert not decoding.over

    os.kill(victim, signal.SIGCONT)
    assert len(polled(decoding)[0]) == 1
    assert decoding.poll() is None


def test_a_decoding_that_is_over_has_nothing_to_wait_for(pool: DecodePool, png: Path) -> None:
    decoding = pool.decode(os.fsencode(png), Kind.IMAGE)
    decoding.close()
    assert decoding.over
    with pytest.raises(ValueError, match="is over"):
        decoding.fileno()


def test_a_poll_raises_as_iteration_does(pool: DecodePool, png: Path, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("hello there")
    bad = pool.decode(os.fsencode(tmp_path / "text"), Kind.IMAGE)
    with pytest.raises(FileError, match="it holds text"):
        polled(bad)
    assert bad.over

    victim = pid(pool)
    os.kill(victim, signal.SIGSTOP)
    dying = pool.decode(os.fsencode(png), Kind.IMAGE)
    os.kill(victim, signal.SIGKILL)
    with pytest.raises(DecoderDied, match="was killed by SIGKILL"):
        polled(dying)
    assert dying.over


def test_a_silence_counts_between_polls_alone(pool: DecodePool, png: Path) -> None:
    # given a process that hangs, with no time at all
    os.kill(pid(pool), signal.SIGSTOP)
    pool.timeout_s = 0
    decoding = pool.decode(os.fsencode(png), Kind.IMAGE)
    # then nothing is said of it until a second poll has found nothing
    assert decoding.poll() is None
    with pytest.raises(DecoderDied, match="took longer than 0 s"):
        decoding.poll()


def test_a_decoding_that_is_closed_early_frees_its_place(
    pool: DecodePool, noise: Path, png: Path
) -> None:
    decoding = pool.decode(os.fsencode(noise), Kind.IMAGE)
    decoding.close()
    decoding.close()
    assert list(decoding) == []
    assert len(read(pool, png)) == 1


def test_a_decoding_that_is_over_stays_over(pool: DecodePool, png: Path) -> None:
    before = pid(pool)
    with pool.decode(os.fsencode(png), Kind.IMAGE) as decoding:
        assert len(list(decoding)) == 1
        assert list(decoding) == []
    assert pid(pool) == before


def test_work_begins_before_anybody_asks_for_it(noise: Path, png: Path) -> None:
    with DecodePool(2) as pool:
        first = pool.decode(os.fsencode(noise), Kind.IMAGE)
        second = pool.decode(os.fsencode(png), Kind.IMAGE)
        assert pool.try_decode(os.fsencode(png), Kind.IMAGE) is None
        assert len(list(second)) == 1
        third = pool.try_decode(os.fsencode(png), Kind.IMAGE)
        assert third is not None
        assert len(list(third)) == 1
        assert len(list(first)) == 1


def test_whoever_waits_for_a_process_may_give_up(pool: DecodePool, noise: Path, png: Path) -> None:
    def give_up() -> None:
        raise Stopped("enough")

    with pool.decode(os.fsencode(noise), Kind.IMAGE), pytest.raises(Stopped, match="enough"):
        pool.decode(os.fsencode(png), Kind.IMAGE, on_wait=give_up)


def test_whoever_waits_for_a_piece_may_give_up(pool: DecodePool, png: Path) -> None:
    def give_up() -> None:
        raise Stopped("enough")

    os.kill(pid(pool), signal.SIGSTOP)
    with pytest.raises(Stopped, match="enough"):
        list(pool.decode(os.fsencode(png), Kind.IMAGE, on_wait=give_up))
    assert len(read(pool, png)) == 1


def test_a_waiting_thread_gets_the_process_that_becomes_idle(
    pool: DecodePool, noise: Path, png: Path
) -> None:
    waiting = threading.Event()
    with ThreadPoolExecutor(1) as threads:
        with pool.decode(os.fsencode(noise), Kind.IMAGE):
            later = threads.submit(
                lambda: list(pool.decode(os.fsencode(png), Kind.IMAGE, on_wait=waiting.set))
            )
            assert waiting.wait(10)
        assert len(later.result(10)) == 1


def test_many_threads_share_a_few_processes(tmp_path: Path) -> None:
    # given pictures that can be told apart, some of them bad
    for number in range(40):
        path = tmp_path / str(number)
        if number % 5 == 0:
            path.write_text("bad")
        else:
            Image.new("RGB", (8 + number, 8)).save(path, "PNG")

    def width(number: int) -> int:
        try:
            (piece,) = read(pool, tmp_path / str(number))
        except FileError:
            return 0
        return piece.media.shape[1]

    with DecodePool(2, replace_after=7) as pool, ThreadPoolExecutor(6) as threads:
        found = list(threads.map(width, range(40)))

    assert found == [0 if number % 5 == 0 else 8 + number for number in range(40)]


def test_a_closed_pool_stops_everybody_and_closes_twice(noise: Path, png: Path) -> None:
    pool = DecodePool(1)
    warm(pool)
    decoding = pool.decode(os.fsencode(noise), Kind.IMAGE)
    with ThreadPoolExecutor(1) as threads:
        waiting = threading.Event()
        later = threads.submit(pool.decode, os.fsencode(png), Kind.IMAGE, on_wait=waiting.set)
        assert waiting.wait(10)

        pool.close()
        pool.close()

        with pytest.raises(Stopped):
            later.result(10)
    with pytest.raises(Stopped):
        list(decoding)
    with pytest.raises(Stopped):
        pool.decode(os.fsencode(png), Kind.IMAGE)
    with pytest.raises(Stopped):
        pool.try_decode(os.fsencode(png), Kind.IMAGE)
    with pytest.raises(Stopped):
        pool.grow(2)
