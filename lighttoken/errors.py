"""The one exception that stands for the user's input, not for a defect of this code."""


class LighttokenError(ValueError):
    """Something the user asked for cannot be done; the message names the values at odds and the cure, in one line."""
