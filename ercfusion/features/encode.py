"""Text encoders as extractors: sentence vectors, and the hidden states of any transformer, pooled or token by token.

The same utterance vectors are called by many names in the literature. Here:

- ``sentence`` (tool ``sentence-transformers``): what the encoder itself defines as the vector of a text;
- ``mean``: the mean of the last layer over the tokens, the special ones left out;
- ``cls``: the last layer at the first token (``[CLS]``, ``<s>``);
- ``last4``: the mean of the last four layers at the first token, averaged over the layers (the DAG-ERC line of work
  takes ``cls`` of a RoBERTa fine-tuned on the corpus; COSMIC and its followers the last four layers one by one);
- ``tokens``: the last layer token by token, special ones left out: sequence features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from ercfusion._core.errors import ConfigError, did_you_mean, require_extra
from ercfusion._core.files import expanded
from ercfusion.batch.inputs import Level
from ercfusion.features.encoders import (
    DEFAULT_ENCODER,
    TextEncoder,
    default_encoder_folder,
    describe_encoder,
    encoder_identity,
    load_encoder,
    model_files,
    no_loading_bar,
    not_loaded,
    open_from_hub,
)
from ercfusion.features.extractor import check_settings, package_version
from ercfusion.features.text import BATCH

Pooling = Literal["mean", "cls", "last4", "tokens"]
_DTYPES = ("float32", "float16")
_DEFAULTS: Mapping[str, Any] = {
    "encoder": DEFAULT_ENCODER,
    "pooling": "mean",
    "max_tokens": 256,
    "dtype": "float32",
    "device": None,
}


class SentenceExtractor:
    """Sentence vectors by sentence-transformers: (1, D) a text.

    The values are those of :func:`ercfusion.features.text.build_text_table`, to the last bit.

    Settings:
        encoder: ``all-MiniLM-L6-v2`` (from an installed package), a model folder, or a name on the hub.
        device: As torch names it; None takes a GPU where there is one.
    """

    modality = "text"
    tool = "sentence-transformers"
    level: Level = "utterance"
    batch = BATCH

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self.settings = check_settings(settings, {"encoder": DEFAULT_ENCODER, "device": None}, self.tool)
        require_extra("sentence_transformers", "text", "Encoding text")
        self.tool_version = package_version("sentence-transformers")
        self._encoder: TextEncoder | None = None

    @property
    def licence(self) -> str:
        """Nothing that is known for every encoder."""
        return ""

    def identity(self, texts: str) -> dict[str, str]:
        """Encoder and texts; a folder's content belongs to it, because it may change."""
        return encoder_identity(self.settings["encoder"], texts)

    def prepare(self) -> None:
        """Load the model."""
        if self._encoder is None:
            self._encoder = load_encoder(self.settings["encoder"], self.settings["device"])

    def encode(self, texts: Sequence[str]) -> list[NDArray[np.floating[Any]]]:
        """Vectors (1, D) of the texts."""
        self.prepare()
        assert self._encoder is not None
        found = self._encoder.model.encode(
            list(texts), batch_size=self.batch, show_progress_bar=False, convert_to_numpy=True
        )
        return list(np.asarray(found, dtype=np.float32)[:, None])

    def described(self) -> tuple[dict[str, Any], dict[str, str]]:
        """The same as in packs that training builds by itself."""
        self.prepare()
        assert self._encoder is not None
        return describe_encoder(self._encoder)


class TransformerExtractor:
    """Hidden states of a Hugging Face encoder, in evaluation mode, with dropout off: (T, D) a text.

    Settings:
        encoder: A model folder, a name on the hub (``roberta-large``), or ``all-MiniLM-L6-v2`` (installed).
        pooling: ``mean``, ``cls``, ``last4`` or ``tokens``; see the top of this module.
        max_tokens: Longer texts are cut there; at most what the model allows.
        dtype: ``float32``, or ``float16`` for token sequences that would be large.
        device: As torch names it; None takes a GPU where there is one.

    Raises:
        ConfigError: a setting or value that does not exist, or the model cannot be loaded (when prepared).
        MissingExtraError: transformers is not installed.
    """

    modality = "text"
    tool = "transformers"
    batch = 32

    def __init__(self, settings: Mapping[str, Any]) -> None:
        defaults = {
            "encoder": DEFAULT_ENCODER,
            "pooling": "mean",
            "max_tokens": 256,
            "dtype": "float32",
            "device": None,
        }
        self.settings = check_settings(settings, defaults, self.tool)
        for key, choices in (("pooling", get_args(Pooling)), ("dtype", _DTYPES)):
            if self.settings[key] not in choices:
                raise ConfigError(
                    f"{key}={self.settings[key]!r} is unknown. {did_you_mean(str(self.settings[key]), choices)}"
                )
        limit = self.settings["max_tokens"]
        if not isinstance(limit, int) or isinstance(limit, bool) or limit < 3:
            raise ConfigError(f"max_tokens={limit!r}: a whole number from 3 is expected")
        require_extra("transformers", "text", "Encoding text")
        self.level: Level = "sequence" if self.settings["pooling"] == "tokens" else "utterance"
        self.tool_version = package_version("transformers")
        self._loaded: tuple[Any, Any, dict[str, str]] | None = None

    @property
    def licence(self) -> str:
        """Nothing that is known for every encoder."""
        return ""

    def identity(self, texts: str) -> dict[str, str]:
        """Encoder, pooling, limit, type and texts."""
        shape = {key: str(self.settings[key]) for key in ("pooling", "max_tokens", "dtype")}
        return {**encoder_identity(self.settings["encoder"], texts), **shape}

    def prepare(self) -> None:
        """Load tokenizer and model."""
        if self._loaded is not None:
            return
        import torch

        name = self.settings["encoder"]
        local = default_encoder_folder() if name == DEFAULT_ENCODER else expanded(name)
        if local.is_dir():
            try:
                (tokenizer, model), files = _open(str(local), True), model_files(local)
            except Exception as error:  # transformers raises many types
                raise not_loaded(local, error) from error
        else:
            (tokenizer, model), files = open_from_hub(name, name, _open)
        device = self.settings["device"] or ("cuda" if torch.cuda.is_available() else "cpu")
        own = getattr(model.config, "max_position_embeddings", None)
        if own is not None and self.settings["max_tokens"] > own:
            raise ConfigError(f"max_tokens={self.settings['max_tokens']}, but {name} takes {own} at most")
        self._loaded = tokenizer, model.eval().to(device), files

    def encode(self, texts: Sequence[str]) -> list[NDArray[np.floating[Any]]]:
        """(1, D) or, for ``tokens``, (T, D) of every text; a text without any token of its own gets the first one's."""
        import torch

        self.prepare()
        assert self._loaded is not None
        tokenizer, model, _ = self._loaded
        given = tokenizer(
            list(texts),
            padding=True,
            truncation=True,
            max_length=self.settings["max_tokens"],
            return_tensors="pt",
            return_special_tokens_mask=True,
        )
        special = given.pop("special_tokens_mask").bool().to(model.device)
        given = {name: tensor.to(model.device) for name, tensor in given.items()}
        pooling = self.settings["pooling"]
        with torch.inference_mode():
            output = model(**given, output_hidden_states=pooling == "last4")
            hidden = output.last_hidden_state
            if pooling == "last4":
                pooled = torch.stack([layer[:, 0] for layer in output.hidden_states[-4:]]).mean(0)
            elif pooling == "cls":
                pooled = hidden[:, 0]
            own = given["attention_mask"].bool() & ~special
            own[:, 0] |= ~own.any(1)
            if pooling == "tokens":
                parts = [rows[keep] for rows, keep in zip(hidden, own, strict=True)]
            else:
                if pooling == "mean":
                    weight = own.unsqueeze(-1).to(hidden.dtype)
                    pooled = (hidden * weight).sum(1) / weight.sum(1)
                parts = list(pooled[:, None])
        return [part.float().cpu().numpy().astype(self.settings["dtype"]) for part in parts]

    def described(self) -> tuple[dict[str, Any], dict[str, str]]:
        """Versions, and the checksums of the model's files."""
        self.prepare()
        assert self._loaded is not None
        versions = {"torch": package_version("torch")}
        shown = (
            self.settings["encoder"]
            if self.settings["encoder"] == DEFAULT_ENCODER
            else Path(self.settings["encoder"]).name
        )
        return versions, {f"{shown}/{name}": checksum for name, checksum in self._loaded[2].items()}


def _open(name: str, offline: bool) -> tuple[Any, Any]:
    from transformers import AutoModel, AutoTokenizer

    with no_loading_bar():
        tokenizer = AutoTokenizer.from_pretrained(name, local_files_only=offline, trust_remote_code=False)
        # Weights in pickles are not loaded: safetensors only. Nor is code of the model's own, and nobody is asked.
        model = AutoModel.from_pretrained(name, local_files_only=offline, use_safetensors=True, trust_remote_code=False)
    return tokenizer, model
