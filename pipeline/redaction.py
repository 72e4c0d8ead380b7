"""Secrets taken out of any text before it is shown or stored.

What counts as a secret: user name and password in a URI, the parameters of a signed URL, and every value that the
environment holds under a name that means a secret. Text is changed as little as possible.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

MASK = "***"
MIN_SECRET = 8
"""Shorter values are not taken for secrets: masking every "1" would destroy the text."""

_SECRET_NAME = re.compile(
    r"(SECRET|PASSWORD|PASSWD|PASSPHRASE|TOKEN|ACCOUNT_KEY|ACCESS_KEY|API_?KEY|PRIVATE_KEY|CREDENTIAL|"
    r"CONNECTION_STRING|STORAGE_KEY|AUTH_HEADER|SIGNATURE|(?:^|_)SAS(?:_|$))",
    re.IGNORECASE,
)
_NOT_SECRET = re.compile(
    r"(_FILE|_PATH|_DIR|_URI|_URL|_ENDPOINT|_MODE|_EXPIRATION|_CONFIG|APPLICATION_CREDENTIALS)$|PARALLELISM",
    re.IGNORECASE,
)
# A password may hold a slash where it was not encoded; a port number is no password.
_USERINFO = re.compile(
    r"([A-Za-z][A-Za-z0-9+.-]*://)"
    r"([^/\s:@'\"<>]*:(?!\d{1,5}(?:[/\s]|$))[^\s@'\"<>]*|[^/\s@:'\"<>]{16,})@"
)
_PARAMETER = re.compile(
    r"([?&;](?:X-(?:Amz|Goog)-(?:Signature|Credential|Security-Token)|Signature|AWSAccessKeyId|GoogleAccessId|"
    r"sig|se|sp|sv|token|access_token|api_?key|password|secret|key|auth)=)[^&#\s'\"<>]+",
    re.IGNORECASE,
)
_ASSIGNED = re.compile(
    r"((?:AccountKey|SharedAccessSignature|aws_secret_access_key|aws_session_token|secret_access_key|password)"
    r"['\"]?\s*[=:]\s*['\"]?)[^;,\s'\"]+",
    re.IGNORECASE,
)
_PART = re.compile(r"(?:AccountKey|SharedAccessSignature)=([^;]+)", re.IGNORECASE)
_BEARER = re.compile(r"\b(Bearer|Basic)\s+[A-Za-z0-9._~+/=-]{8,}", re.IGNORECASE)


def redacted(text: str) -> str:
    """``text`` with ``***`` in place of every secret."""
    for value in _values(tuple(_secret_variables(os.environ))):
        text = text.replace(value, MASK)
    text = _USERINFO.sub(rf"\1{MASK}@", text)
    text = _PARAMETER.sub(rf"\1{MASK}", text)
    text = _ASSIGNED.sub(rf"\1{MASK}", text)
    return _BEARER.sub(rf"\1 {MASK}", text)


def redacted_json(value: Any) -> Any:
    """The same JSON value with every text in it redacted, keys too."""
    if isinstance(value, str):
        return redacted(value)
    if isinstance(value, Mapping):
        return {redacted(str(k)): redacted_json(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [redacted_json(v) for v in value]
    return value


def is_secret_name(name: str) -> bool:
    """Whether an environment variable of this name holds a secret."""
    return _SECRET_NAME.search(name) is not None and _NOT_SECRET.search(name) is None


def _secret_variables(environment: Mapping[str, str]) -> list[str]:
    values = {v for k, v in environment.items() if len(v) >= MIN_SECRET and is_secret_name(k)}
    parts = {m for v in values for m in _PART.findall(v)}  # of a connection string, which may appear alone
    return sorted(values | {p for p in parts if len(p) >= MIN_SECRET})


@lru_cache(maxsize=8)
def _values(values: tuple[str, ...]) -> tuple[str, ...]:
    """The longest first: one secret may hold another."""
    from urllib.parse import quote

    spelt = {s for v in values for s in (v, quote(v, safe=""), v.strip()) if len(s) >= MIN_SECRET}
    return tuple(sorted(spelt, key=lambda s: (-len(s), s)))
