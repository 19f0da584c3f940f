import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def python(*arguments: str, **kwargs) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, **kwargs)


def test_import_is_light():
    heavy = "('lightning', 'hydra', 'transformers', 'wandb', 'datasets')"
    code = f"import sys, lighttoken; print([m for m in {heavy} if m in sys.modules])"
    assert python("-c", code).stdout == "[]\n"


def test_importance_and_compression_load_no_training_library():
    heavy = "('lightning', 'hydra', 'datasets', 'wandb')"
    code = f"""
import sys, torch, lighttoken
from lighttoken.backbone.source import Backbone
lighttoken.compress_table(torch.randn(2000, 16), ratio=8, progress=False)
lighttoken.measure_importance, lighttoken.swap_embedding, lighttoken.load_table
print([name for name in {heavy} if name in sys.modules])
"""
    done = python("-c", code)
    assert done.stdout == "[]\n", done.stderr


@pytest.mark.parametrize("name", ["lighttoken.show", "lighttoken.inspect"])
@pytest.mark.slow
def test_the_earlier_name_of_show_still_works(name, tmp_path):
    done = python("-m", name, str(tmp_path / "nothing"))
    assert done.returncode == 2
    assert done.stderr.startswith("error: no artifact at")


@pytest.mark.slow
@pytest.mark.parametrize("command", ["train", "compress", "report", "show"])
def test_a_command_runs_as_a_script_too(command, tmp_path):
    """As an IDE runs it: the folder of the script comes first among the folders that Python imports from."""
    done = python(str(ROOT / "lighttoken" / f"{command}.py"), "--help", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "lighttoken" in done.stdout


def test_every_public_name_is_there():
    import lighttoken

    assert all(getattr(lighttoken, name) for name in lighttoken.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = lighttoken.nothing


@pytest.mark.slow
def test_a_wheel_holds_the_configs_and_works_from_any_folder(tmp_path):
    built = python("-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT))
    assert built.returncode == 0, built.stdout + built.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    in_wheel = {path.relative_to(tmp_path / "site/lighttoken/conf") for path in (tmp_path / "site").rglob("*.yaml")}
    assert in_wheel == {path.relative_to(ROOT / "conf") for path in (ROOT / "conf").rglob("*.yaml")}
    assert (tmp_path / "site/hydra_plugins/lighttoken_sweeps.py").is_file()
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "site")}
    arguments = ["-m", "lighttoken.train", "+experiment=quickstart", "--cfg", "job"]
    shown = python(*arguments, cwd="/", env=environment)
    assert shown.returncode == 0, shown.stderr
    assert "name: rotten_tomatoes" in shown.stdout
    where = python("-c", "import lighttoken; print(lighttoken.__file__)", cwd="/", env=environment).stdout
    assert where.startswith(str(tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["LighttokenConfig", "measure_importance", "swap_embedding"])
def test_a_name_can_be_the_first_that_loads_transformers(name):
    assert python("-c", f"from lighttoken import {name}").returncode == 0
