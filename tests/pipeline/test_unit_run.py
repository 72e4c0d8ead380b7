"""A worker's attempt at a unit: batches, items that fail, memory that is short, and what is committed."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.pipeline.planned import commit_of, plan_tiles
from tests.pipeline.trigger_replica import BREAK, RAISE, TriggerFactory, TriggerReplica

from panoptile.model.panoptic_map import PanopticMap
from panoptile.pipeline.attempt import Attempt, UnitError
from panoptile.pipeline.driver import run_units
from panoptile.pipeline.grid import Tile
from panoptile.pipeline.layout import commit_key, plan_key
from panoptile.pipeline.open_inputs import KEPT, OpenInputs
from panoptile.pipeline.plan import RasterPlan, Unit
from panoptile.pipeline.pool import LocalPool
from panoptile.pipeline.prefetch import Prefetch
from panoptile.pipeline.raster_input import RasterItems
from panoptile.pipeline.recovery import Policy
from panoptile.pipeline.replica import Frame, TileBatch
from panoptile.pipeline.store_local import LocalStore
from panoptile.pipeline.unit_input import InputContext, ItemRead, PackedItem, open_input
from panoptile.pipeline.window import Window
from panoptile.pipeline.worker import Worker, WorkerSpec


class Bench:
    """A worker on a store with one planned raster, and its replica to look into."""

    def __init__(self, folder: Path, *, tiles: int = 6, batch: int = 1, triggers: dict[int, int] | None = None,
                 factory: TriggerFactory | None = None) -> None:  # fmt: skip
        self.store = LocalStore(folder / "out")
        self.plan: RasterPlan = plan_tiles(folder, self.store, 1, tiles, triggers)
        self.unit = Unit(self.plan.key, 0, tiles)
        self.replicas: list[TriggerReplica] = []
        build = factory or TriggerFactory()

        def make() -> TriggerReplica:
            self.replicas.append(build())
            return self.replicas[-1]

        self.worker = Worker(WorkerSpec(str(self.store.root), make, batch))


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Callable[..., Bench]]:
    made: list[Bench] = []

    def make(**options: object) -> Bench:
        folder = tmp_path / str(len(made))
        folder.mkdir()
        made.append(Bench(folder, **options))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for b in made:
        b.worker.close()


def test_memory_that_is_short_halves_the_batch_and_is_remembered(bench: Callable[..., Bench]) -> None:
    """Nothing fails, the shape stays fixed per size, later units start with it, and the result is the same."""
    calm, tight = bench(batch=4), bench(batch=4, factory=TriggerFactory(largest_batch=1))
    a, b = calm.worker.run(Attempt(calm.unit)), tight.worker.run(Attempt(tight.unit))
    assert calm.replicas[0].sizes == [4, 4]  # six images, two of padding
    assert tight.replicas[0].sizes == [1] * 6
    assert (a.batch, b.batch) == (4, 1)
    assert commit_of(calm.store, calm.unit)["sha256"] == commit_of(tight.store, tight.unit)["sha256"]
    with mock.patch.object(
        TriggerReplica, "segment", autospec=True, side_effect=TriggerReplica.segment
    ) as seen:
        tight.worker.run(Attempt(Unit(tight.plan.key, 0, 2)))
    assert [len(call.args[1].pixels) for call in seen.call_args_list] == [1, 1]


def test_one_image_that_does_not_fit_fails_alone(bench: Callable[..., Bench]) -> None:
    """A batch of one cannot be halved: the tile is named, with the reason."""
    b = bench(batch=2, factory=TriggerFactory(largest_batch=0))
    with pytest.raises(UnitError, match=r"all 6 items failed.*do not fit"):
        b.worker.run(Attempt(b.unit))


@pytest.mark.parametrize("batch", [1, 2, 4])
def test_a_tile_that_the_replica_refuses_is_named_whatever_the_batch(
    bench: Callable[..., Bench], batch: int
) -> None:
    """Its batch-mates are done; without tolerance nothing is committed, with it the tile is named."""
    b = bench(batch=batch, triggers={4: RAISE})
    report = b.worker.run(Attempt(b.unit))
    assert [(f.item, f.stage, f.error_type) for f in report.failures] == [(4, "infer", "ValueError")]
    assert not report.committed
    assert report.fragment is not None
    assert not b.store.exists(commit_key(b.unit))
    tolerant = b.worker.run(Attempt(b.unit, tolerant=True))
    assert tolerant.committed
    commit = commit_of(b.store, b.unit)
    assert commit["failed_tiles"] == [4]
    assert commit["sha256"] == report.fragment.sha256


def test_a_probe_writes_nothing(bench: Callable[..., Bench]) -> None:
    """Probing items leaves no fragment and no commit."""
    b = bench()
    report = b.worker.run(Attempt(b.unit, only=(1, 3)))
    assert (report.tiles, report.committed, report.fragment) == (2, False, None)
    assert b.store.keys("_state/data") == []
    assert b.store.keys("_state/commits") == []


def test_a_tile_that_cannot_be_read_is_named_and_the_others_are_done(bench: Callable[..., Bench]) -> None:
    """A read error concerns its tile; the error's type and text are kept."""
    b, real = bench(), RasterItems.read

    def read(items: RasterItems, item: int) -> ItemRead:
        if item == 2:
            raise OSError("block is torn")
        return real(items, item)

    with mock.patch.object(RasterItems, "read", read):
        report = b.worker.run(Attempt(b.unit, tolerant=True))
    assert [(f.item, f.stage, f.error_type, f.message) for f in report.failures] == [
        (2, "read", "OSError", "block is torn")
    ]
    assert "Traceback" in report.failures[0].traceback
    assert report.tiles == 5


def test_a_skipped_tile_gives_the_bytes_of_one_that_failed(bench: Callable[..., Bench]) -> None:
    """How a tile came to be given up leaves no trace in the fragment."""
    failing, skipping = bench(triggers={4: RAISE}), bench(triggers={4: RAISE})
    failing.worker.run(Attempt(failing.unit, tolerant=True))
    skipping.worker.run(Attempt(skipping.unit, skip=(4,)))
    a, b = commit_of(failing.store, failing.unit), commit_of(skipping.store, skipping.unit)
    assert a["sha256"] == b["sha256"]
    assert a["failed_tiles"] == b["failed_tiles"] == [4]


def test_an_input_that_has_gone_fails_in_the_stage_open(bench: Callable[..., Bench]) -> None:
    """A plan that is missing, or of an unknown kind, says so."""
    b = bench()
    b.store.put_bytes(plan_key(b.plan.key), b'{"kind": "hologram"}')
    with pytest.raises(UnitError, match="hologram") as e:
        b.worker.run(Attempt(b.unit))
    assert e.value.stage == "open"


def test_images_of_different_sizes_never_share_a_batch(bench: Callable[..., Bench]) -> None:
    """Frames may have any height and width: a change of size begins a new batch, and order is kept."""
    b, real = bench(batch=2, tiles=5), RasterItems.read

    def read(items: RasterItems, item: int) -> ItemRead:
        found = real(items, item)
        size = 64 if item in (0, 1, 4) else 48
        return ItemRead(Frame(item, item / 25), np.ascontiguousarray(found.pixels[:, :, :size]), None)

    shapes: list[tuple[int, ...]] = []
    frames: list[tuple[int, ...]] = []

    def segment(replica: TriggerReplica, batch: TileBatch) -> Sequence[PanopticMap]:
        shapes.append(batch.pixels.shape)
        frames.append(tuple(f.number for f in batch.frames))
        return [replica._map(image) for image in batch.pixels[: batch.count]]

    def encoding(
        items: RasterItems, item: int, read: ItemRead, panoptic: PanopticMap
    ) -> Callable[[], PackedItem]:
        assert isinstance(read.place, Frame)
        assert panoptic.labels.shape == read.pixels.shape[1:]
        return lambda: items.empty(item, read)

    with (
        mock.patch.object(RasterItems, "read", read),
        mock.patch.object(RasterItems, "encoding", encoding),
        mock.patch.object(TriggerReplica, "segment", segment),
    ):
        b.worker.run(Attempt(b.unit))
    assert shapes == [(2, 3, 64, 64), (2, 3, 64, 48), (2, 3, 64, 64)]
    assert frames == [(0, 1), (2, 3), (4,)]


@given(
    items=st.integers(0, 12),
    at_once=st.integers(1, 4),
    ahead=st.integers(1, 5),
    failing=st.sets(st.integers(0, 11), max_size=3),
)
def test_prefetch_delivers_all_reads_in_order_within_its_bounds(
    items: int, at_once: int, ahead: int, failing: set[int]
) -> None:
    """Never more running than allowed; one at a time means in the order of the items."""
    running, most, begun = 0, 0, []
    lock = threading.Lock()

    def read(item: int) -> ItemRead:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
            begun.append(item)
        time.sleep(0.0002)
        with lock:
            running -= 1
        if item in failing:
            raise OSError(str(item))
        tile = Tile(0, item, Window(0, 0, 1, 1), Window(0, 0, 1, 1))
        return ItemRead(tile, np.zeros((1, 1, 1), np.uint8), None)

    with ThreadPoolExecutor(4) as threads:
        prefetch = Prefetch(threads, range(items), read, at_once=at_once, ahead=ahead)
        delivered = [(item, future.exception()) for item, future in prefetch]
        prefetch.close()
    assert [item for item, _ in delivered] == list(range(items))
    assert {item for item, error in delivered if error} == failing & set(range(items))
    assert most <= at_once
    if at_once == 1:
        assert begun == list(range(items))


def test_a_closed_prefetch_reads_nothing_more() -> None:
    """An attempt that ends early leaves no reads behind."""
    begun: list[int] = []

    def read(item: int) -> ItemRead:
        begun.append(item)
        time.sleep(0.01)
        return ItemRead(Frame(item, 0.0), np.zeros((1, 1, 1), np.uint8), None)

    with ThreadPoolExecutor(1) as threads:
        prefetch = Prefetch(threads, range(1000), read, at_once=1, ahead=3)
        next(iter(prefetch))
        prefetch.close()
        count = len(begun)
        time.sleep(0.05)
        assert len(begun) == count < 10


class _Input:
    def __init__(self, key: str) -> None:
        self.key, self.closed = key, False

    def close(self) -> None:
        self.closed = True


def test_an_input_in_use_is_never_closed() -> None:
    """Few inputs stay open, but a unit that takes long keeps its own whatever the others open meanwhile."""
    opened: list[_Input] = []

    def open_one(key: str) -> _Input:
        opened.append(_Input(key))
        return opened[-1]

    inputs = OpenInputs(open_one)  # type: ignore[arg-type]
    with inputs.use("long") as long:
        for i in range(20):
            with inputs.use(f"k{i}"):
                pass
            assert sum(not o.closed for o in opened) <= KEPT + 1
        assert not long.closed  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="broken"), inputs.use("k19"):
        raise ValueError("broken")
    with inputs.use("k19"):
        assert sum(o.key == "k19" for o in opened) == 2  # opened anew after an error
    inputs.close()
    assert all(o.closed for o in opened)


def test_a_broken_replica_is_replaced_even_in_a_thread(tmp_path: Path) -> None:
    """Without processes, too: the tile that broke it is given up, the others get a new replica."""
    store = LocalStore(tmp_path / "out")
    plan = plan_tiles(tmp_path, store, 1, 5, {2: BREAK})
    pool = LocalPool(WorkerSpec(str(store.root), TriggerFactory()), 1)
    pool.start()
    result = run_units(pool, store, plan.units(), Policy(max_failures=1, retry_seconds=0.01))
    pool.close()
    assert [(d.unit.first, d.stage) for d in result.dead_items] == [(2, "worker")]
    assert "CUDA error" in result.dead_items[0].message
    assert result.totals.units == 4
    (busy,) = result.totals.busy.values()
    assert 0 < busy.share <= 1
    assert abs(busy.ended - time.time()) < 60


def test_an_unknown_kind_of_input_is_refused() -> None:
    """A plan of a later version says what is wrong."""
    context = InputContext(TriggerReplica.classes, (0, 0, 0), 3, 2)
    with pytest.raises(ValueError, match="hologram"):
        open_input(b'{"kind": "hologram"}', context)
