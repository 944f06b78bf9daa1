"""Losses as functions of tensors; :mod:`ercfusion.losses.terms` makes objective terms of them.

They take a mask of ``valid`` rows, compute in float32 under autocast (float64 stays), and return a sum and its divisor.
Exceptions: :func:`concordance`, :func:`gaussian_nll`, weights and margins.
"""

from ercfusion.losses.classification import class_balanced_weights, focal_loss, smoothed_cross_entropy
from ercfusion.losses.concordance import SetConcordance, concordance
from ercfusion.losses.contrastive import (
    MemoryQueue,
    inter_class_contrastive,
    rank_n_contrast,
    supervised_contrastive,
)
from ercfusion.losses.distributions import (
    chosen_label_loss,
    chosen_labels,
    cooccurrence_penalties,
    kl_divergence,
    label_counts,
    penalty_factors,
    smooth_raters,
    soft_cross_entropy,
)
from ercfusion.losses.earlier import EarlierBatches
from ercfusion.losses.gaussian import gaussian_nll, gaussian_spread
from ercfusion.losses.label_contrastive import LabelContrast, label_classes, label_contrastive
from ercfusion.losses.spread import covariance_loss, variance_loss
from ercfusion.losses.teaching import (
    gaussian_divergence,
    imputation_loss,
    representation_distance,
    softened_binary_divergence,
    softened_divergence,
)
from ercfusion.losses.triplet import adaptive_margins, adaptive_triplet_loss, triplet_loss

__all__ = [
    "EarlierBatches",
    "LabelContrast",
    "MemoryQueue",
    "SetConcordance",
    "adaptive_margins",
    "adaptive_triplet_loss",
    "chosen_label_loss",
    "chosen_labels",
    "class_balanced_weights",
    "concordance",
    "cooccurrence_penalties",
    "covariance_loss",
    "focal_loss",
    "gaussian_divergence",
    "gaussian_nll",
    "gaussian_spread",
    "imputation_loss",
    "inter_class_contrastive",
    "kl_divergence",
    "label_classes",
    "label_contrastive",
    "label_counts",
    "penalty_factors",
    "rank_n_contrast",
    "representation_distance",
    "smooth_raters",
    "smoothed_cross_entropy",
    "soft_cross_entropy",
    "softened_binary_divergence",
    "softened_divergence",
    "supervised_contrastive",
    "triplet_loss",
    "variance_loss",
]
