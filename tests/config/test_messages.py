import pytest

from lighttoken.config.schema import choices


def test_an_experiment_file_with_a_misspelt_key_is_refused(tmp_path, command):
    folder = tmp_path / "mine" / "experiment"
    folder.mkdir(parents=True)
    (folder / "typo.yaml").write_text("# @package _global_\nfinetune:\n  learning_rat: 1.0\n")
    code, _, err = command("train", "--config-dir", str(folder.parent), "+experiment=typo")
    assert (code, err) == (2, "error: unknown key finetune.learning_rat; did you mean finetune.learning_rate?\n")
    (folder / "typo.yaml").write_text("# @package _global_\nrato: 3\n")
    code, _, err = command("train", "--config-dir", str(folder.parent), "+experiment=typo")
    assert code == 2
    assert "rato" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["model=a/b"], "model=a/b is no config; for a checkpoint of the hub write model.hub_id=a/b"),
        (["model=bertt"], f"unknown model 'bertt'; choose one of {', '.join(choices('model'))}"),
        (["codec=huffman"], f"unknown codec 'huffman'; choose one of {', '.join(choices('codec'))}"),
        (["task=sst3"], f"unknown task 'sst3'; choose one of {', '.join(choices('task'))}"),
        (["+experiment=nope"], f"unknown experiment 'nope'; choose one of {', '.join(choices('experiment'))}"),
        (["experiment=quickstart"], "an experiment is added, not overridden: write +experiment=NAME"),
        (["rato=3"], "unknown key rato; did you mean ratio?"),
        (["codec.tires=3"], "unknown key codec.tires; did you mean codec.tiers?"),
        (["codec/prior=books"], "unknown codec/prior 'books'; choose one of corpus, uniform, wordfreq, zipf"),
        (["codec/prior=corpus"], "missing codec.prior.file; add codec.prior.file=VALUE to the command"),
        (["codec.prior.exponent=-1"], "prior.exponent is -1; it must be 0 or above, for example 0.45"),
        (
            ["codec=lighttoken_paper", "codec/schedule=square"],
            "unknown codec/schedule 'square'; choose one of cosine, exponential, linear",
        ),
        (["codec.prior=zipf"], "codec.prior=zipf names a config of a group: write codec/prior=zipf"),
        (["codec=scalar", "codec/prior=zipf"], "codec=scalar has no prior; leave out codec/prior"),
        (["codec/schedule=linear"], "codec=lighttoken has no schedule; leave out codec/schedule"),
        (["codec.prior.languages=de"], "codec.prior.languages is 'de'; it must be a list in brackets or null"),
        (
            ["trainer.accumulate_grad_batches=2"],
            "trainer.accumulate_grad_batches is not set so far and is added, not overridden: "
            "write +trainer.accumulate_grad_batches=VALUE",
        ),
        (["logger=null"], "a config group takes a name, not null; logger=none is there for no logger"),
        (["task.batch_size=0", "logger=none"], "task.batch_size is 0; it must be 1 or above"),
        (["seed=-1"], "seed is -1; it must be 0 or above, and below 2^32"),
        (["zzz.a=3"], "unknown key zzz.a; --cfg job shows them all"),
        (["task=cola", "task.data_dri=x"], "unknown key task.data_dri; did you mean task.data_dir?"),
        (["+experiment=glue_sst2", "task.data-dir=x"], "unknown key task.data-dir; did you mean task.data_dir?"),
        (["task=cola,sst2", "task.batchsize=1", "-m"], "unknown key task.batchsize; did you mean task.batch_size?"),
        (["codec=none", "codec.rank=3"], "unknown key codec.rank; known: name"),
        (["codec=none,svd"], "codec=none,svd is a list of values; add -m to run one after another"),
        (["seed=0,1", "--cfg", "job"], "seed=0,1 is a list of values; --cfg shows one job: give one of them"),
        (["-m", "seed=0,1", "--cfg", "job"], "--cfg shows the config of one job; leave out -m"),
        (["heal.steps=5"], "unknown key heal.steps; it has no settings as it is; choose one that has, by heal=NAME"),
        (
            ["task=perplexity", "codec=stored"],
            "kl_divergence, top1_agreement compare with the original model, which codec=stored does not have; add "
            "'~task.metrics.kl_divergence' '~task.metrics.top1_agreement'",
        ),
        (["ratio=null"], "ratio is null; it needs a value"),
        (["ratio=1"], "ratio is 1; it must be above 1, for example ratio=25"),
        (["ratio=abc"], "ratio is 'abc'; it must be of type Float"),
        (["seed=1.5"], "seed is '1.5'; it must be of type Integer"),
    ],
)
def test_a_wrong_command_gets_one_line(command, arguments, message):
    code, _, err = command("train", *arguments)
    assert (code, err.splitlines()[-1]) == (2, f"error: {message}")
    assert len([line for line in err.splitlines() if "error" in line.lower()]) == 1


def test_choices_and_types_are_named_in_words(command):
    code, _, err = command("train", "trainer.precision=foo", "logger=none")
    assert code == 2
    assert "must be one of 64, 32, 16" in err
    assert "typing" not in err
