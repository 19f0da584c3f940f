"""Hostile records, all in one folder, and the report of them."""

import json
import re
import sys
from itertools import islice
from pathlib import Path

import pytest

from experiments import hostile_records
from lighttoken.dashboard.gather import gather
from lighttoken.dashboard.report import write_report
from tests.dashboard.conftest import read_data


def test_no_record_takes_the_report_down(tmp_path, monkeypatch):
    monkeypatch.setattr("lighttoken.dashboard.figures.MAX_PANELS", 6)  # the layout of more takes long
    folder = tmp_path / "outputs"
    sample = hostile_records.SAMPLES / "lighttoken/record.json"
    # Each value meets some of the replacements, each replacement some of the values: 11 and the number of replacements
    # share no factor.
    written = 0
    for number, (_, name, text) in enumerate(islice(hostile_records.hostile_records(sample), 0, None, 11)):
        if name != "megabyte" or number % 5 == 0:
            (folder / f"{number:04d}").mkdir(parents=True)
            (folder / f"{number:04d}/record.json").write_text(text)
            written += 1
    (folder / "sample").mkdir()
    (folder / "sample/record.json").write_bytes(sample.read_bytes())
    left_out: dict[Path, str] = {}
    runs = gather([folder], left_out)
    assert len(runs) + len(left_out) == written + 1
    assert min(len(runs), len(left_out)) > 50
    page, *others = write_report(runs, tmp_path / "report", None, None, left_out)
    assert len(others) == 12
    assert len(read_data(page)["runs"]) == len(runs)
    assert f"{len(left_out)} odd records are left out" in page.read_text()
    texts = [path.read_text() for path in [page, *others] if path.suffix in (".html", ".md", ".svg")]
    assert not any(re.search(r"(?<!\\)<script>alert", text) for text in texts)
    assert all(not run["link"].startswith("../../") for run in read_data(page)["runs"])


def test_outcomes_are_counted(monkeypatch, tmp_path, capsys):
    arguments = ["hostile_records", str(tmp_path / "results"), "--every", "450"]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit, match="0"):
        hostile_records.main()
    assert capsys.readouterr().out.startswith("12 hostile records: ")
    assert len((tmp_path / "results/hostile_records.csv").read_text().splitlines()) == 13

    def broken(runs: list, *arguments: object, **settings: object) -> None:
        if any(run.record["task"] == "?" for run in runs):
            raise TypeError("no such task")

    monkeypatch.setattr(hostile_records, "write_report", broken)
    sample = json.loads((hostile_records.SAMPLES / "none/record.json").read_text())
    for name in ("a", "b", "hostile"):
        (tmp_path / "outputs" / name).mkdir(parents=True)
        (tmp_path / "outputs" / name / "record.json").write_text(json.dumps(sample))
    outcome = hostile_records.outcome(tmp_path / "outputs", tmp_path, False)
    assert outcome == ("shown", "")
    (tmp_path / "outputs/hostile/record.json").write_text(json.dumps(sample | {"task": "?"}))
    outcome = hostile_records.outcome(tmp_path / "outputs", tmp_path, False)
    assert outcome == ("failed", "TypeError: no such task")
