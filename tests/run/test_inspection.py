from dataclasses import replace
from pathlib import Path

import pytest

from lighttoken import LighttokenError, load_table
from lighttoken.run.inspection import show

SAMPLE = Path(__file__).parents[1] / "samples/format_4/codebooks"


def test_text_of_an_artifact_is_no_command_to_the_terminal(tmp_path, capsys):
    compressed = load_table(SAMPLE)
    replace(compressed, settings={"prior": "\x1b[2J[red]text", "a\x07": "x" * 10_000}).save(tmp_path / "artifact")
    assert show(tmp_path / "artifact")
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "\x07" not in out
    assert "[2J[red]text" in out
    assert out.count("x") < 1200


def test_the_folder_of_a_run_points_to_its_model(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").write_text("{}")
    with pytest.raises(LighttokenError, match="is the folder of a run; show its model, .*/model$"):
        show(tmp_path)


@pytest.mark.parametrize(
    "odd", [{"tier_bits": 1, "tier_rows": [1]}, {"tier_bits": [1], "tier_rows": []}, {"tier_bits": ["a"]}]
)
def test_an_artifact_with_an_odd_summary_is_named_in_one_line(tmp_path, odd):
    compressed = load_table(SAMPLE)
    replace(compressed, summary=odd).save(tmp_path / "artifact")
    with pytest.raises(
        LighttokenError, match=rf"^{tmp_path}/artifact/compressed_table.json is damaged .*; make it again$"
    ):
        show(tmp_path / "artifact")
