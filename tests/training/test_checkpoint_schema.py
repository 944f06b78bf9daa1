import random
from pathlib import Path

import pytest
import torch

from ercfusion._core.errors import RunError
from ercfusion.training.checkpoint_schema import read_checkpoint


def test_a_flipped_bit_in_a_checkpoint_changes_nothing_or_is_refused(tmp_path: Path) -> None:
    # torch.load does not compare the checksums that torch.save writes.
    path = tmp_path / "a.ckpt"
    values = torch.arange(500.0)
    parts = {"callbacks": {}, "loops": {"a": {}}, "optimizer_states": [], "lr_schedulers": []}
    torch.save({"epoch": 1, "global_step": 2, "state_dict": {"a": values}, **parts}, path)
    whole, chance = path.read_bytes(), random.Random(0)
    refused = 0
    for _ in range(150):
        changed = bytearray(whole)
        changed[chance.randrange(len(whole))] ^= 1 << chance.randrange(8)
        path.write_bytes(changed)
        try:
            found = read_checkpoint(path)
        except RunError:
            refused += 1
            continue
        assert found["epoch"] == 1
        assert torch.equal(found["state_dict"]["a"], values)
    assert refused > 75  # the rest is in what fills up the archive


def test_a_changed_number_in_a_checkpoint_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    torch.save({"state_dict": {"a": torch.full((4,), 1.25)}}, path)
    path.write_bytes(path.read_bytes().replace(torch.full((4,), 1.25).numpy().tobytes(), bytes(16)))
    with pytest.raises(RunError, match="has another checksum"):
        read_checkpoint(path)


@pytest.mark.parametrize(
    ("problem", "raised", "message"),
    [
        (PermissionError(13, "Permission denied", "a.ckpt"), PermissionError, "Permission denied"),
        (MemoryError(), RunError, r"a\.ckpt does not fit into memory"),
    ],
)
def test_what_is_no_damage_is_not_called_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, problem: Exception, raised: type[Exception], message: str
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise problem

    path = tmp_path / "a.ckpt"
    torch.save({}, path)
    monkeypatch.setattr(torch, "load", fails)
    with pytest.raises(raised, match=message):
        read_checkpoint(path)
