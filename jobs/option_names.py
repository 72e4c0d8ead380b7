"""What an option of a job is called in the environment and in a job file, and what is said to a name that is none.

In the environment an option goes by its flag's name too (``PANOPTILE_TIMEOUT_UNIT``), in a job file by its own alone.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Collection, Mapping
from typing import get_args

from panoptile.jobs import options as opt

ENVIRONMENT_PREFIX = "PANOPTILE_"
OTHER_VARIABLES = frozenset(
    {
        "PANOPTILE_CLUSTER",
        "PANOPTILE_FAULT",
        "PANOPTILE_FAULT_ONCE",
        "PANOPTILE_LEASE_SECONDS",
        "PANOPTILE_PUBLISH_SECONDS",
        "PANOPTILE_TRAIN_LAUNCHED",
        # of the tests, besides PANOPTILE_TEST_…
        "PANOPTILE_AIRFLOW_PYTHON",
        "PANOPTILE_DATUMARO_PYTHON",
        "PANOPTILE_FIFTYONE_PYTHON",
        "PANOPTILE_KUBERAY_CRD",
        "PANOPTILE_LABELSTUDIO_PYTHON",
        "PANOPTILE_TRANSCRIPT",
    }
)
"""Variables of ours that no option of a job stands for."""
_NOT_OURS = re.compile(
    r"PANOPTILE_(TEST_.*|(.+_)?SERVICE_(HOST|PORT)(_.+)?|(.+_)?PORT(_\d+_(TCP|UDP)(_(PROTO|PORT|ADDR))?)?)"
)
"""What the tests read, and what Kubernetes gives to every pod beside a service called panoptile."""
FLAGS_OF_COMMANDS: Mapping[str, str] = {
    "cluster": "submit",
    "auth_token_file": "submit",
    "insecure_cluster": "submit",
    "wheel": "submit",
    "watch": "submit",
    "sample": "plan",
    "price": "plan",
    "budget": "plan",
    "origin": "config show",
    "cron": "schedule render",
    "name": "schedule render",
    "timezone": "schedule render",
    "image": "schedule render",
    "namespace": "schedule render",
    "secret": "schedule render",
    "volume_claim": "schedule render",
    "pod_gpus": "schedule render",
    "pod_cpus": "schedule render",
    "pod_memory": "schedule render",
    "deadline": "schedule render",
    "explain": "resume",
    "retry_quarantined": "resume",
    "save": "every command that takes a job",
    "json": "every command that takes a job",
    "quiet": "every command that takes a job",
}
"""What a command that takes a job knows besides the job's options, and the command; a test compares it with theirs."""
_NEAR = 0.7
"""Similarity from which a name is taken for a misspelt other one."""


def variable(name: str) -> str:
    """The environment variable of an option: ``min_area`` -> ``PANOPTILE_MIN_AREA``."""
    return ENVIRONMENT_PREFIX + name.upper()


def variables(name: str) -> list[str]:
    """All environment variables of an option, the one that counts first: by its own name, then by its flags'."""
    return [variable(spelling) for spelling in _spellings(name)]


def variable_in_use(name: str) -> str:
    """Which of an option's variables gives it now; the first where none does."""
    known = variables(name)
    return next((one for one in known if os.environ.get(one)), known[0])


def variables_behind(message: str, names: Collection[str]) -> str:
    """``message`` about flags, with the variables that gave those of the options ``names`` that it is about."""
    flags = set(re.findall(r"--(?:no-)?([a-z][a-z-]*)", message))
    given = [variable_in_use(n) for n in names if flags & {s.replace("_", "-") for s in _spellings(n)}]
    return f"{', '.join(given)} in the environment: {message}" if given else message


def not_an_option(name: str) -> str:
    """What is wrong with a job file's key, as a part of a sentence."""
    plain = _plain(name)
    if plain in FLAGS_OF_COMMANDS:
        return f"{name!r} is a flag of {FLAGS_OF_COMMANDS[plain]}, not an option of the job: give it there"
    meant = _meant(plain)
    return f"there is no option {name!r}" + (f" (did you mean {meant!r}?)" if meant else "")


def unknown_variables(names: Collection[str]) -> list[str]:
    """A sentence for each environment variable that looks like ours but is none: it would silently do nothing."""
    known = {spelt for name in opt.JOB for spelt in variables(name)} | OTHER_VARIABLES
    return [
        _ignored(name)
        for name in sorted(names)
        if name.startswith(ENVIRONMENT_PREFIX) and name not in known and not _NOT_OURS.fullmatch(name)
    ]


def _ignored(name: str) -> str:
    plain = _plain(name.removeprefix(ENVIRONMENT_PREFIX))
    if plain in FLAGS_OF_COMMANDS:
        flag = f"--{plain.replace('_', '-')}"
        return f"{name} is ignored: {flag} is a flag of {FLAGS_OF_COMMANDS[plain]}, not an option of the job."
    if plain == "sources":
        return f"{name} is ignored: sources stand on the command line or in a job file."
    meant = _meant(plain)
    return f"{name} is no option and is ignored" + (f": did you mean {variable(meant)}?" if meant else ".")


def _spellings(name: str) -> list[str]:
    """An option's own name and those of its flags: "kind" -> ["kind", "as"]."""
    described = get_args(opt.JOB[name])[1]
    declared = (
        described.default,
        *(described.param_decls or ()),
    )  # within Annotated the first flag is the "default"
    flags = [str(flag).split("/")[0] for flag in declared]
    return list(dict.fromkeys([name, *(_plain(flag[2:]) for flag in flags if flag.startswith("--"))]))


def _meant(plain: str) -> str | None:
    """The option that goes by this name, or nearly so; None where none is near."""
    options = {spelling: name for name in opt.JOB for spelling in _spellings(name)} | {"sources": "sources"}
    near = difflib.get_close_matches(plain, options, 1, _NEAR)
    return options[near[0]] if near else None


def _plain(name: str) -> str:
    return name.lower().replace("-", "_")
