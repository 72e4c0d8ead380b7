"""Names of everything in an output folder: the one place that knows them."""

from __future__ import annotations

from panoptile.pipeline.plan import Unit

JOB = "job.json"
JOB_COPY = "_state/job.json"
"""The same with its own hash: it stands in for a damaged or lost ``job.json``."""
CLASSES = "classes.json"
MANIFEST = "manifest.parquet"
METRICS = "metrics.json"
SUCCESS = "_SUCCESS.json"
DEADLETTER = "deadletter.parquet"
PUBLISHED = ("rasters", "segments", "video", CLASSES, MANIFEST)
"""The published tree: byte-identical between runs of one job."""
KNOWN = frozenset(
    {
        *PUBLISHED,
        JOB,
        METRICS,
        SUCCESS,
        "_state",
        "tiles",
        "previews",
        DEADLETTER,
        "report.html",
        "catalog",
    }
)
"""What may stand at the top of an output folder."""


def commit_key(unit: Unit) -> str:
    """Where the store says that a unit is done."""
    return f"_state/commits/{unit.id}.json"


def fragment_key(unit: Unit, sha256: str) -> str:
    """A unit's fragment, named by its content."""
    return f"_state/data/{unit.id}-{sha256[:16]}.frag"


def dead_key(unit: Unit, attempt: int) -> str:
    """Record of a failed attempt."""
    return f"_state/dead/{unit.id}/{attempt}.json"


def plan_key(key: str) -> str:
    """The plan of one input."""
    return f"_state/plan/{key}.json"


def tile_table_key(key: str) -> str:
    """What became of each tile of one raster."""
    return f"tiles/{key}.parquet"


def preview_key(key: str) -> str:
    """The picture of one input."""
    return f"previews/{key}.png"


def generation_key(number: int) -> str:
    """The record of the ``number``-th time that a result was published."""
    return f"_state/generations/{number}.json"


def run_key(run: str) -> str:
    """What one run did, with worker names and timings."""
    return f"_state/runs/{run}.json"
