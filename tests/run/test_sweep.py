import csv
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import hydra
import pytest
from filelock import FileLock
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from lighttoken.config.schema import config_dir
from lighttoken.run.records import asked_for
from lighttoken.run.sweep import Job, finish_job, run_process, sweep_records

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def settings(checkpoint, sst2) -> list[str]:
    """The overrides of a small run of the train command."""
    data = ["task=sst2", f"task.data_dir={sst2}", f"model.path={checkpoint()}", "trainer.accelerator=cpu"]
    return [*data, "logger=csv", "trainer.max_epochs=1", "progress=false"]


def sweeps() -> list[list[dict]]:
    """The jobs of every sweep so far, the first sweep first."""
    return [json.loads(path.read_text()) for path in sorted(Path("outputs/sweeps").glob("*/sweep.json"))]


def records() -> list[dict]:
    return [json.loads(path.read_text()) for path in sorted(Path("outputs/sweeps").glob("*/*/record.json"))]


@pytest.mark.slow
def test_a_failed_job_ends_no_sweep_and_the_same_command_runs_no_other(command, settings):
    arguments = ["-m", *settings, "codec=svd", "ratio=2,5000,2.5"]
    code, out, _ = command("train", *arguments)
    (jobs,) = sweeps()
    assert code == 1
    assert [job["status"] for job in jobs] == ["done", "failed", "done"]
    assert [record["status"] for record in records()] == ["done", "failed", "done"]
    assert "sweep of 3 jobs: 2 done, 0 skipped, 1 failed" in out
    (line,) = [line for line in out.splitlines() if line.startswith("failed #1 ratio=5000: ratio 5000 cannot be met")]
    assert line.endswith(f"see {jobs[1]['folder']}")
    code, out, _ = command("train", *arguments)
    again = sweeps()[1]
    assert code == 1
    assert [job["status"] for job in again] == ["skipped", "failed", "skipped"]
    assert [again[0]["folder"], again[2]["folder"]] == [jobs[0]["folder"], jobs[2]["folder"]]
    assert len(records()) == 4  # the failed one a second time
    assert command("train", *arguments[:-1], "ratio=2", "skip_done=false")[0] == 0
    assert sweeps()[2][0]["status"] == "done"


def test_a_mistake_in_one_job_is_named_and_the_rest_is_run(command, settings):
    code, out, _ = command("train", "-m", *settings, "codec=none", "task.batch_size=0,8")
    assert code == 1
    assert [job["status"] for job in sweeps()[0]] == ["failed", "done"]
    assert "failed #0 task.batch_size=0: task.batch_size is 0; it must be 1 or above" in out


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["tie=compressed,loose"], "unknown tie='loose'; choose one of compressed, untie"),
        (["trainer.max_epochs=1,-1"], "trainer.max_epochs=-1 has no end"),
        (["+experiment=ratio_sweep", "hydra.sweeper.params.ratio='2,0.5'"], "ratio is 0.5; it must be above 1"),
        (
            ["+experiment=ratio_sweep", "hydra.sweeper.params.ratio='2,0.5'", "ratio=2,3", "seed=0,-1"],
            "seed is -1; it must be 0 or above",
        ),
        (["codec=glob(sv*)", "ratio=2,0.5"], "ratio is 0.5; it must be above 1"),
        (["distill=null,nowhere"], "distill="),
        (["init_from=null,nowhere"], "init_from="),
    ],
)
def test_a_value_of_any_job_is_checked_before_the_first(command, settings, arguments, line):
    code, _, err = command("train", "-m", *settings, "codec=svd", *arguments)
    assert code == 2
    assert err.splitlines()[-1].startswith(f"error: {line}")
    assert not sweeps()


def test_an_uncompressed_run_is_made_once_whatever_the_ratio(command, settings):
    assert command("train", "-m", *settings, "codec=none", "ratio=2,5000")[0] == 0
    assert [job["status"] for job in sweeps()[0]] == ["done", "skipped"]
    assert len(records()) == 1


def test_a_run_alone_is_never_skipped(command, settings):
    for _ in range(2):
        assert command("train", *settings, "codec=none")[0] == 0
    assert len(list(Path("outputs/runs").iterdir())) == 2


def test_the_settings_that_make_another_run():
    config = {"codec": {"name": "svd"}, "ratio": 5.0, "schedule": {}, "seed": 0, "logger": {}, "output_dir": "a"}
    assert asked_for(config) == asked_for(config | {"logger": {"csv": {}}, "output_dir": "b", "progress": True})
    assert asked_for(config) != asked_for(config | {"ratio": 25.0})
    assert asked_for(config) != asked_for(config | {"seed": 1})
    none = config | {"codec": {"name": "none"}}
    assert asked_for(none) == asked_for(none | {"ratio": 25.0})
    assert asked_for(none) != asked_for(none | {"seed": 1})


def test_the_record_of_a_killed_job_says_so(tmp_path):
    begun = f'open({str(tmp_path / "record.json")!r}, \'w\').write(\'{{"status": "running", "error": null}}\')'
    job = Job(0, [], str(tmp_path), "done")
    finish_job(job, run_process([sys.executable, "-c", f"{begun}; import os; os.kill(os.getpid(), 9)"], job.folder))
    assert (job.status, job.error) == ("failed", "killed by SIGKILL")
    assert json.loads((tmp_path / "record.json").read_text()) == {"status": "failed", "error": "killed by SIGKILL"}


@pytest.mark.parametrize(
    ("record", "error"),
    [
        ({"status": "failed", "error": "SIGTERMException"}, "SIGTERMException"),
        ({"status": "running", "error": None}, "ended with exit code 0"),
    ],
)
def test_an_exit_code_of_0_does_not_hide_a_record_that_is_not_done(tmp_path, record, error):
    (tmp_path / "record.json").write_text(json.dumps(record))
    job = Job(0, [], str(tmp_path), "done")
    finish_job(job, 0)
    assert (job.status, job.error) == ("failed", error)


def test_a_job_without_a_record_fails_with_its_last_line(tmp_path):
    job = Job(0, [], str(tmp_path / "new"), "done")
    finish_job(
        job, run_process([sys.executable, "-c", "print('hello'); raise SystemExit('error: no such thing')"], job.folder)
    )
    assert (job.status, job.error) == ("failed", "no such thing")
    job = Job(0, [], str(tmp_path / "silent"), "done")
    finish_job(job, run_process([sys.executable, "-c", "raise SystemExit(3)"], job.folder))
    assert (job.status, job.error) == ("failed", "exit code 3")


def test_a_job_does_not_take_the_error_of_an_earlier_try_in_its_folder(tmp_path):
    (tmp_path / "record.json").write_text(json.dumps({"status": "failed", "error": "the disk was full"}))
    job = Job(0, [], str(tmp_path), "done")
    finish_job(job, run_process([sys.executable, "-c", "raise SystemExit('error: no such thing')"], job.folder))
    assert (job.status, job.error) == ("failed", "no such thing")


@pytest.mark.slow
def test_killing_one_worker_loses_its_job_alone_and_the_same_command_completes_the_rest(command, settings, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    arguments = ["-m", *settings, "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "codec=svd", "ratio=2"]
    arguments += ["trainer.max_epochs=40", "finetune.learning_rate=1e-4,2e-4,3e-4"]
    killed: list[str] = []

    def kill_the_first_that_runs() -> None:
        limit = time.monotonic() + 120
        while not (running := [path.parent for path in Path("outputs/sweeps").glob("*/*/record.json")]):
            assert time.monotonic() < limit
            time.sleep(0.1)
        killed.append(str(running[0].absolute()))
        (worker,) = [pid for pid in children(os.getpid()) if f"hydra.run.dir='{killed[0]}'" in command_line(pid)]
        os.kill(worker, signal.SIGKILL)

    killer = threading.Thread(target=kill_the_first_that_runs)
    killer.start()
    code, out, err = command("train", *arguments)
    killer.join()
    assert code == 1, err
    assert "sweep of 3 jobs: 2 done, 0 skipped, 1 failed" in out
    assert f"killed by SIGKILL; see {killed[0]}" in out
    assert sorted(record["status"] for record in records()) == ["done", "done", "failed"]
    code, out, err = command("train", *arguments)
    assert code == 0, err
    assert "sweep of 3 jobs: 1 done, 2 skipped, 0 failed" in out
    done = [record for record in records() if record["status"] == "done"]
    assert len(done) == 3
    assert len({record["artifact"] for record in done}) == 1
    assert sum(not record["artifact_reused"] for record in done) <= 1  # 0 if the killed job came to make it


def test_the_end_of_a_sweep_ends_its_jobs(tmp_path):
    """Else they run on, and the same command starts them a second time."""
    code = """
import sys
from joblib import Parallel, delayed
from lighttoken.run.sweep import ending_processes, run_process
job = [sys.executable, "-c", "import time; time.sleep(600)"]
with ending_processes():
    Parallel(n_jobs=2, backend="threading")(delayed(run_process)(job, folder) for folder in "abc")
"""
    sweep = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)})
    limit = time.monotonic() + 120
    while len(jobs := children(sweep.pid)) < 2:
        assert sweep.poll() is None
        assert time.monotonic() < limit
        time.sleep(0.1)
    sweep.terminate()
    assert sweep.wait(60) == 128 + signal.SIGTERM
    assert not [pid for pid in jobs if Path(f"/proc/{pid}").exists()]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]  # the third was not started


def children(pid: int) -> list[int]:
    files = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for path in files for child in path.read_text().split()]


def command_line(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/cmdline").read_text().split("\0")


def test_an_artifact_whose_maker_was_killed_is_made_by_the_next(command, settings):
    assert command("train", *settings, "codec=svd", "ratio=2")[0] == 0
    (artifact,) = Path("outputs/artifacts").iterdir()
    for file in artifact.iterdir():
        file.unlink()
    lock = f"outputs/locks/{artifact.name}.lock"
    hold = f"import filelock, time\nwith filelock.FileLock({lock!r}): print('locked', flush=True); time.sleep(600)"
    maker = subprocess.Popen([sys.executable, "-c", hold], stdout=subprocess.PIPE, text=True)
    assert maker.stdout
    assert maker.stdout.readline() == "locked\n"
    with pytest.raises(TimeoutError):
        FileLock(lock).acquire(timeout=0)

    def kill_once_waited_for() -> None:
        limit = time.monotonic() + 120
        while len(list(Path("outputs/runs").glob("*/record.json"))) < 2 and time.monotonic() < limit:
            time.sleep(0.1)
        time.sleep(0.5)
        maker.kill()

    killer = threading.Thread(target=kill_once_waited_for)
    killer.start()
    code, _, err = command("train", *settings, "codec=svd", "ratio=2")
    killer.join()
    maker.wait()
    assert code == 0, err
    assert (artifact / "compressed_table.json").is_file()


@pytest.mark.slow
def test_jobs_of_submitit(command, settings, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("WANDB_MODE", "disabled")
    code, out, err = command("train", "-m", *settings, "hydra/launcher=submitit_local", "codec=svd", "ratio=2,5000")
    assert code == 1, err
    assert [job["status"] for job in sweeps()[0]] == ["done", "failed"]
    assert "failed #1 ratio=5000: LighttokenError: ratio 5000 cannot be met" in out


@pytest.mark.parametrize(
    ("package", "group", "extra"),
    [
        ("joblib", "launcher=joblib", "sweep"),
        ("submitit", "launcher=submitit_local", "slurm"),
        ("optuna", "sweeper=optuna", "sweep"),
    ],
)
def test_a_missing_package_is_named_with_its_cure(command, settings, monkeypatch, package, group, extra):
    monkeypatch.setitem(sys.modules, package, None)
    code, _, err = command("train", "-m", *settings, f"hydra/{group}", "codec=svd", "ratio=2,3")
    assert (code, err.splitlines()[-1]) == (
        2,
        f"error: hydra/{group} needs {package}; pip install 'lighttoken[{extra}]'",
    )


def test_launchers_are_for_the_train_command(command, checkpoint):
    arguments = [f"model.path={checkpoint()}", "output=out", "ratio=2,3", "hydra/launcher=joblib"]
    code, _, err = command("compress", "-m", *arguments)
    assert (code, err.splitlines()[-1]) == (2, "error: this hydra/launcher is for lighttoken.train; leave it out")


def test_a_search_chooses_on_held_out_rows_and_goes_on_where_it_stopped(command, settings):
    search = ["+experiment=search", *settings, "codec=svd", "ratio=2.5", "task.dev_fraction=0.3"]
    code, out, err = command("train", *search, "hydra.sweeper.n_trials=2")
    assert code == 0, err
    (path,) = Path("outputs/sweeps").glob("*/search.json")
    search_file = json.loads(path.read_text())
    assert len(search_file["trials"]) == 2
    for trial in search_file["trials"]:
        record = json.loads(Path(trial["run"], "record.json").read_text())
        assert record["metrics"]["dev/accuracy"] == trial["value"]
        assert record["config"]["finetune"]["learning_rate"] == trial["params"]["finetune.learning_rate"]
        assert 2e-5 <= trial["params"]["finetune.learning_rate"] <= 5e-4
    assert search_file["best"]["value"] == max(trial["value"] for trial in search_file["trials"])
    assert "best of 2 trials" in out
    assert command("train", *search, "hydra.sweeper.n_trials=3")[0] == 0
    assert [job["status"] for job in sweeps()[1]] == ["skipped", "skipped", "done"]


def test_a_search_on_the_reported_rows_is_refused(command, settings):
    code, _, err = command("train", "+experiment=search", *settings, "task.dev_fraction=0")
    assert code == 2
    assert err.splitlines()[-1] == (
        "error: task.dev_fraction is 0, so the search would choose by the reported scores; add task.dev_fraction=0.1"
    )


@pytest.mark.parametrize("name", ["baseline_table", "evidence", "ratio_sweep"])
def test_ready_made_sweeps_have_the_jobs_of_their_headers(name):
    params = OmegaConf.load(ROOT / f"conf/experiment/{name}.yaml").hydra.sweeper.params
    with hydra.initialize_config_dir(config_dir(), version_base="1.3"):
        parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
        (jobs,) = BasicSweeper.split_arguments(parser.parse_overrides([f"{k}={v}" for k, v in params.items()]), None)
    codecs = {path.stem for path in (ROOT / "conf/codec").glob("*.yaml")} - {"stored"}
    values = {
        "baseline_table": {"codec": codecs, "ratio": (5, 25, 103)},
        "evidence": {
            "task": ("cola", "mrpc", "rte", "stsb"),
            "codec": ("lighttoken", "svd", "pq"),
            "ratio": (25, 103),
            "seed": range(3),
        },
        "ratio_sweep": {"codec": ("none", "lighttoken", "svd", "pq"), "ratio": (5, 25, 50, 103)},
    }[name]
    products = itertools.product(*([f"{key}={value}" for value in values[key]] for key in values))
    assert sorted(map(tuple, jobs)) == sorted(products)


@pytest.mark.slow
def test_evidence_is_a_sweep_of_references_one_of_codecs_and_a_report(command, settings, sst2):
    settings = ["+experiment=evidence", *settings, f"task.data_dir={sst2.parent}/${{task.name}}", "seed=0,1"]
    references = ["codec=none", "finetune.trainable=frozen,decoder", "ratio=1"]
    codecs = ["codec=svd", "ratio=2,2.5"]
    teachers = ["hydra.sweep.dir=outputs/teachers", "hydra.sweep.subdir=${task.name}_${seed}"]
    for arguments in (
        references,
        codecs,
        ["codec=none", "ratio=1", "save_model=true", *teachers],
        ["codec=svd", "ratio=2", "distill=outputs/teachers/${task.name}_${seed}"],
    ):
        code, _, err = command("train", *settings, *arguments)
        assert code == 0, err
    assert command("train", *settings, *codecs)[0] == 0
    assert [job["status"] for job in sweeps()[-1]] == ["skipped"] * 4
    assert command("report", "outputs")[0] == 0
    with Path("outputs/report/scores.csv").open(newline="") as file:
        rows = [(row["codec"], row["asked"], row["n"], row["retention"] != "") for row in csv.DictReader(file)]
    assert sorted(rows) == [
        ("none (trainable=decoder)", "1.0", "2", True),
        ("none (trainable=frozen)", "1.0", "2", True),
        ("svd (distilled=false)", "2.0", "2", True),
        ("svd (distilled=false)", "2.5", "2", True),
        ("svd (distilled=sst2 none)", "2.0", "2", True),
    ]


def test_the_record_of_a_job_that_a_shell_or_a_queue_ended_does_not_stay_running(tmp_path):
    (tmp_path / "record.json").write_text(json.dumps({"status": "running", "error": None}))
    job = Job(0, [], str(tmp_path), "done")
    finish_job(job, 137)  # 128 + 9: a shell reports a kill this way
    assert (job.status, job.error) == ("failed", "ended with exit code 137")
    assert json.loads((tmp_path / "record.json").read_text())["status"] == "failed"


@pytest.mark.parametrize("code", [-11, 134])
def test_a_job_whose_record_is_written_is_done_though_its_process_crashes_at_its_end(tmp_path, code):
    record = json.dumps({"status": "done", "error": None, "metrics": {"val/accuracy": 0.9}})
    (tmp_path / "record.json").write_text(record)
    job = Job(0, [], str(tmp_path), "done")
    finish_job(job, code)
    assert (job.status, job.error) == ("done", None)
    assert (tmp_path / "record.json").read_text() == record


@pytest.mark.parametrize("content", ["[" * 100_000, '{"status": "do', "[1]", "\xff"])
def test_an_odd_record_of_a_job_fails_the_job_alone(tmp_path, content):
    (tmp_path / "record.json").write_text(content, encoding="latin-1")
    (tmp_path / "console.log").write_bytes(b"\xff\n")
    for code in (0, 1):
        job = Job(0, [], str(tmp_path), "done")
        finish_job(job, code)
        assert job.status == "failed"
        assert str(job.error).startswith("record.json ")
    job = Job(0, [], str(tmp_path), "done")
    finish_job(job, -9)
    assert job.error == "killed by SIGKILL"


@pytest.mark.parametrize("content", ["[" * 100_000, '{"a": 1}', "[1]", '[{"status": "done"}]', "null"])
def test_an_odd_list_of_jobs_is_left_out(tmp_path, content, caplog):
    (tmp_path / "sweep.json").write_text(content)
    assert sweep_records(tmp_path) == []
    assert f"left out {tmp_path / 'sweep.json'}" in caplog.text
    assert sweep_records(tmp_path / "none") == []


def test_a_hostile_record_beside_a_run_does_not_fail_it(command, settings):
    hostile = {"deep": "[" * 100_000, "task": '{"task": []}', "empty": ""}
    for name, content in hostile.items():
        Path("outputs/others", name).mkdir(parents=True)
        Path("outputs/others", name, "record.json").write_text(content)
    code, out, err = command("train", *settings, "codec=none")
    assert code == 0, err
    assert [json.loads(path.read_text())["status"] for path in Path("outputs/runs").glob("*/record.json")] == ["done"]
    for name in hostile:
        assert f"left out {Path('outputs/others', name).absolute() / 'record.json'}" in out + err
