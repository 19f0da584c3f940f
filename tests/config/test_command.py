from functools import partial

import hydra
import pytest

from lighttoken.config.command import run_command


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
