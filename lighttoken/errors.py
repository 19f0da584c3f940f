"""The one exception that stands for the user's input, not for a defect of this code."""


class LighttokenError(ValueError):
    """The user's input cannot work; the message names the values that contradict each other and the cure, in one line."""
