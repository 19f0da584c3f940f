"""The examples of README, CONTRIBUTING and docs: short ones run for real, long ones are composed and checked."""

import importlib
import re
import shlex
import shutil
import tomllib
from importlib.util import find_spec
from pathlib import Path

import pytest
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import OmegaConf

from lighttoken.config.check import check
from lighttoken.config.schema import choices, config_dir

ROOT = Path(__file__).parents[1]
GUIDES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
RECORDS = sorted((ROOT / "experiments").glob("*/*.md"))
BLOCK = re.compile(r"^```(.*)\n((?:.*\n)*?)```$", re.MULTILINE)
INLINE = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\]\(([^)#\s]+)")
EXTRA = re.compile(r"pip\s+install\s+'lighttoken\[(\w+)\]'")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def blocks(language: str) -> list[tuple[str, str]]:
    """(name of the file, text) of every block of a language; "" is the shell."""
    return [
        (file.name, text)
        for file in GUIDES
        for found_language, text in BLOCK.findall(file.read_text())
        if found_language == language
    ]


COMMANDS = sorted({line for _, text in blocks("") for line in text.replace("\\\n", " ").splitlines() if line.strip()})


def test_every_block_has_a_known_language():
    for text in map(Path.read_text, GUIDES):
        assert text.count("```") == 2 * len(BLOCK.findall(text)), "a block is indented or has no end"
    assert {language for file in GUIDES for language, _ in BLOCK.findall(file.read_text())} == {"", "python", "text"}
    assert [name for name, _ in blocks("text")] == ["CONTRIBUTING.md"], "only the layout is neither shell nor Python"


def examples():
    """Those of the README are run by `make test`, the others by `make test-all`."""
    for name, text in blocks("python"):
        yield pytest.param(text, id=name, marks=[] if name.startswith("README") else pytest.mark.slow)


@pytest.mark.parametrize("example", examples())
def test_python_example_runs(example, saved_model, tokenizer):
    from transformers import AutoModel

    names = {"model": saved_model, "tokenizer": tokenizer}
    example = example.replace("ratio=25)", "ratio=25, progress=False)")
    exec(example.replace("sentence-transformers/all-MiniLM-L6-v2", "CHECKPOINT"), names)
    model = names["model"][0].auto_model if "SentenceTransformer" in example else saved_model
    compressed = names.get("compressed", model.get_input_embeddings())
    assert compressed.ratio >= 25
    if "save" in example:
        assert AutoModel.from_pretrained("DIR").get_input_embeddings().ratio == compressed.ratio


# A quality takes a search for the ratio.
SHELL = [pytest.param(line, marks=[pytest.mark.slow] * ("quality=" in line)) for line in COMMANDS]


@pytest.mark.parametrize("line", SHELL)
def test_shell_example_works(line, request):
    words = shlex.split(line, comments=True)
    words = [words[0].removeprefix(".venv/bin/"), *words[1:]]
    match words:
        case ["source", ".venv/bin/activate"]:
            pass
        case ["make", target]:
            assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
        case ["pip", "install", _]:
            assert EXTRA.search(line), "extras of lighttoken alone are checked"
        case ["python", "-m", "pytest", path]:
            assert (ROOT / path).exists()
        case ["PYTHONPATH=examples", "python", "-m", "lighttoken.compress" | "lighttoken.train", *_]:
            pass  # tests/test_examples.py runs it
        case ["pre-commit", "install" | "run", *_]:
            assert (ROOT / ".pre-commit-config.yaml").is_file()
        case ["python", "-m", "lighttoken.train", *arguments]:
            check_command("train", arguments, request)
        case ["python", "-m", "lighttoken.compress", *arguments]:
            check_command("compress", arguments, request)
        case ["python", "-m", "lighttoken.show", *arguments]:
            check_show(arguments, request)
        case ["python", "-m", "lighttoken.report", *arguments]:
            check_report(arguments, request)
        case _:
            pytest.fail(f"no check for this kind of command: {line}")


def check_command(name, arguments, request):
    """Run what is short: help, and the compression of a small checkpoint. Compose and check the rest."""
    short = {"--help", "--cfg"} & {*arguments} or (name == "compress" and "model.path=CHECKPOINT" in arguments)
    if short:
        request.getfixturevalue("saved_model")
        code, _, message = request.getfixturevalue("command")(name, *arguments)
        assert code == 0, message
        return
    jobs = jobs_with_every_value([word for word in arguments if word != "-m" and not word.startswith("replay=")])
    for overrides in jobs:
        check(request.getfixturevalue("compose")(*overrides, name=name))
    if len(jobs) > 1:
        assert "-m" in arguments or HydraConfig.get().mode == RunMode.MULTIRUN, "a list of values needs -m"


def jobs_with_every_value(arguments: list[str]) -> list[list[str]]:
    """The overrides of a few jobs of a sweep in which every value occurs; one job without a list of values."""
    values = []
    for argument in arguments:
        override = OverridesParser.create().parse_override(argument)
        swept = override.sweep_string_iterator() if override.is_sweep_override() else ()
        values.append([f"{override.get_key_element()}={value}" for value in swept] or [argument])
    longest = max(map(len, values), default=1)
    return [[options[job % len(options)] for options in values] for job in range(longest)]


def check_show(arguments, request):
    """Run it for real on an artifact of the model that it is compared with."""
    from lighttoken import compress_table
    from lighttoken.config.schema import load_backbone

    request.getfixturevalue("saved_model")
    source = arguments[arguments.index("--verify") + 1] if "--verify" in arguments else "CHECKPOINT"
    compress_table(load_backbone(source).table(), "svd", ratio=3).save(arguments[0])
    code, _, message = request.getfixturevalue("command")("show", *arguments)
    assert code == 0, message


def check_report(arguments, request):
    """Run it for real, but for a page that is served until someone stops it: there, only the arguments are read."""
    shutil.copytree(ROOT / "tests" / "samples" / "records", "outputs")
    served = "--serve" in arguments
    if served:
        module = importlib.import_module("lighttoken.dashboard.report")
        request.getfixturevalue("monkeypatch").setattr(module, "report", lambda *_: None)
    code, _, message = request.getfixturevalue("command")("report", *arguments)
    assert code == 0, message
    assert Path("outputs/report/index.html").exists() != served


@pytest.mark.parametrize("file", GUIDES, ids=lambda file: file.name)
def test_extras_exist(file):
    assert set(EXTRA.findall(file.read_text())) <= PROJECT["optional-dependencies"].keys()


@pytest.mark.parametrize("file", GUIDES, ids=lambda file: file.name)
def test_modules_in_the_text_exist(file):
    for name in re.findall(r"python -m ([\w.]+)", file.read_text()):
        assert find_spec(name), name


@pytest.mark.parametrize("group", ["model", "codec", "codec/prior", "codec/schedule", "heal", "task", "recipe"])
def test_table_of_choices_names_every_config(group):
    (row,) = re.findall(rf"^\|[^|]*\| `{group}=` \|.*$", (ROOT / "docs" / "fine_tuning.md").read_text(), re.MULTILINE)
    assert set(choices(group)) <= set(INLINE.findall(row))


@pytest.mark.parametrize("file", GUIDES, ids=lambda file: file.name)
def test_keys_in_the_text_exist(file, compose):
    spans = INLINE.findall(BLOCK.sub("", file.read_text()))
    pairs = {word for span in spans if re.match(r"[+a-z_./]+=", span) and '="' not in span for word in span.split()}
    for pair in sorted(pair for pair in pairs if not pair.startswith("replay=")):  # which stands for other arguments
        key, _, value = pair.partition("=")
        assert any(accepts(compose, name, key, value) for name in ("train", "compress")), f"{pair} in {file.name}"


def accepts(compose, name: str, key: str, value: str) -> bool:
    """Whether a command has a key and takes its value. Upper case in the value stands for any text."""
    if not value:
        return Path(config_dir(), key).is_dir() or OmegaConf.select(compose(name=name), key, default=key) != key
    groups = [["codec/prior=corpus"]] if key == "codec.prior.file" else [[]]
    if key.startswith("heal."):
        groups = [["heal=corpus"], ["heal=corpus", "heal.file=FILE"]]
    if key.startswith("task.") and name == "train":
        groups += [["task=perplexity"], ["task=sts"]]
    for group in groups:
        try:
            compose(*group, f"{key}={value}", name=name)
            return True
        except HydraException:
            pass
    return False


def test_api_page_names_every_public_name():
    import lighttoken

    assert sorted(
        re.findall(r"^::: lighttoken\.(\w+)$", (ROOT / "docs" / "api.md").read_text(), re.MULTILINE)
    ) == sorted(lighttoken.__all__)


def test_layout_names_files_that_exist():
    ((_, layout),) = blocks("text")
    folders: list[str] = []
    for line in layout.splitlines():
        names, _, _ = line.strip().partition("  ")
        folders = folders[: (len(line) - len(line.lstrip())) // 2]
        for name in names.split():
            assert Path(ROOT, *folders, name).exists(), "/".join([*folders, name])
        folders.append(names)


@pytest.mark.parametrize(
    "file", [*GUIDES, ROOT / "CHANGELOG.md", *RECORDS], ids=lambda file: str(file.relative_to(ROOT))
)
def test_relative_links_lead_to_files(file):
    for target in LINK.findall(file.read_text()):
        assert target.startswith(("http://", "https://")) or (file.parent / target).exists(), target
