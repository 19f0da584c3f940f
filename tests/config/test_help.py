import re

from lighttoken.config.schema import choices, config_dir


def test_help_lists_the_groups_and_the_values(command):
    code, out, _ = command("train", "--help")
    assert code == 0
    for words in (
        f"codec: {', '.join(choices('codec'))}",
        "ratio: 25",
        "finetune:",
        "+experiment=glue_sst2",
        config_dir(),
    ):
        assert words in out
    assert "task: " not in command("compress", "--help")[1]  # compress has no such group


def test_help_shows_the_comments_of_the_config_files(command):
    _, out, _ = command("train", "--help", "task=mnli", "seed=3")
    for key, comment in (
        ("seed: 3", "of the codec, the new head, dropout and the order of the batches"),  # of train.yaml
        ("  state_bits: 12", "of the trellis code"),  # of a group
        ("  eval_batch_size: 64", "rows"),  # of a base of a group
        ("    group: ${sweep_name:}", "folder of the sweep; null outside of one"),  # nested, with a dollar sign
    ):
        assert re.search(rf"^{re.escape(key)} +# {comment}", out, re.MULTILINE), key
    assert "# MNLI: entailment, neutral or contradiction? 392,702 training pairs" in out  # the head of the task's file
