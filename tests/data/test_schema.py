from __future__ import annotations

import copy
import pickle

import pytest

from ercfusion.data.schema import MAPS, SCHEMAS, LabelSchema, check_labels, get_schema, map_between
from ercfusion.errors import CorpusFormatError


def test_index_by_name_and_by_synonym() -> None:
    schema = get_schema("iemocap6")
    assert len(schema) == 6
    assert [schema.index(label) for label in schema.labels] == list(range(6))
    assert schema.index("fru") == schema.index("frustrated") == 5
    assert schema.canonical("exc") == "excited"
    assert "hap" in schema
    assert "joy" not in schema


def test_orders_differ_between_corpora() -> None:
    """The reason for schemas: the same names have other indices elsewhere."""
    meld, lines = get_schema("meld7"), get_schema("emotionlines7")
    assert set(meld.labels) == set(lines.labels)
    assert meld.index("joy") != lines.index("joy")


@pytest.mark.parametrize("schema", SCHEMAS.values(), ids=SCHEMAS)
def test_registered_schemas(schema: LabelSchema) -> None:
    assert get_schema(schema.name) is schema
    assert schema.neutral is None or schema.neutral in schema.labels
    for again in (pickle.loads(pickle.dumps(schema)), copy.deepcopy(schema)):
        assert again == schema
        assert [again.index(label) for label in again.labels] == list(range(len(again)))


@pytest.mark.parametrize("label_map", MAPS, ids=lambda entry: f"{entry.source}-{entry.target}")
def test_maps_are_total(label_map: object) -> None:
    source, target = get_schema(label_map.source), get_schema(label_map.target)  # type: ignore[attr-defined]
    images = [label_map(label) for label in source.labels]  # type: ignore[operator]
    assert set(label_map.mapping) == set(source.labels)  # type: ignore[attr-defined]
    assert all(image is None or image in target.labels for image in images)
    assert any(image is not None for image in images)
    assert pickle.loads(pickle.dumps(label_map)) == label_map


def test_maps() -> None:
    four = map_between("iemocap6", "iemocap4")
    assert four("exc") == four("happy") == "happy"
    assert four("frustrated") is None
    same = map_between("meld7", "meld7")
    assert all(same(label) == label for label in get_schema("meld7").labels)
    back = map_between("emotionlines7", "meld7")
    assert back("joy") == "joy"


def test_unknown_names() -> None:
    with pytest.raises(CorpusFormatError, match=r"'hapy' is no label of iemocap6. Did you mean 'happy'\?"):
        get_schema("iemocap6").index("hapy")
    with pytest.raises(KeyError, match="Did you mean 'meld7'"):
        get_schema("meld8")
    with pytest.raises(KeyError, match=r"no map from 'meld3' to 'demo6'\. Known maps: meld7 -> emotionlines7"):
        map_between("meld3", "demo6")
    check_labels(["joy", "anger"], get_schema("meld7"))
    with pytest.raises(CorpusFormatError, match="'joyful' is no label of meld7"):
        check_labels(["joy", "joyful"], get_schema("meld7"))


def test_contradictory_schemas_are_refused() -> None:
    with pytest.raises(ValueError, match="lists a label twice"):
        LabelSchema("bad", ("a", "b", "a"))
    with pytest.raises(ValueError, match="synonym 'x' points to 'c', which is no label"):
        LabelSchema("bad", ("a", "b"), {"x": "c"})


def test_spellings_of_a_label_are_found():
    schema = LabelSchema("x", ("neutral", "\u00e4rger", "Joy"), {"happiness": "Joy"})
    assert [schema.find(text) for text in (" Neutral ", "a\u0308rger", "\u00c4RGER", "JOY", "Happiness")] == [
        "neutral", "\u00e4rger", "\u00e4rger", "Joy", "Joy",
    ]  # fmt: skip
    assert schema.find("sad") is None
    both = LabelSchema("y", ("joy", "Joy"))
    assert [both.find(text) for text in ("joy", "Joy", "JOY")] == ["joy", "Joy", None]
