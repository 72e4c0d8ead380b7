"""Whether the files of an input are still those that were planned: what is drawn over others would be wrong."""

from __future__ import annotations

from panoptile.jobs.exits import Exit, JobError, invalid
from panoptile.jobs.input_content import is_same_content
from panoptile.pipeline.any_plan import AnyPlan
from panoptile.pipeline.inputs import shown
from panoptile.pipeline.remote_object import Version, version_of
from panoptile.pipeline.store import Store, StoreUnreachable
from panoptile.pipeline.video_inputs import video_version
from panoptile.pipeline.video_plan import VideoPlan


def planned_versions(plan: AnyPlan) -> list[tuple[str, Version]]:
    """(URI, version as it was planned) of every file of an input: of each sheet of a mosaic."""
    if isinstance(plan, VideoPlan):
        info = plan.info
        size = 0 if info.index.container == "images" else info.size_bytes
        return [(plan.uri, Version(size, info.mtime_ns, info.etag))]
    infos = [sheet.info for sheet in plan.info.sheets] or [plan.info]
    return [(i.uri, Version(i.size_bytes, i.mtime_ns, i.etag)) for i in infos]


def version_now(plan: AnyPlan, uri: str) -> Version:
    """The version of one file of an input now. Raises ``FileNotFoundError``, ``OSError`` or ``StoreUnreachable``."""
    return video_version(uri) if isinstance(plan, VideoPlan) else version_of(uri)


def is_gone(plan: AnyPlan) -> bool:
    """Whether a file of an input is not there any more; False where that cannot be told."""
    for uri, _ in planned_versions(plan):
        try:
            version_now(plan, uri)
        except (FileNotFoundError, NotADirectoryError):
            return True
        except OSError:
            continue
    return False


def is_segmented(store: Store, plan: AnyPlan) -> bool:
    """Whether all files of an input can be seen, and are what was segmented."""
    try:
        same = all(version_now(plan, uri) == planned for uri, planned in planned_versions(plan))
    except OSError:
        return False
    return same or is_same_content(store, plan)


def check_segmented(store: Store, plan: AnyPlan, *, if_gone: str = "Put it back.") -> None:
    """Refuse a source that is not what was segmented; one that was merely touched is told by its content.

    Args:
        plan: as it is stored with the result.
        if_gone: what to do where the source is not there.

    Raises:
        JobError: exit 2 where a file is gone or has changed, 6 where its store cannot be reached.
    """
    for uri, planned in planned_versions(plan):
        try:
            now = version_now(plan, uri)
        except StoreUnreachable as e:
            raise JobError(Exit.UNREACHABLE, str(e)) from e
        except OSError as e:
            raise invalid(
                f"{shown(uri)}, which was segmented, cannot be read ({e.strerror or e}). {if_gone}"
            ) from e
        if now != planned and not is_same_content(store, plan):
            raise invalid(
                f"{shown(uri)} has changed since it was segmented: run segment again, or put back the file that it was."
            )
