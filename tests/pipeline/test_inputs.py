"""From sources to files and keys."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from panoptile.pipeline.inputs import InputError, find_inputs, output_key


def touch(folder: Path, *names: str) -> list[str]:
    for name in names:
        (folder / name).touch()
    return [str(folder / name) for name in names]


def test_a_directory_gives_its_rasters_sorted_and_nothing_else(tmp_path: Path) -> None:
    """Other files, hidden files and sub-directories are left out; endings count in any case."""
    b, a = touch(tmp_path, "b.tif", "a.JP2")
    touch(tmp_path, "a.JP2.aux.xml", "._b.tif", "readme.md")
    (tmp_path / "inner.tif").mkdir()
    assert find_inputs([str(tmp_path)]) == [a, b]


def test_the_order_of_sources_is_kept_and_a_file_counts_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file named by path, relative path, link, URL and glob is one input."""
    a, b = touch(tmp_path, "a.tif", "b.tif")
    (tmp_path / "link.tif").symlink_to(a)
    monkeypatch.chdir(tmp_path)
    assert find_inputs([b, "a.tif", a, "link.tif", f"file://{a}", "*.tif", str(tmp_path)]) == [b, a]


def test_a_link_that_leads_nowhere_is_an_input(tmp_path: Path) -> None:
    """Its scene may lie on a share that is not mounted: a folder and a pattern name it as they name a file."""
    (a,) = touch(tmp_path, "a.tif")
    (tmp_path / "b.tif").symlink_to("/nowhere/b.tif")
    (tmp_path / "inner").mkdir()
    (tmp_path / "c.tif").symlink_to(tmp_path / "inner")
    found = [a, str(tmp_path / "b.tif")]
    assert find_inputs([str(tmp_path)]) == found
    assert find_inputs([str(tmp_path / "*.tif")]) == found


def test_a_name_with_glob_characters_is_a_file_first(tmp_path: Path) -> None:
    """scene[1].tif is itself where it exists."""
    (path,) = touch(tmp_path, "scene[1].tif")
    assert find_inputs([path]) == [path]


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("missing.tif", "does not exist"),
        ("*.tif", "No file matches"),
        ("empty", "holds no raster"),
        ("", "not a path"),
        ("a\0b.tif", "not a path"),
        ("https://example.org/a.tif", "download it first"),
        ("/vsicurl/http://127.0.0.1/a.tif", "own name"),
        ("vrt:///etc/passwd", "cannot be read"),
        ("GTIFF_DIR:1:a.tif", "does not exist"),
        ("memory://folder/a.tif", "cannot be read"),
        ("s3://key:canary-secret@bucket/a.tif", "user name or password"),
        ("s3://bucket/a.tif?X-Amz-Signature=canary-secret", "query parameters"),
        ("file://elsewhere/a.tif", "host elsewhere"),
    ],
)
def test_a_source_that_names_nothing_is_told_in_one_sentence(
    source: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message names the source and says what is wrong."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=words) as caught:
        find_inputs([source])
    assert "\n" not in str(caught.value)
    assert "canary-secret" not in str(caught.value)


def test_all_sources_that_name_nothing_are_told(tmp_path: Path) -> None:
    """One error with a line each, and a count where there are very many."""
    (tmp_path / "empty").mkdir()
    names = [str(tmp_path / name) for name in ("a.tif", "empty", "b*.tif", "c.tif")]
    with pytest.raises(InputError) as caught:
        find_inputs(names)
    lines = str(caught.value).splitlines()
    assert len(lines) == 4
    assert all(name in line for name, line in zip(names, lines, strict=True))
    with pytest.raises(InputError) as caught:
        find_inputs(names, may_be_empty=True)
    assert [line.split()[0] for line in str(caught.value).splitlines()] == [names[0], names[3]]
    with pytest.raises(InputError) as caught:
        find_inputs([str(tmp_path / f"{n}.tif") for n in range(25)])
    assert len(str(caught.value).splitlines()) == 21
    assert str(caught.value).endswith("… and 5 more")


def test_no_source_at_all_is_an_error() -> None:
    """An empty list does not succeed silently."""
    with pytest.raises(InputError, match="No input"):
        find_inputs([])


HOSTILE = [
    "../../etc/passwd", "/abs/../x.tif", "a\nb.tif", "\u202egnp.tif", "-rf.tif", ".hidden.tif", "x" * 300 + ".tif",
    "%2e%2e%2f.tif", "...", " ", "é€.tif", "a;rm -rf.tif", "<script>.tif", "=cmd|' /C calc'!A0.tif", "con.tif", "~",
]  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_name_gives_a_harmless_key(name: str) -> None:
    """Keys are short, ASCII, one path component, and never start with a dot or dash."""
    key, stem = output_key(name)
    assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}-[0-9a-f]{10}", key), key
    assert key.startswith(stem + "-")


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("a.tif", "a"),
        ("in/scene_12-b.v2.tif", "scene_12-b.v2"),
        ("in/Straße 5.tif", "Strae_5"),
        ("in/sp ace #1%41 ü.tif", "sp_ace_1_41_u"),
        ("in/what?.tif", "what_"),
    ],
)
def test_an_object_has_the_stem_of_the_file_of_its_name(tmp_path: Path, name: str, stem: str) -> None:
    """A key is no URL: nothing in it is cut off or decoded."""
    assert output_key(f"s3://bucket/{name}")[1] == stem
    assert output_key(str(tmp_path / name))[1] == stem


@given(st.lists(st.text(st.characters(blacklist_characters="\0"), min_size=1), unique=True, max_size=20))
def test_keys_of_different_files_differ(names: list[str]) -> None:
    """The hash tells apart what sanitising makes equal."""
    keys = {output_key(f"s3://bucket/{name}")[0] for name in names}
    assert len(keys) == len(names)


def test_the_key_does_not_depend_on_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A relative name and the absolute one are the same input."""
    monkeypatch.chdir(tmp_path)
    assert output_key("a.tif") == output_key(str(tmp_path / "a.tif"))
