"""The steps of DialogueRNN's recurrence, for all conversations and both directions together.

Equations: :mod:`ercfusion.layers.dialogue_rnn`. Conversations are sorted by length, longest first. At step t the first
``running`` of them are not finished, and their rows (dirs, running, D) are consecutive. Emotion states do not feed back
into the other states, so they form a chain of their own.

If listeners are not updated, a speaker's old state is the state after the speaker's previous utterance. It is read by
an index, at most once, so its gradient is read by the index of the speaker's next utterance.

Both chains have a hand-written backward pass. Autograd would add to every weight's gradient at every step, which costs
more than the rest; here the gradients of the gates of all steps are stored, and one product per weight follows.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from ercfusion.batch.packing import Packing


def speaker_links(packing: Packing, speaker: Tensor) -> tuple[Tensor, Tensor]:
    """(N) the previous and the next utterance of the same speaker in the conversation; N if there is none."""
    N = packing.total
    # After stable sorting by speaker within conversations, neighbours with equal keys are consecutive turns of one.
    by_speaker = torch.sort(speaker, stable=True).indices
    order = by_speaker.index_select(
        0, torch.sort(packing.conversation.index_select(0, by_speaker), stable=True).indices
    )
    key = torch.stack([packing.conversation, speaker]).index_select(1, order)
    same = (key[:, 1:] == key[:, :-1]).all(0)
    before, after = order[:-1], order[1:]
    previous, following = speaker.new_full((N,), N), speaker.new_full((N,), N)
    previous[after] = torch.where(same, before, N)
    following[before] = torch.where(same, after, N)
    return previous, following


def speaker_slots(packing: Packing, speaker: Tensor) -> Tensor:
    """(N) speakers numbered from 0 within each conversation, in order of first appearance."""
    previous, _ = speaker_links(packing, speaker)
    padded = packing.pad(speaker)
    appears = packing.pad((previous == packing.total).long())  # 1 at the first turn of each speaker
    number = appears.cumsum(1) - 1
    # [b, turn, first turn of its speaker]
    first = (padded[:, :, None] == padded[:, None, :]) & (appears[:, None, :] == 1)
    return packing.pack((first * number[:, None, :]).sum(2))


class Steps:
    """The rows of every step: utterances of all conversations and directions, step by step.

    Args:
        packing: The conversations.
        speaker: (N).
        dirs: 1 for forwards only, 2 for both directions.
    """

    def __init__(self, packing: Packing, speaker: Tensor, dirs: int) -> None:
        lengths = packing.lengths
        order = sorted(range(packing.size), key=lambda b: -lengths[b])
        self.dirs, self.size, self.total, self.longest = dirs, packing.size, packing.total, packing.longest
        ended = [0] * (self.longest + 1)
        for length in lengths:
            ended[length] += 1
        self.bounds: list[tuple[int, int, int]] = []
        """Per step: first row, end of the rows, and number of running conversations."""
        first, running = 0, packing.size
        for t in range(self.longest):
            running -= ended[t]
            self.bounds.append((first, first + running, running))
            first += running

        device = packing.device
        by_length = torch.empty(packing.size, dtype=torch.long)
        by_length[torch.tensor(order)] = torch.arange(packing.size)
        rank = by_length.to(device).index_select(0, packing.conversation)
        begin = torch.tensor([first for first, _, _ in self.bounds], device=device)
        places = [packing.position, packing.length.index_select(0, packing.conversation) - 1 - packing.position][:dirs]
        self.row = [begin.index_select(0, place) + rank for place in places]
        """Per direction: (N) the row of each utterance."""
        utterances = torch.arange(self.total, device=device)
        self.utterance = [torch.empty_like(row).index_copy(0, row, utterances) for row in self.row]
        """Per direction: (N) the utterance of each row."""
        links = speaker_links(packing, speaker)
        self.previous = self._pointers(links)
        self.following = self._pointers(links[::-1])
        cells = [rank * self.longest + place + d * self.size * self.longest for d, place in enumerate(places)]
        self.cell = torch.cat(
            [torch.empty_like(row).index_copy(0, row, cell) for row, cell in zip(self.row, cells, strict=True)]
        )
        """(dirs * N) the position of each row in the flattened grid (dirs, B, L)."""

    def _pointers(self, links: tuple[Tensor, ...]) -> Tensor:
        """(dirs, N) rows of a (dirs * (N + 1)) history whose last row per direction is zero."""
        pointers = []
        for d, (row, utterance) in enumerate(zip(self.row, self.utterance, strict=True)):
            rows = torch.cat([row, row.new_full((1,), self.total)])
            pointers.append(rows.index_select(0, links[d].index_select(0, utterance)) + d * (self.total + 1))
        return torch.stack(pointers)

    def arrange(self, x: Tensor) -> Tensor:
        """(N, D) in the order of utterances -> (dirs, N, D) in the order of steps. Differentiable."""
        return torch.stack([x.index_select(0, utterance) for utterance in self.utterance])

    def restore(self, states: Tensor) -> Tensor:
        """(dirs, N, D) in the order of steps -> (N, dirs * D) in the order of utterances. Differentiable."""
        return torch.cat([state.index_select(0, row) for state, row in zip(states, self.row, strict=True)], 1)


# One GRU step. From input gates (i_r, i_z, i_n) and hidden gates (h_r, h_z, h_n), in torch's order:
#   r = sigmoid(i_r + h_r), z = sigmoid(i_z + h_z), n = tanh(i_n + r h_n), h' = (1 - z) n + z h.
# With d = dL/dh' the gradients before the activations (sigmoid' = s (1 - s), tanh' = 1 - n^2) are
#   d_n = d (1 - z) (1 - n^2), d_z = d (h - n) z (1 - z), d_r = d_n h_n r (1 - r).
# The input gates receive (d_r, d_z, d_n), the hidden gates (d_r, d_z, r d_n), and h receives z d directly.


def gru(input_gates: Tensor, hidden_gates: Tensor, hidden: Tensor, saved: Tensor | None = None) -> Tensor:
    """The new state (..., D) from gates (..., 3 D) and the old state (..., D).

    ``saved`` (..., 4 D) receives r, z, n and h_n for :func:`gru_backward`.
    """
    D = hidden.shape[-1]
    rz = (input_gates[..., : 2 * D] + hidden_gates[..., : 2 * D]).sigmoid()
    r, z = rz[..., :D], rz[..., D:]
    n = torch.addcmul(input_gates[..., 2 * D :], r, hidden_gates[..., 2 * D :]).tanh()
    if saved is not None:
        saved[..., : 2 * D] = rz
        saved[..., 2 * D : 3 * D] = n
        saved[..., 3 * D :] = hidden_gates[..., 2 * D :]
    return torch.lerp(n, hidden, z)


def gru_backward(grad: Tensor, saved: Tensor, hidden: Tensor, input_grad: Tensor, hidden_grad: Tensor) -> Tensor:
    """The direct gradient of the old state, without the part through the gates.

    Args:
        grad: (..., D), of the new state.
        saved: (..., 4 D), from :func:`gru`.
        hidden: (..., D), the old state.
        input_grad, hidden_grad: (..., 3 D); receive the gradients of the gates.
    """
    D = hidden.shape[-1]
    r, z, n, h_n = saved.split(D, -1)
    d_n = grad * (1 - z) * (1 - n * n)
    d_z = grad * (hidden - n) * z * (1 - z)
    d_r = d_n * h_n * r * (1 - r)
    for target in (input_grad, hidden_grad):
        target[..., :D] = d_r
        target[..., D : 2 * D] = d_z
    input_grad[..., 2 * D :] = d_n
    torch.mul(d_n, r, out=d_n)
    hidden_grad[..., 2 * D :] = d_n
    return grad * z


class EmotionChain(torch.autograd.Function):
    """A GRU over the steps with projected inputs: gates (dirs, N, 3 D) -> states (dirs, N, D).

    ``weight`` (dirs, 3 D, D) and ``bias`` (dirs, 3 D) apply to the old state. ``mask`` (dirs, N, D) or None multiplies
    every new state: e_t = mask_t GRU(gates_t, weight e_{t-1} + bias, e_{t-1}).
    """

    @staticmethod
    def forward(ctx: Any, steps: Steps, gates: Tensor, weight: Tensor, bias: Tensor, mask: Tensor | None) -> Tensor:
        """States (dirs, N, D)."""
        dirs, N, D = len(gates), steps.total, weight.shape[2]
        states, old, saved = (gates.new_empty(dirs, N, width) for width in (D, D, 4 * D))
        state = gates.new_zeros(dirs, steps.size, D)
        weight_t = weight.transpose(1, 2)
        for first, last, running in steps.bounds:
            rows = slice(first, last)
            old[:, rows] = state = state[:, :running]
            hidden_gates = torch.baddbmm(bias[:, None], state, weight_t)
            state = gru(gates[:, rows], hidden_gates, state, saved[:, rows])
            if mask is not None:
                state = state * mask[:, rows]
            states[:, rows] = state
        ctx.save_for_backward(weight, old, saved, mask)
        ctx.steps = steps
        return states

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of gates, weight and bias.

        With the gradient d_e_t = grad_t + (what step t + 1 returns to e_t), step t returns z d + weight^T d_hidden to
        e_{t-1}. The weight's gradient is the sum of d_hidden_t e_{t-1}^T over t, one product after the loop.
        """
        weight, old, saved, mask = ctx.saved_tensors
        steps: Steps = ctx.steps
        dirs, D = len(weight), weight.shape[2]
        d_input, d_hidden = (old.new_empty(dirs, steps.total, 3 * D) for _ in range(2))
        d_state = old.new_zeros(dirs, steps.size, D)
        for first, last, running in reversed(steps.bounds):
            rows = slice(first, last)
            # d_state is zero for a conversation whose last step this is.
            d_new = grad[:, rows] + d_state[:, :running]
            if mask is not None:
                d_new = d_new * mask[:, rows]
            d_old = gru_backward(d_new, saved[:, rows], old[:, rows], d_input[:, rows], d_hidden[:, rows])
            d_state[:, :running] = torch.baddbmm(d_old, d_hidden[:, rows], weight)
        return None, d_input, torch.bmm(d_hidden.transpose(1, 2), old), d_hidden.sum(1), None


class PartyChain(torch.autograd.Function):
    """The joint recurrence of global and party states in which only the speaker's state changes.

    With p_t the speaker's state before utterance t (0 at the first turn), w_ti attention weights, and GRU(input gates,
    hidden gates, old state):

    .. code-block:: text

        [a_t; b_t] = p_weight p_t + [0; party_bias]
        w_ti = softmax over i < t of query_t . g_i,  c_t = sum_i w_ti g_i
        g_t = mask_t GRU(global_u_t + a_t, global_weight g_{t-1} + global_bias, g_{t-1})
        q_t = party_mask_t GRU(party_u_t + context_weight c_t, b_t, p_t)

    Arguments of ``apply``, with Dg and Dp the widths of the states:

    - steps: The steps.
    - global_u: (dirs, N, 3 Dg), contribution of u to the gates of the global GRU, with biases.
    - party_u: (dirs, N, 3 Dp), the same for the party GRU.
    - query: (dirs, N, Dg), queries of the attention.
    - p_weight: (dirs, 3 Dg + 3 Dp, Dp), weights of p_t in the global GRU's input and the party GRU's old state.
    - party_bias: (dirs, 3 Dp), of the party GRU's old state.
    - global_weight, global_bias: (dirs, 3 Dg, Dg), (dirs, 3 Dg), of the global GRU's old state.
    - context_weight: (dirs, 3 Dp, Dg), of the context in the party GRU's input.
    - mask, party_mask: (dirs, N, Dg) and (dirs, N, Dp), factors of the new states, or None.

    The result is (dirs, N, Dp), the speaker's state after each utterance.
    """

    @staticmethod
    def forward(
        ctx: Any,
        steps: Steps,
        global_u: Tensor,
        party_u: Tensor,
        query: Tensor,
        p_weight: Tensor,
        party_bias: Tensor,
        global_weight: Tensor,
        global_bias: Tensor,
        context_weight: Tensor,
        mask: Tensor | None,
        party_mask: Tensor | None,
    ) -> Tensor:
        """The speaker's state after each utterance, (dirs, N, Dp)."""
        dirs, N, B, L = steps.dirs, steps.total, steps.size, steps.longest
        Dg, Dp = query.shape[2], p_weight.shape[2]
        parties = query.new_empty(dirs, N + 1, Dp)
        parties[:, N] = 0  # p_t at the first turn of a speaker
        flat = parties.view(-1, Dp)
        old_party, party_saved = query.new_empty(dirs, N, Dp), query.new_empty(dirs, N, 4 * Dp)
        old_global, global_saved = query.new_empty(dirs, N, Dg), query.new_empty(dirs, N, 4 * Dg)
        context = query.new_empty(dirs, N, Dg)
        # All global states of a conversation, for the attention; zero after its end and at future steps.
        history = query.new_zeros(dirs, B, L, Dg)
        attention = query.new_zeros(dirs, B, L, L)
        p_weight_t, global_weight_t, context_weight_t = (
            weight.transpose(1, 2) for weight in (p_weight, global_weight, context_weight)
        )
        # [0; party_bias]: the bias of the global input is in global_u.
        p_bias = torch.cat([query.new_zeros(dirs, 3 * Dg), party_bias], 1)[:, None]
        g = query.new_zeros(dirs, B, Dg)
        for t, (first, last, running) in enumerate(steps.bounds):
            rows = slice(first, last)
            p = flat.index_select(0, steps.previous[:, rows].flatten()).view(dirs, running, Dp)
            old_party[:, rows] = p
            from_p = torch.baddbmm(p_bias, p, p_weight_t)
            # c_t; [d, b, t, i] of ``attention`` is w_ti.
            c = query.new_zeros(dirs, running, Dg)
            if t > 0:
                for d in range(dirs):
                    past = history[d, :running, :t]
                    scores = torch.bmm(query[d, rows, None], past.transpose(1, 2))
                    weights = scores.softmax(2)
                    attention[d, :running, t, :t] = weights[:, 0]
                    c[d] = torch.bmm(weights, past)[:, 0]
            context[:, rows] = c
            # g_t
            old_global[:, rows] = g = g[:, :running]
            hidden_gates = torch.baddbmm(global_bias[:, None], g, global_weight_t)
            g = gru(global_u[:, rows] + from_p[..., : 3 * Dg], hidden_gates, g, global_saved[:, rows])
            if mask is not None:
                g = g * mask[:, rows]
            history[:, :running, t] = g
            # q_t
            gates = torch.baddbmm(party_u[:, rows], c, context_weight_t)
            q = gru(gates, from_p[..., 3 * Dg :], p, party_saved[:, rows])
            if party_mask is not None:
                q = q * party_mask[:, rows]
            parties[:, rows] = q
        ctx.save_for_backward(
            query,
            p_weight,
            global_weight,
            context_weight,
            mask,
            party_mask,
            old_party,
            party_saved,
            old_global,
            global_saved,
            context,
            history,
            attention,
        )
        ctx.steps = steps
        return parties[:, :N].contiguous()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of the tensors of ``apply``; d_x is the gradient of the loss in x.

        Steps run from the last to the first. A state q_t is an output and the p of the speaker's next utterance t', so
        d_q_t = grad_t + d_p_t'. A state g_i enters the GRU of step i + 1, and every later attention as key and value:

        .. code-block:: text

            d_c_t = context_weight^T d_party_t,  d_w_ti = d_c_t . g_i
            d_score_ti = w_ti (d_w_ti - sum_j w_tj d_w_tj)
            d_g_i = (GRU of step i + 1) + sum_{t > i} (w_ti d_c_t + d_score_ti query_t)
            d_query_t = sum_i d_score_ti g_i
            d_p_t = (direct part of the party GRU) + p_weight^T [d_a_t; d_b_t]

        The gradient of a weight is the sum over t of (gradient of its product) times (its operand), one product after
        the loop.
        """
        query, p_weight, global_weight, context_weight, mask, party_mask, *saved = ctx.saved_tensors
        old_party, party_saved, old_global, global_saved, context, history, attention = saved
        steps: Steps = ctx.steps
        dirs, N, B, L = steps.dirs, steps.total, steps.size, steps.longest
        Dg, Dp = query.shape[2], p_weight.shape[2]
        d_from_p = query.new_empty(dirs, N, 3 * Dg + 3 * Dp)  # d_a and d_b
        d_global, d_party = query.new_empty(dirs, N, 3 * Dg), query.new_empty(dirs, N, 3 * Dp)
        d_p = query.new_empty(dirs, N + 1, Dp)
        d_p[:, N] = 0  # read after the last turn of a speaker
        flat = d_p.view(-1, Dp)
        # The sum over t > i in d_g_i, as one product at step i: ``sources`` holds (d_c_t, query_t), ``factors`` holds
        # (w_ti, d_score_ti). Adding to d_g_i at every later step would rewrite the history L times.
        sources = query.new_zeros(dirs, B, L, 2, Dg)
        sources.view(-1, 2, Dg)[steps.cell, 1] = query.flatten(0, 1)
        factors = query.new_zeros(dirs, B, L, L, 2)  # [d, b, i, t, value or key]
        factors[..., 0] = attention.transpose(2, 3)
        d_g = query.new_zeros(dirs, B, Dg)
        for t in range(L - 1, -1, -1):
            first, last, running = steps.bounds[t]
            rows = slice(first, last)
            # d_q_t, then d_party_t and d_b_t
            d_p_next = flat.index_select(0, steps.following[:, rows].flatten()).view(dirs, running, Dp)
            d_q = grad[:, rows] + d_p_next
            if party_mask is not None:
                d_q = d_q * party_mask[:, rows]
            d_p_direct = gru_backward(
                d_q, party_saved[:, rows], old_party[:, rows], d_party[:, rows], d_from_p[:, rows, 3 * Dg :]
            )
            # d_c_t and d_score_ti
            if t > 0:
                d_c = torch.bmm(d_party[:, rows], context_weight)
                sources[:, :running, t, 0] = d_c
                for d in range(dirs):
                    d_w = torch.bmm(d_c[d][:, None], history[d, :running, :t].transpose(1, 2))[:, 0]
                    w = attention[d, :running, t, :t]
                    factors[d, :running, :t, t, 1] = w * (d_w - (w * d_w).sum(1, keepdim=True))
            # d_g_t; d_g is the part of the next step's GRU
            d_new = d_g[:, :running]
            if t + 1 < L:
                for d in range(dirs):
                    d_new[d] += torch.bmm(
                        factors[d, :running, t, None, t + 1 :].flatten(2), sources[d, :running, t + 1 :].flatten(1, 2)
                    )[:, 0]
            if mask is not None:
                d_new = d_new * mask[:, rows]
            d_old = gru_backward(
                d_new, global_saved[:, rows], old_global[:, rows], d_from_p[:, rows, : 3 * Dg], d_global[:, rows]
            )
            # to g_{t-1} and p_t
            d_g[:, :running] = torch.baddbmm(d_old, d_global[:, rows], global_weight)
            d_p[:, rows] = torch.baddbmm(d_p_direct, d_from_p[:, rows], p_weight)
        # d_query_t: [d, b, i, t] -> [d, b, t, i], times g_i
        d_query = factors[..., 1].transpose(2, 3).flatten(0, 1).bmm(history.flatten(0, 1))
        return (
            None,
            d_from_p[..., : 3 * Dg],
            d_party,
            d_query.view(-1, Dg).index_select(0, steps.cell).view(dirs, N, Dg),
            torch.bmm(d_from_p.transpose(1, 2), old_party),
            d_from_p[..., 3 * Dg :].sum(1),
            torch.bmm(d_global.transpose(1, 2), old_global),
            d_global.sum(1),
            torch.bmm(d_party.transpose(1, 2), context),
            None,
            None,
        )


def listening_chain(
    steps: Steps,
    slot: Tensor,
    global_u: Tensor,
    party_u: Tensor,
    query: Tensor,
    p_weight: Tensor,
    party_bias: Tensor,
    global_weight: Tensor,
    global_bias: Tensor,
    context_weight: Tensor,
    mask: Tensor | None,
    party_mask: Tensor | None,
    listener_u: Tensor,
    speech_weight: Tensor,
    listener_weight: Tensor,
    listener_bias: Tensor,
    dropout: float,
) -> Tensor:
    """:class:`PartyChain` with updated listeners: every party's state changes at every step.

    Differentiated by autograd. Further arguments are those of :class:`PartyChain`.

    Args:
        steps: The steps.
        slot: (N) speakers numbered from 0 in each conversation, from :func:`speaker_slots`.
        listener_u: (dirs, N, 3 Dp), contribution of u to the gates of the listener GRU, with biases.
        speech_weight: (dirs, 3 Dp, Dp), of the speaker's new state in the listener GRU's input.
        listener_weight, listener_bias: Of the listener GRU's old state.
        dropout: Dropout probability on the listeners' new states.

    Returns:
        (dirs, N, Dp), the speaker's state after each utterance.
    """
    dirs, Dg, Dp = steps.dirs, query.shape[2], p_weight.shape[2]
    slots = torch.stack([slot.index_select(0, utterance) for utterance in steps.utterance])  # (dirs, N)
    S = int(slot.max()) + 1
    p_weight_t, global_weight_t, context_weight_t, speech_weight_t, listener_weight_t = (
        weight.transpose(1, 2) for weight in (p_weight, global_weight, context_weight, speech_weight, listener_weight)
    )
    g = query.new_zeros(dirs, steps.size, Dg)
    parties = query.new_zeros(dirs, steps.size, S, Dp)
    history = query.new_zeros(dirs, steps.size, 0, Dg)
    states = []
    for t, (first, last, running) in enumerate(steps.bounds):
        rows = slice(first, last)
        g, parties, history = g[:, :running], parties[:, :running], history[:, :running]
        speaks = F.one_hot(slots[:, rows], S).bool()[..., None]  # (dirs, k, S, 1)
        p = torch.where(speaks, parties, 0.0).sum(2)
        from_p = p @ p_weight_t
        c = torch.zeros_like(g)
        if t > 0:
            scores = query[:, rows, None] @ history.transpose(2, 3)
            c = (scores.softmax(3) @ history)[:, :, 0]
        gates = global_u[:, rows] + from_p[..., : 3 * Dg]
        g = gru(gates, torch.baddbmm(global_bias[:, None], g, global_weight_t), g)
        g = g if mask is None else g * mask[:, rows]
        history = torch.cat([history, g[:, :, None]], 2)
        gates = torch.baddbmm(party_u[:, rows], c, context_weight_t)
        q = gru(gates, from_p[..., 3 * Dg :] + party_bias[:, None], p)
        q = q if party_mask is None else q * party_mask[:, rows]
        states.append(q)
        speech = torch.baddbmm(listener_u[:, rows], q, speech_weight_t)[:, :, None]
        old = torch.baddbmm(listener_bias[:, None], parties.flatten(1, 2), listener_weight_t).unflatten(1, (running, S))
        listening = F.dropout(gru(speech.expand_as(old), old, parties), dropout)
        parties = torch.where(speaks, q[:, :, None], listening)
    # The last global and listeners' states are not read. In a batch of single utterances this term makes the gradients
    # of their parameters zero, as in PartyChain, instead of None.
    return torch.cat(states, 1) + 0.0 * (history.sum() + parties.sum())
