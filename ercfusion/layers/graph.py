"""Graph convolutions over window graphs.

Both layers have a sparse form over edges and a dense form over (B, L, L) blocks, with equal results. The dense form is
faster for conversations of 10 to 110 utterances, and used up to :data:`DENSE_LIMIT`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ercfusion.batch.packing import check_rows
from ercfusion.layers.relative import RelativeBias
from ercfusion.ops.graph import WindowGraph

DENSE_LIMIT = 2**26
"""Largest number of elements of a dense adjacency (256 MiB in float32)."""


class RelationalConv(nn.Module):
    r"""Relational graph convolution with a mean over the neighbours of each relation.

    .. math:: x_t' = W_0 x_t + b + \sum_r \frac{1}{|N_r(t)|} \sum_{s \in N_r(t)} W_r x_s

    Schlichtkrull et al., "Modeling Relational Data with Graph Convolutional Networks" (ESWC 2018), eq. 2, with c =
    :math:`|N_r(t)|` and without basis decomposition, as in COGMEN's released code.

    Neighbours are averaged before they are transformed, so the products grow with the relations that can reach an
    utterance (2 S with ``speaker_pair``) and not with the edges.

    Args:
        in_features, out_features: Widths.
        num_relations: R of the graphs.

    Shapes:
        x (N, in_features), graph over the same N utterances -> (N, out_features).
    """

    def __init__(self, in_features: int, out_features: int, num_relations: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_relations, in_features, out_features))
        self.root = nn.Linear(in_features, out_features)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Glorot-uniform weights per relation."""
        fan_in, fan_out = self.weight.shape[1:]
        nn.init.uniform_(self.weight, -math.sqrt(6 / (fan_in + fan_out)), math.sqrt(6 / (fan_in + fan_out)))
        nn.init.xavier_uniform_(self.root.weight)
        nn.init.zeros_(self.root.bias)

    def forward(self, x: Tensor, graph: WindowGraph) -> Tensor:
        """(N, in_features) -> (N, out_features)."""
        if graph.num_relations != len(self.weight):
            raise ValueError(f"the graph has {graph.num_relations} relations, the layer {len(self.weight)}")
        check_rows(x, graph.packing, self.root.in_features)
        speakers = 1 if graph.relations == "same_other" else graph.num_speakers
        slots = graph.num_relations // speakers  # relations ending in an utterance of one speaker
        blocks = graph.packing.size * graph.packing.longest**2 * slots
        neighbours = _slot_means_dense if blocks <= DENSE_LIMIT else _slot_means_sparse
        means = neighbours(x, graph, slots).flatten(1)  # (N, slots * in_features)
        if speakers == 1:
            return self.root(x) + means @ self.weight.flatten(0, 1)
        # weight[r] with r = 2 * (S * speaker_s + speaker_t) + c -> per speaker_t the slots (speaker_s, c)
        weight = self.weight.view(speakers, speakers, 2, *self.weight.shape[1:]).transpose(0, 1).flatten(1, 3)
        out = self.root(x)
        for speaker_t in range(speakers):
            rows = (graph.number == speaker_t).nonzero().squeeze(1)
            if len(rows):
                out = out.index_add(0, rows, (means[rows] @ weight[speaker_t]).to(out.dtype))
        return out


def _slot(graph: WindowGraph, relation: Tensor, slots: int) -> Tensor:
    """The relation without its target speaker; ``slots`` at pairs without an edge."""
    if graph.relations == "same_other":
        return relation
    S = graph.num_speakers
    return torch.where(relation < graph.num_relations, 2 * (relation // (2 * S)) + relation % 2, slots)


def _slot_means_dense(x: Tensor, graph: WindowGraph, slots: int) -> Tensor:
    """(N, slots, D) means of the neighbours in each slot, zero without neighbours, by batched matrix products."""
    slot = _slot(graph, graph.relation_blocks, slots)
    adjacency = (slot[:, None] == torch.arange(slots, device=x.device)[:, None, None]).to(x.dtype)  # (B, slots, L, L)
    adjacency = adjacency / adjacency.sum(-1, keepdim=True).clamp(min=1)
    B, _, L, _ = adjacency.shape
    padded = graph.packing.pad(x)
    means = torch.bmm(adjacency.view(B, slots * L, L), padded).view(B, slots, L, -1)
    return graph.packing.pack(means.transpose(1, 2))


def _slot_means_sparse(x: Tensor, graph: WindowGraph, slots: int) -> Tensor:
    """:func:`_slot_means_dense` over the list of edges."""
    source, target = graph.edges
    cell = target * slots + _slot(graph, graph.relation, slots)
    wide = torch.promote_types(x.dtype, torch.float32)  # sums and counts of many neighbours exceed half precision
    sums = x.new_zeros(len(x) * slots, x.shape[1], dtype=wide).index_add(0, cell, x[source].to(wide))
    count = torch.zeros(len(x) * slots, dtype=wide, device=x.device)
    count.index_add_(0, cell, torch.ones_like(cell, dtype=wide))
    return (sums / count.clamp(min=1)[:, None]).to(x.dtype).view(len(x), slots, -1)


class GraphAttention(nn.Module):
    r"""Dot-product attention over the neighbours in a graph, with a skip connection and concatenated heads.

    .. math:: x_t' = W_s x_t + \big\Vert_h \sum_{u \in N(t)} \alpha^h_{tu} W^h_v x_u, \quad
              \alpha^h_{tu} = \mathrm{softmax}_u \big( (W^h_q x_t)^\top (W^h_k x_u) / \sqrt{d} + \beta^h_{tu} \big)

    With :math:`\beta = 0`: Shi et al., "Masked Label Prediction" (IJCAI 2021), eqs. 1 to 3, without edge features and
    gate (TransformerConv of PyTorch Geometric). With ``lags``, :math:`\beta` is a
    :class:`~ercfusion.layers.relative.RelativeBias`.

    Args:
        in_features: Width of the input.
        out_features: Width d of one head; the output has width ``heads * out_features``.
        heads: H.
        dropout: Dropout probability on attention weights.
        lags: Largest distinct distance of the bias; 0 for no bias.

    Shapes:
        x (N, in_features), graph over the same N utterances -> (N, heads * out_features).
    """

    def __init__(
        self, in_features: int, out_features: int, heads: int = 1, dropout: float = 0.0, lags: int = 0
    ) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.query = nn.Linear(in_features, heads * out_features)
        self.key = nn.Linear(in_features, heads * out_features)
        self.value = nn.Linear(in_features, heads * out_features)
        self.skip = nn.Linear(in_features, heads * out_features)
        self.bias = RelativeBias(heads, lags) if lags else None

    def forward(self, x: Tensor, graph: WindowGraph) -> Tensor:
        """(N, in_features) -> (N, heads * out_features)."""
        check_rows(x, graph.packing, self.query.in_features)
        blocks = graph.packing.size * graph.packing.longest**2 * self.heads
        attend = self._dense if blocks <= DENSE_LIMIT else self._sparse
        return self.skip(x) + attend(self.query(x), self.key(x), self.value(x), graph)

    def attention_map(self, x: Tensor, graph: WindowGraph) -> Tensor:
        """(B, H, L, L) weights without dropout, [b, h, receiver, source]; rows of utterances sum to 1, padding is 0."""
        q, k = (self._heads(part, graph) for part in (self.query(x), self.key(x)))
        scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
        mask = self._mask(graph, scores.dtype)
        scores = scores.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else scores + mask
        return scores.softmax(-1) * graph.packing.mask[:, None, :, None]

    def _heads(self, x: Tensor, graph: WindowGraph) -> Tensor:
        """(N, H d) -> (B, H, L, d)."""
        return graph.packing.pad(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def _mask(self, graph: WindowGraph, dtype: torch.dtype) -> Tensor:
        """Mask or shift of the scores, broadcastable to (B, H, L, L): bool, or biases with -inf."""
        # A padded row attends to itself, because a softmax without elements is NaN.
        own = torch.eye(graph.packing.longest, dtype=torch.bool, device=graph.packing.device)
        mask = (graph.adjacency | own)[:, None]
        if self.bias is None:
            return mask
        return self.bias(graph.packing, graph.speaker).to(dtype).masked_fill(~mask, -math.inf)

    def _dense(self, query: Tensor, key: Tensor, value: Tensor, graph: WindowGraph) -> Tensor:
        q, k, v = (self._heads(part, graph) for part in (query, key, value))
        dropout = self.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=self._mask(graph, q.dtype), dropout_p=dropout)
        return graph.packing.pack(mixed.transpose(1, 2).flatten(2))

    def _sparse(self, query: Tensor, key: Tensor, value: Tensor, graph: WindowGraph) -> Tensor:
        source, target = graph.edges
        N, d = len(query), query.shape[1] // self.heads
        query, key, value = (part.view(N, self.heads, d) for part in (query, key, value))
        # At least single precision, for long sums and because exp() under autocast on a GPU returns it.
        wide = torch.promote_types(query.dtype, torch.float32)
        score = (query[target] * key[source]).to(wide).sum(-1) / math.sqrt(d)  # (E, H)
        if self.bias is not None:
            score = score + self.bias.pairs(target - source, graph.speaker[source] == graph.speaker[target]).t()
        index = target[:, None].expand_as(score)
        top = score.new_full((N, self.heads), -math.inf).scatter_reduce(0, index, score.detach(), "amax")
        weight = (score - top[target]).exp()
        weight = weight / score.new_zeros(N, self.heads).index_add(0, target, weight)[target]
        weight = F.dropout(weight, self.dropout, self.training)
        mixed = value.new_zeros(N, self.heads, d, dtype=wide).index_add(0, target, weight[:, :, None] * value[source])
        return mixed.to(value.dtype).flatten(1)
