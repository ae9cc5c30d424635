"""http(s) for fsspec, within bounds: how many bytes, how slow, and to which host a server may send on.

A server is not trusted: a body without end, one that inflates a thousandfold, one that trickles, a redirect to a host
that nobody named and the credentials that would go there are all ended here. Used by storage.py alone.
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

from avssl.files.location import shown

MAX_UNTOLD_BYTES = 256 << 20  # of a body whose size nobody has told: it is held in memory
CONNECT_SECONDS, STALL_SECONDS = 15.0, 60.0
LEAST_BYTES_PER_SECOND = 4096  # on average, after the first STALL_SECONDS
MAX_REDIRECTS = 5
REDIRECTS, NO_HEAD = (301, 302, 303, 307, 308), (403, 405, 501)
HOSTS_VARIABLE = "AVSSL_REDIRECT_HOSTS"


class BadBodyError(ConnectionError):
    """More bytes came than there may be, or they cannot be inflated."""


class RedirectRefusedError(OSError):
    """The server sends on to a host that was not named."""


def allow_redirects(hosts: list[str]) -> None:
    """Let servers send on to these hosts, too: in this process and those that it starts."""
    known = dict.fromkeys([*os.environ.get(HOSTS_VARIABLE, "").split(","), *hosts])
    os.environ[HOSTS_VARIABLE] = ",".join(one for one in known if one)


def session_options() -> dict[str, Any]:
    """Of aiohttp's session: limits between two pieces of an answer (`_body` looks after the whole), no inflating there,
    and for what fsspec asks for itself (lists) the same bounds.
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
            self._body = await _body(self, MAX_UNTOLD_BYTES)
        return self._body


class WebFiles(HTTPFileSystem):
    """fsspec's file system with reading and looking up of our own."""

    async def _cat_file(
        self, url: str, start: int | None = None, end: int | None = None, most: int | None = None, **_: Any
    ) -> bytes:
        """The bytes start..end of a file; all of it if none are asked for or ranges are ignored.

        most: of all of it (default: MAX_UNTOLD_BYTES).
        """
        ranged = start is not None and end is not None
        headers = {"Range": f"bytes={start}-{end - 1}"} if ranged and end is not None else {}
        async with self._answer("GET", url, headers) as answer:
            is_part = answer.status == 206 and end is not None
            return await _body(answer, end - (start or 0) if is_part and end is not None else most or MAX_UNTOLD_BYTES)

    async def _info(self, url: str, **_: Any) -> dict[str, Any]:
        """Size (None if it is not told) and date, without reading the file."""
        async with self._answer("HEAD", url, {}, keep=NO_HEAD) as answer:
            if answer.status not in NO_HEAD:
                return _facts(url, answer)
        async with self._answer("GET", url, {}) as answer:
            return _facts(url, answer)

    @asynccontextmanager
    async def _answer(
        self, method: str, url: str, headers: dict[str, str], keep: tuple[int, ...] = ()
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """The answer of the last server of a chain of redirects. What fsspec was configured with (headers, users,
        cookies) goes to the first one alone. keep: statuses that are no error.
        """
        home = here = URL(self.encode_url(url))
        async with AsyncExitStack() as stack:
            for _ in range(MAX_REDIRECTS + 1):
                options: dict[str, Any] = dict(self.kwargs) if here.origin() == home.origin() else {}
                asked = {**options.pop("headers", {}), **headers, "Accept-Encoding": "identity"}
                session = await self.set_session() if here.origin() == home.origin() else await _bare(stack)
                options |= {"headers": asked, "allow_redirects": False}
                answer = await stack.enter_async_context(session.request(method, here, **options))
                if answer.status not in REDIRECTS or "Location" not in answer.headers:
                    if answer.status not in keep:
                        answer.raise_for_status()
                    yield answer
                    return
                there = here.join(URL(answer.headers["Location"]))
                _check_redirect(here, there)
                here = there.with_user(None) if there.user and there.origin() != home.origin() else there
            raise RedirectRefusedError(f"the server sends on more than {MAX_REDIRECTS} times")


async def _bare(stack: AsyncExitStack) -> aiohttp.ClientSession:
    session = aiohttp.ClientSession(**session_options())
    return await stack.enter_async_context(session)


def _check_redirect(here: URL, there: URL, *, may_leave: bool = True) -> None:
    """OSError unless it is the same server, the same host by https, or (if it may) a host that was named."""
    if there.scheme not in ("http", "https") or (here.scheme, there.scheme) == ("https", "http"):
        raise RedirectRefusedError(f"the server sends on to {shown(str(there))}, which is not followed")
    is_same = here.origin() == there.origin()
    is_safer = here.host == there.host and here.is_default_port() and there.is_default_port()
    if not (is_same or is_safer or (may_leave and there.host in os.environ.get(HOSTS_VARIABLE, "").split(","))):
        raise RedirectRefusedError(
            f"the server sends on to another host, {there.host}; if that is meant, allow it: data.redirect_hosts="
            f"[{there.host}], for data_prep --redirect-host {there.host}, or {HOSTS_VARIABLE}={there.host} in the "
            "environment"
        )


def _facts(url: str, answer: aiohttp.ClientResponse) -> dict[str, Any]:
    encoded = answer.headers.get("Content-Encoding", "identity") != "identity"
    told = None if encoded else answer.content_length
    dates = {name: answer.headers[name] for name in ("ETag", "Last-Modified") if name in answer.headers}
    return {"name": url, "size": told, "type": "file", **dates}


async def _body(answer: aiohttp.ClientResponse, most: int) -> bytes:
    """All of it. BadBodyError for more than `most` bytes, inflated ones counted; TimeoutError for one that trickles."""
    began, received, pieces = time.monotonic(), 0, []
    encoding = answer.headers.get("Content-Encoding", "identity").lower()
    if encoding not in ("identity", "gzip", "x-gzip", "deflate"):
        raise OSError(f"the server answers in the encoding {encoding!r}, although none was asked for")
    inflating = None if encoding == "identity" else zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)
    try:
        async for part in answer.content.iter_any():
            try:
                piece = part if inflating is None else inflating.decompress(part, most - received + 1)
            except zlib.error as error:
                raise BadBodyError(f"its {encoding} is damaged ({error})") from error
            received += len(piece)
            if received > most:
                raise BadBodyError(f"more than {most} bytes came; there may not be more")
            if time.monotonic() - began > STALL_SECONDS + received / LEAST_BYTES_PER_SECOND:
                raise TimeoutError(f"{received} bytes came in {time.monotonic() - began:.0f} s: too slow to go on")
            pieces.append(piece)
    except aiohttp.ClientPayloadError as error:  # what raised it has the status 400, which the server never sent
        raise BadBodyError(str(error)) from None
    return b"".join(pieces)
