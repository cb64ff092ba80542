"""One-shot: files and URLs, with a real server on loopback."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from phi4d import config as configuration
from phi4d import oneshot
from phi4d.config import Config
from phi4d.engine import Engine
from phi4d.engine.fake import FakeEngine
from phi4d.errors import DeviceLost, EnvironmentFault, FileError
from phi4d.job import Request, Result
from phi4d.outputs import atomic


class Handler(SimpleHTTPRequestHandler):
    """Serves a folder, quietly; names without an extension are JPEGs."""

    extensions_map = {**SimpleHTTPRequestHandler.extensions_map, "": "image/jpeg"}  # noqa: RUF012 -- as in its base

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    folder = tmp_path / "www"
    folder.mkdir()
    handler = partial(Handler, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = False
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture
def config() -> Config:
    return configuration.load(environ={}, options={"max_file_mb": 1.0})


@pytest.fixture
def process(config: Config) -> Callable[..., tuple[bool, dict[str, str]]]:
    """Processes with a fake engine; returns success, and each source's text or what was wrong."""

    def run(*sources: object, **options: Any) -> tuple[bool, dict[str, str]]:
        told: dict[str, str] = {}

        def report(source: str, result: Result | None, words: str) -> None:
            told[source] = result.text if result else words

        engine = options.pop("engine", None) or FakeEngine()

        def engines(config: Config) -> Iterator[Engine]:
            yield engine

        ok = oneshot.process(
            options.pop("config", config),
            [str(s) for s in sources],
            report,
            engines=engines,
            **options,
        )
        return ok, told

    return run


def test_files_are_answered(
    process: Callable[..., Any],
    tmp_path: Path,
    make_picture: Callable[..., Path],
    make_recording: Callable[..., Path],
) -> None:
    a, b = make_picture(tmp_path / "a.png"), make_recording(tmp_path / "x/b.wav", 2.0)
    ok, told = process(a, b)
    assert ok
    assert told == {
        str(a): "picture 64x48: Describe the image.",
        str(b): "audio 2.0 s: Transcribe the audio clip into text.",
    }
    assert sorted(p.name for p in tmp_path.rglob("*") if p.is_file()) == ["a.png", "b.wav"]


def test_a_prompt_of_ones_own(
    process: Callable[..., Any], tmp_path: Path, make_picture: Callable[..., Path]
) -> None:
    a = make_picture(tmp_path / "a.png")
    assert process(a, prompt="Why?")[1] == {str(a): "picture 64x48: Why?"}


def test_sidecars_on_demand(
    process: Callable[..., Any], tmp_path: Path, make_picture: Callable[..., Path]
) -> None:
    out = tmp_path / "new" / "out"
    process(make_picture(tmp_path / "a.png"), output_dir=out)
    assert sorted(p.name for p in out.iterdir()) == ["a.png.json", "a.png.txt"]


def test_what_cannot_be_answered_is_told_and_the_rest_is_done(
    process: Callable[..., Any], tmp_path: Path, make_picture: Callable[..., Path]
) -> None:
    good = make_picture(tmp_path / "good.png")
    bad, odd, none = tmp_path / "bad.jpg", tmp_path / "odd.xyz", tmp_path / "none.png"
    bad.write_bytes(b"no picture")
    odd.write_bytes(b"?")
    ok, told = process(bad, odd, none, good)
    assert not ok
    assert told[str(good)].startswith("picture")
    assert told[str(bad)].startswith("failed: ")
    assert "neither a picture nor a recording" in told[str(odd)]
    assert "No such file" in told[str(none)]


def test_nothing_that_can_be_answered_loads_no_model(
    process: Callable[..., Any], tmp_path: Path
) -> None:
    engine = FakeEngine()
    assert process(tmp_path / "none.png", engine=engine)[0] is False
    assert not engine.closed  # nobody asked for it


def test_two_files_of_one_name_do_not_overwrite_each_other(
    process: Callable[..., Any], tmp_path: Path, make_picture: Callable[..., Path]
) -> None:
    a, b = make_picture(tmp_path / "1/a.png"), make_picture(tmp_path / "2/a.png", (9, 9))
    ok, told = process(a, b, output_dir=tmp_path / "out")
    assert not ok
    assert "has the same name as" in told[str(b)]
    ok, told = process(a, b)
    assert ok


def test_a_sidecar_that_cannot_be_written_is_told(
    process: Callable[..., Any], tmp_path: Path, make_picture: Callable[..., Path]
) -> None:
    a, out = make_picture(tmp_path / "a.png"), tmp_path / "out"
    (out / "a.png.txt").mkdir(parents=True)
    ok, told = process(a, output_dir=out)
    assert not ok
    assert "a folder is where its sidecar should be" in told[str(a)]


def test_a_full_disk_is_told(
    process: Callable[..., Any],
    tmp_path: Path,
    make_picture: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(*args: object) -> None:
        raise EnvironmentFault("/out: cannot be written: No space left on device")

    monkeypatch.setattr(atomic, "write_all", full)
    with pytest.raises(EnvironmentFault, match="No space left"):
        process(make_picture(tmp_path / "a.png"), output_dir=tmp_path / "out")


def test_a_lost_device_is_told(
    process: Callable[..., Any], tmp_path: Path, make_picture: Callable[..., Path]
) -> None:
    lost = FakeEngine(failures={1: DeviceLost("cuda:0: is lost")})
    with pytest.raises(DeviceLost, match="is lost"):
        process(make_picture(tmp_path / "a.png"), engine=lost)


def test_a_file_that_fits_no_device_is_told(
    process: Callable[..., Any], tmp_path: Path, make_picture: Callable[..., Path]
) -> None:
    def holds(requests: Sequence[Request]) -> bool:
        return all(request.media.shape[0] < 50 for request in requests)

    full = FakeEngine(capacity=holds)
    a, b = make_picture(tmp_path / "a.png", (64, 50)), make_picture(tmp_path / "b.png")
    ok, told = process(a, b, engine=full, config=Config(batch_size=1))
    assert not ok
    assert "needs more memory than any device has" in told[str(a)]
    assert told[str(b)].startswith("picture")


class TestUrls:
    def test_a_picture_from_a_server(
        self, process: Callable[..., Any], server: str, tmp_path: Path, make_picture: Any
    ) -> None:
        make_picture(tmp_path / "www/some thing.png", (20, 10))
        url = f"{server}/some%20thing.png?size=large"
        ok, told = process(url, output_dir=tmp_path / "out")
        assert ok
        assert told[url].startswith("picture 20x10")
        assert (tmp_path / "out/some thing.png.txt").exists()

    def test_the_type_tells_what_the_name_does_not(
        self, process: Callable[..., Any], server: str, tmp_path: Path, make_picture: Any
    ) -> None:
        make_picture(tmp_path / "www/a.jpg").rename(tmp_path / "www/photo")
        assert process(f"{server}/photo")[0]

    @pytest.mark.parametrize(
        ("path", "words"),
        [("/none.png", "the server answers 404"), ("/", "neither a picture nor a recording")],
    )
    def test_what_is_not_there(
        self, process: Callable[..., Any], server: str, path: str, words: str
    ) -> None:
        ok, told = process(server + path)
        assert not ok
        assert words in told[server + path]

    def test_a_server_that_is_not_there(self, process: Callable[..., Any]) -> None:
        url = "http://127.0.0.1:9/a.png"  # the discard port: nobody listens
        ok, told = process(url)
        assert not ok
        assert "cannot be fetched" in told[url]

    def test_a_file_larger_than_allowed(self, server: str, tmp_path: Path) -> None:
        (tmp_path / "www/a.png").write_bytes(b"x" * 2_000_001)
        with pytest.raises(FileError, match="larger than max_file_mb = 2"):
            oneshot.download(f"{server}/a.png", tmp_path, 2_000_000)
