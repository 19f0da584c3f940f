"""Records that are odd, and what readers make of them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lighttoken.errors import LighttokenError
from lighttoken.run.reading import MAX_TEXT, plain_text, read_record, read_records

SAMPLE = Path(__file__).parents[1] / "samples/records/none/record.json"


def write(folder: Path, **other: object) -> Path:
    """A record of an earlier version, with other values."""
    folder.mkdir(parents=True)
    path = folder / "record.json"
    path.write_text(json.dumps(json.loads(SAMPLE.read_text()) | other))
    return path


def test_a_record_whose_process_was_killed_is_lost(tmp_path):
    code = f"""
import os, signal
from pathlib import Path
from lighttoken.run.records import Record
config = {{"codec": {{"name": "svd"}}}}
with Record(Path({str(tmp_path)!r}), config, "m", "t", "svd", 0, 2.0).running():
    print("started", flush=True)
    input()
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    assert process.stdout.readline() == "started\n"
    assert read_record(tmp_path / "record.json")["status"] == "running"
    process.kill()
    process.wait()
    record = read_record(tmp_path / "record.json")
    assert (record["status"], str(process.pid) in record["error"]) == ("lost", True)
    assert json.loads((tmp_path / "record.json").read_text())["status"] == "running"  # nobody writes into it


def test_a_record_without_a_process_stays_running(tmp_path):
    assert read_record(write(tmp_path / "old", status="running"))["status"] == "running"


def test_a_run_that_ends_while_it_is_looked_at_is_not_lost(tmp_path, monkeypatch):
    path = write(tmp_path / "run", status="running", process={"pid": 1})

    def ends_now(process: dict) -> bool:
        path.write_text(path.read_text().replace('"running"', '"done"'))
        return True

    monkeypatch.setattr("lighttoken.run.reading.is_gone", ends_now)
    assert read_record(path)["status"] == "done"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("[" * 100_000, "it is nested more than 30 deep"),
        ('{"a": ' * 100 + "1" + "}" * 100, "it lacks codec, config, metrics, started, status"),
        ("1" * 10_000, "it is no JSON: Exceeds the limit"),
        ("\xff", "it is no JSON"),
        ("", "it is no JSON"),
        ("[1]", "it is a list, not the record of a run"),
    ],
)
def test_a_file_that_is_no_record(tmp_path, content, reason):
    path = tmp_path / "record.json"
    path.write_text(content, encoding="latin-1")
    with pytest.raises(LighttokenError, match=reason):
        read_record(path)


def test_odd_files_are_left_out_and_named_and_keep_nobody_waiting(tmp_path, caplog):
    write(tmp_path / "good")
    write(tmp_path / "ratio", ratio=10**30)
    write(tmp_path / "deep", config={"codec": {"a": json.loads("[" * 40 + "]" * 40)}})
    write(tmp_path / "many", config={"codec": {"a": [0] * 30_000}})
    os.mkfifo(write(tmp_path / "pipe").with_name("record2.json"))
    (tmp_path / "pipe/record2.json").rename(tmp_path / "pipe/record.json")
    with write(tmp_path / "large").open("r+b") as file:
        file.truncate(60_000_000)  # a sparse file
    left_out: dict[Path, str] = {}
    for _ in range(2):
        (record,) = read_records(tmp_path, left_out)
    assert record["directory"] == str(tmp_path / "good")
    assert {path.parent.name: reason for path, reason in left_out.items()} == {
        "ratio": f"ratio is {10**30}; expected a number from 1e-06 to 1e+09",
        "deep": "it is nested more than 30 deep",
        "many": "it is of more than 20,000 values",
        "pipe": "it is no regular file",
        "large": "it has 60,000,000 bytes; expected 50,000,000 at most",
    }
    assert len(caplog.records) == 5  # not a second time
    assert f"left out {tmp_path / 'ratio/record.json'}: ratio is" in caplog.text


def test_text_is_cut_and_has_no_commands(tmp_path):
    hostile = "\x1b[2J\udcff\u202e\n\ttail"
    record = read_record(write(tmp_path / "run", error=hostile, artifact="a" * 10**7, directory="/etc", task=" a\n b "))
    assert record["error"] == "\ufffd[2J\ufffd\ufffd\n\ttail"
    assert len(record["artifact"]) == MAX_TEXT
    assert record["directory"] == str(tmp_path / "run")
    assert record["task"] == "a b"
    assert plain_text("Größe 中文 🙂") == "Größe 中文 🙂"
