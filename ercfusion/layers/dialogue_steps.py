"""The steps of DialogueRNN's recurrence, for all conversations and both directions at once.

:mod:`ercfusion.layers.dialogue_rnn` has the equations. Conversations are sorted by length, so that at step t the first
``k_t`` are still running; the rows of step t lie together, ``(dirs, k_t, D)``, and finished conversations drop out.
Only the emotion states do not feed back into the others, so they are a chain of their own.

Where listeners are not updated, a speaker's state at utterance t is the one that the speaker's previous utterance
left behind. It is read from the history of states by a pointer, so nothing is ever written per party, and since every
state is read at most once, the gradient comes back by the pointer to the next utterance of the same speaker. Both
chains have their backward pass written out: autograd would add to every weight's gradient at every step, which costs
more than the rest; here the gates' gradients of all steps are kept, and one product gives that of a weight.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from ercfusion.batch.packing import Packing


def speaker_links(packing: Packing, speaker: Tensor) -> tuple[Tensor, Tensor]:
    """(N) the previous and the next utterance of the same speaker in the same conversation; N where there is none."""
    N = packing.total
    # Sorted stably by speaker within conversations, neighbours of equal key are consecutive turns of one speaker.
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
    """(N) speakers numbered from 0 within each conversation in order of first appearance, whatever their numbers."""
    previous, _ = speaker_links(packing, speaker)
    padded = packing.pad(speaker)
    appears = packing.pad((previous == packing.total).long())  # 1 at first turns
    number = appears.cumsum(1) - 1
    # The first turn of each speaker, found among all turns of the conversation.
    first = (padded[:, :, None] == padded[:, None, :]) & (appears[:, None, :] == 1)
    return packing.pack((first * number[:, None, :]).sum(2))


class Steps:
    """Which utterance each conversation and direction is at, step by step.

    Args:
        packing: The conversations.
        speaker: (N).
        dirs: 1 reads forwards, 2 both ways.
    """

    def __init__(self, packing: Packing, speaker: Tensor, dirs: int) -> None:
        lengths = packing.lengths
        order = sorted(range(packing.size), key=lambda b: -lengths[b])
        self.dirs, self.size, self.total, self.longest = dirs, packing.size, packing.total, packing.longest
        ended = [0] * (self.longest + 1)
        for length in lengths:
            ended[length] += 1
        self.bounds: list[tuple[int, int, int]] = []
        """Of every step: its first row, one past its last, and how many conversations are running."""
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
        """Of every direction: (N) the row of each utterance."""
        utterances = torch.arange(self.total, device=device)
        self.utterance = [torch.empty_like(row).index_copy(0, row, utterances) for row in self.row]
        """Of every direction: (N) the utterance of each row."""
        links = speaker_links(packing, speaker)
        self.previous = self._pointers(links)
        self.following = self._pointers(links[::-1])
        cells = [rank * self.longest + place + d * self.size * self.longest for d, place in enumerate(places)]
        self.cell = torch.cat(
            [torch.empty_like(row).index_copy(0, row, cell) for row, cell in zip(self.row, cells, strict=True)]
        )
        """(dirs * N) the place of each row in a (dirs, B, L) grid, laid flat."""

    def _pointers(self, links: tuple[Tensor, ...]) -> Tensor:
        """(dirs, N) rows of a (dirs * (N + 1)) history whose last row in every direction is zero."""
        pointers = []
        for d, (row, utterance) in enumerate(zip(self.row, self.utterance, strict=True)):
            rows = torch.cat([row, row.new_full((1,), self.total)])
            pointers.append(rows.index_select(0, links[d].index_select(0, utterance)) + d * (self.total + 1))
        return torch.stack(pointers)

    def arrange(self, x: Tensor) -> Tensor:
        """(N, D) in the order of utterances -> (dirs, N, D) in that of the steps. Differentiable."""
        return torch.stack([x.index_select(0, utterance) for utterance in self.utterance])

    def restore(self, states: Tensor) -> Tensor:
        """(dirs, N, D) in the order of the steps -> (N, dirs * D) in that of the utterances. Differentiable."""
        return torch.cat([state.index_select(0, row) for state, row in zip(states, self.row, strict=True)], 1)


# One GRU step. With gates r, z, n: h' = (1 - z) n + z h, n = tanh(input_n + r * hidden_n).


def gru(input_gates: Tensor, hidden_gates: Tensor, hidden: Tensor, kept: Tensor | None = None) -> Tensor:
    """The new state (..., D), from gates (..., 3 D) and the old state (..., D), in the order and form of torch's GRU.

    ``kept`` (..., 4 D) receives r, z, n and hidden_n, for :func:`gru_backward`.
    """
    D = hidden.shape[-1]
    rz = (input_gates[..., : 2 * D] + hidden_gates[..., : 2 * D]).sigmoid()
    r, z = rz[..., :D], rz[..., D:]
    n = torch.addcmul(input_gates[..., 2 * D :], r, hidden_gates[..., 2 * D :]).tanh()
    if kept is not None:
        kept[..., : 2 * D] = rz
        kept[..., 2 * D : 3 * D] = n
        kept[..., 3 * D :] = hidden_gates[..., 2 * D :]
    return torch.lerp(n, hidden, z)


def gru_backward(grad: Tensor, kept: Tensor, hidden: Tensor, input_grad: Tensor, hidden_grad: Tensor) -> Tensor:
    """Gradient of the old state, as far as it does not come through the gates.

    Args:
        grad: (..., D), of the new state.
        kept: (..., 4 D), from :func:`gru`.
        hidden: (..., D), the old state.
        input_grad, hidden_grad: (..., 3 D); receive the gradients of the gates.
    """
    D = hidden.shape[-1]
    r, z, n, hidden_n = kept.split(D, -1)
    to_n = grad * (1 - z) * (1 - n * n)
    to_z = grad * (hidden - n) * z * (1 - z)
    to_r = to_n * hidden_n * r * (1 - r)
    for target in (input_grad, hidden_grad):
        target[..., :D] = to_r
        target[..., D : 2 * D] = to_z
    input_grad[..., 2 * D :] = to_n
    torch.mul(to_n, r, out=to_n)
    hidden_grad[..., 2 * D :] = to_n
    return grad * z


class EmotionChain(torch.autograd.Function):
    """A GRU over the steps whose inputs have been projected: gates (dirs, N, 3 D) -> states (dirs, N, D).

    ``weight`` (dirs, 3 D, D) and ``bias`` (dirs, 3 D) are those of the old state, ``mask`` (dirs, N, D) or None is
    multiplied to every new state.
    """

    @staticmethod
    def forward(ctx: Any, steps: Steps, gates: Tensor, weight: Tensor, bias: Tensor, mask: Tensor | None) -> Tensor:
        """See the class."""
        dirs, N, D = len(gates), steps.total, weight.shape[2]
        states, old, kept = (gates.new_empty(dirs, N, width) for width in (D, D, 4 * D))
        state = gates.new_zeros(dirs, steps.size, D)
        turned = weight.transpose(1, 2)
        for first, last, running in steps.bounds:
            here = slice(first, last)
            old[:, here] = state = state[:, :running]
            hidden_gates = torch.baddbmm(bias[:, None], state, turned)
            state = gru(gates[:, here], hidden_gates, state, kept[:, here])
            if mask is not None:
                state = state * mask[:, here]
            states[:, here] = state
        ctx.save_for_backward(weight, old, kept, mask)
        ctx.steps = steps
        return states

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """See the class."""
        weight, old, kept, mask = ctx.saved_tensors
        steps: Steps = ctx.steps
        dirs, D = len(weight), weight.shape[2]
        to_input, to_hidden = (old.new_empty(dirs, steps.total, 3 * D) for _ in range(2))
        carry = old.new_zeros(dirs, steps.size, D)
        for first, last, running in reversed(steps.bounds):
            here = slice(first, last)
            to_state = grad[:, here] + carry[:, :running]
            if mask is not None:
                to_state = to_state * mask[:, here]
            past = gru_backward(to_state, kept[:, here], old[:, here], to_input[:, here], to_hidden[:, here])
            carry[:, :running] = torch.baddbmm(past, to_hidden[:, here], weight)
        return None, to_input, torch.bmm(to_hidden.transpose(1, 2), old), to_hidden.sum(1), None


class PartyChain(torch.autograd.Function):
    """The joint recurrence of global and party states, where only the speaker's state changes.

    Args of ``apply``, with Dg and Dp the widths of the states:
        steps: The steps.
        global_u: (dirs, N, 3 Dg), what u gives to the gates of the global GRU, biases included.
        party_u: (dirs, N, 3 Dp), the same of the party GRU.
        query: (dirs, N, Dg), the queries of the attention.
        both: (dirs, 3 Dg + 3 Dp, Dp), weights of the speaker's last state in the global GRU's input and in the party
            GRU's old state.
        party_bias: (dirs, 3 Dp), of the party GRU's old state.
        global_weight, global_bias: (dirs, 3 Dg, Dg), (dirs, 3 Dg), of the global GRU's old state.
        context_weight: (dirs, 3 Dp, Dg), of the context in the party GRU's input.
        mask, party_mask: (dirs, N, Dg) and (dirs, N, Dp), multiplied to the new states, or None.

    Returns:
        (dirs, N, Dp), the speaker's state after each utterance.
    """

    @staticmethod
    def forward(
        ctx: Any,
        steps: Steps,
        global_u: Tensor,
        party_u: Tensor,
        query: Tensor,
        both: Tensor,
        party_bias: Tensor,
        global_weight: Tensor,
        global_bias: Tensor,
        context_weight: Tensor,
        mask: Tensor | None,
        party_mask: Tensor | None,
    ) -> Tensor:
        """See the class."""
        dirs, N, B, L = steps.dirs, steps.total, steps.size, steps.longest
        Dg, Dp = query.shape[2], both.shape[2]
        parties = query.new_empty(dirs, N + 1, Dp)
        parties[:, N] = 0  # the state of whoever speaks for the first time
        flat = parties.view(-1, Dp)
        last_party, party_kept = query.new_empty(dirs, N, Dp), query.new_empty(dirs, N, 4 * Dp)
        last_global, global_kept = query.new_empty(dirs, N, Dg), query.new_empty(dirs, N, 4 * Dg)
        context = query.new_empty(dirs, N, Dg)
        # All global states of a conversation, for the attention; zero where it has ended or has not got to.
        history = query.new_zeros(dirs, B, L, Dg)
        attention = query.new_zeros(dirs, B, L, L)
        both_t, global_t, context_t = (weight.transpose(1, 2) for weight in (both, global_weight, context_weight))
        # Zeros for the global part of the product, which has its bias in global_u.
        both_bias = torch.cat([query.new_zeros(dirs, 3 * Dg), party_bias], 1)[:, None]
        g = query.new_zeros(dirs, B, Dg)
        for t, (first, last, running) in enumerate(steps.bounds):
            here = slice(first, last)
            before = flat.index_select(0, steps.previous[:, here].flatten()).view(dirs, running, Dp)
            last_party[:, here] = before
            from_party = torch.baddbmm(both_bias, before, both_t)
            # Attention over the states before this one.
            c = query.new_zeros(dirs, running, Dg)
            if t > 0:
                for d in range(dirs):
                    past = history[d, :running, :t]
                    scores = torch.bmm(query[d, here, None], past.transpose(1, 2))
                    weights = scores.softmax(2)
                    attention[d, :running, t, :t] = weights[:, 0]
                    c[d] = torch.bmm(weights, past)[:, 0]
            context[:, here] = c
            # The global state.
            last_global[:, here] = g = g[:, :running]
            hidden_gates = torch.baddbmm(global_bias[:, None], g, global_t)
            g = gru(global_u[:, here] + from_party[..., : 3 * Dg], hidden_gates, g, global_kept[:, here])
            if mask is not None:
                g = g * mask[:, here]
            history[:, :running, t] = g
            # The speaker's state.
            gates = torch.baddbmm(party_u[:, here], c, context_t)
            q = gru(gates, from_party[..., 3 * Dg :], before, party_kept[:, here])
            if party_mask is not None:
                q = q * party_mask[:, here]
            parties[:, here] = q
        ctx.save_for_backward(
            query,
            both,
            global_weight,
            context_weight,
            mask,
            party_mask,
            last_party,
            party_kept,
            last_global,
            global_kept,
            context,
            history,
            attention,
        )
        ctx.steps = steps
        return parties[:, :N].contiguous()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """See the class."""
        query, both, global_weight, context_weight, mask, party_mask, *kept = ctx.saved_tensors
        last_party, party_kept, last_global, global_kept, context, history, attention = kept
        steps: Steps = ctx.steps
        dirs, N, B, L = steps.dirs, steps.total, steps.size, steps.longest
        Dg, Dp = query.shape[2], both.shape[2]
        to_both = query.new_empty(dirs, N, 3 * Dg + 3 * Dp)  # global input gates, party hidden gates
        to_global, to_party = query.new_empty(dirs, N, 3 * Dg), query.new_empty(dirs, N, 3 * Dp)
        to_last = query.new_empty(dirs, N + 1, Dp)
        to_last[:, N] = 0  # nobody speaks after the last turn
        flat = to_last.view(-1, Dp)
        # A global state is read by every later attention, as a value and as a key. Its gradient is the sum over
        # later steps t of weight_t * to_context_t + to_score_t * query_t, read from these when its turn has come.
        sources = query.new_zeros(dirs, B, L, 2, Dg)
        sources.view(-1, 2, Dg)[steps.cell, 1] = query.flatten(0, 1)
        factors = query.new_zeros(dirs, B, L, L, 2)  # [.., state, later step, value or key]
        factors[..., 0] = attention.transpose(2, 3)
        to_g = query.new_zeros(dirs, B, Dg)
        for t in range(L - 1, -1, -1):
            first, last, running = steps.bounds[t]
            here = slice(first, last)
            # The speaker's state.
            later = flat.index_select(0, steps.following[:, here].flatten()).view(dirs, running, Dp)
            to_q = grad[:, here] + later
            if party_mask is not None:
                to_q = to_q * party_mask[:, here]
            to_before = gru_backward(
                to_q, party_kept[:, here], last_party[:, here], to_party[:, here], to_both[:, here, 3 * Dg :]
            )
            # The attention.
            if t > 0:
                to_c = torch.bmm(to_party[:, here], context_weight)
                sources[:, :running, t, 0] = to_c
                for d in range(dirs):
                    to_weights = torch.bmm(to_c[d][:, None], history[d, :running, :t].transpose(1, 2))[:, 0]
                    weights = attention[d, :running, t, :t]
                    to_weights = weights * (to_weights - (weights * to_weights).sum(1, keepdim=True))
                    factors[d, :running, :t, t, 1] = to_weights
            # The global state: what the next step's GRU and all later attentions give it.
            to_state = to_g[:, :running]
            if t + 1 < L:
                for d in range(dirs):
                    to_state[d] += torch.bmm(
                        factors[d, :running, t, None, t + 1 :].flatten(2), sources[d, :running, t + 1 :].flatten(1, 2)
                    )[:, 0]
            if mask is not None:
                to_state = to_state * mask[:, here]
            past = gru_backward(
                to_state, global_kept[:, here], last_global[:, here], to_both[:, here, : 3 * Dg], to_global[:, here]
            )
            to_g[:, :running] = torch.baddbmm(past, to_global[:, here], global_weight)
            to_last[:, here] = torch.baddbmm(to_before, to_both[:, here], both)
        # [.., state, step] -> [.., step, state]
        to_query = factors[..., 1].transpose(2, 3).flatten(0, 1).bmm(history.flatten(0, 1))
        return (
            None,
            to_both[..., : 3 * Dg],
            to_party,
            to_query.view(-1, Dg).index_select(0, steps.cell).view(dirs, N, Dg),
            torch.bmm(to_both.transpose(1, 2), last_party),
            to_both[..., 3 * Dg :].sum(1),
            torch.bmm(to_global.transpose(1, 2), last_global),
            to_global.sum(1),
            torch.bmm(to_party.transpose(1, 2), context),
            None,
            None,
        )


def listening_chain(
    steps: Steps,
    slot: Tensor,
    global_u: Tensor,
    party_u: Tensor,
    query: Tensor,
    both: Tensor,
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
    """:class:`PartyChain` where the parties who listen are updated, too; every party's state changes at every step.

    Args:
        steps, global_u, party_u, query, both, party_bias, global_weight, global_bias, context_weight, mask, party_mask:
            As there.
        slot: (N) speakers numbered from 0 in each conversation, from :func:`speaker_slots`.
        listener_u: (dirs, N, 3 Dp), what u gives to the listener GRU, biases included.
        speech_weight: (dirs, 3 Dp, Dp), of the speaker's new state in its input.
        listener_weight, listener_bias: Of its old state.
        dropout: Probability, on the listeners' new states.

    Returns:
        (dirs, N, Dp), the speaker's state after each utterance.
    """
    dirs, Dg, Dp = steps.dirs, query.shape[2], both.shape[2]
    slots = torch.stack([slot.index_select(0, utterance) for utterance in steps.utterance])  # (dirs, N)
    S = int(slot.max()) + 1
    both_t, global_t, context_t, speech_t, listener_t = (
        weight.transpose(1, 2) for weight in (both, global_weight, context_weight, speech_weight, listener_weight)
    )
    g = query.new_zeros(dirs, steps.size, Dg)
    parties = query.new_zeros(dirs, steps.size, S, Dp)
    history = query.new_zeros(dirs, steps.size, 0, Dg)
    states = []
    for t, (first, last, running) in enumerate(steps.bounds):
        here = slice(first, last)
        g, parties, history = g[:, :running], parties[:, :running], history[:, :running]
        speaks = F.one_hot(slots[:, here], S).bool()[..., None]  # (dirs, k, S, 1)
        before = torch.where(speaks, parties, 0.0).sum(2)
        from_party = before @ both_t
        c = torch.zeros_like(g)
        if t > 0:
            scores = query[:, here, None] @ history.transpose(2, 3)
            c = (scores.softmax(3) @ history)[:, :, 0]
        gates = global_u[:, here] + from_party[..., : 3 * Dg]
        g = gru(gates, torch.baddbmm(global_bias[:, None], g, global_t), g)
        g = g if mask is None else g * mask[:, here]
        history = torch.cat([history, g[:, :, None]], 2)
        gates = torch.baddbmm(party_u[:, here], c, context_t)
        q = gru(gates, from_party[..., 3 * Dg :] + party_bias[:, None], before)
        q = q if party_mask is None else q * party_mask[:, here]
        states.append(q)
        heard = torch.baddbmm(listener_u[:, here], q, speech_t)[:, :, None]
        old = torch.baddbmm(listener_bias[:, None], parties.flatten(1, 2), listener_t).unflatten(1, (running, S))
        listening = F.dropout(gru(heard.expand_as(old), old, parties), dropout)
        parties = torch.where(speaks, q[:, :, None], listening)
    # In a batch of single utterances nothing reads the last global and listeners' states: their parameters' gradients
    # are then zero, as in PartyChain, and not absent.
    return torch.cat(states, 1) + 0.0 * (history.sum() + parties.sum())
