"""Publishing one input, as a call that any process can make: while the units of other inputs go on.

What a call leaves is in the store: the files, and the record of what was found. A call that fails, or is lost with its
process, costs nothing but time: the run publishes at its end whatever is not published by then.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from panoptile.jobs.exits import Exit, JobError
from panoptile.jobs.input_record import save_result
from panoptile.jobs.prepare import Prepared, region_classes
from panoptile.jobs.source_change import is_segmented, planned_versions, version_now
from panoptile.jobs.spec import LAYOUT_VERSION, JobSpec
from panoptile.jobs.time_limit import seconds_from
from panoptile.model.classes import ClassTable
from panoptile.pipeline.any_plan import AnyPlan
from panoptile.pipeline.background import Background, ProcessBackground
from panoptile.pipeline.fault_points import reach
from panoptile.pipeline.finish import FinishedInput, Products, finish_input
from panoptile.pipeline.plan import Unit
from panoptile.pipeline.remote_uri import needs_one_process
from panoptile.pipeline.stitch import NodeFilter
from panoptile.pipeline.store import Store, open_store
from panoptile.pipeline.video_finish import VideoProducts, finish_video
from panoptile.pipeline.video_plan import VideoPlan

PUBLISH_VARIABLE = "PANOPTILE_PUBLISH_SECONDS"
PUBLISH_SECONDS = 1800.0
"""How long any input may take; and for what it holds, some twenty times of what one core needs:"""
SECONDS_PER_MPX = 10.0
SECONDS_PER_FRAME = 1.0


@dataclass(frozen=True, slots=True)
class PublishCall:
    """Joins and publishes one input."""

    spec: JobSpec
    model_sha256: str
    classes: ClassTable
    keep: NodeFilter
    plan: AnyPlan
    result_name: str
    """What the record must say for a later run to trust it."""
    kept: bool = False
    """The sources do not name the input any more: it is published from its fragments, whatever became of its file."""

    def __call__(self) -> None:
        """Publish, and leave the record of it."""
        store = open_store(self.spec.out)
        save_result(store, self.finished(store), self.result_name)

    def finished(self, store: Store, threads: int = 1) -> FinishedInput:
        """Publish. Raises :class:`JobError` where the input has changed, ``OSError`` or ``ValueError`` else."""
        reach("publish.input")
        spec, plan = self.spec, self.plan
        if not self.kept:
            check_unchanged(plan)
        photograph = not self.kept or is_segmented(store, plan)
        if isinstance(plan, VideoPlan):
            products = VideoProducts(spec.link_options(), spec.overlay, photograph=photograph)
            return finish_video(store, plan, self.classes, self.keep, products)
        tags = {
            "PANOPTILE_LAYOUT": str(LAYOUT_VERSION),
            "MODEL_SHA256": self.model_sha256,
            "TILE": str(spec.tile),
            "OVERLAP": str(spec.overlap),
        }
        files = Products(
            spec.raster,
            spec.vector,
            compression=spec.compression,
            regions=region_classes(spec, self.classes),
            threads=threads,
            photograph=photograph,
        )
        return finish_input(store, plan, self.classes, self.keep, files, tags)


def publish_call(prepared: Prepared, plan: AnyPlan) -> PublishCall:
    """The call that publishes one input of a job."""
    model = prepared.model
    return PublishCall(
        prepared.spec,
        model.sha256,
        model.classes,
        prepared.node_filter(plan),
        plan,
        prepared.result_name(plan),
        plan.key in prepared.kept.keys,
    )


def check_unchanged(plan: AnyPlan) -> None:
    """An input that was replaced while it was read would give a mixture: exit 4, and the next run redoes it."""
    for uri, planned in planned_versions(plan):
        try:
            now = version_now(plan, uri)
        except FileNotFoundError as e:
            raise JobError(
                Exit.FAILED, f"{uri} has gone since the run began: put it back and run again."
            ) from e
        if now != planned:
            raise JobError(
                Exit.FAILED, f"{uri} was changed while it was read: run again to segment what it is now."
            )


def publish_seconds(plan: AnyPlan) -> float:
    """How long publishing one input may take before it counts as hung. Raises :class:`JobError` (exit 2)."""
    is_video = isinstance(plan, VideoPlan)
    held = plan.item_count * SECONDS_PER_FRAME if is_video else plan.pixels / 1e6 * SECONDS_PER_MPX
    return seconds_from(PUBLISH_VARIABLE, PUBLISH_SECONDS + held)


def longest_first(units: Iterable[Unit]) -> list[Unit]:
    """Units of the input with the most of them first, each input's in their order: the last ones end together."""
    listed = list(units)
    counts = Counter(unit.key for unit in listed)
    seen: dict[str, int] = {}
    for unit in listed:
        seen.setdefault(unit.key, len(seen))
    return sorted(listed, key=lambda unit: (-counts[unit.key], seen[unit.key]))


def make_background(spec: JobSpec, inputs: int, at_once: int) -> Background | None:
    """Where up to ``at_once`` inputs are published beside the replicas; None where they are not.

    That is so for one input, and for a store of one process. Ray must be connected, unless the job is local.
    """
    if inputs < 2 or needs_one_process(spec.out):
        return None
    if spec.local:
        return ProcessBackground(at_once, threads=spec.threads)
    from panoptile.pipeline.ray_background import RayBackground

    return RayBackground(at_once, threads=spec.threads)


class StreamedPublishing:
    """Publishes inputs in the background as their units are settled."""

    def __init__(self, prepared: Prepared, background: Background | None, say: Callable[[str], None]) -> None:
        """``background`` None: nothing is published before the end."""
        self._prepared, self._background, self._say = prepared, background, say
        self._plans = {plan.key: plan for plan in prepared.plans}
        self.done = 0
        """Inputs that were published so."""

    def input_done(self, key: str) -> str | None:
        """All units of the input are settled: its URI where it is published now, None where it is at the end."""
        if self._background is None:
            return None
        plan = self._plans[key]
        self._say(f"publish {plan.info.stem}")
        call = publish_call(self._prepared, plan)
        self._background.submit(key, call, seconds=publish_seconds(plan))
        return plan.uri

    def turn(self, timeout: float = 0.0) -> None:
        """Take note of what is published."""
        if self._background is None:
            return
        for result in self._background.poll(timeout):
            if result.error:
                uri = self._plans[result.key].uri
                self._say(f"retry   publishing {uri} failed and is tried again at the end: {result.error}")
            else:
                self.done += 1

    def finish(self, check: Callable[[], None], at_once: int = 1) -> None:
        """Wait for what is still being published, ``at_once`` inputs or more; ``check`` may raise to end that."""
        if self._background is not None:
            self._background.widen(at_once)
        while self._background is not None and self._background.pending():
            self.turn(0.5)
            check()

    def close(self) -> None:
        if self._background is not None:
            self._background.close()
