r"""DialogueRNN's recurrence of global, party and emotion states over utterances.

Majumder et al., "DialogueRNN: An Attentive RNN for Emotion Detection in Conversations" (AAAI 2019). For utterance
:math:`u_t` of speaker s, with :math:`[\cdot;\cdot]` a concatenation and GRU(hidden, input):

.. math::
    g_t &= \mathrm{GRU}_G(g_{t-1}, [u_t; q_{s,t-1}]) \\
    \alpha_t &= \mathrm{softmax}_{i < t}(u_t^\top W_\alpha g_i), \quad c_t = \sum_{i < t} \alpha_{ti} g_i \\
    q_{s,t} &= \mathrm{GRU}_P(q_{s,t-1}, [u_t; c_t]) \\
    q_{i,t} &= q_{i,t-1} \text{ or } \mathrm{GRU}_L(q_{i,t-1}, [u_t; q_{s,t}]) \text{ for the other parties } i \\
    e_t &= \mathrm{GRU}_E(e_{t-1}, q_{s,t})

All initial states are zero, and :math:`c_1 = 0`. :meth:`DialogueRecurrence.forward_reference` computes this one
conversation and utterance at a time, :meth:`DialogueRecurrence.forward` for all conversations and both directions
together.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ercfusion.batch.packing import Packing, check_rows, check_speakers
from ercfusion.layers.dialogue_steps import EmotionChain, PartyChain, Steps, listening_chain, speaker_slots


class DialogueCell(nn.Module):
    """Parameters of one direction.

    Args:
        in_features: Width of the utterance vectors.
        global_size, party_size, emotion_size: Widths of the three states.
        listener: Update the listening parties too.
    """

    def __init__(
        self, in_features: int, global_size: int, party_size: int, emotion_size: int, *, listener: bool = False
    ) -> None:
        super().__init__()
        self.query = nn.Linear(in_features, global_size, bias=False)
        self.global_gru = nn.GRUCell(in_features + party_size, global_size)
        self.party_gru = nn.GRUCell(in_features + global_size, party_size)
        self.emotion_gru = nn.GRUCell(party_size, emotion_size)
        self.listener_gru = nn.GRUCell(in_features + party_size, party_size) if listener else None

    def read(self, x: Tensor, speaker: list[int], *, backward: bool) -> Tensor:
        """The equations for one conversation, one utterance at a time: (n, in_features) -> (n, emotion_size)."""
        parties = {s: x.new_zeros(self.party_gru.hidden_size) for s in speaker}
        g, e = x.new_zeros(self.global_gru.hidden_size), x.new_zeros(self.emotion_gru.hidden_size)
        history: list[Tensor] = []
        states = {}
        for t in reversed(range(len(x))) if backward else range(len(x)):
            u, s = x[t], speaker[t]
            c = torch.zeros_like(g)
            if history:
                past = torch.stack(history)
                c = (past @ self.query(u)).softmax(0) @ past
            g = self.global_gru(torch.cat([u, parties[s]]), g)
            history.append(g)
            q = self.party_gru(torch.cat([u, c]), parties[s])
            if self.listener_gru is not None:
                parties = {i: self.listener_gru(torch.cat([u, q]), state) for i, state in parties.items()}
            parties[s] = q
            states[t] = e = self.emotion_gru(q, e)
        return torch.stack([states[t] for t in range(len(x))])


class DialogueRecurrence(nn.Module):
    """DialogueRNN's emotion states, computed from global and party states.

    Equations: :mod:`ercfusion.layers.dialogue_rnn`. The backward direction has its own parameters and reads every
    conversation from its last utterance. Any number of speakers; listeners are updated from the first utterance on,
    also before they speak.

    Args:
        in_features: Width of the utterance vectors.
        global_size, party_size, emotion_size: Widths of the three states.
        listener: Update the listening parties (DialogueRNN_l of the paper).
        bidirectional: Add a backward direction, which doubles the output width.
        dropout: Dropout probability on every new state, also inside the recurrence.

    Shapes:
        x (N, in_features), speaker (N) integers, packing of the N utterances -> (N, out_features), forward states
        first.
    """

    def __init__(
        self,
        in_features: int,
        global_size: int,
        party_size: int,
        emotion_size: int,
        *,
        listener: bool = False,
        bidirectional: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if min(in_features, global_size, party_size, emotion_size) < 1:
            raise ValueError(
                "in_features, global_size, party_size and emotion_size must be at least 1; "
                f"found {in_features}, {global_size}, {party_size}, {emotion_size}"
            )
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must be at least 0 and below 1, found {dropout}")
        self.in_features, self.dropout = in_features, float(dropout)
        self.out_features = emotion_size * (2 if bidirectional else 1)
        self.cells = nn.ModuleList(
            DialogueCell(in_features, global_size, party_size, emotion_size, listener=listener)
            for _ in range(2 if bidirectional else 1)
        )

    def forward_reference(self, x: Tensor, speaker: Tensor, packing: Packing) -> Tensor:
        """The equations as loops, without dropout: the specification of :meth:`forward`."""
        parts = list(zip(x.split(packing.lengths), speaker.split(packing.lengths), strict=True))
        directions = [
            torch.cat([cell.read(part, who.tolist(), backward=number == 1) for part, who in parts])
            for number, cell in enumerate(self._cells())
        ]
        return torch.cat(directions, 1)

    def _cells(self) -> list[DialogueCell]:
        return [cell for cell in self.cells if isinstance(cell, DialogueCell)]

    def forward(self, x: Tensor, speaker: Tensor, packing: Packing) -> Tensor:
        """Emotion states (N, out_features), in the precision of the parameters, also under autocast."""
        check_rows(x, packing, self.in_features)
        check_speakers(speaker, packing)
        steps = Steps(packing, speaker, len(self.cells))
        with torch.autocast(x.device.type, enabled=False):
            x = x.to(self._cells()[0].query.weight.dtype)
            return self._forward(x, speaker, packing, steps)

    def _forward(self, x: Tensor, speaker: Tensor, packing: Packing, steps: Steps) -> Tensor:
        width, cells = self.in_features, self._cells()
        u = steps.arrange(x)  # (dirs, N, in_features)

        def stacked(gru: str, name: str) -> Tensor:
            return torch.stack([getattr(getattr(cell, gru), name) for cell in cells])

        # Terms in u do not depend on the recurrence: one product for all utterances.
        global_in, party_in = stacked("global_gru", "weight_ih"), stacked("party_gru", "weight_ih")
        queries = torch.stack([cell.query.weight for cell in cells])
        direct = [global_in[..., :width], party_in[..., :width], queries]
        no_bias = queries.new_zeros(queries.shape[:2])
        offset = [stacked("global_gru", "bias_ih"), stacked("party_gru", "bias_ih"), no_bias]
        listener = cells[0].listener_gru is not None
        if listener:
            listener_in = stacked("listener_gru", "weight_ih")
            direct.append(listener_in[..., :width])
            offset.append(stacked("listener_gru", "bias_ih"))
        projected = torch.baddbmm(torch.cat(offset, 1)[:, None], u, torch.cat(direct, 1).transpose(1, 2))
        global_u, party_u, query, *listener_u = projected.split([weight.shape[1] for weight in direct], 2)

        mask = self._mask(steps, queries, queries.shape[1])
        party_mask = self._mask(steps, queries, party_in.shape[1] // 3)
        # The speaker's previous state is input of the global GRU and hidden state of the party GRU: one product.
        p_weight = torch.cat([global_in[..., width:], stacked("party_gru", "weight_hh")], 1)
        shared = (
            global_u,
            party_u,
            query,
            p_weight,
            stacked("party_gru", "bias_hh"),
            stacked("global_gru", "weight_hh"),
            stacked("global_gru", "bias_hh"),
            party_in[..., width:],
            mask,
            party_mask,
        )
        if listener:
            party = listening_chain(
                steps,
                speaker_slots(packing, speaker),
                *shared,
                listener_u[0],
                listener_in[..., width:],
                stacked("listener_gru", "weight_hh"),
                stacked("listener_gru", "bias_hh"),
                self.dropout if self.training else 0.0,
            )
        else:
            party = PartyChain.apply(steps, *shared)
        gates = torch.baddbmm(
            stacked("emotion_gru", "bias_ih")[:, None], party, stacked("emotion_gru", "weight_ih").transpose(1, 2)
        )
        hidden, bias = stacked("emotion_gru", "weight_hh"), stacked("emotion_gru", "bias_hh")
        return steps.restore(EmotionChain.apply(steps, gates, hidden, bias, self._mask(steps, hidden, hidden.shape[2])))

    def _mask(self, steps: Steps, like: Tensor, width: int) -> Tensor | None:
        """(dirs, N, width) zeros and 1 / (1 - dropout), drawn at once for all steps; None without dropout."""
        if not self.training or not self.dropout:
            return None
        return F.dropout(like.new_ones(len(self.cells), steps.total, width), self.dropout)
