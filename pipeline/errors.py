"""What can go wrong for a user, each as one line that says what, where and what to do.

The command line prints these without a traceback; every other exception is a bug and keeps its own.
"""


class ThawError(Exception):
    """Base of every error that a user or the world can cause. Exit code 1."""


class UsageError(ThawError):
    """The command, a file it names or a value it was given is wrong. Exit code 2."""


class CheckpointError(ThawError):
    """A checkpoint cannot be written or read."""


class EncodeError(CheckpointError):
    """A value has no place in a checkpoint; the message names its path (`optimizer.state.0.hook`)."""


class CorruptCheckpoint(CheckpointError):
    """A checkpoint's files are not what its manifest says, or not a checkpoint at all."""


class MismatchError(CheckpointError):
    """A checkpoint is sound, but does not fit the live objects; nothing was changed."""
