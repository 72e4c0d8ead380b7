"""Scheduled runs: their command, and its crontab and DAG; Kubernetes has a file of its own."""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from panoptile.jobs import manifests
from panoptile.jobs.cli import app
from panoptile.jobs.exits import JobError
from panoptile.jobs.manifests import render
from panoptile.jobs.schedule import USED_BY, Schedule
from panoptile.jobs.scheduled_command import command
from panoptile.jobs.spec import JobSpec

REMOTE = JobSpec(("s3://b/in/100% new/*.tif",), "s3://b/out", tile=640, classes=("house", "tree crown"))
TARGETS = ["crontab", "k8s", "raycronjob", "airflow"]


def rendered(*args: str) -> str:
    result = CliRunner().invoke(app, ["schedule", "render", *args])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.stdout


def test_a_crontab_line_runs_the_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The line, taken apart as cron does it, reaches a shell with the job's very words."""
    spec = JobSpec(
        (str(tmp_path / "100% it's here" / "*.tif"),), str(tmp_path / "out"), raster=False, gsd=0.5
    )
    fake = tmp_path / "bin" / "panoptile"
    fake.parent.mkdir()
    fake.write_text(f"#!{sys.executable}\nimport json, sys\nprint(json.dumps(sys.argv[1:]))\n")
    fake.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(fake.parent / "python"))
    text = render(Schedule(spec, "*/5 1-3 * jan mon", timezone="Asia/Kathmandu"), "crontab")
    zone, line = [row for row in text.splitlines() if not row.startswith("#")]
    assert zone == "CRON_TZ=Asia/Kathmandu"
    fields = line.split(" ", 5)
    assert fields[:5] == ["*/5", "1-3", "*", "1", "1"]
    command = fields[5].replace(r"\%", "\0")
    assert "%" not in command  # a bare one would end the command and start its standard input
    run = subprocess.run(
        ["/bin/sh", "-c", command.replace("\0", "%")],
        env={"PATH": "/usr/bin:/bin"},
        capture_output=True,
        check=True,
    )
    words = json.loads(run.stdout)
    assert words[:2] == ["segment", spec.sources[0]]
    assert words[words.index("--out") + 1] == spec.out
    assert {"--no-raster", "--incremental"} <= set(words)
    assert words[words.index("--gsd") + 1] == "0.5"
    assert words[words.index("--if-running") + 1] == "skip"


OTHER: dict[str, Any] = {
    "sources": ("/a b/*.tif", "/c.tif"), "out": "/out it's", "model": "org/name", "task": "semantic", "labels": "/l.json",
    "fuse": ("tree crown",), "tile": 640, "overlap": 64, "bands": (4, 3, 2), "scale": "-5,1000", "gsd": 0.5,
    "nodata": -9999.0, "aoi": "/aoi.json", "classes": ("house", "tree crown"), "exclude": ("road",), "min_area": 2.5,
    "score": 0.25, "raster": False, "vector": False, "compression": "deflate", "batch": 3, "threads": 2,
    "precision": "bf16", "compile": True, "kind": "video", "fps": 2.0, "every": 4, "start": 1.5, "end": 9.0,
    "frame_size": 480, "sequence_fps": 25.0, "decoder": "pyav", "all_queries": True, "overlay": True, "link": "minvis",
    "max_age": 2.0, "match_threshold": 0.9, "iou_weight": 0.25, "class_weight": 0.5, "min_cosine": 0.25, "min_iou": 0.2,
    "birth_score": 0.75, "min_hits": 5, "camera_motion": False, "scene_cut": 0.25, "mosaic": True, "regions": ("all",),
    "workers": 3, "local": True, "retries": 0, "max_failures": "5", "unit_timeout": 90.5, "skip_invalid": True,
    "if_running": "skip", "incremental": True, "start_timeout": 30.0, "accelerator_type": "H100", "max_pixels": 2e12,
    "allow_drivers": ("GTiff", "COG"),
}  # fmt: skip
"""Another value than the default for every field of a job."""


@pytest.mark.parametrize(
    "name", [field.name for field in dataclasses.fields(JobSpec) if field.name != "mosaic"]
)
def test_the_words_mean_the_job(name: str) -> None:
    """Read by the command line itself, the words of a crontab are the job that a schedule runs, for every option."""
    values = {"sources": ("/a.tif",), "out": "/out", name: OTHER[name]}
    schedule = Schedule(JobSpec(**values), "0 2 * * *")
    words = command("panoptile", schedule, None)[2:]
    result = CliRunner().invoke(app, ["config", "show", *words, "--json"], catch_exceptions=False)
    read = JobSpec.from_json(json.loads(result.stdout)["options"])
    assert getattr(read, name) == OTHER[name] != getattr(JobSpec(("/a.tif",), "/out"), name)
    assert read == dataclasses.replace(schedule.spec, incremental=True, if_running="skip")


@pytest.mark.parametrize("target", ["crontab", "airflow"])
def test_names_that_hold_a_comma_are_no_words(target: Any) -> None:
    """They would be torn apart: exit 2. A manifest with a job file in it holds them as they are."""
    spec = dataclasses.replace(REMOTE, classes=("a,b", "c d"))
    with pytest.raises(JobError, match=r'--classes \["a,b", "c d"\] cannot be said') as e:
        render(Schedule(spec, "0 2 * * *"), target)
    assert int(e.value.code) == 2
    assert "- a,b\n" in render(Schedule(spec, "0 2 * * *", image="i"), "k8s")


def crontab_words(text: str) -> list[str]:
    """The command of a crontab's line, without the executable."""
    [line] = [row for row in text.splitlines() if not row.startswith("#")]
    return shlex.split(line.split(" ", 5)[5].replace(r"\%", "%"))[1:]


def test_a_crontab_runs_the_job_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job of many sources, or of names with commas, stays in its file: the line is short and means the same job."""
    monkeypatch.chdir(tmp_path)
    sources = [f"sheets/a sheet with a long name {i}.tif" for i in range(60)]
    Path("my job.yaml").write_text(
        yaml.safe_dump({"sources": sources, "out": "out", "classes": ["a,b", "c d"]})
    )
    when = ("--cron", "0 2 * * *", "--as", "crontab")
    words = crontab_words(rendered("my job.yaml", "--if-running", "skip", *when))
    guard = ["--incremental", "--if-running", "skip", "--quiet"]
    assert words == ["segment", str(tmp_path / "my job.yaml"), *guard]
    monkeypatch.chdir("/")
    shown = CliRunner().invoke(app, ["config", "show", *words[1:], "--json"], catch_exceptions=False)
    read = JobSpec.from_json(json.loads(shown.stdout)["options"])
    assert read.sources == tuple(str(tmp_path / source) for source in sources)
    assert (read.out, read.classes) == (str(tmp_path / "out"), ("a,b", "c d"))


def test_a_job_file_says_what_the_sources_are(tmp_path: Path) -> None:
    """Its kind becomes the option of segment that is called --as, too."""
    file = tmp_path / "job.yaml"
    file.write_text("sources: [frames]\nout: out\nkind: video\nsequence_fps: 5.0\n")
    words = crontab_words(rendered(str(file), "--tile", "640", "--cron", "0 2 * * *", "--as", "crontab"))
    assert words[words.index("--as") + 1] == "video"


def test_a_job_file_that_is_not_the_whole_job_becomes_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An option beside it, a variable, or a checkpoint that only this folder knows would be gone by night."""
    monkeypatch.chdir(tmp_path)
    when = ("--cron", "0 2 * * *", "--as", "crontab")
    Path("job.yaml").write_text("sources: [a.tif]\nout: out\n")
    words = crontab_words(rendered("job.yaml", "--tile", "640", *when))
    assert words[:6] == ["segment", str(tmp_path / "a.tif"), "--out", str(tmp_path / "out"), "--tile", "640"]
    monkeypatch.setenv("PANOPTILE_TILE", "768")
    assert "--tile 768" in rendered("job.yaml", *when)
    monkeypatch.delenv("PANOPTILE_TILE")
    Path("m").mkdir()
    Path("job.yaml").write_text("sources: [a.tif]\nout: out\nmodel: m\n")
    assert f"--model {tmp_path / 'm'}" in rendered("job.yaml", *when)


def test_a_command_that_is_too_long_for_cron(monkeypatch: pytest.MonkeyPatch) -> None:
    """998 bytes are taken; what is longer would not be, and the sentence says what to do."""
    monkeypatch.setattr(manifests, "_executable", lambda: "panoptile")
    length = len(shlex.join(command("panoptile", Schedule(JobSpec(("/",), "/out"), "0 2 * * *"), None)))
    for name, is_taken in (("x" * (998 - length), True), ("x" * (999 - length), False), ("ä" * 480, False)):
        schedule = Schedule(JobSpec((f"/{name}",), "/out"), "0 2 * * *")
        if is_taken:
            assert len(render(schedule, "crontab").splitlines()[-1]) == len("0 2 * * * ") + 998
            continue
        with pytest.raises(
            JobError, match=r"cron takes 998: write the job to a file with --save job\.yaml"
        ) as e:
            render(schedule, "crontab")
        assert int(e.value.code) == 2
        assert render(schedule, "airflow")


def test_an_airflow_dag_is_python_that_runs_the_job() -> None:
    """With stand-ins for Airflow's two classes, the DAG hands over one command, untouched by templates."""
    text = render(Schedule(REMOTE, "0 2 * * *", "nightly", "Europe/Zurich"), "airflow")
    stand_ins = """
import sys, types
class DAG:
    def __init__(self, **given): print(given["dag_id"], given["schedule"], given["start_date"].tzinfo)
    def __enter__(self): return self
    def __exit__(self, *a): pass
class BashOperator:
    def __init__(self, **given): print(given["bash_command"])
for name, members in {"airflow": {"DAG": DAG}, "airflow.operators": {}, "airflow.operators.bash": {"BashOperator": BashOperator}}.items():
    sys.modules[name] = types.ModuleType(name); vars(sys.modules[name]).update(members)
"""
    run = subprocess.run([sys.executable, "-c", stand_ins + text], capture_output=True, text=True, check=True)
    head, command = run.stdout.splitlines()
    assert head == "nightly 0 2 * * * Europe/Zurich"
    words = shlex.split(command.removeprefix("{% raw %}").rstrip().removesuffix("{% endraw %}"))
    assert words[:3] == ["panoptile", "segment", REMOTE.sources[0]]


_PARSE = """
import json, sys
try:
    from airflow.dag_processing.dagbag import DagBag  # from 3.1
except ImportError:
    from airflow.models.dagbag import DagBag
bag = DagBag(sys.argv[1])
[dag] = bag.dags.values()
[task] = dag.tasks
zone = getattr(dag.timezone, "name", str(dag.timezone))
text = task.render_template(task.bash_command, {})
print(json.dumps({"errors": bag.import_errors, "dag": dag.dag_id, "cron": dag.schedule, "zone": zone, "retries": task.retries,
    "command": text, "active": dag.max_active_runs, "catchup": dag.catchup}))
"""


@pytest.mark.slow
def test_airflow_reads_the_dag(tmp_path: Path) -> None:
    """Airflow's own DagBag: no import error, the schedule, one run at a time, and the command after templating."""
    python = os.environ.get("PANOPTILE_AIRFLOW_PYTHON")
    if python is None:
        pytest.skip(
            "PANOPTILE_AIRFLOW_PYTHON does not name the Python of an environment with apache-airflow: the Airflow "
            "manifest is NOT parsed by Airflow"
        )
    (tmp_path / "dags").mkdir()
    text = render(Schedule(REMOTE, "0 2 * * *", "nightly", "Europe/Zurich"), "airflow")
    (tmp_path / "dags" / "nightly.py").write_text(text)
    environment = {"AIRFLOW_HOME": str(tmp_path / "home"), "AIRFLOW__CORE__LOAD_EXAMPLES": "False"}
    run = subprocess.run(
        [python, "-c", _PARSE, str(tmp_path / "dags")],
        env=environment | {"PATH": os.path.dirname(python)},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    found = json.loads(run.stdout.strip().splitlines()[-1])
    words = shlex.split(found.pop("command"))
    assert found == {
        "errors": {},
        "dag": "nightly",
        "cron": "0 2 * * *",
        "zone": "Europe/Zurich",
        "retries": 2,
        "active": 1,
        "catchup": False,
    }
    assert words[:3] == ["panoptile", "segment", REMOTE.sources[0]]
    assert words[-4:] == ["--incremental", "--if-running", "skip", "--quiet"]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("--as", "systemd"), "--as is one of"),
        (("--as", "video"), "in a job file, as kind: video"),
        (("--as", "crontab", "--no-incremental"), "every scheduled run is incremental"),
        (("--as", "k8s"), "needs --image"),
        (("--as", "k8s", "--image", "i"), "local path that a pod cannot see"),
        (("--as", "k8s", "--image", "i", "--volume-claim", "x"), "CLAIM:/path"),
        (("--as", "crontab", "--timezone", "Mars/Base"), "IANA"),
        (("--as", "crontab", "--name", "Two Words"), "--name"),
        (("--as", "k8s", "--image", "i", "--pod-memory", "lots"), "--pod-memory"),
        (("--as", "crontab", "--image", "i"), "--image says nothing to --as crontab"),
        (("--as", "crontab", "--deadline", "600"), "--deadline says nothing"),
        (("--as", "airflow", "--pod-gpus", "2"), "--pod-gpus says nothing"),
        (("--as", "airflow", "--volume-claim", "a:/b"), "--volume-claim says nothing"),
    ],
)
def test_what_a_scheduler_cannot_run_is_refused(args: tuple[str, ...], words: str) -> None:
    """Exit 2 and the sentence; nothing is printed."""
    with pytest.raises(JobError, match=words) as e:
        rendered("/data/a.tif", "-o", "/data/out", "--cron", "0 2 * * *", *args)
    assert int(e.value.code) == 2


@pytest.mark.parametrize("target", TARGETS)
def test_a_line_break_in_the_expression_does_no_harm(target: Any) -> None:
    """Blanks of any kind separate the five fields; the manifest has single ones."""
    text = render(Schedule(REMOTE, "0 2\n*\t* *", image="i"), target)
    assert "0 2 * * *" in text
    assert "0 2\n" not in text


def test_the_crontab_runs_the_installation_that_rendered_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Not another one that PATH finds; and nothing replaces the other lines of a crontab."""
    (tmp_path / "panoptile").write_text("#!/bin/sh\n")
    (tmp_path / "panoptile").chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    [line] = [r for r in render(Schedule(REMOTE, "0 2 * * *"), "crontab").splitlines() if r[0] != "#"]
    assert line.split()[5] == str(tmp_path / "panoptile")
    assert "crontab -" not in CliRunner().invoke(app, ["schedule", "render", "--help"]).stdout


@pytest.mark.parametrize("target", TARGETS)
def test_a_mosaic_is_not_scheduled(target: str) -> None:
    """Its command would end with exit 2 every night: --incremental does not go with it."""
    image = () if target in ("crontab", "airflow") else ("--image", "i")
    with pytest.raises(JobError, match=r"cannot be scheduled, .* --mosaic: a new sheet") as e:
        rendered(
            "s3://b/*.tif", "-o", "s3://b/out", "--mosaic", "--cron", "0 2 * * *", "--as", target, *image
        )
    assert int(e.value.code) == 2


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(
    ("source", "out", "model"),
    [
        ("s3://key:hunter2hunter2@b/*.tif", "s3://b/out", "builtin"),
        ("s3://b/a.tif?X-Amz-Signature=hunter2hunter2", "s3://b/out", "builtin"),
        ("s3://b/*.tif", "s3://key:hunter2hunter2@b/out", "builtin"),
        ("s3://b/*.tif", "s3://b/out", "echo:s3://key:hunter2hunter2@b/l.tif"),
    ],
)
def test_a_uri_with_a_secret_is_refused(source: str, out: str, model: str, target: str) -> None:
    """Neither the secret nor a masked URI goes into a manifest, or into the sentence: exit 2."""
    image = () if target in ("crontab", "airflow") else ("--image", "i")
    with pytest.raises(JobError, match=r"take it out|give the plain URI") as e:
        rendered(source, "-o", out, "--model", model, "--cron", "0 2 * * *", "--as", target, *image)
    assert int(e.value.code) == 2
    assert "hunter2" not in str(e.value)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("s3://user@b/*.tif", "has a user name or password in it"),
        ("https://example.org/a.tif", "cannot be used"),
        ("s3:///a.tif", "names no bucket"),
    ],
)
def test_a_uri_that_a_run_refuses_is_refused(source: str, words: str) -> None:
    """In the same words, but before its night."""
    with pytest.raises(JobError, match=words) as e:
        rendered(source, "-o", "s3://b/out", "--cron", "0 2 * * *", "--as", "crontab")
    assert int(e.value.code) == 2


@pytest.mark.parametrize("target", TARGETS)
def test_a_secret_of_the_environment_is_not_masked_in_a_manifest(
    target: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A path that holds it cannot be shown, and masked it would name nothing: exit 2."""
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2hunter2")
    spec = JobSpec(("s3://b/hunter2hunter2/a.tif",), "s3://b/out")
    with pytest.raises(JobError, match="would hold a secret") as e:
        render(Schedule(spec, "0 2 * * *", image="i"), target)
    assert "hunter2" not in str(e.value)


@pytest.mark.parametrize("as_json", [False, True])
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("word", ["panoptile", "--incremental", "datetime", "apiVersion", "password: new"])
def test_a_secret_that_is_a_word_of_ours_is_no_secret(
    target: str, word: str, as_json: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The manifest says to everybody what it says without that secret: it is neither refused nor masked."""
    more = [*([] if target in ("crontab", "airflow") else ["--image", "i"]), *(["--json"] if as_json else [])]
    line = [
        "s3://b/*.tif",
        "-o",
        "s3://b/out",
        "--name",
        "password",
        "--cron",
        "0 2 * * *",
        "--as",
        target,
        *more,
    ]
    monkeypatch.setattr(manifests, "_executable", lambda: "/opt/panoptile/bin/panoptile")
    usual = rendered(*line)
    monkeypatch.setenv("DB_PASSWORD", word)
    assert rendered(*line) == usual != ""
    with pytest.raises(JobError, match="would hold a secret in out"):
        rendered(*line, "-o", f"s3://b/{word}")


WITH_SECRET: dict[str, dict[str, Any]] = {
    "sources": {"sources": ("s3://b/a.tif", "s3://b/hunter2hunter2/*.tif")},
    "out": {"out": "s3://b/hunter2hunter2"},
    "model": {"model": "org/hunter2hunter2"},
    "classes": {"classes": ("tree", "hunter2hunter2")},
    "exclude": {"exclude": ("hunter2", "hunter2")},
    "max_pixels": {"max_pixels": 31415926.0},
    "image": {"image": "registry/hunter2hunter2:1"},
    "namespace": {"namespace": "hunter2hunter2"},
    "secret": {"secret": "hunter2hunter2"},
    "claim": {"claim": "hunter2hunter2:/data"},
    "name": {"name": "hunter2hunter2"},
    "deadline": {"deadline": 31415926},
}
"""Values of a job or of its schedule that hold a secret."""


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", WITH_SECRET)
def test_a_secret_is_found_in_whatever_is_given(
    name: str, target: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In each value that the target's manifest takes, numbers and lists too, and nowhere else: exit 2."""
    secrets = ("hunter2hunter2", "hunter2,hunter2", "31415926")
    for number, secret in enumerate(secrets):
        monkeypatch.setenv(f"TOKEN_{number}", secret)
    given = dict(WITH_SECRET[name])
    fields = {field.name for field in dataclasses.fields(JobSpec)}
    spec = dataclasses.replace(REMOTE, **{k: given.pop(k) for k in list(given) if k in fields})
    schedule = Schedule(spec, "0 2 * * *", **{"image": "i", **given})
    if name not in {"name", *fields, *USED_BY[target]}:
        assert "hunter2" not in render(schedule, target)
        return
    with pytest.raises(JobError, match=f"would hold a secret in {name}") as e:
        render(schedule, target)
    assert int(e.value.code) == 2
    assert not any(secret in str(e.value) for secret in secrets)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("secret", ['it\'s a "secret"', "very long and full of blanks " * 4])
def test_a_secret_does_not_hide_in_quotes(target: Any, secret: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shell's quotes, or YAML's broken lines, spell it differently, and anybody can read it back."""
    monkeypatch.setenv("DB_PASSWORD", secret)
    spec = JobSpec((f"s3://b/{secret}/a.tif",), "s3://b/out")
    with pytest.raises(JobError, match="would hold a secret in sources"):
        render(Schedule(spec, "0 2 * * *", image="i"), target)


def test_a_job_file_that_a_crontab_runs_keeps_what_is_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The line holds its path alone, which is looked through, and so is that of the installation."""
    monkeypatch.setenv("DB_PASSWORD", "hunter2hunter2")
    when = ("--cron", "0 2 * * *", "--as", "crontab")
    for name in ("job.yaml", "hunter2hunter2.yaml"):
        (tmp_path / name).write_text("sources: [/hunter2hunter2/a.tif]\nout: /out\n")
    assert crontab_words(rendered(str(tmp_path / "job.yaml"), *when))[1] == str(tmp_path / "job.yaml")
    with pytest.raises(JobError, match="would hold a secret in job_file"):
        rendered(str(tmp_path / "hunter2hunter2.yaml"), *when)
    for path in ("/hunter2hunter2/bin/panoptile", "/opt/panoptile/word/bin/panoptile"):
        monkeypatch.setenv("TOKEN", "panoptile/word")
        monkeypatch.setattr(manifests, "_executable", lambda path=path: path)
        with pytest.raises(JobError, match="would hold a secret in the path of panoptile"):
            rendered(str(tmp_path / "job.yaml"), *when)


@pytest.mark.parametrize("choice", ["attach", "fail"])
def test_another_choice_than_to_skip_is_refused(choice: str, tmp_path: Path) -> None:
    """By flag or in a job file: it would not be heeded. Skip itself may be given."""
    when = ("--cron", "0 2 * * *", "--as", "crontab")
    file = tmp_path / "job.yaml"
    file.write_text(f"sources: [a.tif]\nout: out\nif_running: {choice}\n")
    for words in (["a.tif", "-o", "out", "--if-running", choice], [str(file)]):
        with pytest.raises(JobError, match=f"--if-running {choice} cannot be scheduled") as e:
            rendered(*words, *when)
        assert int(e.value.code) == 2
    for words in (["a.tif", "-o", "out"], [str(file)]):
        assert rendered(*words, "--if-running", "skip", *when).count("--if-running skip") == 1


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("model", ["./mymodel", "mymodel", "a/b/c", "../m/n"])
def test_a_checkpoint_that_is_not_here(model: str, target: Any) -> None:
    """A relative path would be looked for in the scheduler's own folder: exit 2."""
    with pytest.raises(JobError, match="There is no checkpoint at"):
        render(Schedule(dataclasses.replace(REMOTE, model=model), "0 2 * * *", image="i"), target)


def test_a_checkpoint_at_home_is_found_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The crontab has its whole path, a pod does not see it."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "m").mkdir()
    job = ("s3://b/a.tif", "-o", "s3://b/out", "--model", "~/m", "--cron", "0 2 * * *", "--as")
    assert f"--model {tmp_path / 'm'} " in rendered(*job, "crontab")
    with pytest.raises(JobError, match="is a local path that a pod cannot see"):
        rendered(*job, "k8s", "--image", "i")
