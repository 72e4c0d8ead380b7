"""Parquet files are read without a thread of Arrow's."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from panoptile.pipeline.parquet_read import open_parquet, read_batches, read_columns

ROOT = Path(__file__).parents[2]
SOURCES = [p for folder in ("jobs", "pipeline", "model") for p in (ROOT / folder).rglob("*.py")]

COUNT = """
import os, sys
from panoptile.pipeline.parquet_read import open_parquet, read_batches, read_columns

def threads():
    names = (open(f"/proc/self/task/{task}/comm").read().strip() for task in os.listdir("/proc/self/task"))
    return sum(name != "jemalloc_bg_thd" for name in names)

before, path = threads(), sys.argv[1]
read_columns(path)
read_columns(open(path, "rb"), ["a"])
list(read_batches(path, ["a", "c"], rows=100))
with open_parquet(path) as file:
    file.read_row_group(1, columns=["b"], use_threads=False)
print(threads() - before)
"""


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Three columns in ten row groups."""
    values = list(range(1000))
    path = tmp_path / "table.parquet"
    pq.write_table(pa.table({"a": values, "b": values, "c": values}), path, row_group_size=100)
    return path


def test_reading_gives_what_there_is(table: Path) -> None:
    """All columns or some, whole or in batches of bounded length, as pyarrow reads them."""
    assert read_columns(table).equals(pq.read_table(table))
    assert read_columns(table, ["c", "a"]).equals(pq.read_table(table, columns=["c", "a"]))
    batches = list(read_batches(table, ["b"], rows=64))
    assert max(map(len, batches)) <= 64
    assert pa.Table.from_batches(batches).equals(pq.read_table(table, columns=["b"]))


def test_a_column_that_is_not_there_is_told(table: Path) -> None:
    """Arrow alone would leave it out without a word."""
    for read in (read_columns, lambda *given: list(read_batches(*given))):
        with pytest.raises(pa.ArrowInvalid, match="no column x, y"):
            read(table, ["a", "x", "y"])
    with pytest.raises(pa.ArrowInvalid), open_parquet(Path(__file__)):
        pass


@pytest.mark.skipif(sys.platform != "linux", reason="threads are counted in /proc")
def test_reading_begins_no_thread(table: Path) -> None:
    """A thread that is still starting when a short command ends would abort it."""
    run = subprocess.run(
        [sys.executable, "-c", COUNT, str(table)], capture_output=True, text=True, timeout=120, check=True
    )
    assert run.stdout.strip() == "0"


def test_nothing_is_read_in_another_way() -> None:
    """Whatever opens Parquet files does so here, and keeps to its one thread."""
    assert len(SOURCES) > 200
    wrong = []
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                continue
            opens = node.func.attr in ("read_table", "ParquetFile", "ParquetDataset")
            threaded = node.func.attr in ("iter_batches", "read_row_group", "read_row_groups")
            quiet = any(word.arg == "use_threads" for word in node.keywords)
            if (opens and path.name != "parquet_read.py") or (threaded and not quiet):
                wrong.append(f"{path}:{node.lineno}")
    assert wrong == []
