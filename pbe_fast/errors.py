"""What a user can get wrong, one exception type per kind of mistake.

Every message says what is wrong, where, and what to do. The command line prints the
message and exits with code 2; a traceback is kept for bugs of ours.
"""

__all__ = [
    "CheckpointError",
    "ConfigError",
    "DivergenceError",
    "ImageError",
    "ModelError",
    "PbeError",
    "QuarantineError",
    "RunDirectoryError",
    "ShardError",
    "TriggerError",
]


class PbeError(ValueError):
    """A mistake in what was given to pbe-fast, never a bug in it."""


class ConfigError(PbeError):
    """The configuration names an unknown key or an impossible value."""


class DivergenceError(PbeError):
    """Training ended in numbers that are not finite, so there is no model to give back."""


class ShardError(PbeError):
    """A shard or its manifest is damaged, missing or not what the manifest says."""


class ImageError(PbeError):
    """One image cannot be decoded to RGB."""


class QuarantineError(PbeError):
    """More images were undecodable than the budget allows."""


class ModelError(PbeError):
    """A model name is unknown, or the factory did not return a usable model."""


class CheckpointError(PbeError):
    """A checkpoint is unsafe, damaged, or does not fit the model."""


class TriggerError(PbeError):
    """A trigger description is unknown, damaged or does not fit the images."""


class RunDirectoryError(PbeError):
    """The run directory cannot be used: it belongs to another configuration."""
