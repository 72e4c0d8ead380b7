"""What --help and the shell tell of every command."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import typer
import typer.main
from typer.testing import CliRunner

from panoptile.jobs.cli import app


def commands(group: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Every command that does something, by the words that call it."""
    for word, command in getattr(group, "commands", {}).items():
        yield from commands(command, f"{name} {word}")
    if not hasattr(group, "commands"):
        yield name, group


ALL = dict(commands(typer.main.get_command(app), "panoptile"))


def test_every_command_is_there() -> None:
    """The commands of the documented grammar."""
    words = {name.removeprefix("panoptile ") for name in ALL}
    assert words >= {
        "segment", "plan", "submit", "status", "logs", "cancel", "list", "resume", "verify", "preview", "report",
        "export", "eval", "compare", "schedule render", "train", "gc", "relink", "config show", "doctor",
        "model info", "model convert",
    }  # fmt: skip


@pytest.mark.parametrize("name", ALL)
def test_every_command_says_what_it_does(name: str) -> None:
    """One paragraph that is a sentence or a few, and an example that calls this very command."""
    command = ALL[name]
    text = (command.help or "").strip()
    assert len(text) > 30, f"{name} has no description"
    assert text[0].isupper()
    assert text.endswith((".", ")"))
    assert "\n\n" not in text
    epilog = command.epilog or ""
    assert re.search(rf"Examples?: .*{re.escape(name)} ", f"{epilog} ", re.DOTALL), f"{name} has no example"


@pytest.mark.parametrize("name", ALL)
def test_every_option_is_explained(name: str) -> None:
    """Each option and argument has its sentence; each value has a name that says what it is."""
    for parameter in ALL[name].params:
        if parameter.name in ("help", "install_completion", "show_completion"):
            continue
        label = f"{name} {'/'.join(parameter.opts)}"
        assert (getattr(parameter, "help", None) or "").strip(), f"{label} has no help"
        if not getattr(parameter, "is_flag", False):
            assert parameter.metavar, f"{label} has no name for its value"


@pytest.mark.parametrize("words", [(), ("status",), ("schedule", "render")])
def test_help_has_a_short_name(words: tuple[str, ...]) -> None:
    """-h, at every level, is --help."""
    short, long = (CliRunner().invoke(app, [*words, flag]) for flag in ("-h", "--help"))
    assert short.exit_code == 0
    assert short.stdout == long.stdout != ""


@pytest.mark.parametrize("name", ALL)
def test_examples_are_written_in_the_commands_own_grammar(name: str) -> None:
    """Every option in an example is one of the command's."""
    command = ALL[name]
    known = {opt for p in command.params for opt in (*p.opts, *p.secondary_opts)} | {"--help"}
    examples = (command.epilog or "").split("Example", 1)[-1]
    own = examples.split(f"{name} ", 1)[-1]
    own = re.split(r"[|;]|panoptile ", own)[0]
    used = set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", own))
    assert used <= known, f"{name}: {used - known} in an example"


@pytest.mark.parametrize(
    ("shell", "words"),
    [("bash", "complete -o default -F _panoptile_completion panoptile"), ("zsh", "#compdef panoptile")],
)
def test_a_shell_is_told_how_to_complete(shell: str, words: str) -> None:
    """The script for the shell completes panoptile, also where Python was asked for the module."""
    script = completed({"_PANOPTILE_COMPLETE": f"source_{shell}"})
    assert words in script
    assert f"_PANOPTILE_COMPLETE=complete_{shell}" in script


def test_words_are_completed() -> None:
    """A command that begins so, and an option of it."""
    asks = {"_PANOPTILE_COMPLETE": "complete_bash", "COMP_CWORD": "1"}
    assert completed(asks | {"COMP_WORDS": "panoptile seg"}).split() == ["segment"]
    options = completed(asks | {"COMP_WORDS": "panoptile segment --over", "COMP_CWORD": "2"}).split()
    assert set(options) == {"--overlap", "--overlay"}


def completed(variables: dict[str, str]) -> str:
    run = subprocess.run(
        [sys.executable, "-m", "panoptile"],
        env=os.environ | variables,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert not run.stderr
    return run.stdout
