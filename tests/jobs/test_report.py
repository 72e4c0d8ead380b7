"""``panoptile report``: one file that needs nothing and shows names as text."""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import rasterio
from PIL import Image
from rasterio.transform import Affine
from tests.pipeline.test_video_index import plain_index
from typer.testing import CliRunner

from panoptile.jobs.cli import app
from panoptile.jobs.exits import JobError
from panoptile.jobs.report import gather
from panoptile.jobs.report_html import render
from panoptile.pipeline.frame_source import Choice
from panoptile.pipeline.video_plan import VideoInfo, VideoPlan

HOSTILE = (
    "<script>document.title='owned'</script>",
    '"><img src=x onerror=alert(1)>',
    "'; DROP TABLE segments; --",
    "</title><svg onload=alert(2)>",
    "\u202egnp.exe",
    "&lt;already&gt;",
    "long" * 60,
)


class Page(HTMLParser):
    """Tags, addresses and text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.handlers: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [v or "" for k, v in attrs if k in ("src", "href", "srcset", "action", "data")]
        self.handlers += [k for k, _ in attrs if k.startswith("on")]

    def handle_data(self, data: str) -> None:
        self.text += data


def put(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def finished(out: Path, names: tuple[str, ...] = ("scene.tif",)) -> Path:
    """A finished job's folder as the report reads it, with the names it is given."""
    put(out / "_SUCCESS.json", {"exit": 3})
    put(
        out / "job.json",
        {"fingerprint": "f" * 64, "spec": {"model": names[0]}, "model": {"description": names[0]}},
    )
    seams = {"discontinuity_ratio": 1.07, "cut_things_per_1000": 2.5}
    put(
        out / "metrics.json",
        {
            "pixels": 2e6,
            "segment_seconds": 7200,
            "busy_share": {names[0]: 0.98, "b": 0.9},
            "suspects": 4,
            "seams": seams,
        },
    )
    colors = [{"class_id": 1, "name": names[-1], "is_thing": True, "color": "#e4572e", "model_label_id": 0}]
    put(
        out / "classes.json",
        [*colors, {**colors[0], "class_id": 2, "name": "ground", "is_thing": False, "model_label_id": 1}],
    )
    for n, name in enumerate(names):
        info = {
            "uri": name, "height": 100, "width": 200, "crs_wkt": "LOCAL_CS", "georeferenced": True,
            "transform": [0.5, 0, 1000.0 + 100 * n, 0, -0.5, 500.0],
        }  # fmt: skip
        put(out / f"_state/plan/k{n}.json", {"info": info})
        counts = [
            {"class_id": 1, "segments": 7, "pixels": 900},
            {"class_id": 2, "segments": 1, "pixels": 100},
        ]
        found = {
            "segments": 8,
            "counts": counts,
            "suspects": 2,
            "things_over_seams": 3,
            "preview": f"previews/k{n}.png",
        }
        put(out / f"_state/results/k{n}.json", {"finished": found})
        (out / "previews").mkdir(exist_ok=True)
        Image.new("RGB", (300, 200), (90, 140, 90)).save(out / f"previews/k{n}.png")
        (out / "segments").mkdir(exist_ok=True)
        pq.write_table(
            pa.table({"class_id": pa.array([1, 1, 2], pa.uint16()), "area_m2": [10.0, 20.0, 25_000.0]}),
            out / f"segments/k{n}.parquet",
        )
    dead = [
        {
            "source_uri": names[0],
            "stage": "read",
            "error_type": "OSError",
            "message": names[-1],
            "attempts": 3,
        }
    ]
    pq.write_table(pa.Table.from_pylist(dead), out / "deadletter.parquet")
    return out


def test_the_figures_are_those_of_the_job(tmp_path: Path) -> None:
    """Counts and areas are sums over the inputs; hours are replicas times time; the cost follows from them."""
    report = gather(str(finished(tmp_path, ("a.tif", "b.tif"))), 2.5)
    assert report.totals == {1: (14, 1800), 2: (2, 200)}
    assert report.areas_m2 == {1: 60.0, 2: 50_000.0}
    assert report.replica_hours == pytest.approx(4.0)
    page = Page(render(report))
    for text in ("14", "10.00", "5.00 ha", "60 m²", "1.07", "98.0%", "OSError"):
        assert text in page.text, text


def add_video(out: Path) -> None:
    """A finished video in the folder: every second frame of 20 of 64 x 48 pixels, at 10 a second."""
    index = plain_index(list(range(0, 2000, 100)), [0])
    info = VideoInfo("v.mp4", "v", "v", index, Choice("pyav", ""))
    (out / "_state/plan/v.json").write_bytes(VideoPlan(info, np.arange(0, 20, 2), 32).to_json())
    counts = [{"class_id": 1, "segments": 5, "pixels": 4000}]
    found = {"segments": 5, "counts": counts, "failed_tiles": 1, "preview": "previews/v.png"}
    put(out / "_state/results/v.json", {"finished": found})
    Image.new("RGB", (64, 48), (90, 90, 90)).save(out / "previews/v.png")


def test_rasters_and_videos_are_kept_apart(tmp_path: Path) -> None:
    """A video has frames and tracks, not tiles and seams; its pixels are not added to those that have an area."""
    add_video(finished(tmp_path))
    report = gather(str(tmp_path), None)
    assert report.totals == {1: (7, 900), 2: (1, 100)}
    assert report.video_totals == {1: (5, 4000)}
    page = re.sub(r"<[^>]+>", "|", render(report))
    page = re.sub(r"\|+", "|", page)
    assert "|12|objects|" in page
    assert "|v.mp4|64 × 48|10 of 20|2 s|5|1|" in page
    assert "|5 tracks over 10 frames|" in page
    assert "|8 segments, 3 made whole over seams|" in page
    assert "|Classes in rasters|" in page
    assert "|scene.tif|thing|5|4,000|100.0%|" in page
    assert "0 × 0" not in page


def test_a_video_plan_that_was_damaged_is_told(tmp_path: Path) -> None:
    """Exit 2 and the record's name, no traceback from the packed times."""
    add_video(finished(tmp_path))
    path = tmp_path / "_state/plan/v.json"
    plan = json.loads(path.read_text())
    plan["info"]["index"]["pts"] = "AAAA"
    put(path, plan)
    with pytest.raises(JobError, match=r"v\.json") as e:
        gather(str(tmp_path), None)
    assert int(e.value.code) == 2


def test_nothing_on_the_page_asks_for_anything(tmp_path: Path) -> None:
    """No script, no handler, no address but data; and a policy that forbids them anyway."""
    page = Page(render(gather(str(finished(tmp_path, HOSTILE)), None)))
    assert not {"script", "iframe", "object", "embed", "form", "base"} & set(page.tags)
    assert page.handlers == []
    assert page.addresses
    assert all(a.startswith("data:") for a in page.addresses)


def test_hostile_names_are_text(tmp_path: Path) -> None:
    """Every name appears exactly as it is, and only as text."""
    page = Page(render(gather(str(finished(tmp_path, HOSTILE)), None)))
    for name in HOSTILE:
        assert name in page.text, name
    assert page.tags.count("title") == 1 + len(HOSTILE)  # the page's, and one for each place on the map
    assert page.tags.count("image") == 0


def test_the_map_shows_inputs_side_by_side(tmp_path: Path) -> None:
    """Two adjacent inputs touch on the map, in the order of their coordinates."""
    text = render(gather(str(finished(tmp_path, ("a.tif", "b.tif"))), None))
    first, second = matrices(text, "rect")
    assert on_map(first, 1, 0) == pytest.approx(on_map(second, 0, 0), abs=0.02)
    assert on_map(first, 1, 1) == pytest.approx(on_map(second, 0, 1), abs=0.02)


def matrices(page: str, shape: str) -> list[list[float]]:
    """The six numbers of each shape's transform, all of which start from the unit square."""
    found = re.findall(rf'<{shape} width="1" height="1"[^>]*transform="matrix\(([^)]*)\)"', page)
    return [[float(number) for number in numbers.split()] for numbers in found]


def on_map(matrix: list[float], x: float, y: float) -> tuple[float, float]:
    """Where SVG draws a point of the unit square; y grows downwards on both sides."""
    a, b, c, d, e, f = matrix
    return a * x + c * y + e, b * x + d * y + f


AFFINES = {
    "north-up": (0.5, 0.0, 1000.0, 0.0, -0.5, 500.0),
    "south-up": (0.5, 0.0, 1000.0, 0.0, 0.5, 500.0),
    "east-left": (-0.5, 0.0, 1000.0, 0.0, -0.5, 500.0),
    "turned by 30 degrees": (0.433, 0.25, 1000.0, 0.25, -0.433, 500.0),
    "a quarter turn": (0.0, 0.5, 1000.0, 0.5, 0.0, 500.0),
}


@pytest.mark.parametrize("name", AFFINES)
def test_labels_lie_on_the_map_where_they_lie_on_the_ground(tmp_path: Path, name: str) -> None:
    """What is in a corner of the raster is drawn where the affine puts it, north above and east to the right."""
    finished(tmp_path)
    affine = Affine(*AFFINES[name])
    plan = json.loads((tmp_path / "_state/plan/k0.json").read_text())
    put(tmp_path / "_state/plan/k0.json", {"info": plan["info"] | {"transform": AFFINES[name]}})
    labels = np.zeros((100, 200), np.uint8)
    labels[10:30, 20:60] = 1
    (tmp_path / "rasters/k0").mkdir(parents=True)
    profile = {"driver": "GTiff", "height": 100, "width": 200, "count": 1, "dtype": "uint8"}
    with rasterio.open(tmp_path / "rasters/k0/a.classes.tif", "w", transform=affine, **profile) as f:
        f.write(labels, 1)
    report = gather(str(tmp_path), None)
    page = render(report)
    drawn = Image.open(io.BytesIO(report.inputs[0].labels or b""))
    rows, cols = np.nonzero(np.asarray(drawn)[:, :, 3])
    middle = (cols.mean() + 0.5) / drawn.width, (rows.mean() + 0.5) / drawn.height
    [image], [outline] = matrices(page, "image"), matrices(page, "rect")
    assert image == outline
    view = re.search(r'viewBox="-8 -8 ([\d.]+) ([\d.]+)"', page)
    assert view is not None
    width, height = (float(side) - 16 for side in view.groups())
    xs, ys = zip(*(affine @ corner for corner in ((0, 0), (200, 0), (200, 100), (0, 100))), strict=True)
    east, north = affine @ (40, 20)
    x, y = on_map(image, *middle)
    assert x / width == pytest.approx((east - min(xs)) / (max(xs) - min(xs)), abs=0.01)
    assert y / height == pytest.approx((max(ys) - north) / (max(ys) - min(ys)), abs=0.01)


@pytest.mark.parametrize("shape", [(800, 20), (500, 1), (1, 500)])
def test_a_strip_fits_on_the_page(tmp_path: Path, shape: tuple[int, int]) -> None:
    """A map is no taller than the window, whatever its shape, and even one pixel's width is drawn to be seen."""
    finished(tmp_path)
    plan = json.loads((tmp_path / "_state/plan/k0.json").read_text())
    put(tmp_path / "_state/plan/k0.json", {"info": plan["info"] | {"height": shape[0], "width": shape[1]}})
    page = render(gather(str(tmp_path), None))
    style = re.search(r"\nsvg\{([^}]*)\}", page)
    assert style is not None
    assert "max-height:80vh" in style[1]
    [(a, _, _, d, _, _)] = matrices(page, "rect")
    assert min(a, d) >= 2
    assert 'vector-effect="non-scaling-stroke"' in page  # its line is as wide on a phone


def test_the_command_writes_the_file(tmp_path: Path) -> None:
    """report.html lies in OUT, and its address is what is printed."""
    finished(tmp_path)
    result = CliRunner().invoke(app, ["report", str(tmp_path), "--price", "1"])
    assert result.stdout.strip() == str(tmp_path / "report.html")
    assert (tmp_path / "report.html").read_text().startswith("<!doctype html>")


def test_an_unfinished_job_has_no_report(tmp_path: Path) -> None:
    """Exit 2, and where to look instead."""
    with pytest.raises(JobError, match="panoptile status"):
        gather(str(tmp_path), None)


def test_several_coordinate_systems_are_said(tmp_path: Path) -> None:
    """No map can show them side by side; the page says why it has none."""
    finished(tmp_path, ("a.tif", "b.tif"))
    plan = json.loads((tmp_path / "_state/plan/k1.json").read_text())
    put(tmp_path / "_state/plan/k1.json", {"info": plan["info"] | {"crs_wkt": "OTHER_CS"}})
    assert "2 coordinate systems" in Page(render(gather(str(tmp_path), None))).text


def test_a_report_that_cannot_be_written(tmp_path: Path) -> None:
    """One sentence and exit 4, no traceback."""
    finished(tmp_path)
    (tmp_path / "report.html").mkdir()
    with pytest.raises(JobError, match="Cannot write") as e:
        CliRunner().invoke(app, ["report", str(tmp_path)], catch_exceptions=False)
    assert int(e.value.code) == 4


MEASURE = """<script>
const cells = [...document.querySelectorAll('td')].filter(c => c.textContent.includes('longlong'));
document.body.dataset.measured = [document.documentElement.scrollWidth, innerWidth, cells.length,
  Math.max(...cells.map(c => c.getBoundingClientRect().width))].join(' ');
</script></main>"""


def measured(page: Path, chromium: str, width: int) -> list[float]:
    """Of a copy of the page that may run a script: its width and the window's, and the cells with a long name or message and theirs."""
    copy = page.with_name("measured.html")
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page.read_text())
    copy.write_text(text.replace("</main>", MEASURE))
    run = subprocess.run(
        [
            chromium, "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--dump-dom",
            "--disable-background-networking", "--disable-component-update", "--hide-scrollbars",
            f"--user-data-dir={page.parent / 'measuring'}", f"--window-size={width},2000", copy.as_uri(),
        ],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    found = re.search(r'data-measured="([^"]+)"', run.stdout)
    assert found is not None, run.stdout[-2000:]
    return [float(number) for number in found.group(1).split()]


@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 1440])
def test_a_browser_shows_it_without_a_word(tmp_path: Path, width: int) -> None:
    """Headless Chromium: no line on its console, no request, a picture of the page; it does not scroll sideways, and a
    failure's message, beside names of any length, is within the window."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("Chromium is not installed")
    finished(tmp_path, HOSTILE)
    page, picture, log = tmp_path / "report.html", tmp_path / "page.png", tmp_path / "net.json"
    page.write_text(render(gather(str(tmp_path), 1.0)))
    run = subprocess.run(
        [
            chromium, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
            "--disable-background-networking", "--disable-component-update", "--no-first-run",
            "--enable-logging=stderr", f"--user-data-dir={tmp_path / 'profile'}", f"--log-net-log={log}",
            f"--window-size={width},2000", f"--screenshot={picture}", page.as_uri(),
        ],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert "CONSOLE" not in run.stderr, run.stderr
    asked = set(re.findall(r'"url":"(https?://[^"]+)"', log.read_text())) if log.exists() else set()
    own = ("google", "gvt1.com")  # the browser's own clock, dictionary and updates
    assert not {u for u in asked if not any(name in u.split("/")[2] for name in own)}, asked
    image = Image.open(io.BytesIO(picture.read_bytes())).convert("L")
    assert image.width == width
    assert len(set(image.resize((64, 64)).tobytes())) > 8  # something was painted
    page_width, window, cells, widest = measured(page, chromium, width)
    assert page_width <= window
    assert cells >= 3  # class, failure, input
    assert widest <= window
