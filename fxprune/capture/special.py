"""Torch functions that are answered, not recorded: sizes, devices, values."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fxprune import meta_kernels
from fxprune.capture import constants, leaves, targets
from fxprune.capture.lines import user_line
from fxprune.capture.sizes import numel_of, plain, sized

if TYPE_CHECKING:
    from fxprune.capture.recorder import Recorder

Handler = Callable[["Recorder", Any, tuple[Any, ...], dict[str, Any]], Any]
HANDLERS: dict[Any, Handler] = {}
_OF_RANK = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}
"""The batch normalisation of inputs of so many dimensions."""
_BATCH_NORM = (
    "input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps",
)  # fmt: skip


def _handles(*functions: Any) -> Callable[[Handler], Handler]:
    def register(handler: Handler) -> Handler:
        for function in functions:
            HANDLERS[function] = handler
        return handler

    return register


@_handles(targets.SHAPE)
def _shape(recorder: Recorder, func: Any, args: Any, kwargs: Any) -> Any:
    return recorder.sizes(args[0])


@_handles(Tensor.size)
def _size(recorder: Recorder, func: Any, args: Any, kwargs: Any) -> Any:
    shape = recorder.sizes(args[0])
    dim = kwargs.get("dim", args[1] if len(args) > 1 else None)
    return shape if dim is None else shape[plain(dim)]


@_handles(Tensor.__len__)
def _len(recorder: Recorder, func: Any, args: Any, kwargs: Any) -> Any:
    shape = recorder.sizes(args[0])
    if not shape:
        raise TypeError("len() of a 0-d tensor")
    return shape[0]


@_handles(Tensor.numel, Tensor.nelement, torch.numel)
def _numel(recorder: Recorder, func: Any, args: Any, kwargs: Any) -> Any:
    tensor = args[0] if args else kwargs["input"]
    value = tensor.numel()
    ref = recorder.refs.get(id(tensor))
    if ref is None:
        return value
    recorder.measures = True
    return sized(value, numel_of, (ref,), recorder.log)


@_handles(targets.DEVICE)
def _device(recorder: Recorder, func: Any, args: Any, kwargs: Any) -> Any:
    return recorder.device


@_handles(*targets.IS_PROPERTY)
def _is_device(recorder: Recorder, func: Any, args: Any, kwargs: Any) -> Any:
    return recorder.device.type == targets.IS_PROPERTY[func]


@_handles(targets.REQUIRES_GRAD)
def _requires_grad(recorder: Recorder, func: Any, args: Any, kwargs: Any) -> Any:
    real = recorder.real.get(recorder.names.get(id(args[0]), ""))
    return func(*args) if real is None else real.requires_grad


@_handles(Tensor.get_device)
def _get_device(recorder: Recorder, func: Any, args: Any, kwargs: Any) -> Any:
    index = recorder.device.index
    return -1 if recorder.device.type == "cpu" else index or 0


@_handles(*targets.TENSOR_PROPERTIES)
def _property(recorder: Recorder, func: Any, args: Any, kwargs: Any) -> Any:
    method, extra = targets.TENSOR_PROPERTIES[func]
    return recorder.call(getattr(Tensor, method), (*args, *extra), kwargs)


@_handles(*targets.PARTS)
def _part(recorder: Recorder, func: Any, args: Any, kwargs: Any) -> Any:
    return recorder.call(targets.PARTS[func], args, kwargs)


@_handles(targets.TRANSPOSE)
def _transpose(recorder: Recorder, func: Any, args: Any, kwargs: Any) -> Any:
    order = tuple(reversed(range(args[0].dim())))
    return recorder.call(Tensor.permute, (args[0], *order), kwargs)


@_handles(Tensor.requires_grad_, Tensor.retain_grad)
def _unrecorded(recorder: Recorder, func: Any, args: Any, kwargs: Any) -> Any:
    return args[0]


@_handles(*targets.READERS)
def _read(recorder: Recorder, func: Any, args: Any, kwargs: Any) -> Any:
    line = user_line()
    what = getattr(func, "__name__", "a value")
    values = [constants.read(recorder, a, what, line) if isinstance(a, Tensor) else a for a in args]
    with recorder.paused():
        return func(*values, **kwargs)


@_handles(*targets.SHAPED_BY_VALUES)
def _shaped_by_values(recorder: Recorder, func: Any, args: Any, kwargs: Any) -> Any:
    result = _read(recorder, func, args, kwargs)
    return _constants(recorder, result)


@_handles(torch.where)
def _where(recorder: Recorder, func: Any, args: Any, kwargs: Any) -> Any:
    """`where(condition)` by itself is `condition.nonzero(as_tuple=True)`."""
    alone = len(args) + len(kwargs) == 1
    return (_shaped_by_values if alone else _call)(recorder, func, args, kwargs)


@_handles(torch.repeat_interleave, Tensor.repeat_interleave)
def _repeat_interleave(recorder: Recorder, func: Any, args: Any, kwargs: Any) -> Any:
    """Repeats in a tensor: the size of the result is their sum."""
    if not args:  # nothing but repeats: of positions
        args, kwargs = (kwargs["repeats"],), {k: v for k, v in kwargs.items() if k != "repeats"}
    given = kwargs.get("repeats", args[1] if len(args) > 1 else args[0])
    if not isinstance(given, Tensor) or kwargs.get("output_size") is not None:
        return recorder.call(func, args, kwargs)
    repeats = constants.read(recorder, given, "repeat_interleave", user_line())
    with recorder.paused():
        total, count = int(repeats.sum()), repeats.numel()
    if count != 1 or given is args[0]:
        return recorder.call(func, args, {**kwargs, "output_size": total})
    rest = {key: value for key, value in kwargs.items() if key != "repeats"}
    return recorder.call(func, (args[0], total, *args[2:]), rest)


def _constants(recorder: Recorder, result: Any) -> Any:
    if isinstance(result, Tensor):
        return recorder.constant(result)[1]
    if isinstance(result, tuple):
        return tuple(_constants(recorder, item) for item in result)
    return result


def _is_mask(index: Any) -> bool:
    return isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8)


@_handles(Tensor.__getitem__)
def _getitem(recorder: Recorder, func: Any, args: Any, kwargs: Any) -> Any:
    tensor, index = args
    items = index if isinstance(index, tuple) else (index,)
    if not any(_is_mask(item) for item in items):
        return recorder.call(func, args, kwargs)
    line = user_line()
    fixed: list[Any] = []
    for item in items:
        if _is_mask(item):
            mask = constants.read(recorder, item, "boolean mask index", line)
            with recorder.paused():
                positions = mask.nonzero(as_tuple=True)
            fixed += [recorder.constant(p)[1] for p in positions]
        else:
            fixed.append(item)
    return recorder.call(func, (tensor, tuple(fixed)), kwargs)


@_handles(Tensor.type)
def _type(recorder: Recorder, func: Any, args: Any, kwargs: Any) -> Any:
    """A tensor's type by name, such as "torch.FloatTensor", and conversion to one."""
    tensor, *rest = args
    name = rest[0] if rest else kwargs.get("dtype")
    if name is not None and not isinstance(name, str):
        return recorder.call(func, args, kwargs)
    with recorder.paused():
        if name is None:
            return torch.empty(0, dtype=tensor.dtype, device=recorder.device).type()
        wanted = torch.empty(0).type(name)
    moves = wanted.device.type != recorder.device.type
    return _to(recorder, Tensor.to, (tensor, *[wanted.device] * moves, wanted.dtype), {})


@_handles(*targets.LITERALS)
def _literal(recorder: Recorder, func: Any, args: Any, kwargs: Any) -> Any:
    data = args[0] if args else kwargs["data"]
    if isinstance(data, Tensor) and func is not torch.tensor:
        return recorder.call(func, args, kwargs)
    if isinstance(data, Tensor):
        return recorder.call(Tensor.clone, (data,), {})
    if _only_numbers(data):
        return recorder.call(func, args, kwargs)
    if isinstance(data, (list, tuple)):
        line = user_line()
        args = (_numbers(recorder, data, line), *args[1:])
        return recorder.call(func, args, kwargs)
    with recorder.paused():
        return recorder.constant(func(*args, **{**kwargs, "device": "cpu"}))[1]


@_handles(F.batch_norm)
def _batch_norm(recorder: Recorder, func: Any, args: Any, kwargs: Any) -> Any:
    """F.batch_norm on the tensors of one BatchNorm module (a subclass's) is that module."""
    given = dict(zip(_BATCH_NORM, args, strict=False)) | kwargs
    path = recorder.names.get(id(given.get("running_mean")), "").rpartition(".")[0]
    module = recorder.owners.get(path)
    base = None if module is None else leaves.torch_base(type(module), _BatchNorm)
    if base is _BatchNorm:
        base = _OF_RANK.get(given["input"].dim())
    if (
        module is None
        or base is None
        or recorder.plain.get(path, base) is not base
        or path == ""  # a graph cannot call its root
        or not all(
            given.get(key) is getattr(module, key)
            for key in ("running_mean", "running_var", "weight", "bias")
        )
    ):
        return recorder.call(func, args, kwargs)
    same = (given.get("momentum", 0.1), given.get("eps", 1e-5), bool(given.get("training", False)))
    if same != (module.momentum, module.eps, module.training):
        return recorder.call(func, args, kwargs)
    recorder.plain[path] = base
    index = recorder.add("call_module", path, (recorder.convert(given["input"])[0],), {})
    recorder.replay.note(index, (), {}, None, True)
    with torch._C.DisableTorchFunction():
        result = meta_kernels.elementwise(given["input"])
        if result is NotImplemented:
            result = torch.empty_like(given["input"])
    return recorder.track(result, index, None)


def _only_numbers(data: Any) -> bool:
    if isinstance(data, (list, tuple)):
        return all(_only_numbers(item) for item in data)
    return isinstance(data, (int, float, bool, complex))


def _numbers(recorder: Recorder, data: Any, line: str) -> Any:
    if isinstance(data, (list, tuple)):
        return [_numbers(recorder, item, line) for item in data]
    if isinstance(data, Tensor):
        return constants.read(recorder, data, "torch.tensor", line).tolist()
    return data


def _moved(recorder: Recorder, func: Any, args: Any, kwargs: Any) -> Any:
    """Record a move between devices as it is written, run it as a copy on meta."""
    record_args = tuple(recorder.convert(a)[0] for a in args)
    record_kwargs = {k: recorder.convert(v)[0] for k, v in kwargs.items()}
    run = [a for a in args[1:] if not isinstance(a, (str, torch.device))]
    run_kwargs = {k: v for k, v in kwargs.items() if k != "device"}
    with torch._C.DisableTorchFunction():
        dtypes = [a for a in run if isinstance(a, (torch.dtype, Tensor))]
        result = args[0].to(*dtypes[:1], **run_kwargs) if dtypes or run_kwargs else args[0]
    index = recorder.add("call_method", func.__name__, record_args, record_kwargs)
    recorder.replay.note(index, record_args, record_kwargs, None)
    return recorder.track(result, index, {id(args[0])})


@_handles(Tensor.to)
def _to(recorder: Recorder, func: Any, args: Any, kwargs: Any) -> Any:
    moves = any(isinstance(a, (str, torch.device)) for a in (*args[1:], kwargs.get("device")))
    return (_moved if moves else _call)(recorder, func, args, kwargs)


def _call(recorder: Recorder, func: Any, args: Any, kwargs: Any) -> Any:
    return recorder.call(func, args, kwargs)


HANDLERS.update(dict.fromkeys((Tensor.cpu, Tensor.cuda), _moved))
