"""The exceptions of fxprune: each message says what happened, where, the sizes, and what to do."""

from __future__ import annotations


class FxpruneError(Exception):
    """Base class of every error that fxprune raises on purpose."""


class TraceError(FxpruneError):
    """A model could not be captured, or a captured graph met inputs it was not captured for."""


class AnalysisError(FxpruneError):
    """A captured graph could not be analysed."""


class PlanError(FxpruneError):
    """A plan was asked for that cannot be: sparsity, scores, kept units or the graph do not fit."""


class NotApplicableError(PlanError):
    """A criterion does not apply to a group; criteria raise it, and the group is left whole."""


class RewriteError(FxpruneError):
    """A plan could not be applied to a graph."""


class VerifyError(FxpruneError):
    """A pruned graph could not be checked against the original."""


class CheckpointError(FxpruneError):
    """A saved model could not be written, read, or matched to a model."""


class ExportError(FxpruneError):
    """A module could not be written in another format."""
