"""Tasks: where the rows come from, how they are batched, how answers are scored."""
