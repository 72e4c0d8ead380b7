"""Videos as jobs: one command and engine for rasters and videos, attach, resume, relink, and the same bytes always."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import threading
import time
import uuid
from pathlib import Path
from typing import Any

import av
import fsspec
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from tests.jobs.runs import write_world
from tests.pipeline.moving_worlds import TABLE, MovingWorld, expected_ids, make_world, same_partition
from tests.pipeline.video_flow import video_of, write_truth
from tests.pipeline.worlds import make_world as make_raster_world

from panoptile.jobs import job_record, leased_run, open_units_run, results
from panoptile.jobs.console import Console
from panoptile.jobs.earlier_result import Summary
from panoptile.jobs.exits import Exit, JobError
from panoptile.jobs.job_record import read_job
from panoptile.jobs.lease import Observer
from panoptile.jobs.prepare import prepare
from panoptile.jobs.previews import redraw
from panoptile.jobs.relink import prepare_relink, relink
from panoptile.jobs.report_text import plan_fields, plan_text, summary_text
from panoptile.jobs.resume import recorded_spec
from panoptile.jobs.segment import run_job
from panoptile.jobs.spec import JobSpec
from panoptile.jobs.submission import finished_exit
from panoptile.jobs.survey import input_change
from panoptile.pipeline import layout
from panoptile.pipeline.store import Store, open_store
from panoptile.pipeline.unit_input import InputContext
from panoptile.pipeline.video_input import VideoInput
from panoptile.pipeline.video_link import VideoFragments
from panoptile.pipeline.video_plan import VideoPlan
from panoptile.pipeline.video_tables import read_masks

QUIET = Console(quiet=True)


@dataclasses.dataclass(frozen=True)
class Clip:
    """A video with known truth, and the echo of it."""

    world: MovingWorld
    path: Path
    model: str
    table: Path


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Clip:
    folder = tmp_path_factory.mktemp("clip")
    world = make_world(21, hide_s=0.6)
    path = video_of(world, folder)
    echo = write_truth(world, folder)
    table = folder / "table.json"
    table.write_text(json.dumps(TABLE.to_json()))
    return Clip(world, path, f"echo:{echo.labels_path},{echo.classes_path}", table)


def job(clip: Clip, out: object, **options: Any) -> JobSpec:
    fields: dict[str, Any] = {"model": clip.model, "labels": str(clip.table), "local": True, "workers": 1}
    return JobSpec((str(clip.path),), str(out), **{**fields, **options})


def in_memory() -> str:
    """A store that this process alone sees: its workers are threads, so runs are quick."""
    return f"memory://video-{uuid.uuid4().hex}"


def run(clip: Clip, out: object, **options: Any) -> Summary:
    return run_job(prepare(job(clip, out, **options)), QUIET)


def published(store: Store) -> dict[str, str]:
    """sha256 of every file of the published tree."""
    return {
        s.key: hashlib.sha256(store.read_bytes(s.key)).hexdigest()
        for top in layout.PUBLISHED
        for s in ([s for s in store.walk() if s.key == top] or store.walk(top))
    }


def tracks(store: Store) -> list[dict[str, Any]]:
    (key,) = [s.key for s in store.walk("video") if s.key.endswith("tracks.parquet")]
    rows: list[dict[str, Any]] = pq.read_table(io.BytesIO(store.read_bytes(key))).to_pylist()
    return rows


def maps(store: Store, folder: Path) -> tuple[np.ndarray, np.ndarray]:
    (key,) = [s.key for s in store.walk("video") if s.key.endswith("masks.parquet")]
    frames = list(read_masks(store.local_copy(key, folder)))
    return np.stack([f.labels() for f in frames]), np.array([f.frame for f in frames])


def test_a_video_job_from_command_to_tracks(clip: Clip, tmp_path: Path) -> None:
    """Tracks equal the truth; the same job again runs nothing; the plan and the summary speak of frames and tracks."""
    out = in_memory()
    prepared = prepare(job(clip, out))
    assert "40 of 40" in plan_text(prepared)
    (fields,) = plan_fields(prepared)["inputs"]
    assert (fields["kind"], fields["frames"], fields["fps"]) == ("video", 40, pytest.approx(10))
    summary = run_job(prepared, QUIET)
    assert summary.exit is Exit.DONE
    assert f"{len(tracks(open_store(out)))} tracks over 40 frames" in summary_text(summary)
    found, numbers = maps(open_store(out), tmp_path)
    assert same_partition(expected_ids(clip.world, numbers, 1.0), found)[1] == []
    assert open_store(out).exists(f"previews/{prepared.plans[0].key}.png")
    before = published(open_store(out))
    assert {Path(name).name for name in before} >= {"masks.parquet", "tracks.parquet", "frames.parquet"}
    assert run(clip, out).already_done
    assert published(open_store(out)) == before


@pytest.mark.parametrize(
    ("options", "frames"),
    [
        ({"every": 7}, list(range(0, 40, 7))),
        ({"fps": 4.0}, [0, 2, 5, 7, 10, 12, 15, 17, 20, 22, 25, 27, 30, 32, 35, 37]),
        ({"start": 1.0, "end": 1.5}, [10, 11, 12, 13, 14]),
        ({"frame_size": 32, "every": 13}, [0, 13, 26, 39]),
    ],
)
def test_chosen_frames_alone_are_segmented(
    clip: Clip, tmp_path: Path, options: dict[str, Any], frames: list[int]
) -> None:
    """--fps, --every, --start and --end choose the frames by their times; masks keep the frame's size."""
    out = in_memory()
    run(clip, out, **options)
    found, numbers = maps(open_store(out), tmp_path)
    assert numbers.tolist() == frames
    assert found.shape[1:] == clip.world.labels.shape[1:]


def test_relinking_changes_tracks_and_nothing_else(clip: Clip, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other options give other tracks from the same fragments, no worker starts, and relinking back gives the first
    bytes again; resume then knows the new options; segment with the old ones is refused with exit 5."""
    out = in_memory()
    run(clip, out)
    store = open_store(out)
    first, fragments = published(store), list(store.walk("_state/data"))

    def no_pool(*_: object) -> None:
        raise AssertionError("relinking started a worker")

    monkeypatch.setattr(open_units_run, "make_workers", no_pool)
    summary = relink(prepare_relink(store, {"max_age": 0.0}), QUIET)
    assert not summary.already_done
    assert len(tracks(store)) > sum(np.unique(clip.world.labels) > 0)
    assert published(store) != first
    assert list(store.walk("_state/data")) == fragments
    assert recorded_spec(store, {}).max_age == 0.0
    assert run_job(prepare(recorded_spec(store, {})), QUIET).already_done
    with pytest.raises(JobError, match=r"linked with --max-age 0\.0.*relink") as refused:
        run(clip, out)
    assert refused.value.code is Exit.OTHER_JOB
    with pytest.raises(JobError, match=r"linked with --max-age 0\.0.*relink"):
        finished_exit(prepare(job(clip, out)))  # and submit says the same, before the job is on a cluster
    relink(prepare_relink(store, {"max_age": 1.0}), QUIET)
    assert published(store) == first


def test_a_relink_records_its_options_before_it_lets_go(clip: Clip, monkeypatch: pytest.MonkeyPatch) -> None:
    """The job names them while the lease is held and before the result is there: no run can come in between."""
    out = in_memory()
    run(clip, out)
    store, seen = open_store(out), []
    real = job_record.record_links

    def recorded(*args: Any) -> None:
        seen.append((Observer(store).look().state, store.exists(layout.SUCCESS)))
        real(*args)

    monkeypatch.setattr(leased_run, "record_links", recorded)
    relink(prepare_relink(store, {"max_age": 0.0}), QUIET)
    assert seen == [("alive", False)]
    assert (read_job(store) or {})["spec"]["max_age"] == 0.0


def test_who_follows_a_relink_does_not_undo_it(clip: Clip, monkeypatch: pytest.MonkeyPatch) -> None:
    """A command with the old options that attaches to a relink ends with exit 5 when it is over."""
    out = in_memory()
    run(clip, out)
    store, ends = open_store(out), []
    real, began = results.withdraw_unlisted, threading.Event()

    def follow() -> None:
        with pytest.raises(JobError, match=r"max-age 0\.0") as e:
            run_job(prepare(job(clip, out)), QUIET)
        ends.append(e.value.code)

    follower = threading.Thread(target=follow)

    def withdrawn(*args: Any) -> None:
        if not began.is_set():
            began.set()
            follower.start()
            time.sleep(2.5)  # it looks at the lease about once a second
        real(*args)

    monkeypatch.setattr(leased_run, "withdraw_unlisted", withdrawn)
    relink(prepare_relink(store, {"max_age": 0.0}), QUIET)
    follower.join(timeout=60)
    assert ends == [Exit.OTHER_JOB]
    success = json.loads(store.read_bytes(layout.SUCCESS))
    assert success["link"]["max_age"] == 0.0
    assert (read_job(store) or {})["spec"]["max_age"] == 0.0
    assert run_job(prepare(recorded_spec(store, {})), QUIET).already_done


def test_an_interrupted_relink_is_finished_by_the_next(clip: Clip, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed before it published, a relink leaves no result that readers would trust; the same command completes it."""
    out = in_memory()
    run(clip, out)
    store = open_store(out)
    with monkeypatch.context() as m:
        m.setattr(leased_run, "manifest", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            relink(prepare_relink(store, {"max_age": 0.0}), QUIET)
    assert not store.exists(layout.SUCCESS)
    relink(prepare_relink(store, {"max_age": 0.0}), QUIET)
    calm = in_memory()
    run(clip, calm, max_age=0.0)
    assert published(store) == published(open_store(calm))


def test_minvis_needs_the_states_of_all_queries(clip: Clip) -> None:
    """Relinking by minvis over fragments without them is refused in one sentence, with exit 2."""
    out = in_memory()
    run(clip, out)
    with pytest.raises(JobError, match="states of all queries") as refused:
        prepare_relink(open_store(out), {"link": "minvis"})
    assert refused.value.code is Exit.INVALID


def test_relinking_by_minvis_leaves_out_what_it_has_no_use_for(clip: Clip) -> None:
    """The options of the other linker that the folder names go; those that are asked for with it are refused."""
    out = in_memory()
    run(clip, out, all_queries=True, max_age=3.0, min_hits=5)
    store = open_store(out)
    spec = prepare_relink(store, {"link": "minvis"}).spec
    assert (spec.link, spec.max_age, spec.min_hits) == ("minvis", 1.0, 5)
    with pytest.raises(JobError, match="--max-age: nothing to --link minvis") as refused:
        prepare_relink(store, {"link": "minvis", "max_age": 2.0})
    assert refused.value.code is Exit.INVALID


def test_the_built_in_model_links_by_overlap(clip: Clip) -> None:
    """Its queries know places, so no embedding is stored that would join what stood at one place; options that weigh
    embeddings are refused, those of overlap are not."""
    spec = dataclasses.replace(job(clip, in_memory(), every=20), model="builtin", labels=None, min_iou=0.2)
    run_job(prepare(spec), QUIET)
    store = open_store(spec.out)
    (plan_key,) = store.keys("_state/plan")
    fragments = VideoFragments(store, VideoPlan.from_json(store.read_bytes(plan_key)))
    channels = {f.rows().embeddings.shape[1] for _, f in fragments if f is not None}
    assert channels == {0}
    with pytest.raises(JobError, match="--iou-weight weighs overlap against the likeness") as refused:
        prepare(dataclasses.replace(spec, iou_weight=2.0))
    assert refused.value.code is Exit.INVALID


def test_rasters_and_videos_in_one_job(clip: Clip, tmp_path: Path) -> None:
    """A job may hold both kinds where its model can serve both; an echo holds the truth of one kind and says so."""
    raster = write_world(make_raster_world(3, 90, 100), tmp_path / "raster")
    spec = dataclasses.replace(job(clip, in_memory()), sources=(str(clip.path), str(raster.image)))
    with pytest.raises(JobError, match="is a raster") as refused:
        prepare(spec)
    assert refused.value.code is Exit.INVALID
    both = prepare(dataclasses.replace(spec, model="builtin", labels=None))
    assert [plan.kind for plan in both.plans] == ["raster", "video"]


def test_a_folder_of_numbered_images_is_a_video(clip: Clip, tmp_path: Path) -> None:
    """With --as video a folder of frames is one video at --sequence-fps; without, they are rasters."""
    folder = tmp_path / "frames"
    folder.mkdir()
    for i, rgb in enumerate(clip.world.rgb):
        Image.fromarray(rgb).save(folder / f"frame_{i:04d}.png")
    spec = dataclasses.replace(
        job(clip, in_memory(), kind="video", sequence_fps=10.0), sources=(str(folder),)
    )
    prepared = prepare(spec)
    summary = run_job(prepared, QUIET)
    assert summary.exit is Exit.DONE
    found, numbers = maps(open_store(spec.out), tmp_path)
    assert same_partition(expected_ids(clip.world, numbers, 1.0), found)[1] == []
    newest = max(path.stat().st_mtime_ns for path in folder.iterdir())
    assert isinstance(prepared.plans[0], VideoPlan)
    assert prepared.plans[0].info.written_ns == newest


def test_a_video_in_an_object_store_is_the_same_video_again(clip: Clip) -> None:
    """The same command runs nothing, and relinking finds all units done; another object under the name is a changed
    input, though as long, and no worker takes it for the one that was planned."""
    fs = fsspec.filesystem("memory")
    uri = f"{in_memory()}/clip.mp4"
    fs.pipe_file(uri.removeprefix("memory:/"), clip.path.read_bytes())
    spec = dataclasses.replace(job(clip, in_memory()), sources=(uri,))
    assert run_job(prepare(spec), QUIET).exit is Exit.DONE
    assert run_job(prepare(spec), QUIET).already_done
    store = open_store(spec.out)
    assert relink(prepare_relink(store, {"max_age": 0.0}), QUIET).exit is Exit.DONE
    fs.pipe_file(uri.removeprefix("memory:/"), clip.path.read_bytes()[:-1] + b"x")
    prepared = prepare(recorded_spec(store, {}))
    stored = store.read_bytes(layout.plan_key(prepared.plans[0].key))
    assert input_change(store, prepared.plans[0], stored) == "content"
    with pytest.raises(ValueError, match="changed since it was planned"):
        VideoInput(stored, InputContext(TABLE, (0, 0, 0), 3, 1))


def test_images_that_change_places_are_another_video(clip: Clip, tmp_path: Path) -> None:
    """Two images of a folder swapped by renaming: sizes and times are the old ones, and the folder is done again."""
    folder = tmp_path / "frames"
    folder.mkdir()
    for i, rgb in enumerate(clip.world.rgb):
        Image.fromarray(rgb).save(folder / f"{i}.png")
    spec = dataclasses.replace(job(clip, in_memory(), kind="video"), sources=(str(folder),))
    run_job(prepare(spec), QUIET)
    assert run_job(prepare(spec), QUIET).already_done
    for old, new in (("0.png", "t"), ("39.png", "0.png"), ("t", "39.png")):
        (folder / old).rename(folder / new)
    assert not run_job(prepare(spec), QUIET).already_done


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"bands": (1, 2, 3)}, "--bands asks something of a raster"),
        ({"max_pixels": 100.0}, "--max-pixels asks something of a raster"),
        ({"allow_drivers": ("BMP",)}, "--allow-drivers asks something of a raster"),
        ({"vector": False}, "--no-vector asks something of a raster"),
        ({"sequence_fps": 3.0}, "--sequence-fps gives the times of a folder"),
        ({"fps": 2.0, "every": 3}, "--fps and --every exclude each other"),
        ({"start": 99.0}, "--start"),
        ({"start": -1.0}, "--start must be seconds after the first frame, from 0"),
        ({"start": float("nan")}, "--start must be"),
        ({"end": -1.0}, "--end must be positive"),
        ({"end": float("nan")}, "--end must be positive"),
        (
            {"link": "minvis", "max_age": 3.0, "min_iou": 0.2},
            "--max-age, --min-iou: nothing to --link minvis",
        ),
        ({"max_age": -1.0}, "--max-age"),
        ({"match_threshold": 11.0}, "--match-threshold"),
        ({"link": "sort"}, "--link"),
        ({"frame_size": 8}, "--frame-size"),
    ],
)
def test_options_without_effect_or_sense_are_refused(
    clip: Clip, options: dict[str, Any], sentence: str
) -> None:
    """Exit 2, one sentence that names the option."""
    with pytest.raises((JobError, ValueError), match=sentence):
        prepare(job(clip, in_memory(), **options))


def test_video_options_on_rasters_are_refused(tmp_path: Path) -> None:
    """A raster has no frames: --fps is an error, not ignored."""
    raster = write_world(make_raster_world(3, 90, 100), tmp_path / "raster")
    spec = JobSpec((str(raster.image),), in_memory(), model=raster.model, local=True, fps=5.0)
    with pytest.raises(JobError, match="--fps asks something of a video") as refused:
        prepare(spec)
    assert refused.value.code is Exit.INVALID


def test_a_video_is_not_told_to_use_smaller_tiles(clip: Clip) -> None:
    """The note on a network that ran out of queries names a frame, and no option that videos refuse."""
    prepared = prepare(job(clip, in_memory()))
    summary = run_job(prepared, QUIET)
    summary.metrics["queries"] = {"max": 100, "used_max": 99}
    text = summary_text(summary)
    assert "a frame used 99 of the network's 100 queries" in text
    assert "--tile" not in text


def test_contact_sheets_are_drawn_again(clip: Clip) -> None:
    """``preview`` draws a video's sheet from the published tables, at another size."""
    out = in_memory()
    run(clip, out)
    (path,) = redraw(out, 600).paths
    data = open_store(out).read_bytes(path.removeprefix(open_store(out).root).lstrip("/"))
    width, height = Image.open(io.BytesIO(data)).size
    assert max(width, height) <= 600


def test_a_contact_sheet_is_not_drawn_over_another_video(clip: Clip, tmp_path: Path) -> None:
    """One of equal size under the name: exit 2, and what to do."""
    path, out = tmp_path / "clip.mp4", in_memory()
    path.write_bytes(clip.path.read_bytes())
    run_job(prepare(dataclasses.replace(job(clip, out), sources=(str(path),))), QUIET)
    path.write_bytes(clip.path.read_bytes()[:-1] + b"x")
    with pytest.raises(JobError, match=r"clip\.mp4 has changed since it was segmented") as refused:
        redraw(out, 600)
    assert refused.value.code is Exit.INVALID


@pytest.mark.slow
@pytest.mark.parametrize("local", [True, False])
def test_any_number_of_workers_publishes_the_same_bytes(
    clip: Clip, tmp_path: Path, local: bool, small_ray: None
) -> None:
    """One worker thread, two local processes and two Ray actors give byte-identical trees, overlay included."""
    reference = in_memory()
    run(clip, reference, overlay=True)
    run(clip, tmp_path / "out", overlay=True, local=local, workers=2)
    assert published(open_store(tmp_path / "out")) == published(open_store(reference))


def test_lost_commits_are_redone_to_the_same_bytes(clip: Clip, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run whose commits are partly gone segments those units alone and ends with the bytes of a calm run."""
    monkeypatch.setattr("panoptile.jobs.video_sources.default_unit_frames", lambda n: 6)
    calm, broken = in_memory(), in_memory()
    run(clip, calm)
    run(clip, broken)
    store = open_store(broken)
    (plan_key,) = store.keys("_state/plan")
    units = list(VideoPlan.from_json(store.read_bytes(plan_key)).units())
    assert len(units) >= 4
    for unit in units[::2]:
        store.delete(layout.commit_key(unit))
    store.delete(layout.SUCCESS)
    summary = run(clip, broken)
    assert summary.metrics["units_run"] == len(units[::2])
    assert published(store) == published(open_store(calm))


@pytest.fixture
def archived(clip: Clip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> JobSpec:
    """A growing job over a folder of two videos, both finished, in several units; the first is archived since."""
    monkeypatch.setattr("panoptile.jobs.video_sources.default_unit_frames", lambda n: 6)
    folder = tmp_path / "videos"
    folder.mkdir()
    for name in ("a.mp4", "b.mp4"):
        (folder / name).write_bytes(clip.path.read_bytes())
    spec = job(clip, in_memory(), incremental=True, overlay=True, kind="video")
    spec = dataclasses.replace(spec, sources=(str(folder),))
    run_job(prepare(spec), QUIET)
    (folder / "a.mp4").unlink()
    return spec


def _lose(store: Store, prefix: str) -> None:
    """Remove the first file whose key begins so."""
    store.delete(next(s.key for s in store.walk() if s.key.startswith(prefix)))


def test_an_archived_video_is_published_again_without_its_frames(archived: JobSpec, tmp_path: Path) -> None:
    """A table and both pictures are gone: the table is the same bytes, the pictures show the masks at the same times."""
    store = open_store(archived.out)
    before = published(store)
    (overlay,) = [key for key in before if "/a-" in key and key.endswith(".mp4")]
    ticks = _frame_times(store.local_copy(overlay, tmp_path))
    _lose(store, "video/a-")
    store.delete(overlay)
    _lose(store, "previews/a-")
    assert run_job(prepare(archived), QUIET).exit is Exit.DONE
    after = published(store)
    assert {k for k in before if before[k] != after.pop(k)} == {overlay, layout.MANIFEST}
    assert not after
    assert _frame_times(store.local_copy(overlay, tmp_path)) == ticks
    assert any(s.key.startswith("previews/a-") for s in store.walk("previews"))
    assert run_job(prepare(archived), QUIET).already_done


def test_a_contact_sheet_whose_video_is_gone_stays(archived: JobSpec) -> None:
    """Where it is missing, it is drawn without the video; that of the other video is drawn in any case."""
    store = open_store(archived.out)
    key = next(s.key for s in store.walk("previews") if s.key.startswith("previews/a-"))
    before = store.read_bytes(key)
    drawn = redraw(archived.out, 600)
    assert ([Path(uri).name for uri in drawn.left], len(drawn.paths)) == (["a.mp4"], 1)
    assert store.read_bytes(key) == before
    store.delete(key)
    assert len(redraw(archived.out, 600).paths) == 2
    assert store.exists(key)


def _frame_times(path: Path) -> list[int | None]:
    with av.open(str(path)) as video:
        return [frame.pts for frame in video.decode(video=0)]


def test_an_archived_video_is_linked_anew(archived: JobSpec) -> None:
    """From its fragments; where one of them is gone nothing is linked, and nothing is taken away: exit 2."""
    store = open_store(archived.out)
    before = published(store)
    relink(prepare_relink(store, {"max_age": 0.0}), QUIET)
    (tracks_key,) = [key for key in before if "/a-" in key and key.endswith("tracks.parquet")]
    linked = published(store)
    assert linked[tracks_key] != before[tracks_key]
    _lose(store, "_state/data/a-")
    with pytest.raises(JobError, match=r"a\.mp4 cannot be linked anew: .*Put it back") as refused:
        prepare_relink(store, {"max_age": 1.0})
    assert refused.value.code is Exit.INVALID
    assert run_job(prepare(recorded_spec(store, {})), QUIET).already_done
    assert published(store) == linked
