"""Retries of actions on a remote store: which failures are transient, how long to wait, and the final error.

The HTTP status and the standard type of an exception decide, so that no library has to be installed. Pure Python.
"""

from __future__ import annotations

import errno
import secrets
import time
from collections.abc import Callable, Iterator
from typing import Literal, TypeVar

from avssl.files.location import redacted
from avssl.types import MediaError

T = TypeVar("T")
Kind = Literal["transient", "missing", "refused", "other"]

MAX_TRIES = 5
# Doubled from try to try, half of it random: processes that failed together try again at different times.
FIRST_WAIT_SECONDS = 0.5
LONGEST_WAIT_SECONDS = 8.0

KIND_OF_STATUS: dict[int, Kind] = {
    401: "refused", 403: "refused", 404: "missing", 408: "transient",
    410: "missing", 425: "transient", 429: "transient",
}  # fmt: skip
TRANSIENT_ERRNOS = {
    getattr(errno, name)
    for name in ("EBUSY", "EIO", "EREMOTEIO", "ETIMEDOUT", "ENETUNREACH", "EHOSTUNREACH", "ENETDOWN", "EAGAIN")
    if hasattr(errno, name)
}


def kind_of(error: BaseException) -> Kind:
    """The kind of a failure: transient (worth another try), no such object, no access, or something else."""
    for cause in _chain(error):  # fsspec raises FileNotFoundError for failures of other kinds, too
        if (status := _status(cause)) is not None and status >= 400:
            return KIND_OF_STATUS.get(status, "transient" if status >= 500 else "other")
    if isinstance(error, FileNotFoundError | PermissionError):
        return "missing" if isinstance(error, FileNotFoundError) else "refused"
    is_transient = (
        isinstance(error, TimeoutError | ConnectionError) or getattr(error, "errno", None) in TRANSIENT_ERRNOS
    )
    # What a library raises without a status is mostly a failure of the connection, and costs some seconds if it is not.
    return "transient" if is_transient or (_is_of_library(error) and not isinstance(error, ValueError)) else "other"


def _is_of_library(error: BaseException) -> bool:
    return type(error).__module__.partition(".")[0] not in ("builtins", "avssl")


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _status(error: BaseException) -> int | None:
    """The HTTP status of an exception, wherever its library stores it; None without one."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):
        status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    else:
        status = (
            getattr(response, "status_code", None) or getattr(error, "status", None) or getattr(error, "code", None)
        )
    return int(status) if isinstance(status, int) or (isinstance(status, str) and status.isdigit()) else None


def wait_seconds(num_failures: int) -> float:
    """Seconds to wait after so many (at least 1) failures in a row. Uses no random generator that a run seeds."""
    longest = min(LONGEST_WAIT_SECONDS, FIRST_WAIT_SECONDS * 2.0 ** (num_failures - 1))
    return longest * (0.5 + 0.5 * secrets.randbelow(1000) / 1000)


def with_retries(action: Callable[[], T], location: str, doing: str) -> T:
    """The result of `action`, which is called at most MAX_TRIES times while its failures are transient.

    Args:
        action: a function that may be called several times.
        location, doing: for the message, like "s3://bucket/name", "read".

    Raises:
        FileNotFoundError: there is no such object. PermissionError: no access. ConnectionError: all tries failed.
        OSError: another failure of the store. Errors of the program are raised unchanged.
    """
    for num_failures in range(1, MAX_TRIES + 1):
        try:
            return action()
        except Exception as error:
            kind = kind_of(error)
            if kind != "transient" or num_failures == MAX_TRIES:
                raise _explained(error, kind, location, doing) from error
        time.sleep(wait_seconds(num_failures))
    raise AssertionError("unreachable")


def _explained(error: Exception, kind: Kind, location: str, doing: str) -> Exception:
    where = redacted(location)
    root = list(_chain(error))[-1]
    cause = redacted(f"{type(root).__name__}: {root}").rstrip(": ")
    if kind == "missing":
        return FileNotFoundError(f"{where}: there is no such file or folder ({cause}); check the name")
    if kind == "refused":
        return PermissionError(
            f"{where}: may not be {doing}, access is refused ({cause}); check the credentials of this machine and the "
            "rights of their owner"
        )
    if kind == "transient":
        return ConnectionError(
            f"{where}: could not be {doing} in {MAX_TRIES} tries, the last one failed with {cause}; check the network, "
            "the server and the credentials of this machine, then run the same command again"
        )
    if isinstance(error, OSError) or _is_of_library(error):
        return OSError(f"{where}: could not be {doing} ({cause})")
    return error


def as_media_error(error: OSError) -> MediaError:
    """The same failure as a MediaError with the reason missing_file or unreachable."""
    return MediaError("missing_file" if isinstance(error, FileNotFoundError) else "unreachable", str(error))
