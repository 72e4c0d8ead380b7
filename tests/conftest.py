"""Settings that all tests share."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_AUTH_MODE", "disabled")
sys.path.insert(0, str(Path(__file__).parent.parent))  # tests share helpers as tests.<folder>.<module>

import pytest
from hypothesis import HealthCheck, settings
from tests.object_stores import any_root, azure_server, gcs_server, s3_root, s3_server

__all__ = ["any_root", "azure_server", "gcs_server", "s3_root", "s3_server"]  # fixtures

settings.register_profile(
    "default", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow], max_examples=40
)
settings.load_profile("default")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Where tests run side by side (``-n``), those of a file stay together, and all files that share Ray in one process."""
    with_ray = {item.path for item in items if "small_ray" in getattr(item, "fixturenames", ())}
    for item in items:
        item.add_marker(pytest.mark.xdist_group("ray" if item.path in with_ray else str(item.path)))


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder with real labelled data; tests that need it skip without it, and say so."""
    folder = os.environ.get("PANOPTILE_TEST_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip(
            "PANOPTILE_TEST_DATA does not name the folder with test data: real rasters are NOT tested"
        )
    return Path(folder)


@pytest.fixture(scope="session")
def small_ray() -> Iterator[None]:
    """One small Ray for the whole test run."""
    import ray

    ray.init(
        address="local",
        num_cpus=2,
        num_gpus=0,
        include_dashboard=False,
        object_store_memory=100 * 2**20,
        log_to_driver=False,
    )
    yield
    ray.shutdown()
