"""http(s) for fsspec, with bounds on the size and the speed of an answer and on the hosts of redirects.

Servers are not trusted. Refused are a body without end, one that inflates a thousandfold, one that comes too slowly,
and a redirect to a host that was not named; credentials are sent to no other host. Used by storage.py alone.
"""

from __future__ import annotations

import os
import time
import zlib
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import aiohttp
from fsspec.implementations.http import HTTPFileSystem
from yarl import URL

from avssl.files.location import redacted

MAX_UNSTATED_BYTES = 256 << 20  # of a body of unknown size, which is held in memory
CONNECT_SECONDS, STALL_SECONDS = 15.0, 60.0
LEAST_BYTES_PER_SECOND = 4096  # on average, after the first STALL_SECONDS
MAX_REDIRECTS = 5
REDIRECTS, NO_HEAD = (301, 302, 303, 307, 308), (403, 405, 501)
HOSTS_VARIABLE = "AVSSL_REDIRECT_HOSTS"


class BadBodyError(ConnectionError):
    """A body with more bytes than allowed, one that cannot be inflated, or one that was cut off."""


class RedirectRefusedError(OSError):
    """A redirect to a host that was not named."""


def allow_redirects(hosts: list[str]) -> None:
    """Follow redirects to these hosts, too, in this process and those that it starts."""
    allowed = dict.fromkeys([*os.environ.get(HOSTS_VARIABLE, "").split(","), *hosts])
    os.environ[HOSTS_VARIABLE] = ",".join(filter(None, allowed))


def session_options() -> dict[str, Any]:
    """The options of aiohttp's session: a time limit between two chunks of an answer, and no inflating.

    Requests of fsspec itself (lists of folders) get the bounds of `_body` and of redirects, too.
    """
    trace = aiohttp.TraceConfig()
    trace.on_request_redirect.append(_on_redirect)
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=STALL_SECONDS)
    return {
        "timeout": timeout,
        "auto_decompress": False,
        "headers": {"Accept-Encoding": "identity"},
        "response_class": _BoundedResponse,
        "trace_configs": [trace],
    }


async def _on_redirect(_session: Any, _context: Any, seen: aiohttp.TraceRequestRedirectParams) -> None:
    _check_redirect(seen.url, seen.url.join(URL(seen.response.headers.get("Location", ""))), may_leave=False)


class _BoundedResponse(aiohttp.ClientResponse):
    async def read(self) -> bytes:
        if self._body is None:
            self._body = await _body(self, MAX_UNSTATED_BYTES)
        return self._body


class WebFiles(HTTPFileSystem):
    """fsspec's file system with bounded reading and looking up."""

    async def _cat_file(
        self, url: str, start: int | None = None, end: int | None = None, most: int | None = None, **_: Any
    ) -> bytes:
        """The bytes start..end of a file; the whole file without a range, or if the server ignores ranges.

        most: allowed bytes of the whole file (default: MAX_UNSTATED_BYTES).
        """
        ranged = start is not None and end is not None
        headers = {"Range": f"bytes={start}-{end - 1}"} if ranged and end is not None else {}
        async with self._answer("GET", url, headers) as answer:
            is_part = answer.status == 206 and end is not None
            return await _body(
                answer, end - (start or 0) if is_part and end is not None else most or MAX_UNSTATED_BYTES
            )

    async def _info(self, url: str, **_: Any) -> dict[str, Any]:
        """Size (None if the server does not tell it) and date, without reading the file."""
        async with self._answer("HEAD", url, {}, keep=NO_HEAD) as answer:
            if answer.status not in NO_HEAD:
                return _facts(url, answer)
        async with self._answer("GET", url, {}) as answer:
            return _facts(url, answer)

    @asynccontextmanager
    async def _answer(
        self, method: str, url: str, headers: dict[str, str], keep: tuple[int, ...] = ()
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """The answer of the last server of a chain of redirects. keep: statuses that are no error.

        The headers, users and cookies of fsspec's configuration are sent to the first server alone.
        """
        home = current = URL(self.encode_url(url))
        async with AsyncExitStack() as stack:
            for _ in range(MAX_REDIRECTS + 1):
                options: dict[str, Any] = dict(self.kwargs) if current.origin() == home.origin() else {}
                merged = {**options.pop("headers", {}), **headers, "Accept-Encoding": "identity"}
                session = (
                    await self.set_session()
                    if current.origin() == home.origin()
                    else await _session_without_credentials(stack)
                )
                options |= {"headers": merged, "allow_redirects": False}
                answer = await stack.enter_async_context(session.request(method, current, **options))
                if answer.status not in REDIRECTS or "Location" not in answer.headers:
                    if answer.status not in keep:
                        answer.raise_for_status()
                    yield answer
                    return
                target = current.join(URL(answer.headers["Location"]))
                _check_redirect(current, target)
                current = target.with_user(None) if target.user and target.origin() != home.origin() else target
            raise RedirectRefusedError(f"the server sends on more than {MAX_REDIRECTS} times")


async def _session_without_credentials(stack: AsyncExitStack) -> aiohttp.ClientSession:
    session = aiohttp.ClientSession(**session_options())
    return await stack.enter_async_context(session)


def _check_redirect(source: URL, target: URL, *, may_leave: bool = True) -> None:
    """Raise OSError unless the target is the same server, the same host by https, or (may_leave) a named host."""
    if target.scheme not in ("http", "https") or (source.scheme, target.scheme) == ("https", "http"):
        raise RedirectRefusedError(f"the server sends on to {redacted(str(target))}, which is not followed")
    is_same = source.origin() == target.origin()
    is_safer = source.host == target.host and source.is_default_port() and target.is_default_port()
    if not (is_same or is_safer or (may_leave and target.host in os.environ.get(HOSTS_VARIABLE, "").split(","))):
        raise RedirectRefusedError(
            f"the server sends on to another host, {target.host}; if that is meant, allow it: data.redirect_hosts="
            f"[{target.host}], for data_prep --redirect-host {target.host}, or {HOSTS_VARIABLE}={target.host} in the "
            "environment"
        )


def _facts(url: str, answer: aiohttp.ClientResponse) -> dict[str, Any]:
    encoded = answer.headers.get("Content-Encoding", "identity") != "identity"
    size = None if encoded else answer.content_length
    dates = {name: answer.headers[name] for name in ("ETag", "Last-Modified") if name in answer.headers}
    return {"name": url, "size": size, "type": "file", **dates}


async def _body(answer: aiohttp.ClientResponse, most: int) -> bytes:
    """The whole body. BadBodyError for more than `most` bytes after inflating; TimeoutError if it comes too slowly."""
    began, received, chunks = time.monotonic(), 0, []
    encoding = answer.headers.get("Content-Encoding", "identity").lower()
    if encoding not in ("identity", "gzip", "x-gzip", "deflate"):
        raise OSError(f"the server answers in the encoding {encoding!r}, although none was asked for")
    inflating = None if encoding == "identity" else zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)
    try:
        async for raw in answer.content.iter_any():
            try:
                content = raw if inflating is None else inflating.decompress(raw, most - received + 1)
            except zlib.error as error:
                raise BadBodyError(f"its {encoding} is damaged ({error})") from error
            received += len(content)
            if received > most:
                raise BadBodyError(f"more than {most} bytes came; there may not be more")
            if time.monotonic() - began > STALL_SECONDS + received / LEAST_BYTES_PER_SECOND:
                raise TimeoutError(f"{received} bytes came in {time.monotonic() - began:.0f} s: too slow to go on")
            chunks.append(content)
    except aiohttp.ClientPayloadError as error:  # its cause has the status 400, which the server never sent
        raise BadBodyError(str(error)) from None
    return b"".join(chunks)
