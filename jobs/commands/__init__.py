"""One module per command, or per few that belong together; each has a ``register``. They import lazily."""

from __future__ import annotations

from panoptile.jobs.commands import (
    cluster,
    config,
    doctor,
    evaluate,
    export,
    model,
    preview,
    relink,
    report,
    schedule,
    segment,
    store,
    train,
)

ALL = (
    segment.register,
    cluster.register,
    store.register,
    preview.register,
    relink.register,
    evaluate.register,
    model.register,
    config.register,
    schedule.register,
    train.register,
    doctor.register,
    report.register,
    export.register,
)
