from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest

from ercfusion._core.errors import CorpusFormatError
from ercfusion.batch.labels import SCHEMAS, LabelSchema, check_labels, get_schema
from ercfusion.records.archive import read_archive


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


# As published with each corpus, or as the first release of this library had them. Recorded confusion matrices and saved
# models hold class indices: another order would give their numbers other names.
ORDERS = {
    "meld7": "neutral surprise fear sadness joy disgust anger",
    "meld3": "neutral positive negative",
    "emotionlines7": "neutral joy sadness fear anger surprise disgust",
    "emorynlp7": "joyful mad neutral peaceful powerful sad scared",
    "emorynlp3": "neutral positive negative",
    "iemocap6": "happy sad neutral angry excited frustrated",
    "iemocap4": "happy sad neutral angry",
    "iemocap9": "neutral happy sad angry excited frustrated fear surprise disgust",
    "mosei6": "happy sad anger surprise disgust fear",
    "m3ed7": "happy neutral sad disgust anger fear surprise",
    "dailydialog7": "neutral anger disgust fear happiness sadness surprise",
    "emodb7": "anger boredom disgust fear happiness sadness neutral",
    "ravdess8": "neutral calm happy sad angry fearful disgust surprised",
    "semeval6": "anger disgust fear joy sadness surprise",
    "sentiment2": "negative positive",
    "demo6": "neutral joy sadness anger surprise fear",
}


@pytest.mark.parametrize(("name", "order"), ORDERS.items())
def test_the_order_of_labels_stays(name: str, order: str) -> None:
    assert get_schema(name).labels == tuple(order.split())


@pytest.mark.parametrize("preset", ["meld", "mosi", "demo"])
def test_recorded_tables_have_the_order_of_today(preset: str) -> None:
    for path in (Path(__file__).parents[2] / "experiments" / preset / "records").glob("*.json"):
        schema = read_archive(path)[0]["task"]["schema"]
        assert tuple(schema["labels"]) == get_schema(schema["name"]).labels


# What every other spelling means.
SPELLINGS = {
    "iemocap6": "hap=happy neu=neutral ang=angry exc=excited fru=frustrated",
    "iemocap9": "neu=neutral hap=happy ang=angry exc=excited fru=frustrated fea=fear sur=surprise dis=disgust",
    "dailydialog7": "no_emotion=neutral",
}


def test_other_spellings() -> None:
    found = {name: dict(schema.synonyms) for name, schema in SCHEMAS.items() if schema.synonyms}
    expected = {name: dict(pair.split("=") for pair in text.split()) for name, text in SPELLINGS.items()}
    assert found == {
        name: {spelling.replace("_", " "): label for spelling, label in entries.items()}
        for name, entries in expected.items()
    }


def test_unknown_names() -> None:
    with pytest.raises(CorpusFormatError, match=r"'hapy' is not a label of iemocap6. Did you mean 'happy'\?"):
        get_schema("iemocap6").index("hapy")
    with pytest.raises(KeyError, match="Did you mean 'meld7'"):
        get_schema("meld8")
    check_labels(["joy", "anger"], get_schema("meld7"))
    with pytest.raises(CorpusFormatError, match="'joyful' is not a label of meld7"):
        check_labels(["joy", "joyful"], get_schema("meld7"))


def test_contradictory_schemas_are_refused() -> None:
    with pytest.raises(ValueError, match="lists a label twice"):
        LabelSchema("bad", ("a", "b", "a"))
    with pytest.raises(ValueError, match="synonym 'x' points to 'c', which is not a label"):
        LabelSchema("bad", ("a", "b"), {"x": "c"})


def test_spellings_of_a_label_are_found():
    schema = LabelSchema("x", ("neutral", "\u00e4rger", "Joy"), {"happiness": "Joy"})
    assert [schema.find(text) for text in (" Neutral ", "a\u0308rger", "\u00c4RGER", "JOY", "Happiness")] == [
        "neutral", "\u00e4rger", "\u00e4rger", "Joy", "Joy",
    ]  # fmt: skip
    assert schema.find("sad") is None


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (("joy", "Joy"), "'joy' and 'Joy' differ only in case, blanks or Unicode form"),
        (("neutral", "\u00e4rger", "a\u0308rger"), "(composed Unicode) and"),
        (("a\u0308rger", "\u00c4RGER"), "differ only in case"),
        (("very sad", "very  sad"), "'very sad' and 'very  sad'"),
    ],
)
def test_labels_that_differ_only_in_case_or_unicode_form(labels, words):
    with pytest.raises(ValueError, match="Rename or remove one") as caught:
        LabelSchema("y", labels)
    assert words in str(caught.value)
