import os
import subprocess
import sys

import pytest

from lighttoken.run.libraries import prepare_imports


@pytest.mark.parametrize(("given", "used"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_idle_threads_sleep_unless_the_user_wants_them_awake(
    monkeypatch: pytest.MonkeyPatch, given: str | None, used: str
) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", given or "")  # so that the value of before comes back
    if given is None:
        monkeypatch.delenv("OMP_WAIT_POLICY")
    prepare_imports()
    assert os.environ["OMP_WAIT_POLICY"] == used


@pytest.mark.skipif(
    sys.platform != "linux", reason="PyTorch has another OpenMP there, which shows its settings otherwise"
)
def test_openmp_reads_that_idle_threads_sleep() -> None:
    code = "from lighttoken.run.libraries import prepare_imports; prepare_imports(); import torch"
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    shown = subprocess.run(
        [sys.executable, "-c", code],
        env=environment | {"OMP_DISPLAY_ENV": "true"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "OMP_WAIT_POLICY = 'PASSIVE'" in shown.stderr
