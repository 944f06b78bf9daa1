"""Recurrent networks on packed conversations."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from ercfusion.batch.packing import Packing, check_rows
from ercfusion.ops.processes import longest_over_processes


class PackedLSTM(nn.Module):
    """LSTM over the utterances of each conversation, in one or both directions.

    Hochreiter & Schmidhuber (1997); as a context network over utterances: Poria et al., "Context-Dependent Sentiment
    Analysis in User-Generated Videos" (ACL 2017).

    Args:
        in_features: D.
        hidden: Units per direction.
        layers: Number of stacked layers.
        dropout: Dropout probability between the layers.
        bidirectional: Add a backward direction, which doubles the output width.

    Shapes:
        x (N, in_features) -> (N, out_features).

    With ``padding`` (in_features) conversations are padded with this row to the longest of the batch, and the backward
    direction reads the padding first, as in released programs that do not pack. Results then depend on the batch.
    """

    def __init__(
        self, in_features: int, hidden: int, layers: int = 1, dropout: float = 0.0, *, bidirectional: bool = True
    ) -> None:
        super().__init__()
        self.out_features = hidden * (2 if bidirectional else 1)
        self.lstm = nn.LSTM(
            in_features,
            hidden,
            num_layers=layers,
            dropout=dropout if layers > 1 else 0.0,
            bidirectional=bidirectional,
            batch_first=True,
        )

    def forward(self, x: Tensor, packing: Packing, padding: Tensor | None = None) -> Tensor:
        """States of all utterances, (N, in_features) -> (N, out_features)."""
        check_rows(x, packing, self.lstm.input_size)
        if padding is not None:
            # The batch of distributed training includes the conversations of the other processes.
            longest = max(packing.longest, longest_over_processes(packing)) if self.training else packing.longest
            rows = padding.to(x.dtype).expand(packing.size, longest, -1)
            padded = self.lstm(rows.index_put((packing.conversation, packing.position), x))[0]
            return packing.pack(padded[:, : packing.longest])
        if packing.size == 1:
            return self.lstm(x)[0]
        sequences = pack_padded_sequence(packing.pad(x), list(packing.lengths), batch_first=True, enforce_sorted=False)
        padded, _ = pad_packed_sequence(self.lstm(sequences)[0], batch_first=True)
        return packing.pack(padded)
