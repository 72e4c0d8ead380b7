"""What decord's decoder complains of: decord itself drops it, and delivers the concealed pictures as good ones.

decord brings its own FFmpeg, whose log goes through one callback of the process. It is set to one that counts
errors, so that a chunk of frames during which the count stood still is known to have decoded cleanly.
"""

from __future__ import annotations

import atexit
import ctypes
import glob
import os
import threading
from typing import Any

AV_LOG_ERROR = 16

_CALLBACK = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
_lock = threading.Lock()


class DecordErrors:
    """Counts the errors of all decord readers of this process, in all its threads."""

    def __init__(self) -> None:
        self.count = 0
        self._installed = False
        self._callback = _CALLBACK(self._log)  # kept: C holds no reference

    def _log(self, _context: Any, level: int, text: bytes | None, _values: Any) -> None:
        if level <= AV_LOG_ERROR:
            self.count += 1

    def watch(self) -> bool:
        """Start to count, once; False where decord's FFmpeg is not found beside it."""
        with _lock:
            if not self._installed:
                library = _avutil()
                if library is None:
                    return False
                set_callback = library.av_log_set_callback
                set_callback.argtypes, set_callback.restype = [_CALLBACK], None
                set_callback(self._callback)
                # A reader that outlives the interpreter would call into it.
                atexit.register(set_callback, ctypes.cast(library.av_log_default_callback, _CALLBACK))
                self._installed = True
        return True


def _avutil() -> ctypes.CDLL | None:
    """The libavutil that libdecord.so is linked with: the wheel holds it under a name with a hash."""
    import decord

    beside = os.path.join(os.path.dirname(os.path.dirname(decord.__file__)), "decord.libs", "libavutil-*.so*")
    for path in glob.glob(glob.escape(os.path.dirname(beside)) + "/" + os.path.basename(beside)):
        return ctypes.CDLL(path)  # loaded already: this is a second handle of the same library
    return None


errors = DecordErrors()
"""Of this process."""
