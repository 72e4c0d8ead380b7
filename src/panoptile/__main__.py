"""Run the command line: ``python -m panoptile``."""

from panoptile.jobs.cli import main

if __name__ == "__main__":
    main()
