"""An HTTP proxy that does to requests what networks and stores do to them: each fault with its own seeded probability.

It stands between a client and a server on 127.0.0.1, a thread for each connection, and counts what it did.
"""

from __future__ import annotations

import random
import socket
import struct
import threading
import time
from collections import Counter
from dataclasses import dataclass, fields
from types import TracebackType
from typing import BinaryIO, Self

_ERROR = b'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>%s</Code><Message>%s</Message></Error>'
REFUSALS = {
    "unavailable": (b"503 Slow Down", _ERROR % (b"SlowDown", b"Please reduce your request rate.")),
    "denied": (b"403 Forbidden", _ERROR % (b"AccessDenied", b"Access Denied")),
}
"""Status and body of the answers that the proxy gives itself."""


@dataclass(frozen=True, slots=True)
class Faults:
    """Probability of each fault, for each request to which it can happen."""

    unavailable: float = 0.0
    """503 SlowDown in place of an answer; the server never sees the request."""
    reset: float = 0.0
    """The connection is reset before the server sees the request."""
    silence: float = 0.0
    """Nothing is answered for ``hold`` seconds: the client's time-out decides."""
    torn: float = 0.0
    """Of GETs: the body ends half-way, and the connection with it."""
    short: float = 0.0
    """Of GETs: half the body, and headers that call it the whole."""
    lost: float = 0.0
    """Of PUTs and POSTs: the server does it, the answer is lost."""
    denied: float = 0.0
    """403 AccessDenied in place of an answer."""
    delay: float = 0.0
    """The request waits for ``pause`` seconds."""


class FaultProxy:
    """Listens on ``port`` while the context is open; ``counts`` says what was done, ``requests`` of how many."""

    def __init__(
        self,
        target: int,
        faults: Faults,
        *,
        seed: int = 0,
        hold: float = 3.0,
        pause: float = 0.1,
        drop_headers: tuple[str, ...] = (),
    ) -> None:
        self._target, self._faults = target, faults
        self._hold, self._pause = hold, pause
        self._drop = tuple(h.lower() for h in drop_headers)
        self._random = random.Random(seed)
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._ended = threading.Event()
        self.counts: Counter[str] = Counter()
        self.requests = 0
        self.bytes_out = 0
        """Bytes of bodies sent to clients."""
        self.enabled = True

    def __enter__(self) -> Self:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._listener.close()
        with self._lock:
            for s in self._open:
                s.close()

    def _accept(self) -> None:
        while not self._ended.is_set():
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with self._lock:
            self._open.add(client)
        try:
            with client, client.makefile("rb") as incoming:
                while self._exchange(client, incoming):
                    pass
        except OSError:  # the client has gone, or the test is over
            pass
        finally:
            with self._lock:
                self._open.discard(client)

    def _exchange(self, client: socket.socket, incoming: BinaryIO) -> bool:
        """One request and its answer; False where the connection is over."""
        head = _head(incoming)
        if head is None:
            return False
        line, headers = head
        method = line.split(b" ", 1)[0].decode()
        if _field(headers, "expect"):
            client.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = _body(incoming, headers)
        fault = self._choose(method)
        if fault == "reset":
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            return False
        if fault == "silence":
            self._ended.wait(self._hold)
            return False
        if fault in REFUSALS:
            status, text = REFUSALS[fault]
            start = b"HTTP/1.1 %s\r\nContent-Type: application/xml\r\nContent-Length: %d\r\n\r\n"
            client.sendall(start % (status, len(text)) + (b"" if method == "HEAD" else text))
            return True
        if fault == "delay":
            time.sleep(self._pause)
        status, answered, content = self._forward(line, headers, body, method)
        if fault == "lost":
            return False
        with self._lock:
            self.bytes_out += len(content)
        return _answer(client, method, status, answered, content, fault)

    def _choose(self, method: str) -> str | None:
        """At most one fault a request; each has its probability in turn."""
        reading, writing = method == "GET", method in ("PUT", "POST")
        with self._lock:
            self.requests += 1
            for field in fields(self._faults):
                applies = {"torn": reading, "short": reading, "lost": writing}.get(field.name, True)
                drawn = self._random.random() < getattr(self._faults, field.name)
                if applies and drawn and self.enabled:
                    self.counts[field.name] += 1
                    return field.name
        return None

    def _forward(
        self, line: bytes, headers: list[tuple[str, bytes]], body: bytes, method: str
    ) -> tuple[bytes, list[tuple[str, bytes]], bytes]:
        skipped = ("connection", "transfer-encoding", "content-length", "expect", *self._drop)
        kept = [(n, v) for n, v in headers if n not in skipped]
        for name, _ in headers:
            if name in self._drop:
                with self._lock:
                    self.counts[f"dropped {name}"] += 1
        kept += [("content-length", str(len(body)).encode()), ("connection", b"close")]
        with socket.create_connection(("127.0.0.1", self._target), 60) as server:
            server.sendall(
                line + b"".join(n.encode() + b": " + v + b"\r\n" for n, v in kept) + b"\r\n" + body
            )
            with server.makefile("rb") as answer:
                head = _head(answer)
                if head is None:
                    raise OSError("the server answered nothing")
                status, answered = head
                empty = method == "HEAD" or status.split(b" ")[1] in (b"204", b"304")
                return status, answered, b"" if empty else _body(answer, answered, to_end=True)


def _answer(
    client: socket.socket,
    method: str,
    status: bytes,
    headers: list[tuple[str, bytes]],
    content: bytes,
    fault: str | None,
) -> bool:
    """Send the answer on, whole or not; False where the connection is over."""
    whole = len(content)
    if fault == "short":
        content = content[: whole // 2]
    stated = len(content)
    if fault == "torn":
        content = content[: whole // 2]
    kept = [(n, v) for n, v in headers if n not in ("connection", "transfer-encoding", "content-length")]
    if method == "HEAD":
        kept += [(n, v) for n, v in headers if n == "content-length"]
    elif status.split(b" ")[1] != b"204":
        kept.append(("content-length", str(stated).encode()))
    client.sendall(status + b"".join(n.encode() + b": " + v + b"\r\n" for n, v in kept) + b"\r\n" + content)
    return fault != "torn"


def _head(file: BinaryIO) -> tuple[bytes, list[tuple[str, bytes]]] | None:
    """(first line with its end, header fields with names in lower case); None at the end of the connection."""
    line = file.readline()
    if not line:
        return None
    headers = []
    while (field := file.readline()) not in (b"\r\n", b"\n", b""):
        name, _, value = field.partition(b":")
        headers.append((name.decode("latin-1").strip().lower(), value.strip()))
    return line, headers


def _body(file: BinaryIO, headers: list[tuple[str, bytes]], to_end: bool = False) -> bytes:
    if (_field(headers, "transfer-encoding") or b"").lower() == b"chunked":
        parts = []
        while size := int(file.readline().split(b";")[0], 16):
            parts.append(file.read(size))
            file.readline()
        while file.readline() not in (b"\r\n", b"\n", b""):
            pass
        return b"".join(parts)
    length = _field(headers, "content-length")
    if length is not None:
        return file.read(int(length))
    return file.read() if to_end else b""


def _field(headers: list[tuple[str, bytes]], name: str) -> bytes | None:
    return next((v for n, v in headers if n == name), None)
