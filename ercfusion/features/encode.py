"""Text encoders as extractors.

Vectors of a text:

- ``sentence`` (tool ``sentence-transformers``): the encoder's own;
- ``mean``: mean of the last layer over the tokens, without special tokens;
- ``cls``: last layer at the first token (``[CLS]``, ``<s>``);
- ``last4``: mean of the last four layers at the first token (COSMIC uses the layers one by one);
- ``tokens``: last layer per token, without special tokens: sequence features.
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
    """Sentence vectors (1, D), bit-identical to :func:`ercfusion.features.text.build_text_table`.

    Settings:
        encoder: ``all-MiniLM-L6-v2`` (installed), a model folder, or a name on the hub.
        device: A torch device; None prefers a GPU.
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
        """Empty: recipes state it."""
        return ""

    def identity(self, texts: str) -> dict[str, str]:
        """Encoder, with a folder's content, and texts."""
        return encoder_identity(self.settings["encoder"], texts)

    def prepare(self) -> None:
        """Load the model."""
        if self._encoder is None:
            self._encoder = load_encoder(self.settings["encoder"], self.settings["device"])

    def encode(self, texts: Sequence[str]) -> list[NDArray[np.floating[Any]]]:
        """Vectors (1, D) of the texts."""
        self.prepare()
        assert self._encoder is not None
        vectors = self._encoder.model.encode(
            list(texts), batch_size=self.batch, show_progress_bar=False, convert_to_numpy=True
        )
        return list(np.asarray(vectors, dtype=np.float32)[:, None])

    def described(self) -> tuple[dict[str, Any], dict[str, str]]:
        """As in packs built by training."""
        self.prepare()
        assert self._encoder is not None
        return describe_encoder(self._encoder)


class TransformerExtractor:
    """Hidden states (T, D) of a Hugging Face encoder in evaluation mode.

    Settings:
        encoder: A model folder, a name on the hub, or ``all-MiniLM-L6-v2`` (installed).
        pooling: ``mean``, ``cls``, ``last4`` or ``tokens``; see :mod:`ercfusion.features.encode`.
        max_tokens: Length at which texts are cut.
        dtype: ``float32`` or ``float16``.
        device: A torch device; None prefers a GPU.

    Raises:
        ConfigError: unknown setting or value, or (when prepared) a model that cannot be loaded.
        MissingExtraError: transformers is not installed.
    """

    modality = "text"
    tool = "transformers"
    batch = 32

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self.settings = check_settings(settings, _DEFAULTS, self.tool)
        for key, choices in (("pooling", get_args(Pooling)), ("dtype", _DTYPES)):
            if self.settings[key] not in choices:
                raise ConfigError(
                    f"{key}={self.settings[key]!r}: unknown. {did_you_mean(str(self.settings[key]), choices)}"
                )
        limit = self.settings["max_tokens"]
        if not isinstance(limit, int) or isinstance(limit, bool) or limit < 3:
            raise ConfigError(f"max_tokens={limit!r}: not a whole number of at least 3. Give one, for example 256.")
        require_extra("transformers", "text", "Encoding text")
        self.level: Level = "sequence" if self.settings["pooling"] == "tokens" else "utterance"
        self.tool_version = package_version("transformers")
        self._loaded: tuple[Any, Any, dict[str, str]] | None = None

    @property
    def licence(self) -> str:
        """Empty: recipes state it."""
        return ""

    def identity(self, texts: str) -> dict[str, str]:
        """Encoder, pooling, token limit, type and texts."""
        shape = {key: str(self.settings[key]) for key in ("pooling", "max_tokens", "dtype")}
        return {**encoder_identity(self.settings["encoder"], texts), **shape}

    def prepare(self) -> None:
        """Load the tokenizer and the model."""
        if self._loaded is not None:
            return
        import torch

        name = self.settings["encoder"]
        local = default_encoder_folder() if name == DEFAULT_ENCODER else expanded(name)
        if local.is_dir():
            try:
                (tokenizer, model), files = _open(str(local), True), model_files(local)
            except Exception as error:  # transformers raises many types of errors
                raise not_loaded(f"in {local}", error, "Check the folder") from error
        else:
            (tokenizer, model), files = open_from_hub(name, name, _open)
        device = self.settings["device"] or ("cuda" if torch.cuda.is_available() else "cpu")
        own = getattr(model.config, "max_position_embeddings", None)
        if own is not None and self.settings["max_tokens"] > own:
            raise ConfigError(
                f"max_tokens={self.settings['max_tokens']}: {name} allows at most {own}. Lower it to {own} or less."
            )
        self._loaded = tokenizer, model.eval().to(device), files

    def encode(self, texts: Sequence[str]) -> list[NDArray[np.floating[Any]]]:
        """(1, D) or, for ``tokens``, (T, D) per text; a text of special tokens keeps the first of them."""
        import torch

        self.prepare()
        assert self._loaded is not None
        tokenizer, model, _ = self._loaded
        tokens = tokenizer(
            list(texts),
            padding=True,
            truncation=True,
            max_length=self.settings["max_tokens"],
            return_tensors="pt",
            return_special_tokens_mask=True,
        )
        special = tokens.pop("special_tokens_mask").bool().to(model.device)
        tokens = {name: tensor.to(model.device) for name, tensor in tokens.items()}
        pooling = self.settings["pooling"]
        with torch.inference_mode():
            output = model(**tokens, output_hidden_states=pooling == "last4")
            hidden = output.last_hidden_state
            if pooling == "last4":
                pooled = torch.stack([layer[:, 0] for layer in output.hidden_states[-4:]]).mean(0)
            elif pooling == "cls":
                pooled = hidden[:, 0]
            own = tokens["attention_mask"].bool() & ~special
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
        """Version of torch, checksums of the model's files."""
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
        # Only safetensors: weights in pickles could run code, as could the model's own code.
        model = AutoModel.from_pretrained(name, local_files_only=offline, use_safetensors=True, trust_remote_code=False)
    return tokenizer, model
