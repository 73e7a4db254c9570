"""A language model's endpoint on this machine: answers what a test scripts, and remembers what it was asked."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = Callable[[BaseHTTPRequestHandler, dict[str, Any]], None]


def completion(text: Any) -> bytes:
    return json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}]}).encode()


def send(handler: BaseHTTPRequestHandler, body: bytes, status: int = 200, **headers: str) -> None:
    handler.send_response(status)
    for name, value in {"Content-Type": "application/json", "Content-Length": str(len(body)), **headers}.items():
        handler.send_header(name, value)
    handler.end_headers()
    handler.wfile.write(body)


def says(text: Any) -> Answer:
    return lambda handler, _: send(handler, completion(text))


def reads_and_answers(handler: BaseHTTPRequestHandler, question: dict[str, Any]) -> None:
    """What a model might say: from the memory bank's groups, other ratios in every round."""
    lines = question["messages"][1]["content"].splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("Channel groups")) + 1
    stop = next(i for i, line in enumerate(lines) if line.startswith("Measured so far"))
    names = [line.rpartition(":")[0] for line in lines[start:stop]]
    asked = sum("->" in line for line in lines[stop + 1 :])
    ratios = {name: round(0.2 + 0.6 * ((3 * i + 5 * asked) % 7) / 7, 3) for i, name in enumerate(names)}
    send(handler, completion("Here you are:\n```json\n" + json.dumps({"ratios": ratios}) + "\n```"))


class Loopback:
    """An endpoint whose answers are scripted: the last one is repeated."""

    def __init__(self) -> None:
        self.script: list[Answer] = [reads_and_answers]
        self.asked: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                question = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.asked.append({"path": self.path, **question})
                outer.headers.append(dict(self.headers))
                answer = outer.script[min(len(outer.asked), len(outer.script)) - 1]
                with suppress(OSError):  # the client has gone
                    answer(self, question)

            def log_message(self, *_: Any) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"


@contextmanager
def loopback() -> Iterator[Loopback]:
    endpoint = Loopback()
    thread = threading.Thread(target=endpoint.server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield endpoint
    finally:
        endpoint.server.shutdown()
        endpoint.server.server_close()
        thread.join()
