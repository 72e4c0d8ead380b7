"""What a YAML parser says of a file, in one line."""

from __future__ import annotations

_NAMELESS = '"<unicode string>", '
"""What PyYAML calls a text that came without its file's name."""


def one_line(error: Exception) -> str:
    """Its message, to follow the file's name: "… but found '<stream end>' in line 1, column 2"."""
    return " ".join(str(error).split()).replace(_NAMELESS, "")
