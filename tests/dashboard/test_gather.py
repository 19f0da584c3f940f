import json
import math
from pathlib import Path

import pytest

from lighttoken.dashboard.charts import BOUND, PAPER, make_charts, score_chart
from lighttoken.dashboard.curves import CURVE_POINTS
from lighttoken.dashboard.gather import artifacts, gather, points
from lighttoken.dashboard.report import write_report
from lighttoken.dashboard.style import INK, OTHERS, OURS, style
from tests.dashboard.conftest import read_data


def scored(score: float) -> dict:
    return {"metrics": {"val/accuracy": score, "val/f1": score, "val/loss": 9.0}}


def point_of(runs, codec, **properties):
    (point,) = [
        point
        for point in points(runs)
        if point.run.codec == codec and all(getattr(point.run, name) == value for name, value in properties.items())
    ]
    return point


def test_a_point_is_the_latest_run_of_each_seed(run_folder, tmp_path):
    run_folder("mrpc", "svd", 25.0, 0, started="2026-01-01", **scored(0.1))
    run_folder("mrpc", "svd", 25.0, 0, started="2026-01-02", **scored(0.5))
    run_folder("mrpc", "svd", 25.0, 1, **scored(0.7))
    run_folder("mrpc", "svd", 25.0, 2, "failed")
    run_folder("mrpc", "svd", 5.0, 0, **scored(0.9))
    point = point_of(gather([tmp_path / "outputs"]), "svd", ratio=25.0)
    assert sorted(point.scores) == [0.5, 0.7]
    assert point.mean == pytest.approx(0.6)
    assert point.std == pytest.approx(math.sqrt(0.02))


def test_retention_is_against_the_better_reference_of_the_same_seed_and_recipe(run_folder, tmp_path):
    trained = {"config": {"finetune": {"learning_rate": 5e-5, "weight_decay": 0.01, "trainable": "decoder"}}}
    other = {"config": {"finetune": {"learning_rate": 1.0, "weight_decay": 0.01, "trainable": "frozen"}}}
    for seed, frozen, better in ((0, 0.5, 0.8), (1, 0.6, 0.9)):
        run_folder("mrpc", "none", seed=seed, **scored(frozen))
        run_folder("mrpc", "none", seed=seed, **scored(better), **trained)
        run_folder("mrpc", "none", seed=seed, **scored(1.0), **other)
    run_folder("mrpc", "none", seed=0, **scored(1.0), backbone_precision="int8", config={"backbone_precision": "int8"})
    run_folder("mrpc", "svd", 25.0, 0, **scored(0.72))
    run_folder("mrpc", "svd", 25.0, 1, **scored(0.72))
    runs = gather([tmp_path / "outputs"])
    point = point_of(runs, "svd")
    # By hand: the retention r is 0.72 / 0.85; the residuals 0.72 - r * 0.8 and 0.72 - r * 0.9 differ by 0.1 r.
    assert point.retention["retention"] == pytest.approx(0.72 / 0.85)
    assert point.retention["standard_error"] == pytest.approx(0.1 * (0.72 / 0.85) / 2 / 0.85)
    assert sorted(run.retention for run in runs if run.codec == "svd") == pytest.approx([0.8, 0.9])
    chart = score_chart(points(runs))
    lines = [series for panel in chart.panels for series in panel.series if series.label == "uncompressed"]
    assert sorted(line.y[0] for line in lines) == pytest.approx([0.85, 1.0])  # a panel for each recipe
    assert lines[0].colour == INK


def test_runs_of_one_codec_are_labelled_with_the_settings_that_differ(run_folder, tmp_path):
    for precision in ("int8", "float16"):
        run_folder("mrpc", "svd", config={"codec": {"name": "svd", "coefficient_precision": precision}})
    run_folder("mrpc", "pq")
    labels = {run.label for run in gather([tmp_path / "outputs"])}
    assert labels == {"svd (coefficient_precision=int8)", "svd (coefficient_precision=float16)", "pq"}


def test_a_distilled_run_has_a_label_of_its_own_and_is_no_reference(run_folder, tmp_path):
    run_folder("mrpc", "none", **scored(0.5))
    run_folder("mrpc", "none", **scored(0.9), config={"distill": "somewhere"})
    run_folder("mrpc", "svd", **scored(0.4))
    run_folder("mrpc", "svd", **scored(0.6), config={"distill": "somewhere", "save_model": True})
    retained = {run.label: run.retention for run in gather([tmp_path / "outputs"]) if run.codec == "svd"}
    assert retained == pytest.approx({"svd (distilled=false)": 0.8, "svd (distilled=true)": 1.2})


def test_runs_that_start_from_runs_of_other_codecs_are_no_seeds_of_each_other(run_folder, tmp_path):
    for codec in ("none", "lighttoken"):
        for seed in (0, 1):
            source = run_folder(
                "mnli", codec, seed=seed, **scored(0.7), config={"task": {"name": "mnli", "train_rows": 9}}
            )
            run_folder("rte", "lighttoken", seed=seed, **scored(0.6 - 0.1 * seed), config={"init_from": str(source)})
    started = [point for point in points(gather([tmp_path / "outputs"])) if point.run.record["task"] == "rte"]
    assert {point.run.label: len(point.scores) for point in started} == {
        "lighttoken (init_from=mnli none train_rows=9)": 2,
        "lighttoken (init_from=mnli lighttoken 25x train_rows=9)": 2,
    }


def test_a_reference_started_from_the_task_that_its_run_started_from(run_folder, tmp_path):
    for source, score in (("mnli", 0.85), ("sst2", 0.8)):
        for codec in ("none", "lighttoken"):
            start = run_folder(source, codec, **scored(0.9))
            run_folder("mrpc", codec, **scored(score), config={"init_from": str(start)})
    kept = {run.title: run.retention for run in gather([tmp_path / "outputs"]) if run.record["task"] == "mrpc"}
    assert kept == {"mrpc, minilm_l6, 3 epochs, init_from=mnli": 1.0, "mrpc, minilm_l6, 3 epochs, init_from=sst2": 1.0}


def test_runs_of_two_versions_are_no_seeds_of_each_other(run_folder, tmp_path):
    for seed, version in enumerate(("0.1.0", "0.2.0")):
        run_folder("mrpc", "lighttoken", seed=seed, **scored(0.8), versions={"lighttoken": version})
    labels = {point.run.label for point in points(gather([tmp_path / "outputs"]))}
    assert labels == {"lighttoken (version=0.1.0)", "lighttoken (version=0.2.0)"}


@pytest.mark.parametrize("odd", ["a\0b", "\ud800", 7.5, ["x"], {"a": 1}, True, "gone/run"])
def test_a_run_that_starts_from_what_is_no_run_is_shown(odd, run_folder, tmp_path):
    run_folder("rte", "lighttoken", **scored(0.6), config={"init_from": odd})
    run_folder("rte", "lighttoken", seed=1, **scored(0.6), config={"init_from": None})
    labels = {run.label for run in gather([tmp_path / "outputs"])}
    assert labels == {"lighttoken (init_from=true)", "lighttoken (init_from=false)"}


def test_recipes_are_not_mixed(run_folder, tmp_path):
    run_folder("mrpc", "svd", **scored(0.5))
    run_folder("mrpc", "svd", seed=1, **scored(0.7), config={"trainer": {"max_epochs": 1, "gradient_clip_val": 1.0}})
    runs = gather([tmp_path / "outputs"])
    assert {run.recipe for run in runs} == {"max_epochs=3", "max_epochs=1"}
    assert sorted(point.mean for point in points(runs)) == [0.5, 0.7]
    assert len(score_chart(points(runs)).panels) == 2


def test_what_cuts_a_run_short_stands_in_every_heading(run_folder):
    cuts = {"limit_rows": 2000, "trainer": {"max_epochs": 1, "max_steps": -1, "limit_train_batches": 1}}
    for codec in ("none", "svd"):
        run_folder("mrpc", codec, config=cuts | {"task": {"name": "mrpc", "limit_rows": 2000, "train_rows": None}})
        run_folder("cola", codec, config={"limit_rows": None, "trainer": {"max_epochs": 3, "max_steps": -1}})
    runs = gather([Path("outputs")])
    titles = {run.record["task"]: run.title for run in runs}
    assert titles["cola"] == "cola, minilm_l6, 3 epochs"
    assert titles["mrpc"] == "mrpc, minilm_l6, 1 epoch, limit_rows=2000, limit_train_batches=1"
    write_report(runs, Path("report"), None, None)
    svg, markdown, latex = (Path("report", name).read_text() for name in ("score.svg", "scores.md", "scores.tex"))
    assert all("1 epoch, limit_rows=2000" in text for text in (svg.replace("\n", " "), markdown))
    assert r"1 epoch, limit\_rows=2000" in latex
    assert {answer["title"] for answer in read_data(Path("report/index.html"))["answers"]} == {*titles.values()}


def test_a_whole_number_is_the_same_setting_in_both_spellings(run_folder):
    for seed, decay in enumerate((0, 0.0)):
        settings = {"config": {"finetune": {"learning_rate": 5e-5, "weight_decay": decay, "trainable": "frozen"}}}
        run_folder("cola", "none", seed=seed, **settings)
        run_folder("cola", "svd", seed=seed, **settings)
    for point in points(gather([Path("outputs")])):
        assert len(point.scores) == 2
        assert "weight_decay" not in point.run.title


def test_a_class_that_moves_to_another_module_is_the_same_setting(run_folder, tmp_path):
    for module in ("finetune", "tasks.finetuner"):
        config = {"finetune": {"_target_": f"lighttoken.{module}.FineTuner"}, "trainer": {"max_epochs": 3}}
        codec = {"name": "svd", "_target_": f"lighttoken.{module}.Codec"}
        run_folder("mrpc", "none", **scored(0.5), config=config)
        run_folder("mrpc", "svd", **scored(0.4), config=config | {"codec": codec})
    runs = gather([tmp_path / "outputs"])
    assert {(run.label, run.recipe) for run in runs} == {("none", ""), ("svd", "")}
    samples = gather([Path(__file__).parents[1] / "samples/records"])  # from an earlier version
    assert [run.retention for run in samples] == [1.0, 1.0]


def test_runs_on_different_kinds_of_device_are_no_pairs(run_folder, tmp_path):
    for device, uncompressed in (("none", 0.5), ("NVIDIA H200", 0.8)):
        run_folder("mrpc", "none", **scored(uncompressed), hardware={"accelerator": device})
    run_folder("mrpc", "svd", **scored(0.4), hardware={"accelerator": "none"})
    runs = gather([tmp_path / "outputs"])
    assert {run.recipe for run in runs} == {"accelerator=none", "accelerator=NVIDIA H200"}
    assert [run.retention for run in runs if run.codec == "svd"] == [pytest.approx(0.8)]


def test_folders_that_overlap_give_each_run_once_and_odd_records_are_left_out(run_folder, tmp_path, caplog):
    run_folder("mrpc", "svd")
    odd = run_folder("mrpc", "pq")
    record = json.loads((odd / "record.json").read_text())
    (odd / "record.json").write_text(json.dumps(record | {"metrics": [1]}))
    bare = run_folder("mrpc", "rq")  # as of an earlier version
    record = json.loads((bare / "record.json").read_text())
    del record["table"], record["compression"]["nmse_by_frequency_tenth"], record["git_commit"]
    (bare / "record.json").write_text(json.dumps(record))
    (bare / "metrics.csv").write_bytes(b"\xff\x00broken")
    runs = gather([tmp_path / "outputs", tmp_path, tmp_path / "outputs"])
    assert {run.codec for run in runs} == {"svd", "rq"}
    assert f"left out {odd.resolve() / 'record.json'}: metrics is [1]; expected a mapping" in caplog.text
    assert len(make_charts(runs)) == 5


def test_curves_are_thinned_and_have_numbers_alone(run_folder, tmp_path):
    folder = run_folder("mrpc", "svd")
    lines = [f"{step},{0.5 if step else 'nan'},{step if step == 999 else ''}" for step in range(1000)]
    (folder / "metrics.csv").write_text("\n".join(["step,train/loss,val/accuracy", *lines, "1000,0.25"]))
    (run,) = gather([tmp_path / "outputs"])
    assert len(run.curves["train/loss"]) == CURVE_POINTS
    assert (run.curves["train/loss"][0], run.curves["train/loss"][-1]) == ((1.0, 0.5), (1000.0, 0.25))
    assert run.curves["val/accuracy"] == [(999.0, 999.0)]


def test_an_artifact_that_many_tasks_share_counts_once(run_folder, tmp_path):
    for task in ("mrpc", "cola"):
        run_folder(task, "svd", artifact="same")
    run_folder("mrpc", "svd", 25.0, 1, artifact="other")
    run_folder("mrpc", "none")
    assert len(artifacts(gather([tmp_path / "outputs"]))) == 2


def test_tables_of_two_folders_of_one_name_are_two(run_folder, tmp_path):
    for run in ("a", "b"):
        model = {"_target_": "lighttoken.backbone.source.Backbone", "name": "model", "path": f"/runs/{run}/model"}
        run_folder("cola", "svd", config={"model": model})
    runs = gather([tmp_path / "outputs"])
    assert sorted(run.table_label for run in artifacts(runs)) == [
        "svd (path=/runs/a/model)",
        "svd (path=/runs/b/model)",
    ]


def test_variants_of_a_codec_share_a_colour_alone_and_an_artifact_is_drawn_once(run_folder):
    heal = {"texts": "corpus", "steps": 900}
    for ratio in (25.0, 103.0):
        run_folder("mrpc", "lighttoken", ratio, artifact=f"artifacts/{ratio}")
    run_folder("mrpc", "lighttoken", 103.0, config={"heal": heal}, artifact="artifacts/103.0")
    run_folder("mrpc", "lighttoken", 103.0, config={"backbone_precision": "int8"}, artifact="copy/of/artifacts/103.0")
    score, distortion, *_ = make_charts(gather([Path("outputs")]))
    lines = [line for line in score.panels[0].series if line.label != PAPER]
    assert [line.label for line in lines] == [
        "lighttoken (backbone_precision=float32, heal=corpus)",
        "lighttoken (backbone_precision=float32, heal=none)",
        "lighttoken (backbone_precision=int8, heal=none)",
    ]
    assert len({line.colour for line in lines}) == 1
    assert len({line.marker for line in lines}) == len({line.dash for line in lines}) == 3
    assert lines[1].width > 2  # the one of the most runs
    tables = [line for line in distortion.panels[0].series if line.label != BOUND]
    assert [(line.label, len(line.x)) for line in tables] == [("lighttoken", 2)]
    assert all(note.startswith("n = 1") for note in tables[0].notes)


def test_stages_follow_each_other(run_folder, tmp_path):
    run_folder("mrpc", "lighttoken_paper")
    chart = make_charts(gather([tmp_path / "outputs"]))[-1]
    assert chart.name == "training"
    for panel in chart.panels:
        assert [series.label for series in panel.series] == ["stage 1", "stage 2", "stage 3"]
        assert [(series.x[0], series.x[-1]) for series in panel.series] == [(0, 1000), (1000, 2000), (2000, 3000)]


def test_every_codec_has_a_look_of_its_own():
    codecs = [(codec, variant) for codec in (*OURS, *OTHERS) for variant in range(6)]
    looks = [tuple(style(*codec)[part] for part in ("colour", "marker", "dash")) for codec in [*codecs, ("none", 0)]]
    assert len(set(looks)) == len(looks)
    assert style("unheard_of") == style("unheard_of")


@pytest.mark.parametrize(
    "odd",
    [
        {"ratio_asked": "25"},
        {"ratio": math.inf},
        {"config": {"finetune": "x"}},
        {"table": [1]},
        {"table": {"rows": 1}},
        {"table": {"singular_values": {"index": [0], "value": [1.0, 2.0]}}},
        {"table": {"singular_values": {"index": [0], "value": [1.0]}, "gaussian_bound": None}},
        {"compression": {"nmse": math.inf}},
        {"compression": {"nmse": 0.1, "weighted_nmse": None}},
        {"compression": {"nmse": 0.1, "nmse_by_frequency_tenth": [0.1]}},
        {"seconds": {"finetune": None}},
    ],
)
def test_a_record_of_odd_content_is_left_out_alone(run_folder, tmp_path, caplog, odd):
    run_folder("mrpc", "svd", **scored(0.5))
    run_folder("mrpc", "pq", **scored(0.5), **odd)
    (run,) = gather([tmp_path / "outputs"])
    assert run.codec == "svd"
    assert "left out" in caplog.text


def test_a_healed_backbone_stands_beside_the_one_as_it_was(run_folder):
    heal = {"_target_": "lighttoken.run.healing.Healing", "texts": "corpus", "file": "a.txt", "steps": 900}
    run_folder("mrpc", "none", metrics={"val/accuracy": 0.8})
    run_folder("mrpc", "none", seed=1, metrics={"val/accuracy": 0.8}, config={"heal": heal})
    run_folder("mrpc", "lighttoken", metrics={"val/accuracy": 0.6}, config={"heal": {}})
    run_folder("mrpc", "lighttoken", metrics={"val/accuracy": 0.7}, config={"heal": heal})
    found = {point.run.label: point.retention["retention"] for point in points(gather([Path("outputs")]))}
    assert found == {
        "none": 1.0,
        "lighttoken (heal=none)": pytest.approx(0.75),
        "lighttoken (heal=corpus)": pytest.approx(0.875),
    }
    run_folder("mrpc", "lighttoken", metrics={"val/accuracy": 0.75}, config={"heal": heal | {"steps": 100}})
    run_folder("mrpc", "lighttoken", metrics={"val/accuracy": 0.72}, config={"heal": heal | {"texts": "prior"}})
    assert {point.run.label for point in points(gather([Path("outputs")]))} == {
        "none",
        "lighttoken (heal=none)",
        "lighttoken (heal=corpus, steps=100)",
        "lighttoken (heal=corpus, steps=900)",
        "lighttoken (heal=prior, steps=900)",
    }
