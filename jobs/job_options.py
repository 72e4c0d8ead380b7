"""The options of a job, in the words of every command that takes one: ``segment``, ``plan``, ``submit``.

:class:`~panoptile.jobs.spec.JobSpec` says which options there are and what they default to, ``options.py`` describes
each once; the commands' parameters, the environment variables and the job file's keys all follow from these two.
Precedence: flags, then environment, then job file, then defaults.
"""

from __future__ import annotations

import copy
import dataclasses
import inspect
import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import typer

from panoptile.jobs import options as opt
from panoptile.jobs.console import Console
from panoptile.jobs.exits import invalid
from panoptile.jobs.option_names import unknown_variables, variables, variables_behind
from panoptile.jobs.option_values import (
    DURATIONS,
    JOB_FILE_SUFFIXES,
    NAME_LISTS,
    band_numbers,
    names,
    seconds,
)
from panoptile.jobs.spec import JobSpec
from panoptile.pipeline.remote_uri import scheme_of

Origin = Literal["flag", "environment", "job file", "default"]


@dataclass(frozen=True, slots=True)
class ResolvedJob:
    """A job, and where each of its values came from."""

    spec: JobSpec
    origins: Mapping[str, Origin]
    file: str | None
    """The job file, if there was one."""
    save: str | None = None
    """Where --save wants it written."""

    def write_saved(self, console: Console) -> None:
        """Heed --save. The command calls it once its checks have passed: what is refused leaves no file behind."""
        if self.save is None:
            return
        from panoptile.jobs.job_file import write_job_file

        write_job_file(self.save, self.spec)
        console.say(f"saved   {self.save}")


def with_job_options(run: Callable[..., None]) -> Callable[..., None]:
    """A command ``run(job, console, *, …)`` with all options of a job before its own keyword-only ones.

    It must call ``job.write_saved(console)``.
    """
    own = [p for p in inspect.signature(run, eval_str=True).parameters.values() if p.kind is p.KEYWORD_ONLY]

    def command(ctx: typer.Context, **given: Any) -> None:
        console = Console(as_json=given.pop("as_json"), quiet=given.pop("quiet"))
        extra = {p.name: given.pop(p.name) for p in own}
        save = given.pop("save")
        job = dataclasses.replace(resolve(given, ctx.get_parameter_source), save=save)
        _check_save(save, job.spec.out)
        _tell_unknown_variables(console)
        run(job, console, **extra)

    keyword = inspect.Parameter.KEYWORD_ONLY
    parameters = [
        inspect.Parameter("ctx", keyword, annotation=typer.Context),
        inspect.Parameter("sources", keyword, annotation=opt.SourcesOrJob, default=None),
        *(
            inspect.Parameter(name, keyword, annotation=_with_environment(name, kind), default=_default(name))
            for name, kind in opt.JOB.items()
        ),
        *own,
        inspect.Parameter("save", keyword, annotation=opt.Save, default=None),
        inspect.Parameter("as_json", keyword, annotation=opt.Json, default=False),
        inspect.Parameter("quiet", keyword, annotation=opt.Quiet, default=False),
    ]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in parameters}
    command.__doc__ = run.__doc__
    return command


def with_recorded_job(
    run: Callable[..., None], *, only: Collection[str] | None = None
) -> Callable[..., None]:
    """A command ``run(out, changes, console, *, …)`` on a job that OUT holds.

    All options of a job may be given, or those of ``only``; ``changes`` holds those that were, by flag or environment,
    and what is left out stays as it was recorded.
    """
    own = [p for p in inspect.signature(run, eval_str=True).parameters.values() if p.kind is p.KEYWORD_ONLY]

    def command(ctx: typer.Context, **given: Any) -> None:
        console = Console(as_json=given.pop("as_json"), quiet=given.pop("quiet"))
        extra = {p.name: given.pop(p.name) for p in own}
        _tell_unknown_variables(console)
        run(given.pop("out"), changes(given, ctx.get_parameter_source), console, **extra)

    keyword = inspect.Parameter.KEYWORD_ONLY
    parameters = [
        inspect.Parameter("ctx", keyword, annotation=typer.Context),
        inspect.Parameter("out", keyword, annotation=opt.JobFolder),
        *own,
        *(
            inspect.Parameter(name, keyword, annotation=_with_environment(name, kind), default=None)
            for name, kind in opt.JOB.items()
            if name != "out" and (only is None or name in only)
        ),
        inspect.Parameter("as_json", keyword, annotation=opt.Json, default=False),
        inspect.Parameter("quiet", keyword, annotation=opt.Quiet, default=False),
    ]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in parameters}
    command.__doc__ = run.__doc__
    return command


def _check_save(save: str | None, out: str) -> None:
    """Refuse a job file in OUT, which would be taken for a foreign folder from then on, and what else may not be
    written: see ``check_save``."""
    if save is None:
        return
    file, folder = (Path(path).expanduser().resolve() for path in (save, out))
    if scheme_of(out) is None and (file == folder or folder in file.parents):
        raise invalid(
            f"--save {save} lies in the output folder {out}: choose another place for the job file."
        )
    from panoptile.jobs.job_file import check_save

    check_save(save)


def _tell_unknown_variables(console: Console) -> None:
    for note in unknown_variables(os.environ):
        console.say(f"note    {note}")


def changes(given: Mapping[str, Any], source_of: Callable[[str], Enum | None]) -> dict[str, Any]:
    """The options that were given, by flag or environment, as the job's values. Raises :class:`JobError` (exit 2)."""
    found = {}
    for name, value in given.items():
        source = source_of(name)
        if source is not None and source.name in ("COMMANDLINE", "ENVIRONMENT"):
            found[name] = _parsed(name, value, in_environment=source.name == "ENVIRONMENT")
    return found


def resolve(given: dict[str, Any], source_of: Callable[[str], Enum | None]) -> ResolvedJob:
    """Flags over environment over job file over defaults. Raises :class:`JobError` (exit 2)."""
    sources = list(given.pop("sources") or ())
    filed: dict[str, Any] = {}
    file = None
    if len(sources) == 1 and sources[0].lower().endswith(JOB_FILE_SUFFIXES):
        from panoptile.jobs.job_file import read_job_file

        file = sources[0]
        filed = read_job_file(file)
        sources = []
    mixed = [s for s in sources if s.lower().endswith(JOB_FILE_SUFFIXES)]
    if mixed:
        raise invalid(
            f"{mixed[0]} is a job file and names its own sources: give it alone, or list the others in it."
        )
    values: dict[str, Any] = dict(filed)
    origins: dict[str, Origin] = dict.fromkeys(filed, "job file")
    for name, value in changes(given, source_of).items():
        source = source_of(name)
        values[name] = value
        origins[name] = "flag" if source is not None and source.name == "COMMANDLINE" else "environment"
    if sources:
        values["sources"], origins["sources"] = tuple(sources), "flag"
    if "sources" not in values:
        raise invalid(
            "Name what to segment: rasters, videos, folders, quoted patterns, or a job file (.yaml)."
        )
    if not values.get("out"):
        raise invalid("Name the output folder with -o OUT.")
    try:
        spec = JobSpec(**values)
    except ValueError as e:
        given_there = [name for name, origin in origins.items() if origin == "environment"]
        raise invalid(variables_behind(str(e), given_there)) from e
    for field in dataclasses.fields(JobSpec):
        origins.setdefault(field.name, "default")
    return ResolvedJob(spec, origins, file)


def _parsed(name: str, value: Any, *, in_environment: bool) -> Any:
    """A flag's text, or a variable's, as the job's value."""
    try:
        if name in NAME_LISTS:
            return names(f"--{name}", value)
        if name == "bands":
            return band_numbers(value)
        if name in DURATIONS:
            return seconds(DURATIONS[name], value)
    except ValueError as e:
        raise invalid(variables_behind(str(e), [name] if in_environment else [])) from e
    return value


def _default(name: str) -> Any:
    """The job's own default, as a flag would be left out; a list is left out as None."""
    [field] = [f for f in dataclasses.fields(JobSpec) if f.name == name]
    if field.default is dataclasses.MISSING:
        return None
    if name in DURATIONS:
        return f"{field.default:g}s"
    return None if isinstance(field.default, tuple) else field.default


def _with_environment(name: str, kind: Any) -> Any:
    """The option's description with its environment variables."""
    base, info = get_args(kind)
    described = copy.copy(info)
    described.envvar = variables(name)
    described.show_envvar = False
    return Annotated[base, described]
