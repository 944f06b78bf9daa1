"""What the model's tests (tests/models/test_emotx.py, against loops over tokens) leave out."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor

from ercfusion.batch.packing import Packing
from ercfusion.layers import Tokens, TokenTransformerLayer


def some_tokens(labels: int = 2) -> tuple[Tensor, Tensor, Tokens]:
    """Conversations of 2 and 1 turns with 3 and 2 feature tokens."""
    generator = torch.Generator().manual_seed(0)
    tokens = Tokens(
        Packing([2, 1]),
        torch.tensor([0, 1, 0]),
        labels,
        Packing([3, 2]),
        torch.tensor([0, 1, 1, 2, 2]),
        torch.tensor([True, False, True, True, True]),
    )
    classes, features = (torch.randn(rows, 8, generator=generator) for rows in (3 * labels, 5))
    return classes, features, tokens


def test_the_joint_order() -> None:
    _, _, tokens = some_tokens()
    assert tokens.joint.lengths == (7, 4)
    assert tokens.order.tolist() == [0, 1, 2, 3, 6, 7, 8, 4, 5, 9, 10]
    assert tokens.joint_owner.tolist() == [0, 0, 1, 1, 0, 1, 1, 2, 2, 2, 2]
    assert tokens.joint_class.tolist() == [True] * 4 + [False] * 3 + [True] * 2 + [False] * 2
    assert tokens.joint_present.tolist() == [True] * 5 + [False] + [True] * 5
    second = list(tokens.split())[1]
    assert (second.turns.lengths, second.features.lengths, second.owner.tolist()) == ((1,), (2,), [0, 0])
    assert second.order.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("exchange", ["all", "turn", "none"])
def test_absent_tokens_are_read_by_nobody(exchange: str) -> None:
    torch.manual_seed(0)
    layer = TokenTransformerLayer(8, 2, 12, exchange=exchange, lags=2).eval()  # type: ignore[arg-type]
    classes, features, tokens = some_tokens()
    before = layer(classes, features, tokens)
    features[1] = 100.0
    after = layer(classes, features, tokens)
    assert torch.equal(before[0], after[0])
    assert torch.equal(before[1][[0, 2, 3, 4]], after[1][[0, 2, 3, 4]])


def test_the_last_layer_leaves_features_out() -> None:
    torch.manual_seed(0)
    classes, features, tokens = some_tokens()
    layer = TokenTransformerLayer(8, 2, 12, exchange="turn").eval()
    whole, part = layer(classes, features, tokens), layer(classes, features, tokens, last=True)
    torch.testing.assert_close(part[0], whole[0])
    assert part[1] is features
    assert not torch.equal(whole[1], features)


@pytest.mark.parametrize(
    ("classes", "features", "message"),
    [
        ((6, 8), (4, 8), "features must be packed utterances (5, 8); found (4, 8)."),
        ((6, 7), (5, 8), "classes must be packed utterances (N, 8); found (6, 7)."),
        ((5, 8), (5, 8), "classes must have 2 rows for each of the 3 turns; found 5."),
    ],
)
def test_other_shapes_are_refused(classes: tuple[int, int], features: tuple[int, int], message: str) -> None:
    tokens = some_tokens()[2]
    with pytest.raises(ValueError, match=re.escape(message)):
        TokenTransformerLayer(8, 2, 12)(torch.zeros(classes), torch.zeros(features), tokens)


def test_options_are_refused() -> None:
    with pytest.raises(ValueError, match="width 9 is not a multiple of 2 heads"):
        TokenTransformerLayer(9, 2, 12)
    with pytest.raises(ValueError, match="activation must be 'relu' or 'gelu', found 'tanh'"):
        TokenTransformerLayer(8, 2, 12, activation="tanh")
