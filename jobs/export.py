"""``panoptile export``: which format is written by which function."""

from __future__ import annotations

import difflib

from panoptile.jobs.exits import invalid

FORMATS = ("stac",)


def export_to(out: str, to: str, output: str | None, classes: tuple[str, ...], tile: int) -> list[str]:
    """Write OUT in another format; returns what was written. Raises :class:`JobError` (exit 2)."""
    if to not in FORMATS:
        near = difflib.get_close_matches(to, FORMATS, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise invalid(f"--to is one of {', '.join(FORMATS)}; got {to!r}{hint}")
    if to == "stac":
        for option, given in (("-o", output is not None), ("--classes", bool(classes))):
            if given:
                raise invalid(
                    f"{option} does not go with --to stac: it describes all of OUT, in OUT/catalog."
                )
        from panoptile.jobs.stac import write_catalog

        return [write_catalog(out)]
    raise AssertionError(to)
