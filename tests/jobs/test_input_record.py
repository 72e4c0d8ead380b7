"""Records of what was found in each input, and the manifest made of them."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from tests.pipeline.worlds import raster_info

from panoptile.jobs.input_record import RecordedInputs, load_result, plan_digest, save_result
from panoptile.jobs.results import manifest, result_key
from panoptile.pipeline.finish import Asset, ClassCount, FinishedInput
from panoptile.pipeline.plan import RasterPlan
from panoptile.pipeline.raster_info import Sheet
from panoptile.pipeline.store_local import LocalStore


def published(number: int, height: int = 300) -> FinishedInput:
    """A raster of some units, the last of which is missing."""
    plan = RasterPlan(raster_info(height, 300, f"r{number}-0000000000"), 128, 32)
    units = list(plan.units())
    table = f"segments/{plan.key}.parquet"
    return FinishedInput(
        plan=plan,
        assets=(Asset(table, f"{number:064x}", 1000 + number),),
        preview=f"previews/{plan.key}.png",
        counts=(ClassCount(1, 3, 100), ClassCount(2, 1, 7)),
        segments=4,
        things_over_seams=1,
        suspects=0,
        missing_units=(units[-1],),
        commits={u: f"{i:064x}" for i, u in enumerate(units[:-1])},
        empty_tiles=0,
        queries_used_max=9,
        queries_used_mean=4.1,
        stitch_seconds=0.1,
        publish_seconds=0.25,
        failed_tiles=2,
        seam_counts=(1, 2, 3, 4, 5, 6),
        tile_table=Asset(f"tiles/{plan.key}.parquet", "0" * 64, 12),
    )


def test_inputs_held_as_records_are_what_was_published(tmp_path: Path) -> None:
    """Field by field, in order, any number of times; the record in the store is the one that is held."""
    store, inputs = LocalStore(tmp_path), RecordedInputs()
    given = [published(i) for i in range(5)]
    for one in given:
        data = save_result(store, one, "job")
        assert store.read_bytes(result_key(one.plan.key)) == data
        inputs.add(one.plan, data)
    assert len(inputs) == 5
    assert list(inputs) == list(inputs) == given
    assert inputs[-1] == given[-1]
    assert inputs[1:3] == given[1:3]


def test_when_an_object_was_written_is_no_part_of_what_it_is() -> None:
    """Of a raster and of the sheets of a mosaic: stored, read back, told; the digest is that of a plan without times."""
    sheet = raster_info(300, 300, "s-0000000000")
    for sheets in ((), (Sheet(0, 0, sheet),)):
        plan = RasterPlan(dataclasses.replace(sheet, sheets=sheets), 128, 32)
        later = dataclasses.replace(
            plan,
            info=dataclasses.replace(
                plan.info,
                written_ns=5,
                sheets=tuple(Sheet(0, 0, dataclasses.replace(s.info, written_ns=5)) for s in sheets),
            ),
        )
        assert b"written_ns" not in plan.to_json()
        assert RasterPlan.from_json(later.to_json()).info.written_ns == 5
        assert later.to_json() != plan.to_json()
        assert plan_digest(later) == plan_digest(plan)
        assert later == plan


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("commits", []),
        ("commits", {"other": "0"}),
        ("assets", [{"key": 1}]),
        ("counts", 3),
        ("preview", ["x"]),
    ],
)
def test_a_record_of_another_kind_is_none(tmp_path: Path, field: str, value: object) -> None:
    """Whatever a damaged or foreign record holds, its input is published again and nothing is raised."""
    one = published(0)
    data = save_result(LocalStore(tmp_path), one, "job")
    commits = {u.id: sha256 for u, sha256 in one.commits.items()}
    sizes = {one.assets[0].key: 1000, f"tiles/{one.plan.key}.parquet": 12, f"previews/{one.plan.key}.png": 1}
    assert load_result(data, one.plan, {"job"}, commits, sizes) == one
    record = json.loads(data)
    record["finished"][field] = value
    assert load_result(json.dumps(record).encode(), one.plan, {"job"}, commits, sizes) is None
    assert load_result(data, one.plan, {"job"}, commits, {**sizes, one.assets[0].key: 999}) is None
    assert load_result(data, one.plan, {"other job"}, commits, sizes) is None
    assert load_result(None, one.plan, {"job"}, commits, sizes) is None


def test_a_long_manifest_is_written_in_groups() -> None:
    """More rows than are held at once: every unit and file of every input, in order."""
    given = [published(i, height=1200) for i in range(600)]
    table = pq.ParquetFile(io.BytesIO(manifest(given, {next(iter(given[0].plan.units())).id})))
    assert table.num_row_groups > 1
    rows = table.read().to_pylist()
    expected = []
    for one in given:
        expected += [("unit", u.id, one.commits.get(u)) for u in one.plan.units()]
        expected += [("asset", a.key, a.sha256) for a in one.assets]
    assert [(r["kind"], r["name"], r["sha256"]) for r in rows] == expected
    assert [r["status"] for r in rows[:2]] == ["partial", "done"]
    assert sum(r["status"] == "quarantined" for r in rows) == 600
