"""YAML that cannot be parsed is told by the file's name and the place in it."""

from __future__ import annotations

from pathlib import Path

import pytest

from panoptile.jobs.exits import JobError
from panoptile.jobs.train_options import train_options
from panoptile.pipeline.inputs import InputError
from panoptile.pipeline.training_spec import read_data_file


def test_a_broken_data_file_and_recipe_are_named(tmp_path: Path) -> None:
    """One line with the file, the line and the column, and not with the parser's name of a text without a file."""
    broken = tmp_path / "broken.yaml"
    broken.write_text("steps: 2000\nlist: [1, 2\n")
    with pytest.raises(InputError) as data:
        read_data_file(str(broken))
    with pytest.raises(JobError) as recipe:
        train_options(str(broken), {})
    for caught in (data, recipe):
        assert str(broken) in str(caught.value)
        assert "in line 2, column 7" in str(caught.value)
        assert "unicode string" not in str(caught.value)
        assert "\n" not in str(caught.value)
