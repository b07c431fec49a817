"""Token mixing, gating, products of computed weights, experts, routing, tied weights."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.handmade.table import VOCABULARY, Handmade, floats, joined, tokens


class Mixer(nn.Module):
    """MLP-Mixer: a network across patches, a network across channels."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 14, 4, stride=4)
        self.norm1, self.norm2 = nn.LayerNorm(14), nn.LayerNorm(14)
        self.tokens = nn.Sequential(nn.Linear(16, 9), nn.GELU(), nn.Linear(9, 16))
        self.channels = nn.Sequential(nn.Linear(14, 20), nn.GELU(), nn.Linear(20, 14))
        self.head = nn.Linear(14, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = x + self.tokens(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        return self.head((x + self.channels(self.norm2(x))).mean(1))


class SpatialGate(nn.Module):
    """gMLP: one half gates the other after a map across tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm = nn.Linear(5, 14), nn.LayerNorm(10)
        self.inner, self.outer = nn.Linear(14, 20), nn.Linear(10, 14)
        self.space = nn.Conv1d(9, 9, 1)
        self.head = nn.Linear(14, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        u, v = F.gelu(self.inner(x)).chunk(2, dim=-1)
        return self.head((x + self.outer(u * self.space(self.norm(v)))).mean(1))


class GatedFeedForward(nn.Module):
    """SwiGLU with fused gate and value, GEGLU with separate ones."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(5, 14), nn.Linear(14, 3)
        self.fused, self.down1 = nn.Linear(14, 24), nn.Linear(12, 14)
        self.gate, self.up, self.down2 = nn.Linear(14, 9), nn.Linear(14, 9), nn.Linear(9, 14)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        gate, value = self.fused(x).split(12, dim=-1)
        x = x + self.down1(F.silu(gate) * value)
        return self.head(x + self.down2(F.gelu(self.gate(x)) * self.up(x)))


class EinsumAttention(nn.Module):
    """A transformer block of bare weights and einsum alone."""

    def __init__(self) -> None:
        super().__init__()
        shapes = {"e": (5, 14), "q": (14, 4, 6), "k": (14, 4, 6), "v": (14, 4, 5)}
        shapes |= {"o": (4, 5, 14), "up": (14, 20), "down": (20, 14), "out": (14, 3)}
        self.w = nn.ParameterDict({n: nn.Parameter(torch.randn(s)) for n, s in shapes.items()})

    def forward(self, x: Tensor) -> Tensor:
        x = torch.einsum("bti,ic->btc", x, self.w["e"])
        q, k, v = (torch.einsum("btc,chk->bthk", x, self.w[name]) for name in "qkv")
        weights = (torch.einsum("bthk,bshk->bhts", q, k) * 0.4).softmax(-1)
        y = torch.einsum("bhts,bshk->bthk", weights, v)
        x = x + torch.einsum("bthk,hkc->btc", y, self.w["o"])
        y = torch.relu(torch.einsum("btc,cf->btf", x, self.w["up"]))
        x = x + torch.einsum("btf,fc->btc", y, self.w["down"])
        return torch.einsum("btc,co->bto", x, self.w["out"])


class BilinearPooling(nn.Module):
    """The outer product of two feature maps, pooled, with a signed square root; nn.Bilinear."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 6, 3), nn.Conv2d(3, 7, 3)
        self.mix, self.both = nn.Linear(42, 8), nn.Bilinear(8, 6, 9)
        self.head = nn.Linear(9, 3)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.left(x), self.right(x)
        pooled = torch.einsum("bihw,bjhw->bij", left, right).flatten(1)
        pooled = self.mix(torch.sign(pooled) * torch.sqrt(pooled.abs() + 1e-5))
        return self.head(self.both(pooled, left.mean((2, 3))))


class Tensorised(nn.Module):
    """A tensor-train layer: features as a grid, each side contracted with a core of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(5, 4 * 6)
        self.a, self.b = nn.Parameter(torch.randn(4, 3, 7)), nn.Parameter(torch.randn(7, 6, 5))
        self.head = nn.Linear(15, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x)).view(-1, 4, 6)
        return self.head(torch.einsum("bij,ipr,rjq->bpq", x, self.a, self.b).flatten(1))


class HyperNetwork(nn.Module):
    """A code makes the weight and the bias of a layer; another weight is of low rank."""

    def __init__(self) -> None:
        super().__init__()
        self.make = nn.Linear(4, 9 * 7)
        self.shift, self.first = nn.Linear(4, 9), nn.Linear(5, 7)
        self.u, self.v = nn.Parameter(torch.randn(8, 3)), nn.Parameter(torch.randn(3, 9))
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor, code: Tensor) -> Tensor:
        weight = self.make(code).view(-1, 9, 7)
        x = torch.relu(self.first(x))
        x = torch.bmm(weight, x.unsqueeze(-1)).squeeze(-1) + self.shift(code)
        return self.head(F.linear(torch.relu(x), self.u @ self.v))


class SharedCode(nn.Module):
    """A learned vector makes a convolution's kernel, the same for all samples."""

    def __init__(self) -> None:
        super().__init__()
        self.seed = nn.Parameter(torch.randn(4))
        self.make, self.first = nn.Linear(4, 8 * 6 * 9), nn.Conv2d(3, 6, 1)
        self.head = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        kernel = self.make(self.seed).view(8, 6, 3, 3)
        return self.head(F.relu(F.conv2d(self.first(x), kernel, padding=1)))


class DenseExperts(nn.Module):
    """Experts in three-dimensional parameters, all computed, weighed by a softmax gate."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.gate = nn.Linear(5, 14), nn.Linear(14, 4)
        self.up, self.down = (
            nn.Parameter(torch.randn(4, 14, 9)),
            nn.Parameter(torch.randn(4, 9, 14)),
        )
        self.bias = nn.Parameter(torch.randn(4, 1, 9))
        self.head = nn.Linear(14, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        gates = self.gate(x).softmax(-1)
        flat = x.reshape(-1, x.shape[-1]).expand(4, -1, -1)
        y = torch.bmm(F.gelu(torch.bmm(flat, self.up) + self.bias), self.down)
        y = torch.einsum("enc,ne->nc", y, gates.reshape(-1, 4))
        return self.head(x + y.view_as(x))


class ListedExperts(nn.Module):
    """Experts as modules of a list, stacked; each with a width of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.gate = nn.Linear(5, 14), nn.Linear(14, 3)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(14, w), nn.GELU(), nn.Linear(w, 14)) for w in (7, 8, 9)
        )
        self.head = nn.Linear(14, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        outputs = torch.stack([expert(x) for expert in self.experts], dim=-2)
        gates = self.gate(x).softmax(-1).unsqueeze(-1)
        return self.head(x + (outputs * gates).sum(-2))


class Capsules(nn.Module):
    """Dynamic routing: agreement between votes and outputs, three times; lengths as classes."""

    def __init__(self) -> None:
        super().__init__()
        self.primary = nn.Linear(5, 8 * 4)
        self.votes = nn.Parameter(torch.randn(8, 3, 4, 6))

    @staticmethod
    def squash(x: Tensor) -> Tensor:
        norm = x.square().sum(-1, keepdim=True)
        return norm / (1 + norm) * x / torch.sqrt(norm + 1e-8)

    def forward(self, x: Tensor) -> Tensor:
        u = self.squash(self.primary(x).view(-1, 8, 4))
        votes = torch.einsum("bni,ncij->bncj", u, self.votes)
        logits = torch.zeros(*votes.shape[:3], dtype=x.dtype)
        for _ in range(3):
            coupling = logits.softmax(dim=2).unsqueeze(-1)
            output = self.squash((coupling * votes).sum(1))
            logits = logits + (votes * output.unsqueeze(1)).sum(-1)
        return output.norm(dim=-1)


class Variational(nn.Module):
    """A VAE in evaluation: the mean is decoded; the reparametrisation is there in training."""

    def __init__(self) -> None:
        super().__init__()
        self.encode, self.moments = nn.Linear(10, 14), nn.Linear(14, 2 * 6)
        self.decode = nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 10))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean, log_variance = self.moments(torch.relu(self.encode(x))).chunk(2, dim=-1)
        z = mean
        if self.training:
            z = mean + torch.exp(0.5 * log_variance) * torch.randn_like(mean)
        divergence = -0.5 * (1 + log_variance - mean.square() - log_variance.exp()).sum(-1)
        return self.decode(z), divergence, mean.square().sum(-1)


class TiedAutoencoder(nn.Module):
    """The decoder uses the encoder's weights, transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.outer, self.inner = nn.Linear(10, 8), nn.Linear(8, 6)
        self.bias1, self.bias2 = nn.Parameter(torch.zeros(8)), nn.Parameter(torch.zeros(10))

    def forward(self, x: Tensor) -> Tensor:
        z = torch.relu(self.inner(torch.relu(self.outer(x))))
        y = torch.relu(F.linear(z, self.inner.weight.t(), self.bias1))
        return F.linear(y, self.outer.weight.t(), self.bias2)


class TiedLanguageModel(nn.Module):
    """Embedding and unembedding share a weight; so do two feed-forward layers."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm = nn.Embedding(VOCABULARY, 14), nn.RMSNorm(14)
        self.positions = nn.Embedding(32, 14)
        self.up, self.down = nn.Linear(14, 20), nn.Linear(20, 14)
        self.unembed = nn.Linear(14, VOCABULARY, bias=False)
        self.unembed.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids) + self.positions(torch.arange(ids.shape[1]))
        for _ in range(2):
            x = x + self.down(F.gelu(self.up(self.norm(x))))
        return self.unembed(x)


class Recommender(nn.Module):
    """Factorisation machine and deep network over the embeddings of categorical fields."""

    def __init__(self) -> None:
        super().__init__()
        self.fields = nn.ModuleList(nn.Embedding(VOCABULARY, 6) for _ in range(3))
        self.dense = nn.Linear(4, 6)
        self.deep = nn.Sequential(nn.Linear(24, 9), nn.ReLU(), nn.Linear(9, 1))
        self.cross = nn.Linear(6, 1)

    def forward(self, ids: Tensor, x: Tensor) -> Tensor:
        columns = [field(ids[:, i]) for i, field in enumerate(self.fields)]
        parts = torch.stack([*columns, self.dense(x)], dim=1)
        second = parts.sum(1).square() - parts.square().sum(1)
        gram = torch.bmm(parts, parts.transpose(1, 2))
        return self.deep(parts.flatten(1)) + self.cross(second) + gram.mean((1, 2))[:, None]


SEQUENCES = floats(x=(2, 9, 5)), floats(x=(3, 13, 5))
VECTORS = floats(x=(2, 10)), floats(x=(3, 10))
CODED = floats(x=(2, 5), code=(2, 4)), floats(x=(3, 5), code=(3, 4))

MODELS = {
    "mixer": Handmade(Mixer, floats(x=(2, 3, 16, 16)), floats(x=(3, 3, 16, 16)), "9 14 20"),
    "spatial_gate": Handmade(SpatialGate, SEQUENCES[0], floats(x=(3, 9, 5)), "10 14", share=0.85),
    "gated_feed_forward": Handmade(GatedFeedForward, *SEQUENCES, "9 12 14"),
    "einsum_attention": Handmade(EinsumAttention, *SEQUENCES, "4 14 20 4x5 4x6"),
    "bilinear_pooling": Handmade(
        BilinearPooling, floats(x=(2, 3, 8, 8)), floats(x=(3, 3, 9, 8)), "6 7 8 9"
    ),
    "tensorised": Handmade(Tensorised, floats(x=(2, 5)), floats(x=(3, 5)), "3 4 5 6 7"),
    "hyper_network": Handmade(HyperNetwork, *CODED, "3 7 8 9"),
    "shared_code": Handmade(SharedCode, floats(x=(2, 3, 8, 8)), floats(x=(3, 3, 9, 8)), "4 6 8"),
    "dense_experts": Handmade(DenseExperts, *SEQUENCES, "4 14 4x9"),
    "listed_experts": Handmade(ListedExperts, *SEQUENCES, "7 8 9 14"),
    "capsules": Handmade(Capsules, floats(x=(2, 5)), floats(x=(3, 5)), "8 3x6 8x4"),
    "variational": Handmade(Variational, *VECTORS, "6 9 14"),
    "tied_autoencoder": Handmade(TiedAutoencoder, *VECTORS, "6 8"),
    "tied_language_model": Handmade(
        TiedLanguageModel, tokens(ids=(2, 9)), tokens(ids=(3, 13)), "14 20"
    ),
    "recommender": Handmade(
        Recommender,
        joined(floats(x=(2, 4)), tokens(ids=(2, 3))),
        joined(floats(x=(3, 4)), tokens(ids=(3, 3))),
        "6 9",
    ),
}
