import http.client
import json
import os
import re
import socket
import struct
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from plotly.offline import get_plotlyjs

from lighttoken.dashboard.charts import score_chart
from lighttoken.dashboard.figures import distinct_markers, draw, draw_column
from lighttoken.dashboard.gather import gather, points
from lighttoken.dashboard.serve import serve
from tests.dashboard.conftest import page_of, read_data, write_run

FIGURES = {f"{name}.{suffix}" for name in ("score", "distortion", "frequency", "spectrum") for suffix in ("png", "svg")}
TABLES = {"runs.csv", "scores.csv", "scores.md", "scores.tex"}
NASTY = "</script><img src=x onerror=alert(1)>"


def test_a_page_figures_and_tables_are_written(command, run_folder):
    folder = run_folder("mrpc", "svd")
    code, out, err = command("report", "outputs", "--output", "elsewhere/page")
    assert (code, err) == (0, "")
    assert "1 runs" in out
    output = Path("elsewhere/page")
    assert {path.name for path in output.iterdir()} == FIGURES | TABLES | {"index.html"}
    assert (output / "score.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert b"<svg" in (output / "score.svg").read_bytes()
    (run,) = read_data(output / "index.html")["runs"]
    assert (output / run["link"]).resolve() == folder.resolve()
    assert sum(run["bytes_by_part"].values()) == run["artifact_bytes"]


def test_figures_for_a_paper_fit_a_column_and_need_no_colours(command, run_folder):
    for codec in ("none", "lighttoken", "lighttoken_paper", "svd", "opq"):
        for ratio in (25.0, 103.0):
            run_folder("mrpc", codec, ratio)
    code, _, err = command("report", "outputs", "--style", "paper")
    assert (code, err) == (0, "")
    figures = {path.name: path for path in Path("outputs/report/paper").iterdir()}
    assert {"score_mrpc-minilm-l6-3-epochs.pdf", "score_mrpc-minilm-l6-3-epochs.svg", "spectrum.pdf"} <= set(figures)
    box = re.search(rb"/MediaBox \[ 0 0 ([\d.]+)", figures["score_mrpc-minilm-l6-3-epochs.pdf"].read_bytes())
    assert box is not None
    assert float(box[1]) == pytest.approx(3.3 * 72, abs=0.5)
    chart = score_chart(points(gather([Path("outputs")])))
    axes = draw_column(chart.panels[0], distinct_markers(chart)).axes[0]
    assert len(axes.get_title().splitlines()) == 1
    lines = [line for line in axes.get_lines() if line.get_linestyle() != "None"]
    assert {line.get_linewidth() for line in lines} == {1.0}
    markers = [line.get_marker() for line in lines if len(line.get_xdata()) == 2 and line.get_color() != "black"]
    assert len(set(markers)) == len(markers) == 4


def test_a_wandb_report_needs_a_key(command, monkeypatch, tmp_path):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.setenv("HOME", str(tmp_path))
    code, _, err = command("report", "--wandb", "me/lighttoken")
    assert code == 2
    assert err == "error: a W&B workspace needs a key: run wandb login, or set WANDB_API_KEY\n"


def test_text_of_records_cannot_become_a_part_of_the_page_and_nothing_is_fetched(run_folder):
    run_folder(NASTY.replace("/", "_"), NASTY, model=NASTY, error=NASTY, config={"codec": {"name": NASTY}})
    page = page_of(Path("outputs"))
    (run,) = read_data(page)["runs"]
    assert run["error"] == NASTY
    text = page.read_text().replace(get_plotlyjs(), "")
    assert "<img" not in text
    assert "default-src 'none'" in text
    assert "http://www.w3.org/2000/svg" in text
    assert text.count("http") == text.count("http://www.w3.org/2000/svg") + text.count("http-equiv")


@pytest.mark.slow
def test_500_runs_fit_into_8_megabytes(tmp_path):
    for i in range(500):
        codec = ("lighttoken_paper", "svd", "none")[i % 3]
        write_run(tmp_path, f"task{i % 9}", codec, 5.0 + i % 7, i)
    page = page_of(tmp_path)
    assert len(read_data(page)["runs"]) == 500
    assert page.stat().st_size < 8e6


def test_numbers_that_are_not_finite_are_null_on_the_page(run_folder):
    run_folder(metrics={"val/accuracy": float("nan"), "val/loss": float("inf")})
    (run,) = read_data(page_of(Path("outputs")))["runs"]
    assert run["score"] is None
    assert run["metrics"] == {"val/accuracy": None, "val/loss": None}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "there is no folder outputs; give the output_dir of your runs"),
        (["."], "there is no record.json under .; run python -m lighttoken.train first"),
    ],
)
def test_nothing_to_show_is_one_line(command, arguments, message):
    code, out, err = command("report", *arguments)
    assert (code, out, err) == (2, "", f"error: {message}\n")
    assert not list(Path().glob("*"))


@pytest.mark.parametrize("library", ["plotly", pytest.param("matplotlib", marks=pytest.mark.slow)])
def test_a_missing_library_is_named_with_its_cure(run_folder, library):
    """In a process of its own: a module that is imported a second time in this one would not be the package's."""
    run_folder()
    code = f"import sys; sys.modules[{library!r}] = None; from lighttoken.report import main; sys.argv[1:] = []; main()"
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert done.stderr == f"error: the report needs {library}; run pip install 'lighttoken[report]'\n"


def test_the_server_answers_requests_to_a_local_name_alone(tmp_path, capsys):
    page = tmp_path / "index.html"
    page.write_bytes(os.urandom(2_000_000))
    server = serve(tmp_path, 0)
    try:
        assert server.server_address[0] == "127.0.0.1"
        address = f"http://127.0.0.1:{server.server_port}/index.html"
        with urllib.request.urlopen(address) as response:
            assert response.read() == page.read_bytes()
        foreign = urllib.request.Request(address, headers={"Host": f"evil.example:{server.server_port}"})
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(foreign)
        for _ in range(4):  # browsers that leave before they have the whole page
            with socket.create_connection(server.server_address) as connection:
                connection.sendall(b"GET /index.html HTTP/1.1\r\nHost: localhost:1\r\n\r\n")
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        with urllib.request.urlopen(address) as response:
            assert response.status == 200
        assert capsys.readouterr().err == ""
    finally:
        server.shutdown()
        server.server_close()


def test_the_server_shows_nothing_outside_its_folder(tmp_path):
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "index.html").write_text("secret")
    served = tmp_path / "served"
    (served / "run").mkdir(parents=True)
    (served / "record.json").write_text("mine")
    (served / "alias.json").symlink_to("record.json")
    (served / "file").symlink_to(secret / "index.html")
    (served / "folder").symlink_to(secret)
    (served / "run/index.html").symlink_to(secret / "index.html")
    (served / "circle").symlink_to("circle")
    os.mkfifo(served / "pipe")
    server = serve(served, 0)

    def get(path: str) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=20)
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read()

    try:
        assert get("/record.json") == get("/alias.json") == (200, b"mine")
        assert get("/")[0] == 200
        for path in ("file", "folder", "folder/", "folder/index.html", "run/", "circle", "pipe", "%00", "missing"):
            status, content = get(f"/{path}")
            assert (path, status) == (path, 404)
            assert b"secret" not in content
        for path in ("/../secret/index.html", "/%2e%2e/secret/index.html", "//etc/passwd", "/run/../../secret/"):
            assert get(path)[0] == 404
    finally:
        server.shutdown()
        server.server_close()


def test_the_page_is_written_again_while_it_is_watched(run_folder, tmp_path):
    folder = run_folder(status="running")
    # A process that a shell starts in the background ignores Ctrl-C, unless it sets its own handler.
    code = """
import signal, lighttoken.dashboard.report, lighttoken.report
signal.signal(signal.SIGINT, signal.default_int_handler)
lighttoken.dashboard.report.WATCH_SECONDS = 0.2
lighttoken.report.main()
"""
    paths = [str(Path(__file__).parents[2]), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}
    arguments = [sys.executable, "-c", code, "outputs", "--watch"]
    process = subprocess.Popen(arguments, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert "1 runs" in process.stdout.readline()
        page = tmp_path / "outputs/report/index.html"
        data = read_data(page)
        assert (data["refresh"], data["runs"][0]["status"]) == (0.2, "running")
        record = json.loads((folder / "record.json").read_text())
        (folder / "record.json").write_text(json.dumps(record | {"status": "done"}))
        for _ in range(300):
            data = read_data(page)
            if data["runs"][0]["status"] == "done":
                break
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(0.1)
        assert data["runs"][0]["status"] == "done"
        process.send_signal(2)
        assert process.wait(60) == 0
        assert read_data(page)["refresh"] is None  # the last page does not reload itself
    finally:
        process.kill()
        process.wait()


def test_the_titles_of_neighbouring_panels_do_not_touch(tmp_path):
    for i in range(2):
        task = {"data_dir": f"/a/long/path/to/where/the/data/of/this/task/was/put/{i}", "batch_size": 16 + i}
        write_run(tmp_path, "cola", "svd", config={"task": task})
    figure = draw(score_chart(points(gather([tmp_path]))))
    figure.draw_without_rendering()
    left, right = (axes.title.get_window_extent() for axes in figure.axes)
    assert left.x1 < right.x0
