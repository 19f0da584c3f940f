import contextlib
import importlib
import subprocess
import sys
from importlib.metadata import entry_points

import hydra
import pytest

from lighttoken.config.command import run_command
from lighttoken.version import __version__


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
        run_command("train", "builtins.print")


@pytest.mark.parametrize("door", ["train", "compress", "show", "report"])
def test_every_command_knows_its_version(door, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", [door, "--version"])
    main = importlib.import_module(f"lighttoken.{door}").main
    with contextlib.suppress(SystemExit):
        main()
    assert capsys.readouterr().out == f"lighttoken {__version__}\n"


@pytest.mark.parametrize("words", [["--help"], ["raito=3"], ["finetune.learning_rat=3"], ["task=sst"]])
def test_help_and_a_typo_import_no_slow_library(words, monkeypatch):
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    code = "import sys; from lighttoken.train import main\ntry: main()\nexcept SystemExit: pass\n"
    code += "print(*({'torch', 'lightning', 'transformers', 'datasets', 'wandb'} & set(sys.modules)), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, timeout=120)
    assert done.stderr.splitlines()[-1] == "", done.stderr
    assert "did you mean" in done.stderr or "choose one of" in done.stderr or "== Values" in done.stdout


def test_the_package_lists_its_commands():
    done = subprocess.run([sys.executable, "-m", "lighttoken"], capture_output=True, text=True, timeout=120)
    for command in entry_points(group="console_scripts"):
        if command.value.startswith("lighttoken."):
            assert command.name in done.stdout
