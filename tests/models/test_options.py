"""Options of the architectures come from their constructors, and wrong values are refused before anything is built."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Annotated, Any, Literal

import pytest
import torch

from docs.computed.models import model_options
from ercfusion._core.errors import ConfigError
from ercfusion.batch.inputs import InputSpec
from ercfusion.config.options import Option, Range, check_options, defaults_of, options_of
from ercfusion.models import ARCHITECTURES, architecture_class, architecture_options, build_architecture
from ercfusion.models.cogmen import Cogmen
from ercfusion.models.concat import Concat

INPUTS = InputSpec({"text": 6, "audio": 4, "visual": 3})
NUMBERS = (int, float)
ALL = [(name, option) for name in ARCHITECTURES for option in options_of(architecture_class(name))]


def refusal(work: Callable[[], object]) -> str:
    """The message of the error that ``work`` raises; empty if it raises none."""
    try:
        work()
    except ConfigError as error:
        return str(error)
    return ""


def test_every_option_has_a_type_a_range_or_choices_and_a_meaning() -> None:
    for name, option in ALL:
        where = f"{name}.{option.name}"
        assert option.type in (bool, int, float, str), where
        assert option.meaning, where
        assert "\n" not in option.meaning, where
        assert ":class:" not in option.meaning, where
        option.check(option.default, where)
        if option.type in NUMBERS:
            assert option.low is not None, where
            assert option.high is not None, where
            assert option.high < 1 << 31, where
        elif option.type is str:
            assert option.choices or option.name in ("main", "spectrogram"), where


def test_values_out_of_range_and_unknown_choices_are_refused() -> None:
    for name, option in ALL:
        key = f"model.{option.name}"
        wrong: list[Any] = []
        if option.type in NUMBERS:
            step = 1 if option.type is int else 0.5
            assert option.low is not None
            assert option.high is not None
            wrong = [option.type(option.low - step), option.type(2 * option.high + 1), option.type(-(10**12))]
        elif option.choices:
            wrong = [f"{option.choices[0]}s", ""]
        for value in wrong:
            with pytest.raises(ConfigError, match=rf"^{key} must be (from|one of) .* found ") as error:
                check_options(f"model {name!r}", "model", [option], {option.name: value})
            assert len(str(error.value)) <= 300


def test_values_of_another_type_are_refused() -> None:
    for name, option in ALL:
        for value in ([1], {"a": 1}, None, "x" * 5000, 0.5, True):
            message = refusal(lambda: check_options(f"model {name!r}", "model", [option], {option.name: value}))  # noqa: B023
            if type(value) is option.type or (option.type is float and type(value) is int):
                assert not message or " must be " in message
            else:
                assert message.startswith((f"model.{option.name} takes ", f"model.{option.name} must be one of "))
            assert len(message) <= 300


@pytest.mark.slow
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_least_value_of_every_size_makes_a_model_or_a_named_error(name: str) -> None:
    for option in options_of(architecture_class(name)):
        if option.type is int:
            assert option.low is not None
            for value in (int(option.low), int(option.low) + 1, int(option.low) + 2, 7):
                message = refusal(lambda: build_architecture(name, INPUTS, {option.name: value}))  # noqa: B023
                assert not message or name in message


def test_the_same_check_by_name_and_by_class() -> None:
    message = "model.norm must be one of layer, batch; found 'group' (model {}). Choose one of them."
    assert refusal(lambda: build_architecture("cogmen", INPUTS, {"norm": "group"})) == message.format("'cogmen'")
    assert refusal(lambda: Cogmen(INPUTS, norm="group")) == message.format("'Cogmen'")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="unexpected keyword argument 'hiden'"):
        Cogmen(INPUTS, hiden=3)  # type: ignore[call-arg]


def test_a_checked_constructor_is_pickled_copied_and_inspected_as_before() -> None:
    model = Concat(INPUTS, hidden=8)
    for other in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        assert type(other) is Concat
        assert torch.equal(other.fuse[0].weight, model.fuse[0].weight)
    assert list(defaults_of(Concat)) == ["hidden", "dropout", "input_dropout", "activation"]
    assert architecture_options("concat") == defaults_of(Concat)


def test_a_subclass_changes_options_and_passes_its_parent_what_it_likes() -> None:
    class Narrow(Concat):
        """Narrower.

        Args:
            hidden: Another meaning.
        """

        def __init__(self, inputs: InputSpec, *, hidden: Annotated[int, Range(1, 4)] = 2) -> None:
            super().__init__(inputs, hidden=8 * hidden)

    assert Narrow(INPUTS, hidden=4).hidden_size == 32
    with pytest.raises(ConfigError, match="from 1 to 4, found 5"):
        Narrow(INPUTS, hidden=5)
    assert options_of(Narrow)[0].meaning == "Another meaning"

    class Untold(Narrow):
        """Args:"""  # no entry: no meaning of its own, and no error

    assert options_of(Untold)[0].meaning == "Another meaning"


def test_a_subclass_adds_options_to_those_that_it_passes_on() -> None:
    class Scaled(Concat):
        """With one more option.

        Args:
            scale: Factor of the output.
        """

        def __init__(self, inputs: InputSpec, *, scale: float = 2.0, dropout: float = 0.1, **others: Any) -> None:
            super().__init__(inputs, dropout=dropout, **others)
            self.scale = scale

    class Same(Scaled):
        pass

    for found in (Scaled, Same):
        names = ["hidden", "dropout", "input_dropout", "activation", "scale"]
        assert [option.name for option in options_of(found)] == names
        assert defaults_of(found)["dropout"] == 0.1
        assert all(option.meaning for option in options_of(found))
    model = Scaled(INPUTS, hidden=8, scale=3.0)
    assert (model.hidden_size, model.scale) == (8, 3.0)
    with pytest.raises(ConfigError, match="activation must be one of gelu, relu, none; found 'sin'"):
        Scaled(INPUTS, activation="sin")


class Theirs:
    """An architecture of somebody else.

    Args:
        inputs: Not an option.
        past, future: The window; see
            :class:`some.module.Window` and ``-1``.

    Shapes:
        none
    """

    def __init__(
        self,
        inputs: Any,
        *,
        past: int = -3,
        future: int | None = None,
        kind: Literal["a", "b"] = "a",
        share: Annotated[float, Range(0, 1)] = 0.5,
        names: list[str] = [],  # noqa: B006
        free=None,
    ) -> None: ...


def test_options_of_any_constructor() -> None:
    most = (1 << 31) - 1
    meaning = "The window; see `Window` and `-1`"
    assert options_of(Theirs) == (
        Option("past", int, -3, -most, most, meaning=meaning),
        Option("future", int, None, -most, most, nullable=True, meaning=meaning),
        Option("kind", str, "a", choices=("a", "b")),
        Option("share", float, 0.5, 0, 1),
        Option("names", list, []),
        Option("free", None, None),
    )
    check_options(
        "model 'theirs'", "model", options_of(Theirs), {"past": -7, "future": None, "free": object(), "names": ["x"]}
    )
    assert [option.values for option in options_of(Theirs)][:4] == [
        "a whole number",
        "a whole number, or null",
        "a, b",
        "0 to 1",
    ]
    for given, message in (
        ({"past": "a"}, "model.past takes a whole number, found 'a'"),
        ({"past": None}, "model.past takes a whole number, found None"),
        ({"past": 1 << 40}, "model.past must be from"),
        ({"kind": "c"}, "model.kind must be one of a, b; found 'c'"),
        ({"share": float("nan")}, "model.share must be from 0 to 1, found nan"),
        ({"names": "x"}, "model.names takes a list, found 'x'"),
    ):
        assert refusal(lambda: check_options("model 'theirs'", "model", options_of(Theirs), given)).startswith(message)  # noqa: B023


def test_annotations_that_only_a_type_checker_sees() -> None:
    class Hidden:
        def __init__(self, inputs: Nowhere, *, width: Nowhere = 3) -> None: ...  # type: ignore[name-defined]  # noqa: F821

    (option,) = options_of(Hidden)
    assert (option.type, option.default) == (int, 3)


def test_the_option_table_of_a_page() -> None:
    rows = {row.split("`")[1]: row for row in model_options("concat") if row.startswith("| `")}
    assert list(rows) == ["hidden", "dropout", "input_dropout", "activation"]
    assert rows["hidden"].startswith("| `hidden` | 256 | Width")
    assert rows["dropout"].startswith("| `dropout` | 0.4 (0–1) | ")
    assert rows["activation"].startswith("| `activation` | **gelu**, relu, none | ")
    assert model_options("majority") == ["No options."]


def test_shared_options_are_in_one_table() -> None:
    own, shared = "\n".join(model_options("lmf")), "\n".join(model_options("tfn"))
    assert "| `rank` |" in own
    assert "| `context` |" in shared
    assert "| `context` |" not in own
    assert "Other options: as for [tfn](tfn.md), with `dropout=0.4`." in own
    assert "`model=lmf_released` sets `context=none`" in own
