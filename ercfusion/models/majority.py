"""The floor of every table: the same answer for every utterance."""

from __future__ import annotations

from ercfusion.batch.batch import ConversationBatch
from ercfusion.batch.inputs import InputSpec
from ercfusion.models.base import Architecture, Capabilities, Encoded


class Majority(Architecture):
    """Sees nothing. Its head answers with the bias it starts from: the distribution of the training labels.

    So a single-label task gets the most frequent training label, a multi-label task the labels more frequent than not,
    a distribution task the mean distribution, and a regression task the training mean.

    Args:
        inputs: Ignored, but for the interface.

    Shapes:
        batch -> hidden (N, 1), zero everywhere.
    """

    capabilities = Capabilities(learns=False, contextual=False, causal=True)
    hidden_size = 1

    def __init__(self, inputs: InputSpec) -> None:
        super().__init__(inputs)

    def forward(self, batch: ConversationBatch) -> Encoded:
        """See the class."""
        first = next(iter(batch.features.values()))
        return Encoded(first.new_zeros(batch.num_utterances, 1))
