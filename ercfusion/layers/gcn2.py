"""A deep graph convolution (GCNII), and MMGCN's graph of angular similarities with its block structure kept.

A node is one modality m of one utterance i. In MMGCN's graph (Hu et al., ACL 2021) nodes of the same modality are
joined within a conversation, nodes of the same utterance across modalities, and no others. The matrix of a
conversation of n utterances is therefore M full (n, n) blocks on its diagonal and diagonals everywhere else, and the
matrix of a batch is one such matrix a conversation. Nothing larger than the full blocks is ever formed here.

M modalities, N utterances of the batch, P slots (utterances and their padding), F width of a node.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ercfusion.batch.packing import Packing

SHRINK = 0.99999
"""Factor of every cosine, as published: the slope of arccos, infinite at 1, stays below 224."""

SELF = 1 - math.acos(SHRINK) / math.pi
"""Weight of a node with itself, 0.99858: a constant, since no change of a vector turns it away from itself."""

BUCKET_RATIO = 0.75
"""Conversations at least this long, as a share of the longest one in their bucket, are padded to it."""

SHORT = 8
"""Conversations up to this length share a bucket whatever their ratio: padding is cheaper than one more product."""


class LengthBuckets:
    """Slots for the M * N nodes of a batch, ordered so that conversations of similar length lie side by side.

    Bucket k holds B_k conversations padded to L_k, the longest of them. Its slots are consecutive and ordered by
    modality, conversation and position, so that a flat tensor of nodes is split into buckets, and a bucket viewed as
    (M * B_k, L_k, ...), without copying.

    Args:
        packing: The conversations.
        modalities: M.
    """

    def __init__(self, packing: Packing, modalities: int) -> None:
        self.modalities = modalities
        lengths = packing.lengths
        buckets: list[list[int]] = []
        for b in sorted(range(len(lengths)), key=lambda b: -lengths[b]):
            longest = lengths[buckets[-1][0]] if buckets else 0
            if buckets and (lengths[b] >= BUCKET_RATIO * longest or longest <= SHORT):
                buckets[-1].append(b)
            else:
                buckets.append([b])
        self.shapes: list[tuple[int, int]] = [(len(bucket), lengths[bucket[0]]) for bucket in buckets]
        """(B_k, L_k) of every bucket."""
        first, starts = 0, [[0] * len(lengths) for _ in range(modalities)]
        for bucket, (rows, length) in zip(buckets, self.shapes, strict=True):
            for m in range(modalities):
                for row, b in enumerate(bucket):
                    starts[m][b] = first + (m * rows + row) * length
            first += modalities * rows * length
        start = torch.tensor(starts).to(packing.device, non_blocking=True)
        self.index: Tensor = (start.index_select(1, packing.conversation) + packing.position).flatten()
        """(M * N): the slot of node (m, i), at m * N + i."""

    @property
    def sizes(self) -> list[int]:
        """Slots of every bucket, M * B_k * L_k."""
        return [self.modalities * rows * length for rows, length in self.shapes]

    def spread(self, nodes: Tensor) -> Tensor:
        """(M, N, ...) -> (slots, ...), zeros in the padding. Differentiable."""
        slots = nodes.new_zeros(sum(self.sizes), *nodes.shape[2:])
        return slots.index_copy(0, self.index, nodes.flatten(0, 1))

    def collect(self, slots: Tensor) -> Tensor:
        """(slots, ...) -> (M, N, ...): the inverse of :meth:`spread`. Differentiable."""
        return slots.index_select(0, self.index).unflatten(0, (self.modalities, -1))


class AngularGraph:
    r"""The normalised graph of angular similarities of a batch, and products with it.

    .. math:: A_{uv} = 1 - \arccos(0.99999 \cos(x_u, x_v)) / \pi, \quad \hat A = D^{-1/2} A D^{-1/2}

    for u, v of the same modality and conversation, or of the same utterance; 0 elsewhere. D holds the row sums. Hu et
    al., "MMGCN" (ACL 2021), section 3.4. :func:`angular_adjacency_reference` is its specification.

    An absent node has no edge, not even with itself: its row and column are zero and it counts in nobody's degree. A
    vector of zeros has no direction: its cosine with all others is 0, and its gradient too.

    Args:
        x: (M, N, D) vectors that are compared; gradients flow into them.
        present: (N, M) bool, which nodes there are.
        packing: Of the N utterances.
    """

    def __init__(self, x: Tensor, present: Tensor, packing: Packing) -> None:
        M = len(x)
        self.buckets = LengthBuckets(packing, M)
        self.within: list[Tensor] = []
        """By bucket, (M * B_k, L_k, L_k): the blocks of the same modality."""
        self.across: list[Tensor] = []
        """By bucket, (B_k * L_k, M, M): the edges between the modalities of one utterance, zeros on the diagonal."""
        # Rounding to half precision would move cosines by more than what the arccosine resolves.
        with torch.autocast(x.device.type, enabled=False):
            directions = self.buckets.spread(unit(x.to(torch.promote_types(x.dtype, torch.float32))))
            here = self.buckets.spread(present.t().contiguous())
            sizes = self.buckets.sizes
            for (rows, L), part, alive in zip(
                self.buckets.shapes, directions.split(sizes), here.split(sizes), strict=True
            ):
                self._add_bucket(part.view(M, rows, L, -1), alive.view(M, rows, L))

    def _add_bucket(self, direction: Tensor, here: Tensor) -> None:
        M, rows, L = here.shape
        block = direction.flatten(0, 1)
        alive = here.flatten(0, 1)
        own = torch.eye(L, dtype=torch.bool, device=here.device)
        within = angular(torch.bmm(block, block.transpose(1, 2)))
        within = torch.where(own, SELF, within).masked_fill(~(alive[:, :, None] & alive[:, None, :]), 0.0)
        degree = within.sum(-1).view(M, rows * L)
        across = None
        if M > 1:
            # (slots, M, D): products of the M vectors of one utterance
            beside, both = direction.flatten(1, 2).transpose(0, 1), here.flatten(1, 2).t()
            others = ~torch.eye(M, dtype=torch.bool, device=here.device)
            across = angular(torch.bmm(beside, beside.transpose(1, 2)))
            across = across.masked_fill(~(both[:, :, None] & both[:, None, :] & others), 0.0)
            degree = degree + across.sum(-1).t()
        # Zero degree: an absent node, whose row and column are zero whatever they are multiplied with.
        scale = torch.where(degree > 0, degree, 1.0).rsqrt()
        side = scale.view(M * rows, L)
        self.within.append(within * (side[:, :, None] * side[:, None, :]))
        if across is not None:
            side = scale.t()
            self.across.append(across * (side[:, :, None] * side[:, None, :]))

    def propagate(self, slots: Tensor) -> Tensor:
        """(slots, F) -> (slots, F): the product of the normalised matrix with one vector a node."""
        M = self.buckets.modalities
        mixed = []
        for number, part in enumerate(slots.split(self.buckets.sizes)):
            rows, L = self.buckets.shapes[number]
            out = torch.bmm(self.within[number].to(part.dtype), part.view(M * rows, L, -1)).view(M, rows * L, -1)
            if self.across:
                across = self.across[number].to(part.dtype)
                beside = torch.bmm(across, part.view(M, rows * L, -1).transpose(0, 1))
                out = out + beside.transpose(0, 1)
            mixed.append(out.flatten(0, 1))
        return torch.cat(mixed)


def unit(x: Tensor) -> Tensor:
    """Vectors of length 1 along the last dimension; a vector of zeros stays one, and gets no gradient."""
    square = x.square().sum(-1, keepdim=True)
    tiny = torch.finfo(x.dtype).tiny
    return x * torch.where(square > tiny, square.clamp(min=tiny).rsqrt(), 0.0)


def angular(cosine: Tensor) -> Tensor:
    """1 - arccos(0.99999 c) / pi, in (0, 1); cosines that rounding drove beyond -1 and 1 are cut off there."""
    return 1 - torch.acos((SHRINK * cosine).clamp(-SHRINK, SHRINK)) / math.pi


def angular_adjacency_reference(x: Tensor, present: Tensor) -> Tensor:
    """The normalised matrix of one conversation as loops over pairs of nodes: specification of :class:`AngularGraph`.

    Args:
        x: (M, n, D).
        present: (n, M) bool.

    Returns:
        (M * n, M * n); node (m, i) has the number m * n + i.
    """
    M, n, _ = x.shape
    A = [[x.new_zeros(()) for _ in range(M * n)] for _ in range(M * n)]
    for m in range(M):
        for i in range(n):
            for k in range(M):
                for j in range(n):
                    if (m != k and i != j) or not (present[i, m] and present[j, k]):
                        continue
                    u, v = x[m, i], x[k, j]
                    cosine = (u @ v) / (u.norm() * v.norm()) if u.any() and v.any() else x.new_zeros(())
                    weight = 1 - torch.acos(SHRINK * cosine) / math.pi
                    A[m * n + i][k * n + j] = x.new_tensor(SELF) if (m, i) == (k, j) else weight
    degree = [sum(row, x.new_zeros(())) for row in A]
    rows = [
        torch.stack([A[u][v] / (degree[u] * degree[v]).sqrt() if A[u][v] > 0 else A[u][v] for v in range(M * n)])
        for u in range(M * n)
    ]
    return torch.stack(rows)


class GCN2Conv(nn.Module):
    r"""One layer of GCNII, given the neighbours' mean.

    .. math:: r = (1 - \alpha) \hat A h + \alpha h_0, \quad h' = (1 - \beta_l) r + \beta_l s W, \quad
              \beta_l = \ln(\theta / l + 1)

    with s = r, or with ``variant`` s = [A h; h_0] (the first layer's input keeps a matrix of its own). Chen et al.,
    "Simple and Deep Graph Convolutional Networks" (ICML 2020), eqs. 5 and 6, and their variant GCNII* up to the
    factors 1 - alpha and alpha on s, which MMGCN's code leaves to the weights.

    Args:
        features: F.
        layer: l, from 1: deeper layers are nearer to the identity.
        alpha: Share of the initial representation, in [0, 1].
        theta: Above 0.
        variant: See above.

    Shapes:
        mixed (..., F), the product of the normalised matrix with h; initial (..., F) -> (..., F).
    """

    def __init__(
        self, features: int, layer: int, *, alpha: float = 0.1, theta: float = 0.5, variant: bool = False
    ) -> None:
        super().__init__()
        if layer < 1:
            raise ValueError(f"layer must be at least 1, found {layer}")
        self.alpha = alpha
        self.beta = math.log(theta / layer + 1)
        self.variant = variant
        self.weight = nn.Parameter(torch.empty(features * (2 if variant else 1), features))
        nn.init.uniform_(self.weight, -1 / math.sqrt(features), 1 / math.sqrt(features))

    def forward(self, mixed: Tensor, initial: Tensor) -> Tensor:
        """See the class."""
        base = (1 - self.alpha) * mixed + self.alpha * initial
        if not self.variant:
            return (1 - self.beta) * base + base @ (self.beta * self.weight)
        first, second = (self.beta * self.weight).chunk(2)
        return (1 - self.beta) * base + mixed @ first + initial @ second


class GCN2(nn.Module):
    """A stack of :class:`GCN2Conv` on a graph: projection, then ``layers`` times dropout, convolution and ReLU.

    Args:
        in_features: D, width of the nodes' input.
        features: F, width of the stack.
        layers: How many convolutions; 0 leaves the projection alone.
        alpha, theta, variant: See :class:`GCN2Conv`.
        dropout: Probability, before the projection, every convolution and the end.

    Shapes:
        x (M, N, in_features), graph of the same nodes -> (M, N, features). ``dropped``: x has passed a dropout already.
    """

    def __init__(
        self,
        in_features: int,
        features: int,
        layers: int,
        *,
        alpha: float = 0.1,
        theta: float = 0.5,
        variant: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.narrow = nn.Linear(in_features, features)
        self.convs = nn.ModuleList(
            GCN2Conv(features, number, alpha=alpha, theta=theta, variant=variant) for number in range(1, layers + 1)
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, graph: AngularGraph, *, dropped: bool = False) -> Tensor:
        """See the class."""
        initial = graph.buckets.spread(F.relu(self.narrow(x if dropped else self.dropout(x))))
        h = initial
        for conv in self.convs:
            h = F.relu(conv(graph.propagate(self.dropout(h)), initial))
        return graph.buckets.collect(self.dropout(h))
