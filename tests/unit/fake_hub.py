"""The part of the hub's HTTP interface that the hub library uses to bring a model here, over a folder."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@contextmanager
def serving(repositories: dict[str, Path], gated: tuple[str, ...] = ()) -> Iterator[tuple[str, list[str]]]:
    """Serve folders as repositories with one commit on ``main``; yields the address and the files sent."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def fail(self, status: int, code: str) -> None:
            self.send_response(status)
            self.send_header("X-Error-Code", code)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def answer(self, body: bytes, headers: dict[str, str]) -> None:
            self.send_response(200)
            for key, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path = self.path.partition("?")[0].strip("/")
            listing = path.startswith("api/models/")
            parts = path.removeprefix("api/models/").split("/")
            repository, kind, revision = "/".join(parts[:2]), "".join(parts[2:3]), "".join(parts[3:4])
            if repository in gated:
                self.fail(403, "GatedRepo")
            elif repository not in repositories:
                self.fail(404, "RepoNotFound")
            elif (revision or "main") not in ("main", COMMIT):
                self.fail(404, "RevisionNotFound")
            elif listing:
                self.list(repository, repositories[repository], kind == "tree")
            else:
                self.send(repositories[repository] / "/".join(parts[4:]))

        def list(self, repository: str, folder: Path, tree: bool) -> None:
            files = sorted(path for path in folder.rglob("*") if path.is_file())
            names = [str(path.relative_to(folder)) for path in files]
            answer: object = {
                "id": repository,
                "sha": COMMIT,
                "siblings": [{"rfilename": name} for name in names],
            }
            if tree:
                answer = [
                    {"type": "file", "path": name, "size": path.stat().st_size, "oid": digest(path)}
                    for name, path in zip(names, files, strict=True)
                ]
            self.answer(json.dumps(answer).encode(), {"Content-Type": "application/json"})

        def send(self, path: Path) -> None:
            if not path.is_file():
                self.fail(404, "EntryNotFound")
                return
            asked.append(path.name)
            self.answer(path.read_bytes(), {"ETag": f'"{digest(path)}"', "X-Repo-Commit": COMMIT})

    def digest(path: Path) -> str:
        return hashlib.sha1(path.read_bytes()).hexdigest()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
