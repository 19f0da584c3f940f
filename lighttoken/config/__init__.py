"""The configs: their schema, their checks, and the start of a command."""
