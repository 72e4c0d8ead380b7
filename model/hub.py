"""Find the folder of a checkpoint: a local one as it is, or a model of the Hugging Face hub, downloaded once.

Unusual: only the files that are needed are fetched, never a pickle where safetensors exist, and without a network the
error says what to do instead of what failed inside the client. ``huggingface_hub`` is imported only for hub ids.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_OPTIONS = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")

WEIGHTS_SAFE = ("model.safetensors", "model.safetensors.index.json", "model-*.safetensors")
WEIGHTS_PICKLED = ("pytorch_model.bin", "pytorch_model.bin.index.json", "pytorch_model-*.bin")


def split_hub_options(keywords: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The keywords of :func:`resolve_folder` that are among ``keywords``, and the others."""
    options = {k: v for k, v in keywords.items() if k in _OPTIONS}
    return options, {k: v for k, v in keywords.items() if k not in _OPTIONS}


def resolve_folder(
    source: str | Path,
    *,
    files: Sequence[str],
    fallback: Sequence[str] = (),
    cache_dir: str | Path | None = None,
    force_download: bool = False,
    local_files_only: bool = False,
    token: str | bool | None = None,
    revision: str | None = None,
    subfolder: str = "",
) -> Path:
    """The local folder of ``source``: a folder, or the id of a model on the hub such as ``facebook/mask2former-…``.

    Of a hub model only ``files`` (names or patterns) are downloaded; where none of them but the first exists, those
    of ``fallback`` too. Raises ``ValueError`` if there is neither such a folder nor such a model, or no way to ask.
    """
    folder = Path(source) / subfolder
    if folder.is_dir():
        return folder
    if isinstance(source, Path) or not _HUB_ID.fullmatch(str(source)):
        raise ValueError(f"There is no folder {folder}, and {source} is no id of a model on the hub.")
    options = {
        "cache_dir": cache_dir,
        "force_download": force_download,
        "local_files_only": local_files_only,
        "token": token,
        "revision": revision,
    }
    found = _download(str(source), _inside(subfolder, files), options) / subfolder
    if fallback and not any(path for name in files[1:] for path in found.glob(name)):
        found = _download(str(source), _inside(subfolder, (*files, *fallback)), options) / subfolder
    return found


def _inside(subfolder: str, names: Sequence[str]) -> list[str]:
    return [f"{subfolder}/{name}" if subfolder else name for name in names]


def _download(hub_id: str, patterns: list[str], options: Mapping[str, Any]) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(hub_id, allow_patterns=patterns, **options))
    except LocalEntryNotFoundError as e:
        raise ValueError(
            f"There is no folder {hub_id}, and the model {hub_id} is neither in the local cache nor within reach: "
            "pass a folder, or run once with a network connection (and without HF_HUB_OFFLINE or local_files_only)."
        ) from e
    except (HfHubHTTPError, HFValidationError, OSError) as e:
        first_line = (str(e).splitlines() or [repr(e)])[0]
        raise ValueError(f"The model {hub_id} cannot be read from the hub: {first_line}") from e
