"""Servers on loopback for the tests of remote files: S3 (moto), and a web server that misbehaves as it is told."""

import logging
import os
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from unittest import mock

import fsspec

from avssl.files import storage

S3_ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "nobody",
    "AWS_SECRET_ACCESS_KEY": "nothing",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
}


def forget_connections():
    """The next use of a protocol reads its settings anew."""
    storage._file_systems.clear()
    for protocol in ("s3", "http"):
        fsspec.get_filesystem_class(protocol).clear_instance_cache()


@contextmanager
def s3_server():
    """An S3 server with one bucket; gives its environment. This process uses it meanwhile."""
    import boto3
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    environment = S3_ENVIRONMENT | {"AWS_ENDPOINT_URL": f"http://{host}:{port}"}
    with mock.patch.dict(os.environ, environment):
        boto3.client("s3").create_bucket(Bucket="bucket")
        forget_connections()
        yield environment
        forget_connections()
    server.stop()


@dataclass
class Web:
    """Files that a web server gives, and how it fails. Counts what it did."""

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    dates: dict[str, str] = field(default_factory=dict)
    honours_ranges: bool = True
    fail_status: int = 503
    num_failures: int = 0  # requests still to be answered with fail_status
    num_drops: int = 0  # bodies still to be cut off, the connection closed
    drop_after_bytes: int = 0
    after_get: object = None  # called with the number of GETs so far
    redirects: dict[str, str] = field(default_factory=dict)  # name -> where it is sent on to
    bodies: dict[str, object] = field(default_factory=dict)  # name -> (headers, pieces), told no length; HEAD too
    headers: list = field(default_factory=list)  # of each request
    requests: list = field(default_factory=list)  # (method, name, range)
    bytes_sent: int = 0

    def gets(self, name):
        """The ranges that were asked for of a file."""
        return [asked for method, one, asked in self.requests if (method, one) == ("GET", name)]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        web, name = self.server.web, self.path.lstrip("/").partition("?")[0]
        asked = self.headers.get("Range")
        web.requests.append((self.command, name, asked))
        web.headers.append(dict(self.headers))
        if name in web.redirects:
            self._answer(302, b"", {"Location": web.redirects[name]})
            return
        if name in web.bodies:
            self._endless(*web.bodies[name])
            return
        if web.num_failures or name not in web.files:
            status = web.fail_status if web.num_failures else 404
            web.num_failures -= bool(web.num_failures)
            self._answer(status, b"")
            return
        content, status = web.files[name], 200
        headers = {"Last-Modified": web.dates.get(name, "Thu, 01 Jan 2026 00:00:00 GMT")}
        if asked and web.honours_ranges:
            first, _, last = asked.removeprefix("bytes=").partition("-")
            if int(first) >= len(content):
                self._answer(416, b"")
                return
            headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
            content, status = content[int(first) : int(last or len(content)) + 1], 206
        self._answer(status, content, headers)
        if web.after_get and self.command == "GET":
            web.after_get(sum(method == "GET" for method, _, _ in web.requests))

    def _answer(self, status, content, headers=()):
        web = self.server.web
        self.send_response(status)
        for name, value in dict(headers).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if content and web.num_drops:
            web.num_drops -= 1
            content = content[: web.drop_after_bytes]
            self.close_connection = True
        self.wfile.write(content)
        web.bytes_sent += len(content)

    def _endless(self, headers, pieces):
        self.send_response(200)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        for piece in pieces() if self.command == "GET" else ():
            self.wfile.write(piece)
            self.server.web.bytes_sent += len(piece)

    def log_message(self, *arguments):
        pass


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, client_address):
        """A client that closed its connection early is what some tests are about."""


@contextmanager
def web_server():
    """A Web that is being served."""
    server = _Server(("127.0.0.1", 0), _Handler)
    server.web = Web(url=f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server.web
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
