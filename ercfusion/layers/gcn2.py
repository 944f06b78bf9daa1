"""A deep graph convolution (GCNII), and MMGCN's graph of angular similarities in block form.

A node is one modality m of one utterance i. MMGCN's graph (Hu et al., ACL 2021) joins nodes of the same modality within
a conversation, and nodes of the same utterance across modalities. So the matrix of n utterances has M full (n, n)
blocks, and diagonal blocks elsewhere; nothing larger is formed here.

M modalities, N utterances of the batch, P slots (utterances and padding), F width of a node.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ercfusion.batch.packing import Packing, check_rows

SHRINK = 0.99999
"""Factor of every cosine, as published: it bounds the slope of arccos, infinite at 1, by 224."""

SELF = 1 - math.acos(SHRINK) / math.pi
"""Weight of a node with itself, 0.99858, a constant: its cosine is 1 for every vector."""

BUCKET_RATIO = 0.75
"""Conversations at least this long, relative to the longest of their bucket, are padded to it."""

SHORT = 8
"""Conversations up to this length share a bucket: padding costs less than another product."""


class LengthBuckets:
    """Slots for the M * N nodes of a batch, grouping conversations of similar length.

    Bucket k contains B_k conversations padded to L_k. Its slots are consecutive, ordered by modality, conversation and
    position, so a bucket of a flat tensor of nodes is a view (M * B_k, L_k, ...).

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
        """(B_k, L_k) per bucket."""
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
        """Slots per bucket, M * B_k * L_k."""
        return [self.modalities * rows * length for rows, length in self.shapes]

    def spread(self, nodes: Tensor) -> Tensor:
        """(M, N, ...) -> (slots, ...), zero in the padding. Differentiable."""
        slots = nodes.new_zeros(sum(self.sizes), *nodes.shape[2:])
        return slots.index_copy(0, self.index, nodes.flatten(0, 1))

    def collect(self, slots: Tensor) -> Tensor:
        """(slots, ...) -> (M, N, ...): the inverse of :meth:`spread`. Differentiable."""
        return slots.index_select(0, self.index).unflatten(0, (self.modalities, -1))


class AngularGraph:
    r"""The normalised graph of angular similarities of a batch, and products with it.

    .. math:: A_{uv} = 1 - \arccos(0.99999 \cos(x_u, x_v)) / \pi, \quad \hat A = D^{-1/2} A D^{-1/2}

    for u, v of the same modality and conversation, or of the same utterance; 0 elsewhere. D contains the row sums. Hu
    et al., "MMGCN" (ACL 2021), section 3.4. Specification: :func:`angular_adjacency_reference`.

    An absent node has no edges: its row and column are zero. A zero vector has cosine 0 with all others, and gradient
    0.

    Args:
        x: (M, N, D) vectors to compare; differentiable.
        present: (N, M) bool, the nodes that exist.
        packing: Packing of the N utterances.
    """

    def __init__(self, x: Tensor, present: Tensor, packing: Packing) -> None:
        check_rows(present, packing, None, name="present")
        if not torch.compiler.is_compiling() and (x.ndim != 3 or x.shape[:2] != present.shape[::-1]):
            raise ValueError(
                f"x must be ({present.shape[1]}, {len(present)}, D) to fit present; found {tuple(x.shape)}."
            )
        M = len(x)
        self.nodes = tuple(x.shape[:2])
        """(M, N)."""
        self.buckets = LengthBuckets(packing, M)
        self.within: list[Tensor] = []
        """Per bucket, (M * B_k, L_k, L_k): the blocks of the same modality."""
        self.across: list[Tensor] = []
        """By bucket, (B_k * L_k, M, M): the edges between the modalities of one utterance, zeros on the diagonal."""
        # Half precision would change cosines by more than the arccosine resolves.
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
        diagonal = torch.eye(L, dtype=torch.bool, device=here.device)
        within = angular(torch.bmm(block, block.transpose(1, 2)))
        within = torch.where(diagonal, SELF, within).masked_fill(~(alive[:, :, None] & alive[:, None, :]), 0.0)
        degree = within.sum(-1).view(M, rows * L)
        across = None
        if M > 1:
            # (slots, M, D): the M vectors of one utterance
            vectors, both = direction.flatten(1, 2).transpose(0, 1), here.flatten(1, 2).t()
            others = ~torch.eye(M, dtype=torch.bool, device=here.device)
            across = angular(torch.bmm(vectors, vectors.transpose(1, 2)))
            across = across.masked_fill(~(both[:, :, None] & both[:, None, :] & others), 0.0)
            degree = degree + across.sum(-1).t()
        # Degree zero is an absent node; its row and column are zero with any scale.
        scale = torch.where(degree > 0, degree, 1.0).rsqrt()
        side = scale.view(M * rows, L)
        self.within.append(within * (side[:, :, None] * side[:, None, :]))
        if across is not None:
            side = scale.t()
            self.across.append(across * (side[:, :, None] * side[:, None, :]))

    def propagate(self, slots: Tensor) -> Tensor:
        """(slots, F) -> (slots, F): the normalised matrix times one vector per node."""
        M = self.buckets.modalities
        mixed = []
        for number, part in enumerate(slots.split(self.buckets.sizes)):
            rows, L = self.buckets.shapes[number]
            out = torch.bmm(self.within[number].to(part.dtype), part.view(M * rows, L, -1)).view(M, rows * L, -1)
            if self.across:
                across = self.across[number].to(part.dtype)
                crossed = torch.bmm(across, part.view(M, rows * L, -1).transpose(0, 1))
                out = out + crossed.transpose(0, 1)
            mixed.append(out.flatten(0, 1))
        return torch.cat(mixed)


def unit(x: Tensor) -> Tensor:
    """Vectors of length 1 along the last dimension; a zero vector stays zero and has gradient zero."""
    square = x.square().sum(-1, keepdim=True)
    tiny = torch.finfo(x.dtype).tiny
    return x * torch.where(square > tiny, square.clamp(min=tiny).rsqrt(), 0.0)


def angular(cosine: Tensor) -> Tensor:
    """1 - arccos(0.99999 c) / pi, in (0, 1); cosines beyond -1 and 1 by rounding are clipped."""
    return 1 - torch.acos((SHRINK * cosine).clamp(-SHRINK, SHRINK)) / math.pi


def angular_adjacency_reference(x: Tensor, present: Tensor) -> Tensor:
    """The normalised matrix of one conversation as loops over pairs of nodes: the specification of
    :class:`AngularGraph`.

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
    r"""One layer of GCNII, given the product of the graph with its input.

    .. math:: r = (1 - \alpha) \hat A h + \alpha h_0, \quad h' = (1 - \beta_l) r + \beta_l s W, \quad
              \beta_l = \ln(\theta / l + 1)

    with s = r, or with ``variant`` s = [A h; h_0]. Chen et al., "Simple and Deep Graph Convolutional Networks" (ICML
    2020), eqs. 5 and 6, and their variant GCNII* without the factors 1 - alpha and alpha on s, as in MMGCN's code.

    Args:
        features: F.
        layer: l, from 1; deeper layers are closer to the identity.
        alpha: Share of the initial representation, in [0, 1].
        theta: Above 0.
        variant: Use the second form of s.

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
        """(..., F) -> (..., F)."""
        base = (1 - self.alpha) * mixed + self.alpha * initial
        if not self.variant:
            return (1 - self.beta) * base + base @ (self.beta * self.weight)
        first, second = (self.beta * self.weight).chunk(2)
        return (1 - self.beta) * base + mixed @ first + initial @ second


class GCN2(nn.Module):
    """A stack of :class:`GCN2Conv` on a graph: a projection, then ``layers`` times dropout, convolution and ReLU.

    Args:
        in_features: D, width of the nodes' input.
        features: F, width of the stack.
        layers: Number of convolutions; 0 for the projection only.
        alpha, theta, variant: See :class:`GCN2Conv`.
        dropout: Dropout probability before the projection, before every convolution and at the end.

    Shapes:
        x (M, N, in_features), graph of the same nodes -> (M, N, features). With ``dropped``, x has already passed a
        dropout.
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
        """(M, N, in_features) -> (M, N, features)."""
        expected = (*graph.nodes, self.narrow.in_features)
        if not torch.compiler.is_compiling() and tuple(x.shape) != expected:
            raise ValueError(f"x must be {expected}, the nodes of the graph; found {tuple(x.shape)}.")
        initial = graph.buckets.spread(F.relu(self.narrow(x if dropped else self.dropout(x))))
        h = initial
        for conv in self.convs:
            h = F.relu(conv(graph.propagate(self.dropout(h)), initial))
        return graph.buckets.collect(self.dropout(h))
