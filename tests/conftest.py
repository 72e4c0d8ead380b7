"""Settings that all tests share."""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_AUTH_MODE", "disabled")
sys.path.insert(0, str(Path(__file__).parent.parent))  # tests share helpers as tests.<folder>.<module>

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile(
    "default", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow], max_examples=40
)
settings.load_profile("default")


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder with real labelled data; tests that need it skip without it, and say so."""
    folder = os.environ.get("PANOPTILE_TEST_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip(
            "PANOPTILE_TEST_DATA does not name the folder with test data: real rasters are NOT tested"
        )
    return Path(folder)
