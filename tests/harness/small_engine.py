"""A small OpenAI-shaped HTTP server of the tests' own, whose health and answers the test decides."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

REPLY = json.dumps(
    {
        "id": "chatcmpl-1",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "hi"}}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4},
    }
).encode()
ERROR = b'{"error": {"message": "not now", "type": "server_error"}}'


class SmallEngine:
    """Listens from `open` to `close`. `health` and `status` are what it answers to GET and POST; both may be changed.

    With `at_once`, more calls than that at a time get 429. `calls` counts the POSTs, `served` those that got 200.
    """

    def __init__(self, *, health: int = 200, status: int = 200, at_once: int | None = None, answer_s: float = 0.0):
        self.health, self.status, self.at_once, self.answer_s = health, status, at_once, answer_s
        self.calls = self.served = self.inside = self.looks = 0
        self.port = 0
        self._lock = threading.Lock()
        self._server: ThreadingHTTPServer | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def open(self, port: int = 0) -> SmallEngine:
        self._server = _Server(("127.0.0.1", port), _handler(self._look, self._answer))
        self.port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, args=[0.02], daemon=True).start()
        return self

    def close(self) -> None:
        if self._server:
            self._server.shutdown()
            self._server.server_close()

    def _look(self) -> tuple[int, bytes]:
        self.looks += 1
        return self.health, b"{}"

    def _answer(self) -> tuple[int, bytes]:
        with self._lock:
            self.calls += 1
            self.inside += 1
            is_over = self.at_once is not None and self.inside > self.at_once
        try:
            if is_over:
                return 429, ERROR
            time.sleep(self.answer_s)
            if self.status != 200:
                return self.status, ERROR
            with self._lock:
                self.served += 1
            return 200, REPLY
        finally:
            with self._lock:
                self.inside -= 1


class _Server(ThreadingHTTPServer):
    request_queue_size = 256
    daemon_threads = True


def _handler(look: Callable[[], tuple[int, bytes]], answer: Callable[[], tuple[int, bytes]]):
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            self._send(*look())

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            self._send(*answer())

        def _send(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    return Handler
