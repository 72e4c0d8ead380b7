"""The client of an object store, as fsspec gives it, set up the same way everywhere.

Endpoint and credentials come from the environment alone: ``AWS_ENDPOINT_URL``, ``AWS_ACCESS_KEY_ID`` …,
``GOOGLE_APPLICATION_CREDENTIALS``, ``AZURE_STORAGE_…``, the machine's role, or fsspec's own configuration
(``FSSPEC_S3='{"…": …}'``). No region is passed: it would be wrong for other stores than AWS.
"""

from __future__ import annotations

import os
from typing import Any

from panoptile.pipeline.remote_uri import EXTRAS, scheme_of

CONNECT_TIMEOUT, READ_TIMEOUT = 10, 60
"""Seconds; ``FSSPEC_S3='{"config_kwargs": {"read_timeout": …}}'`` sets others."""


def connect(uri: str) -> Any:
    """The fsspec filesystem of a checked URI; contacts nothing. Raises ``ValueError`` where its client is missing."""
    import fsspec

    scheme = scheme_of(uri)
    options: dict[str, Any] = {"use_listings_cache": False, "skip_instance_cache": True}
    if scheme in ("s3", "s3a"):
        options |= _s3_options(fsspec.config.conf.get("s3", {}))
    elif scheme in ("gs", "gcs"):
        # Newer clients look for a zonal bucket over gRPC first, up to a minute for each bucket of an emulator.
        os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
        if os.environ.get("STORAGE_EMULATOR_HOST"):
            options["token"] = "anon"  # an emulator knows no accounts; looking for one takes seconds
    try:
        return fsspec.filesystem(scheme, **options)
    except ImportError as e:
        extra = EXTRAS.get(scheme or "", "")
        raise ValueError(
            f"{scheme}:// needs a client that is not installed: pip install 'panoptile[{extra}]'."
        ) from e


def _s3_options(configured: dict[str, Any]) -> dict[str, Any]:
    """Bounded waits and few retries inside the client: panoptile tries again itself, with one bound for all."""
    network = {
        "connect_timeout": CONNECT_TIMEOUT,
        "read_timeout": READ_TIMEOUT,
        "retries": {"mode": "standard", "total_max_attempts": 2},
    }
    options: dict[str, Any] = {"config_kwargs": network | configured.get("config_kwargs", {})}
    if os.environ.get("AWS_NO_SIGN_REQUEST", "").upper() in ("YES", "TRUE", "1"):
        options["anon"] = True
    return options
