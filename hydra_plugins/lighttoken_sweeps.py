"""Hydra plugins for sweeps: launchers that give each job a process of its own, and a search with optuna.

Hydra looks for plugins in this namespace package and nowhere else. `hydra/launcher=` and `hydra/sweeper=` name the
files of conf/hydra.
"""

import json
import logging
import sys
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus, configure_log, filter_overrides, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict

log = logging.getLogger(__name__)  # the rest is imported where it is used: Hydra loads this file on every command


class ProcessLauncher(Launcher):
    """Each job is a command of its own. What is done already, and what is twice in the sweep, is not run."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Called by Hydra."""
        self.hydra_context, self.config = hydra_context, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run the jobs; returns a JobReturn for each, whose value is a `lighttoken.run.sweep.Job`: none of them raises.

        Raises LighttokenError for a missing package and for commands other than lighttoken.train.
        """
        from lighttoken.errors import LighttokenError
        from lighttoken.run.records import asked_for, read_records
        from lighttoken.run.sweep import Job, find_done, plain_config, tell_skipped

        if self.config.hydra.job.config_name != "train":
            raise LighttokenError("this hydra/launcher is for lighttoken.train; leave it out")
        setup_globals()
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        records = read_records(Path(self.config.output_dir).absolute())
        jobs: list[Job] = []
        to_run: list[tuple[Job, list[str]]] = []
        asked: list[dict[str, Any]] = []
        first: list[Job] = []  # of each thing that is asked for, the job that runs it
        for number, overrides in enumerate(job_overrides, initial_job_idx):
            config, folder = self.compose(overrides, number)
            job = Job(number, list(filter_overrides(overrides)), folder, "done")
            log.info("#%d : %s", number, " ".join(job.overrides))
            jobs.append(job)
            first.append(job)
            asked.append(asked_for(plain_config(config)))
            if done := find_done(config, records):
                tell_skipped(job, done)
            elif (same := first[asked.index(asked[-1])]) is not job:
                log.info("#%d is the same run as #%d", number, same.number)
                first[-1] = same
            else:
                to_run.append((job, self.command(overrides, folder)))
        self.run(to_run)
        for job, same in zip(jobs, first, strict=True):
            if same is not job:
                job.status, job.folder, job.error = same.status.replace("done", "skipped"), same.folder, same.error
        returns = [JobReturn(overrides=job.overrides, status=JobStatus.COMPLETED, _return_value=job) for job in jobs]
        for each in returns:
            self.hydra_context.callbacks.on_job_end(config=self.config, job_return=each)
        return returns

    def compose(self, overrides: Sequence[str], number: int) -> tuple[DictConfig, str]:
        """The config of a job without Hydra's part, and the job's folder."""
        config = self.hydra_context.config_loader.load_sweep_config(self.config, list(overrides))
        with open_dict(config):
            config.hydra.job.id = config.hydra.job.num = number
        HydraConfig.instance().set_config(config)
        folder = Path(config.hydra.sweep.dir, config.hydra.sweep.subdir).absolute()
        return OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"]), str(folder)

    def command(self, overrides: Sequence[str], folder: str) -> list[str]:
        """The command line of a job."""
        from lighttoken.run.sweep import quoted

        hydra = self.config.hydra
        added = [each.path for each in hydra.runtime.config_sources if each.provider == "command-line"]
        told = [*(each for each in hydra.overrides.hydra if not each.startswith("hydra.mode=")), *overrides]
        for key, path in (("run", folder), ("sweep", str(Path(hydra.sweep.dir).absolute()))):
            told.append(f"hydra.{key}.dir={quoted(path)}")
        flags = [f"--config-dir={path.removeprefix('file://')}" for path in added]
        return [sys.executable, "-m", "lighttoken.train", *flags, *told, "hydra.mode=RUN", "progress=false"]

    @abstractmethod
    def run(self, jobs: list[tuple[Any, list[str]]]) -> None:
        """Run the command line of each job, and enter in the job how it ended."""


class JoblibLauncher(ProcessLauncher):
    """`n_jobs` at a time on this machine (-1: one per core), each started by a joblib thread that waits for it."""

    def __init__(self, n_jobs: int, **ignored: Any) -> None:
        # Where hydra-joblib-launcher is installed too, Hydra adds the keys of its config of the same name.
        self.n_jobs = n_jobs

    def run(self, jobs: list[tuple[Any, list[str]]]) -> None:
        """See ProcessLauncher. Raises LighttokenError without joblib."""
        from lighttoken.errors import LighttokenError
        from lighttoken.run.sweep import close, ending_processes, run_process

        try:
            from joblib import Parallel, delayed
        except ImportError as error:
            raise LighttokenError("hydra/launcher=joblib needs joblib; pip install 'lighttoken[sweep]'") from error

        def run_one(job: Any, command: list[str]) -> None:
            log.info("#%d starts; what it prints is in %s", job.number, job.folder)
            close(job, run_process(command, job.folder))
            log.info("#%d %s", job.number, job.error or "done")

        with ending_processes():
            Parallel(n_jobs=self.n_jobs, backend="threading")(delayed(run_one)(*each) for each in jobs)


class SubmititLauncher(ProcessLauncher):
    """Jobs of SLURM or, to try it out, of submitit's local executor; `parameters` are those of submitit's executor."""

    def __init__(self, cluster: str, folder: str, **parameters: Any) -> None:
        self.cluster, self.folder, self.parameters = cluster, folder, parameters

    def run(self, jobs: list[tuple[Any, list[str]]]) -> None:
        """See ProcessLauncher. Raises LighttokenError without submitit or SLURM, and for unknown parameters."""
        from lighttoken.errors import LighttokenError
        from lighttoken.run.sweep import close, run_process

        try:
            import submitit
        except ImportError as error:
            raise LighttokenError("hydra/launcher=submitit needs submitit; pip install 'lighttoken[slurm]'") from error
        try:
            executor = submitit.AutoExecutor(folder=self.folder, cluster=self.cluster)
            executor.update_parameters(**self.parameters)
        except (RuntimeError, NameError, ValueError) as error:  # no srun; what submitit says of a parameter
            raise LighttokenError(f"hydra/launcher=submitit: {' '.join(str(error).split())}") from error
        if not jobs:
            return
        submitted = executor.map_array(run_process, [command for _, command in jobs], [job.folder for job, _ in jobs])
        for (job, _), handle in zip(jobs, submitted, strict=True):
            log.info("#%d is job %s; what it prints is in %s", job.number, handle.job_id, job.folder)
        for (job, _), handle in zip(jobs, submitted, strict=True):
            try:
                close(job, handle.result())
            except submitit.core.utils.UncompletedJobError as error:  # killed, or out of its time or memory
                close(job, 1)
                job.error = f"job {handle.job_id}: {str(error).splitlines()[0]}"
            log.info("#%d %s", job.number, job.error or "done")


class OptunaSweeper(Sweeper):
    """Search with optuna's TPE: the official plugin (1.3.0) holds on to optuna 2.10 of 2021, this one needs 4 or newer.

    Hydra's own words say where to look: `a=1,2`, `a=choice(x,y)`, `a=range(1,9)`, `a=interval(0.1,0.5)` and
    `a=tag(log,interval(1e-5,1e-3))`. The value of a trial is the mean of its scores on rows held out of the training
    split. The trials follow from the seed and the values: the same command goes through those that are done, which are
    not run again, and on to the rest.
    """

    def __init__(self, n_trials: int, n_jobs: int, seed: int, params: dict[str, str] | None = None) -> None:
        self.n_trials, self.n_jobs, self.seed, self.params = n_trials, n_jobs, seed, dict(params or {})

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Called by Hydra."""
        self.context, self.job_config = hydra_context, config
        self.launcher: Launcher = Plugins.instance().instantiate_launcher(hydra_context, task_function, config)

    def sweep(self, arguments: list[str]) -> Any:
        """Run the trials, `n_jobs` at a time, and write the best to search.json; returns its content.

        Raises LighttokenError without optuna, without rows held out and when no trial came to a score.
        """
        from lighttoken.artifact.files import write_atomically
        from lighttoken.errors import LighttokenError
        from lighttoken.run.average import task_score
        from lighttoken.run.records import read_records
        from lighttoken.run.screen import print_rows

        try:
            import optuna
        except ImportError as error:
            raise LighttokenError("hydra/sweeper=optuna needs optuna; pip install 'lighttoken[sweep]'") from error
        if not self.job_config.task.dev_fraction:
            raise LighttokenError(
                "a search on the validation rows would choose by what is reported: task.dev_fraction is 0; "
                "add task.dev_fraction=0.1"
            )
        parser = OverridesParser.create(config_loader=self.context.config_loader)
        by_key = {
            each.get_key_element(): each
            for each in parser.parse_overrides([*(f"{key}={value}" for key, value in self.params.items()), *arguments])
        }
        space = {key: self.distribution(each) for key, each in by_key.items() if each.is_sweep_override()}
        fixed = [str(each.input_line) for each in by_key.values() if not each.is_sweep_override()]
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=self.seed))
        folders: dict[int, str] = {}
        for start in range(0, self.n_trials, self.n_jobs):
            trials = [study.ask(space) for _ in range(min(self.n_jobs, self.n_trials - start))]
            asked = [[*fixed, *(f"{key}={value}" for key, value in trial.params.items())] for trial in trials]
            for trial, result in zip(trials, self.launcher.launch(asked, start), strict=True):
                job = result.return_value
                folders[trial.number] = job.folder
                scores = [task_score(each["metrics"], "dev") for each in read_records(Path(job.folder))]
                if job.status == "failed" or not scores:
                    study.tell(trial, state=optuna.trial.TrialState.FAIL)
                else:
                    study.tell(trial, scores[0])
        if not any(trial.value is not None for trial in study.trials):
            raise LighttokenError(f"none of the {self.n_trials} trials came to a score; see the errors above")
        best = {"value": study.best_value, "params": study.best_params, "run": folders[study.best_trial.number]}
        trials_told = [
            {"value": each.value, "params": each.params, "run": folders[each.number]} for each in study.trials
        ]
        content = json.dumps({"best": best, "trials": trials_told}, indent=2)
        write_atomically(Path(self.job_config.hydra.sweep.dir) / "search.json", content.encode())
        rows = [("held-out score", f"{study.best_value:.4f}")]
        rows += [(key, str(value)) for key, value in study.best_params.items()]
        print_rows(f"best of {self.n_trials} trials", [*rows, ("run", folders[study.best_trial.number])])
        return best

    @staticmethod
    def distribution(override: Override) -> Any:
        """What optuna calls the range of an override."""
        from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

        value = override.value()
        if not isinstance(value, IntervalSweep):
            return CategoricalDistribution(list(override.sweep_string_iterator()))
        kind: Any = IntDistribution if isinstance(value.start, int) else FloatDistribution
        return kind(value.start, value.end, log="log" in value.tags)
