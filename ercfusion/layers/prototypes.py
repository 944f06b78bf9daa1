"""Vectors typical of having and of not having a label (CARAT; Peng et al., AAAI 2024).

N utterances, M modalities, C labels, Z width of a latent vector.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ercfusion.ops.processes import Shares


class LabelPrototypes(nn.Module):
    r"""A positive and a negative prototype per modality and label, as running averages.

    :meth:`update` moves the prototype of the polarity of each utterance, one utterance after another in the order of
    the batch, :math:`P \leftarrow m P + (1 - m) f`. For n utterances of a polarity this is, without a loop,

    .. math:: P \leftarrow m^n P + (1 - m) \sum_b m^{a_b} f_b

    with a_b utterances of the polarity after b. Prototypes are zero at first and are not scaled to length 1.

    The forward pass weights both prototypes by the softmax of their cosines with the latent vector, without a
    temperature. A prototype without an update yet has weight 0; without either, the result is zero (our reading).

    Args:
        modalities: M.
        labels: C.
        width: Z.
        momentum: m, from 0 to below 1.

    Shapes:
        latents (N, M, C, Z) -> (N, M, C, Z).

    Raises:
        ValueError: ``momentum`` is outside its range.
    """

    prototypes: Tensor
    """(2, M, C, Z): negative, positive."""
    updated: Tensor
    """(2, M, C) bool: at least one update."""

    def __init__(self, modalities: int, labels: int, width: int, *, momentum: float = 0.99) -> None:
        super().__init__()
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum must be from 0 to below 1, found {momentum}. Choose another number.")
        self.momentum = momentum
        self.register_buffer("prototypes", torch.zeros(2, modalities, labels, width))
        self.register_buffer("updated", torch.zeros(2, modalities, labels, dtype=torch.bool))

    def forward(self, latents: Tensor) -> Tensor:
        """Mixture of both prototypes in train mode, the more similar one in eval mode (the positive one of a tie)."""
        # A copy: the update may precede the backward pass.
        prototypes = self.prototypes.to(latents, copy=True)
        similar = torch.einsum("nmcz,pmcz->pnmc", F.normalize(latents, dim=-1), F.normalize(prototypes, dim=-1))
        weights = similar.masked_fill(~self.updated[:, None], -torch.inf)
        if self.training:
            # Without any update both are zero vectors: equal weights instead of the softmax of minus infinity.
            weights = weights.where(self.updated.any(0), 0.0).softmax(0)
        else:
            positive = weights[1] >= weights[0]
            weights = torch.stack([~positive, positive]).to(latents)
        return torch.einsum("pnmc,pmcz->nmcz", weights, prototypes)

    def neutral(self) -> Tensor:
        """(M, C, Z) mean of both prototypes, or the one with updates; zero without any."""
        return self.prototypes.sum(0) / self.updated.sum(0).clamp(min=1)[..., None]

    @torch.no_grad()
    def update(
        self, latents: Tensor, positive: Tensor, valid: Tensor | None = None, shares: Shares | None = None
    ) -> None:
        """Move the prototypes to the latent vectors of a batch; without a read on the host.

        Args:
            latents: (N, M, C, Z).
            positive: (N, C) bool, whether the utterance has the label.
            valid: (N) bool, or (N, M) bool per modality; other latent vectors do not count. None for all.
            shares: Distribution of the batch over processes: every process then uses the whole batch.
        """
        if valid is None:
            valid = torch.ones(latents.shape[0], dtype=torch.bool, device=latents.device)
        if shares is not None:
            latents, positive, valid = (shares.gather(each) for each in (latents, positive, valid))
        latents = latents.to(self.prototypes)
        counted = valid.reshape(len(valid), -1, 1)
        counted = torch.stack([counted & ~positive[:, None], counted & positive[:, None]])
        counted = counted.expand(2, *latents.shape[:3])
        number = counted.sum(1)
        after = number[:, None] - counted.cumsum(1)
        weights = torch.where(counted, (1 - self.momentum) * self.momentum ** after.to(latents), 0.0)
        # Rows that do not count may hold NaN.
        latents = latents.where(counted.any(0)[..., None], 0.0)
        moved = torch.einsum("pnmc,nmcz->pmcz", weights, latents)
        self.prototypes.mul_((self.momentum ** number.to(latents))[..., None]).add_(moved)
        self.updated |= number > 0
