import contextlib
import importlib
import json
import os
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import hydra
import pytest

from lighttoken.config.command import run_command, sweep_first, with_replay
from lighttoken.errors import LighttokenError
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


@pytest.mark.parametrize("name", ["train", "compress", "show", "report"])
def test_every_command_knows_its_version(name, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", [name, "--version"])
    main = importlib.import_module(f"lighttoken.{name}").main
    with contextlib.suppress(SystemExit):
        main()
    assert capsys.readouterr().out == f"lighttoken {__version__}\n"


@pytest.mark.parametrize(
    "words", [["--help"], ["raito=3"], ["finetune.learning_rat=3"], ["codec.teirs=3"], ["codec.tier=3"], ["task=sst"]]
)
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


@pytest.mark.parametrize(
    ("line", "choices"),
    [
        ("lighttoken-train +experiment=glue_m", {"+experiment=glue_mnli", "+experiment=glue_mrpc"}),
        ("lighttoken-compress codec=opq codec.b", {"codec.bits="}),
    ],
)
def test_the_shell_completes_a_command(line, choices):
    main = f"import sys; sys.argv[0] = {line.split()[0]!r}; from lighttoken.{line[11:].split()[0]} import main; main()"
    query = [sys.executable, "-c", main, "--shell-completion", "query=bash"]
    place = os.environ | {"COMP_LINE": line, "COMP_POINT": str(len(line))}
    done = subprocess.run(query, capture_output=True, text=True, timeout=120, env=place)
    assert set(done.stdout.split()) == choices, done.stderr


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--ratio", "50"], "--ratio has dashes; write ratio=50"),
        (["seed=1", "--model=bert_base"], "--model=bert_base has dashes; write model=bert_base"),
    ],
)
def test_a_key_that_is_written_as_an_option_is_named(command, words, line):
    for name in ("train", "compress"):
        code, _, err = command(name, *words)
        assert (code, err.splitlines()[-1]) == (2, f"error: {line}")


def test_a_command_that_is_written_as_an_argument_is_named():
    done = subprocess.run([sys.executable, "-m", "lighttoken", "compress"], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: lighttoken has no argument compress; write python -m lighttoken.compress\n"


def test_the_flag_of_a_sweep_stands_anywhere():
    assert sweep_first(["seed=0,1", "-m", "ratio=5,25"]) == ["-m", "seed=0,1", "ratio=5,25"]
    assert sweep_first(["seed=0", "--cfg", "job"]) == ["seed=0", "--cfg", "job"]


def test_replay_stands_for_the_arguments_of_a_run(tmp_path):
    (tmp_path / ".hydra").mkdir()
    (tmp_path / ".hydra/overrides.yaml").write_text("- +experiment=glue_cola\n- ratio=103\n")
    words = with_replay(["seed=3", f"replay={tmp_path}", "ratio=25"])
    assert words == ["seed=3", "+experiment=glue_cola", "ratio=103", "hydra.mode=RUN", "ratio=25"]
    assert with_replay(["-m", f"replay={tmp_path}"]) == ["-m", "+experiment=glue_cola", "ratio=103"]
    with pytest.raises(LighttokenError, match="replay=nowhere is not the folder of a run: it has no"):
        with_replay(["replay=nowhere"])


def test_a_run_is_replayed_with_another_seed(command, checkpoint, sst2):
    data = ["task=sst2", f"task.data_dir={sst2}", f"model.path={checkpoint()}", "trainer.accelerator=cpu"]
    settings = ["codec=svd", "ratio=3", "trainer.max_epochs=1", "progress=false", "logger=none"]
    assert command("train", *data, *settings)[0] == 0
    (run,) = Path("outputs/runs").iterdir()
    code, _, err = command("train", f"replay={run}", "seed=5", "ratio=4")
    assert code == 0, err
    first, second = (json.loads(path.read_text()) for path in sorted(Path("outputs/runs").glob("*/record.json")))
    assert (second["seed"], second["ratio_asked"], second["task"]) == (5, 4.0, "sst2")
    assert first["config"]["task"] == second["config"]["task"]
