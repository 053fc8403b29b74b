"""The errors that a user can cause or meet. Each message is one or two sentences: what was found, what to do."""


class GanopsError(Exception):
    """Base of all errors that a stage prints as one line, without a traceback."""


class ParamsError(GanopsError):
    """params.yaml or dvc.yaml: unknown, missing, mistyped or contradictory values."""


class DataError(GanopsError):
    """Raw images, labels, shards or statistics that cannot be used."""


class WeightsError(GanopsError):
    """A feature extractor's or a snapshot's weights are missing or not what they should be."""


class ExportError(GanopsError):
    """A snapshot cannot be written for other programs, or what was written gives other images."""


class OpsError(GanopsError):
    """The CUDA kernels cannot be built or loaded."""


class RunError(GanopsError):
    """A training run cannot start, continue or go on."""


class DamagedState(RunError):
    """A state file is cut short or was changed; an earlier one may be whole."""


class LostContact(RunError):
    """Another rank is gone or does not answer. A consequence: the cause is that rank's own error, or its death."""


class Diverged(RunError):
    """Losses or gradients are no longer finite, or out of all proportion."""


class Interrupted(GanopsError):
    """A signal asked the stage to stop; what could be saved was saved."""

    def __init__(self, message: str, signum: int) -> None:
        """
        Args:
            message: what was stopped, and what was saved.
            signum: the signal; the stage exits with 128 + signum, as shells count.
        """
        super().__init__(message)
        self.signum = signum
