"""What a run will cost, measured: a few of the items that it would do go through a real worker, and nothing is kept.

Samples are groups of consecutive items (a batch at least), spread evenly over the units that are to do, with a random
start that follows from the job's fingerprint: the same plan asks for the same sample. The estimate is the mean over
groups, times the number of groups; the error is twice its standard error (about 95 %).
"""

from __future__ import annotations

import math
import random
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from panoptile.jobs.exits import Exit, JobError, invalid
from panoptile.jobs.prepare import Prepared
from panoptile.pipeline.attempt import Attempt, UnitError, UnitReport
from panoptile.pipeline.layout import plan_key
from panoptile.pipeline.plan import Unit
from panoptile.pipeline.pool import IN_FLIGHT
from panoptile.pipeline.store import open_store
from panoptile.pipeline.worker import Worker, WorkerSpec

WARM_UP = 1
"""Groups that are run first and not counted: kernels are chosen and files opened then."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """What was measured, and what follows for all that is to do."""

    sampled: int
    """Items that were timed."""
    empty: int
    """Of those, items without any input."""
    items: int
    """Of all units that are to do."""
    seconds_per_item: float
    replica_seconds: float
    """Of one replica, for all of them, without start-up, stitching and publishing."""
    error: float
    """Half-width of the estimate as a share of it, about 95 %; infinite for a single group."""
    start_seconds: float
    """Until the replica was ready."""
    read_share: float
    """Reading seconds per second of the replica: above the number of reading threads, reading is what limits."""
    cost: float | None
    """Replica-hours times the price."""

    @property
    def replica_hours(self) -> float:
        return self.replica_seconds / 3600


@dataclass(frozen=True, slots=True)
class _Group:
    """Consecutive items of one unit."""

    unit: Unit
    items: tuple[int, ...]


def estimate(prepared: Prepared, units: Sequence[Unit], wanted: int, price: float | None) -> Estimate:
    """Time about ``wanted`` items of ``units``, those that are to do. Raises :class:`JobError` (exit 4) where they fail.

    Without units no replica is started, and nothing is what it costs.
    """
    if not units:
        return _nothing_to_do(price)
    groups = sample(units, wanted, prepared.spec.batch, seed=prepared.fingerprint)
    by_key = {plan.key: plan for plan in prepared.plans}
    with tempfile.TemporaryDirectory(prefix="panoptile-sample-") as folder:
        store = open_store(folder)
        for key in {g.unit.key for g in groups}:
            store.put_bytes(plan_key(key), by_key[key].to_json())
        spec = WorkerSpec(
            folder,
            prepared.model.factory,
            prepared.spec.batch,
            prepared.model.channels,
            threads=prepared.spec.threads,
        )
        began = time.perf_counter()
        worker = Worker(spec, "sample")
        start_seconds = time.perf_counter() - began
        try:
            for group in groups[:WARM_UP]:
                _run(worker, group)
            reports = _run_all(worker, groups)
        finally:
            worker.close()
    return _extrapolated(reports, sum(unit.count for unit in units), start_seconds, price)


def _nothing_to_do(price: float | None) -> Estimate:
    cost = None if price is None else 0.0
    return Estimate(
        sampled=0,
        empty=0,
        items=0,
        seconds_per_item=0.0,
        replica_seconds=0.0,
        error=0.0,
        start_seconds=0.0,
        read_share=0.0,
        cost=cost,
    )


def sample(units: Sequence[Unit], wanted: int, batch: int, *, seed: str) -> list[_Group]:
    """Groups of at most ``batch`` items at even distances over all items of the units, at most all of them."""
    total = sum(unit.count for unit in units)
    count = max(1, min(math.ceil(wanted / batch), math.ceil(total / batch)))
    step = total / count
    start = random.Random(seed).random() * step
    at = [int(start + i * step) % total for i in range(count)]
    groups: dict[tuple[Unit, int], _Group] = {}
    position = 0
    queue = sorted(at)
    for unit in units:
        while queue and queue[0] < position + unit.count:
            first = (queue.pop(0) - position) // batch * batch
            items = tuple(unit.items)[first : first + batch]
            groups[unit, first] = _Group(unit, items)
        position += unit.count
    return list(groups.values())


def _run_all(worker: Worker, groups: Sequence[_Group]) -> list[UnitReport]:
    """As in a run: while one group holds the replica, the next is read and the one before is encoded.

    Those take cores, and the interpreter, from a replica that computes on the CPU.
    """
    with ThreadPoolExecutor(IN_FLIGHT, "sample") as threads:
        running = [threads.submit(_run, worker, group) for group in groups]
        try:
            return [future.result() for future in running]
        finally:
            for future in running:
                future.cancel()


def _run(worker: Worker, group: _Group) -> UnitReport:
    try:
        report = worker.run(Attempt(group.unit, only=group.items))
    except UnitError as e:
        raise JobError(
            Exit.FAILED, f"A sampled tile failed: {e}. The run would retry it and set it aside."
        ) from e
    return report


def _extrapolated(
    reports: list[UnitReport], items: int, start_seconds: float, price: float | None
) -> Estimate:
    costs = [_replica_seconds(r) for r in reports]
    sizes = [max(1, r.tiles) for r in reports]
    sampled = sum(sizes)
    mean = sum(costs) / sampled
    total = mean * items
    error = math.inf
    if len(costs) > 1:
        # Groups differ in size at the ends of units alone: the ratio estimator's residuals give its variance.
        residuals = [c - mean * n for c, n in zip(costs, sizes, strict=True)]
        variance = sum(r * r for r in residuals) / (len(costs) - 1)
        left = max(0.0, 1 - sampled / items)  # a sample of everything has no error
        error = 2 * math.sqrt(variance * len(costs) * left) / max(sum(costs), 1e-12)
    read = sum(r.read_seconds for r in reports)
    return Estimate(
        sampled=sampled,
        empty=sum(r.empty_tiles for r in reports),
        items=items,
        seconds_per_item=mean,
        replica_seconds=total,
        error=error,
        start_seconds=start_seconds,
        read_share=read / max(sum(costs), 1e-12),
        cost=None if price is None else total / 3600 * price,
    )


READERS = 2


def _replica_seconds(report: UnitReport) -> float:
    """The time that a batch holds the replica: reading and writing go on beside it, by two threads each."""
    return max(report.infer_seconds, report.read_seconds / READERS, report.encode_seconds / READERS)


def check_prices(sample: int | None, price: float | None, budget: float | None) -> None:
    """Refuse options that would have no effect, and nonsense: exit 2."""
    if price is not None and sample is None:
        raise invalid("--price needs --sample N: without timed tiles nothing is known of the hours.")
    if budget is not None and price is None:
        raise invalid("--budget needs --price: without it nothing is known of the cost.")
    if sample is not None and sample < 1:
        raise invalid(f"--sample wants a number of tiles from 1, got {sample}.")
    for option, value in (("--price", price), ("--budget", budget)):
        if value is not None and not 0 <= value < math.inf:
            raise invalid(f"{option} wants an amount of money, got {value}.")


def check_budget(found: Estimate, budget: float | None) -> None:
    """Raises :class:`JobError` (exit 8) where the estimate's upper end is above the budget."""
    if budget is None or found.cost is None:
        return
    high = found.cost * (1 + (found.error if math.isfinite(found.error) else 1.0))
    if high > budget:
        raise JobError(
            Exit.OVER_BUDGET,
            f"The run would cost {_money(found.cost)} (up to {_money(high)}), more than --budget {_money(budget)}.",
        )


def _money(amount: float) -> str:
    """With two decimals, or two digits where it is less than a hundredth."""
    return f"{amount:,.2f}" if amount == 0 or amount >= 0.01 else f"{amount:.2g}"


def estimate_text(found: Estimate) -> str:
    """One line for people."""
    if found.items == 0:
        cost = "" if found.cost is None else f"  cost {_money(found.cost)}"
        return f"estimate 0 replica-seconds{cost}  (no unit is left to run)"
    margin = f" ±{found.error:.0%}" if math.isfinite(found.error) else ""
    cost = "" if found.cost is None else f"  cost {_money(found.cost)}"
    seconds = found.replica_seconds
    total = (
        f"{seconds:,.0f} replica-seconds" if seconds < 3600 else f"{found.replica_hours:,.2f} replica-hours"
    )
    empty = f", {found.empty / found.sampled:.0%} without input" if found.empty else ""
    return (
        f"estimate {total}{margin}{cost}  ({found.sampled} of {found.items:,} tiles timed, "
        f"{found.seconds_per_item:.3f} s each{empty}; start-up {found.start_seconds:.0f} s per replica)"
    )
