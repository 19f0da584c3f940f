import subprocess
import sys
from functools import partial
from pathlib import Path

import hydra
import pytest

from lighttoken.config.command import run_command
from lighttoken.config.schema import config_dir


def test_a_defect_keeps_its_traceback(command, monkeypatch):
    def broken(config):
        raise ZeroDivisionError

    monkeypatch.setattr("lighttoken.run.pipeline.train", broken)
    with pytest.raises(ZeroDivisionError):
        command("train")


def test_full_errors_on_demand(command, monkeypatch):
    monkeypatch.setattr("sys.argv", ["train", "rato=3"])
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(hydra.errors.HydraException):
        run_command("train", partial(print))


def test_a_command_runs_as_a_script_of_the_checkout():
    """As an IDE runs it: the folder of the script comes first among the folders that Python imports from."""
    script = Path(config_dir()).parent / "lighttoken/train.py"
    finished = subprocess.run([sys.executable, script, "--help"], capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    assert "ratio: 25" in finished.stdout
