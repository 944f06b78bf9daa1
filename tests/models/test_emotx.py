from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from quick import first
from torch import Tensor, nn

from ercfusion._core.errors import ConfigError
from ercfusion.batch.batch import ConversationBatch
from ercfusion.batch.inputs import InputSpec
from ercfusion.models.emotx import EmoTx, Token, sinusoids
from ercfusion.tasks.recognizer import Recognizer
from ercfusion.testing import CHECKS, WIDTHS, check_model, make_task, random_store
from ercfusion.testing.batches import take

LABELS = ("neutral", "joy", "anger")
SMALL: dict[str, Any] = {"width": 12, "heads": 2, "feedforward": 10, "layers": 2}
PUBLISHED: dict[str, Any] = {
    "exchange": "all",
    "anchor": False,
    "lags": 0,
    "speakers": "numbered",
    "norm_first": False,
    "activation": "relu",
}
FORMS: dict[str, dict[str, Any]] = {
    "default": {},
    "published": PUBLISHED,
    "all, biased": {"exchange": "all", "lags": 2, "anchor": True},
    "labels apart": {"exchange": "none", "lags": 3},
    "window": {"window": 1, "speakers": "numbered"},
    "causal": {"causal": True, "lags": 0},
    "causal window of all": {"causal": True, "window": 2, "exchange": "all"},
}


def build(dtype: torch.dtype = torch.float64, **options: Any) -> EmoTx:
    torch.manual_seed(0)
    inputs = InputSpec(WIDTHS, {"audio": "sequence"}, speakers=3, labels=LABELS)
    model = EmoTx(inputs, **{**SMALL, **options}).to(dtype)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.4)
    return model.eval()


def some_batch(lengths: tuple[int, ...] = (3, 1, 6, 2), steps: int = 4, **settings: Any) -> ConversationBatch:
    """Audio as sequences of 0 to 4 steps; a fourth of the values is absent, and the last turn has nothing."""
    store = random_store(lengths, speakers=3, absent=0.25, steps={"audio": steps}, **settings)
    return store.batch(range(len(lengths))).map_tensors(lambda t: t.double() if t.is_floating_point() else t)


def reference(model: EmoTx, batch: ConversationBatch) -> tuple[Tensor, list[list[Tensor]], list[list[Token]]]:
    """Logits (N, C), maps by layer and conversation (H, tokens, tokens), and tokens: loops over tokens that exist."""
    logits, names = [], []
    maps: list[list[Tensor]] = [[] for _ in model.layers]
    first = 0
    for length in batch.packing.lengths:
        tokens, vectors, speakers = [], [], []
        for turn in range(length):
            n = first + turn
            place = model.time_scale[0] * sinusoids(torch.tensor([turn]), model.hidden_size, torch.float64)[0]
            if model.speaker is not None:
                place = place + model.speaker.weight[min(int(batch.speaker[n]), 2)]
            own = []
            for number, name in enumerate(WIDTHS, start=1):
                if not batch.present[n, batch.column(name)]:
                    continue
                sequence = batch.sequence(name)
                rows = range(int(sequence.offsets[n]), int(sequence.offsets[n + 1]))
                for step, row in enumerate(rows):
                    vector = model.project[name](sequence.values[row])
                    if name in batch.sequences:
                        vector = (
                            vector
                            + model.time_scale[1] * sinusoids(torch.tensor([step]), model.hidden_size, torch.float64)[0]
                        )
                    own.append(vector)
                    tokens.append(Token(turn, name, step))
                    vectors.append(vector + model.types.weight[number] + place)
            start = place + model.types.weight[0]
            if model.anchor and own:
                start = start + sum(own) / len(own)  # type: ignore[arg-type]
            for number, label in enumerate(LABELS):
                tokens.append(Token(turn, label, -1))
                vectors.append(start + model.class_tokens[number])
        speakers = [int(batch.speaker[first + token.turn]) for token in tokens]
        for layer, found in zip(model.layers, maps, strict=True):
            vectors, weights = one_layer(layer, vectors, tokens, speakers)
            found.append(weights)
        for turn in range(length):
            for number, label in enumerate(LABELS):
                vector = model.norm(vectors[tokens.index(Token(turn, label, -1))])
                logits.append(vector @ model.weight[number] + model.bias[number])
        names.append(tokens)
        first += length
    return torch.stack(logits).view(-1, len(LABELS)), maps, names


def one_layer(
    layer: Any, vectors: list[Tensor], tokens: list[Token], speakers: list[int]
) -> tuple[list[Tensor], Tensor]:
    def may_read(query: Token, key: Token) -> bool:
        if query == key:
            return True
        if layer.window and abs(query.turn - key.turn) > layer.window:
            return False
        if layer.causal and key.turn > query.turn:
            return False
        if key.step >= 0 or layer.exchange == "all":
            return True
        return bool(layer.exchange == "turn" and query.step < 0 and query.turn == key.turn)

    size = layer.width // layer.heads
    read = [layer.norm_attention(x) if layer.norm_first else x for x in vectors]
    q, k, v = zip(*[layer.qkv(x).view(3, layer.heads, size) for x in read], strict=True)
    result, maps = [], torch.zeros(layer.heads, len(tokens), len(tokens), dtype=torch.float64)
    for i, token in enumerate(tokens):
        keys = [j for j, other in enumerate(tokens) if may_read(token, other)]
        mixed = []
        for h in range(layer.heads):
            scores = torch.stack([q[i][h] @ k[j][h] / size**0.5 for j in keys])
            if layer.bias is not None:
                lags = layer.bias.lags
                bias = []
                for j in keys:
                    lag = min(max(token.turn - tokens[j].turn, -lags), lags) + lags
                    bias.append(layer.bias.weight[h, lag + (2 * lags + 1) * (speakers[i] == speakers[j])])
                scores = scores + torch.stack(bias)
            weights = scores.softmax(0)
            maps[h, i, keys] = weights.detach()
            mixed.append(sum(weight * v[j][h] for weight, j in zip(weights, keys, strict=True)))
        x = vectors[i] + layer.out(torch.cat(mixed))  # type: ignore[arg-type]
        if layer.norm_first:
            result.append(x + layer.down(layer.activation(layer.up(layer.norm_feedforward(x)))))
        else:
            x = layer.norm_attention(x)
            result.append(layer.norm_feedforward(x + layer.down(layer.activation(layer.up(x)))))
    return result, maps


@pytest.mark.parametrize("form", FORMS)
def test_values_and_gradients_of_the_reference(form: str) -> None:
    model, batch = build(**FORMS[form]), some_batch()
    expected, maps, names = reference(model, batch)
    found = model(batch).logits
    assert found is not None
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-11)
    pull = torch.randn(found.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    wanted = torch.autograd.grad((expected * pull).sum(), list(model.parameters()), allow_unused=True)
    got = torch.autograd.grad((found * pull).sum(), list(model.parameters()), allow_unused=True)
    for (name, _), one, other in zip(model.named_parameters(), got, wanted, strict=True):
        if other is None:
            assert one is None or not one.any(), name
        else:
            torch.testing.assert_close(one, other, rtol=0, atol=1e-9, msg=name)
    # The map is the one used: its rows are those of the reference, for every layer and every pair of tokens.
    for number, layer in enumerate(maps):
        attention = model.label_attention(batch, number)
        for weights, tokens, one in zip(layer, names, attention, strict=True):
            assert set(one.tokens) == set(tokens)
            rows = torch.tensor(
                [[tokens.index(Token(turn, label, -1)) for label in LABELS] for turn in range(len(one.weights))]
            )
            columns = [tokens.index(token) for token in one.tokens]
            torch.testing.assert_close(one.weights, weights.mean(0)[rows][..., columns], rtol=0, atol=1e-11)


@pytest.mark.parametrize("form", ["default", "published"])
def test_long_conversations_one_by_one_and_padded_are_the_same(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from ercfusion.layers import tokens

    model, batch = build(**FORMS[form]), some_batch((20, 3, 31, 1))
    one_by_one = model(batch).logits
    monkeypatch.setattr(tokens, "LONG", 10_000)
    torch.testing.assert_close(model(batch).logits, one_by_one, rtol=0, atol=1e-12)


def test_attention_rows_sum_to_one_and_name_labels_and_modalities() -> None:
    model, batch = build(), some_batch()
    attention = model.label_attention(batch)
    assert not model.keep_attention
    assert not model(batch).attention
    assert [len(one.weights) for one in attention] == list(batch.packing.lengths)
    for one in attention:
        assert one.labels == LABELS
        assert one.weights.shape == (len(one.weights), len(LABELS), len(one.tokens))
        torch.testing.assert_close(one.weights.sum(-1), torch.ones_like(one.weights[..., 0]))
        assert {token.source for token in one.tokens} <= {*LABELS, *WIDTHS}
    # The last turn has no modality, so it has class tokens only.
    assert {token.source for token in attention[-1].tokens if token.turn == 1} == set(LABELS)
    model.keep_attention = True
    encoded = model(batch)
    assert list(encoded.attention) == ["layer 0", "layer 1"]
    torch.testing.assert_close(encoded.logits, replace_attention(model, batch), rtol=0, atol=1e-12)


def replace_attention(model: EmoTx, batch: ConversationBatch) -> Tensor:
    model.keep_attention = False
    logits = model(batch).logits
    assert logits is not None
    return logits


def test_hidden_is_the_mean_of_the_class_tokens_and_logits_are_of_each() -> None:
    model, batch = build(), some_batch()
    encoded = model(batch)
    assert encoded.logits is not None
    assert encoded.hidden.shape == (batch.num_utterances, SMALL["width"])
    with torch.no_grad():
        model.weight[1] = 0.0
        model.bias.copy_(torch.tensor([0.0, 7.0, 0.0]))
    changed = model(batch).logits
    assert changed is not None
    assert (changed[:, 1] == 7).all()
    torch.testing.assert_close(changed[:, 2], encoded.logits[:, 2] - 0.0 + changed[0, 2] - encoded.logits[0, 2])


@pytest.mark.parametrize("form", FORMS)
def test_alone_and_in_a_batch(form: str) -> None:
    model, batch = build(**FORMS[form]), some_batch()
    together = model(batch).logits
    assert together is not None
    first = 0
    for number, length in enumerate(batch.packing.lengths):
        alone = model(take(batch, [number])).logits
        torch.testing.assert_close(alone, together[first : first + length], rtol=0, atol=1e-12)
        first += length


def test_a_conversation_without_any_token() -> None:
    """Sequence features only, and no step in the whole conversation: the class tokens have only themselves."""
    torch.manual_seed(0)
    model = EmoTx(InputSpec({"audio": 7}, {"audio": "sequence"}, labels=LABELS), **SMALL).double().eval()
    batch = some_batch((2, 3), widths={"audio": 7})
    sequence = batch.sequences["audio"]
    kept = int(sequence.offsets[2])
    empty = replace(sequence, values=sequence.values[:kept], offsets=sequence.offsets.clamp(max=kept))
    bare = replace(batch, sequences={"audio": empty})
    encoded = model(bare)
    assert encoded.logits is not None
    assert encoded.logits.isfinite().all()
    assert {token.source for token in model.label_attention(bare)[1].tokens} == set(LABELS)
    assert len(model.token_names(bare)[1]) == 3 * len(LABELS) + 1


def test_speakers() -> None:
    batch = some_batch()
    renumbered = replace(batch, speaker=2 - batch.speaker)
    merged = replace(batch, speaker=torch.zeros_like(batch.speaker))
    same = build()
    assert torch.equal(logits_of(same, batch), logits_of(same, renumbered))
    assert not torch.equal(logits_of(same, batch), logits_of(same, merged))
    numbered = build(speakers="numbered", lags=0)
    assert not torch.equal(logits_of(numbered, batch), logits_of(numbered, renumbered))
    none = build(lags=0)
    assert torch.equal(logits_of(none, batch), logits_of(none, merged))


def logits_of(model: EmoTx, batch: ConversationBatch) -> Tensor:
    logits = model(batch).logits
    assert logits is not None
    return logits


def test_labels_read_each_other_only_as_said() -> None:
    batch = some_batch()
    for exchange, reads in (("none", False), ("turn", True), ("all", True)):
        model = build(exchange=exchange)
        before = logits_of(model, batch)
        with torch.no_grad():
            model.class_tokens[0] *= -1.0
        changed = (logits_of(model, batch) - before).abs().amax(0)
        assert changed[0] > 1e-6
        assert (changed[1:] > 1e-6).tolist() == [reads, reads], exchange


def test_refusals() -> None:
    assert EmoTx(InputSpec(WIDTHS)).labels == ("label",)
    with pytest.raises(ValueError, match="not a multiple of 4 heads"):
        EmoTx(InputSpec(WIDTHS, labels=LABELS), width=10)
    with pytest.raises(ConfigError, match="represents each label"):
        Recognizer(EmoTx, InputSpec(WIDTHS), make_task("regression"))


@pytest.mark.parametrize("kind", first(1, ["multi_label", "single_label", "distribution"]))
def test_requirements(kind: str) -> None:
    slow = {"compile", "overfits", "policies"}
    check_model(EmoTx, make_task(kind), {**SMALL, "layers": 1}, only=[check for check in CHECKS if check not in slow])


@pytest.mark.parametrize("form", ["published", "labels apart", "window", "causal", "causal window of all"])
def test_requirements_of_variants(form: str) -> None:
    slow = {"compile", "overfits", "absent_content", "policies"}
    options = {**SMALL, "layers": 1, **FORMS[form]}
    check_model(EmoTx, make_task("multi_label"), options, only=[check for check in CHECKS if check not in slow])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["single_label", "multi_label", "distribution"])
def test_overfits(kind: str) -> None:
    check_model(EmoTx, make_task(kind), only=["overfits"])


@pytest.mark.slow
def test_compiles() -> None:
    check_model(EmoTx, make_task("multi_label"), {**SMALL, "layers": 1}, only=["compile"])


def test_sinusoids() -> None:
    code = sinusoids(torch.tensor([0, 3]), 5)
    assert code.shape == (2, 5)
    torch.testing.assert_close(code[0], torch.tensor([0.0, 0.0, 0.0, 1.0, 1.0]))
    rates = 10_000.0 ** (-torch.arange(3) / 3)
    torch.testing.assert_close(code[1], torch.cat([(3 * rates).sin(), (3 * rates).cos()])[:5])


def test_steps_keep_their_places_when_others_are_hidden() -> None:
    model, batch = build(), some_batch()
    stored, none = batch.sequences["audio"], torch.zeros_like(batch.available)

    def logits(hidden: Tensor, positions: bool = True) -> Tensor:
        shorter = batch.hide(none, {"audio": hidden})
        if not positions:
            shorter = replace(shorter, sequences={"audio": replace(shorter.sequences["audio"], positions=None)})
        logits = model(shorter).logits
        assert logits is not None
        return logits

    later, earlier = stored.places >= 2, stored.places < 2
    assert later.any()
    torch.testing.assert_close(logits(later), logits(later, positions=False), rtol=0, atol=0)
    assert not torch.allclose(logits(earlier), logits(earlier, positions=False))
