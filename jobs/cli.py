"""The command line. ``--help`` imports neither torch nor Ray nor GDAL: each command imports what it needs."""

from __future__ import annotations

import os
import sys
from typing import Annotated, Any

import typer

from panoptile.jobs import commands, interrupt
from panoptile.jobs.console import Console
from panoptile.jobs.exits import Exit, JobError
from panoptile.jobs.interrupt import TERMINATED_EXIT, Terminated
from panoptile.pipeline.redaction import redacted

app = typer.Typer(
    name="panoptile",
    help="Panoptic segmentation of rasters and videos that are too large for one forward pass.",
    no_args_is_help=True,
    add_completion=True,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)
for _register in commands.ALL:
    _register(app)


def main() -> None:
    """Entry point: runs the command line and exits with the documented code."""
    interrupt.install()
    try:
        ended = app(
            prog_name="panoptile", standalone_mode=False
        )  # the code of a typer.Exit comes back as a value
        code = ended if isinstance(ended, int) else int(Exit.DONE)
    except JobError as e:
        Console().error(str(e))
        code = int(e.code)
    except typer.Exit as e:
        code = e.exit_code
    except (KeyboardInterrupt, typer.Abort):
        code = int(Exit.INTERRUPTED)
    except Terminated:
        code = TERMINATED_EXIT
    except Exception as e:  # noqa: BLE001  (the outermost frame: every error must end in a sentence and a code)
        code = _usage_error(e)
    # typer turns Ctrl-C into a plain exit code 130; and a job that is watched ends with such a code too
    if code in (int(Exit.INTERRUPTED), TERMINATED_EXIT) and interrupt.came():
        Console().error(interrupt.resume_line())
        sys.stdout.flush()
        os._exit(code)  # threads in the middle of a unit must not delay the end: nothing uncommitted counts
    sys.stdout.flush()
    if code in (int(Exit.FAILED), int(Exit.UNREACHABLE)):
        sys.stderr.flush()
        os._exit(code)  # a hung unit's thread would be waited for without end
    sys.exit(code)


def _usage_error(error: Exception) -> int:
    """A wrong option ends with exit 2; anything else is our fault: exit 1 with the traceback."""
    show = getattr(error, "show", None)
    if show is not None and hasattr(error, "exit_code"):  # a usage error of the command-line library
        _name_variable(error)
        show()
        return int(Exit.INVALID)
    import traceback

    print(redacted(traceback.format_exc()), file=sys.stderr, end="")
    Console().error(
        f"internal error: {type(error).__name__}: {error}. Please report it with the lines above."
    )
    return int(Exit.INTERNAL)


def _name_variable(error: Any) -> None:
    """Have a wrong value from the environment told as its variable's, where no flag was given."""
    option, context = getattr(error, "param", None), getattr(error, "ctx", None)
    if option is None or context is None:
        return
    source = context.get_parameter_source(option.name)
    if source is not None and source.name == "ENVIRONMENT":
        known = [option.envvar] if isinstance(option.envvar, str) else list(option.envvar)
        error.param_hint = next((name for name in known if os.environ.get(name)), known[0])


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        import importlib.metadata

        print(f"panoptile {importlib.metadata.version('panoptile')}")
        raise typer.Exit
