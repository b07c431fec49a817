"""Some models of the zoo, saved and loaded in new processes; `tests.zoo.files` does all of them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.zoo import files

# Between them: buffers that are not saved, tied weights, tables of indices, output classes of
# another library, DropPath, batch normalisation, dynamic lengths.
NAMES = ("shufflenet_v2_x1_0", "swin_v2_t", "gpt2")


def test_the_outputs_are_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert files.differences(NAMES, tmp_path) == []
    here = tmp_path / "gpt2" / "here.safetensors"  # the control: one bit
    output = files.load_file(here)
    output["0"].view(torch.int32)[0, 0, 0] ^= 1
    files.save_file(output, here)
    assert files._differs(tmp_path, "gpt2", "with")
    assert not files._differs(tmp_path, "swin_v2_t", "with")
