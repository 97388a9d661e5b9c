"""An OpenAI-compatible server on this machine that judges answers."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Failure = tuple[int, Mapping[str, str], str]  # status, headers and body


class ServedJudge:
    """A judge whose replies a test decides.

    Attributes:
        says: what the model says of a prompt.
        failures: of the next requests, in order.
        delays: seconds before the replies to the next requests.
        requests: path, headers and body of each request so far.
    """

    def __init__(self, address: str, says: Callable[[str], str]) -> None:
        self.address = address
        self.says = says
        self.failures: list[Failure] = []
        self.delays: list[float] = []
        self.requests: list[tuple[str, Mapping[str, str], dict[str, Any]]] = []
        self._lock = threading.Lock()

    @property
    def count(self) -> int:
        return len(self.requests)

    def reply(self, path: str, headers: Mapping[str, str], body: dict[str, Any]) -> Failure:
        with self._lock:
            self.requests.append((path, headers, body))
            delay = self.delays.pop(0) if self.delays else 0.0
            failure = self.failures.pop(0) if self.failures else None
        time.sleep(delay)
        content = {
            "choices": [{"message": {"role": "assistant", "content": self.says(body["messages"][0]["content"])}}]
        }
        return failure or (200, {"Content-Type": "application/json"}, json.dumps(content))


@contextmanager
def served_judge(says: Callable[[str], str]) -> Iterator[ServedJudge]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            status, headers, text = judge.reply(self.path, dict(self.headers), body)
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(text.encode())

        do_GET = do_POST  # what a followed redirect would become

        def log_message(self, *of: object) -> None:
            pass

        def handle_one_request(self) -> None:
            try:
                super().handle_one_request()
            except ConnectionError:  # the client has stopped waiting
                self.close_connection = True

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    judge = ServedJudge(f"http://127.0.0.1:{server.server_port}/v1", says)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield judge
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
