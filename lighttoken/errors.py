"""The one exception that stands for the user's input, not for a defect of this code."""


class LighttokenError(ValueError):
    """The user's input cannot work. The message names the contradicting values and the cure, in one line."""
