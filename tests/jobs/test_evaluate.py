"""``panoptile eval`` on finished runs and COCO folders: ground truth in every form gives the same figures."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
import uuid
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import shapely
from hotcoco.panoptic import PanopticEval
from numpy.typing import NDArray
from PIL import Image
from tests.jobs.runs import TRANSFORM, WorldFiles, arrays, run, write_world
from tests.pipeline.metric_cases import Segmentation, coco_sample, jittered, random_segmentation, write_coco
from tests.pipeline.rasters import write_raster
from tests.pipeline.worlds import World, make_world
from typer.testing import CliRunner

from panoptile.jobs.builtin_truth import write_truth
from panoptile.jobs.cli import app
from panoptile.jobs.console import Console
from panoptile.jobs.evaluate import EvalOptions, Evaluation, evaluate
from panoptile.jobs.exits import JobError
from panoptile.jobs.ground_truth import TruthOptions, open_truth
from panoptile.jobs.prepare import prepare
from panoptile.jobs.segment import run_job
from panoptile.jobs.spec import JobSpec
from panoptile.pipeline import gdal_env
from panoptile.pipeline.overlaps import ScoredClass
from panoptile.pipeline.store import open_store

gdal_env.configure()  # before rasterio

import rasterio
import rasterio.features


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, World, WorldFiles]:
    """An echo run over a small world without missing input: the result is the truth."""
    folder = tmp_path_factory.mktemp("world")
    world = make_world(4, 200, 230, wedge=False)
    files = write_world(world, folder)
    run(files, folder / "out", tile=96, overlap=32)
    return folder / "out", world, files


def _eval(out: Path, gt: Path, **options: object) -> Evaluation:
    names = ("renames", "window", "area")
    own = {k: v for k, v in options.items() if k in names}
    truth = TruthOptions(str(gt), **{k: v for k, v in options.items() if k not in names})  # type: ignore[arg-type]
    return evaluate(str(out), EvalOptions(truth, **own), Console(quiet=True))  # type: ignore[arg-type]


def _perfect(result: Evaluation) -> bool:
    scores = result.panoptic.all
    return (
        scores.pq == 1.0 and scores.matched > 0 and result.semantic.mean == 1.0 and result.instances.ap == 1.0
    )


def _houses(world: World) -> NDArray[np.int64]:
    return np.where(world.classes == 1, world.labels, 0)


def test_a_run_against_its_own_labels(finished: tuple[Path, World, WorldFiles]) -> None:
    """Object and class raster, a run, and the class raster alone: an echo is perfect in each of them."""
    out, world, files = finished
    both = _eval(out, files.labels, gt_classes=str(files.classes), labels=str(files.table))
    assert _perfect(both)
    assert {c.name for c in both.classes} == {"house", "tree", "grass", "road"}
    assert _perfect(_eval(out, out))
    alone = _eval(out, files.classes, labels=str(files.table))
    assert alone.semantic.mean == 1.0
    assert alone.panoptic.things.classes == 0  # objects cannot be told apart: none is missed, none invented
    assert alone.panoptic.stuff.pq == 1.0
    coded = write_raster(
        files.labels.parent / "coded.tif",
        (world.classes * 10_000 + np.where(world.classes <= 2, world.labels, 0))[None].astype(np.uint32),
        transform=TRANSFORM,
    )
    assert _perfect(_eval(out, coded, labels=str(files.table), divisor=10_000))


def test_stuff_in_regions_is_judged_as_one(finished: tuple[Path, World, WorldFiles], tmp_path: Path) -> None:
    """A run whose stuff was parted into regions is as perfect, and equal to the one that was not."""
    whole, _, files = finished
    out = tmp_path / "out"
    run(files, out, tile=96, overlap=32, regions=("all",))
    assert _perfect(_eval(out, files.labels, gt_classes=str(files.classes), labels=str(files.table)))
    assert _perfect(_eval(out, whole))
    assert _perfect(_eval(whole, out))


def test_objects_of_one_class(finished: tuple[Path, World, WorldFiles], tmp_path: Path) -> None:
    """Instances of one class: other classes of the run are not judged, and wrong houses are."""
    out, world, _ = finished
    houses = _houses(world)
    path = write_raster(tmp_path / "houses.tif", houses[None].astype(np.uint16), transform=TRANSFORM)
    result = _eval(out, path, class_name="house")
    assert _perfect(result)
    assert result.panoptic.all.matched == len(np.unique(houses)) - 1
    assert "not scored" in result.notes[0]
    some = np.unique(houses)[1:4]
    fewer = np.where(np.isin(houses, some), 0, houses)
    path = write_raster(tmp_path / "fewer.tif", fewer[None].astype(np.uint16), transform=TRANSFORM)
    assert _eval(out, path, class_name="house").panoptic.all.invented == 3
    void = np.where(np.isin(houses, some), 65535, houses)
    path = write_raster(tmp_path / "void.tif", void[None].astype(np.uint16), transform=TRANSFORM)
    assert _perfect(_eval(out, path, class_name="house", ignored=("65535",)))
    unknown = _eval(out, tmp_path / "fewer.tif", class_name="house", unlabelled="void")
    assert unknown.panoptic.all.invented == 0


def test_ignored_values_are_those_of_the_class_raster(
    finished: tuple[Path, World, WorldFiles], tmp_path: Path
) -> None:
    """--ignore 3 leaves out the grass, not the object whose number is 3."""
    out, world, files = finished
    objects = world.labels.copy()
    objects[objects == np.unique(_houses(world))[1]] = 3
    path = write_raster(tmp_path / "objects.tif", objects[None].astype(np.uint32), transform=TRANSFORM)
    result = _eval(out, path, gt_classes=str(files.classes), labels=str(files.table), ignored=("3",))
    assert result.pixels == world.labels.size
    assert {c.name: q.matched for c, q in result.panoptic.per_class if not c.is_thing} == {
        "grass": 0,
        "road": 1,
    }
    whole = _eval(out, files.labels, gt_classes=str(files.classes), labels=str(files.table))
    assert result.panoptic.things == whole.panoptic.things


@pytest.mark.slow
def test_held_out_truth_as_rasters(data_dir: Path, tmp_path: Path) -> None:
    """Banepa's truth by rule and by hand goes to rasters that eval reads without being told their classes."""
    objects, classes = write_truth(data_dir / "banepa", tmp_path)
    meaning = TruthOptions(str(objects), gt_classes=str(classes))
    truth = open_truth(meaning, tmp_path, video=False)
    assert [(c.name, c.is_thing) for c in truth.classes] == [
        ("building", True),
        ("vegetation", False),
        ("ground", False),
    ]
    with rasterio.open(objects) as a, rasterio.open(data_dir / "banepa" / "banepa_instances_cog.tif") as b:
        assert np.array_equal(a.read(1), b.read(1))
        assert a.transform.almost_equals(b.transform)
    with rasterio.open(classes) as c, rasterio.open(objects) as o:
        values = c.read(1)
        assert set(np.unique(values)) == {1, 2, 3, 255}
        assert np.array_equal(values == 1, o.read(1) > 0)


def test_a_part_of_the_raster(finished: tuple[Path, World, WorldFiles], tmp_path: Path) -> None:
    """A window, a box on the ground and a GeoJSON area that are the same part give the same counts."""
    out, world, files = finished
    truth: dict[str, object] = {"gt_classes": str(files.classes), "labels": str(files.table)}
    window = _eval(out, files.labels, window="40,50,90,100", **truth)
    assert window.pixels == 90 * 100
    inside = world.labels[40:130, 50:150]
    things = np.unique(inside[world.classes[40:130, 50:150] <= 2])
    assert window.panoptic.things.matched == np.count_nonzero(things)
    left, top = TRANSFORM @ (50, 40)
    right, bottom = TRANSFORM @ (150, 130)
    box = _eval(out, files.labels, area=f"{left},{bottom},{right},{top}", **truth)
    assert (box.pixels, box.panoptic) == (window.pixels, window.panoptic)
    shape = shapely.box(left, bottom, right, top)
    document = {
        "type": "Polygon", "coordinates": [list(map(list, shape.exterior.coords))],
        "crs": {"type": "name", "properties": {"name": "EPSG:32633"}},
    }  # fmt: skip
    (tmp_path / "area.geojson").write_text(json.dumps(document))
    area = _eval(out, files.labels, area=str(tmp_path / "area.geojson"), **truth)
    assert (area.pixels, area.panoptic) == (window.pixels, window.panoptic)


def _outlines(world: World) -> list[tuple[dict[str, object], str]]:
    """GeoJSON polygons of the things, in the raster's CRS, with their class."""
    things = np.where(world.classes <= 2, world.labels, 0).astype(np.int32)
    names = {1: "house", 2: "tree"}
    shapes = rasterio.features.shapes(things, mask=things > 0, transform=TRANSFORM)
    by_label = {int(v): names[int(world.classes[world.labels == int(v)][0])] for v in np.unique(things) if v}
    return [(geometry, by_label[int(value)]) for geometry, value in shapes]


def _write_polygons(path: Path, rows: list[tuple[dict[str, object], str]]) -> Path:
    """In the format of the path's ending, in EPSG:32633."""
    shapes = [shapely.from_geojson(json.dumps(g)) for g, _ in rows]
    if path.suffix == ".geojson":
        features = [{"type": "Feature", "geometry": g, "properties": {"kind": k}} for g, k in rows]
        crs = {"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG::32633"}}
        path.write_text(json.dumps({"type": "FeatureCollection", "features": features, "crs": crs}))
    elif path.suffix == ".parquet":
        crs = rasterio.crs.CRS.from_epsg(32633).to_dict(projjson=True)
        columns = {"geometry": {"encoding": "WKB", "geometry_types": ["Polygon"], "crs": crs}}
        geo = json.dumps({"version": "1.1.0", "primary_column": "geometry", "columns": columns})
        table = pa.table({"kind": [k for _, k in rows], "geometry": list(shapely.to_wkb(shapes))})
        pq.write_table(table.replace_schema_metadata({"geo": geo}), path)
    else:
        with sqlite3.connect(path) as database:
            database.execute("CREATE TABLE gpkg_geometry_columns (table_name, column_name, srs_id)")
            database.execute(
                "CREATE TABLE gpkg_spatial_ref_sys (srs_id, organization, organization_coordsys_id, definition)"
            )
            database.execute("INSERT INTO gpkg_spatial_ref_sys VALUES (32633, 'EPSG', 32633, '')")
            database.execute("INSERT INTO gpkg_geometry_columns VALUES ('labels', 'geom', 32633)")
            database.execute("CREATE TABLE labels (geom BLOB, kind TEXT)")
            head = b"GP\0\1" + (32633).to_bytes(4, "little")
            database.executemany(
                "INSERT INTO labels VALUES (?, ?)",
                [(head + shapely.to_wkb(s), k) for s, (_, k) in zip(shapes, rows, strict=True)],
            )
    return path


@pytest.mark.parametrize("ending", [".geojson", ".parquet", ".gpkg"])
def test_polygons(finished: tuple[Path, World, WorldFiles], tmp_path: Path, ending: str) -> None:
    """Outlines of the truth, drawn block by block, are the truth: in every format, by column and by class."""
    out, world, _ = finished
    rows = _outlines(world)
    path = _write_polygons(tmp_path / f"labels{ending}", rows)
    result = _eval(out, path, class_column="kind")
    assert _perfect(result)
    assert {c.name for c in result.classes} == {"house", "tree"}
    houses = _write_polygons(tmp_path / f"houses{ending}", [r for r in rows if r[1] == "house"])
    assert _perfect(_eval(out, houses, class_name="house"))
    renamed = _write_polygons(tmp_path / f"homes{ending}", [(g, "home") for g, k in rows if k == "house"])
    assert _perfect(_eval(out, renamed, class_column="kind", renames=("home=house",)))


def test_polygons_in_degrees_and_by_name(finished: tuple[Path, World, WorldFiles], tmp_path: Path) -> None:
    """Longitude and latitude are brought to the raster's grid; in a folder the file named like the raster is taken."""
    from rasterio.warp import transform_geom

    out, world, _ = finished
    folder = tmp_path / "truth"
    folder.mkdir()
    features = [
        {
            "type": "Feature",
            "geometry": transform_geom("EPSG:32633", "EPSG:4326", g),
            "properties": {"kind": k},
        }
        for g, k in _outlines(world)
    ]
    (folder / "image.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    (folder / "other.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": features[:1]}))
    result = _eval(out, folder, class_column="kind")
    assert result.panoptic.all.pq > 0.99  # outlines are rounded to nanometres, some pixel centres lie on them
    assert result.panoptic.all.missed == 0


def test_coco_folders_equal_the_coco_evaluator(tmp_path: Path) -> None:
    """Two COCO panoptic folders give the COCO evaluator's figures through the command line."""
    rng = np.random.default_rng(1)
    classes = [ScoredClass(i, f"class {i}", i < 3) for i in (1, 2, 3)]
    truth = [random_segmentation(rng, (40, 50), 3, 14) for _ in range(3)]
    paths = [
        write_coco(tmp_path / name, images, classes)
        for name, images in (("truth", truth), ("found", [jittered(rng, t) for t in truth]))
    ]
    evaluation = PanopticEval(*map(str, paths))
    evaluation.run()
    answer = CliRunner().invoke(app, ["eval", str(paths[1]), "--gt", str(paths[0]), "--json", "-q"])
    assert answer.exit_code == 0, answer.output
    fields = json.loads(answer.stdout)
    expected = evaluation.results()
    for name in ("All", "Things", "Stuff"):
        group = fields["panoptic"][name.lower()]
        assert [group[k] for k in ("pq", "sq", "rq")] == pytest.approx(
            [expected[name][k] for k in ("pq", "sq", "rq")], abs=1e-12
        )
    assert fields["schema_version"] == 1


def test_the_coco_sample_against_itself(data_dir: Path) -> None:
    """A1 by the command: the published sample against itself is 100, crowds and void included."""
    folder = data_dir / "metrics" / "panoptic_sample"
    result = _eval(folder, folder)
    assert (result.panoptic.all.pq, result.panoptic.all.matched, result.panoptic.all.classes) == (1.0, 47, 8)
    assert sum(len(i.crowds) for i in coco_sample(data_dir)[0]) == 3


def test_a_png_that_its_json_does_not_know(tmp_path: Path) -> None:
    """A segment in the PNG alone is refused with its number: it would silently count as nothing."""
    rng = np.random.default_rng(2)
    image = random_segmentation(rng, (20, 20), 2, 4)
    path = write_coco(tmp_path / "gt", [image], [ScoredClass(1, "a", True), ScoredClass(2, "b", True)])
    document = json.loads(path.read_text())
    gone = document["annotations"][0]["segments_info"].pop()
    path.write_text(json.dumps(document))
    with pytest.raises(JobError, match=rf"the PNG alone \[{gone['id']}\]"):
        _eval(path, path)


def test_confusion_picture_and_table(finished: tuple[Path, World, WorldFiles], tmp_path: Path) -> None:
    """The command prints a table for people, and draws the confusion of classes."""
    out, _, files = finished
    picture = tmp_path / "confusion.png"
    arguments = ["eval", str(out), "--gt", str(files.labels), "--gt-classes", str(files.classes)]
    answer = CliRunner().invoke(app, [*arguments, "--labels", str(files.table), "--confusion", str(picture)])
    assert answer.exit_code == 0, answer.output
    assert "all       100.00  100.00  100.00" in answer.stdout
    assert "mIoU     100.00" in answer.stdout
    with Image.open(picture) as drawn:
        colors = {c for _, c in drawn.getcolors(1 << 16) or []}
    assert (23, 92, 158) in colors  # a full cell


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"class_name": "huose"}, "did you mean 'house'"),
        ({"class_name": "ship"}, "is one of the run's"),
        ({}, "--class NAME"),
        ({"class_name": "house", "labels": "x.json"}, "give one of the two"),
        ({"class_name": "house", "class_column": "kind"}, "--class-column means nothing"),
        ({"class_name": "house", "window": "0,0,999,10"}, "reaches out of image"),
        ({"class_name": "house", "window": "0,0,10"}, "ROW,COL,HEIGHT,WIDTH"),
        ({"class_name": "house", "ignored": ("sea",)}, "whole numbers"),
        ({"class_name": "house", "renames": ("house",)}, "--map wants TRUTH=RUN"),
        ({"class_name": "house", "renames": ("house=hause",)}, "did you mean 'house'"),
    ],
)
def test_what_cannot_be_used_is_told_in_a_sentence(
    finished: tuple[Path, World, WorldFiles], options: dict[str, object], sentence: str
) -> None:
    """Bad options end with exit 2 and a sentence that says what to do."""
    out, _, files = finished
    with pytest.raises(JobError, match=sentence) as error:
        _eval(out, files.labels, **options)
    assert error.value.code == 2
    assert "\n" not in str(error.value)


def test_grids_and_folders_that_do_not_fit(finished: tuple[Path, World, WorldFiles], tmp_path: Path) -> None:
    """A raster of another size or place, a missing file and a folder without a run are refused."""
    out, world, _ = finished
    houses = _houses(world)[None].astype(np.uint16)
    small = write_raster(tmp_path / "small.tif", houses[:, :100], transform=TRANSFORM)
    with pytest.raises(JobError, match="has 100x230 pixels"):
        _eval(out, small, class_name="house")
    moved = write_raster(tmp_path / "moved.tif", houses, transform=TRANSFORM.translation(5, 0) @ TRANSFORM)
    with pytest.raises(JobError, match="lies elsewhere than"):
        _eval(out, moved, class_name="house")
    floats = write_raster(tmp_path / "floats.tif", houses.astype(np.float32), transform=TRANSFORM)
    with pytest.raises(JobError, match="labels must be integers"):
        _eval(out, floats, class_name="house")
    with pytest.raises(JobError, match="does not exist"):
        _eval(out, tmp_path / "nothing.tif", class_name="house")
    with pytest.raises(JobError, match="holds no finished run"):
        _eval(tmp_path, small, class_name="house")


def test_options_that_mean_nothing_are_refused(
    finished: tuple[Path, World, WorldFiles], data_dir: Path, tmp_path: Path
) -> None:
    """No option is silently ignored: each form of ground truth says which ones it has no use for."""
    out, world, _ = finished
    sample = data_dir / "metrics" / "panoptic_sample"
    for gt, options in (
        (sample, {"class_name": "person"}),
        (sample, {"ignored": ("255",)}),
        (out, {"labels": "table.json"}),
        (
            _write_polygons(tmp_path / "x.geojson", _outlines(world)),
            {"class_name": "house", "ignored": ("tree",)},
        ),
        (_write_polygons(tmp_path / "y.geojson", _outlines(world)), {"class_column": "kind", "divisor": 10}),
    ):
        with pytest.raises(JobError, match="means nothing for"):
            _eval(sample if gt is sample else out, gt, **options)
    column = _eval(out, tmp_path / "x.geojson", class_column="kind", ignored=("tree",))
    assert [c.name for c in column.classes] == ["house"]
    assert _perfect(column)


def test_black_of_a_coco_png_is_void_unless_told_otherwise(tmp_path: Path) -> None:
    """What is found on black pixels is ignored by default, and wrong with --unlabelled background."""
    classes = [ScoredClass(1, "a", True)]
    truth = Segmentation(np.array([[0] * 10, [1] * 10]), {1: 1})
    found = Segmentation(np.array([[2] * 10, [1] * 10]), {1: 1, 2: 1})
    gt, prediction = (
        write_coco(tmp_path / "gt", [truth], classes),
        write_coco(tmp_path / "found", [found], classes),
    )
    assert _eval(prediction, gt).panoptic.all.invented == 0
    assert _eval(prediction, gt, unlabelled="background").panoptic.all.invented == 1


def test_a_run_without_a_table_is_compared_by_its_rasters(
    finished: tuple[Path, World, WorldFiles], tmp_path: Path
) -> None:
    """--no-vector leaves no table of segments: classes then come from the class raster, to the same figures."""
    out, _, files = finished
    run(files, tmp_path / "out", tile=96, overlap=32, vector=False)
    truth = {"gt_classes": str(files.classes), "labels": str(files.table)}
    assert (
        _eval(tmp_path / "out", files.labels, **truth).panoptic == _eval(out, files.labels, **truth).panoptic
    )
    assert not (tmp_path / "out" / "segments").exists()
    assert arrays(out)[0].shape == (200, 230)


def test_a_run_in_an_object_store(finished: tuple[Path, World, WorldFiles]) -> None:
    """A result that lies in an object store is judged as a local one, also against itself."""
    out, _, files = finished
    uri = f"memory://eval-{uuid.uuid4().hex}/run"
    store = open_store(uri)
    for path in sorted(p for p in out.rglob("*") if p.is_file() and "_state/data" not in str(p)):
        store.put_bytes(str(path.relative_to(out)), path.read_bytes())
    truth = TruthOptions(str(files.labels), gt_classes=str(files.classes), labels=str(files.table))
    assert _perfect(evaluate(uri, EvalOptions(truth), Console(quiet=True)))
    assert _perfect(evaluate(uri, EvalOptions(TruthOptions(uri)), Console(quiet=True)))


def test_several_rasters_and_their_truth_by_name(tmp_path: Path) -> None:
    """Two rasters in one run: each is judged by the file of its name; one without truth is told of."""
    inputs, truth = tmp_path / "inputs", tmp_path / "truth"
    truth.mkdir()
    worlds = [make_world(seed, 80, 90, wedge=False, stuff=False) for seed in (1, 2)]
    labels = [write_world(w, inputs / str(i)) for i, w in enumerate(worlds)]
    for name in ("left", "right"):
        (inputs / f"{name}.tif").write_bytes(labels[0].image.read_bytes())
    spec = JobSpec(
        (str(inputs / "left.tif"), str(inputs / "right.tif")), str(tmp_path / "out"), model=labels[0].model,
        labels=str(labels[0].table), tile=64, overlap=16, local=True, workers=1,
    )  # fmt: skip
    run_job(prepare(spec), Console(quiet=True))
    houses = _houses(worlds[0])[None].astype(np.uint16)
    write_raster(truth / "left.tif", houses, transform=TRANSFORM)
    one = _eval(tmp_path / "out", truth, class_name="house")
    assert one.names == ("left",)
    assert any("no ground truth for 1 rasters: right" in note for note in one.notes)
    assert _perfect(one)
    write_raster(truth / "right.tif", _houses(worlds[1])[None].astype(np.uint16), transform=TRANSFORM)
    both = _eval(tmp_path / "out", truth, class_name="house")
    assert both.names == ("left", "right")
    assert both.panoptic.all.matched >= one.panoptic.all.matched
    assert both.panoptic.all.missed > 0  # the right raster was segmented with the left one's labels


_MEASURE = """
import resource, sys
from pathlib import Path
import numpy as np
from panoptile.pipeline.count_labels import count_labels
from panoptile.pipeline.label_source import LabelMeaning, LabelRaster
meaning = LabelMeaning({}, frozenset({1}), single=1)
sources = [LabelRaster(meaning, objects=p, classes=None) for p in sys.argv[1:]]
small = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
pairs = count_labels(*sources)
print(len(pairs), int(pairs.pixels.sum()), (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - small) // 1024)
"""


def test_memory_follows_the_objects_not_the_pixels(tmp_path: Path) -> None:
    """Comparing two rasters of 67 Mpx (512 MiB each as they are read) takes under 100 MB."""
    side, path = 8192, tmp_path / "large.tif"
    with rasterio.open(
        path, "w", driver="GTiff", height=side, width=side, count=1, dtype="uint32", tiled=True, blockxsize=1024,
        blockysize=1024, compress="deflate", zlevel=1, sparse_ok=True,
    ) as dst:  # fmt: skip
        block = np.kron(np.arange(1, 257, dtype=np.uint32).reshape(16, 16), np.ones((64, 64), np.uint32))
        for k in range(4):  # the rest stays empty: background
            window = rasterio.windows.Window(k * 2048, k * 2048, 1024, 1024)
            dst.write(block + 256 * k, 1, window=window)
    answer = subprocess.run(
        [sys.executable, "-c", _MEASURE, str(path), str(path)],
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    pairs, pixels, grown_mb = map(int, answer.stdout.split())
    assert pairs == 4 * 256 + 1
    assert pixels == side * side
    assert grown_mb < 100
