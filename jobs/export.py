"""``panoptile export``: which format is written by which function."""

from __future__ import annotations

import difflib
import tempfile
from pathlib import Path

from panoptile.jobs.exits import invalid
from panoptile.jobs.export_coco import CocoWriter
from panoptile.jobs.export_coco_panoptic import CocoPanopticWriter
from panoptile.jobs.export_cvat import CvatWriter
from panoptile.jobs.export_fiftyone import FiftyOneWriter
from panoptile.jobs.export_images import OpenWriter, Say, export_images
from panoptile.jobs.export_labelstudio import LabelStudioWriter
from panoptile.jobs.export_vector import VECTOR_FORMATS, export_vector
from panoptile.jobs.export_videos import VIDEO_FORMATS, export_videos
from panoptile.jobs.state import store_errors
from panoptile.model.classes import ClassTable
from panoptile.pipeline import layout
from panoptile.pipeline.store import Store, open_store

IMAGE_FORMATS: dict[str, OpenWriter] = {
    "coco-panoptic": CocoPanopticWriter,
    "coco": CocoWriter,
    "fiftyone": FiftyOneWriter,
    "cvat": CvatWriter,
    "labelstudio": LabelStudioWriter,
}
FORMATS = ("stac", *VECTOR_FORMATS, *IMAGE_FORMATS, *VIDEO_FORMATS)


def export_to(
    out: str,
    to: str,
    output: str | None,
    classes: tuple[str, ...],
    tile: int | None = None,
    say: Say = lambda message: None,
) -> list[str]:
    """Write OUT in another format; returns what was written. Raises :class:`JobError`.

    ``tile`` is the side of the images of formats that hold images; ``say`` is told what is left out.
    """
    if to not in FORMATS:
        near = difflib.get_close_matches(to, FORMATS, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise invalid(f"--to is one of {', '.join(FORMATS)}; got {to!r}{hint}")
    if tile is not None and to not in IMAGE_FORMATS:
        raise invalid(f"--tile does not go with --to {to}: it is for formats that hold images.")
    if to == "stac":
        for option, given in (("-o", output is not None), ("--classes", bool(classes))):
            if given:
                raise invalid(
                    f"{option} does not go with --to stac: it describes all of OUT, in OUT/catalog."
                )
        from panoptile.jobs.stac import write_catalog

        return [write_catalog(out)]
    if output is None:
        raise invalid(f"Name the file or folder for {to} with -o.")
    if "://" in output:
        raise invalid(
            f"-o {output}: exports are written to this machine; name a local path, and copy it then."
        )
    try:
        store = open_store(out)
    except ValueError as e:
        raise invalid(str(e)) from e
    with store_errors(out):
        if not store.exists(layout.SUCCESS):
            raise invalid(
                f"{out} holds no finished run: there is no {layout.SUCCESS}. See panoptile status {out}."
            )
        _check_classes(store, classes)
        target = Path(output).expanduser()
        if to in IMAGE_FORMATS:
            return export_images(out, IMAGE_FORMATS[to], target, classes, tile, say)
        if to in VIDEO_FORMATS:
            return export_videos(out, to, target, classes, say)
        with store_errors(output):  # what cannot be written is not OUT
            return export_vector(store, to, target, classes, say)


def _check_classes(store: Store, names: tuple[str, ...]) -> None:
    """Refuse names that the job does not know: they would export nothing."""
    with tempfile.TemporaryDirectory(prefix="panoptile-") as folder:
        table = ClassTable.from_file(store.local_copy(layout.CLASSES, Path(folder)))
    for name in names:
        try:
            table.by_name(name)
        except ValueError as e:
            raise invalid(f"--classes: {e}") from e
