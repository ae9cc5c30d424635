"""A hub on loopback with one data set repository: as much of its protocol as huggingface_hub asks for when it reads."""

import json
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import unquote

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
