"""A folder of sheets that grows, and the job that runs over it every night."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from tests.jobs.runs import WorldFiles, threads

from panoptile.jobs.console import Console
from panoptile.jobs.earlier_result import Summary
from panoptile.jobs.prepare import prepare
from panoptile.jobs.segment import run_job
from panoptile.jobs.spec import JobSpec


class Nights:
    """A folder of sheets and the job that runs over it every night."""

    def __init__(self, files: WorldFiles, folder: Path) -> None:
        self.files, self.sheets, self.out = files, folder / "sheets", folder / "out"
        self.sheets.mkdir()

    def add(self, *names: str) -> None:
        for name in names:
            shutil.copy(self.files.image, self.sheets / name)

    def spec(self, **options: Any) -> JobSpec:
        fields: dict[str, Any] = {
            "incremental": True,
            "tile": 64,
            "overlap": 16,
            "local": True,
            "workers": 1,
        } | options
        return JobSpec(
            (str(self.sheets),), str(self.out), model=self.files.model, labels=str(self.files.table), **fields
        )

    def run(self, **options: Any) -> Summary:
        with threads():
            return run_job(prepare(self.spec(**options)), Console(quiet=True))

    def units_run(self) -> int:
        return int(json.loads((self.out / "metrics.json").read_text())["units_run"])

    def listed(self) -> set[str]:
        rows = pq.read_table(self.out / "manifest.parquet").to_pylist()
        return {Path(r["source_uri"]).name for r in rows}

    def dead(self) -> list[str]:
        rows = pq.read_table(self.out / "deadletter.parquet").to_pylist()
        return [Path(r["source_uri"]).name for r in rows]

    def items(self) -> set[str]:
        return {p.name.rsplit("-", 1)[0] for p in (self.out / "catalog" / "items").glob("*.json")}
