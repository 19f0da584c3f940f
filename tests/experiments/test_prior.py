import csv
import sys
from pathlib import Path

import pytest

from experiments.prior import main


def test_settings_are_compared_on_the_same_texts_and_computed_once(checkpoint, sst2, monkeypatch):
    def run(*settings: str) -> list[dict[str, str]]:
        told = ["prior", "found", "--data", str(sst2.parent), "--model", str(checkpoint()), "--tasks", "sst2"]
        monkeypatch.setattr(sys, "argv", [*told, "--ratios", "2.5", "--settings", *settings])
        main()
        with Path("found/prior.csv").open(newline="") as file:
            return list(csv.DictReader(file))

    (first,) = run("0.4,1e-7")
    assert float(first["ratio"]) >= 2.5
    assert 0.5 < float(first["sst2"]) == float(first["mean"]) < 1
    again, second = run("0.4,1e-7", "1,1e-7")
    assert again == first
    assert (second["exponent"], second["floor"]) == ("1", "1e-07")
    assert second["sst2"] != first["sst2"]
    with pytest.raises(SystemExit):
        run("0.4,1e-7", "--tasks", "nothing")
