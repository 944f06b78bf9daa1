"""Maps between label schemas: total, to known labels, by emotion; and what is refused."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest

from ercfusion._core.errors import ConfigError, CorpusFormatError
from ercfusion.batch.labels import LabelSchema, get_schema
from ercfusion.batch.maps import MAPS, LabelMap, map_between, register_map

# What each label becomes; "-" stands for none.
IMAGES = {
    ("emorynlp7", "emorynlp3"): "joyful=positive peaceful=positive powerful=positive neutral=neutral mad=negative "
    "sad=negative scared=negative",
    ("meld7", "emorynlp7"): "neutral=neutral joy=joyful anger=mad sadness=sad fear=scared surprise=- disgust=-",
    ("emorynlp7", "meld7"): "neutral=neutral joyful=joy mad=anger sad=sadness scared=fear peaceful=- powerful=-",
    ("iemocap6", "iemocap4"): "happy=happy excited=happy sad=sad neutral=neutral angry=angry frustrated=-",
    ("iemocap6", "meld7"): "happy=joy excited=joy sad=sadness neutral=neutral angry=anger frustrated=-",
    ("meld7", "emotionlines7"): "neutral=neutral surprise=surprise fear=fear sadness=sadness joy=joy disgust=disgust "
    "anger=anger",
    ("dailydialog7", "meld7"): "neutral=neutral anger=anger disgust=disgust fear=fear happiness=joy sadness=sadness "
    "surprise=surprise",
    ("dailydialog7", "emorynlp7"): "neutral=neutral anger=mad disgust=- fear=scared happiness=joyful sadness=sad "
    "surprise=-",
    ("meld7", "meld3"): "neutral=neutral surprise=- fear=negative sadness=negative joy=positive disgust=negative "
    "anger=negative",
    ("emodb7", "ravdess8"): "anger=angry boredom=- disgust=disgust fear=fearful happiness=happy sadness=sad "
    "neutral=neutral",
    ("meld3", "sentiment2"): "neutral=- positive=positive negative=negative",
    ("emotionlines7", "sentiment2"): "neutral=- joy=positive sadness=negative fear=negative anger=negative surprise=- "
    "disgust=negative",
}
TEXT_CORPORA = ("meld7", "emotionlines7", "dailydialog7", "emorynlp7")


@pytest.mark.parametrize(("pair", "text"), IMAGES.items(), ids="->".join)
def test_what_each_label_becomes(pair: tuple[str, str], text: str) -> None:
    images = dict(part.split("=") for part in text.split())
    mapped = map_between(*pair)
    assert {label: mapped(label) or "-" for label in get_schema(pair[0]).labels} == images
    assert mapped.lost == tuple(label for label in get_schema(pair[0]).labels if images[label] == "-")


@pytest.mark.parametrize("label_map", MAPS.values(), ids=lambda each: f"{each.source}-{each.target}")
def test_registered_maps(label_map: LabelMap) -> None:
    source, target = get_schema(label_map.source), get_schema(label_map.target)
    images = [label_map(label) for label in source.labels]
    assert set(label_map.mapping) == set(source.labels)
    assert all(image is None or image in target.labels for image in images)
    assert any(image is not None for image in images)
    assert label_map.note
    assert all(label in label_map.note for label in label_map.lost) or "four-way" in label_map.note
    for again in (pickle.loads(pickle.dumps(label_map)), copy.deepcopy(label_map)):
        assert again == label_map


@pytest.mark.parametrize("label_map", MAPS.values(), ids=lambda each: f"{each.source}-{each.target}")
def test_mass_and_round_trip(label_map: LabelMap) -> None:
    """A matrix keeps all mass but that of lost labels, and the way back leads to the label's own image."""
    source, target = get_schema(label_map.source), get_schema(label_map.target)
    matrix = label_map.matrix(source, target)
    kept = np.array([label not in label_map.lost for label in source.labels])
    np.testing.assert_array_equal(matrix.sum(axis=1), kept)
    share = np.random.default_rng(0).dirichlet(np.ones(len(source)), 5)
    np.testing.assert_allclose((share @ matrix).sum(axis=1), share[:, kept].sum(axis=1), atol=1e-12)
    back = MAPS.get((label_map.target, label_map.source))
    if back is not None:
        for label in source.labels:
            image = label_map(label)
            origin = None if image is None else back(image)
            assert origin is None or label_map(origin) == image


def test_every_pair_of_text_corpora_has_a_map() -> None:
    for one in TEXT_CORPORA:
        for other in TEXT_CORPORA:
            assert map_between(one, other).source == one
        for sentiments in ("meld3", "emorynlp3"):
            assert map_between(one, sentiments).target == sentiments


def test_spellings_and_the_identity() -> None:
    four = map_between("iemocap6", "iemocap4")
    assert four("exc") == four("happy") == "happy"
    assert four("frustrated") is None
    with pytest.raises(CorpusFormatError, match="'joy' is not a label of iemocap6"):
        four("joy")
    same = map_between("meld7", "meld7")
    assert all(same(label) == label for label in get_schema("meld7").labels)


def test_labels_of_an_own_table_are_mapped_by_name() -> None:
    own = LabelSchema("custom/emotion", ("Anger", "joy"))
    mapped = map_between(own, get_schema("meld7"))
    assert dict(mapped.mapping) == {"Anger": "anger", "joy": "joy"}
    np.testing.assert_array_equal(mapped.matrix(own, get_schema("meld7")).sum(axis=0), [0, 0, 0, 0, 1, 0, 1])
    with pytest.raises(
        ConfigError, match=r"no label map from custom/mood to meld7\. Known maps of one of them: emotionl"
    ):
        map_between(LabelSchema("custom/mood", ("joy", "hope")), "meld7")


def test_no_map_names_the_known_ones_and_how_to_register() -> None:
    with pytest.raises(ConfigError) as caught:
        map_between("meld3", "demo6")
    message = str(caught.value)
    assert "Known maps of one of them: meld3 -> emorynlp3, meld3 -> sentiment2. Register one" in message
    assert "ercfusion.batch.register_map(LabelMap('meld3', 'demo6', {'neutral': ...}))" in message
    with pytest.raises(ConfigError, match=r"no label schema 'meld8'\. Did you mean 'meld7'"):
        map_between("meld8", "meld7")


def test_register(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ercfusion.batch.maps.MAPS", dict(MAPS))
    mine = LabelMap(
        "demo6", "sentiment2", {"joy": "positive", **dict.fromkeys(("neutral", "sadness", "anger", "surprise", "fear"))}
    )
    assert register_map(mine) is register_map(mine) is map_between("demo6", "sentiment2")
    other = LabelMap("demo6", "sentiment2", {**mine.mapping, "anger": "negative"}, "with anger")
    with pytest.raises(ConfigError, match="label map demo6 -> sentiment2: there is one already"):
        register_map(other)
    with pytest.raises(ConfigError, match="label map meld7 -> meld7: there is one already"):
        register_map(map_between("meld7", "meld7"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"joyy": "positive"}, "'joyy' is not a label of meld7. Did you mean 'joy'"),
        ({"joy": "positiv"}, "'positiv' is not a label of sentiment2. Did you mean 'positive'"),
    ],
)
def test_a_map_with_an_unknown_label_is_refused(changes: dict[str, str], message: str) -> None:
    entries = {**MAPS["meld7", "sentiment2"].mapping, **changes}
    with pytest.raises(ConfigError, match=message):
        LabelMap("meld7", "sentiment2", entries)


def test_a_map_with_a_gap_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"nothing is given for fear, joy\. Give a label of meld3 for each, or None"):
        LabelMap("meld7", "meld3", dict.fromkeys(("neutral", "surprise", "sadness", "disgust", "anger")))
    # Labels of an own table are known when the map is used.
    own = LabelMap("custom/mood", "meld3", {"glad": "positive"})
    assert own("glad") == "positive"
    with pytest.raises(ConfigError, match="nothing is given for gloomy"):
        own.check(LabelSchema("custom/mood", ("glad", "gloomy")), None)
