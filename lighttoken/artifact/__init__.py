"""The compressed table on disk: its forms, its trellis code, how numbers are packed."""
