"""The exception types. Every message says what happened, where, the sizes, and what to do next."""

from __future__ import annotations


class FxpruneError(Exception):
    """Base class of every error that fxprune raises on purpose."""


class TraceError(FxpruneError):
    """The model could not be captured as a graph, or was called outside what was captured."""


class AnalysisError(FxpruneError):
    """The coupling of a graph's dimensions could not be established or read."""


class PlanError(FxpruneError):
    """A plan cannot be made or used: sparsity, scores, kept indices, or another graph."""


class RewriteError(FxpruneError):
    """A plan could not be applied to a graph."""


class VerifyError(FxpruneError):
    """The pruned module could not be compared with the original."""


class CheckpointError(FxpruneError):
    """A stored plan, model or checkpoint is malformed, unknown or of another version."""
