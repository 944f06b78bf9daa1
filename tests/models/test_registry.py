"""Every registered architecture against every requirement: a new one is tested by being registered."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest

from ercfusion._core.errors import BatchError, ConfigError
from ercfusion.batch.inputs import InputSpec
from ercfusion.batch.kinds import KINDS, task_kind
from ercfusion.models import ARCHITECTURES, architecture_class, architecture_options, build_architecture
from ercfusion.models.base import Architecture, Capabilities, Encoded, check_widths
from ercfusion.testing import CHECKS, WIDTHS, check_model, make_task


@dataclass(frozen=True)
class Variant:
    """Options of an architecture that change what it is."""

    architecture: str
    options: Mapping[str, Any] = field(default_factory=dict)
    unimodal: bool = False
    exempt: Mapping[str, str] = field(default_factory=dict)


COGMEN_RELEASED = {
    "projection": 0,
    "residual": False,
    "norm": "batch",
    "norm_first": False,
    "mask_padding": False,
    "direction": "released",
    "relations": "speaker_pair",
    "activation": "relu",
    "lags": 0,
}

VARIANTS: dict[str, Variant] = {
    "bclstm_hierarchical": Variant("bclstm", {"hierarchy": "hierarchical", "projection": 16, "dense": 32}),
    "bclstm_detached": Variant("bclstm", {"hierarchy": "hierarchical", "detach": True, "dense": 32}, unimodal=True),
    "bclstm_unidirectional": Variant("bclstm", {"bidirectional": False, "residual": True, "layers": 2}),
    "concat_unimodal": Variant("concat", unimodal=True),
    "dialoguernn_listener": Variant("dialoguernn", {"listener": True}),
    "dialoguernn_causal": Variant("dialoguernn", {"bidirectional": False, "emotion_attention": False}),
    "dagerc_gat": Variant("dagerc", {"attention": "gat", "projection": 0, "window": 2}),
    "lsdgnn_causal": Variant("lsdgnn", {"causal": True}),
    "lsdgnn_released": Variant(
        "lsdgnn", {"projection": 0, "residual": False, "scale": False, "difference": "released"}
    ),
    "cogmen_speaker_pair": Variant("cogmen", {"relations": "speaker_pair", "past": 3, "future": 1}),
    "cogmen_no_transformer": Variant("cogmen", {"layers": 0, "past": 3, "future": 2, "direction": "released"}),
    "cogmen_masked_release": Variant(
        "cogmen",
        {**COGMEN_RELEASED, "mask_padding": True},
    ),
    "cogmen_released": Variant(
        "cogmen",
        COGMEN_RELEASED,
        exempt={
            "batch_invariance": "mask_padding=False: padding, and so the longest conversation, is attended to",
        },
    ),
}


FIRST = next(iter(KINDS))

OF_ENCODER = ("batch_invariance", "absent_content", "missing_aware", "context", "speakers")
"""Requirements of what an architecture reads: a head more or less, which is all that the task changes, is no matter."""


POLICIES_IN_THE_DEFAULT_RUN = ("concat", "cogmen")
"""Policies take a second per architecture. The default run has these two, ``mult`` (tests/models/test_mult.py), and for
the other architectures that absent content reaches nothing and that ``skip`` skips (tests/models/test_skip.py)."""


SLOW_OF_VARIANTS = ("compile", "policies", "overfits", "hidden_steps")
"""Requirements that take most of the time: variants meet them in the slow tests."""


def _cases() -> list[Any]:
    cases = []
    for name in ARCHITECTURES:
        label_wise = architecture_class(name).capabilities.label_wise
        for kind in (kind for kind in KINDS if not label_wise or task_kind(kind).label_wise):
            for check in CHECKS:
                other = kind != FIRST
                # Compiling takes seconds each. What is traced does not depend on the task but for the head.
                if check == "compile" and other and name != "concat":
                    continue
                slow = other and (check in OF_ENCODER or name not in ("concat", "cogmen"))
                slow = slow or (check == "compile" and (name != "concat" or other))
                slow = slow or (check == "policies" and (name not in POLICIES_IN_THE_DEFAULT_RUN or other))
                marks = _slow(slow)
                cases.append(pytest.param(Variant(name), kind, check, id=f"{name}-{kind}-{check}", marks=marks))
    return cases + [
        pytest.param(variant, FIRST, check, id=f"{name}-{check}", marks=_slow(check in SLOW_OF_VARIANTS))
        for name, variant in VARIANTS.items()
        for check in CHECKS
    ]


def _slow(slow: bool) -> list[pytest.MarkDecorator]:
    return [pytest.mark.slow] if slow else []


@pytest.mark.parametrize(("variant", "kind", "check"), _cases())
def test_requirement(variant: Variant, kind: str, check: str) -> None:
    exempt = {name: reason for name, reason in variant.exempt.items() if name == check}
    check_model(
        variant.architecture,
        make_task(kind),
        variant.options,
        unimodal=variant.unimodal,
        exempt=exempt,
        only=[check],
    )


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_interface(name: str) -> None:
    cls = architecture_class(name)
    assert issubclass(cls, Architecture)
    assert "Args:" in (cls.__doc__ or "")
    assert "Shapes:" in (cls.__doc__ or "")
    options = architecture_options(name)
    for option, default in options.items():
        assert isinstance(default, (bool, int, float, str)), f"option {option!r} has the default {default!r}"
    model = build_architecture(name, InputSpec(WIDTHS), options)
    assert isinstance(model.capabilities, Capabilities)
    assert model.inputs == InputSpec(WIDTHS)
    assert model.hidden_size > 0


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("widths", [{"text": 3}, {"mocap": 4, "text": 6}])
def test_any_modalities_will_do(name: str, widths: dict[str, int]) -> None:
    if architecture_class(name)(InputSpec(WIDTHS)).capabilities.requires:
        pytest.skip("needs modalities of its own: checked in its own test file")
    from ercfusion.testing import random_batch

    model = build_architecture(name, InputSpec(widths))
    batch = random_batch((3, 2), widths=widths)
    assert model(batch).hidden.shape == (5, model.hidden_size)


def test_unknown_names() -> None:
    with pytest.raises(ConfigError, match=r"no architecture 'cogman'. Did you mean 'cogmen'\?"):
        architecture_class("cogman")
    with pytest.raises(ConfigError, match=r"model 'cogmen' has no setting 'hiden'. Did you mean 'hidden'\?"):
        build_architecture("cogmen", InputSpec(WIDTHS), {"hiden": 3})
    with pytest.raises(ConfigError, match=r"model\.direction must be one of paper, released; found 'back'"):
        build_architecture("cogmen", InputSpec(WIDTHS), {"direction": "back"})


def test_required_modalities() -> None:
    class NeedsVideo(Architecture):
        hidden_size = 1
        capabilities = Capabilities(requires=("text", "video"))

        def forward(self, batch: object) -> Encoded:
            raise NotImplementedError

    with pytest.raises(BatchError, match="NeedsVideo needs the modality 'video'; the data has text, audio, visual"):
        NeedsVideo(InputSpec(WIDTHS))
    assert NeedsVideo(InputSpec({"video": 2, "text": 3})).inputs.modalities == ("video", "text")


def test_widths() -> None:
    check_widths({"a": 1, "b": 2}, {"a": 1, "b": 2})
    with pytest.raises(BatchError, match="built for the modality 'b'; the data has a, c"):
        check_widths({"a": 1, "b": 2}, {"a": 1, "c": 2})
    with pytest.raises(BatchError, match="'b': the model was built for width 2, the data has 3"):
        check_widths({"a": 1, "b": 2}, {"a": 1, "b": 3})
    with pytest.raises(BatchError, match="built for a, b in this order; the data has b, a"):
        check_widths({"a": 1, "b": 2}, {"b": 2, "a": 1})
    with pytest.raises(BatchError, match="built for a in this order; the data has a, b"):
        check_widths({"a": 1}, {"a": 1, "b": 2})
