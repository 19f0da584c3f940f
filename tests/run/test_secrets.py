"""No key and no password gets into records, config files or the console."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from lighttoken.run import records
from lighttoken.run.records import Record
from lighttoken.run.secrets import masked

SECRET = "s3cr3t-0123456789abcdef"


@pytest.mark.parametrize(
    ("text", "hidden"),
    [
        (f"https://user:{SECRET}@host/path", "https://***@host/path"),
        (f"git+https://{SECRET}@host", "git+https://***@host"),
        (f"/here/https:/user:{SECRET}@host/x", "/here/https:/***@host/x"),
        (f"the key is {SECRET}.", "the key is ***."),
        ("https://host/a@b ssh user@host", "https://host/a@b ssh user@host"),
        ("C:/data/a@b and /data/x@y", "C:/data/a@b and /data/x@y"),
    ],
)
def test_what_is_hidden_and_what_is_not(monkeypatch, text, hidden):
    monkeypatch.setenv("HF_TOKEN", SECRET)
    monkeypatch.setenv("WANDB_API_KEY", "short")
    assert masked(text) == hidden


def everything_under(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


def test_a_run_writes_no_key_of_its_environment(command, checkpoint, sst2, monkeypatch):
    for name in ("WANDB_API_KEY", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, SECRET)
    settings = ["task=sst2", f"task.data_dir={sst2}", f"model.path={checkpoint()}", "trainer.accelerator=cpu"]
    settings += ["+model.revision=${oc.env:HF_TOKEN}"]  # a secret that the command line does not have
    code, out, err = command("train", *settings, "codec=none", "logger=csv", "trainer.max_epochs=1")
    assert code == 0, err
    assert SECRET not in out + err
    assert list(Path("outputs").rglob("record.json"))
    assert SECRET.encode() not in everything_under(Path("outputs"))


@pytest.mark.parametrize("key", ["model.path", "task.data_dir", "init_from", "+model.revision"])
def test_a_password_on_the_command_line_is_refused_before_a_file_has_it(command, key):
    code, out, err = command("train", "task=sst2", f"{key}=https://user:{SECRET}@host/data")
    assert (code, out) == (2, "")
    assert err == (
        f"error: {key}=https://***@host/data: the run's files would keep the secret that stands for ***; leave it out "
        "and use the environment (HF_TOKEN, WANDB_API_KEY) or ~/.netrc\n"
    )
    assert not list(Path().iterdir())


def test_a_record_has_no_password_of_a_config_file_or_an_error(tmp_path):
    config = {"codec": {"name": "none"}, "task": {"data_dir": f"https://user:{SECRET}@host/data"}}
    record = Record(tmp_path / "run", config, "m", "t", "none", 0, None)
    with pytest.raises(OSError, match="no answer"), record.running():
        raise OSError(f"no answer from https://{SECRET}@host")
    text = (tmp_path / "run/record.json").read_text()
    assert SECRET not in text
    written = json.loads(text)
    assert written["config"]["task"]["data_dir"] == "https://***@host/data"
    assert written["error"] == "OSError: no answer from https://***@host"


def test_the_commit_says_nothing_of_the_remote(tmp_path, monkeypatch):
    def git(*arguments: str) -> None:
        names = {"GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a@b", "GIT_COMMITTER_NAME": "a"}
        environment = os.environ | names | {"GIT_COMMITTER_EMAIL": "a@b"}
        subprocess.run(["git", *arguments], cwd=tmp_path, env=environment, check=True, capture_output=True)

    git("init")
    git("remote", "add", "origin", f"https://user:{SECRET}@host/repository")
    git("commit", "--allow-empty", "-m", "first")
    monkeypatch.setattr(records, "__file__", str(tmp_path / "lighttoken/run/records.py"))
    record = Record(tmp_path / "run", {"codec": {}}, "m", "t", "none", 0, None)
    record.save()
    assert len(record.git_commit or "") == 40
    assert SECRET not in (tmp_path / "run/record.json").read_text()
