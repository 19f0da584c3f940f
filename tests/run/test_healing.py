"""Healing a backbone: the texts, the module, and both commands."""

import json
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForMaskedLM, AutoTokenizer, T5Config, T5Model

from lighttoken import LighttokenError, compress_model, compress_table, load_table, swap_embedding
from lighttoken.backbone.checkpoint import read_checkpoint
from lighttoken.backbone.loaded import LoadedBackbone
from lighttoken.backbone.source import Backbone
from lighttoken.run.healing import Healing, heal
from lighttoken.tasks.healer import Healer

QUICK = ["codec.state_bits=6", "codec/prior=zipf", "codec.error_metric_sequences=32", "ratio=2.5", "progress=false"]
SHORT = ["heal.steps=20", "heal.learning_rate=1e-3"]


@pytest.fixture
def corpus(tmp_path) -> Path:
    file = tmp_path / "corpus.txt"
    words = ["a", "bad", "film", "good", "great", "movie", "not", "plot", "the", "very", "was", "worst"]
    file.write_text("\n".join(" ".join(words[(i * k) % 12] for k in range(1, 9)) for i in range(300)))
    return file


@pytest.fixture
def rough(make_model):
    """A small model and a coarse table of it."""
    model = make_model()
    return model, compress_table(model.get_input_embeddings().weight.detach(), "svd", ratio=3, progress=False)


def test_a_healer_trains_all_but_the_table_and_leaves_the_original_alone(rough):
    model, compressed = rough
    healer = Healer(swap_embedding(model, compressed), AutoModel.from_config(model.config), 1e-3, 0.1)
    frozen = {name for name, parameter in healer.named_parameters() if not parameter.requires_grad}
    assert not [name for name in frozen if "word_embeddings" not in name]
    assert not [parameter for parameter in healer.original.parameters() if parameter.requires_grad]
    assert not [name for name, _ in healer.named_parameters() if name.startswith("original")]
    assert not healer.model.training  # no dropout


def test_the_loss_is_the_error_of_real_tokens_over_their_variance_averaged_over_layers(make_model):
    model, original = (make_model(num_hidden_layers=2) for _ in range(2))
    healer = Healer(model, original, 1e-3, 0.1)
    ids, mask = torch.arange(1, 13).view(2, 6), torch.tensor([[1] * 6, [1] * 4 + [0] * 2])
    loss = healer.training_step({"input_ids": ids, "attention_mask": mask, "labels": torch.tensor([0, 1])}, 0)
    layers = [part(ids, mask, output_hidden_states=True).hidden_states for part in (model, original)]
    errors = []
    for ours, theirs in zip(*layers, strict=True):
        ours, theirs = ours[mask.bool()], theirs[mask.bool()]
        errors.append(float((ours - theirs).square().sum() / (theirs - theirs.mean(0)).square().sum()))
    assert loss.item() == pytest.approx(sum(errors[1:]) / 2)


@pytest.mark.parametrize("texts", [pytest.param("prior", marks=pytest.mark.slow), "corpus", "model"])
def test_hidden_states_come_nearer_on_held_out_texts(make_model, tokenizer, corpus, texts):
    model = make_model("bert", AutoModelForMaskedLM)
    backbone = LoadedBackbone(model, tokenizer)
    compressed = compress_table(model.get_input_embeddings().weight.detach(), "svd", ratio=3, progress=False)
    healing = Healing(texts, file=str(corpus), length=8, count=256, steps=60, batch_size=8, learning_rate=3e-3)
    healed = heal(backbone, compressed, healing, accelerator="cpu")
    assert 1 - healed.summary["cosine"] < 0.9 * (1 - healed.summary["cosine_before"])
    assert healed.parameters.keys() < {name for name, _ in model.base_model.named_parameters()}
    assert "embeddings.word_embeddings.weight" not in healed.parameters
    again = heal(backbone, compressed, healing, accelerator="cpu")
    assert all(torch.equal(value, healed.parameters[name]) for name, value in again.parameters.items())


def test_a_corpus_of_few_texts_is_read_again_and_an_empty_one_refused(make_model, tokenizer, tmp_path):
    model = make_model()
    compressed = compress_table(model.get_input_embeddings().weight.detach(), "svd", ratio=3, progress=False)
    (tmp_path / "short.txt").write_text("the very good film was not bad\nthe plot was bad\n" * 2)
    healing = Healing("corpus", file=str(tmp_path / "short.txt"), length=4, steps=5, batch_size=2)
    assert heal(LoadedBackbone(model, tokenizer), compressed, healing, accelerator="cpu").summary["steps"] == 5
    (tmp_path / "empty.txt").write_text("the film\n")
    with pytest.raises(LighttokenError, match="empty.txt has 1 texts; use a larger corpus"):
        heal(
            LoadedBackbone(model, tokenizer),
            compressed,
            Healing("corpus", file=str(tmp_path / "empty.txt"), length=4),
            accelerator="cpu",
        )


def test_no_piece_of_a_held_out_text_is_trained_on(make_model, tokenizer, tmp_path):
    lines = [" ".join([f"word{i} film"] * 6) for i in (*range(20), *range(20))]  # every text twice
    (tmp_path / "corpus.txt").write_text("\n".join(lines))
    healing = Healing("corpus", file=str(tmp_path / "corpus.txt"), length=4, batch_size=2)
    sides = []
    for part in healing.loaders(LoadedBackbone(make_model(), tokenizer), None, seed=0):
        texts = " ".join(tokenizer.batch_decode([ids.tolist() for ids in part.dataset]))
        sides.append({word for word in texts.split() if word.startswith("word")})
    assert sides[0] | sides[1] == {f"word{i}" for i in range(20)}
    assert not sides[0] & sides[1]


def test_texts_longer_than_the_model_takes_are_refused(rough, tokenizer):
    model, compressed = rough
    with pytest.raises(LighttokenError, match=r"heal.length=39 makes texts of 41 tokens and .* set heal.length=38"):
        heal(LoadedBackbone(model, tokenizer), compressed, Healing("prior", length=39), accelerator="cpu")


def test_an_encoder_decoder_is_refused(rough, tokenizer):
    model = T5Model(T5Config(vocab_size=200, d_model=32, d_kv=16, d_ff=32, num_layers=1, num_heads=2))
    with pytest.raises(LighttokenError, match="an encoder-decoder cannot be healed yet; leave out heal="):
        heal(LoadedBackbone(model, tokenizer), rough[1], Healing("prior"))


def test_a_number_out_of_range_and_a_missing_file_are_named():
    with pytest.raises(LighttokenError, match=r"^heal.steps is 0; it must be 1 or above$"):
        Healing("prior", steps=0)
    with pytest.raises(LighttokenError, match=r"^heal.file=nowhere.txt is no file; set heal.file=FILE to a corpus$"):
        Healing("corpus", file="nowhere.txt")


def test_a_model_in_memory_is_healed_too(make_model, tokenizer, corpus):
    original, model = make_model(), make_model()
    model.load_state_dict(original.state_dict())
    healing = Healing("corpus", file=str(corpus), length=8, steps=20, batch_size=8, learning_rate=1e-3)
    compress_model(model, tokenizer, ratio=3, codec="svd", progress=False, healing=healing)
    assert model.config.healing["cosine"] > model.config.healing["cosine_before"]
    attention = [part.encoder.layer[0].attention.self.query.weight for part in (model, original)]
    assert not torch.equal(*attention)
    model.save_pretrained("saved")
    assert AutoModel.from_pretrained("saved").config.healing == model.config.healing


# ---- the compress command


def test_a_healed_checkpoint_has_the_same_table_and_nearer_hidden_states(command, checkpoint, corpus):
    source = checkpoint()
    for output, more in (("plain", []), ("healed", ["heal=corpus", f"heal.file={corpus}", "heal.length=8", *SHORT])):
        arguments = [f"model.path={source}", f"output={output}", "checkpoint=true", "codec=svd", "ratio=3", *more]
        code, out, err = command("compress", *arguments)
        assert code == 0, err
    assert "20 steps on texts of corpus.txt, cosine of hidden states" in " ".join(out.replace("│", " ").split())
    plain, healed = read_checkpoint(Path("plain")), read_checkpoint(Path("healed"))
    assert all(torch.equal(plain.tensors[name], healed.tensors[name]) for name in plain.tensors)
    summary = json.loads(Path("healed/config.json").read_text())["healing"]
    assert (summary["texts"], summary["file"], summary["steps"]) == ("corpus", "corpus.txt", 20)
    assert len(summary["file_sha256"]) == 64
    assert "healing" not in json.loads(Path("plain/config.json").read_text())

    batch = AutoTokenizer.from_pretrained("healed")(["a bad film", "the very great movie was not"], padding=True)
    batch = {name: torch.tensor(values) for name, values in batch.items()}

    def error(folder: str) -> float:
        with torch.no_grad():
            models = (AutoModel.from_pretrained(path) for path in (folder, source))
            ours, original = (model(**batch).last_hidden_state for model in models)
        return float((ours - original)[batch["attention_mask"].bool()].square().mean())

    assert error("healed") < error("plain")
    code, out, _ = command("show", "healed")
    assert code == 0
    assert "20 steps on texts of corpus.txt" in " ".join(out.replace("│", " ").split())


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["heal=prior"], "heal=prior adapts the backbone, and an artifact is the table; add checkpoint=true"),
        (
            ["heal=task", "checkpoint=true"],
            "heal=task reads the rows of a task, and this command has no task; choose heal=prior",
        ),
        (["heal=corpus", "checkpoint=true"], "missing heal.file; add heal.file=VALUE to the command"),
        (
            ["heal=corpus", "heal.file=no.txt", "checkpoint=true"],
            "heal.file=no.txt is no file; set heal.file=FILE to a corpus",
        ),
    ],
)
def test_what_cannot_be_healed_is_refused_before_any_work(command, checkpoint, arguments, line):
    code, _, err = command("compress", f"model.path={checkpoint()}", "output=packed", *QUICK, *arguments)
    assert (code, err.strip().splitlines()[-1]) == (2, f"error: {line}")
    assert not Path("packed").exists()


# ---- the train command


@pytest.fixture
def train(command, checkpoint, sst2):
    """Runs the train command on small data; returns what it printed and logged, and the record."""

    def run(*arguments: str) -> tuple[str, dict]:
        before = set(Path().glob("outputs/runs/*"))
        data = ["task=sst2", f"task.data_dir={sst2}", f"model.path={checkpoint()}", "trainer.accelerator=cpu"]
        coarse = ["codec=svd", "ratio=3", "progress=false", "trainer.max_epochs=1"]
        code, out, err = command("train", *data, *coarse, *arguments)
        assert code == 0, err
        (folder,) = set(Path().glob("outputs/runs/*")) - before
        return out + (folder / "train.log").read_text(), json.loads((folder / "record.json").read_text())

    return run


def test_a_run_heals_once_and_is_compared_with_the_uncompressed_one(train):
    train("codec=none")
    _, plain = train()
    out, record = train("heal=task", *SHORT)
    assert "retention of val/accuracy" in out
    assert "20 steps on texts of task, cosine of hidden states" in " ".join(out.replace("│", " ").split())
    assert record["healing"]["cosine"] > record["healing"]["cosine_before"]
    assert record["seconds"].keys() == plain["seconds"].keys() | {"heal"}
    assert (record["artifact"], record["ratio"]) == (plain["artifact"], plain["ratio"])  # the same table
    assert record["metrics"] != plain["metrics"]
    (file,) = Path("outputs/healed").iterdir()
    out, again = train("heal=task", *SHORT)
    assert (again["metrics"], again["healing"]) == (record["metrics"], record["healing"])
    assert f"reusing the healed backbone {file}" in out
    file.write_bytes(file.read_bytes()[:100])
    out, again = train("heal=task", *SHORT)
    assert again["metrics"] == record["metrics"]
    assert f"healing again: {file} is damaged" in out


def test_a_run_heals_in_its_precision(train):
    exact, rounded = (
        train("heal=task", *SHORT, *more)[1]["healing"]["cosine"] for more in ([], ["trainer.precision=bf16-mixed"])
    )
    assert rounded == pytest.approx(exact, abs=1e-4)
    first, second = (load_file(file) for file in Path("outputs/healed").iterdir())
    assert any(not torch.equal(first[name], second[name]) for name in first)


def test_other_rows_are_healed_on_anew(train):
    train("heal=task", "heal.steps=2")
    train("heal=task", "heal.steps=2", "task.train_rows=40")
    assert len(list(Path("outputs/healed").iterdir())) == 2


def test_an_uncompressed_run_has_nothing_to_heal(train):
    out, record = train("codec=none", "heal=task", *SHORT)
    assert record["healing"] == {}
    assert "codec=none has nothing to heal" in out


def test_a_healed_model_is_compared_with_the_original_one(command, checkpoint, sst2, tmp_path):
    """A task without training scores the model beside the original, whose weights healing must not change."""
    pairs = {"sentence1": ["a bad film", "the plot"], "sentence2": ["a bad movie", "very good"], "label": [4.0, 1.0]}
    Dataset.from_dict(pairs).to_parquet(tmp_path / "pairs.parquet")
    data = ["task=sts", f"task.file={tmp_path / 'pairs.parquet'}", f"model.path={checkpoint()}"]
    arguments = [*data, *QUICK, "trainer.accelerator=cpu", "heal=prior", "heal.length=8", *SHORT]
    code, _, err = command("train", *arguments)
    assert code == 0, err
    code, _, err = command("train", *data, *QUICK, "trainer.accelerator=cpu", "heal=task")
    assert code == 2
    assert err.strip().endswith("heal=task reads training rows and task=sts has none; set heal=corpus heal.file=F")


def test_a_run_on_a_healed_checkpoint_says_so(command, checkpoint, corpus, train):
    healed = ["checkpoint=true", "heal=corpus", f"heal.file={corpus}", "heal.length=8", *SHORT]
    code, _, err = command("compress", f"model.path={checkpoint()}", "output=healed", "codec=svd", "ratio=3", *healed)
    assert code == 0, err
    out, record = train("model.path=healed", "codec=stored", "trainer.max_epochs=0")
    assert record["healing"] == json.loads(Path("healed/config.json").read_text())["healing"]
    assert "20 steps on texts of corpus.txt" in " ".join(out.replace("│", " ").split())


def test_a_body_of_another_run_is_not_healed_over(command, checkpoint, sst2):
    data = ["task=sst2", f"task.data_dir={sst2}", f"model.path={checkpoint()}"]
    code, _, err = command("train", *data, *QUICK, "heal=task", "init_from=somewhere")
    assert code == 2
    assert "init_from=somewhere brings a body of its own; leave out heal=" in err


def test_a_healed_artifact_is_the_artifact(train):
    _, record = train("heal=task", "heal.steps=2")
    backbone = Backbone("tiny", path=record["config"]["model"]["path"])
    compressed = load_table(Path(record["artifact"]), backbone.tokenizer())
    assert compressed.shape == (200, 32)
