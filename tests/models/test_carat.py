from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from quick import first
from torch import Tensor
from torch.nn import functional as F

from ercfusion.batch.batch import ConversationBatch, TaskTargets
from ercfusion.batch.inputs import InputSpec
from ercfusion.config.compose import Composer
from ercfusion.layers import shuffle_labels
from ercfusion.models import build_architecture
from ercfusion.models.base import BatchLoss, Encoded
from ercfusion.models.carat import Carat
from ercfusion.ops.processes import Shares
from ercfusion.tasks.objective import Objective
from ercfusion.tasks.recognizer import Recognizer, TaskLabels
from ercfusion.testing import WIDTHS, check_model, make_task, random_batch, take
from ercfusion.testing.case import CHECKS, without_dropout

SMALL: dict[str, Any] = {"width": 8, "latent": 6, "heads": 2, "feedforward": 12, "queue": 50, "contrast": 9}
PUBLISHED = {"label_std": 0.0, "own": "none", "detach_targets": False}
KINDS = ("multi_label", "single_label", "distribution")
VARIANTS: dict[str, dict[str, Any]] = {
    "context": {"context": "lstm"},
    "causal": {"context": "lstm", "bidirectional": False},
    "transformer": {"context": "transformer"},
    "published": PUBLISHED,
    "one step": {"tokens": 1, "contrast": 0, "queue": 0, "anchors": "batch"},
    "no transformer": {"layers": 0, "input_norm": False},
}
LABELS = ("neutral", "joy", "anger", "fear")


@pytest.mark.parametrize("kind", first(1, KINDS))
def test_meets_the_requirements(kind: str) -> None:
    check_model(Carat, make_task(kind), SMALL, only=set(CHECKS) - {"overfits", "policies"})


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_learns(kind: str) -> None:
    check_model(Carat, make_task(kind), {**SMALL, "width": 16}, only=["overfits", "policies"])


@pytest.mark.slow
@pytest.mark.parametrize("name", VARIANTS)
def test_variants_meet_the_requirements(name: str) -> None:
    check_model(Carat, make_task("multi_label"), {**SMALL, **VARIANTS[name]}, only=set(CHECKS) - {"overfits"})


def test_other_heads() -> None:
    check_model(Carat, make_task("multi_label"), SMALL, unimodal=True, only=["finite", "gradients", "absent_content"])


SEQUENCES = {"audio": "sequence", "text": "sequence"}


def make(
    widths: Any = WIDTHS, kind: str = "multi_label", *, levels: Any = None, **options: Any
) -> tuple[Recognizer, Carat]:
    """In double precision and train mode, without dropout, with prototypes that differ from zero."""
    torch.manual_seed(0)
    recognizer = Recognizer(Carat, InputSpec(widths, levels or {}), make_task(kind), {**SMALL, **options})
    model = without_dropout(recognizer.double().train()).architecture
    assert isinstance(model, Carat)
    model.prototypes.prototypes.normal_()
    model.prototypes.updated.fill_(True)
    model.prototypes.updated[0, 0, 1] = False
    model.prototypes.prototypes[0, 0, 1] = 0
    return recognizer, model


def encode(recognizer: Recognizer, model: Carat, batch: ConversationBatch) -> Encoded:
    return model(batch, labels=TaskLabels(recognizer.head))


class Literal:
    """The equations for one utterance after another, from the vectors of its steps."""

    def __init__(self, model: Carat, batch: ConversationBatch, training: bool) -> None:
        self.model, self.training = model, training
        self.names = batch.modalities
        self.prototypes, self.updated = model.prototypes.prototypes.clone(), model.prototypes.updated.clone()
        self.M, self.C = len(self.names), model.weights.shape[1]
        steps = {name: module(batch, name) for name, module in model.steps.items()}
        self.rows = [
            self.utterance(
                {name: (x[packing.conversation == n], bool(here[n])) for name, (x, packing, here) in steps.items()}
            )
            for n in range(batch.num_utterances)
        ]

    def target(self, vector: Tensor) -> Tensor:
        return vector.detach() if self.model.detach_targets else vector

    def utterance(self, steps: dict[str, tuple[Tensor, bool]]) -> dict[str, Any]:
        model, M, C = self.model, self.M, self.C
        there = [steps[name][1] for name in self.names]
        read = [m for m in range(M) if there[m] or not any(there)]
        u, z, decoded, filled = {}, {}, {}, {}
        for m, name in enumerate(self.names):
            x = steps[name][0]
            for c in range(C):
                weights = torch.ones(1, dtype=x.dtype)
                if name in model.attend:
                    weights = (x @ model.attend[name].weight[c]).softmax(0)
                u[m, c] = weights @ x
                if name in model.label_vectors:
                    u[m, c] = u[m, c] + model.label_vectors[name][c]
                z[m, c] = model.encode[m](u[m, c])
                prototypes, updated = self.prototypes[:, m, c], self.updated[:, m, c]
                if there[m]:
                    similar = F.normalize(prototypes, dim=-1) @ F.normalize(z[m, c], dim=-1)
                    similar = torch.where(updated, similar, -torch.inf)
                    weights = similar.softmax(0) if self.training else F.one_hot(similar.argmax(), 2).double()
                    latent, filling = z[m, c], weights @ prototypes
                else:
                    latent = filling = prototypes.sum(0) / updated.sum()
                decoded[m, c], filled[m, c] = model.decode[m](latent), model.decode[m](filling)
        pairs = [(m, c) for m in range(M) for c in range(C)]
        own = {(m, c): [decoded[m, c]] if model.own else [] for m, c in pairs}
        first = {
            (m, c): model.reconstruct[m](
                torch.cat([*((filled if k == m else decoded)[k, c] for k in range(M)), *own[m, c]])
            )
            for m, c in pairs
        }
        second = {
            (m, c): model.reconstruct[m](torch.cat([*(first[k, c] for k in range(M)), *own[m, c]])) for m, c in pairs
        }
        aggregated = {
            m: model.aggregate(F.relu(model.read(torch.cat([second[m, c] for c in range(C)])))) for m in range(M)
        }
        stages = [
            torch.stack([max(((stage[m, c] @ model.weights[m, c]) for m in read), key=Tensor.item) for c in range(C)])
            for stage in (u, first, second)
        ]
        errors = [
            [sum((stage[m, c] - self.target(u[m, c])).square().mean() for c in range(C)) / C for m in range(M)]
            for stage in (decoded, first, second)
        ]
        latents = [[[model.encode[m](stage[m, c]) for c in range(C)] for m in range(M)] for stage in (u, first, second)]
        return {
            **{"there": there, "read": read, "stages": stages, "aggregated": aggregated, "errors": errors},
            **{"latents": latents, "z": z, "second": second},
        }


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("widths", [{"text": 5}, {"audio": 4, "text": 5}, {**WIDTHS, "mocap": 3}])
def test_prediction_by_its_formula(widths: dict[str, int], kind: str, training: bool) -> None:
    recognizer, model = make(widths, kind)
    batch = random_batch((3, 1, 4), widths=widths, absent=0.4, dtype=torch.float64)
    literal = Literal(model.train(training), batch, training)
    encoded = encode(recognizer, model, batch)
    expected = []
    for row in literal.rows:
        readings = [recognizer.head.outputs(row["aggregated"][m]) for m in row["read"]]
        expected.append((sum(readings) / len(readings) + recognizer.head.outputs(row["stages"][2])) / 2)
    assert encoded.logits is not None
    torch.testing.assert_close(recognizer.head.outputs(encoded.logits), torch.stack(expected), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("options", [{}, PUBLISHED, {"own": "all"}], ids=["default", "published", "own"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("widths", [{"text": 5}, WIDTHS])
def test_losses_by_their_formulas(widths: dict[str, int], kind: str, options: dict[str, Any]) -> None:
    """Values of all losses but the shuffled one, and gradients of their weighted sum."""
    recognizer, model = make(widths, kind, contrast=0, queue=0, **options)
    task = recognizer.task
    batch = random_batch((3, 1, 4), widths=widths, tasks=[task], absent=0.3, labelled=0.7, dtype=torch.float64)
    literal = Literal(model, batch, training=True)
    encoded = encode(recognizer, model, batch)
    losses = {name: loss(Shares(batch.packing)) for name, loss in encoded.losses.items() if isinstance(loss, BatchLoss)}
    assert set(losses) == set(Carat.loss_weights) - {"task"}
    target = batch.targets["emotion"]
    labelled = [n for n in range(batch.num_utterances) if target.valid[n]]

    def loss_of(logits: list[Tensor], rows: list[int]) -> Tensor:
        value, valid = target.value[rows], torch.ones(len(rows), dtype=torch.bool)
        total, count = recognizer.head.loss(torch.stack(logits), TaskTargets(value, valid))
        return total / count

    expected = {
        name: loss_of([literal.rows[n]["stages"][s] for n in labelled], labelled)
        for s, name in enumerate(("original", "first", "second"))
    }
    read = [(n, m) for n in labelled for m in literal.rows[n]["read"]]
    expected["aggregated"] = loss_of([literal.rows[n]["aggregated"][m] for n, m in read], [n for n, _ in read])
    for s, name in enumerate(("autoencoder", "reconstruction", "second_reconstruction")):
        means = []
        for m in range(literal.M):
            own = [row["errors"][s][m] for row in literal.rows if row["there"][m]]
            means.append(sum(own) / len(own))
        expected[name] = sum(means)
    mass = TaskLabels(recognizer.head).targets(batch)[0]  # type: ignore[index]
    items = [
        (F.normalize(row["latents"][s][m][c], dim=-1), (m, bool(mass[n, c] > 0.25), c))
        for n, row in enumerate(literal.rows)
        if n in labelled
        for s in range(3)
        for m in range(literal.M)
        for c in range(literal.C)
        if row["there"][m]
    ]
    vectors = torch.stack([vector for vector, _ in items])
    scores = vectors @ vectors.T / 0.07
    total = torch.zeros((), dtype=torch.float64)
    for i, (_, own) in enumerate(items):
        others = [k for k in range(len(items)) if k != i]
        same = [k for k in others if items[k][1] == own]
        if same:
            total = total - (scores[i, same] - scores[i, others].logsumexp(0)).mean()
    expected["contrastive"] = total / len(items)
    for name, value in expected.items():
        torch.testing.assert_close(losses[name], value.to(losses[name]), rtol=2e-5, atol=1e-6, msg=f"the loss {name}")
    weights = {name: weight for name, weight in Carat.loss_weights.items() if name in expected}
    parameters = dict(model.named_parameters())
    ours, theirs = (
        torch.autograd.grad(
            torch.stack([weight * values[name] for name, weight in weights.items()]).sum(),
            list(parameters.values()),
            allow_unused=True,
        )
        for values in (losses, expected)
    )
    for name, own, other in zip(parameters, ours, theirs, strict=True):
        assert (own is None) == (other is None), name
        if own is not None:
            torch.testing.assert_close(own, other, rtol=1e-4, atol=1e-6, msg=f"gradient of {name}")


def test_prototypes_follow_the_latent_vectors() -> None:
    recognizer, model = make()
    task = recognizer.task
    batch = random_batch((3, 1, 4), tasks=[task], absent=0.3, labelled=0.7, dtype=torch.float64)
    before = model.prototypes.prototypes.clone()
    literal = Literal(model, batch, training=True)
    encode(recognizer, model, batch)
    target = batch.targets["emotion"]
    for n, row in enumerate(literal.rows):
        for m in range(literal.M):
            for c in range(literal.C):
                if target.valid[n] and row["there"][m]:
                    own = before[int(target.value[n, c]), m, c]
                    own.mul_(0.99).add_(0.01 * F.normalize(row["z"][m, c].detach(), dim=-1))
    torch.testing.assert_close(model.prototypes.prototypes, before)
    after = model.prototypes.prototypes.clone()
    with torch.no_grad():
        encode(recognizer, model.eval(), batch)
        model.train()(batch)  # without labels
    assert torch.equal(model.prototypes.prototypes, after)


@pytest.mark.parametrize("kind", KINDS)
def test_shuffled_samples(kind: str) -> None:
    """Each mixed sample takes the vector of a label and the label itself from one utterance."""
    recognizer, model = make(kind=kind)
    batch = random_batch((6, 7), tasks=[recognizer.task], labelled=0.7, dtype=torch.float64)
    encoded = encode(recognizer, model, batch)
    loss = encoded.losses["shuffled"]
    assert isinstance(loss, BatchLoss)
    second, mass, valid = loss.values
    torch.manual_seed(3)
    value = loss(Shares(batch.packing))
    torch.manual_seed(3)
    vectors, labels = shuffle_labels(second, mass, valid)
    total, count = torch.zeros(()), 0.0
    for n in range(len(vectors)):
        for m in range(3):
            if not valid[n] or (kind != "multi_label" and labels[n, m].sum() == 0):
                continue
            logits = model.aggregate(F.relu(model.read(vectors[n, m].flatten()))).float()
            if kind == "multi_label":
                total = total + F.binary_cross_entropy_with_logits(logits, labels[n, m].float())
            else:
                total = total + F.cross_entropy(logits, (labels[n, m] / labels[n, m].sum()).float())
            count += 1
    torch.testing.assert_close(value, total / count, rtol=1e-5, atol=1e-6)


def test_contrast_of_some_utterances() -> None:
    recognizer, model = make(contrast=4, queue=0)
    batch = random_batch((6, 7), tasks=[recognizer.task], dtype=torch.float64)
    loss = encode(recognizer, model, batch).losses["contrastive"]
    assert isinstance(loss, BatchLoss)
    latents, positive, known = loss.values
    rows = torch.tensor([0, 3, 6, 9])
    expected = model.contrastive(latents[rows], positive[rows], known[rows])
    torch.testing.assert_close(loss(Shares(batch.packing)), expected)


# Sequences


@pytest.mark.parametrize("slots", [0, 3])
def test_sequences(slots: int) -> None:
    """Padding, the rest of the batch and empty sequences have no effect."""
    recognizer, model = make(levels=SEQUENCES, slots=slots, positions=4)
    steps = {"audio": 7, "text": 5}
    batch = random_batch((3, 1, 4), absent=0.3, steps=steps, tasks=[recognizer.task], dtype=torch.float64)
    assert (model.steps["audio"].align is not None) == (slots > 0)
    assert model.steps["text"].align is None
    with torch.no_grad():
        together = encode(recognizer, model.eval(), batch)
    single = replace(batch, packing=type(batch.packing)([1] * batch.num_utterances), ids=())
    for n in range(batch.num_utterances):
        with torch.no_grad():
            one = encode(recognizer, model, take(single, [n]))
        torch.testing.assert_close(one.logits[0], together.logits[n], rtol=1e-10, atol=1e-12)  # type: ignore[index]
    recognizer.train()
    total, _ = Objective({})(recognizer, recognizer(batch), batch)
    total.backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in model.parameters())


def test_alignment_by_its_formula() -> None:
    _, model = make(levels=SEQUENCES, slots=3)
    steps = model.steps["audio"]
    batch = random_batch((2, 2), steps={"audio": 6, "text": 2}, dtype=torch.float64)
    stored = batch.sequence("audio")
    x, packing, present = steps(batch, "audio")
    bounds = stored.offsets.tolist()
    for n in range(4):
        assert bool(present[n]) == (bounds[n + 1] > bounds[n])
        if not present[n]:
            continue
        values = steps.input_norm(stored.values[bounds[n] : bounds[n + 1]])  # type: ignore[operator]
        slots = steps.align.lstm(values)[0].softmax(-1)[:, 1:]  # type: ignore[union-attr]
        aligned = steps.project(slots.T @ values) + steps.position(torch.arange(3))  # type: ignore[operator]
        expected = steps.encoder(steps.norm(aligned), type(packing)([3]))  # type: ignore[operator]
        torch.testing.assert_close(x[packing.conversation == n], expected)


def test_later_steps_share_the_last_position() -> None:
    _, model = make(levels=SEQUENCES, positions=2, layers=0)
    steps = model.steps["text"]
    batch = random_batch((2,), steps={"text": 6, "audio": 2}, dtype=torch.float64)
    stored = batch.sequence("text")
    x, _, _ = steps(batch, "text")
    projected = steps.project(steps.input_norm(stored.values[:6]))  # type: ignore[operator]
    positions = steps.position(torch.tensor([0, 1, 1, 1, 1, 1]))  # type: ignore[operator]
    torch.testing.assert_close(x[:6], steps.norm(projected + positions))  # type: ignore[operator]


def test_steps_keep_their_positions_when_others_are_hidden() -> None:
    _, model = make(levels=SEQUENCES, layers=0)
    steps = model.steps["text"]
    batch = random_batch((2,), steps={"text": 6, "audio": 2}, dtype=torch.float64)
    hidden = torch.zeros(len(batch.sequences["text"].values), dtype=torch.bool)
    hidden[[0, 2, 3]] = True
    shorter = batch.hide(torch.zeros_like(batch.available), {"text": hidden})
    x, packing, _ = steps(shorter, "text")
    assert packing.lengths[0] == 3
    projected = steps.project(steps.input_norm(batch.sequence("text").values[[1, 4, 5]]))  # type: ignore[operator]
    positions = steps.position(torch.tensor([1, 4, 5]))  # type: ignore[operator]
    torch.testing.assert_close(x[:3], steps.norm(projected + positions))  # type: ignore[operator]


def test_labels_differ_by_default_but_not_with_one_step() -> None:
    batch = random_batch((4,), dtype=torch.float64)
    for tokens, label_std in ((4, 0.0), (1, 1.0), (1, 0.0)):
        _, model = make(tokens=tokens, label_std=label_std)
        vectors = model._label_vectors(batch)[0]
        assert (tokens == 1 and label_std == 0) == torch.equal(vectors[:, :, 0], vectors[:, :, 1])
    assert not make(levels=dict.fromkeys(WIDTHS, "sequence"))[1].label_vectors


def test_depth_of_each_modality() -> None:
    model = build_architecture(
        "carat",
        InputSpec({**WIDTHS, "mocap": 1}, labels=LABELS),
        {**SMALL, "layers": 2, "text_layers": 3, "audio_layers": 1},
    )
    assert isinstance(model, Carat)
    depths = {name: len(steps.encoder.layers) for name, steps in model.steps.items()}  # type: ignore[arg-type, union-attr]
    assert depths == {"text": 3, "audio": 1, "visual": 2, "mocap": 2}
    assert isinstance(model.steps["mocap"].input_norm, torch.nn.Identity)
    with pytest.raises(ValueError, match="even width, found 9"):
        Carat(InputSpec(WIDTHS), width=9, heads=3, context="lstm")


def test_size_as_published() -> None:
    """The released code has 7,359,736: three untrained pooling layers more, and 440 positions of text less."""
    inputs = InputSpec(
        {"text": 300, "visual": 35, "audio": 74},
        dict.fromkeys(("text", "visual", "audio"), "sequence"),  # type: ignore[arg-type]
        labels=("happy", "sad", "anger", "surprise", "disgust", "fear"),
    )
    options = dict(Composer("train").compose(["model=carat_released"])["model"])
    options.pop("name")
    model = build_architecture("carat", inputs, options)
    assert sum(parameter.numel() for parameter in model.parameters()) == 7_359_736 - 3 * 257 * 256 + 440 * 256


def test_needs_no_recognizer() -> None:
    model = Carat(InputSpec(WIDTHS), **SMALL).eval()
    encoded = model(random_batch((3, 2), absent=0.3))
    assert encoded.logits is not None
    assert encoded.logits.shape == (5, 1)
    assert not encoded.losses


def test_predictions_do_not_depend_on_targets() -> None:
    recognizer, model = make()
    batch = random_batch((4, 2), tasks=[recognizer.task], dtype=torch.float64)
    with torch.no_grad():
        one = encode(recognizer, model.eval(), batch).logits
        other = encode(recognizer, model, replace(batch, targets={})).logits
    assert one is not None
    assert other is not None
    assert torch.equal(one, other)
