"""Pretrained models: where they come from, how their table is swapped, how they are saved and loaded."""
