"""The only user of fsspec: a file system a protocol, what is done with it tried again, objects read by ranges."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from avssl.files.location import READ_ONLY, REMOTE, protocol_of
from avssl.files.retry import persistently

BLOCK_BYTES = 8 << 20

_file_systems: dict[tuple[int, str], Any] = {}


class WrongLength(ConnectionError):
    """Another number of bytes came than was asked for."""


def remotely(location: str, doing: str, action: Callable[[Any], Any]) -> Any:
    """action(the file system of a location), tried again while it fails in passing. Raises as `persistently`."""

    def attempt() -> Any:
        files = _file_system(protocol_of(location))
        if doing in ("looked up", "listed"):
            files.dircache.clear()  # huggingface_hub keeps lists although it is told not to
        try:
            return action(files)
        except FileNotFoundError:
            if not len(files.dircache):
                raise
            files.dircache.clear()  # it may be newer than the list
            return action(files)

    return persistently(attempt, location, doing)


def blocks(location: str, begin: int, end: int, num_bytes: int) -> Iterator[bytes]:
    """The bytes begin..end of an object of num_bytes in order. A drop costs at most BLOCK_BYTES."""
    while begin < end:
        stop = min(begin + BLOCK_BYTES, end)
        content = remotely(location, "read", partial(_range, location, begin, stop, num_bytes))
        if len(content) == num_bytes > stop - begin:  # the server ignores ranges, and this is everything
            yield content[begin:end]
            return
        yield content
        begin = stop


def _range(location: str, begin: int, end: int, num_bytes: int, files: Any) -> bytes:
    """The bytes begin..end, or all num_bytes if the server ignores ranges. WrongLength if it is neither."""
    options: dict[str, Any] = (
        {"cache_type": "none"} if protocol_of(location) == "hf" else {}
    )  # it would read ahead, for nothing
    if protocol_of(location) in READ_ONLY:
        options = {"most": num_bytes}
    content = bytes(files.cat_file(location, start=begin, end=end, **options))
    if len(content) not in (end - begin, num_bytes):
        raise WrongLength(f"{len(content)} bytes came instead of {end - begin}, from byte {begin} of {num_bytes}")
    return content


def _file_system(protocol: str) -> Any:
    """One a protocol and process: a forked process makes its own connections. Lists of folders are not cached."""
    key = (os.getpid(), protocol)
    if key not in _file_systems:
        package, extra = REMOTE[protocol]
        try:
            import fsspec

            options = _options(protocol, fsspec.config.conf.get(protocol, {}))
            made = _web_files() if protocol in READ_ONLY else partial(fsspec.filesystem, protocol)
            _file_systems[key] = made(use_listings_cache=False, **options)
        except ImportError as error:
            raise ValueError(
                f"{protocol}:// needs the package {package}, which is missing ({error}); install it with "
                f"`pip install 'avssl[{extra}]'`"
            ) from error
    return _file_systems[key]


def _web_files() -> Callable[..., Any]:
    from avssl.files.web_files import WebFiles

    return WebFiles


def _options(protocol: str, given: dict[str, Any]) -> dict[str, Any]:
    """Limits of our own where fsspec's configuration says nothing of them."""
    if protocol in READ_ONLY:
        from avssl.files.web_files import session_options

        own = session_options()
        asked = given.get("client_kwargs", {})
        own |= {**asked, "headers": {**own["headers"], **asked.get("headers", {})}}
        return {**given, "client_kwargs": own, "skip_instance_cache": True}
    if protocol == "s3" and "config_kwargs" not in given and "AWS_MAX_ATTEMPTS" not in os.environ:
        return {"config_kwargs": {"retries": {"total_max_attempts": 1}}}  # s3fs and persistently try again already
    return {}
