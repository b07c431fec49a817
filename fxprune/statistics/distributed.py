"""Statistics of all ranks: every rank ends with the same bits."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def active() -> bool:
    """Whether there are other ranks."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def rank() -> int:
    """The number of this process."""
    return dist.get_rank() if active() else 0


def gathered(rows: Tensor) -> Tensor:
    """The rows of all ranks, one rank after the other. Ranks may have different numbers of rows."""
    if not active():
        return rows
    counts = [
        torch.zeros(1, dtype=torch.int64, device=rows.device) for _ in range(dist.get_world_size())
    ]
    dist.all_gather(counts, torch.tensor([len(rows)], device=rows.device))
    most = max(int(count) for count in counts)
    padded = torch.zeros([most, *rows.shape[1:]], dtype=rows.dtype, device=rows.device)
    padded[: len(rows)] = rows
    parts = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(parts, padded)
    return torch.cat([part[: int(count)] for part, count in zip(parts, counts, strict=True)])


def summed(total: Tensor) -> Tensor:
    """The sum over all ranks, added up in the same order everywhere."""
    return gathered(total[None]).sum(0) if active() else total
