"""How GDAL reads a raster in an object store: by its own virtual file systems, ranges only.

Credentials reach GDAL through the process environment, where the store's client finds them too, never through a path
or an option that could be logged. What GDAL calls otherwise is copied: the endpoint of a store that is not AWS, and
Azure's account.
"""

from __future__ import annotations

import os
from urllib.parse import urlsplit

from panoptile.pipeline.remote_uri import scheme_of

_FOLDERS = {
    "s3": "/vsis3/",
    "s3a": "/vsis3/",
    "gs": "/vsigs/",
    "gcs": "/vsigs/",
    "az": "/vsiaz/",
    "abfs": "/vsiaz/",
}
READABLE = tuple(_FOLDERS)
"""Schemes whose rasters are read."""

NETWORK = {
    "CPL_VSIL_CURL_NON_CACHED": "/vsis3/:/vsigs/:/vsiaz/",  # a failed look-up must not be remembered
    "GDAL_HTTP_MAX_RETRY": "5",
    "GDAL_HTTP_RETRY_DELAY": "0.2",  # seconds, doubled from try to try, with jitter
    "GDAL_HTTP_RETRY_CODES": "408,429,500,502,503,504",
    "GDAL_HTTP_CONNECTTIMEOUT": "10",
    "GDAL_HTTP_LOW_SPEED_TIME": "30",
    "GDAL_HTTP_LOW_SPEED_LIMIT": "1000",
    "GDAL_INGESTED_BYTES_AT_OPEN": "32768",  # the directories of a COG in the first request
    "GDAL_HTTP_MERGE_CONSECUTIVE_RANGES": "YES",
}
"""What a user may set otherwise."""


def vsi_path(uri: str) -> str:
    """GDAL's name for an object. Sets the environment by which GDAL reaches the store; safe to call again."""
    scheme = scheme_of(uri)
    if scheme not in _FOLDERS:
        raise ValueError(
            f"Rasters are not read from {scheme}://: use one of {', '.join(READABLE)}, or a local path."
        )
    for name, value in NETWORK.items():
        os.environ.setdefault(name, value)
    if scheme in ("s3", "s3a"):
        _reach_s3()
    elif scheme in ("gs", "gcs"):
        _reach_google()
    else:
        _reach_azure()
    return _FOLDERS[scheme] + uri.split("://", 1)[1]


def _reach_s3() -> None:
    endpoint = (
        os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or _configured_endpoint()
    )
    if endpoint:
        parts = urlsplit(endpoint)
        os.environ["AWS_S3_ENDPOINT"] = parts.netloc + parts.path.rstrip("/")
        os.environ["AWS_HTTPS"] = "NO" if parts.scheme == "http" else "YES"
        os.environ["AWS_VIRTUAL_HOSTING"] = "FALSE"
    if "AWS_DEFAULT_REGION" in os.environ:
        os.environ.setdefault("AWS_REGION", os.environ["AWS_DEFAULT_REGION"])


def _configured_endpoint() -> str | None:
    import fsspec

    found = fsspec.config.conf.get("s3", {}).get("endpoint_url")
    return found if isinstance(found, str) else None


def _reach_google() -> None:
    emulator = os.environ.get("STORAGE_EMULATOR_HOST")
    if emulator:
        os.environ["CPL_GS_ENDPOINT"] = emulator.rstrip("/") + "/"
        os.environ["GS_NO_SIGN_REQUEST"] = "YES"


def _reach_azure() -> None:
    if "AZURE_STORAGE_CONNECTION_STRING" in os.environ:
        return
    for gdal, names in (
        ("AZURE_STORAGE_ACCOUNT", ("AZURE_STORAGE_ACCOUNT_NAME",)),
        ("AZURE_STORAGE_ACCESS_KEY", ("AZURE_STORAGE_ACCOUNT_KEY", "AZURE_STORAGE_KEY")),
    ):
        value = next((os.environ[n] for n in names if n in os.environ), None)
        if value is not None:
            os.environ.setdefault(gdal, value)
