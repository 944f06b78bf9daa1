"""Requirements about hidden steps of sequences."""

from __future__ import annotations

import copy
from dataclasses import replace

import torch
from torch import Tensor

from ercfusion.batch.batch import ConversationBatch
from ercfusion.tasks.recognizer import Recognizer
from ercfusion.testing.assertions import assert_all_finite, assert_close, assert_equal, outputs_of
from ercfusion.testing.batches import cast
from ercfusion.testing.case import Case


def evidence(case: Case, recognizer: Recognizer, batch: ConversationBatch) -> dict[str, Tensor]:
    """Outputs in both modes, loss, and gradients of parameters and inputs, with the same dropout in every call."""
    recognizer = copy.deepcopy(recognizer).eval()  # a copy, because forward passes change running statistics
    with torch.no_grad():
        results = outputs_of(recognizer(batch))
    inputs = {name: value.detach().clone().requires_grad_() for name, value in batch.features.items()}
    steps = {name: stored.values.detach().clone().requires_grad_() for name, stored in batch.sequences.items()}
    sequences = {name: replace(stored, values=steps[name]) for name, stored in batch.sequences.items()}
    batch = replace(batch, features=inputs, sequences=sequences)
    torch.manual_seed(1)
    recognizer.zero_grad(set_to_none=True)
    recognized = recognizer.train()(batch)
    results |= {f"{name} in train mode": value.detach() for name, value in outputs_of(recognized).items()}
    results["the loss"], gradients = case.backward(recognizer, recognized, batch)
    results |= {f"gradient of {name}": value for name, value in gradients.items()}
    for kind, values in (("features", inputs), ("steps", steps)):
        given = {name: value.grad for name, value in values.items() if value.grad is not None}
        results |= {f"gradient of the {kind} {name!r}": value for name, value in given.items()}
    return results


def hidden_steps(case: Case) -> None:
    """Hidden steps of a sequence reach neither outputs nor gradients.

    NaN and infinity in them give bit for bit the results of zeros. An utterance without any step left has the outputs
    and gradients of one without the modality.
    """
    steps = {"audio": 4}
    batch = case.batch((2, 5), absent=0.2, steps=steps, seed=5)
    stored, none = batch.sequences["audio"], torch.zeros_like(batch.available)
    counts = stored.offsets.diff()
    emptied = (counts > 0) & batch.present[:, 1] & (torch.arange(len(counts)) % 2 == 0)
    every = torch.repeat_interleave(emptied, counts)
    hidden = every | (stored.places % 2 == 1)
    assert bool(emptied.any()), "the check's own batch is wrong"
    assert bool((hidden & ~every).any()), "the check's own batch is wrong"

    recognizer = case.build(steps=steps)
    owner = torch.repeat_interleave(torch.arange(len(counts)), counts)
    changed = torch.zeros(len(counts), dtype=torch.bool).index_fill(0, owner[hidden], True)
    expected: dict[str, Tensor] = {}
    for content in (0.0, float("nan"), float("inf")):
        features = {**batch.features, "audio": torch.where(changed[:, None], content, batch.features["audio"])}
        values = torch.where(hidden[:, None], content, stored.values)
        filled = replace(batch, features=features, sequences={"audio": replace(stored, values=values)})
        observed = evidence(case, recognizer, filled.hide(none, {"audio": hidden}))
        expected = expected or observed
        assert_all_finite(observed, f"with {content} in hidden steps")
        for name, value in observed.items():
            assert_equal(value, expected[name], f"{name} with {content} instead of 0 in hidden steps")

    drop = none.clone()
    drop[:, 1] = emptied
    recognizer = case.build(torch.float64, steps=steps).eval()  # eval mode: lengths decide how much dropout is drawn
    batch = cast(batch, torch.float64)
    both = []
    for tested in (batch.hide(drop), batch.hide(none, {"audio": every})):
        gradients = case.gradients(recognizer, tested)
        with torch.no_grad():
            outputs = outputs_of(recognizer(tested))
        both.append(outputs | {f"gradient of {name}": value for name, value in gradients.items()})
    for name, value in both[1].items():
        assert_close(value, both[0][name], f"{name} with all steps hidden instead of the modality dropped")
