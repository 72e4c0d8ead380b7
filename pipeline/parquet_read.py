"""How every Parquet file is read: in this thread alone.

Arrow begins its threads when they are first needed, for the smallest file too. One that is still starting when a short
command ends aborts the process ("terminate called without an active exception", exit 134), after a right answer: 3 of
207 reads of a dead letter. ``pre_buffer`` needs a thread as ``use_threads`` does, and ``pyarrow.parquet.read_table`` always.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

Source = str | Path | BinaryIO
BATCH_ROWS = 65_536


def open_parquet(source: Source) -> pq.ParquetFile:
    """An open file, to be closed; give its reading methods ``use_threads=False``. Raises as ``read_columns``."""
    return pq.ParquetFile(source, pre_buffer=False)


def read_columns(source: Source, columns: Sequence[str] | None = None) -> pa.Table:
    """All rows of some columns, of all by default.

    Raises ``pa.ArrowException`` for what is no Parquet file or has no such column, and ``OSError``.
    """
    with open_parquet(source) as file:
        _check_columns(file, columns)
        return file.read(columns=columns, use_threads=False)


def read_batches(
    source: Source, columns: Sequence[str], *, rows: int = BATCH_ROWS
) -> Iterator[pa.RecordBatch]:
    """The rows of some columns, at most ``rows`` at once. Raises as ``read_columns``."""
    with open_parquet(source) as file:
        _check_columns(file, columns)
        yield from file.iter_batches(rows, columns=columns, use_threads=False)


def _check_columns(file: Any, columns: Sequence[str] | None) -> None:
    """Arrow would leave out a column that is not there."""
    missing = set(columns or ()) - set(file.schema_arrow.names)
    if missing:
        raise pa.ArrowInvalid(f"there is no column {', '.join(sorted(missing))}")
