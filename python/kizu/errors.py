"""Errors for the person on the line: what was given, what is accepted, what to do."""

from __future__ import annotations


class KizuError(Exception):
    """Base of every error that kizu raises on purpose."""


class DataError(KizuError):
    """A data set, a folder or an image file cannot be used."""


class FrameError(KizuError, ValueError):
    """A frame does not have the dtype, shape or channels the model expects."""


class BundleError(KizuError):
    """A .kizu file is damaged, edited, from another version, or not a bundle."""


class EngineError(KizuError):
    """An engine is missing, refused an option, or failed to reproduce the golden scores."""


class DeviceLostError(EngineError):
    """The GPU stopped answering; the process must be started anew."""


class ThresholdError(KizuError, ValueError):
    """A threshold cannot be computed from the scores at hand, or is missing."""


class ScoreError(KizuError):
    """A score is not finite."""


class TrainingError(KizuError):
    """Training cannot start or go on with the given settings or run folder."""
