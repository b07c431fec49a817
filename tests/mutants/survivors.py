"""Mutants that no test can kill, each with the reason why it is the same program.

Or as good a one: some change only how much time or memory a block, a memo or a bound takes.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

EQUIVALENT: Mapping[str, str] = MappingProxyType(
    {
        "algebra.py:Algebra._unify_compounds:drop-condition:4": "An axis is frozen where all "
        "its atoms have a reason: there is one, and the other string is for the type checker.",
        "algebra.py:Algebra._unify_compounds:return-input:1": "Its one caller takes the pairs "
        "from an iterator as from a list.",
        "algebra.py:Algebra._unify_compounds:return-input:2": "The same.",
        "algebra.py:Algebra._match_factors:compare:2": "Where both are of one size, they were "
        "paired a few lines before, and the loop went on.",
        "algebra.py:Algebra.unify:return-input:1": "Changes only how much time is taken: a later "
        "op may bind any axis of a layout, and all that reads layouts follows the bindings.",
        "axes.py:factors_of:drop-condition:1": "Changes only how much time is taken: what is not "
        "remembered is found again, and frozen units are left out whenever factors are asked for.",
        "axes.py:find:drop-condition:2": "One more round, which binds to the root what is bound "
        "to it already.",
        "axes.py:is_frozen:undo-call:1": "Changes only how much time is taken: the leaves are "
        "those of what the axis stands for, and only a yes, which stays true, is remembered.",
        "contexts.py:_Nesting.companions:drop-jump:1": "Changes only how much time is taken: where "
        "there is no path, nothing is made of what stands around it.",
        "contexts.py:_Nesting.parts:undo-call:1": "Changes only how much time is taken: `_always` "
        "and `leaves` follow the bindings, too, and nothing is bound any more.",
        "contexts.py:_Nesting.companions:compare:6": "A companion of size 1 makes one context: "
        "everywhere the same choice, which is what an atom without companions has.",
        "contexts.py:_beside:undo-call:1": "Changes only how much time is taken: the same "
        "layout is looked at again.",
        "grouping.py:make_members:off-by-one:2": "A group with contexts is one atom of two "
        "units or more, and what stands beside a unit does not depend on which unit it is.",
        "groups.py:Member.__eq__:swap-arguments:2": "Whether two maps are the same does not "
        "depend on their order.",
        "growing.py:_shapes_elsewhere:drop-condition:1": "Twice a size and a step more is never "
        "that size.",
        "maskable.py:_FillPass._find_free:drop-update:3": "Changes only how much time is taken: "
        "what is not remembered is found again.",
        "maskable.py:_FillPass.fresh:return-input:1": "True is 1.0 and False is 0.0 wherever a "
        "fill is compared, put into a tensor, or looked up.",
        "maskable.py:_probe:compare:1": "Changes only how much time is taken: what carries units "
        "has a dimension, so that samples are then always taken one by one.",
        "maskable.py:_probe:off-by-one:1": "Any seed gives samples of both signs, no two alike.",
        "maskable.py:_FillPass.statistic:drop-condition:10": "The other statistics call their "
        "tensor `self`, and none of them has a weight: nothing follows for them.",
        "plans/base.py:module:drop-argument:1": "Variance is for the type checker.",
        "plans/factorization.py:FactorizationPlan.from_json:off-by-one:2": "Changes only how long "
        "a text is read at most, which is far more than any plan needs.",
        "plans/text.py:longest:off-by-one:4": "Changes only how long a text is read at most, "
        "which is more than any plan needs.",
        "plans/text.py:longest:off-by-one:5": "The same.",
        "propagate.py:_RuleMode._barrier:wrong-kind:1": "All that it reads and makes is frozen, "
        "and it mixes nothing: masks, contexts, reads and roles do not ask for the kind then.",
        "propagate.py:_Runner.get_attr:swap-arguments:2": "What reads an attribute has neither "
        "arguments nor keywords.",
        "rewriter/rows.py:split_along.row:arithmetic:1": "The dimension is taken modulo the rank.",
        "rules/indexing.py:frozen.rule:wrong-kind:1": "All that it reads and makes is frozen, "
        "and it mixes nothing: masks, contexts, reads and roles do not ask for the kind then.",
        "rules/indexing.py:index_put:wrong-kind:1": "The same: a mask as an index freezes all.",
        "rules/norm.py:affine_grid:wrong-kind:1": "The same.",
        "rules/reduce.py:matrices:drop-argument:1": "Rows and columns are frozen, so that no unit "
        "of them is masked or read, and gone from all results, which takes them from all contexts.",
        "rules/view.py:_taken_over:compare:3": "Where a dimension of size n and stride s is kept, "
        "the one of least stride, all else is steps of multiples of s * n, and steps that sum up "
        "to less than s: the sum of all steps is no multiple of s * n, and x.numel() is one. Where "
        "none is kept, the answer is the same.",
        "slicing.py:Slicer.__call__:undo-call:1": "Changes only how much time and memory is taken: "
        "selections along several dimensions commute.",
        "slicing.py:Slicer._memberships:drop-condition:2": "Neither None nor the empty string is "
        "the name of a parameter.",
        "slicing.py:_select:compare:1": "Changes only whether a tensor of just a block's size is "
        "selected from at once or as one block.",
        "slicing.py:module:off-by-one:2": "Changes only how much memory a block takes.",
    }
)
