"""The job file and the precedence of options."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import typer
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.jobs.test_bad_input import panoptile
from tests.jobs.test_help import commands as all_commands
from typer.testing import CliRunner

from panoptile.jobs import options as opt
from panoptile.jobs.cli import app
from panoptile.jobs.exits import JobError
from panoptile.jobs.job_file import read_job_file, write_job_file
from panoptile.jobs.option_names import FLAGS_OF_COMMANDS, unknown_variables
from panoptile.jobs.spec import JobSpec


def shown(*args: str, env: dict[str, str] | None = None) -> dict[str, Any]:
    """What ``config show --json --origin`` prints."""
    result = CliRunner().invoke(app, ["config", "show", *args, "--origin", "--json"], env=env)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    fields: dict[str, Any] = json.loads(result.stdout)
    return fields


def test_every_field_of_a_job_is_an_option() -> None:
    """No field without a flag, no flag without a field: the command line and the job file cannot drift apart."""
    assert set(opt.JOB) | {"sources"} == {f.name for f in dataclasses.fields(JobSpec)}


def test_flags_go_over_environment_over_job_file_over_defaults(tmp_path: Path) -> None:
    """Each level is seen where the levels above are silent, and its origin is named."""
    job = tmp_path / "job.yaml"
    job.write_text("sources: [a.tif]\nout: here\ntile: 256\noverlap: 64\nbatch: 4\nclasses: [house]\n")
    fields = shown(str(job), "--tile", "1024", env={"PANOPTILE_OVERLAP": "96", "PANOPTILE_TILE": "512"})
    options, origins = fields["options"], fields["origins"]
    assert (options["tile"], origins["tile"]) == (1024, "flag")
    assert (options["overlap"], origins["overlap"]) == (96, "PANOPTILE_OVERLAP")
    assert (options["batch"], origins["batch"]) == (4, str(job))
    assert (options["retries"], origins["retries"]) == (2, "default")
    assert options["classes"] == ["house"]
    assert options["sources"] == [str(tmp_path / "a.tif")]
    assert options["out"] == str(tmp_path / "here")


SWITCHES = [f.name for f in dataclasses.fields(JobSpec) if isinstance(f.default, bool)]


@pytest.mark.parametrize("filed", [True, False])
@pytest.mark.parametrize("name", SWITCHES)
def test_a_flag_goes_over_a_switch_in_file_and_environment(tmp_path: Path, name: str, filed: bool) -> None:
    """Every switch can be turned back, whichever way the file or the environment turned it."""
    job, word = tmp_path / "job.yaml", name.replace("_", "-")
    flag = f"--no-{word}" if filed else f"--{word}"
    job.write_text(f"sources: [a.tif]\nout: o\n{name}: {str(filed).lower()}\n")
    assert shown(str(job))["options"][name] is filed
    assert shown(str(job), flag)["options"][name] is not filed
    variable = {f"PANOPTILE_{name.upper()}": str(filed)}
    plain = tmp_path / "plain.yaml"
    plain.write_text("sources: [a.tif]\nout: o\n")
    assert shown(str(plain), env=variable)["options"][name] is filed
    assert shown(str(plain), flag, env=variable)["options"][name] is not filed


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("tiel: 512", ["'tiel'", "did you mean 'tile'"]),
        ("max-failures: 3", ["'max-failures'", "did you mean 'max_failures'"]),
        ("as: video", ["'as'", "did you mean 'kind'"]),
        ("gpus: 8", ["'gpus'", "did you mean 'workers'"]),
        ("timeout-unit: 10m", ["'timeout-unit'", "did you mean 'unit_timeout'"]),
        ("cluster: http://head:8265", ["'cluster' is a flag of submit, not an option of the job"]),
        ("price: 2.1", ["'price' is a flag of plan, not an option of the job"]),
        ("foo: 1", ["there is no option 'foo'."]),
        ("tile: '512'", ["tile", "integer", "'512'"]),
        ("bands: red", ["bands", "'red'"]),
        ("raster: 1", ["raster", "bool"]),
        ("compression: lzw", ["compression", "'lzw'"]),
        ("tile: 1\ntile: 2", ["'tile' stands twice"]),
        ("model: !!python/object/apply:os.system ['true']", ["line 1", "tags"]),
        ("a: &x [1]\nb: *x", ["anchors"]),
        ("[1, 2]", ["option: value"]),
        ("tile: 2026-11-23", ["cannot be read"]),
        ("1: 2", ["1 is no option"]),
        ("{", ["cannot be read", "in line 1, column 2"]),
        ("tile: 512\nx: \x00", ["cannot be read", "in position 13"]),
    ],
)
def test_a_wrong_job_file_is_one_sentence(tmp_path: Path, text: str, words: list[str]) -> None:
    """What is wrong, where, and the nearest right name: exit 2."""
    job = tmp_path / "job.yaml"
    job.write_text(text)
    with pytest.raises(JobError) as e:
        read_job_file(str(job))
    assert int(e.value.code) == 2
    assert all(word in str(e.value) for word in [str(job), *words]), str(e.value)
    assert "\n" not in str(e.value)
    assert "unicode string" not in str(e.value)


def test_nothing_in_a_job_file_is_executed(tmp_path: Path) -> None:
    """A tag that would run a command is refused before it is constructed."""
    job, canary = tmp_path / "job.yaml", tmp_path / "canary"
    job.write_text(f"model: !!python/object/apply:os.system ['touch {canary}']\n")
    with pytest.raises(JobError):
        read_job_file(str(job))
    assert not canary.exists()


def test_a_missing_or_binary_job_file(tmp_path: Path) -> None:
    """Both end with exit 2."""
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00")
    for name in ("none.yaml", "bytes.yaml"):
        with pytest.raises(JobError, match=name):
            read_job_file(str(tmp_path / name))


def test_nothing_to_segment_and_nowhere_to_write(tmp_path: Path) -> None:
    """Both may come from the file; where neither flag nor file names them, it is said."""
    job = tmp_path / "job.yaml"
    job.write_text("tile: 256\n")
    with pytest.raises(JobError, match="what to segment"):
        shown(str(job), "-o", "x")
    job.write_text("sources: [a.tif]\n")
    with pytest.raises(JobError, match="-o OUT"):
        shown(str(job))


NAMES = st.lists(
    st.text("abc xyz-:#'\"é", min_size=1).filter(lambda t: t.strip() != ""), max_size=2, unique=True
)


@settings(max_examples=60)
@given(
    tile=st.integers(64, 8192),
    classes=NAMES,
    bands=st.none() | st.lists(st.integers(1, 9), min_size=1, max_size=4).map(tuple),
    score=st.none() | st.floats(0, 1),
    failures=st.integers(0, 9).map(str) | st.just("25%"),
    raster=st.booleans(),
)
def test_a_saved_job_is_the_same_job(tmp_path_factory: pytest.TempPathFactory, **values: Any) -> None:
    """--save and the job file are inverse to each other."""
    folder = tmp_path_factory.mktemp("job")
    spec = JobSpec(
        ("/data/a b.tif", "s3://bucket/x/*.tif"),
        "/out",
        tile=values["tile"],
        overlap=0,
        classes=tuple(values["classes"]),
        bands=values["bands"],
        score=values["score"],
        max_failures=values["failures"],
        raster=values["raster"],
    )
    write_job_file(str(folder / "job.yaml"), spec)
    assert JobSpec(**read_job_file(str(folder / "job.yaml"))) == spec


def test_save_writes_what_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A saved file holds what is not a default, with absolute paths, and gives the same job elsewhere."""
    monkeypatch.chdir(tmp_path)
    first = shown("a.tif", "-o", "out", "--tile", "640", "--save", "job.yaml")
    saved = yaml.safe_load((tmp_path / "job.yaml").read_text())
    assert saved == {"sources": [str(tmp_path / "a.tif")], "out": str(tmp_path / "out"), "tile": 640}
    again = shown("job.yaml")["options"]
    assert again["tile"] == first["options"]["tile"] == 640
    assert again["out"] == str(tmp_path / "out")


@pytest.mark.parametrize(
    ("words", "more"),
    [
        ("plan", []),
        ("segment", ["--local"]),
        ("schedule render", ["--cron", "every night", "--as", "crontab"]),
        ("submit", ["--cluster", "http://127.0.0.1:9"]),
        ("config show", ["--tile", "1"]),
    ],
)
def test_a_refused_job_is_not_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: str, more: list[str]
) -> None:
    """What a command's checks refuse leaves no file behind."""
    monkeypatch.chdir(tmp_path)
    command = [*words.split(), "none.tif", "-o", "o", "--save", "job.yaml", *more]
    result = CliRunner().invoke(app, command)
    assert isinstance(result.exception, JobError)
    assert "saved" not in result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("save", ["o/job.yaml", "o", "o/../o/deep/job.yaml"])
def test_a_job_is_not_saved_into_its_output_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, save: str
) -> None:
    """The folder would be refused as a foreign one from then on: exit 2, nothing written."""
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["config", "show", "a.tif", "-o", "o", "--save", save])
    assert isinstance(result.exception, JobError)
    assert "lies in the output folder" in str(result.exception)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("save", ["job.txt", "job", "a.tif", ""])
def test_a_job_is_saved_as_what_commands_take_for_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, save: str
) -> None:
    """A name that would be taken for a source is refused, whether something lies there or not: exit 2."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.tif").write_bytes(b"pixels")
    result = CliRunner().invoke(app, ["config", "show", "a.tif", "-o", "o", "--save", save])
    assert isinstance(result.exception, JobError)
    assert ".yaml or .yml" in str(result.exception)
    assert [p.name for p in tmp_path.iterdir()] == ["a.tif"]
    assert (tmp_path / "a.tif").read_bytes() == b"pixels"


@pytest.mark.parametrize(
    "there", [b"kind: Deployment\n", b"- a\n- list\n", b"\xff\xfe\x00", b"", b"tile: 640\ntile: 512\n", None]
)
def test_what_is_no_job_file_is_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: bytes | None
) -> None:
    """Other YAML, other bytes, an empty file, a folder: exit 2 before anything runs, and they stay as they are."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "job.yaml"
    path.mkdir() if there is None else path.write_bytes(there)
    result = CliRunner().invoke(app, ["config", "show", "a.tif", "-o", "o", "--save", "job.yaml"])
    assert isinstance(result.exception, JobError)
    assert int(result.exception.code) == 2
    assert "would replace what is no job file" in str(result.exception)
    assert path.is_dir() if there is None else path.read_bytes() == there


def test_a_job_file_is_replaced_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An earlier job gives way, also behind a link; where writing fails it stays, and no draft is left."""
    monkeypatch.chdir(tmp_path)
    shown("a.tif", "-o", "out", "--save", "real.yml")
    (tmp_path / "job.yaml").symlink_to("real.yml")
    shown("job.yaml", "--tile", "640", "--save", "job.yaml")
    assert (tmp_path / "job.yaml").is_symlink()
    assert shown("real.yml")["options"]["tile"] == 640
    before = (tmp_path / "real.yml").read_bytes()
    full = mock.Mock(side_effect=OSError(28, "No space left on device"))
    monkeypatch.setattr("panoptile.jobs.job_file.os.replace", full)
    result = CliRunner().invoke(app, ["config", "show", "b.tif", "-o", "o", "--save", "job.yaml"])
    assert "No space left" in str(result.exception)
    assert (tmp_path / "real.yml").read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["job.yaml", "real.yml"]


def test_every_command_that_takes_a_job_saves_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once, before anything runs; config show is tested above, submit with the other submissions."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("panoptile.jobs.prepare.prepare", lambda spec: mock.Mock(notes=()))
    tail = {"schedule render": ["--cron", "0 2 * * *", "--as", "crontab"]}
    for words in ("plan", "segment", "schedule render"):
        save = f"{words}.yaml"
        command = [*words.split(), "a.tif", "-o", "o", "--save", save, *tail.get(words, [])]
        result = CliRunner().invoke(app, command)
        assert result.stderr.count(f"saved   {save}") == 1, words
        assert yaml.safe_load(Path(save).read_text())["out"] == str(tmp_path / "o")


def test_times_can_be_written_as_people_write_them(tmp_path: Path) -> None:
    """Seconds, minutes and hours, on the command line and in the file; anything else is refused."""
    job = tmp_path / "job.yaml"
    job.write_text("sources: [a.tif]\nout: o\nunit_timeout: 3s\nstart_timeout: 90\n")
    options = shown(str(job))["options"]
    assert (options["unit_timeout"], options["start_timeout"]) == (3.0, 90.0)
    options = shown(str(job), "--timeout-unit", "10m", "--start-timeout", "1h")["options"]
    assert (options["unit_timeout"], options["start_timeout"]) == (600.0, 3600.0)
    with pytest.raises(JobError, match="--timeout-unit wants a time"):
        shown(str(job), "--timeout-unit", "soon")
    job.write_text("sources: [a.tif]\nout: o\nunit_timeout: soon\n")
    with pytest.raises(JobError, match="--timeout-unit wants a time"):
        shown(str(job))


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_a_job_file_stands_alone(tmp_path: Path, order: tuple[int, int]) -> None:
    """Beside other sources it would be taken for a raster: exit 2, and what to do."""
    (tmp_path / "job.yaml").write_text("sources: [a.tif]\nout: out\n")
    sources = [str(tmp_path / "job.yaml"), str(tmp_path / "b.tif")]
    with pytest.raises(JobError, match=r"job\.yaml is a job file .* give it alone"):
        CliRunner().invoke(app, ["config", "show", *(sources[n] for n in order)], catch_exceptions=False)


@pytest.mark.parametrize(
    ("name", "note"),
    [
        ("PANOPTILE_TIEL", "no option and is ignored: did you mean PANOPTILE_TILE?"),
        ("PANOPTILE_PRICE", "ignored: --price is a flag of plan, not an option of the job."),
        ("PANOPTILE_AUTH_TOKEN_FILE", "--auth-token-file is a flag of submit"),
        ("PANOPTILE_FOO", "no option and is ignored."),
        ("PANOPTILE_SOURCES", "sources stand on the command line or in a job file"),
    ],
)
def test_a_variable_without_effect_is_told(name: str, note: str) -> None:
    """Once, with the name that works where one is near; ours for other things, and others', are not."""
    silent = {
        "PANOPTILE_TILE", "PANOPTILE_AS", "PANOPTILE_CLUSTER", "PANOPTILE_TEST_DATA", "TILE",
        "PANOPTILE_SERVICE_HOST", "PANOPTILE_SERVICE_PORT_HTTP", "PANOPTILE_PORT", "PANOPTILE_PORT_80_TCP_ADDR",
    }  # fmt: skip
    [told] = unknown_variables({name} | silent)
    assert note in told
    result = CliRunner().invoke(
        app, ["config", "show", "a.tif", "-o", "out"], env={name: "8"}, catch_exceptions=False
    )
    assert result.stderr.count(name) == 1
    assert note in " ".join(result.stderr.split())
    assert "note" not in result.stdout


def test_every_variable_that_the_code_names_is_known() -> None:
    """What panoptile itself and its tests read is never called unknown."""
    tags = {"PANOPTILE_LAYOUT"}  # of the published TIFFs
    folder = Path(opt.__file__).parent
    sources = [p for part in ("jobs", "pipeline", "model") for p in (folder.parent / part).rglob("*.py")]
    named = {v for p in sources for v in re.findall(r'"(PANOPTILE_[A-Z_]*[A-Z])"', p.read_text())}
    assert len(named) > 5
    tests = Path(__file__).parent.parent
    texts = [p.read_text() for p in tests.rglob("*.py")] + [(tests.parent / "README.md").read_text()]
    named |= {v for text in texts for v in re.findall(r"PANOPTILE_[A-Z]+_(?:PYTHON|CRD)\b", text)}
    named |= {v for text in texts for v in re.findall(r"environ\W+(PANOPTILE_[A-Z_]*[A-Z])", text)}
    assert unknown_variables(named - tags) == []


@pytest.mark.parametrize(
    ("variable", "value", "option", "found"),
    [
        ("PANOPTILE_TIMEOUT_UNIT", "10m", "unit_timeout", 600.0),
        ("PANOPTILE_UNIT_TIMEOUT", "10m", "unit_timeout", 600.0),
        ("PANOPTILE_AS", "video", "kind", "video"),
        ("PANOPTILE_GPUS", "8", "workers", 8),
        ("PANOPTILE_LOCAL", "1", "local", True),
    ],
)
def test_a_flags_own_name_stands_in_the_environment(
    variable: str, value: str, option: str, found: object
) -> None:
    """An option that is called otherwise on the command line goes by either name."""
    fields = shown("a.tif", "-o", "out", env={variable: value})
    assert (fields["options"][option], fields["origins"][option]) == (found, variable)


@pytest.mark.parametrize(
    ("variable", "value", "flag"),
    [
        ("PANOPTILE_TILE", "abc", None),
        ("PANOPTILE_GPUS", "many", None),
        ("PANOPTILE_LOCAL", "perhaps", None),
        ("PANOPTILE_BANDS", "red", "--bands"),
        ("PANOPTILE_TIMEOUT_UNIT", "soon", "--timeout-unit"),
        ("PANOPTILE_TILE", "8", "--tile"),
        ("PANOPTILE_AS", "film", "--as"),
    ],
)
def test_a_wrong_value_from_the_environment_is_told_as_its_variables(
    variable: str, value: str, flag: str | None, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """Where no flag was given, the message names the variable: exit 2."""
    monkeypatch.setenv(variable, value)
    assert panoptile("config", "show", "a.tif", "-o", "o", "--retries", "1") == 2
    said = capsys.readouterr().err
    assert variable in said
    assert "--retries" not in said
    if flag is None:
        assert f"Invalid value for {variable}:" in said
    else:
        assert flag in said
    monkeypatch.delenv(variable)
    assert panoptile("config", "show", "a.tif", "-o", "o", "--tile", "abc") == 2
    assert "Invalid value for '--tile':" in capsys.readouterr().err


def test_the_flags_of_commands_are_theirs() -> None:
    """No flag beside the job's options is forgotten, and none is taken for another command's."""
    commands = dict(all_commands(typer.main.get_command(app), "panoptile"))
    own: dict[str, str] = {}
    for words in ("submit", "plan", "segment", "config show", "schedule render", "resume"):
        for parameter in commands[f"panoptile {words}"].params:
            long = [o[2:].replace("-", "_") for o in parameter.opts if o.startswith("--")]
            if parameter.name not in opt.JOB and long and long[0] not in ("help", "as"):
                common = long[0] in ("save", "json", "quiet")
                own[long[0]] = "every command that takes a job" if common else words
    assert own == FLAGS_OF_COMMANDS
