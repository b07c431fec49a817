"""The arguments of every command."""

from __future__ import annotations

import argparse
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import NoReturn

from fxprune.allocation.normalise import NORMALISERS
from fxprune.allocation.scopes import SCOPES
from fxprune.cli import commands, compare, factors
from fxprune.cli.inputs import FORMS
from fxprune.cli.outcome import USAGE
from fxprune.compensation import METHODS as COMPENSATIONS
from fxprune.factorization import DAMPING, METHODS, SPREADS

_CODES = """\
exit codes:
  0    done; what was checked holds
  1    what was checked does not hold: verify, export, prune --verify; diff found differences
  2    the command line is wrong
  3    refused: no such model, a file that does not fit, a budget that cannot be met, ...
  4    an error that fxprune did not expect; --debug shows where
  130  interrupted

Models are package.module:factory, also from the current directory, or a directory that
`fxprune prune --output` or fxprune.save wrote. Weights and random inputs are drawn with --seed, so
that two commands see the same model."""


class _Parser(argparse.ArgumentParser):
    """Reports a wrong command line in one line."""

    def error(self, message: str) -> NoReturn:
        print(f"{self.prog}: error: {message} (see {self.prog} --help)", file=sys.stderr)
        sys.exit(USAGE)


def parser() -> _Parser:
    """The parser of the whole command line; `args.run(args)` runs the command."""
    top = _Parser(
        prog="fxprune",
        description="Remove whole units of a network, exactly.",
        epilog=_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"fxprune {_version()}")
    kinds = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    common, model = _common(), _model()
    _prune(kinds.add_parser("prune", parents=[model, common], help="prune a model, and save it"))
    _factorize(
        kinds.add_parser("factorize", parents=[model, common], help="put layers into factors")
    )
    groups = kinds.add_parser("groups", parents=[model, common], help="list what can be pruned")
    groups.add_argument("--dot", metavar="FILE", help="write the groups as a Graphviz graph")
    groups.add_argument("--svg", metavar="FILE", help="draw it; needs Graphviz")
    groups.set_defaults(run=commands.groups)
    explain = kinds.add_parser(
        "explain", parents=[model, common], help="why a layer is coupled to what, or frozen"
    )
    explain.add_argument("path", help="a module or parameter, such as layer1.0.conv2")
    explain.set_defaults(run=commands.explain)
    verify = kinds.add_parser(
        "verify", parents=[common, _original()], help="check a saved model against its original"
    )
    verify.add_argument("pruned", help="the directory of the pruned model")
    verify.add_argument("--dtype", choices=("float32", "float64"), help="compute in this dtype")
    verify.set_defaults(run=compare.verify)
    report = kinds.add_parser(
        "report",
        parents=[model, common],
        help="what a saved model changed; of a model, what it costs",
    )
    report.add_argument("--markdown", action="store_true", help="print Markdown")
    report.add_argument("--plot", metavar="FILE", help="draw widths and costs (.png, .svg, .pdf)")
    report.set_defaults(run=commands.report)
    export = kinds.add_parser(
        "export", parents=[model, common], help="write .onnx, .pt2 or .ts, and compare"
    )
    export.add_argument("-o", "--output", required=True, metavar="FILE")
    export.add_argument("--format", choices=("onnx", "torch.export", "torchscript"))
    export.set_defaults(run=commands.export)
    diff = kinds.add_parser("diff", parents=[common], help="compare two saved models")
    diff.add_argument("first", help="a directory of a pruned or factorised model")
    diff.add_argument("second", help="another one, of the same original")
    diff.set_defaults(run=compare.diff)
    return top


def _version() -> str:
    try:
        return version("fxprune")
    except PackageNotFoundError:  # run from a source tree
        return "(source tree)"


def _common() -> _Parser:
    common = _Parser(add_help=False)
    common.add_argument("--json", action="store_true", help="print JSON on stdout")
    common.add_argument("--quiet", action="store_true", help="show no progress on stderr")
    common.add_argument("--debug", action="store_true", help="print a traceback on errors")
    return common


def _factory(of: _Parser) -> None:
    of.add_argument("--kwargs", default="{}", metavar="JSON", help="keywords of the factory")
    of.add_argument("--weights", metavar="FILE", help="a state dict as .safetensors or .npz")
    of.add_argument(
        "--input", action="append", default=[], metavar="INPUT", help=f"repeatable: {FORMS}"
    )
    of.add_argument("--seed", type=int, default=0, help="of random weights and inputs (0)")


def _model() -> _Parser:
    model = _Parser(add_help=False)
    model.add_argument("model", help="package.module:factory, or a saved directory")
    _factory(model)
    model.add_argument("--strict", action="store_true", help="refuse operators without a rule")
    return model


def _original() -> _Parser:
    original = _Parser(add_help=False)
    original.add_argument(
        "--original", dest="model", required=True, metavar="MODEL", help="the unpruned model"
    )
    _factory(original)
    return original


def _prune(prune: _Parser) -> None:
    prune.add_argument("-o", "--output", metavar="DIR", help="save the pruned model here")
    prune.add_argument("--sparsity", type=float, help="fraction of units to remove")
    prune.add_argument(
        "--budget",
        action="append",
        default=[],
        metavar="NAME=AMOUNT",
        help="repeatable: macs=0.5 and latency=0.6 are fractions, params=1000000 a number",
    )
    prune.add_argument("--latency-file", metavar="FILE", help="keep measured times here")
    prune.add_argument("--criterion", default="magnitude", help="which units go (magnitude)")
    prune.add_argument("--scope", default="local", choices=tuple(SCOPES))
    prune.add_argument("--normalise", default="none", choices=tuple(NORMALISERS))
    prune.add_argument("--ignore", action="append", default=[], metavar="PATTERN")
    prune.add_argument("--round-to", type=int, metavar="N", help="keep multiples of N units")
    prune.add_argument("--min-keep", type=int, metavar="N", help="keep at least N units per group")
    prune.add_argument("--max-sparsity", type=float, metavar="X", help="of any one group")
    prune.add_argument(
        "--compensate",
        action="append",
        default=[],
        choices=tuple(COMPENSATIONS),
        help="repeatable: what stays makes up for what goes, by --data",
    )
    prune.add_argument(
        "--data", metavar="FILE", help="inputs for the criterion, and `target`, as arrays by name"
    )
    prune.add_argument("--batch-size", type=int, metavar="N", help="read --data in such batches")
    prune.add_argument("--verify", action="store_true", help="check the result on the inputs")
    prune.set_defaults(run=commands.prune)


def _factorize(factorize: _Parser) -> None:
    factorize.add_argument("-o", "--output", metavar="DIR", help="save the result here")
    factorize.add_argument("--method", default="eigendamage", choices=tuple(METHODS))
    factorize.add_argument(
        "--budget",
        action="append",
        default=[],
        metavar="NAME=AMOUNT",
        help="macs=0.5 is a fraction, params=1000000 a number",
    )
    factorize.add_argument("--energy", type=float, metavar="X", help="share that each layer keeps")
    factorize.add_argument("--spread", default="price", choices=tuple(SPREADS))
    factorize.add_argument("--steps", type=int, default=1, metavar="N", help="measure N times (1)")
    factorize.add_argument("--damping", type=float, default=DAMPING, help="of Kronecker factors")
    factorize.add_argument("--ignore", action="append", default=[], metavar="PATTERN")
    factorize.add_argument(
        "--data", metavar="FILE", help="inputs for the method, and `target`, as arrays by name"
    )
    factorize.add_argument(
        "--batch-size", type=int, metavar="N", help="read --data in such batches"
    )
    factorize.add_argument("--verify", action="store_true", help="check the result on the inputs")
    factorize.set_defaults(run=factors.factorize)
