"""Structured pruning as a compiler pass: trace, analyze, plan, rewrite, verify."""

from fxprune.allocation import (
    Budget,
    LeftWholeWarning,
    Limits,
    NothingPrunedWarning,
    plan,
    score,
)
from fxprune.analysis import Analysis, analyze
from fxprune.capture import trace
from fxprune.checkpoint import ClassNeededWarning, load, save
from fxprune.compensation import compensate, recalibrate
from fxprune.composition import compose
from fxprune.costs import Amounts, Cost, cost, savings
from fxprune.coverage import Coverage
from fxprune.criteria import Criterion
from fxprune.drivers import PruneResult, prune
from fxprune.equivalence import EquivalenceReport, verify
from fxprune.errors import (
    AnalysisError,
    CheckpointError,
    ExportError,
    FxpruneError,
    NotApplicableError,
    PlanError,
    RewriteError,
    TraceError,
    VerifyError,
)
from fxprune.factoring import FactorizeReport, FactorizeResult, factorize
from fxprune.groups import Group, Member
from fxprune.interop import ExportReport, export
from fxprune.migration import apply, migrate_optimizer, restore
from fxprune.pictures import dot, plot, svg
from fxprune.plans import FactorizationPlan, PruningPlan
from fxprune.reports import PruneReport
from fxprune.rewriter import rewrite
from fxprune.rounds import Rounds, Step, iterate
from fxprune.statistics import Statistics
from fxprune.timing import LatencyReport, compare_latency, measure_latencies

__all__ = [
    "Amounts",
    "Analysis",
    "AnalysisError",
    "Budget",
    "CheckpointError",
    "ClassNeededWarning",
    "Cost",
    "Coverage",
    "Criterion",
    "EquivalenceReport",
    "ExportError",
    "ExportReport",
    "FactorizationPlan",
    "FactorizeReport",
    "FactorizeResult",
    "FxpruneError",
    "Group",
    "LatencyReport",
    "LeftWholeWarning",
    "Limits",
    "Member",
    "NotApplicableError",
    "NothingPrunedWarning",
    "PlanError",
    "PruneReport",
    "PruneResult",
    "PruningPlan",
    "RewriteError",
    "Rounds",
    "Statistics",
    "Step",
    "TraceError",
    "VerifyError",
    "analyze",
    "apply",
    "compare_latency",
    "compensate",
    "compose",
    "cost",
    "dot",
    "export",
    "factorize",
    "iterate",
    "load",
    "measure_latencies",
    "migrate_optimizer",
    "plan",
    "plot",
    "prune",
    "recalibrate",
    "restore",
    "rewrite",
    "save",
    "savings",
    "score",
    "svg",
    "trace",
    "verify",
]
