"""Hooks that are webhooks: real requests to a real server."""

from __future__ import annotations

import base64
import re
import socket
import threading
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from http.server import HTTPServer
from pathlib import Path

import pytest
from hookkit import Receiver

from phi4d.config import hook
from phi4d.errors import HookFailed, Stopped
from phi4d.hooks import webhook
from phi4d.hooks.ending import Ending
from phi4d.job import Kind, State
from phi4d.store import Due

README = Path(__file__).parents[2] / "README.md"
DONE = Due(
    7, "c0ffee", "photos", b"2024/p\xe4.png", Kind.IMAGE, State.DONE, 1_700_000_000.5,
    {"device": "cuda:0", "model": "m", "seconds": 1.25, "tokens": 57}, 0, None,
)  # fmt: skip
ENDING = Ending(
    DONE, b"/in/2024/p\xe4.png", (b"/out/2024/p\xe4.png.txt", b"/out/2024/p\xe4.png.json")
)


def post(url: str, line: webhook.Line | None = None, seconds: float = 60.0) -> None:
    told = webhook.headers("c0ffee", b"{}", 1000.0, b"")
    webhook.post(url, b"{}", told, seconds=seconds, line=line or webhook.Line())


@contextmanager
def silent(words: bytes = b"") -> Iterator[str]:
    """A server that says these words to the first who comes, and no others."""
    with socket.create_server(("127.0.0.1", 0)) as server, ExitStack() as stack:

        def accept() -> None:
            client, _ = server.accept()
            stack.enter_context(client)
            client.sendall(words)

        thread = threading.Thread(target=accept)
        thread.start()
        stack.callback(thread.join)
        yield f"http://127.0.0.1:{server.getsockname()[1]}/"


class TestMessage:
    def test_what_it_is_told_of_a_file_that_is_done(self, receiver: Receiver) -> None:
        data = webhook.body(ENDING)
        told = webhook.headers("c0ffee", data, 1_700_000_100.9, b"")
        webhook.post(receiver.url, data, told, seconds=60, line=webhook.Line())
        (request,) = receiver.requests
        assert request.path == "/done?token=1"
        assert request.message == {
            "id": "c0ffee",
            "type": "file.done",
            "timestamp": "2023-11-14T22:13:20+00:00",
            "data": {
                "inbox": "photos",
                "name": r"photos/2024/p\xe4.png",
                "path": r"/in/2024/p\xe4.png",
                "sidecars": [r"/out/2024/p\xe4.png.txt", r"/out/2024/p\xe4.png.json"],
                "kind": "image",
                "state": "done",
                "device": "cuda:0",
                "model": "m",
                "seconds": 1.25,
                "tokens": 57,
            },
        }
        assert request.headers["content-type"] == "application/json"
        assert request.headers["webhook-id"] == "c0ffee"
        assert request.headers["webhook-timestamp"] == "1700000100"
        assert "webhook-signature" not in request.headers

    def test_the_answer_itself_only_where_it_is_wanted(self) -> None:
        assert b"a red square" not in webhook.body(ENDING)
        assert b'"text": "a red square"' in webhook.body(ENDING, "a red square")


class TestSignature:
    @pytest.mark.parametrize("as_base64", [False, True])
    def test_the_receiver_reckons_the_same(
        self, receiver: Receiver, tmp_path: Path, *, as_base64: bool
    ) -> None:
        # given a secret in a file, plain or as Standard Webhooks has it
        key = b"plain secret" if not as_base64 else bytes(range(200, 232))
        file = tmp_path / "secret"
        file.write_bytes((b"whsec_" + base64.b64encode(key) if as_base64 else key) + b"\n")
        # when something is posted
        data = webhook.body(ENDING)
        told = webhook.headers(DONE.event, data, 1_700_000_000, webhook.secret(bytes(file)))
        webhook.post(receiver.url, data, told, seconds=60, line=webhook.Line())
        # then what came is signed, and what is another body, time or id is not
        (request,) = receiver.requests
        assert request.headers["webhook-signature"] == request.signature(key)
        assert request.headers["webhook-signature"] != request.signature(b"another")

    def test_the_readme_s_receiver_takes_it_and_no_other(self, tmp_path: Path) -> None:
        # given the receiver of the README, with a secret of its own and any port that is free
        (source,) = re.findall(
            r"^```python\n(import base64.*?)^```",
            README.read_text("utf-8"),
            re.MULTILINE | re.DOTALL,
        )
        file = tmp_path / "secret"
        file.write_text("open sesame\n")
        source, _, last = source.replace("/etc/phi4d/webhook.secret", str(file)).rpartition("\n\n")
        assert last == 'HTTPServer(("127.0.0.1", 8765), Receiver).serve_forever()\n'
        with warnings.catch_warnings():  # it leaves closing its file to Python
            warnings.simplefilter("ignore", ResourceWarning)
            exec(source, names := {"print": print})  # noqa: S102 -- our own words
        server = HTTPServer(("127.0.0.1", 0), names["Receiver"])
        names["Receiver"].log_message = lambda *_: None
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        url = f"http://127.0.0.1:{server.server_port}/"
        data = webhook.body(ENDING)
        try:
            # when ours comes, and others
            for key, change, refusal in (
                (b"open sesame", {}, ""),
                (b"open sesame", {"webhook-timestamp": "1"}, "answered 403"),
                (b"open sesame", {"webhook-id": "1"}, "answered 403"),
                (b"open barley", {}, "answered 403"),
                (b"", {}, "answered 403"),
            ):
                told = {**webhook.headers(DONE.event, data, 1_700_000_000, key), **change}
                # then it knows ours
                with pytest.raises(HookFailed, match=refusal) if refusal else nullcontext():
                    webhook.post(url, data, told, seconds=60, line=webhook.Line())
        finally:
            server.shutdown()
            server.server_close()
            thread.join()

    def test_the_example_of_standard_webhooks(self) -> None:
        # https://github.com/standard-webhooks/standard-webhooks, "Signature scheme"
        key = base64.b64decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
        told = webhook.headers(
            "msg_p5jXN8AQM9LWM0D4loKWxJek", b'{"test": 2432232314}', 1614265330, key
        )
        assert told["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="

    def test_a_secret_that_cannot_be_read_sends_nothing(self, tmp_path: Path) -> None:
        for content, expected in (
            (None, "cannot be read: No such file"),
            (b" \n", "is empty"),
            (b"whsec_!", "expected base64 after whsec_"),
        ):
            file = tmp_path / "secret"
            if content is not None:
                file.write_bytes(content)
            with pytest.raises(HookFailed, match=expected) as caught:
                webhook.secret(bytes(file))
            assert caught.value.again

    def test_without_a_file_there_is_none(self) -> None:
        assert webhook.secret(None) == b""


class TestAnswers:
    @pytest.mark.parametrize(
        ("status", "again"),
        [(200, None), (204, None), (299, None), (500, True), (503, True), (404, True), (429, True),
         (401, True), (400, False), (410, False), (413, False), (422, False)],
    )  # fmt: skip
    def test_which_are_worth_another_try(
        self, receiver: Receiver, status: int, *, again: bool | None
    ) -> None:
        receiver.answers.append((status, {}))
        if again is None:
            post(receiver.url)
        else:
            with pytest.raises(HookFailed, match=f"answered {status}") as caught:
                post(receiver.url)
            assert caught.value.again is again
            assert "token" not in str(caught.value)

    def test_no_redirect_is_followed(self, receiver: Receiver) -> None:
        receiver.answers.append((307, {"location": receiver.url}))
        with pytest.raises(
            HookFailed, match=r"answered 307 .*redirects are not followed"
        ) as caught:
            post(receiver.url)
        assert caught.value.again
        assert len(receiver.requests) == 1

    def test_nobody_there(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
        with pytest.raises(
            HookFailed, match=f"http://127.0.0.1:{port}: cannot be reached: Connection refused"
        ) as caught:
            post(f"http://127.0.0.1:{port}/?token=1")
        assert caught.value.again

    def test_no_such_host(self) -> None:
        with pytest.raises(
            HookFailed, match=r"http://nowhere\.invalid: cannot be reached: "
        ) as caught:
            post("http://nowhere.invalid/")
        assert caught.value.again

    def test_what_is_no_http_or_no_tls(self, receiver: Receiver) -> None:
        with pytest.raises(HookFailed, match="TLS failed") as caught:
            post(receiver.url.replace("http", "https"))
        assert caught.value.again
        with (
            silent(b"SSH-2.0-something\r\n\r\n") as url,
            pytest.raises(HookFailed, match="failed: ") as caught,
        ):
            post(url)
        assert caught.value.again

    def test_one_that_is_silent_is_not_waited_for(self) -> None:
        with (
            silent() as url,
            pytest.raises(HookFailed, match=r"no answer within 0.1 s \(hook_seconds\)"),
        ):
            post(url, seconds=0.1)

    def test_a_stop_cuts_off_what_waits(self, receiver: Receiver) -> None:
        # given a receiver that does not answer
        receiver.gate.clear()
        line = webhook.Line()
        ended: list[BaseException] = []

        def work() -> None:
            try:
                post(receiver.url, line)
            except Stopped as stopped:
                ended.append(stopped)

        thread = threading.Thread(target=work)
        thread.start()
        receiver.wait_for(1)
        # when the line is cut
        line.cut()
        thread.join()
        # then the request ended so, and another is not begun
        assert len(ended) == 1
        with pytest.raises(Stopped):
            post(receiver.url, line)
        assert len(receiver.requests) == 1


def test_the_words_of_a_command_are_those_that_the_configuration_knows() -> None:
    assert set(ENDING.words()) == set(hook.WORDS)
