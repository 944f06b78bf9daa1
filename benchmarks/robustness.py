"""A robustness run over the standard grid of missing modalities, compared with its forward passes."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial

import numpy as np
import torch

from benchmarks.registry import EMOTIONS, Benchmark, Implementation, Inputs
from ercfusion.batch.labels import LabelSchema
from ercfusion.batch.task import TaskSpec
from ercfusion.config.missing import STANDARD, grid_laws
from ercfusion.data.conversation import Conversation, Target, Turn
from ercfusion.data.features import FeatureTable
from ercfusion.data.store import ConversationStore
from ercfusion.metrics.inputs import conversation_sums
from ercfusion.records.robustness import score_laws
from ercfusion.tasks.recognizer import Recognizer

TASK = TaskSpec("emotion", "single_label", LabelSchema("six", EMOTIONS))
CONVERSATIONS = 64
"""Per batch, as in :meth:`ercfusion.tasks.recognizer.Recognizer.predict_all`."""
SEED = 0


def make_store(inputs: Inputs) -> ConversationStore:
    """The random corpus as a split."""
    conversations = []
    for batch in inputs.batches:
        labels, starts = batch.targets["emotion"].value.tolist(), batch.offsets.tolist()
        for first, last in itertools.pairwise(starts):
            turns = [
                Turn(str(row), str(int(batch.speaker[row])), targets={"emotion": Target(EMOTIONS[labels[row]])})
                for row in range(first, last)
            ]
            conversations.append(Conversation(f"c{len(conversations)}", tuple(turns)))
    keys = [key for conversation in conversations for key in conversation.keys()]  # noqa: SIM118
    tables = [
        FeatureTable(name, keys, np.concatenate([batch.features[name].numpy() for batch in inputs.batches]))
        for name in inputs.shape.widths
    ]
    return ConversationStore(conversations, tables, [TASK])


def make_recognizer(model: str, store: ConversationStore) -> Recognizer:
    torch.manual_seed(0)
    recognizer = Recognizer(model, store.inputs, TASK)
    recognizer.prepare(store)
    return recognizer.eval()


def forward_passes(model: str, inputs: Inputs) -> Callable[[], list[torch.Tensor]]:
    """Nothing but the model: the batches of every law are made beforehand."""
    store = make_store(inputs)
    recognizer = make_recognizer(model, store)
    laws = grid_laws(STANDARD, store.inputs.modalities)
    batches = [list(store.hidden(law, SEED, "test").batches(CONVERSATIONS)) for law in laws]

    def run() -> list[torch.Tensor]:
        with torch.no_grad():
            return [torch.cat([recognizer(batch).logits for batch in part]) for part in batches]

    return run


def robustness_run(model: str, inputs: Inputs) -> Callable[[], dict[str, float]]:
    """What a run with ``missing.grid=standard`` adds: masks, batches, forward passes, scores, sums as text."""
    store = make_store(inputs)
    recognizer = make_recognizer(model, store)
    laws = grid_laws(STANDARD, store.inputs.modalities)
    complete = {"emotion": conversation_sums(recognizer.predict(store))}

    def run() -> dict[str, float]:
        results = score_laws(recognizer, store, laws, seed=SEED, metrics={"emotion": "weighted_f1"}, complete=complete)
        return {law: part["metrics"]["accuracy"] for law, part in results["emotion"]["laws"].items()}

    return run


def check(model: str, inputs: Inputs) -> None:
    """Both have the same accuracy under every law."""
    labels = make_store(inputs).targets["emotion"].value
    expected = [(logits.argmax(1) == labels).double().mean().item() for logits in forward_passes(model, inputs)()]
    np.testing.assert_allclose(list(robustness_run(model, inputs)().values()), expected, atol=1e-6)


BENCHMARKS = tuple(
    Benchmark(
        name=f"robustness-{model}",
        description=f"{model} on a split under the 15 laws of the standard grid (three modalities)",
        implementations={
            "forward": Implementation("the forward passes on batches made beforehand", partial(forward_passes, model)),
            "robustness": Implementation(
                "the robustness run: masks, batches, forward passes, scores, sums",
                partial(robustness_run, model),
                partial(check, model),
            ),
        },
        memory=False,
    )
    for model in ("cogmen", "m2fnet")
)
