"""Torch modules on packed conversations. Importing this package loads torch and numpy only.

B conversations, N utterances of the whole batch, L utterances of the longest conversation, D width, H heads, R
relations. A mask is True at real elements.
"""

from ercfusion.layers.bridge import BridgeTokenFusion
from ercfusion.layers.broad import BroadLearning, ProbabilityGuidedFusion
from ercfusion.layers.crossmodal import CrossModalEncoder
from ercfusion.layers.dag import DagStack
from ercfusion.layers.dialogue_rnn import DialogueRecurrence
from ercfusion.layers.fusion import ConcatFusion, FusionAttention, GatedFusion, ModalityDropout
from ercfusion.layers.gcn2 import GCN2, AngularGraph, GCN2Conv
from ercfusion.layers.graph import GraphAttention, RelationalConv
from ercfusion.layers.inputs import ModalityProjection, Standardize
from ercfusion.layers.mamba import BidirectionalMamba, Mamba, MambaState
from ercfusion.layers.norm import SharedBatchNorm
from ercfusion.layers.prototypes import LabelPrototypes
from ercfusion.layers.recurrent import PackedLSTM
from ercfusion.layers.relative import RelativeBias
from ercfusion.layers.shuffle import shuffle_labels
from ercfusion.layers.spectrogram import (
    MaskedBatchNorm,
    SpecAugment,
    SpectrogramNet,
    pad_sequences,
    pool_frames,
    random_crop,
)
from ercfusion.layers.tensor_fusion import LowRankFusion, TensorFusion
from ercfusion.layers.tokens import Tokens, TokenTransformerLayer
from ercfusion.layers.transformer import PackedTransformer, PackedTransformerLayer

__all__ = [
    "GCN2",
    "AngularGraph",
    "BidirectionalMamba",
    "BridgeTokenFusion",
    "BroadLearning",
    "ConcatFusion",
    "CrossModalEncoder",
    "DagStack",
    "DialogueRecurrence",
    "FusionAttention",
    "GCN2Conv",
    "GatedFusion",
    "GraphAttention",
    "LabelPrototypes",
    "LowRankFusion",
    "Mamba",
    "MambaState",
    "MaskedBatchNorm",
    "ModalityDropout",
    "ModalityProjection",
    "PackedLSTM",
    "PackedTransformer",
    "PackedTransformerLayer",
    "ProbabilityGuidedFusion",
    "RelationalConv",
    "RelativeBias",
    "SharedBatchNorm",
    "SpecAugment",
    "SpectrogramNet",
    "Standardize",
    "TensorFusion",
    "TokenTransformerLayer",
    "Tokens",
    "pad_sequences",
    "pool_frames",
    "random_crop",
    "shuffle_labels",
]
