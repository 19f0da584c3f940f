import pytest

from lighttoken.run.average import glue_average


def test_an_average_is_of_one_model_and_one_setting():
    def job(task: str, score: float, *overrides: str, model: str = "a", codec: str = "svd") -> tuple[list[str], dict]:
        record = {"model": model, "task": task, "codec": codec, "ratio_asked": 25.0, "seed": 0, "status": "done"}
        # The learning rate comes from the recipe of the task; it is no setting of the sweep.
        config = {"finetune": {"learning_rate": 2e-5 if task == "rte" else 1e-5}}
        return [f"task={task}", *overrides], record | {"config": config, "metrics": {"val/accuracy": score}}

    rows = glue_average(
        [
            job("sst2", 0.9, "trainer.max_epochs=1"),
            job("rte", 0.6, "trainer.max_epochs=1"),
            job("sst2", 0.7, "trainer.max_epochs=1", "model=b", model="b"),
            job("rte", 0.1, "trainer.max_epochs=2"),
            job("sst2", 0.8, "codec=none", "ratio=25", codec="none"),
            job("rte", 0.4, "codec=none", "ratio=50", codec="none"),
        ]
    )
    assert [(row["overrides"], row["tasks"]) for row in rows] == [
        (["trainer.max_epochs=1"], {"sst2": 0.9, "rte": 0.6}),
        (["trainer.max_epochs=1", "model=b"], {"sst2": 0.7}),
        (["trainer.max_epochs=2"], {"rte": 0.1}),
        (["codec=none"], {"sst2": 0.8, "rte": 0.4}),
    ]
    assert rows[0]["average"] == pytest.approx(0.75)
