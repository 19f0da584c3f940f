import json
import os
import platform
import subprocess
import sys

import pytest

from lighttoken.run.process import is_gone, this_process

ASK = "import json; from lighttoken.run.process import this_process; print(json.dumps(this_process()), flush=True); "


def test_a_process_is_gone_once_it_is_killed_and_not_before():
    assert not is_gone(this_process())
    code = f"{ASK} input()"
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    described = json.loads(process.stdout.readline())
    assert described["pid"] == process.pid
    assert not is_gone(described)
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert is_gone(described)  # dead, though its parent has not asked for its end
    process.wait()
    assert is_gone(described)


@pytest.mark.parametrize(
    ("other", "gone"),
    [
        ({"start": 1}, True),  # its number went to another process
        ({"boot": "another"}, True),
        ({"boot": None}, False),
        ({"host": "another", "start": 1}, False),
        ({"host": "another", "boot": "another"}, False),
        ({"namespace": "pid:[1]", "start": 1}, False),  # of another container
    ],
)
def test_another_process_host_or_container(other, gone):
    assert is_gone(this_process() | other) == gone
    assert not is_gone({})
    assert this_process()["host"] == platform.node()
