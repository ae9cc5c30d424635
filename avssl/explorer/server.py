"""The server of the explorer: a token for every request, bounded uploads, and of all files only the clips it made.

Starlette and Uvicorn are an extra. Requests name clips by the numbers that this program gave them, and rows by key or
number; no part of a request becomes a path.
"""

from __future__ import annotations

import asyncio
import secrets
import socket
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from avssl.explorer.question import CLIPS_ADDRESS, Asked, UploadLimits, address
from avssl.files.plain_text import brief

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

MOST_CONNECTIONS = 64
MOST_WAITING_UPLOADS = 4  # together with the one that is embedded
MOST_PAGES = 2  # that are made at once; others wait
UPLOAD_SECONDS = 600.0  # for a browser to send a file
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",  # the first address holds the token
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}
MIME_TYPES = {".mp4": "video/mp4", ".m4a": "audio/mp4", ".jpg": "image/jpeg"}
MISSING = 'the explorer needs an extra: pip install "avssl[explore]"'


def check_installed() -> None:
    """ValueError that names the extra, unless its packages are there."""
    try:
        import starlette
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise ValueError(f"{MISSING} ({error})") from error
    del starlette


class Service:
    """The requests of one explorer.

    Args:
        token: that every request must have. folder: for uploads. limits, suffixes: of uploads.
        pages: {name: value} of an address -> (page, status). take: (identifier, name, path) embeds an upload.
        clip_path: name -> the file of a clip, None for every other name.
    """

    def __init__(
        self,
        token: str,
        folder: Path,
        limits: UploadLimits,
        suffixes: frozenset[str],
        *,
        pages: Callable[[dict[str, str]], tuple[str, int]],
        take: Callable[[str, str, Path], None],
        clip_path: Callable[[str], Path | None],
    ) -> None:
        self.token, self.folder, self.limits, self.suffixes = token, folder, limits, suffixes
        self.pages, self.take, self.clip_path = pages, take, clip_path
        self.cookie = f"avssl_explore_{secrets.token_hex(4)}"  # of this server: cookies do not tell ports apart
        self._making = ThreadPoolExecutor(MOST_PAGES, "page")
        self._embedding = ThreadPoolExecutor(1, "upload")
        self._num_uploads = 0

    def app(self) -> Any:
        """The ASGI application."""
        from starlette.applications import Starlette
        from starlette.middleware import Middleware
        from starlette.middleware.base import BaseHTTPMiddleware
        from starlette.routing import Route

        routes = [
            Route("/", self.page, methods=["GET"]),
            Route(CLIPS_ADDRESS + "{name}", self.media, methods=["GET"]),
            Route("/upload", self.upload, methods=["POST"]),
        ]
        return Starlette(routes=routes, middleware=[Middleware(BaseHTTPMiddleware, dispatch=self.guarded)])

    def close(self) -> None:
        """Let no request wait any longer."""
        for pool in (self._making, self._embedding):
            pool.shutdown(wait=False, cancel_futures=True)

    async def guarded(self, request: Request, call: Callable[[Request], Awaitable[Response]]) -> Response:
        """Only requests with the token; it comes with the first address and is a cookie from then on."""
        from starlette.responses import PlainTextResponse, RedirectResponse

        given = request.query_params.get("token", "")
        response: Response
        if given and request.method == "GET" and request.url.path == "/" and self._is_token(given):
            response = RedirectResponse("/", status_code=303)
            response.set_cookie(self.cookie, self.token, httponly=True, samesite="strict", path="/")
        elif not self._is_token(request.cookies.get(self.cookie, "")):
            text = "The token is missing or wrong: open the address that `avssl explore` has printed.\n"
            response = PlainTextResponse(text, status_code=403)
        elif request.headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
            response = PlainTextResponse("Another site may not ask.\n", status_code=403)
        else:
            response = await call(request)
        response.headers.update(HEADERS)
        response.headers.setdefault("Cache-Control", "no-store")
        return response

    def _is_token(self, given: str) -> bool:
        return secrets.compare_digest(given.encode("utf-8", "surrogatepass"), self.token.encode())

    async def page(self, request: Request) -> Response:
        """The page of what the address asks for."""
        from starlette.responses import HTMLResponse

        loop = asyncio.get_running_loop()
        text, status = await loop.run_in_executor(self._making, self.pages, dict(request.query_params))
        return HTMLResponse(text.encode("utf-8", "backslashreplace"), status)

    async def media(self, request: Request) -> Response:
        """A clip that was made here, whole or a range of its bytes."""
        from starlette.responses import FileResponse, PlainTextResponse

        path = self.clip_path(request.path_params["name"])
        if path is None:
            return PlainTextResponse("There is no such clip.\n", status_code=404)
        return FileResponse(path, media_type=MIME_TYPES[path.suffix], headers={"Cache-Control": "private, no-store"})

    async def upload(self, request: Request) -> Response:
        """Take the file that is the body of the request; {"address": of its page} or {"error": why not}."""
        from starlette.requests import ClientDisconnect
        from starlette.responses import JSONResponse, Response

        if self._num_uploads >= MOST_WAITING_UPLOADS:
            return JSONResponse({"error": "too many files are being read; try again in a moment"}, 503)
        self._num_uploads += 1
        path: Path | None = None
        try:
            name = Path(request.query_params.get("name", "")).name or "upload"
            identifier = secrets.token_hex(8)
            path = self.folder / f"upload{identifier}{self._suffix_of(name)}"
            async with asyncio.timeout(UPLOAD_SECONDS):
                await self._receive(request, path)
            loop = asyncio.get_running_loop()
            await loop.run_in_executor(self._embedding, self.take, identifier, name, path)
            path = None  # it belongs to the explorer now
            return JSONResponse({"address": address(Asked(upload=identifier))})
        except ClientDisconnect:  # the page was left or loaded again: nobody reads an answer
            return Response(status_code=400)
        except (ValueError, OSError) as error:
            text, status = _refusal(error)
            return JSONResponse({"error": text}, status)
        finally:
            self._num_uploads -= 1
            if path is not None:
                path.unlink(missing_ok=True)

    def _suffix_of(self, name: str) -> str:
        """The suffix of an upload, one of those that the folder's modalities can have: a list of paths is none."""
        suffix, allowed = Path(name).suffix.lower(), self.suffixes
        if suffix not in allowed:
            raise ValueError(f"{brief(name)} is not taken; its name must end with one of {' '.join(sorted(allowed))}")
        return suffix

    async def _receive(self, request: Request, path: Path) -> None:
        """Write the body of a request to a file, at most as many bytes as an upload may have."""
        most = self.limits.num_bytes
        too_large = TooLargeError(f"the file is larger than {most / 2**20:g} MiB (--upload-mib)")
        stated = request.headers.get("content-length", "")
        if stated.isdigit() and int(stated) > most:
            raise too_large
        size = 0
        with path.open("xb") as file:
            async for block in request.stream():
                size += len(block)
                if size > most:
                    raise too_large
                file.write(block)
        if not size:
            raise ValueError("the file is empty")


def _refusal(error: ValueError | OSError) -> tuple[str, int]:
    """(why an upload was not taken, the status)."""
    if isinstance(error, TimeoutError):
        return f"the file did not arrive within {UPLOAD_SECONDS:g} s", 408
    if isinstance(error, OSError):  # its own text would name a path of this machine
        why = error.strerror or type(error).__name__
        return f"the explorer could not store the file ({why}); free space in its temporary folder, then try again", 507
    return str(error), 413 if isinstance(error, TooLargeError) else 400


class TooLargeError(ValueError):
    """An upload has more bytes than it may have."""


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens; port 0 is a free one. OSError names the address."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=MOST_CONNECTIONS)
    except OSError as error:
        raise OSError(
            f"cannot listen at {host} port {port}: {error.strerror or error}; --port 0 takes a free one"
        ) from error


def serve(service: Service, listening: socket.socket) -> None:
    """Answer requests until the program is interrupted or terminated."""
    import uvicorn

    config = uvicorn.Config(
        service.app(),
        log_level="warning",
        access_log=False,  # addresses hold the token
        server_header=False,
        lifespan="off",
        limit_concurrency=MOST_CONNECTIONS,
        timeout_keep_alive=5,
        timeout_graceful_shutdown=2,
        h11_max_incomplete_event_size=16_384,
    )
    try:
        uvicorn.Server(config).run(sockets=[listening])
    finally:
        service.close()
        listening.close()
