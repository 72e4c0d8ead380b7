"""The job file: YAML with the names of the command line's options. Strict: what it does not know is an error.

Tags, anchors and repeated keys are refused. Local paths in it are relative to the file's own folder, so that a
schedule may run it from anywhere.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
from functools import cache
from pathlib import Path
from typing import Any, get_type_hints

import pydantic
import yaml

from panoptile.jobs.exits import JobError, invalid
from panoptile.jobs.option_names import not_an_option
from panoptile.jobs.option_values import DURATIONS, JOB_FILE_SUFFIXES, seconds
from panoptile.jobs.spec import JobSpec
from panoptile.pipeline.yaml_error import one_line

MAX_BYTES = 4 << 20
_PATHS = ("out", "labels", "aoi")
_ECHO = "echo:"
_SCHEME = re.compile(r"^[a-z][a-z0-9+.-]*:", re.IGNORECASE)


@cache
def job_model() -> type[pydantic.BaseModel]:
    """The job file's model: the fields, types and defaults of :class:`JobSpec`, nothing else, strictly."""
    hints = get_type_hints(JobSpec)
    fields: dict[str, Any] = {}
    for field in dataclasses.fields(JobSpec):
        default = None if field.default is dataclasses.MISSING else field.default
        kind = hints[field.name]
        fields[field.name] = (kind | None if default is None else kind, default)
    fields["max_failures"] = (str | int, "10%")
    for name in DURATIONS:
        fields[name] = (float | str, fields[name][1])
    return pydantic.create_model(
        "JobFile", __config__=pydantic.ConfigDict(extra="forbid", strict=True, frozen=True), **fields
    )


def read_job_file(path: str) -> dict[str, Any]:
    """The values that a job file sets. Raises :class:`JobError` (exit 2) that names every wrong key."""
    data = _load(Path(path).expanduser())
    try:
        model = job_model().model_validate_json(json.dumps(data), strict=True)
    except pydantic.ValidationError as e:
        raise invalid(f"{path}: " + "; ".join(_sentence(error) for error in e.errors()) + ".") from e
    values = {name: getattr(model, name) for name in model.model_fields_set}
    values = {name: value for name, value in values.items() if value is not None}
    if "max_failures" in values:
        values["max_failures"] = str(values["max_failures"])
    for name, option in DURATIONS.items():
        if isinstance(values.get(name), str):
            try:
                values[name] = seconds(option, values[name])
            except ValueError as e:
                raise invalid(f"{path}: {e}") from e
    folder = Path(path).expanduser().absolute().parent
    for name in _PATHS:
        if name in values:
            values[name] = _beside(folder, values[name])
    if "sources" in values:
        values["sources"] = tuple(_beside(folder, source) for source in values["sources"])
    if "model" in values and values["model"].startswith((".", _ECHO)):
        values["model"] = _model_beside(folder, values["model"])
    return values


def check_save(path: str) -> None:
    """Refuse (exit 2) a name that no command takes for a job file's, and one under which something else lies."""
    if not path.lower().endswith(JOB_FILE_SUFFIXES):
        raise invalid(
            f"--save {path} would not be taken for a job file: give it a name that ends in {' or '.join(JOB_FILE_SUFFIXES)}."
        )
    if os.path.lexists(target := Path(path).expanduser()):
        try:
            read_job_file(str(target))
        except JobError as e:
            raise invalid(
                f"--save {path} would replace what is no job file: choose another name, or remove it first. {e}"
            ) from e


def write_job_file(path: str, spec: JobSpec) -> None:
    """Write a job as a file that :func:`read_job_file` reads back, whole or not at all; its local paths are absolute.

    Raises :class:`JobError` (exit 2) as :func:`check_save`, and where it cannot be written.
    """
    check_save(path)
    text = f"# panoptile segment|plan|submit {Path(path).name}\n{job_file_text(with_absolute_paths(spec))}"
    target = Path(path).expanduser().resolve()  # a link stays one
    draft = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        draft.write_text(text, encoding="utf-8")
        os.replace(draft, target)
    except OSError as e:
        with contextlib.suppress(OSError):
            draft.unlink()
        raise invalid(
            f"Cannot write the job file {path}: {e.strerror}. Choose another place with --save."
        ) from e


def job_file_text(spec: JobSpec) -> str:
    """All of a job that is not a default, as YAML."""
    values: dict[str, Any] = {}
    for field in dataclasses.fields(JobSpec):
        value = getattr(spec, field.name)
        if field.default is dataclasses.MISSING or value != field.default:
            values[field.name] = list(value) if isinstance(value, tuple) else value
    text: str = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
    return text


def with_absolute_paths(spec: JobSpec) -> JobSpec:
    """The same job for a process with another working directory."""
    here = Path.cwd()
    changed: dict[str, Any] = {n: _beside(here, v) for n in _PATHS if (v := getattr(spec, n)) is not None}
    changed["sources"] = tuple(_beside(here, source) for source in spec.sources)
    if spec.model.startswith(_ECHO) or Path(spec.model).exists():
        changed["model"] = _model_beside(here, spec.model)
    return dataclasses.replace(spec, **changed)


def _load(path: Path) -> dict[str, Any]:
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise invalid(
                f"{path} is {size / 2**20:.0f} MiB long; a job file has at most {MAX_BYTES >> 20} MiB."
            )
        text = path.read_text(encoding="utf-8")
        for token in yaml.scan(text, Loader=yaml.SafeLoader):
            if isinstance(token, yaml.AnchorToken | yaml.AliasToken | yaml.TagToken):
                line = token.start_mark.line + 1
                raise invalid(
                    f"{path}, line {line}: anchors, aliases and tags are not allowed in a job file."
                )
        data = yaml.load(text, Loader=_UniqueKeys)
        json.dumps(data)
    except OSError as e:
        raise invalid(f"Cannot read the job file {path}: {e.strerror}.") from e
    except UnicodeDecodeError as e:
        raise invalid(f"{path} is not a text file in UTF-8: write the job file as YAML.") from e
    except (yaml.YAMLError, TypeError, RecursionError) as e:
        raise invalid(f"{path} cannot be read as a job file: {one_line(e)}.") from e
    if not isinstance(data, dict):
        raise invalid(f"{path} must hold 'option: value' lines, such as 'tile: 1024'.")
    return data


class _UniqueKeys(yaml.SafeLoader):  # type: ignore[misc]  # no stubs
    """Safe loading that refuses a key that stands twice: the second would silently win."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for number, key in enumerate(keys):
            if not isinstance(key, str):
                raise yaml.constructor.ConstructorError(None, None, f"{key!r} is no option", node.start_mark)
            if key in keys[:number]:
                raise yaml.constructor.ConstructorError(None, None, f"{key!r} stands twice", node.start_mark)
        mapping: dict[Any, Any] = super().construct_mapping(node, deep=deep)
        return mapping


def _sentence(error: Any) -> str:
    name = ".".join(str(part) for part in error["loc"] if not str(part).startswith(("literal[", "tuple[")))
    key = str(error["loc"][0]) if error["loc"] else ""
    if error["type"] == "extra_forbidden":
        return not_an_option(key)
    return f"{name}: {error['msg'][0].lower()}{error['msg'][1:]}, got {error['input']!r}"


def _beside(folder: Path, path: str) -> str:
    """A local path relative to ``folder``; URIs and absolute paths stay as they are."""
    if _SCHEME.match(path) or path.startswith("/"):
        return path
    return str(folder / Path(path).expanduser())


def _model_beside(folder: Path, model: str) -> str:
    """A checkpoint's path, or those of the label rasters that an echo returns."""
    if not model.startswith(_ECHO):
        return _beside(folder, model)
    return _ECHO + ",".join(_beside(folder, path) for path in model.removeprefix(_ECHO).split(","))
