"""The floor of every table: a constant answer."""

from __future__ import annotations

from ercfusion.batch.batch import ConversationBatch
from ercfusion.batch.inputs import InputSpec
from ercfusion.models.base import Architecture, Capabilities, Encoded


class Majority(Architecture):
    """Constant answer: the head keeps its initial bias, the distribution of the training labels.

    It gives the most frequent label, the labels more frequent than not (multi-label), or the training mean
    (distribution, regression).

    Args:
        inputs: Modalities and widths.

    Shapes:
        batch -> hidden (N, 1), all zero.
    """

    capabilities = Capabilities(learns=False, contextual=False, causal=True, absent="unread", skips=True)
    hidden_size = 1

    def __init__(self, inputs: InputSpec) -> None:
        super().__init__(inputs)

    def forward(self, batch: ConversationBatch) -> Encoded:
        """Zeros for every utterance."""
        first = next(iter(batch.features.values()))
        return Encoded(first.new_zeros(batch.num_utterances, 1))
