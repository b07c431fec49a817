"""Graphs, shared branches, several inputs and outputs, bare parameters, reparametrised weights."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, spectral_norm, weight_norm

from tests.handmade.table import VOCABULARY, Handmade, Inputs, floats, joined, tokens


class GraphConvolution(nn.Module):
    """Kipf and Welling: features times a bare weight, mixed by a normalised adjacency matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.w1, self.w2 = nn.Parameter(torch.randn(5, 12)), nn.Parameter(torch.randn(12, 9))
        self.b1 = nn.Parameter(torch.randn(12))
        self.head = nn.Linear(9, 3)

    def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
        degree = adjacency.sum(-1).clamp(min=1).rsqrt()
        mixing = adjacency * degree[:, None] * degree[None, :]
        x = torch.relu(mixing @ (x @ self.w1) + self.b1)
        return self.head(torch.relu(torch.mm(mixing, x @ self.w2)))


class MessagePassing(nn.Module):
    """Messages along edges are added up at their targets by index_add, degrees by scatter_add."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(5, 10)
        self.message = nn.Sequential(nn.Linear(20, 14), nn.ReLU(), nn.Linear(14, 10))
        self.own, self.head = nn.Linear(10, 8), nn.Linear(8, 3)
        self.gathered = nn.Linear(10, 8, bias=False)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        x = self.embed(x)
        source, target = edges[0], edges[1]
        messages = self.message(torch.cat([x[source], x[target]], dim=-1))
        summed = torch.zeros_like(x).index_add(0, target, messages)
        ones = torch.ones(edges.shape[1], dtype=x.dtype, device=x.device)
        degree = torch.zeros(x.shape[0], dtype=x.dtype).scatter_add(0, target, ones)
        mean = summed / degree.clamp(min=1).unsqueeze(-1)
        return self.head(torch.relu(self.own(x) + self.gathered(mean)))


class GraphAttention(nn.Module):
    """GAT on dense graphs: additive scores per head from two bare vectors, masked softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Linear(5, 3 * 6, bias=False)
        self.left, self.right = (nn.Parameter(torch.randn(1, 3, 6)) for _ in range(2))
        self.head = nn.Linear(18, 3)

    def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
        h = self.map(x).view(-1, 3, 6)
        left, right = (h * self.left).sum(-1), (h * self.right).sum(-1)
        scores = F.leaky_relu(left.unsqueeze(1) + right.unsqueeze(0), 0.2)
        scores = scores.masked_fill(adjacency.unsqueeze(-1) == 0, -1e9).softmax(1)
        return self.head(F.elu(torch.einsum("ijh,jhf->ihf", scores, h).flatten(1)))


class Siamese(nn.Module):
    """Two inputs through one network; distance and product of the embeddings."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(5, 12), nn.ReLU(), nn.Linear(12, 8))
        self.head = nn.Linear(16, 2)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        a, b = self.body(left), self.body(right)
        return self.head(torch.cat([(a - b).abs(), a * b], dim=1))


class Octave(nn.Module):
    """Eight slices of the input through one network, concatenated."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv1d(4, 10, 3, padding=1), nn.BatchNorm1d(10), nn.ReLU())
        self.last, self.head = nn.Conv1d(10, 6, 1), nn.Linear(48, 3)

    def forward(self, x: Tensor) -> Tensor:
        branches = [self.last(self.body(part)).mean(-1) for part in x.chunk(8, dim=1)]
        return self.head(torch.cat(branches, dim=1))


class Multimodal(nn.Module):
    """Image, text and table; three outputs in a tuple, one of them nested."""

    def __init__(self) -> None:
        super().__init__()
        self.image = nn.Sequential(nn.Conv2d(3, 9, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
        self.text, self.table = nn.EmbeddingBag(VOCABULARY, 7), nn.Linear(4, 6)
        self.fuse = nn.Linear(9 + 7 + 6, 10)
        self.label, self.box, self.score = nn.Linear(10, 3), nn.Linear(10, 4), nn.Linear(9, 1)

    def forward(self, image: Tensor, text: Tensor, table: Tensor) -> tuple[Tensor, list[Tensor]]:
        image = self.image(image).squeeze(-1).squeeze(-1)
        parts = [image, self.text(text), torch.tanh(self.table(table))]
        fused = torch.relu(self.fuse(torch.cat(parts, 1)))
        return self.label(fused), [self.box(fused).sigmoid(), self.score(image)]


@dataclass
class Detection:
    boxes: Tensor
    scores: Tensor
    features: dict[str, Tensor] | None = None


class Record(nn.Module):
    """Returns a dataclass that holds a dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.side = nn.Linear(5, 12), nn.Linear(12, 8)
        self.boxes, self.scores = nn.Linear(8, 4), nn.Linear(8, 2)
        self.aux = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Detection:
        x = torch.relu(self.body(x))
        y = torch.relu(self.side(x))
        return Detection(self.boxes(y), self.scores(y), {"aux": self.aux(x)})


class BareParameters(nn.Module):
    """Learned queries, a position table, a scale and bias per channel, a logit scale."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 10, 4, stride=4)
        self.positions = nn.Parameter(torch.randn(1, 10, 4, 4))
        self.scale, self.bias = (nn.Parameter(torch.randn(1, 10, 1, 1)) for _ in range(2))
        self.queries = nn.Parameter(torch.randn(5, 10))
        self.prototypes = nn.Parameter(torch.randn(3, 10))
        self.logit_scale = nn.Parameter(torch.tensor(0.5))

    def forward(self, x: Tensor) -> Tensor:
        x = (self.stem(x) + self.positions) * self.scale + self.bias
        x = x.flatten(2)
        weights = torch.einsum("qc,bcn->bqn", self.queries, x).softmax(-1)
        pooled = torch.einsum("bqn,bcn->bqc", weights, x)
        pooled = F.normalize(pooled, dim=-1)
        return self.logit_scale.exp() * pooled @ F.normalize(self.prototypes, dim=-1).t()


class WeightNorms(nn.Module):
    """Weight normalisation by hooks and by parametrisation, of several dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.hooked = weight_norm(nn.Conv1d(3, 8, 3, padding=1))
        self.modern = parametrizations.weight_norm(nn.Conv1d(8, 10, 3, padding=1))
        self.up = parametrizations.weight_norm(nn.ConvTranspose1d(10, 6, 4, 2, 1), dim=0)
        self.head = weight_norm(nn.Linear(6, 3))

    def forward(self, x: Tensor) -> Tensor:
        x = F.leaky_relu(self.modern(F.leaky_relu(self.hooked(x))))
        return self.head(torch.tanh(self.up(x)).transpose(1, 2))


class SpectralNorms(nn.Module):
    """Spectral normalisation by hooks and by parametrisation."""

    def __init__(self) -> None:
        super().__init__()
        self.first = spectral_norm(nn.Conv2d(3, 8, 3, padding=1))
        self.second = parametrizations.spectral_norm(nn.Conv2d(8, 10, 3, padding=1))
        self.third = parametrizations.spectral_norm(nn.Linear(10, 7))
        self.head = spectral_norm(nn.Linear(7, 3))

    def forward(self, x: Tensor) -> Tensor:
        x = F.leaky_relu(self.second(F.leaky_relu(self.first(x)))).mean((2, 3))
        return self.head(F.leaky_relu(self.third(x)))


class Orthogonal(nn.Module):
    """A weight that is a matrix exponential keeps its shape; the layers around it may shrink."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(5, 12)
        self.skew = nn.Parameter(torch.randn(12, 12))
        self.second, self.head = nn.Linear(12, 9), nn.Linear(9, 3)

    def forward(self, x: Tensor) -> Tensor:
        skew = self.skew.triu(1)
        x = F.linear(self.first(x), torch.matrix_exp(skew - skew.t()))
        return self.head(torch.relu(self.second(x)))


def _graph(nodes: int, features: int, edges: int) -> Inputs:
    adjacency = (torch.rand(nodes, nodes) < 0.4).double()
    listed = torch.randint(0, nodes, (2, edges))
    return {**floats(x=(nodes, features))(), "adjacency": adjacency, "edges": listed}


def _part(name: str, nodes: int, edges: int) -> Inputs:
    graph = _graph(nodes, 5, edges)
    return {"x": graph["x"], name: graph[name]}


VECTORS = floats(x=(2, 5)), floats(x=(3, 5))
DENSE = (lambda: _part("adjacency", 7, 1)), (lambda: _part("adjacency", 11, 1))
SPARSE = (lambda: _part("edges", 7, 15)), (lambda: _part("edges", 11, 40))

MODELS = {
    "graph_convolution": Handmade(GraphConvolution, *DENSE, "9 12"),
    "message_passing": Handmade(MessagePassing, *SPARSE, "8 10 14"),
    "graph_attention": Handmade(GraphAttention, *DENSE, "3 3x6"),
    "siamese": Handmade(
        Siamese, floats(left=(2, 5), right=(2, 5)), floats(left=(3, 5), right=(3, 5)), "8 12"
    ),
    "octave": Handmade(Octave, floats(x=(2, 32, 6)), floats(x=(3, 32, 9)), "6 10"),
    "multimodal": Handmade(
        Multimodal,
        joined(floats(image=(2, 3, 8, 8), table=(2, 4)), tokens(text=(2, 6))),
        joined(floats(image=(3, 3, 9, 8), table=(3, 4)), tokens(text=(3, 9))),
        "6 7 9 10",
    ),
    "record": Handmade(Record, *VECTORS, "8 12"),
    "bare_parameters": Handmade(
        BareParameters, floats(x=(2, 3, 16, 16)), floats(x=(3, 3, 16, 16)), "10"
    ),
    "weight_norms": Handmade(WeightNorms, floats(x=(2, 3, 8)), floats(x=(3, 3, 11)), "6 8 10"),
    "spectral_norms": Handmade(
        SpectralNorms, floats(x=(2, 3, 8, 8)), floats(x=(3, 3, 9, 8)), "7 8 10"
    ),
    "orthogonal": Handmade(Orthogonal, *VECTORS, "9", share=0.35),
}
