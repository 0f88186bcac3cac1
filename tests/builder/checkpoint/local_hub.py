"""A hub on this machine that speaks what huggingface_hub asks for: a model's files, each file's facts, and its bytes."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote


@dataclass
class LocalHub:
    """What the hub has, and what was asked of it.

    Attributes:
        url: its address.
        models: by name and commit, the files.
        branches: by name and branch or tag, the commit.
        requests: method, path and range of each request for a file.
        cut_at: bytes after which answers break off, while `cuts` is more than 0.
        exchanged: files of which other bytes are sent than are published.
    """

    url: str = ""
    models: dict[tuple[str, str], dict[str, bytes]] = field(default_factory=dict)
    branches: dict[tuple[str, str], str] = field(default_factory=dict)
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)
    cut_at: int = 0
    cuts: int = 0
    exchanged: set[str] = field(default_factory=set)

    def publish(self, name: str, folder: Path | dict[str, bytes], branch: str = "main") -> str:
        """Makes a commit of files, and the branch of it; gives the commit."""
        files = folder
        if isinstance(folder, Path):
            files = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
        assert isinstance(files, dict)
        content = repr(sorted((file, hashlib.sha256(whole).digest()) for file, whole in files.items()))
        commit = hashlib.sha256(content.encode()).hexdigest()[:40]
        self.models[name, commit] = files
        self.branches[name, branch] = commit
        return commit

    def downloads(self) -> list[str]:
        """The files whose bytes were asked for."""
        return [path.rpartition("/")[2] for method, path, _ in self.requests if method == "GET"]

    def find(self, name: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        commit = self.branches.get((name, revision), revision)
        files = self.models.get((name, commit))
        return None if files is None else (commit, files)


@contextmanager
def local_hub() -> Iterator[LocalHub]:
    """Runs a hub until the end of the block."""
    hub = LocalHub()

    class Handler(_Handler):
        served = hub

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    served: LocalHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._file(with_body=False)

    def do_GET(self) -> None:
        if self.path.startswith("/api/models/"):
            name, _, revision = self.path.removeprefix("/api/models/").partition("?")[0].partition("/revision/")
            self._model(name, unquote(revision) or "main")
        else:
            self._file(with_body=True)

    def _model(self, name: str, revision: str) -> None:
        found = self.served.find(name, revision)
        if found is None:
            known = any(owner == name for owner, _ in self.served.models)
            self._answer(404, b"", {"X-Error-Code": "RevisionNotFound" if known else "RepoNotFound"})
            return
        commit, files = found
        told = {"_id": "1", "id": name, "modelId": name, "sha": commit, "private": False, "tags": [], "downloads": 0}
        content = {**told, "siblings": [{"rfilename": file} for file in sorted(files)]}
        self._answer(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def _file(self, *, with_body: bool) -> None:
        name, _, rest = self.path.lstrip("/").partition("/resolve/")
        revision, _, file = rest.partition("/")
        revision, file = unquote(revision), unquote(file)
        if rest:
            self.served.requests.append((self.command, unquote(self.path), self.headers.get("Range")))
        found = self.served.find(name, revision)
        if found is None or file not in found[1]:
            self._answer(404, b"", {"X-Error-Code": "RepoNotFound" if found is None else "EntryNotFound"})
            return
        commit, files = found
        whole = files[file]
        # The hub names large files after their content, and small ones as git does.
        is_large = not file.endswith((".json", ".txt"))
        tag = hashlib.sha256(whole).hexdigest() if is_large else hashlib.sha256(whole).hexdigest()[:40]
        if file in self.served.exchanged:
            whole = bytes(len(whole))
        first = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").partition("-")[0])
        headers = {"ETag": f'"{tag}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        if is_large:
            headers |= {"X-Linked-Etag": f'"{tag}"', "X-Linked-Size": str(len(whole))}
        if self.headers.get("Range"):
            headers["Content-Range"] = f"bytes {first}-{len(whole) - 1}/{len(whole)}"
        body = whole[first:]
        self.send_response(206 if self.headers.get("Range") else 200)
        for key, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        if not with_body:
            return
        if is_large and self.served.cuts > 0:
            self.served.cuts -= 1
            self.wfile.write(body[: self.served.cut_at])
            self.close_connection = True
            return
        self.wfile.write(body)

    def _answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(body)
