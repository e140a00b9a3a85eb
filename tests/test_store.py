"""Files that are made once and kept: where they lie, that they are whole or absent, and are made again when damaged."""

import os
from pathlib import Path

import pytest

from mlexp import store
from mlexp.store import announce, cache_dir, cached, write


def test_the_cache_lies_where_xdg_says(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_dir() == tmp_path / "mlexp"
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for unset in (lambda: monkeypatch.setenv("XDG_CACHE_HOME", ""), lambda: monkeypatch.delenv("XDG_CACHE_HOME")):
        unset()
        assert cache_dir() == tmp_path / "home" / ".cache" / "mlexp"


def test_a_line_reaches_whoever_shows_progress_else_it_is_printed(capsys):
    lines = []
    announce(lambda *line: lines.append(line), "mind this")
    assert lines == [(0, 0, "mind this")] and not capsys.readouterr().out
    announce(None, "mind this")
    assert capsys.readouterr().out == "mlexp: mind this\n"


def test_a_file_is_made_once_stored_and_read_back(tmp_path):
    path, made = tmp_path / "deep" / "a.bin", []

    def make():
        made.append(1)
        return b"content"

    for times in (1, 1):
        assert cached(path, make, bytes.decode) == "content"
        assert len(made) == times and path.read_bytes() == b"content"
    path.write_bytes(b"another")
    assert cached(path, make, bytes.decode) == "another"


@pytest.mark.parametrize("error", [ValueError, KeyError, TypeError])
def test_what_cannot_be_read_is_made_again_and_said(tmp_path, error):
    path, lines = tmp_path / "a.bin", []
    path.write_bytes(b"torn")

    def read(content):
        if content == b"torn":
            raise error("too short")
        return content

    assert cached(path, lambda: b"whole", read, lambda *line: lines.append(line)) == b"whole" == path.read_bytes()
    ((_, _, said),) = lines
    assert "a.bin is damaged" in said and error.__name__ in said and "too short" in said
    with pytest.raises(ZeroDivisionError):  # what reading should never raise is no damage
        cached(path, lambda: b"whole", lambda content: 1 / 0)


def test_a_reader_sees_all_of_a_file_or_none(tmp_path, monkeypatch):
    path, replace, seen = tmp_path / "a.bin", os.replace, []
    path.write_bytes(b"old")

    def watched(source, target):
        seen.append((path.read_bytes(), Path(source).read_bytes(), Path(source).parent, Path(target)))
        replace(source, target)

    monkeypatch.setattr(os, "replace", watched)
    write(path, b"new content")
    assert seen == [(b"old", b"new content", tmp_path, path)]  # one file system: the change of name is atomic
    assert path.read_bytes() == b"new content" and list(tmp_path.iterdir()) == [path]


def test_a_write_that_fails_leaves_nothing_behind(tmp_path, monkeypatch):
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")

    def refuse(source, target):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(KeyboardInterrupt):
        write(path, b"new")
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    store.write(path, b"old")

    def refuse(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store.os, "replace", refuse)
    with pytest.raises(OSError, match="No space"):
        store.write(path, b"new")
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("a.txt", b"old")]


def test_a_folder_is_made_once_and_is_whole_or_absent(tmp_path):
    path, made = tmp_path / "deep" / "folder", []

    def fill(folder):
        made.append(folder)
        (folder / "a").write_bytes(b"half")
        if len(made) == 1:
            raise KeyboardInterrupt
        assert not path.exists()
        (folder / "b").write_bytes(b"whole")

    with pytest.raises(KeyboardInterrupt):
        store.cached_folder(path, fill)
    assert not list(path.parent.iterdir())
    for _ in range(2):
        assert store.cached_folder(path, fill) == path
    assert len(made) == 2 and sorted(file.name for file in path.iterdir()) == ["a", "b"]
    assert list(path.parent.iterdir()) == [path]


def test_the_folder_of_another_process_that_was_first_stays(tmp_path):
    path = tmp_path / "folder"

    def fill(folder):
        path.mkdir()
        (path / "theirs").touch()
        (folder / "ours").touch()

    store.cached_folder(path, fill)
    assert [file.name for file in path.iterdir()] == ["theirs"] and list(tmp_path.iterdir()) == [path]

    def disappear(folder):
        folder.rmdir()

    with pytest.raises(OSError):
        store.cached_folder(tmp_path / "other", disappear)
