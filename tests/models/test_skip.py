"""The policy ``skip``: a model without a modality is the model of the other modalities, with the same parameters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from ercfusion.batch.batch import ConversationBatch
from ercfusion.batch.inputs import InputSpec
from ercfusion.models import ARCHITECTURES, build_architecture
from ercfusion.tasks.recognizer import Recognizer
from ercfusion.testing import WIDTHS, check_model, make_task, random_batch, random_store, take

TASK = make_task()
OTHERS = {
    "mult": "its Transformers over the other modalities have another width with fewer of them",
    "mplmm": "it generates absent modalities",
}
"""Architectures that are not a smaller one without a modality, and why."""
FORMS: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, {}) for name in ARCHITECTURES if name not in OTHERS},
    "bclstm projected": ("bclstm", {"projection": 16}),
    "bclstm hierarchical": ("bclstm", {"hierarchy": "hierarchical", "residual": True}),
    "bclstm padded": ("bclstm", {"hierarchy": "hierarchical", "mask_padding": False}),
    "bridge without context": ("bridge", {"context": False, "token_attention": True}),
    "broad_mamba causal": ("broad_mamba", {"bidirectional": False, "fusion": "uniform"}),
    "carat lstm": ("carat", {"context": "lstm"}),
    "carat transformer": ("carat", {"context": "transformer", "own": "all"}),
    "dagerc concatenated": ("dagerc", {"projection": 0}),
    "inconvad transformer": ("inconvad", {"context": "transformer"}),
    "inconvad precision": ("inconvad", {"context": "none", "fusion": "precision"}),
    "lmf none": ("lmf", {"context": "none", "norm": "batch"}),
    "lmf transformer": ("lmf", {"context": "transformer"}),
    "m2fnet raw": ("m2fnet", {"encode": "raw", "values": "other", "readout": "gated"}),
    "m2fnet causal": ("m2fnet", {"causal": True, "lags": 0, "readout": "gated", "norm_first": False}),
    "mmgcn recurrent": ("mmgcn", {"recurrent": "all", "activation": "relu", "variant": True}),
    "mmgcn padded": ("mmgcn", {"recurrent": "all", "mask_padding": False, "residual_dropout": True}),
    "tfn none": ("tfn", {"context": "none"}),
    "tfn transformer": ("tfn", {"context": "transformer", "lags": 0}),
}


def built(model: str, options: dict[str, Any], widths: dict[str, int], policy: str | None = "skip") -> Recognizer:
    torch.manual_seed(0)
    recognizer = Recognizer(model, InputSpec(widths), TASK, options, policy=policy)
    store = random_store((6, 8), widths=widths, tasks=[TASK], absent=0.2, seed=7)
    recognizer.prepare(store)
    recognizer = recognizer.double()
    with torch.no_grad():
        for value in recognizer.state_dict().values():
            if value.is_floating_point():
                value.add_(0.1 * torch.rand_like(value))  # also parameters that are zero at first
            elif value.dtype == torch.bool:
                value.fill_(True)  # CARAT's prototypes have been updated
    return recognizer.eval()


def without(value: Tensor, axis: int, blocks: int, block: int) -> Tensor:
    """One of the equal blocks of an axis removed."""
    parts = list(value.chunk(blocks, axis))
    return torch.cat([*parts[:block], *parts[block + 1 :]], axis)


def visual_of_m2fnet(name: str, value: Tensor) -> Tensor:
    """Streams are in the order audio, visual, text; the second of the two others goes."""
    if name.endswith("read_main.weight") or name.endswith("read_main.bias"):
        grouped = value.unflatten(0, (-1, 2, 128))
        return grouped[:, 0].flatten(0, 1)
    if name.endswith("gate.gate.weight"):
        return without(without(value, 0, 3, 1), 1, 3, 1)
    if name.endswith("gate.gate.bias"):
        return without(value, 0, 3, 1)
    joined = name.endswith(("readout.weight", "fuse.weight")) and value.shape[1] == 3 * 128
    return without(value, 1, 3, 1) if joined else value


def visual_of_carat(name: str, value: Tensor) -> Tensor:
    """With ``own=all`` the decoded vector of the own modality follows those of all modalities."""
    joined = "reconstruct" in name and value.ndim == 2 and value.shape[1] == 4 * 128
    return without(value, 1, 4, 2) if joined else value


def visual_of_tfn(name: str, value: Tensor) -> Tensor:
    """The elements of the tensor with the 1 of the last modality, whose index changes fastest."""
    return value.unflatten(1, (-1, 33))[:, :, 0] if name.endswith("fuse.weight") else value


SPECIAL: dict[str, Callable[[str, Tensor], Tensor]] = {
    "carat": visual_of_carat,
    "m2fnet": visual_of_m2fnet,
    "tfn": visual_of_tfn,
}


def pair(model: str, options: dict[str, Any]) -> tuple[Recognizer, Recognizer]:
    """A model of three modalities, and of the first two with the same parameters."""
    big = built(model, options, dict(WIDTHS))
    small = built(model, options, {name: WIDTHS[name] for name in ("text", "audio")})
    given, state = big.state_dict(), {}
    for name, value in small.state_dict().items():
        other = SPECIAL.get(model, lambda name, value: value)(name, given[name])
        state[name] = other[tuple(slice(size) for size in value.shape)]
    if model == "lmf":  # the constant of the absent factor scales the others
        last = max(name for name in state if "factors" in name)
        state[last] = state[last] * given[last.replace("factors.1", "factors.2")][:, :, :1]
    small.load_state_dict(state)
    return big, small


def halves(**arguments: Any) -> tuple[ConversationBatch, ConversationBatch]:
    """A batch without any visual features, and the batch of the two other modalities."""
    batch = random_batch((3, 9, 1, 5), absent=0.3, dtype=torch.float64, **arguments)
    hidden = torch.zeros_like(batch.available)
    hidden[:, 2] = True
    two = replace(
        batch,
        features={name: batch.features[name] for name in ("text", "audio")},
        available=batch.available[:, :2],
    )
    return batch.hide(hidden), two


@pytest.mark.parametrize("form", FORMS)
def test_model_without_a_modality_is_the_model_of_the_others(form: str) -> None:
    model, options = FORMS[form]
    big, small = pair(model, options)
    three, two = halves()
    some = two.present.any(1)  # CARAT reads the biases of all modalities without any
    assert not some.all()
    torch.testing.assert_close(big(three).logits[some], small(two).logits[some], rtol=1e-9, atol=1e-9)
    assert big(three).logits.isfinite().all()


@pytest.mark.slow
@pytest.mark.parametrize("form", [name for name in FORMS if name not in ARCHITECTURES])
def test_policies_of_variants(form: str) -> None:
    """Those of the architectures themselves: tests/models/test_registry.py."""
    model, options = FORMS[form]
    check_model(model, options=options, only=["policies"])


COMPILED = (
    "broad_mamba",
    "cogmen",
    "concat",
    "dagerc",
    "emotx",
    "lsdgnn",
    "m2fnet",
    "majority",
    "utterance_encoder",
    "tfn none",
)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the compiler: numbers that are read break its graph
@pytest.mark.parametrize("policy", ["learned", "skip"])
@pytest.mark.parametrize("form", COMPILED)
def test_compiled_models_follow_the_policy(form: str, policy: str) -> None:
    model, options = FORMS[form]
    recognizer = built(model, options, dict(WIDTHS), policy)
    assert recognizer.architecture.capabilities.compiles
    torch.compiler.reset()
    compiled = torch.compile(recognizer, backend="eager")
    for lengths in ((1, 4, 9), (3, 7)):
        batch = random_batch(lengths, absent=0.4, dtype=torch.float64)
        torch.testing.assert_close(compiled(batch).logits, recognizer(batch).logits)
    torch.compiler.reset()


@pytest.mark.filterwarnings("ignore")
def test_a_compiled_model_skips() -> None:
    recognizer = built("concat", {"hidden": 8}, dict(WIDTHS))
    batch = random_batch((2, 4), absent=0.4, dtype=torch.float64)
    torch.compiler.reset()
    compiled = torch.compile(recognizer, backend="eager")
    torch.testing.assert_close(compiled(batch).logits, recognizer(batch).logits)
    torch.compiler.reset()


ALONE = {name: FORMS[name] for name in ("bclstm hierarchical", "tfn", "lmf", "inconvad", "broad_mamba")} | {
    "m2fnet": ("m2fnet", {"lags": 0, "modality_dropout": 0.0}),
    "bridge": ("bridge", {"lags": 0}),
    "lmf": ("lmf", {"context": "transformer", "lags": 0}),
}


@pytest.mark.parametrize("form", ALONE)
def test_context_of_a_modality_has_only_the_utterances_with_it(form: str) -> None:
    """The representations are those of a conversation from which the other utterances were cut."""
    model, options = ALONE[form]
    recognizer = built(model, options, dict(WIDTHS))
    batch = random_batch((8,), dtype=torch.float64)
    hidden = torch.zeros_like(batch.available)
    hidden[[0, 3, 4], 1] = True
    here = ~hidden[:, 1]
    short = take(batch, [0], turns=5)
    short = replace(
        short,
        features={name: value[here] for name, value in batch.features.items()},
        speaker=batch.speaker[here],
        available=batch.available[here],
    )
    audio = recognizer(batch.hide(hidden)).encoded.modalities["audio"]
    torch.testing.assert_close(audio[here], recognizer(short).encoded.modalities["audio"])
    assert not audio[~here].any()


def test_causal_steps_skip_absent_modalities() -> None:
    torch.manual_seed(0)
    options = {"bidirectional": False, "fusion": "uniform", "layers": 2}
    model = build_architecture("broad_mamba", InputSpec(WIDTHS, policy="skip"), options).eval()
    batch = random_batch((6,), absent=0.5)
    whole, state = model(batch).hidden, None
    for turn in range(6):
        row = slice(turn, turn + 1)
        one = replace(
            take(batch, [0], turns=1),
            features={name: value[row] for name, value in batch.features.items()},
            speaker=batch.speaker[row],
            available=batch.available[row],
        )
        encoded, state = model.step(one, state)
        torch.testing.assert_close(encoded.hidden, whole[row], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("steps", [{"audio": 4}, {"text": 3, "visual": 5}])
@pytest.mark.parametrize("model", ["bridge", "carat", "emotx", "utterance_encoder"])
def test_sequences_of_absent_modalities_are_skipped(model: str, steps: dict[str, int]) -> None:
    torch.manual_seed(0)
    levels = dict.fromkeys(steps, "sequence")
    recognizer = Recognizer(model, InputSpec(WIDTHS, levels), TASK, policy="skip").eval()
    batch = random_batch(absent=0.4, steps=steps)
    logits = recognizer(batch).logits
    assert logits.isfinite().all()
    # An empty sequence counts as absent.
    empty = torch.stack(
        [
            batch.sequences[name].offsets.diff() == 0 if name in steps else torch.zeros(batch.num_utterances).bool()
            for name in WIDTHS
        ],
        dim=1,
    )
    assert (empty & batch.available).any()
    torch.testing.assert_close(recognizer(batch.hide(empty)).logits, logits)
