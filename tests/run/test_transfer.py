import json
from pathlib import Path

import pytest
from transformers import AutoModelForSequenceClassification

from lighttoken.errors import LighttokenError
from lighttoken.run.transfer import load_body, load_teacher


@pytest.fixture
def kept(make_model, tmp_path) -> Path:
    """The folder of a run that kept its model."""
    folder = tmp_path / "run"
    make_model().save_pretrained(folder / "model")
    record = {"task": "sst2", "status": "done", "codec": "none", "config": {"codec": {}}, "metrics": {}, "started": ""}
    (folder / "record.json").write_text(json.dumps(record))
    return folder


def test_a_teacher_is_the_model_of_the_run(kept, make_model):
    assert type(load_teacher(make_model(), kept, "sst2")) is type(make_model())


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("[" * 100_000, "it is nested more than 30 deep"),
        ('{"task": "sst2"}', "it lacks codec, config, metrics, started, status"),
        ("", "it is no JSON: Expecting value: line 1 column 1 (char 0)"),
    ],
)
def test_a_teacher_with_an_odd_record_is_refused_in_one_line(kept, make_model, content, reason):
    (kept / "record.json").write_text(content)
    with pytest.raises(LighttokenError) as caught:
        load_teacher(make_model(), kept, "sst2")
    assert str(caught.value) == (
        f"distill={kept} cannot be read ({reason}); run it again with save_model=true, or choose another"
    )


def test_a_run_with_damaged_weights_is_refused_in_one_line(kept, make_model):
    (file,) = (kept / "model").glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(LighttokenError, match=r"^distill=.* cannot be read .*; run it again with save_model=true"):
        load_teacher(make_model(), kept, "sst2")
    with pytest.raises(LighttokenError, match=r"^init_from=.* cannot be read .*; run it again with save_model=true"):
        load_body(make_model(), kept)


def test_a_run_of_another_vocabulary_is_refused_though_its_body_fits(kept, make_model):
    other = make_model(vocab_size=150)
    with pytest.raises(LighttokenError, match="its vocabulary has 200 tokens and this one 150; choose a run of the"):
        load_body(other, kept)


def test_a_teacher_of_other_classes_is_refused(kept, make_model):
    teacher, student = (
        make_model(auto_class=AutoModelForSequenceClassification, id2label=dict(enumerate(names)))
        for names in (("no", "yes"), ("bad", "good"))
    )
    teacher.save_pretrained(kept / "model")
    with pytest.raises(LighttokenError, match="answers with no, yes and this task has bad, good; choose a run of the"):
        load_teacher(student, kept, "sst2")
