"""Errors that say what was expected, what came, and what to do.

Every error a user can cause is a subclass of `SparsightError`. Its message is one line, because the command line prints it as it is
and ends with exit code 2.
"""


class SparsightError(Exception):
    """Base of every error that the caller can mend."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(str(message).split()))


class ModelError(SparsightError):
    """A model that cannot be loaded, is of an unsupported family, or gives values that are not finite."""


class TextError(SparsightError):
    """Text that is missing, empty, too short, not UTF-8, or was already used for training."""


class BudgetError(SparsightError):
    """A budget outside its range, or too small for the sinks and the recent window."""


class ConfigError(SparsightError):
    """An unknown method, an unknown setting, or a setting with a value out of range."""


class ArtifactError(SparsightError):
    """A predictor that is missing, damaged, of another model, or of a newer format."""


class StorageError(SparsightError):
    """A file that cannot be read or written."""
