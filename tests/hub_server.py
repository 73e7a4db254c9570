"""The Hugging Face Hub on this machine, as far as creating a repository and uploading small files goes."""

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from loopback import send


class Hub:
    """What was pushed: files by repository, the repositories' requests, and the tokens that came with requests."""

    def __init__(self) -> None:
        self.files: dict[str, dict[str, bytes]] = {}
        self.created: list[dict[str, object]] = []
        self.tokens: set[str | None] = set()
        self.refuses = False


@contextmanager
def hub_on_this_machine() -> Iterator[tuple[str, Hub]]:
    """The address, and what happens there."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            hub.tokens.add(self.headers.get("Authorization"))
            if hub.refuses:
                send(self, b'{"error": "no"}', 401)
            else:
                send(self, json.dumps(self.answer(body)).encode())

        def answer(self, body: bytes) -> object:
            url = f"http://127.0.0.1:{self.server.server_address[1]}"
            if self.path == "/api/repos/create":
                hub.created.append(json.loads(body))
                return {"url": f"{url}/me/{hub.created[-1]['name']}"}
            if self.path == "/api/validate-yaml":
                return {"errors": [], "warnings": []}
            repo = self.path.removeprefix("/api/models/").rsplit("/", 2)[0]
            if "/preupload/" in self.path:
                paths = [file["path"] for file in json.loads(body)["files"]]
                return {"files": [{"path": path, "uploadMode": "regular", "shouldIgnore": False} for path in paths]}
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    own = hub.files.setdefault(repo, {})
                    own[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            return {"commitUrl": f"{url}/{repo}/commit/abc", "commitOid": "abc", "success": True}

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", hub
    finally:
        server.shutdown()
        server.server_close()
