"""Redaction: secrets of every shape go, everything else stays as it is."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import panoptile
from panoptile.pipeline.redaction import is_secret_name, redacted, redacted_json

CANARY = "kX7/canary+secret=="


@pytest.mark.parametrize(
    "text",
    [
        f"s3://AKIAEXAMPLE:{CANARY}@bucket/out is refused",
        f"https://user:{CANARY}@host/a.tif",
        f"https://b.s3.amazonaws.com/a.tif?X-Amz-Credential=x&X-Amz-Signature={CANARY}&X-Amz-Date=1",
        f"https://a.blob.core.windows.net/c/a.tif?sv=2022-11-02&sig={CANARY}",
        f"https://storage.googleapis.com/b/a?GoogleAccessId=me&Expires=1&Signature={CANARY}",
        f"DefaultEndpointsProtocol=https;AccountName=a;AccountKey={CANARY};EndpointSuffix=core.windows.net",
        f"aws_secret_access_key = {CANARY}",
        f"Authorization: Bearer {CANARY}",
        f'{{"aws_session_token": "{CANARY}"}}',
    ],
)
def test_secrets_in_text_go_without_the_environment_knowing_them(text: str) -> None:
    """User names with passwords, signatures, keys that are assigned, bearer tokens."""
    assert CANARY not in redacted(text)
    assert "***" in redacted(text)


@pytest.mark.parametrize(
    "name",
    ["AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AZURE_STORAGE_ACCOUNT_KEY", "AZURE_STORAGE_KEY", "HF_TOKEN",
     "AZURE_STORAGE_SAS_TOKEN", "AZURE_CLIENT_SECRET", "RAY_AUTH_TOKEN", "PGPASSWORD", "SOME_API_KEY"],
)  # fmt: skip
def test_values_of_secret_variables_go_wherever_they_stand(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the middle of words, in quotes, percent-encoded, in keys and values of JSON."""
    monkeypatch.setenv(name, CANARY)
    assert redacted(f"x{CANARY}y") == "x***y"
    assert "canary" not in redacted("a=kX7%2Fcanary%2Bsecret%3D%3D&b")
    assert "canary" not in str(redacted_json({"a": [CANARY, {CANARY: 1}], "b": (f"<{CANARY}>",)}))


def test_the_key_inside_a_connection_string_goes_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client may report the key alone."""
    monkeypatch.setenv(
        "AZURE_STORAGE_CONNECTION_STRING", f"AccountName=me;AccountKey={CANARY};BlobEndpoint=http://h"
    )
    assert CANARY not in redacted(f"the key {CANARY} is wrong")


@pytest.mark.parametrize(
    "name",
    ["PATH", "HOME", "AWS_DEFAULT_REGION", "AWS_WEB_IDENTITY_TOKEN_FILE", "GOOGLE_APPLICATION_CREDENTIALS",
     "RAY_AUTH_MODE", "TOKENIZERS_PARALLELISM", "DISASTER_AREA", "AWS_ENDPOINT_URL"],
)  # fmt: skip
def test_other_variables_are_no_secrets(name: str) -> None:
    """A path to a token is not a token, and a mode is not a secret."""
    assert not is_secret_name(name)


@given(st.text(st.characters(blacklist_characters="?&;=:@"), max_size=80))
def test_text_without_secrets_stays_as_it_is(text: str) -> None:
    """Nothing is masked by accident."""
    if "bearer" not in text.lower() and "basic" not in text.lower():
        assert redacted(text) == text


def test_numbers_and_flags_pass_through() -> None:
    """JSON values that are no text are not touched."""
    assert redacted_json({"a": 1, "b": None, "c": [True, 1.5]}) == {"a": 1, "b": None, "c": [True, 1.5]}


def sentences(path: Path) -> Iterator[str]:
    """Every text in a module, with X where a value is put in."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(v.value) if isinstance(v, ast.Constant) else "X" for v in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


@pytest.mark.parametrize("part", ["jobs", "pipeline", "model"])
def test_our_own_sentences_stay_whole(part: str) -> None:
    """A word after "password:" would be taken for one."""
    folder = Path(panoptile.__file__).parent / part
    texts = [text for path in sorted(folder.rglob("*.py")) for text in sentences(path)]
    assert len(texts) > 500
    assert [text for text in texts if redacted(text) != text] == []
