"""Saved folders in which a file is no file, or has no end: refused before anything is read."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from fxprune.checkpoint import GRAPH, PLAN, TENSORS, load
from fxprune.errors import CheckpointError
from tests.hostile.corruptions import join_tensors, split_tensors
from tests.hostile.targets import EXAMPLE, TARGETS, Network


def _pipe(path: Path) -> None:
    """Without a writer, opening it waits for ever."""
    path.unlink()
    os.mkfifo(path)


def _device(path: Path) -> None:
    """Reading it fills all memory."""
    path.unlink()
    path.symlink_to("/dev/zero")


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _endless(path: Path) -> None:
    """A sparse file: a terabyte that takes no room on the disk."""
    with path.open("r+b") as file:
        file.truncate(1 << 40)


def _large_tensor(path: Path) -> None:
    """A valid file of tensors with one of a terabyte that the model does not have."""
    header, body = split_tensors(path.read_bytes())
    count = 1 << 38
    place = [len(body), len(body) + 4 * count]
    header["large"] = {"dtype": "F32", "shape": [count], "data_offsets": place}
    path.write_bytes(join_tensors(json.dumps(header), body))
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size + 4 * count)


@pytest.mark.parametrize(
    ("file", "spoil"),
    [
        *((file, spoil) for file in (PLAN, TENSORS, GRAPH) for spoil in (_pipe, _device, _folder)),
        (PLAN, _endless),
        (GRAPH, _endless),
        (TENSORS, _endless),
        (TENSORS, _large_tensor),
    ],
)
def test_it_is_refused_unread(file: str, spoil: Callable[[Path], None], tmp_path: Path) -> None:
    for name, data in TARGETS["directory"].files().items():
        (tmp_path / name).write_bytes(data)
    load(tmp_path, Network, EXAMPLE)
    spoil(tmp_path / file)
    with pytest.raises(CheckpointError, match=f"{file}: it (is not a regular file|has .* at most)"):
        load(tmp_path, Network, EXAMPLE)


def test_a_message_stays_short_whatever_the_file_says(tmp_path: Path) -> None:
    """A shape of 100,000 dimensions and names without end once filled the message."""
    files = TARGETS["directory"].files()
    header, body = split_tensors(files[TENSORS])
    header["norm.bias"]["shape"] = [1] * 100_000 + header["norm.bias"]["shape"]
    files[TENSORS] = join_tensors(json.dumps(header), body)
    for name, data in TARGETS["resealed directory"].seal(files).items():
        (tmp_path / name).write_bytes(data)
    with pytest.raises(CheckpointError, match=r"norm\.bias") as caught:
        load(tmp_path, Network, EXAMPLE)
    assert len(str(caught.value)) < 1000
