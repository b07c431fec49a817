"""Networks of one idea each: attention over channels, masks on kernels, recurrences by hand."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.handmade.detection import block
from tests.handmade.table import Handmade, floats


class ChannelAttention(nn.Module):
    """ECA: a convolution over the channels, as a sequence, gates them; CBAM's spatial gate."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.other = block(3, 8), block(8, 10)
        self.eca = nn.Conv1d(1, 1, 3, padding=1, bias=False)
        self.inner, self.spatial = block(10, 12), nn.Conv2d(2, 1, 3, padding=1)
        self.head = nn.Conv2d(12, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        pooled = x.mean((2, 3)).unsqueeze(1)
        x = self.other(x * torch.sigmoid(self.eca(pooled)).transpose(1, 2).unsqueeze(-1))
        x = self.inner(x)
        maps = torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)
        return self.head(x * torch.sigmoid(self.spatial(maps)))


class Coordinates(nn.Module):
    """CoordConv and coordinate attention: positions as channels, pools along each side."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.squeeze = block(5, 8), nn.Conv2d(8, 6, 1)
        self.rows, self.columns = nn.Conv2d(6, 8, 1), nn.Conv2d(6, 8, 1)
        self.head = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        batch, _, height, width = x.shape
        ys = torch.linspace(-1, 1, height, dtype=x.dtype).view(1, 1, -1, 1)
        xs = torch.linspace(-1, 1, width, dtype=x.dtype).view(1, 1, 1, -1)
        grid = [c.expand(batch, 1, height, width) for c in (ys, xs)]
        x = self.stem(torch.cat([x, *grid], dim=1))
        pooled = torch.cat([x.mean(3, keepdim=True), x.mean(2, keepdim=True).transpose(2, 3)], 2)
        rows, columns = F.hardswish(self.squeeze(pooled)).split([height, width], dim=2)
        columns = self.columns(columns.transpose(2, 3)).sigmoid()
        return self.head(x * self.rows(rows).sigmoid() * columns)


class MaskedConvolution(nn.Module):
    """PixelCNN: kernels times a mask; a blur by a fixed depthwise kernel in front."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 9, 3, padding=1)
        mask = torch.ones(1, 1, 3, 3, dtype=torch.float64)
        mask[..., 2, :] = mask[..., 1, 1:] = 0
        self.register_buffer("mask", mask)
        blur = torch.tensor([1.0, 2.0, 1.0], dtype=torch.float64)
        self.register_buffer("blur", (blur[:, None] * blur[None, :] / 16)[None, None])
        self.head = nn.Conv2d(9, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        x = F.conv2d(x, self.blur.expand(x.shape[1], 1, 3, 3), padding=1, groups=x.shape[1])
        x = F.conv2d(x, self.second.weight * self.mask, self.second.bias, padding=1)
        return self.head(torch.relu(x))


class ConvolutionalLSTM(nn.Module):
    """Gates by one convolution of input and state, split; peepholes; a fixed number of steps."""

    def __init__(self) -> None:
        super().__init__()
        self.gates = nn.Conv2d(3 + 7, 4 * 7, 3, padding=1)
        self.peephole = nn.Parameter(torch.randn(1, 7, 1, 1))
        self.head = nn.Conv2d(7, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        batch, _, _, height, width = x.shape
        hidden = cell = torch.zeros(batch, 7, height, width, dtype=x.dtype)
        for step in range(2):
            gates = self.gates(torch.cat([x[:, step], hidden], 1))
            i, f, o, g = torch.chunk(gates, 4, dim=1)
            cell = torch.sigmoid(f + self.peephole * cell) * cell + torch.sigmoid(i) * torch.tanh(g)
            hidden = torch.sigmoid(o) * torch.tanh(cell)
        return self.head(hidden)


class Reparametrised(nn.Module):
    """RepVGG: three parallel branches, the identity as a batch normalisation, are summed."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = block(3, 8)
        self.wide = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8))
        self.point = nn.Sequential(nn.Conv2d(8, 8, 1, bias=False), nn.BatchNorm2d(8))
        self.identity, self.head = nn.BatchNorm2d(8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = F.relu(self.wide(x) + self.point(x) + self.identity(x))
        return self.head(F.adaptive_max_pool2d(x, 1)[:, :, 0, 0])


class Slots(nn.Module):
    """Slot attention: a GRU cell updates learned slots, normalised over slots."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm = nn.Linear(5, 12), nn.LayerNorm(12)
        self.slots = nn.Parameter(torch.randn(1, 3, 10))
        self.q, self.k, self.v = nn.Linear(10, 8), nn.Linear(12, 8), nn.Linear(12, 9)
        self.update, self.head = nn.GRUCell(9, 10), nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.embed(x))
        k, v = self.k(x), self.v(x)
        slots = self.slots.expand(x.shape[0], -1, -1)
        for _ in range(2):
            weights = torch.einsum("bkd,bnd->bkn", self.q(slots), k).softmax(1) + 1e-8
            weights = weights / weights.sum(-1, keepdim=True)
            updates = torch.einsum("bkn,bnd->bkd", weights, v)
            slots = self.update(updates.reshape(-1, 9), slots.reshape(-1, 10)).view(-1, 3, 10)
        return self.head(slots)


class DoubleResiduals(nn.Module):
    """N-BEATS: each block subtracts a backcast and adds a forecast; a last step is repeated."""

    def __init__(self) -> None:
        super().__init__()
        self.stacks = nn.ModuleList(nn.Sequential(nn.Linear(10, w), nn.ReLU()) for w in (7, 9))
        self.thetas = nn.ModuleList(nn.Linear(w, 2 * 6) for w in (7, 9))
        self.backcast, self.forecast = nn.Linear(6, 10), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        level = x[:, -1:].expand(-1, 4)
        for stack, theta in zip(self.stacks, self.thetas, strict=True):
            back, fore = theta(stack(x)).split([6, 6], dim=-1)
            x, level = x - self.backcast(back), level + self.forecast(fore)
        return level


class Sets(nn.Module):
    """PointNet: a network per point, the maximum, a learned transform, concatenation back."""

    def __init__(self) -> None:
        super().__init__()
        self.point, self.deep = nn.Conv1d(3, 8, 1), nn.Conv1d(8, 12, 1)
        self.transform = nn.Linear(8, 3 * 3)
        self.norm, self.last = nn.BatchNorm1d(8), nn.Conv1d(20, 6, 1)
        self.head = nn.Conv1d(6, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        matrix = self.transform(torch.relu(self.point(x)).max(dim=-1)[0]).view(-1, 3, 3)
        x = torch.relu(self.norm(self.point(torch.bmm(matrix, x))))
        whole = self.deep(x).max(dim=-1, keepdim=True).values.expand(-1, -1, x.shape[-1])
        return self.head(torch.relu(self.last(torch.cat([x, whole], dim=1))))


class Spectral(nn.Module):
    """FNO: a transform to frequencies, complex bare weights per mode, and back; a local path."""

    def __init__(self) -> None:
        super().__init__()
        self.lift, self.local = nn.Conv1d(2, 8, 1), nn.Conv1d(8, 9, 1)
        self.real, self.imaginary = (nn.Parameter(torch.randn(8, 9, 3)) for _ in range(2))
        self.head = nn.Conv1d(9, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.lift(x)
        frequencies = torch.fft.rfft(x)[..., :3]
        weight = torch.complex(self.real, self.imaginary)
        mixed = torch.einsum("bim,iom->bom", frequencies, weight)
        return self.head(F.gelu(torch.fft.irfft(mixed, n=x.shape[-1]) + self.local(x)))


class Quantised(nn.Module):
    """VQ-VAE: the nearest code of a table, looked up by argmin; straight through in training."""

    def __init__(self) -> None:
        super().__init__()
        self.encode, self.mix = nn.Linear(5, 12), nn.Linear(12, 6)
        self.codes = nn.Parameter(torch.randn(8, 6))
        self.decode, self.head = nn.Linear(6, 9), nn.Linear(9, 5)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        z = self.mix(torch.relu(self.encode(x)))
        distances = (z.unsqueeze(-2) - self.codes).square().sum(-1)
        chosen = self.codes[distances.argmin(-1)]
        error = (chosen - z).square().sum(-1)
        z = z + (chosen - z).detach()
        return self.head(torch.relu(self.decode(z))), error


class Scan(nn.Module):
    """A selective state space by hand: discretised states, a cumulative sum, gates, a skip."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.inner = nn.Linear(5, 10), nn.Linear(10, 2 * 12)
        self.conv = nn.Conv1d(12, 12, 3, groups=12, padding=2)
        self.select, self.delta = nn.Linear(12, 4 + 2 * 3), nn.Linear(4, 12)
        self.a, self.d = nn.Parameter(torch.randn(12, 3)), nn.Parameter(torch.ones(12))
        self.outer, self.head = nn.Linear(12, 10), nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        residual = self.embed(x)
        x, gate = self.inner(residual).chunk(2, dim=-1)
        x = F.silu(self.conv(x.transpose(1, 2))[..., : x.shape[1]].transpose(1, 2))
        low, b, c = self.select(x).split([4, 3, 3], dim=-1)
        delta = F.softplus(self.delta(low))
        decay = torch.einsum("bld,dn->bldn", delta, -self.a.exp())
        total = torch.einsum("bld,bln,bld->bldn", delta, b, x)
        states = (total * torch.exp(-decay.cumsum(1) * 0.01)).cumsum(1)
        y = torch.einsum("bldn,bln->bld", states, c) + x * self.d
        return self.head(residual + self.outer(y * F.silu(gate)))


class Shifted(nn.Module):
    """Channels in groups are rolled along the sides, as in shift networks; PReLU, Maxout."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.act = nn.Conv2d(3, 12, 1), nn.PReLU(12)
        self.maxout, self.head = nn.Conv2d(12, 3 * 7, 1), nn.Conv2d(7, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        a, b, c = self.act(self.first(x)).chunk(3, dim=1)
        x = torch.cat([a.roll(1, 2), b.roll(-1, 3), c], dim=1)
        batch, _, height, width = x.shape
        x = self.maxout(x).view(batch, 7, 3, height, width).max(dim=2).values
        return self.head(x)


IMAGES = floats(x=(2, 3, 8, 8)), floats(x=(3, 3, 12, 8))
SEQUENCES = floats(x=(2, 9, 5)), floats(x=(3, 13, 5))

MODELS = {
    "channel_attention": Handmade(ChannelAttention, *IMAGES, "10 12", share=0.85),
    "coordinates": Handmade(Coordinates, *IMAGES, "6 8"),
    "masked_convolution": Handmade(MaskedConvolution, *IMAGES, "8 9"),
    "convolutional_lstm": Handmade(
        ConvolutionalLSTM, floats(x=(2, 2, 3, 8, 8)), floats(x=(3, 2, 3, 9, 8)), "7"
    ),
    "reparametrised": Handmade(Reparametrised, *IMAGES, "8"),
    "slots": Handmade(Slots, *SEQUENCES, "8 9 10 12"),
    "double_residuals": Handmade(
        DoubleResiduals, floats(x=(2, 10)), floats(x=(3, 10)), "6 6 6 7 9"
    ),
    "sets": Handmade(Sets, floats(x=(2, 3, 9)), floats(x=(3, 3, 13)), "6 8 12"),
    "spectral": Handmade(Spectral, floats(x=(2, 2, 8)), floats(x=(3, 2, 12)), "8 9"),
    "quantised": Handmade(Quantised, *SEQUENCES, "6 9 12"),
    "scan": Handmade(Scan, *SEQUENCES, "3 4 10 12"),
    "shifted": Handmade(Shifted, *IMAGES, "4 4 4 7"),
}
