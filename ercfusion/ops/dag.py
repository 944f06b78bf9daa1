"""The recurrence of DAG-ERC along directed acyclic graphs of utterances, for packed conversations.

Shen et al., "Directed Acyclic Graph Network for Conversational Emotion Recognition" (ACL 2021), section 3. An utterance
receives from its predecessors *in its own layer*. The published program runs layer after layer, utterance after
utterance, and projects all predecessors at every step. Here

- layers, stacks and conversations advance together as a wavefront: utterance t of layer l is computed at step t + l, in
  n + L - 1 steps instead of n L;
- a step is three grouped matrix products, and predecessors are averaged per relation *before* the projection;
- attention is computed on existing edges, so the sums of a message have the same terms in the same order in every
  batch;
- the hand-written backward pass walks once through the steps, then computes one matrix product per weight.

N utterances of B conversations, D width, S stacks, L layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from ercfusion.batch.packing import Packing
from ercfusion.ops.dag_reference import (
    DAG_ATTENTIONS,
    SLOPE,
    DagAttention,
    DagWeights,
    dag_node,
    first_predecessor,
)


def dag_windows(speaker: Tensor, packing: Packing, window: int) -> Tensor:
    """The first predecessor of every utterance; section 3.2 of the paper.

    The predecessors of utterance i are the utterances from the ``window``-th last one of its speaker before i up to i -
    1, or all earlier ones if the speaker has fewer.

    Args:
        speaker: (N) integers, distinct within a conversation.
        packing: The conversations.
        window: At least 1.

    Returns:
        (N) rows of the packed batch: the predecessors of utterance i are ``result[i]`` to ``i - 1``, none for the first
        of a conversation.

    Raises:
        ValueError: ``window`` is not positive.
    """
    if window < 1:
        raise ValueError(f"a window must be at least 1, found {window}")
    # Two stable sorts place the utterances of one speaker of one conversation next to each other, in their order.
    order = speaker.argsort(stable=True)
    order = order[packing.conversation[order].argsort(stable=True)]
    back = order.roll(window)
    reached = (packing.conversation[back] == packing.conversation[order]) & (speaker[back] == speaker[order])
    reached &= torch.arange(packing.total, device=order.device) >= window  # roll() is circular
    first = torch.empty_like(order)
    first[order] = torch.where(reached, back, packing.offsets[packing.conversation[order]])
    return first


def dag_recursion(
    h: Tensor, first: Tensor, speaker: Tensor, packing: Packing, weights: DagWeights, attention: DagAttention = "dagerc"
) -> Tensor:
    r"""S independent stacks of L layers of the DAG-ERC recurrence, from the same input.

    For layer l = 1 .. L and utterance i with the predecessors j in [first_i, i - 1] (eqs. 4 to 9 of the paper;
    :math:`h_i^0` is ``h``):

    .. math::
        m_i = \sum_j \alpha_{ij} W_{r(i, j)} h^l_j, \quad
        h^l_i = \mathrm{GRU}_c(h^{l-1}_i; m_i) + \mathrm{GRU}_p(m_i; h^{l-1}_i)

    with GRU(input; state), one relation r for predecessors of the same speaker and one for others, and m = 0 without
    predecessors. :math:`\alpha` is a softmax over the predecessors of

    - ``dagerc``: :math:`w^\top h^l_j`. The published part in :math:`h^{l-1}_i` and the bias cancel in the softmax.
    - ``gat``: :math:`w^\top \mathrm{LeakyReLU}(h^{l-1}_i + h^l_j)`, which depends on the receiver i too (as in Brody et
      al., ICLR 2022; not in the paper).

    Computed in the precision of the weights, also under autocast. Differentiable once. On a GPU the host waits once per
    call, for the plan of the edges.

    Args:
        h: (N, D).
        first: (S, N) integers, :func:`dag_windows` of every stack.
        speaker: (N) integers.
        packing: The conversations.
        weights: Weights of all stacks and layers.
        attention: ``dagerc`` or ``gat``.

    Returns:
        (S, L, N, D), the vectors of all layers of all stacks.

    Raises:
        ValueError: an unknown attention, or shapes that do not fit together.
    """
    if attention not in DAG_ATTENTIONS:
        raise ValueError(f"attention must be one of {', '.join(DAG_ATTENTIONS)}; found {attention!r}")
    S, _, D = weights.attention.shape
    if tuple(h.shape) != (packing.total, D) or tuple(first.shape) != (S, packing.total):
        raise ValueError(
            f"{S} stacks of width {D} on {packing.total} utterances need h ({packing.total}, {D}) and first "
            f"({S}, {packing.total}); found {tuple(h.shape)} and {tuple(first.shape)}"
        )
    if torch.compiler.is_compiling():
        # A compiler would unroll the steps for every combination of lengths. disable() at import would take seconds.
        return torch.compiler.disable(_run)(h, first, speaker, packing, weights, attention)
    return _run(h, first, speaker, packing, weights, attention)


def _run(h: Tensor, first: Tensor, speaker: Tensor, packing: Packing, weights: DagWeights, attention: str) -> Tensor:
    plan = _plan(first, speaker, packing, weights.attention.shape[1])
    with torch.autocast(h.device.type, enabled=False):
        tensors = [h.to(weights.attention.dtype), *_arrange(weights)]
        if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
            return _Wavefront.apply(plan, attention, *tensors)
        return _forward(plan, attention, tensors, None)


def _arrange(weights: DagWeights) -> list[Tensor]:
    """Weights by group, last layer first (see :class:`_Plan`), gates in the order r_c, r_p, z_c, z_p, n_c, n_p.

    Equal gates of the two GRUs are neighbours, so one sigmoid covers all resets and updates.
    """

    def gates(weight: Tensor) -> Tensor:
        return weight.unflatten(2, (2, 3, -1)).transpose(2, 3).flatten(2, 4)

    parts = [gates(weights.input_weight), gates(weights.input_bias).unsqueeze(2)]
    parts += [gates(weights.message_weight), gates(weights.message_bias).unsqueeze(2)]
    parts += [weights.relation.transpose(2, 3).flatten(3), weights.attention]
    return [part.transpose(0, 1).flip(0).flatten(0, 1).contiguous() for part in parts]


@dataclass
class _Plan:
    """The schedule of the wavefront and the list of edges.

    Step t in [0, T), T = longest + L, contains utterance i of layer l with i + l = t (layer 0 is the input). The
    vectors of all steps are one tensor (T, (L + 1) S, B, D), the *last* layer and the longest conversation first. So
    the groups computed at a step are a slice with ascending positions, and running conversations are the first rows.

    Edges are sorted by receiver (position, stack, row), then by relation, then by distance. So the edges of a step are
    a slice, and the rows of their sources in the tensor are ``base + t * stride``.
    """

    S: int
    L: int
    B: int
    longest: int
    nodes: Tensor  # (L + 1, S, N) rows of the tensor, flattened but for D
    rows: list[int]  # per position: number of longer conversations
    starts: list[int]  # per position: first edge; then the number of edges
    base: Tensor  # (E)
    stride: int
    cell: Tensor  # (E) receiver and relation: 2 * ((position * S + stack) * B + row) + relation
    offsets: Tensor  # (2 * longest * S * B + 1) first edge of each cell

    def step(self, t: int) -> tuple[slice, slice, int, int, int]:
        """Groups computed at step t, groups of the layers below, conversations, first position, positions."""
        low, high = max(1, t - self.longest + 1), min(self.L, t)  # layers
        due = slice((self.L - high) * self.S, (self.L - low + 1) * self.S)
        below = slice(due.start + self.S, due.stop + self.S)
        return due, below, self.rows[t - high], t - high, high - low + 1

    def edges(self, t: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Edges of step t: sources (E_t), cells (E_t), first edge of each cell, and first edges of the receivers and
        E_t.
        """
        _, _, _, position, count = self.step(t)
        begin, end = self.starts[position], self.starts[position + count]
        cells = 2 * self.S * self.B
        offsets = self.offsets[position * cells : (position + count) * cells + 1] - begin
        return (
            self.base[begin:end] + t * self.stride,
            self.cell[begin:end] - position * cells,
            offsets[:-1],
            offsets[::2],
        )

    @property
    def total(self) -> int:
        """Rows of all steps, per group."""
        return sum(self.step(t)[2] for t in range(1, self.longest + self.L))


def _plan(first: Tensor, speaker: Tensor, packing: Packing, L: int) -> _Plan:
    S, N = first.shape
    B, longest, device = packing.size, packing.longest, first.device
    order = sorted(range(B), key=lambda b: -packing.lengths[b])
    rank = torch.empty(B, dtype=torch.long)
    rank[torch.tensor(order)] = torch.arange(B)
    row, position = rank.to(device)[packing.conversation], packing.position
    stack, layer = torch.arange(S, device=device)[:, None], torch.arange(L + 1, device=device)[:, None, None]
    nodes = (((position + layer) * (L + 1) + L - layer) * S + stack) * B + row

    receiver = ((position * S + stack) * B + row).flatten()
    receiver, by = receiver.sort()
    utterance = by % N
    size = (torch.arange(N, device=device) - first).flatten()[by]
    E = int(size.sum())
    edge = torch.repeat_interleave(torch.arange(S * N, device=device), size, output_size=E)
    distance = torch.arange(E, device=device) - (size.cumsum(0) - size)[edge] + 1
    other = speaker[utterance[edge]] != speaker[utterance[edge] - distance]
    cell, by = (2 * receiver[edge] + other).sort(stable=True)
    # Group (L - l) S + s of step t = i + l, with l eliminated.
    base = receiver[edge] + L * S * B - distance * (L + 1) * S * B
    offsets = torch.searchsorted(cell, torch.arange(2 * longest * S * B + 1, device=device))
    return _Plan(
        S=S,
        L=L,
        B=B,
        longest=longest,
        nodes=nodes,
        rows=[sum(length > i for length in packing.lengths) for i in range(longest)],
        starts=offsets[:: 2 * S * B].tolist(),
        base=base[by],
        stride=L * S * B,
        cell=cell,
        offsets=offsets,
    )


def _bags(values: Tensor, index: Tensor, offsets: Tensor, alpha: Tensor) -> Tensor:
    """Sums of ``alpha * values[index]`` over ranges of edges, each in the order of its edges."""
    return torch.embedding_bag(values, index, offsets, False, 0, False, alpha)[0]


def _per_receiver(values: Tensor, offsets: Tensor, reduce: str = "sum") -> Tensor:
    return torch.segment_reduce(values, reduce, offsets=offsets)


class _Saved:
    """What the backward pass needs: vectors of all steps, operands of the weights' gradients, and gates by step."""

    def __init__(self, plan: _Plan, like: Tensor) -> None:
        G, M, D = plan.L * plan.S, plan.total, like.shape[1]
        self.vectors = like  # replaced
        self.operands = like.new_zeros(G, M, 2 * D)  # m, x: also the states of GRU_c and GRU_p
        self.means = like.new_zeros(G, M, 2 * D)  # of the predecessors, per relation
        self.steps: list[tuple[Tensor, ...]] = []  # r and z, n, the factors of r, alpha


def _forward(plan: _Plan, attention: str, tensors: Sequence[Tensor], saved: _Saved | None) -> Tensor:
    """All steps of the wavefront.

    For the groups due at step t, with x = h_i^{l-1}, w the query, U, V the input and message weights (biases omitted),
    and the two GRUs marked c and p:

    .. code-block:: text

        (1) alpha_ij = softmax_j(w . h_j)                       or softmax_j(w . LeakyReLU(x + h_j))
        (2) mean_r = sum_{j: r(i,j) = r} alpha_ij h_j,          m = sum_r W_r mean_r
        (3) r_c, z_c = sigmoid(U x + V m),                      n_c = tanh(U x + r_c (V m))
            r_p, z_p = sigmoid(U x + V m),                      n_p = tanh(V m + r_p (U x))
        (4) h_i = (1 - z_c) n_c + z_c m + (1 - z_p) n_p + z_p x

    Each gate has its own rows of U and V.
    """
    h, input_weight, input_bias, message_weight, message_bias, relation, query = tensors
    D, S, L, B, T = h.shape[1], plan.S, plan.L, plan.B, plan.longest + plan.L
    vectors = h.new_zeros(T, (L + 1) * S, B, D)
    flat = vectors.view(-1, D)
    for nodes in plan.nodes[0]:
        flat.index_copy_(0, nodes, h)
    score = h.new_zeros(T, (L + 1) * S, B)
    first_row = 0
    for t in range(1, T):
        due, below, R, _, _ = plan.step(t)
        x = vectors[t - 1, below, :R]
        index, cell, cells, receivers = plan.edges(t)
        receiver = cell >> 1
        # (1). For ``dagerc`` the score of an utterance was computed with its vector, once for all receivers.
        if attention == "dagerc":
            scores = score.view(-1).index_select(0, index)
        else:
            joint = flat.index_select(0, index) + vectors[t - 1, below].flatten(0, 1).index_select(0, receiver)
            scores = (F.leaky_relu(joint, SLOPE) * query[due].index_select(0, receiver // B)).sum(1)
        top = _per_receiver(scores, receivers, "max")
        alpha = (scores - top.index_select(0, receiver)).exp()
        alpha = alpha / _per_receiver(alpha, receivers).index_select(0, receiver)
        # (2): cells are (receiver, relation), so the means of both relations are neighbours, as relation[due] expects.
        means = _bags(flat, index, cells, alpha).view(-1, B, 2 * D)[:, :R]

        message = torch.bmm(means, relation[due].mT)
        # (3)
        from_input = torch.baddbmm(input_bias[due], x, input_weight[due].mT)
        from_message = torch.baddbmm(message_bias[due], message, message_weight[due].mT)
        sigmoids = (from_input[..., : 4 * D] + from_message[..., : 4 * D]).sigmoid_()
        reset_c, reset_p, update_c, update_p = sigmoids.split(D, 2)
        new_c = torch.addcmul(from_input[..., 4 * D : 5 * D], reset_c, from_message[..., 4 * D : 5 * D]).tanh_()
        new_p = torch.addcmul(from_message[..., 5 * D :], reset_p, from_input[..., 5 * D :]).tanh_()
        # (4)
        h_l = torch.lerp(new_c, message, update_c) + torch.lerp(new_p, x, update_p)
        vectors[t, due, :R] = h_l
        if attention == "dagerc":
            score[t, due, :R] = torch.bmm(h_l, query[due].unsqueeze(2)).squeeze(2)
        if saved is not None:
            rows = slice(first_row, first_row + R)
            saved.operands[due, rows, :D] = message
            saved.operands[due, rows, D:] = x
            saved.means[due, rows] = means
            gated = torch.cat([from_message[..., 4 * D : 5 * D], from_input[..., 5 * D :]], 2)
            saved.steps.append((sigmoids, torch.cat([new_c, new_p], 2), gated, alpha))
            first_row += R
    if saved is not None:
        saved.vectors = vectors
    return flat.index_select(0, plan.nodes[1:].transpose(0, 1).flatten()).view(S, L, -1, D)


def _backward(
    plan: _Plan, attention: str, tensors: Sequence[Tensor], saved: _Saved, gradient: Tensor
) -> tuple[Tensor, ...]:
    """Gradients of the tensors; d_x is the gradient of the loss in x. Steps run from the last to the first.

    d_h_i (``d_h_l``) is complete at its step: the output's gradient, the layer above (step t + 1) and later receivers
    in the same layer. Then, per GRU with state s (m for c, x for p) and g the factor of r (V m for c, U x for p):

    .. code-block:: text

        (4') d_s = d_h z,  d_z = d_h (s - n) z (1 - z),  d_n = d_h (1 - z) (1 - n^2)
        (3') d_r = d_n g r (1 - r),  d_g = d_n r
             d(U x) = [d_r, d_z of both; d_n of c, d_g of p],  d(V m) = [d_r, d_z of both; d_g of c, d_n of p]
             d_m = d_s of c + V^T d(V m),  d_x = d_s of p + U^T d(U x)
        (2') d_mean_r = W_r^T d_m,  d_h_j = alpha_ij d_mean_r,  d_alpha_ij = d_mean_r . h_j
        (1') d_score_ij = alpha_ij (d_alpha_ij - sum_k alpha_ik d_alpha_ik)
             dagerc: d_h_j += d_score_ij w,  d_w += d_score_ij h_j
             gat, with a = x + h_j: d_w += d_score_ij LeakyReLU(a),  d_a = d_score_ij w LeakyReLU'(a),
             d_h_j += d_a,  d_x += d_a

    The gradient of U is the sum over all steps of d(U x) x^T, a product after the loop; those of V and W are alike.
    """
    _, input_weight, _, message_weight, _, relation, query = tensors
    D, S, B, T = gradient.shape[-1], plan.S, plan.B, plan.longest + plan.L
    vectors, flat = saved.vectors, saved.vectors.view(-1, D)
    d_vectors = torch.zeros_like(vectors)
    d_flat = d_vectors.view(-1, D)
    d_flat.index_copy_(0, plan.nodes[1:].transpose(0, 1).flatten(), gradient.flatten(0, 2))
    d_score = vectors.new_zeros(vectors.shape[:3])
    d_query = torch.zeros_like(query)
    M = plan.total
    d_input = gradient.new_zeros(len(query), M, 6 * D)
    d_message_side = gradient.new_zeros(len(query), M, 6 * D)
    d_messages = gradient.new_zeros(len(query), M, D)
    first_row = M
    for t in range(T - 1, 0, -1):
        due, below, R, _, _ = plan.step(t)
        first_row -= R
        rows = slice(first_row, first_row + R)
        sigmoids, new, gated, alpha = saved.steps[t - 1]
        d_h_l = d_vectors[t, due, :R]
        if attention == "dagerc":
            # (1') of all receivers, whose steps are later: d_score is summed per source, then multiplied by w once.
            d_h_l = d_h_l + d_score[t, due, :R, None] * query[due, None]
        # Both GRUs in one tensor (g, R, 2, D), GRU_c first.
        sigmoids, new, gated = (part.unflatten(2, (-1, D)) for part in (sigmoids, new, gated))
        state = saved.operands[due, rows].unflatten(2, (2, D))
        reset, update = sigmoids[:, :, :2], sigmoids[:, :, 2:]
        # (4')
        d_h_l = d_h_l.unsqueeze(2)
        d_state = d_h_l * update
        d_update = torch.ops.aten.sigmoid_backward(d_h_l * (state - new), update)
        d_new = torch.ops.aten.tanh_backward(d_h_l - d_state, new)
        # (3')
        d_reset = torch.ops.aten.sigmoid_backward(d_new * gated, reset)
        d_gated = d_new * reset
        shared = [d_reset.flatten(2), d_update.flatten(2)]
        d_input[due, rows] = torch.cat([*shared, d_new[:, :, 0], d_gated[:, :, 1]], 2)
        d_message_side[due, rows] = torch.cat([*shared, d_gated[:, :, 0], d_new[:, :, 1]], 2)
        d_message = torch.baddbmm(d_state[:, :, 0], d_message_side[due, rows], message_weight[due])
        d_x = torch.baddbmm(d_state[:, :, 1], d_input[due, rows], input_weight[due])
        d_messages[due, rows] = d_message
        d_vectors[t - 1, below, :R] += d_x

        # (2') and (1'), on the edges. A source has one receiver per step, so index_add_ has one term per row and its
        # order does not matter.
        index, cell, _, receivers = plan.edges(t)
        receiver = cell >> 1
        d_means = vectors.new_zeros(len(d_message), B, 2 * D)
        d_means[:, :R] = torch.bmm(d_message, relation[due])
        d_mean = d_means.view(-1, D).index_select(0, cell)
        source = flat.index_select(0, index)
        alpha_d_alpha = alpha * (d_mean * source).sum(1)
        d_scores = alpha_d_alpha - alpha * _per_receiver(alpha_d_alpha, receivers).index_select(0, receiver)
        d_source = d_mean * alpha[:, None]
        if attention == "dagerc":
            d_score.view(-1).index_add_(0, index, d_scores)
        else:
            joint = source + vectors[t - 1, below].flatten(0, 1).index_select(0, receiver)
            d_joint = torch.ops.aten.leaky_relu_backward(d_scores[:, None], joint, SLOPE, False)
            # LeakyReLU'(a) a = LeakyReLU(a)
            d_query[due] += _per_receiver(d_joint * joint, receivers).view(-1, B, D).sum(1)
            d_joint = d_joint * query[due].index_select(0, receiver // B)
            d_source = d_source + d_joint
            d_vectors[t - 1, below] += _per_receiver(d_joint, receivers).view(-1, B, D)
        d_flat.index_add_(0, index, d_source)

    if attention == "dagerc":  # d_w of all steps; the groups of layer 0, the last ones, have no score
        groups = len(query)
        d_query = torch.einsum("tgb,tgbd->gd", d_score[:, :groups], vectors[:, :groups])
    d_h = d_flat.index_select(0, plan.nodes[0].flatten()).unflatten(0, (S, -1)).sum(0)
    message, x = saved.operands.split(D, 2)
    return (
        d_h,
        torch.bmm(d_input.mT, x),
        d_input.sum(1, keepdim=True),
        torch.bmm(d_message_side.mT, message),
        d_message_side.sum(1, keepdim=True),
        torch.bmm(d_messages.mT, saved.means),
        d_query,
    )


class _Wavefront(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, plan: _Plan, attention: str, *tensors: Tensor) -> Tensor:
        saved = _Saved(plan, tensors[0])
        output = _forward(plan, attention, tensors, saved)
        ctx.plan, ctx.attention, ctx.saved = plan, attention, saved
        ctx.save_for_backward(*tensors)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *_backward(ctx.plan, ctx.attention, ctx.saved_tensors, ctx.saved, gradient)


class DagState:
    """The recurrence of one conversation, one utterance at a time, with the results of :func:`dag_recursion`.

    Args:
        weights: Weights of S stacks and L layers.
        windows: Window of each stack; see :func:`dag_windows`.
        attention: See :func:`dag_recursion`.

    Raises:
        ValueError: an unknown attention, a window below 1, or not one window per stack.
    """

    def __init__(self, weights: DagWeights, windows: Sequence[int], attention: DagAttention = "dagerc") -> None:
        if attention not in DAG_ATTENTIONS:
            raise ValueError(f"attention must be one of {', '.join(DAG_ATTENTIONS)}; found {attention!r}")
        if len(windows) != len(weights.attention) or min(windows) < 1:
            raise ValueError(f"{len(weights.attention)} stacks need as many windows of at least 1; found {windows}")
        self.weights, self.windows, self.attention = weights, tuple(windows), attention
        self.speakers: list[int] = []
        """Speakers of the utterances so far. A window may reach back to the first, so all vectors are stored."""
        self._past = weights.attention.new_zeros(*weights.attention.shape[:2], 16, weights.attention.shape[2])

    @torch.no_grad()
    def step(self, h: Tensor, speaker: int) -> Tensor:
        """Take the next utterance: h (D) -> (S, L, D), its vectors of all layers. Without gradients."""
        t = len(self.speakers)
        _, L, room, _ = self._past.shape
        if t == room:
            self._past = torch.cat([self._past, torch.zeros_like(self._past)], 2)
        for stack, window in enumerate(self.windows):
            low = first_predecessor(self.speakers, speaker, window)
            same = torch.tensor([before == speaker for before in self.speakers[low:]], dtype=torch.bool)
            vector = h.to(self._past.dtype)
            for layer in range(L):
                past = self._past[stack, layer, low:t]
                vector = dag_node(vector, past, same.to(h.device), self.weights.node(stack, layer), self.attention)
                self._past[stack, layer, t] = vector
        self.speakers.append(speaker)
        return self._past[:, :, t].clone()
