"""Text that XML 1.0 can hold: its writers escape markup, but let characters through that no reader accepts."""

from __future__ import annotations

import re

_FORBIDDEN = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def xml_text(text: str) -> str:
    """``text`` with the replacement character in place of control characters and lone surrogates."""
    return _FORBIDDEN.sub("\ufffd", text)
