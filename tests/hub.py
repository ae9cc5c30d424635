"""Hubs on loopback, a data set or models: as much of the protocol as huggingface_hub asks for when it reads."""

import hashlib
import json
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import unquote

import pytest

COMMIT = "0" * 40


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments):
        pass

    def do_HEAD(self):
        self.do_GET()

    def do_POST(self):
        wanted = self.rfile.read(int(self.headers["Content-Length"])).decode()
        paths = json.loads(wanted)["paths"] if wanted.startswith("{") else [
            unquote(pair.partition("=")[2].replace("+", " ")) for pair in wanted.split("&") if pair.startswith("paths")
        ]  # fmt: skip
        self._json([entry for entry in self._entries("") if entry["path"] in paths])

    def do_GET(self):
        path = unquote(self.path.partition("?")[0])
        self.server.asked.append((self.command, path, self.headers.get("Range")))
        api, resolve = f"/api/datasets/{self.server.repository}", f"/datasets/{self.server.repository}/resolve/main/"
        if path in (api, f"{api}/revision/main"):
            self._json({"id": self.server.repository, "sha": COMMIT, "private": False, "tags": [], "siblings": []})
        elif path.startswith(f"{api}/tree/main"):
            self._json(self._entries(path.removeprefix(f"{api}/tree/main").strip("/")))
        elif path.startswith(resolve) and path.removeprefix(resolve) in self.server.files:
            content = self.server.files[path.removeprefix(resolve)]
            first, last = self.headers.get("Range", "bytes=0-").removeprefix("bytes=").split("-")
            part = content[int(first) : int(last or len(content)) + 1]
            self._answer(206 if "Range" in self.headers else 200, part, "application/octet-stream")
        else:
            self._answer(404, b"{}", "application/json")

    def _entries(self, below):
        """The files and folders below a folder, as the API lists them."""
        names = self.server.files
        folders = {name.rsplit("/", depth)[0] for name in names for depth in range(1, name.count("/") + 1)}
        found = [
            {"type": "file", "oid": "1" * 40, "size": len(content), "path": name} for name, content in names.items()
        ]
        found += [{"type": "directory", "oid": "2" * 40, "size": 0, "path": name} for name in folders]
        prefix = f"{below}/" if below else ""
        return sorted((entry for entry in found if entry["path"].startswith(prefix)), key=lambda entry: entry["path"])

    def _json(self, value):
        self._answer(200, json.dumps(value).encode(), "application/json")

    def _answer(self, status, content, kind):
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


@contextmanager
def hub_server(repository, files):
    """A hub with a repository of files {path: bytes}; gives (its URL, what it was asked: (method, path, range))."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as server:
        server.repository, server.files, server.asked = repository, files, []
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", server.asked
        server.shutdown()


class _Models(BaseHTTPRequestHandler):
    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def answer(self, body):
        parts = self.path.partition("?")[0].strip("/").split("/")
        self.server.requests.append("/".join(parts))
        is_api = parts[:2] == ["api", "models"]
        owner_name = "/".join(parts[2:4] if is_api else parts[:2])
        kind, revision, *rest = parts[4:] if is_api else parts[2:]
        found = self.server.repositories.get(owner_name, {}).get(revision)
        if found is None:
            self.send_response(404)
            code = "RevisionNotFound" if owner_name in self.server.repositories else "RepoNotFound"
            self.send_header("X-Error-Code", code)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        commit, folder = found
        names = sorted(item.name for item in folder.iterdir())
        if kind == "tree":
            self.reply(json.dumps([{"type": "file", "path": n, "size": 1, "oid": "0" * 40} for n in names]), body)
        elif kind == "revision":
            files = [{"rfilename": name} for name in names]
            self.reply(json.dumps({"id": owner_name, "sha": commit, "siblings": files}), body)
        else:
            content = (folder / rest[0]).read_bytes()
            etag = hashlib.sha256(content).hexdigest()
            self.reply(content, body, **{"ETag": f'"{etag}"', "X-Repo-Commit": commit})

    def reply(self, content, body, **headers):
        content = content.encode() if isinstance(content, str) else content
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, *arguments):
        """Quiet."""


@contextmanager
def model_hub(monkeypatch, cache):
    """A hub that the real client of this process downloads models from, into a folder; `repositories` are to be filled.

    repositories: {"owner/name": {revision or commit: (commit, folder)}}. requests: the paths that were asked for.
    """
    huggingface_hub = pytest.importorskip("huggingface_hub")
    real = huggingface_hub.snapshot_download
    with ThreadingHTTPServer(("127.0.0.1", 0), _Models) as server:
        server.repositories, server.requests = {}, []
        Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"

        def on_loopback(*arguments, **options):
            return real(*arguments, endpoint=address, cache_dir=cache, token=False, **options)

        monkeypatch.setattr(huggingface_hub, "snapshot_download", on_loopback)
        yield server
        server.shutdown()
