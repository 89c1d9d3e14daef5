"""What was read from upstream's sources is kept on disk, and never outlives what it was read from."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from hf_recipes.recipe.schema import disk_cache, installed, packages
from hf_recipes.recipe.schema.fields import Field, Limits


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's cache folder, empty."""
    monkeypatch.setattr(disk_cache, "cache_folder", lambda: str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package `upstream_double` with one module, which `read` below reads."""
    path = tmp_path / "site" / "upstream_double"
    path.mkdir(parents=True)
    (path / "__init__.py").write_text("raise SystemExit('imported')")
    (path / "m.py").write_text("first")
    monkeypatch.syspath_prepend(str(path.parent))
    yield path
    packages.package_folder.cache_clear()
    packages.version.cache_clear()


def read() -> str:
    packages._text.cache_clear()
    return packages.text("upstream_double", "m.py")


def fails() -> str:
    raise AssertionError("it is read again")


def entry_of(folder: Path) -> Path:
    (found,) = folder.rglob("entry.json")
    return found


def test_what_was_read_once_is_not_read_again(folder: Path, package: Path) -> None:
    assert disk_cache.cached("entry", read) == "first"
    assert disk_cache.cached("entry", fails) == "first"
    assert [path.name for path in entry_of(folder).parent.iterdir()] == ["entry.json"], "no draft is left"


def test_a_source_that_changed_is_read_again(folder: Path, package: Path) -> None:
    disk_cache.cached("entry", read)
    (package / "m.py").write_text("other")  # the same size, another time
    os.utime(package / "m.py", ns=(1, 1))
    assert disk_cache.cached("entry", read) == "other"
    (package / "m.py").write_text("longer text")
    os.utime(package / "m.py", ns=(1, 1))
    assert disk_cache.cached("entry", read) == "longer text"


def test_another_version_of_the_package_is_read_again(folder: Path, package: Path) -> None:
    disk_cache.cached("entry", read)
    (package.parent / "upstream_double-2.0.dist-info").mkdir()
    packages.version.cache_clear()
    with pytest.raises(AssertionError, match="it is read again"):
        disk_cache.cached("entry", fails)


def test_a_package_that_has_gone_is_asked_for_again(folder: Path, package: Path) -> None:
    disk_cache.cached("entry", read)
    package.parent.rename(package.parent.with_name("moved"))
    packages.package_folder.cache_clear()
    with pytest.raises(AssertionError, match="it is read again"):
        disk_cache.cached("entry", fails)


def test_a_change_of_our_own_readers_is_read_again(
    folder: Path, package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk_cache.cached("entry", read)
    monkeypatch.setattr(disk_cache, "_READERS", ("fields.py",))
    with pytest.raises(AssertionError, match="it is read again"):
        disk_cache.cached("entry", fails)


DAMAGED = (
    *("", "{", "[]", "{}", "\x00", "[" * 100_000, '{"key": {"files": [[1, 2, 3, 4]]}, "crc32": 0}\n'),
    '{"key": {"files": [["../../x", "passwd", 0, 0]]}, "crc32": 0}\n',
)


@pytest.mark.parametrize("text", DAMAGED)
def test_a_damaged_entry_is_read_again_and_replaced(folder: Path, package: Path, text: str) -> None:
    disk_cache.cached("entry", read)
    entry_of(folder).write_text(text)
    assert disk_cache.cached("entry", read) == "first"
    assert json.loads(entry_of(folder).read_text().splitlines()[1]) == "first"


def test_a_value_that_was_changed_by_hand_is_read_again(folder: Path, package: Path) -> None:
    disk_cache.cached("entry", read)
    entry_of(folder).write_text(entry_of(folder).read_text().replace('"first"', "17"))
    assert disk_cache.cached("entry", read) == "first"


def test_a_pipe_in_the_place_of_an_entry_is_not_waited_for(folder: Path, package: Path) -> None:
    disk_cache.cached("entry", read)
    entry = entry_of(folder)
    entry.unlink()
    os.mkfifo(entry)
    assert disk_cache.cached("entry", read) == "first"


def test_a_folder_that_cannot_be_written_costs_the_reading_and_nothing_else(
    tmp_path: Path, package: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    for folder in (str(tmp_path / "file"), ""):  # a file stands in its place; the user has no home
        monkeypatch.setattr(disk_cache, "cache_folder", lambda folder=folder: folder)
        assert disk_cache.cached("entry", read) == disk_cache.cached("entry", read) == "first"
    assert (tmp_path / "file").read_text() == "" and capsys.readouterr() == ("", "")


def test_a_disk_that_is_full_leaves_no_draft(folder: Path, package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(disk_cache.os, "replace", full)
    assert disk_cache.cached("entry", read) == "first"
    assert not [path for path in folder.rglob("*") if path.is_file()]


def test_the_folder_is_where_the_platform_keeps_caches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("XDG_CACHE_HOME", "/tmp/cache")
    monkeypatch.setenv("LOCALAPPDATA", "/local")
    for platform, folder in {
        "linux": "/tmp/cache/hf_recipes",
        "darwin": "/home/me/Library/Caches/hf_recipes",
        "win32": "/local/hf_recipes",
    }.items():
        monkeypatch.setattr(disk_cache.sys, "platform", platform)
        assert disk_cache.cache_folder() == folder
    monkeypatch.setattr(disk_cache.sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", "not/absolute")
    assert disk_cache.cache_folder() == "/home/me/.cache/hf_recipes"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(disk_cache.os.path, "expanduser", lambda path: path)  # no home
    assert disk_cache.cache_folder() == ""


def test_a_field_is_the_same_after_it_was_kept_as_json() -> None:
    fields = [
        Field(name="a"),
        Field(name="b", kinds=("int", "list"), items=("str",), choices=("x",), open_choices="y", default=None),
        Field(name="c", has_default=True, default=[1, "x"], help="h", optional=True, deprecated=True, ours=True),
        Field(name="d", limits=Limits(least=1, also=(-1.0,))),
        Field(name="e", limits=Limits(above=0, below=1, most=2, whole_above_one=True), default=1e-300),
    ]
    assert [Field.from_json(json.loads(json.dumps(field.to_json()))) for field in fields] == fields
    assert fields[0].to_json() == {"name": "a"}


@pytest.mark.parametrize("section", ["TrainingArguments", "model", "dataset", "LoraConfig", "BpeTrainer"])
def test_a_section_from_the_cache_is_the_section_from_the_sources(section: str, folder: Path) -> None:
    fresh = installed.fields.__wrapped__(section)
    again = installed.fields.__wrapped__(section)
    assert list(folder.rglob(f"section-{section}.json")) and fresh == again == installed.fields(section)
