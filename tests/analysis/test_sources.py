"""Folders that hold files of other programs, gzipped files and links: ours are read, the rest skipped and named."""

import gzip
import json

import pytest

from mlexp.analysis import files, sources
from mlexp.analysis.results import LoadError, load

FOREIGN = {
    "latin1/notes.json": b'{"n":"caf\xe9"}',
    "app/package.json": b'{"name":"x","benchmarks":{"dev":1}}',
    "logs/logger.jsonl": b'{"event": "click", "user": 3}\n' * 5,
    "logs/structlog.jsonl": b'{"event":"start","user":3}\n{"event":"cell","n":1}\n',
    "logs/rows.jsonl": b'{"loss": 1.5}\n[1]\n',
    "google.json": json.dumps(
        {"context": {"date": "x"}, "benchmarks": [{"name": "BM_a", "run_type": "iteration", "real_time": 3.0}]}
    ).encode(),
    "pyperf.json": json.dumps(
        {"benchmarks": [{"metadata": {"name": "a"}, "runs": [{"values": [0.1]}]}], "version": "1.0"}
    ).encode(),
    "list.json": b"[1]",
    "deep.json": b"[" * 100_000,
    "empty.json": b"",
    "utf16.json": '{"a": 1}'.encode("utf-16"),
    "text.json.gz": b"no gzip",
    "other.json.gz": gzip.compress(b'{"a": 1}'),
}


def write(folder, contents):
    for name, content in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def test_files_of_other_programs_are_skipped_named_and_counted(make, tmp_path):
    write(tmp_path, FOREIGN)
    make.write_json(tmp_path / "a.json", make.grid())
    df = load(tmp_path)
    assert len(df) == 24
    (note,) = df.attrs["notes"]
    assert note.startswith(f"skipped {len(FOREIGN)} files that hold no results: ")
    assert note.count("; ") == files.SHOWN and note.endswith("; ...")


@pytest.mark.parametrize("name", FOREIGN)
def test_each_of_them_is_skipped_alone_and_an_error_by_name(tmp_path, name):
    write(tmp_path, {name: FOREIGN[name]})
    (note,) = files.read(tmp_path).notes
    assert note.startswith("skipped 1 file that hold") and name in note
    with pytest.raises(LoadError) as caught:
        load(tmp_path / name)
    assert name in str(caught.value) and "\n" not in str(caught.value)


def test_a_damaged_file_of_ours_is_an_error_in_a_folder_too(make, tmp_path):
    whole = make.write_json(tmp_path / "whole" / "a.json", make.grid()).read_bytes()
    journal = make.write_journal(tmp_path / "whole" / "j.jsonl", make.grid()).read_bytes()
    damaged = {
        "cut.json": whole[:3000],
        "latin1.json": whole.replace(b"EPYC", b"EP\xe9C"),
        "rows.json": whole.replace(b'"benchmarks": [', b'"benchmarks": [3, '),
        "cut.json.gz": gzip.compress(whole)[:-20],
        "altered.jsonl": journal.replace(b"124", b"125", 1),
    }
    for name, content in damaged.items():
        folder = tmp_path / name.replace(".", "_")
        write(folder, {name: content})
        with pytest.raises(LoadError, match=name.replace(".", r"\.")) as caught:
            load(folder)
        assert not isinstance(caught.value, sources.NotResults)


@pytest.mark.parametrize("name", ["a.json.gz", "a.jsonl.gz"])
def test_gzipped_files_are_read_by_name_and_in_folders(make, tmp_path, name):
    plain = make.write_json if ".json." in name else make.write_journal
    content = plain(tmp_path / "plain" / name.removesuffix(".gz"), make.grid()).read_bytes()
    parts = gzip.compress(content[:1000]) + gzip.compress(content[1000:])  # as `cat one.gz two.gz`
    write(tmp_path / "zipped", {name: parts})
    assert len(load(tmp_path / "zipped")) == len(load(tmp_path / "zipped" / name)) == 24


def test_links_to_folders_are_followed_once(make, tmp_path):
    make.write_json(tmp_path / "elsewhere" / "a.json", make.grid())
    runs = tmp_path / "runs"
    (runs / "deep").mkdir(parents=True)
    for name in ("one", "two"):
        (runs / name).symlink_to(tmp_path / "elsewhere")
    (runs / "deep" / "cycle").symlink_to(runs)
    (runs / "broken.json").symlink_to(tmp_path / "nothing")
    (runs / "again.json").symlink_to(tmp_path / "elsewhere" / "a.json")
    assert len(list(sources.find(runs))) == 2  # the folder once, and the link to its file
    assert len(files.read(runs).rows) == 24


def test_a_byte_order_mark_is_not_text(make, tmp_path):
    for path in (
        make.write_json(tmp_path / "a.json", make.grid()),
        make.write_journal(tmp_path / "b.jsonl", make.grid()),
    ):
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
        assert len(load(path)) == 24
