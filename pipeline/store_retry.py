"""Trying again: which errors of an object store may pass, how long to wait, and what the rest mean.

Waiting grows exponentially with full jitter (Brooker, "Exponential Backoff and Jitter", AWS Architecture Blog 2015):
many workers that were refused together do not come back together.
"""

from __future__ import annotations

import errno
import logging
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from panoptile.pipeline.redaction import redacted
from panoptile.pipeline.store import StoreUnreachable

T = TypeVar("T")

_log = logging.getLogger(__name__)

TRANSIENT_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504, 509})
"""HTTP answers that another try may change."""
CONFLICT_STATUS = frozenset({409, 412})
"""HTTP answers to a conditional write where something is there already."""

WRITES = ("write", "upload")
"""What is done to a key that need not be there: where nothing is found, it is the bucket that is missing."""

_TRANSIENT_ERRNO = frozenset(
    {errno.ETIMEDOUT, errno.ECONNRESET, errno.ECONNREFUSED, errno.ECONNABORTED, errno.EPIPE, errno.EBUSY}
    | {errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EAGAIN}
)
_TRANSIENT_NAMES = frozenset(
    {
        *("HTTPClientError", "ConnectionError", "ConnectTimeoutError", "ReadTimeoutError"),
        *("EndpointConnectionError", "ConnectionClosedError", "ResponseParserError", "IncompleteReadError"),
        *("ResponseStreamingError", "ClientPayloadError", "ClientConnectionError", "ClientOSError"),
        *(
            "ServerDisconnectedError",
            "ServerTimeoutError",
            "IncompleteRead",
            "FSTimeoutError",
            "ClientConnectorError",
        ),
        *("ServiceRequestError", "ServiceResponseError", "ChecksumError", "FlexibleChecksumError"),
    }
)
"""Classes of botocore, aiohttp, azure-core and gcsfs, by name: none of these libraries need be installed."""
_TRANSIENT_CODES = frozenset(
    {"SlowDown", "InternalError", "RequestTimeout", "ServiceUnavailable", "Throttling", "ThrottlingException"}
    | {"BadDigest", "IncompleteBody", "XAmzContentSHA256Mismatch", "OperationAborted", "ServerBusy"}
)
_REFUSED_NAMES = frozenset(
    {
        *("NoCredentialsError", "PartialCredentialsError", "TokenRetrievalError", "ProfileNotFound"),
        *("CredentialRetrievalError", "UnauthorizedSSOTokenError", "ClientAuthenticationError"),
        *("DefaultCredentialsError", "RefreshError"),
    }
)
_REFUSED_CODES = frozenset({"InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "AccessDenied"})
_NO_BUCKET = frozenset({"NoSuchBucket", "ContainerNotFound", "ContainerBeingDeleted"})


class ShortRead(OSError):
    """Not as many bytes came as the object has: the body was cut, or the object replaced."""


@dataclass(frozen=True, slots=True)
class Backoff:
    """How often and how long to try."""

    attempts: int = 8
    first: float = 0.2
    """Upper bound of the first wait, seconds; it doubles from try to try."""
    most: float = 10.0
    deadline: float = 180.0
    """Seconds after which no new try is begun."""

    def waits(self) -> Iterator[float]:
        """Seconds to wait before each further try."""
        for i in range(self.attempts - 1):
            yield random.uniform(0, min(self.most, self.first * 2**i))


def retried(action: Callable[[], T], what: str, place: str, backoff: Backoff) -> T:
    """The result of ``action``, tried again while its errors may pass.

    ``what`` is a verb ("read", "write") and ``place`` the URI: both are in the message. Raises
    :class:`StoreUnreachable` where the store refuses or stays unreachable, ``FileNotFoundError`` and
    ``FileExistsError`` as they come, and ``OSError`` for anything else.
    """
    started = time.monotonic()
    waits = backoff.waits()
    tries = 0
    while True:
        tries += 1
        try:
            return action()
        except Exception as e:  # clients raise their libraries' own classes: sorted below, never swallowed
            if not is_transient(e):
                raise explained(e, what, place) from e
            wait = next(waits, None)
            late = time.monotonic() - started
            if wait is None or late + wait > backoff.deadline:
                raise StoreUnreachable(
                    errno.ETIMEDOUT,
                    f"Cannot {what} {redacted(place)}: {reason(e)}, after {tries} tries in {late:.0f} s; check that "
                    "the store can be reached, then run the same command again",
                ) from e
            _log.info("%s %s: %s; try %d in %.1f s", what, redacted(place), reason(e), tries + 1, wait)
            time.sleep(wait)


def is_transient(error: BaseException) -> bool:
    """Whether another try may succeed."""
    if refuses(error) or isinstance(error, FileNotFoundError | FileExistsError | PermissionError):
        return False
    if isinstance(error, ShortRead | TimeoutError | ConnectionError):
        return True
    for e in _chain(error):
        if _status(e) in TRANSIENT_STATUS or _code(e) in _TRANSIENT_CODES:
            return True
        if {c.__name__ for c in type(e).__mro__} & _TRANSIENT_NAMES:
            return True
        if isinstance(e, OSError) and e.errno in _TRANSIENT_ERRNO:
            return True
        if isinstance(e, TimeoutError | ConnectionError):
            return True
    return False


def is_conflict(error: BaseException) -> bool:
    """Whether a put-if-absent was refused because something is there already.

    Clients say so in different ways: ``FileExistsError``, or an ``OSError`` whose cause carries the answer.
    """
    return isinstance(error, FileExistsError) or any(_status(e) in CONFLICT_STATUS for e in _chain(error))


def refuses(error: BaseException) -> bool:
    """Whether the store refuses for good: no or wrong credentials, no permission, no such bucket."""
    return isinstance(error, StoreUnreachable) or any(
        isinstance(e, PermissionError)
        or _status(e) in (401, 403)
        or _code(e) in _REFUSED_CODES | _NO_BUCKET
        or {c.__name__ for c in type(e).__mro__} & _REFUSED_NAMES
        for e in _chain(error)
    )


def is_missing_bucket(error: BaseException) -> bool:
    return any(_code(e) in _NO_BUCKET or "specified bucket does not exist" in str(e) for e in _chain(error))


def explained(error: Exception, what: str, place: str) -> Exception:
    """The error to raise for one that will not pass."""
    if isinstance(error, StoreUnreachable | FileExistsError):
        return error
    where = redacted(place)
    if is_missing_bucket(error) or (isinstance(error, FileNotFoundError) and what in WRITES):
        return StoreUnreachable(
            errno.ENOENT, f"Cannot {what} {where}: there is no such bucket; create it, or name another"
        )
    if refuses(error):
        return StoreUnreachable(
            errno.EACCES,
            f"Cannot {what} {where}: the store refuses ({reason(error)}); check the credentials in the environment "
            "and what they may do there",
        )
    if isinstance(error, FileNotFoundError):
        return FileNotFoundError(errno.ENOENT, f"{where} is not there")
    return OSError(errno.EIO, f"Cannot {what} {where}: {reason(error)}")


def reason(error: BaseException) -> str:
    """The first line of what the store or its client said, without secrets and without a full stop."""
    text = str(error).strip()
    line = text.splitlines()[0].rstrip(". ") if text else ""
    return redacted(f"{type(error).__name__}: {line}" if line else type(error).__name__)


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and what caused it, at most eight deep."""
    seen = 0
    e: BaseException | None = error
    while e is not None and seen < 8:
        yield e
        e, seen = e.__cause__ or e.__context__, seen + 1


def _status(error: BaseException) -> int | None:
    """The HTTP status that an error of any client carries."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):
        found = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        return found if isinstance(found, int) else None
    for name in ("status_code", "status", "code"):
        found = getattr(error, name, None)
        if isinstance(found, int):
            return found
    return None


def _code(error: BaseException) -> str | None:
    """The store's own name for the error."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):
        found = response.get("Error", {}).get("Code")
        return found if isinstance(found, str) else None
    found = getattr(error, "error_code", None)
    return None if found is None else str(getattr(found, "value", found))
