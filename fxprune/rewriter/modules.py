"""New modules from old ones: sliced parameters, and attributes that tell the truth about them."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, TypeAlias

from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from fxprune.capture.metacopy import shallow_copy
from fxprune.rewriter.rows import convolution_groups, norm_groups, shuffle_channels
from fxprune.rewriter.site import Site
from fxprune.slicing import Slicer
from fxprune.walks import named_tensors

_HOOKS = tuple(name for name in vars(nn.Module()) if name.endswith(("_hooks", "_with_kwargs")))


class ModuleCopier:
    """Copies a module tree with sliced parameters. Ties of parameters and of modules survive."""

    def __init__(self, root: nn.Module, slicer: Slicer, share: bool) -> None:
        self._slice = slicer
        self._share = share
        self._values = slicer.plan.values
        self._tensors: dict[int, Tensor] = {}
        self._modules: dict[int, nn.Module] = {}
        self._names = {id(t): name for name, t in named_tensors(root)}

    def copy(self, module: nn.Module) -> nn.Module:
        """A copy without hooks; the same module gives the same copy."""
        if id(module) not in self._modules:
            new = self._modules[id(module)] = shallow_copy(module)
            state = vars(new)
            state.update({name: OrderedDict() for name in _HOOKS})
            for name, value in state.items():
                if name[0] != "_" and isinstance(value, (list, dict, set)):
                    state[name] = copy.copy(value)
            state["_parameters"] = {n: self.tensor(p) for n, p in module._parameters.items()}
            state["_buffers"] = {n: self.tensor(b) for n, b in module._buffers.items()}
            state["_modules"] = {n: m and self.copy(m) for n, m in module._modules.items()}
            state["_non_persistent_buffers_set"] = set(module._non_persistent_buffers_set)
        return self._modules[id(module)]

    def tensor(self, old: Any) -> Any:
        """The new parameter or buffer; the same tensor gives the same copy."""
        if not isinstance(old, Tensor):
            return old
        if id(old) not in self._tensors:
            self._tensors[id(old)] = self._new_tensor(old)
        return self._tensors[id(old)]

    def _new_tensor(self, old: Tensor) -> Tensor:
        name = self._names.get(id(old), "")
        members, edited = self._slice.members.get(name), self._values.get(name)
        if members is None and edited is None and self._share:
            return old
        data = old.detach() if edited is None else edited.to(old.device, old.dtype)
        data = data.clone() if members is None else self._slice(data, members)
        if isinstance(old, nn.Parameter):
            return nn.Parameter(data, requires_grad=old.requires_grad)
        return data


Fix: TypeAlias = Callable[[Any, Site], None]


def _convolution(module: Any, site: Site) -> None:
    transposed = module.transposed
    if module.groups != 1:
        weight = site.selection.analysis.propagation.layouts[f"{site.old.target}.weight"]
        module.groups = convolution_groups(site, weight, transposed)
    outer, inner = module.weight.shape[:2]
    inner *= module.groups
    module.in_channels, module.out_channels = (outer, inner) if transposed else (inner, outer)


def _linear(module: Any, site: Site) -> None:
    module.out_features, module.in_features = module.weight.shape


def _bilinear(module: Any, site: Site) -> None:
    module.out_features, module.in1_features, module.in2_features = module.weight.shape


def _batch_norm(module: Any, site: Site) -> None:
    module.num_features = site.width(site.out[1])


def _instance_norm(module: Any, site: Site) -> None:
    channel = site.out[-1 - _INSTANCE_RANK[type(module)]]
    module.num_features = site.width(channel)


def _layer_norm(module: Any, site: Site) -> None:
    count = len(module.normalized_shape)
    module.normalized_shape = tuple(site.width(axis) for axis in site.out[-count:])


def _group_norm(module: Any, site: Site) -> None:
    module.num_groups = norm_groups(site)
    module.num_channels = site.width(site.out[1])


def _embedding(module: Any, site: Site) -> None:
    module.num_embeddings, module.embedding_dim = module.weight.shape


def _prelu(module: Any, site: Site) -> None:
    module.num_parameters = module.weight.numel()


def _recurrent(module: Any, site: Site) -> None:
    module.input_size = module.weight_ih_l0.shape[1]
    module.hidden_size = module.weight_ih_l0.shape[0] // _GATES[type(module)]
    if module.proj_size:
        module.proj_size = module.weight_hh_l0.shape[1]
    module._flat_weights = [getattr(module, name) for name in module._flat_weights_names]


def _cell(module: Any, site: Site) -> None:
    module.input_size, module.hidden_size = module.weight_ih.shape[1], module.weight_hh.shape[1]


def _unflatten(module: Any, site: Site) -> None:
    rank = len(site.axes(site.old.args[0]))
    dim = int(module.dim) % rank
    sizes = module.unflattened_size
    axes = site.out[dim : dim + len(sizes)]
    pairs = zip(sizes, axes, strict=True)
    module.unflattened_size = tuple(site.width(a) if site.changed(a) else s for s, a in pairs)


def _channel_shuffle(module: Any, site: Site) -> None:
    shuffle_channels(site, module.groups)


_GATES: Mapping[type, int] = MappingProxyType({nn.LSTM: 4, nn.GRU: 3, nn.RNN: 1})
_INSTANCE_RANK: Mapping[type, int] = MappingProxyType(
    {nn.InstanceNorm1d: 1, nn.InstanceNorm2d: 2, nn.InstanceNorm3d: 3}
)

FIXES: Mapping[type, Fix] = MappingProxyType(
    {
        **dict.fromkeys((nn.Conv1d, nn.Conv2d, nn.Conv3d), _convolution),
        **dict.fromkeys((nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d), _convolution),
        **dict.fromkeys((nn.Linear, NonDynamicallyQuantizableLinear), _linear),
        nn.Bilinear: _bilinear,
        **dict.fromkeys(
            (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm), _batch_norm
        ),
        **dict.fromkeys(_INSTANCE_RANK, _instance_norm),
        **dict.fromkeys((nn.LayerNorm, nn.RMSNorm), _layer_norm),
        nn.GroupNorm: _group_norm,
        **dict.fromkeys((nn.Embedding, nn.EmbeddingBag), _embedding),
        nn.ChannelShuffle: _channel_shuffle,
        nn.PReLU: _prelu,
        **dict.fromkeys(_GATES, _recurrent),
        **dict.fromkeys((nn.LSTMCell, nn.GRUCell, nn.RNNCell), _cell),
        nn.Unflatten: _unflatten,
    }
)
"""Module type → how its attributes follow its parameters and axes."""
