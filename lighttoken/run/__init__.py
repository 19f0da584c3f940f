"""Runs: the story of one, its record, the artifacts that runs share, sweeps of many."""
