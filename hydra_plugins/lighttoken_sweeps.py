"""Hydra plugins for sweeps: launchers that run every job in a process of its own, and a search with optuna.

Hydra looks for plugins in this namespace package and nowhere else, and loads this file on every command: imports that
take time stand in the functions. `hydra/launcher=` and `hydra/sweeper=` name the files of conf/hydra.
"""

import importlib
import json
import logging
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

from lighttoken.errors import LighttokenError

log = logging.getLogger(__name__)


class ProcessLauncher(Launcher):
    """Runs every job as a command of its own. Finished jobs and duplicates within the sweep are not run."""

    defaults: Sequence[str] = ()  # overrides of every job, which those of the sweep override

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Called by Hydra."""
        self.hydra_context, self.config = hydra_context, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run the jobs. No job raises: the value of its JobReturn is a `lighttoken.run.sweep.Job` with its end.

        Raises LighttokenError for a missing package and for commands other than lighttoken.train.
        """
        from lighttoken.run import sweep
        from lighttoken.run.reading import read_records

        if self.config.hydra.job.config_name != "train":
            raise LighttokenError("this hydra/launcher is for lighttoken.train; leave it out")
        setup_globals()
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        records = read_records(Path(self.config.output_dir).absolute())
        jobs, commands, duplicates = [], [], []
        firsts: dict[str, sweep.Job] = {}  # of all jobs with the same settings, the first
        for number, overrides in enumerate(job_overrides, initial_job_idx):
            config, folder = self.compose(overrides, number)
            job = sweep.Job(number, list(filter_overrides(overrides)), folder)
            log.info("#%d : %s", number, " ".join(job.overrides))
            jobs.append(job)
            # The job is skipped, or ends as an earlier job of the sweep does, or is run.
            first = firsts.setdefault(json.dumps(sweep.settings_of(config), sort_keys=True), job)
            if done := sweep.find_done(config, records):
                sweep.report_skipped(job, done)
            elif first is not job:
                log.info("#%d is the same run as #%d", number, first.number)
                duplicates.append((job, first))
            else:
                job.status, job.error = "failed", "interrupted"  # until it has ended
                commands.append((job, self.command(overrides, folder)))
        interruption = None
        try:
            self.run(commands)
        except SystemExit as error:  # a signal
            interruption = error
        for job, first in duplicates:
            job.status, job.folder, job.error = first.status.replace("done", "skipped"), first.folder, first.error
        returns = [JobReturn(overrides=job.overrides, status=JobStatus.COMPLETED, _return_value=job) for job in jobs]
        for job_return in returns:
            self.hydra_context.callbacks.on_job_end(config=self.config, job_return=job_return)
        if interruption:
            interruption.add_note(f"kept {self.config.hydra.sweep.dir}; the same command skips the jobs that are done")
            raise interruption
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
        from lighttoken.run.sweep import job_command

        hydra, values = self.config.hydra, []
        for key, path in (("run", folder), ("sweep", str(Path(hydra.sweep.dir).absolute()))):
            quoted = path.replace("'", "\\'")
            values.append(f"hydra.{key}.dir='{quoted}'")
        return job_command(hydra, [*self.defaults, *overrides], *values)

    @abstractmethod
    def run(self, commands: list[tuple[Any, list[str]]]) -> None:
        """Run the command line of every job, and set the job's status and error."""


class JoblibLauncher(ProcessLauncher):
    """`n_jobs` at a time on this machine (-1: one per core). A thread of joblib starts a job and waits for it."""

    def __init__(self, n_jobs: int, **ignored: Any) -> None:
        # If hydra-joblib-launcher is installed too, Hydra adds the keys of its config of the same name.
        self.n_jobs = n_jobs

    def run(self, commands: list[tuple[Any, list[str]]]) -> None:
        """See ProcessLauncher. Raises LighttokenError without joblib, and for no jobs at a time."""
        from lighttoken.run.sweep import ending_processes, run_job

        joblib = _import("joblib", "launcher=joblib", "sweep")
        if self.n_jobs == 0:
            raise LighttokenError("hydra.launcher.n_jobs is 0; it must be 1 or above, or -1 for one per core")
        with ending_processes():
            calls = [joblib.delayed(run_job)(job, command) for job, command in commands]
            joblib.Parallel(n_jobs=self.n_jobs, backend="threading")(calls)


class SubmititLauncher(ProcessLauncher):
    """Jobs of SLURM or, to try that out, of submitit's local executor. `parameters` are those of that executor.

    A job that is requeued goes on from its checkpoint.
    """

    defaults = ("resume=true",)

    def __init__(self, cluster: str, folder: str, slurm_max_num_timeout: int = 3, **parameters: Any) -> None:
        self.cluster, self.folder, self.timeouts, self.parameters = cluster, folder, slurm_max_num_timeout, parameters

    def compose(self, overrides: Sequence[str], number: int) -> tuple[DictConfig, str]:
        """See ProcessLauncher. Raises LighttokenError if SLURM would start more or fewer processes than the trainer."""
        config, folder = super().compose(overrides, number)
        for key, of_trainer in (("nodes", "num_nodes"), ("tasks_per_node", "devices")):
            made, expected = self.parameters.get(key) or 1, config.trainer.get(of_trainer, 1)
            count = len(expected) if OmegaConf.is_list(expected) else expected
            if self.cluster == "slurm" and str(count) not in (str(made), "auto", "-1"):
                raise LighttokenError(
                    f"hydra.launcher.{key}={made} and trainer.{of_trainer}={expected} differ; SLURM starts a process "
                    "for each device, so give both the same value"
                )
        return config, folder

    def run(self, commands: list[tuple[Any, list[str]]]) -> None:
        """See ProcessLauncher. Raises LighttokenError without submitit or SLURM, and for jobs that SLURM refuses."""
        from lighttoken.run import queue
        from lighttoken.run.process import this_process

        launcher = f"launcher=submitit_{self.cluster}"
        submitit = _import("submitit", launcher, "slurm")
        if self.cluster == "slurm":
            queue.check_slurm()
        if not commands:
            return
        sweep = this_process() if self.cluster == "local" else None
        try:
            executor = submitit.AutoExecutor(self.folder, self.cluster, slurm_max_num_timeout=self.timeouts)
            executor.update_parameters(**self.parameters)
            with executor.batch():  # one array of jobs
                handles = [executor.submit(queue.QueuedJob(command, job.folder, sweep)) for job, command in commands]
        except (RuntimeError, NameError, ValueError, OSError) as error:  # an unknown parameter, or an answer of sbatch
            raise LighttokenError(f"hydra/{launcher}: {' '.join(str(error).split())}") from error
        try:
            self.wait({handle: job for handle, (job, _) in zip(handles, commands, strict=True)})
        except SystemExit:  # a signal
            if self.cluster == "slurm":
                queue.cancel(handles)
            else:
                for handle in handles:
                    handle.cancel(check=False)
            raise

    def wait(self, jobs: dict[Any, Any]) -> None:
        """Wait for the jobs of these handles, and enter their ends as they come."""
        from lighttoken.run import queue
        from lighttoken.run.sweep import finish_job

        submitit = _import("submitit", f"launcher=submitit_{self.cluster}", "slurm")
        for handle, job in jobs.items():
            log.info("#%d is job %s; its output is in %s", job.number, handle.job_id, job.folder)
        handles = queue.watch(jobs) if self.cluster == "slurm" else [*jobs]
        by_handle = dict(zip(handles, jobs.values(), strict=True))
        for handle in submitit.helpers.as_completed(handles, poll_frequency=1):
            try:
                finish_job(by_handle[handle], *handle.result())
            except submitit.core.utils.UncompletedJobError:  # no result: cancelled, or out of its time or memory
                finish_job(by_handle[handle], 1, f"job {handle.job_id} of {self.cluster} ended as {handle.state}")


class OptunaSweeper(Sweeper):
    """Search with optuna's TPE. The official plugin (1.3.0) requires optuna 2.10 of 2021, this one optuna 4 or newer.

    The values to search are Hydra's: `a=1,2`, `a=choice(x,y)`, `a=range(1,9)`, `a=interval(0.1,0.5)` and
    `a=tag(log,interval(1e-5,1e-3))`. The value of a trial is the mean of its scores on rows held out of the training
    split. The trials follow from the seed and the values, so the same command skips its finished trials and goes on.
    """

    def __init__(self, n_trials: int, n_jobs: int, seed: int, params: dict[str, str] | None = None) -> None:
        self.n_trials, self.n_jobs, self.seed, self.params = n_trials, n_jobs, seed, dict(params or {})

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Called by Hydra."""
        self.context, self.job_config = hydra_context, config
        self.launcher: Launcher = Plugins.instance().instantiate_launcher(hydra_context, task_function, config)

    def sweep(self, arguments: list[str]) -> Any:
        """Run the trials, `n_jobs` at a time, and write them to search.json; returns the best.

        Raises LighttokenError without optuna, without held-out rows, and if no trial has a score.
        """
        from lighttoken.artifact.files import write_atomically
        from lighttoken.run.screen import print_rows

        optuna = _import("optuna", "sweeper=optuna", "sweep")
        if not self.job_config.task.dev_fraction:
            raise LighttokenError(
                "task.dev_fraction is 0, so the search would choose by the reported scores; add task.dev_fraction=0.1"
            )
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=self.seed))
        folders = self.run_trials(study, arguments)
        trials = [
            {"value": trial.value, "params": trial.params, "run": folder}
            for trial, folder in zip(study.trials, folders, strict=True)
        ]
        if all(trial["value"] is None for trial in trials):
            raise LighttokenError(f"none of the {self.n_trials} trials has a score; see the errors above")
        best = trials[study.best_trial.number]
        path = Path(self.job_config.hydra.sweep.dir) / "search.json"
        write_atomically(path, json.dumps({"best": best, "trials": trials}, indent=2).encode())
        rows = {"held-out score": f"{best['value']:.4f}", **best["params"], "run": best["run"]}
        print_rows(f"best of {self.n_trials} trials", [(name, str(value)) for name, value in rows.items()])
        return best

    def run_trials(self, study: Any, arguments: list[str]) -> list[str]:
        """Let the study choose trials and report their scores to it; returns the folders of their runs."""
        from optuna.trial import TrialState

        from lighttoken.run.reading import read_records
        from lighttoken.run.scores import task_score

        # Values of the command line replace those of the config. Sweeps among them are searched, the others fixed.
        texts = [*(f"{key}={value}" for key, value in self.params.items()), *arguments]
        parser = OverridesParser.create(config_loader=self.context.config_loader)
        overrides = {override.get_key_element(): override for override in parser.parse_overrides(texts)}
        space = {key: _distribution(override) for key, override in overrides.items() if override.is_sweep_override()}
        fixed = [str(override.input_line) for key, override in overrides.items() if key not in space]
        folders: list[str] = []
        for start in range(0, self.n_trials, self.n_jobs):
            trials = [study.ask(space) for _ in range(min(self.n_jobs, self.n_trials - start))]
            batch = [[*fixed, *(f"{key}={value}" for key, value in trial.params.items())] for trial in trials]
            jobs = [job_return.return_value for job_return in self.launcher.launch(batch, start)]
            for trial, job in zip(trials, jobs, strict=True):
                folders.append(job.folder)
                records = [] if job.status == "failed" else read_records(Path(job.folder))
                scores = [task_score(record["metrics"], "dev") for record in records] or None
                study.tell(trial, scores, None if scores else TrialState.FAIL)
        return folders


def _distribution(override: Override) -> Any:
    """The range of an override, as optuna describes it."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    value = override.value()
    if not isinstance(value, IntervalSweep):
        return CategoricalDistribution(list(override.sweep_string_iterator()))
    kind: Any = IntDistribution if isinstance(value.start, int) else FloatDistribution
    return kind(value.start, value.end, log="log" in value.tags)


def _import(package: str, choice: str, extra: str) -> Any:
    """An optional package. Raises LighttokenError if it is missing."""
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise LighttokenError(f"hydra/{choice} needs {package}; pip install 'lighttoken[{extra}]'") from error
