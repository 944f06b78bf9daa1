"""Requirements of architectures, as checks for any project.

:func:`check_model` runs all of them; each is also a function. They build a :class:`Recognizer` around the architecture,
feed it small random batches with three modalities, and raise :class:`AssertionError` naming the failed requirement::

    from ercfusion.testing import check_model
    check_model("cogmen")
    check_model(MyArchitecture, make_task("multi_label"))
"""

from __future__ import annotations

import functools
import math
import tempfile
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ercfusion._core.errors import BatchError, RunError
from ercfusion.batch.batch import ConversationBatch
from ercfusion.batch.task import TaskSpec
from ercfusion.tasks.recognizer import Recognizer
from ercfusion.testing.assertions import (
    assert_all_finite,
    assert_close,
    assert_equal,
    assert_finite,
    assert_raises,
    outputs_of,
)
from ercfusion.testing.batches import LENGTHS, WIDTHS, fill_absent, spoil_absent, take
from ercfusion.testing.case import CHECKS, Case, Model, requirement, without_dropout
from ercfusion.testing.missing import evidence, hidden_steps
from ercfusion.testing.policies import policies

SHIFT_INVARIANT = ("key.bias",)
"""Endings of names of parameters with zero gradient by theory: softmax is invariant to a constant added to all scores.
"""

OVERFIT_STEPS = 400


def check_model(
    model: Model,
    task: TaskSpec | None = None,
    options: Mapping[str, Any] | None = None,
    *,
    unimodal: bool = False,
    exempt: Mapping[str, str] | None = None,
    only: Collection[str] | None = None,
) -> None:
    """Check all requirements of an architecture.

    Args:
        model: A class, ``"module:Class"`` (imported), or a registered name.
        task: Task of its head; default: four classes.
        options: Options of the architecture.
        unimodal: Also put a head on each modality's representation.
        exempt: Requirement to the reason for failing it. An exempt requirement must fail, so that exemptions do not
            outlive their reasons.
        only: Requirements to check; default: all of :data:`CHECKS`.

    Raises:
        AssertionError: a requirement is not met, or an exemption is not needed.
        ValueError: an unknown requirement, or an exemption without a reason.
    """
    exempt = exempt or {}
    for name in (*exempt, *(only or ())):
        if name not in CHECKS:
            raise ValueError(f"no requirement {name!r}. Choose from {', '.join(CHECKS)}.")
    for name, reason in exempt.items():
        if not reason.strip():
            raise ValueError(f"the exemption from {name!r} has no reason. Give one.")
    for name, check in CHECKS.items():
        if only is not None and name not in only:
            continue
        if name not in exempt:
            check(model, task, options, unimodal=unimodal)
            continue
        try:
            check(model, task, options, unimodal=unimodal)
        except AssertionError:
            continue
        raise AssertionError(f"{model}: the exemption from {name!r} is not needed (its reason: {exempt[name]})")


# The requirements


@requirement("finite")
def check_finite(case: Case) -> None:
    """Outputs have the right shape; outputs and loss are finite in train and eval mode."""
    batch = case.batch()
    for training in (True, False):
        recognizer = case.build().train(training)
        recognized = recognizer(batch)
        shape = (batch.num_utterances, recognizer.head.rules.num_logits(case.task))
        assert recognized.logits.shape == shape, f"logits have shape {tuple(recognized.logits.shape)}, not {shape}"
        width = recognizer.architecture.hidden_size
        hidden = tuple(recognized.encoded.hidden.shape)
        assert hidden == (batch.num_utterances, width), f"hidden has shape {hidden}, but hidden_size is {width}"
        for name, value in outputs_of(recognized).items():
            assert len(value) == batch.num_utterances, f"{name} has {len(value)} rows for {batch.num_utterances}"
            assert_finite(value, f"{name} in {'train' if training else 'eval'} mode")
        assert_finite(case.loss(recognizer, recognized, batch), "the loss")


@requirement("gradients")
def check_gradients(case: Case) -> None:
    """Every parameter gets a finite gradient, not zero throughout, on a batch with absent modalities.

    Gradients may be zero for :data:`SHIFT_INVARIANT` parameters and for models with ``learns=False``.
    """
    recognizer = without_dropout(case.build())
    assert isinstance(recognizer, Recognizer)
    gradients = case.gradients(recognizer, case.batch())
    for name, gradient in gradients.items():
        assert_finite(gradient, f"the gradient of {name}")
        if recognizer.architecture.capabilities.learns and not name.endswith(SHIFT_INVARIANT):
            assert gradient.abs().max() > 0, f"the gradient of {name} is zero throughout"


@requirement("overfits")
def check_overfits(case: Case) -> None:
    """Two conversations are memorised, without dropout, within :data:`OVERFIT_STEPS` steps of Adam.

    All decisions are right; probabilities and regressed numbers are within a twentieth of their range on average. Not
    for models with ``learns=False``.
    """
    recognizer = without_dropout(case.build())
    assert isinstance(recognizer, Recognizer)
    if not recognizer.architecture.capabilities.learns:
        return
    batch = case.batch((5, 8), absent=0.0)
    optimizer = torch.optim.Adam(recognizer.parameters(), lr=3e-3)
    distance = 1.0
    for step in range(1, OVERFIT_STEPS + 1):
        optimizer.zero_grad()
        case.loss(recognizer.train(), recognizer(batch), batch).backward()
        optimizer.step()
        if step % 20 == 0:
            distance = _distance(recognizer.eval(), batch)
            if distance == 0:
                return
    raise AssertionError(f"after {OVERFIT_STEPS} steps on two conversations: distance {distance:.3f} from the targets")


@torch.no_grad()
def _distance(recognizer: Recognizer, batch: ConversationBatch) -> float:
    """Share of wrong decisions, or mean distance beyond a twentieth of the range."""
    task, targets = recognizer.task, batch.targets[recognizer.task.name]
    output = recognizer.head.outputs(recognizer(batch).logits)[targets.valid]
    value = targets.value[targets.valid]
    return task.rules.distance(output, value, task)


@requirement("batch_invariance")
def check_batch_invariance(case: Case) -> None:
    """A conversation gets the same output on its own, in any batch, and in any order of the batch."""
    recognizer = case.build(torch.float64).eval()
    batch = case.batch(dtype=torch.float64)
    with torch.no_grad():
        together = outputs_of(recognizer(batch))
        order = [(2 * b + 3) % batch.num_conversations for b in range(batch.num_conversations)]
        assert sorted(order) == list(range(batch.num_conversations))
        shuffled = outputs_of(recognizer(take(batch, order)))
        for name, value in together.items():
            parts = value.split(batch.packing.lengths)
            assert_close(shuffled[name], torch.cat([parts[b] for b in order]), f"{name} in another order of the batch")
        for b, length in enumerate(batch.packing.lengths):
            single = outputs_of(recognizer(take(batch, [b])))
            for name, value in single.items():
                expected = together[name].split(batch.packing.lengths)[b]
                assert_close(value, expected, f"{name} of a conversation of {length}, on its own and in a batch")


@requirement("small_batches")
def check_small_batches(case: Case) -> None:
    """A batch of one conversation works in train and eval mode, one of a single utterance in eval mode."""
    recognizer = case.build()
    for training, lengths in ((True, [6]), (False, [6]), (False, [1])):
        batch = case.batch(lengths)
        recognized = recognizer.train(training)(batch)
        assert_finite(recognized.logits, f"logits of conversations of lengths {lengths}")
        assert_finite(case.loss(recognizer, recognized, batch), f"the loss of conversations of lengths {lengths}")
    assert_all_finite(case.gradients(recognizer.train(), case.batch([6])), "with one conversation")


@requirement("single_utterance_training")
def check_single_utterance_training(case: Case) -> None:
    """A batch of a single utterance can be trained on."""
    recognizer = case.build()
    batch = case.batch([1], absent=0.0)
    assert_finite(recognizer(batch).logits, "logits of a single utterance in train mode")
    assert_all_finite(case.gradients(recognizer, batch), "with a single utterance")


@requirement("many_speakers")
def check_many_speakers(case: Case) -> None:
    """A conversation with nine speakers works after training with two."""
    recognizer = case.build()
    batch = case.batch((14, 3), speakers=9)
    assert int(batch.speaker.max()) == 8, "the check's own batch is wrong"
    assert_finite(recognizer.eval()(batch).logits, "logits with nine speakers")
    assert_all_finite(case.gradients(recognizer.train(), batch), "with nine speakers")


@requirement("absent_content")
def check_absent_content(case: Case) -> None:
    """Stored values of absent or dropped modalities reach neither outputs nor gradients.

    NaN, infinity and large numbers give bit for bit the results of zeros; dropped equals absent; an utterance without
    any modality gets finite outputs.
    """
    recognizer = case.build()
    batch = case.batch()
    assert not batch.present.all(0).any(), "the check's own batch is wrong"
    assert not batch.present[-1].any(), "the check's own batch is wrong"
    generator = torch.Generator().manual_seed(5)
    hidden = batch.hide(torch.rand(batch.available.shape, generator=generator) < 0.3)
    for kind, tested in (("absent", batch), ("dropped", hidden)):
        expected = evidence(case, recognizer, fill_absent(tested, 0.0))
        assert_all_finite(expected, f"with zeros in a modality that is {kind}")
        for contents in ((math.nan,), (math.inf, -math.inf, 1e30)):
            results = evidence(case, recognizer, spoil_absent(tested, contents))
            stored = " or ".join(str(content) for content in contents)
            for name, value in results.items():
                assert_equal(value, expected[name], f"{name} with {stored} instead of 0 in a modality that is {kind}")
    # The last `expected` is with modalities dropped, whatever is stored.
    removed = evidence(case, recognizer, replace(hidden, available=hidden.present, drop=None))
    for name, value in removed.items():
        assert_equal(value, expected[name], f"{name} with modalities absent instead of dropped")


check_hidden_steps = requirement("hidden_steps")(hidden_steps)
check_policies = requirement("policies")(policies)


@requirement("missing_aware")
def check_missing_aware(case: Case) -> None:
    """The architecture distinguishes absent from zero if, and only if, it is declared missing-aware.

    Zero after standardisation, the mean of the training data. Not for models with ``learns=False``.
    """
    recognizer = case.build(torch.float64).eval()
    capabilities = recognizer.architecture.capabilities
    if not capabilities.learns:
        return
    batch = case.batch((6, 8), absent=0.0, dtype=torch.float64)
    with torch.no_grad():
        for column, name in enumerate(batch.modalities):
            chosen = torch.zeros_like(batch.available)
            chosen[::2, column] = True
            mean = recognizer.standardize.get_buffer(f"mean_{name}")
            zeroed = torch.where(chosen[:, column, None], mean, batch.features[name])
            present = recognizer(replace(batch, features={**batch.features, name: zeroed})).logits
            absent = recognizer(batch.hide(chosen)).logits
            if capabilities.missing_aware:
                assert not torch.equal(absent, present), (
                    f"declared missing-aware, but absent {name} gives the result of zeros"
                )
            else:
                assert_equal(absent, present, f"not declared missing-aware; logits with {name} absent or zero")


@requirement("context")
def check_context(case: Case) -> None:
    """The architecture reads exactly the part of a conversation declared in its capabilities.

    Not contextual: no other utterance changes an output. Causal: no later utterance changes one, nor does their number.
    Otherwise other (later) utterances do change outputs.
    """
    recognizer = case.build(torch.float64).eval()
    capabilities = recognizer.architecture.capabilities
    batch = case.batch((9, 12), absent=0.1, dtype=torch.float64)
    other = case.batch((9, 12), absent=0.1, dtype=torch.float64, seed=1, speakers=4)
    position = batch.packing.position
    t = 5
    with torch.no_grad():
        before = recognizer(batch).logits
        future = recognizer(_mix(batch, other, position > t)).logits
        past = recognizer(_mix(batch, other, position < t)).logits
        if capabilities.causal:
            assert_equal(future[position <= t], before[position <= t], "logits after a change of the future")
            cut = recognizer(take(batch, range(batch.num_conversations), turns=t + 1)).logits
            assert_close(cut, before[position <= t], "logits after the future was cut off")
        if not capabilities.contextual:
            assert_equal(future[position == t], before[position == t], "logits after a change of other utterances")
            assert_equal(past[position == t], before[position == t], "logits after a change of other utterances")
            single = recognizer(_as_single_utterances(batch)).logits
            assert_close(single, before, "logits of each utterance as a conversation of its own")
            return
        assert not torch.equal(past[position == t], before[position == t]), (
            "declared contextual, but a change of all earlier utterances changes nothing"
        )
        assert capabilities.causal or not torch.equal(future[position <= t], before[position <= t]), (
            "not declared causal, but a change of all later utterances changes nothing"
        )


def _mix(batch: ConversationBatch, other: ConversationBatch, changed: Tensor) -> ConversationBatch:
    """``batch`` with features, availability and speakers of ``other`` in the ``changed`` rows."""
    return replace(
        batch,
        features={
            name: torch.where(changed[:, None], other.features[name], value) for name, value in batch.features.items()
        },
        available=torch.where(changed[:, None], other.available, batch.available),
        speaker=torch.where(changed, other.speaker, batch.speaker),
    )


def _as_single_utterances(batch: ConversationBatch) -> ConversationBatch:
    """Every utterance as a conversation of its own, with its speaker's number."""
    return replace(batch, packing=type(batch.packing)([1] * batch.num_utterances, batch.device), ids=())


@requirement("speakers")
def check_speakers(case: Case) -> None:
    """The architecture uses speakers as declared in its capabilities.

    ``none``: other speakers change nothing. ``same_other``: other speakers change outputs, other numbers of the same
    speakers do not. ``numbered``: other numbers do.
    """
    recognizer = case.build(torch.float64).eval()
    declared = recognizer.architecture.capabilities.speakers
    batch = case.batch((9, 14), dtype=torch.float64)
    others = replace(batch, speaker=case.batch((9, 14), speakers=5, seed=1).speaker)
    swapped = replace(batch, speaker=1 - batch.speaker)
    moved = replace(batch, speaker=3 * batch.speaker + 2)
    with torch.no_grad():
        before = recognizer(batch).logits
        after = {"others": recognizer(others).logits}
        after |= {"swapped": recognizer(swapped).logits, "moved": recognizer(moved).logits}
    if declared == "none":
        for name, value in after.items():
            assert_equal(value, before, f"logits after a change of speakers ({name})")
    elif declared == "same_other":
        for name in ("swapped", "moved"):
            assert_equal(after[name], before, f"logits after a renumbering of the speakers ({name})")
        assert not torch.equal(after["others"], before), "declared to use speakers, but other speakers change nothing"
    else:
        assert declared == "numbered", f"capabilities.speakers is {declared!r}"
        assert not torch.equal(after["swapped"], before), "declared 'numbered', but other numbers change nothing"


@requirement("pretrained")
def check_pretrained(case: Case) -> None:
    """``save_pretrained`` and ``from_pretrained`` give the same logits bit for bit; a damaged file raises RunError."""
    recognizer = case.build()
    batch = case.batch()
    optimizer = torch.optim.SGD(recognizer.parameters(), lr=0.1)
    case.gradients(recognizer, batch)
    optimizer.step()  # changes running statistics too, which must be saved
    with tempfile.TemporaryDirectory() as temporary, torch.no_grad():
        folder = recognizer.save_pretrained(Path(temporary) / "model")
        torch.manual_seed(99)
        loaded = Recognizer.from_pretrained(folder)
        assert not loaded.training, "from_pretrained returned a recognizer in train mode"
        expected = outputs_of(recognizer.eval()(batch))
        for name, value in outputs_of(loaded(batch)).items():
            assert_equal(value, expected[name], f"{name} after saving and loading")
        for name in ("model.safetensors", "config.json"):
            content = (folder / name).read_bytes()
            (folder / name).write_bytes(content[: len(content) // 2])
            load = functools.partial(Recognizer.from_pretrained, folder)
            assert_raises(RunError, load, f"half of {name} was loaded", name)
            (folder / name).unlink()
            assert_raises(RunError, load, f"loaded without {name}", name)
            (folder / name).write_bytes(content)


@requirement("autocast")
def check_autocast(case: Case) -> None:
    """Outputs, loss and gradients stay finite under automatic mixed precision with bfloat16."""
    recognizer = case.build()
    batch = case.batch()
    recognizer.zero_grad(set_to_none=True)
    with torch.autocast("cpu", torch.bfloat16):
        recognized = recognizer(batch)
        loss = case.loss(recognizer, recognized, batch)
    assert_finite(recognized.logits, "logits under autocast")
    assert_finite(loss, "the loss under autocast")
    assert loss.dtype == torch.float32, f"the loss is {loss.dtype} under autocast: sums in it lose precision"
    loss.backward()
    for name, parameter in recognizer.named_parameters():
        assert parameter.grad is not None, f"the parameter {name} gets no gradient under autocast"
        assert_finite(parameter.grad, f"the gradient of {name} under autocast")


@requirement("compile")
def check_compile(case: Case) -> None:
    """``torch.compile`` gives equal results for batches of different sizes, or ``compile_note`` has the reason."""
    recognizer = case.build().eval()
    capabilities = recognizer.architecture.capabilities
    if not capabilities.compiles:
        assert capabilities.compile_note.strip(), "capabilities.compiles is False without a compile_note"
        return
    torch.compiler.reset()
    # "eager" checks the traced graph with the ordinary kernels, quickly.
    compiled = torch.compile(recognizer, backend="eager")
    with torch.no_grad():
        for lengths in (LENGTHS, (3, 7), (5,)):
            batch = case.batch(lengths)
            expected = recognizer(batch).logits
            assert_close(compiled(batch).logits, expected, f"compiled logits, lengths {lengths}", 1e-5)
    torch.compiler.reset()


@requirement("inputs")
def check_inputs(case: Case) -> None:
    """Unsuitable data raises an error naming the expected and the actual input."""
    recognizer = case.build().eval()
    names = list(WIDTHS)
    wide = dict(WIDTHS) | {names[1]: WIDTHS[names[1]] + 4}
    fewer = {name: WIDTHS[name] for name in names[:2]}
    cases = (
        ("another width", wide, (names[1], str(WIDTHS[names[1]]), str(wide[names[1]]))),
        ("a modality that is missing", fewer, (names[2], *fewer)),
        ("another order", {name: WIDTHS[name] for name in reversed(names)}, tuple(names)),
    )
    for what, widths, mentions in cases:
        batch = case.batch(widths=widths)
        # An architecture is also used without a recognizer.
        for who, module in (("recognizer", recognizer), ("architecture", recognizer.architecture)):
            run = functools.partial(module, batch)
            assert_raises(BatchError, run, f"the {who} accepted {what}", *mentions)
