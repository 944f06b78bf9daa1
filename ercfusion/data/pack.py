"""Feature packs: the vectors of one modality of one corpus version, in a folder with their provenance.

Files of a pack::

    pack.json             tool, version, settings, corpus and its fingerprint, licence, checksums, missing turns
    utterances.parquet    columns ``conversation`` and ``turn``: the keys, in the order of the rows
    values.safetensors    ``values`` (R, D) float32 or float16; at level ``sequence`` also ``offsets`` (keys + 1) int64
    recordings.json       path, size, modification time and checksum of each recording, if made from recordings

Reading a pack runs no code. Values are memory-mapped.

``verify`` of :func:`read_pack`: fields, sizes and agreement of keys, offsets and values are always checked.

- ``auto``: also the checksum of the keys, and once the checksum and finiteness of the values; the user's cache
  remembers path, size, modification time and checksum.
- ``full``: checksums and finiteness every time; detects a disk with changing bits.
- ``none``: nothing more.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from ercfusion._core.errors import BatchError, ConfigError, PackError, did_you_mean
from ercfusion._core.files import (
    StrPath,
    atomic_folder,
    atomic_write,
    expanded,
    remove_leftovers,
    sha256_of,
    user_cache,
)
from ercfusion._core.machine import machine
from ercfusion._core.schemas.reading import check, failure, read_json, shown
from ercfusion._core.version import __version__
from ercfusion.data.corpus import Corpus
from ercfusion.data.features import FeatureTable, Key
from ercfusion.data.pack_schema import Manifest
from ercfusion.data.provenance import TrainedOn, checked, summary
from ercfusion.data.recordings import Source, read_recordings, write_recordings
from ercfusion.data.storage import (
    AGAIN,
    KEYS,
    MANIFEST,
    RECORDINGS,
    VALUES,
    check_checksum,
    check_size,
    first_not_finite,
    is_remembered,
    map_values,
    read_keys,
    remember,
    state_of,
    write_keys,
    write_values,
)

logger = logging.getLogger("ercfusion")

FORMAT_VERSION = 1
Verify = Literal["auto", "full", "none"]


def default_pack_folder(corpus: str, recipe_name: str, *, settings: Mapping[str, Any], fingerprint: str) -> Path:
    """Default folder of a recipe's pack: ``ROOT/corpus/recipe-HASH``.

    ROOT is ``$ERCFUSION_PACKS``, or ``packs`` in the user's cache; HASH covers settings and fingerprint.
    """
    root = os.environ.get("ERCFUSION_PACKS")
    identity = json.dumps([dict(settings), fingerprint], sort_keys=True, allow_nan=False)
    folder = f"{recipe_name}-{hashlib.sha256(identity.encode()).hexdigest()[:12]}"
    return (expanded(root) if root else user_cache() / "packs") / corpus / folder


def bound_pack_folder(corpus: Corpus, recipe_name: str, settings: Mapping[str, Any], source: str) -> Path:
    """Folder of a recipe's pack of a corpus, made from its ``text``, ``audio`` or ``visual`` source."""
    return default_pack_folder(
        corpus.name, recipe_name, settings=settings, fingerprint=corpus.source_fingerprint(source)
    )


def has_pack(folder: StrPath) -> bool:
    """Whether ``folder`` is a pack; nothing is verified."""
    folder = Path(folder)
    if not folder.is_dir():
        tidy_packs(folder.parent)
    return (folder / MANIFEST).is_file()


def tidy_packs(parent: StrPath) -> None:
    """Remove files of killed writers among the packs in ``parent``, and restore replaced packs."""
    remove_leftovers(parent, discard=_discard)


def write_pack(
    folder: StrPath,
    table: FeatureTable,
    *,
    tool: str,
    tool_version: str,
    settings: Mapping[str, Any],
    corpus: str,
    fingerprint: str,
    licence: str = "",
    dimension_names: Sequence[str] | None = None,
    sources: Mapping[str, str] | None = None,
    missing: Mapping[Key, str] | None = None,
    notes: Mapping[Key, str] | None = None,
    remarks: Mapping[Key, str] | None = None,
    recordings: Collection[Source] = (),
    trained_on: TrainedOn | None = None,
    torch_used: bool = False,
    overwrite: bool = False,
) -> Path:
    """Write ``table`` as a pack; the folder appears complete or not at all.

    Args:
        folder: Folder to create.
        table: Values (R, D); float16 is kept, other types become float32.
        tool, tool_version: Program of the values.
        settings: Its settings; JSON values.
        corpus, fingerprint: Name and :meth:`~ercfusion.data.corpus.Corpus.source_fingerprint` of the corpus.
        licence: Terms of use.
        dimension_names: D names.
        sources: Name to SHA-256 of further sources.
        missing: Turns without features, with the reason.
        notes: Turns with questionable features, with the reason.
        remarks: Part of a note comparing the turn with others.
        recordings: Source files (:mod:`ercfusion.data.recordings`).
        trained_on: Labels behind trained values (:mod:`ercfusion.data.provenance`).
        torch_used: Record torch's instruction set and threads.
        overwrite: Replace a pack; only files listed in its ``pack.json`` are deleted.

    Raises:
        PackError: a value is not finite, there are not D names, or the folder cannot be written.
    """
    import safetensors

    folder = Path(folder)
    if dimension_names is not None and len(dimension_names) != table.width:
        raise PackError(
            f"{folder}: {len(dimension_names)} dimension names were given for {table.width} dimensions. Give D "
            "names or none."
        )
    refuse_if_in_the_way(folder, overwrite)
    dtype = np.float16 if table.values.dtype == np.float16 else np.float32
    with np.errstate(over="ignore"):  # values too large for float32 become infinite and are refused below
        values = table.values.astype(dtype, copy=False)
    fault = first_not_finite(values, table.keys, table.offsets, dimension_names)
    if fault:
        raise PackError(
            f"{folder}: features {table.modality!r} were not written: {fault}. Correct the extraction, or remove the "
            "turn."
        )
    offsets = None if table.offsets is None else table.offsets.astype(np.int64, copy=False)
    manifest: dict[str, Any] = {
        "format": "ercfusion-pack",
        "format_version": FORMAT_VERSION,
        "modality": table.modality,
        "level": table.level,
        "tool": tool,
        "tool_version": tool_version,
        "settings": dict(settings),
        "dimensions": None if dimension_names is None else list(dimension_names),
        "rows": len(table.values),
        "keys": len(table),
        "width": table.width,
        "dtype": np.dtype(dtype).name,
        "corpus": corpus,
        "corpus_fingerprint": fingerprint,
        "sources": dict(sources or {}),
        "licence": licence,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "ercfusion": __version__,
        "machine": machine(torch_used),
        "missing": _by_turn(missing),
        "notes": _by_turn(notes, remarks),
    }
    if trained_on is not None:
        manifest["trained_on"] = [dict(record) for record in trained_on]
    json.dumps(manifest, allow_nan=False)  # refuses settings outside JSON before the large file is written
    try:
        with atomic_folder(folder, overwrite=overwrite, discard=_discard) as building:
            write_keys(building / KEYS, table.keys)
            write_values(building / VALUES, values, offsets)
            if recordings:
                write_recordings(building / RECORDINGS, recordings)
            manifest["files"] = {
                name: {"bytes": (building / name).stat().st_size, "sha256": sha256_of(building / name)}
                for name in (KEYS, VALUES, *([RECORDINGS] if recordings else []))
            }
            with atomic_write(building / MANIFEST) as stream:
                json.dump(manifest, stream, indent=2, ensure_ascii=False, allow_nan=False)
                stream.write("\n")
    except FileExistsError as error:
        raise PackError(
            f"{folder}: another process wrote this pack. Use that pack, or choose another folder."
        ) from error
    except (OSError, safetensors.SafetensorError) as error:  # SafetensorError: the disk is full
        raise PackError(
            f"{folder}: the pack could not be written: {error}. Free disk space, or choose another folder "
            "(ERCFUSION_PACKS)."
        ) from error
    return folder


def read_manifest(folder: StrPath) -> dict[str, Any]:
    """Content of ``pack.json``.

    Raises:
        PackError: missing, damaged, or of another format or version.
    """
    folder = Path(folder)
    path = folder / MANIFEST
    if not folder.is_dir():
        tidy_packs(folder.parent)
    if not folder.is_dir():
        raise PackError(f"{folder}: there is no such folder. Build the pack, or correct the path.")
    if not path.exists():
        raise PackError(f"{folder} has no {MANIFEST}: it is not a feature pack, or incomplete. {AGAIN}")
    manifest = read_json(path, error=PackError, advice=AGAIN)
    if not isinstance(manifest, dict) or manifest.get("format") != "ercfusion-pack":
        problem = " does not describe a feature pack (its field 'format' is not 'ercfusion-pack'). Correct the path"
        raise failure(PackError, path, problem)
    version = manifest.get("format_version")
    if version != FORMAT_VERSION:
        problem = (
            f" has the format version {shown(version)}; ercfusion {__version__} reads version {FORMAT_VERSION}. Use "
            f"the ercfusion that wrote it ({shown(manifest.get('ercfusion', 'unknown'))}), or build the pack again"
        )
        raise failure(PackError, path, problem)
    check(manifest, Manifest, path, error=PackError, advice=AGAIN)
    return manifest


def read_pack(
    folder: StrPath,
    *,
    corpus: str | None = None,
    fingerprint: str | Collection[str] | None = None,
    width: int | None = None,
    verify: Verify = "auto",
) -> FeatureTable:
    """Open a pack with its values (R, D) memory-mapped and read-only.

    Args:
        folder: Folder of the pack.
        corpus, fingerprint: Expected name and accepted fingerprints of the corpus; None does not check.
        width: Expected D; None does not check.
        verify: See :mod:`ercfusion.data.pack`.

    Returns:
        The table; its ``source`` is for the run record.

    Raises:
        PackError: the pack is damaged, or belongs to another corpus or model.
        ConfigError: unknown value of ``verify``.
    """
    if verify not in get_args(Verify):
        raise ConfigError(f"verify={verify!r} is unknown. {did_you_mean(str(verify), get_args(Verify))}")
    folder = Path(folder)
    manifest = read_manifest(folder)
    _check_identity(folder, manifest, corpus, fingerprint, width)
    for name in (KEYS, VALUES):
        check_size(folder / name, manifest["files"][name]["bytes"])
    if verify != "none":
        check_checksum(folder / KEYS, manifest["files"][KEYS]["sha256"])
    keys = read_keys(folder / KEYS)
    values, offsets = map_values(folder / VALUES, manifest)
    _check_counts(folder, manifest, keys, values, offsets)

    checksum = manifest["files"][VALUES]["sha256"]
    state = state_of(folder / VALUES, checksum)
    if verify == "full":
        read_recordings(folder, manifest)
    if verify == "full" or (verify == "auto" and not is_remembered(state)):
        check_checksum(folder / VALUES, checksum)
        fault = first_not_finite(values, keys, offsets, manifest["dimensions"])
        if fault:
            raise PackError(f"{folder / VALUES}: {fault}. Correct the extraction and build the pack again.")
        remember(state)
    source = {"pack": str(folder), "sha256": checksum, "corpus_fingerprint": manifest["corpus_fingerprint"]}
    source |= {name: manifest[name] for name in ("tool", "tool_version", "settings", "corpus", "created")}
    if "machine" in manifest:
        source["machine"] = manifest["machine"]
    learned = checked(manifest.get("trained_on"), str(folder / MANIFEST))
    if learned:
        source["trained_on"] = summary(learned)
    try:
        return FeatureTable(manifest["modality"], keys, values, offsets, source)
    except BatchError as error:
        raise PackError(f"{folder}: {error}. {AGAIN}") from error


def _by_turn(reasons: Mapping[Key, str] | None, remarks: Mapping[Key, str] | None = None) -> list[dict[str, str]]:
    return [
        {"conversation": key[0], "turn": key[1], "reason": reason}
        | ({"remark": remarks[key]} if remarks and remarks.get(key) else {})
        for key, reason in (reasons or {}).items()
    ]


# Checks


def refuse_if_in_the_way(folder: Path, overwrite: bool) -> None:
    """Raise :class:`PackError` if the content of ``folder`` prevents writing a pack there."""
    if folder.exists() and not folder.is_dir():
        raise PackError(f"{folder} is a file. Choose another folder for the pack.")
    inside = {file.name for file in folder.iterdir()} if folder.is_dir() else set()
    if not inside:
        return
    listed = _listed(folder)
    if others := inside - (listed or {MANIFEST, KEYS, VALUES, RECORDINGS}):
        # Also with overwrite: files outside a pack are never deleted.
        raise PackError(
            f"{folder} holds other files, for example {min(others)}. Move them away, or choose another folder."
        )
    if not overwrite:
        raise PackError(f"{folder} exists already. Choose another folder, or pass overwrite=True.")
    if not listed:
        raise PackError(
            f"{folder} holds {min(inside)}, but no {MANIFEST} of ours lists it. Move it away, or choose another folder."
        )


def _listed(folder: Path) -> set[str]:
    # Files of a pack of any version; empty without a readable manifest.
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError):
        return set()
    if not isinstance(manifest, dict) or manifest.get("format") != "ercfusion-pack":
        return set()
    files = manifest.get("files")
    # Names only: paths leading out of the folder are ignored.
    return {MANIFEST, *(name for name in (files if isinstance(files, dict) else ()) if Path(name).name == name)}


def _discard(old: Path) -> None:
    # The manifest goes last: after a kill, the next writer can continue.
    try:
        for name in (*sorted(_listed(old) - {MANIFEST}), MANIFEST):
            (old / name).unlink(missing_ok=True)
        old.rmdir()
    except OSError:
        logger.warning("%s: kept, because it holds files of no pack. Remove it by hand.", old)


def _check_identity(
    folder: Path,
    manifest: Mapping[str, Any],
    corpus: str | None,
    fingerprint: str | Collection[str] | None,
    width: int | None,
) -> None:
    if corpus is not None and corpus != manifest["corpus"]:
        raise PackError(
            f"{folder} holds features of the corpus {manifest['corpus']!r}, but the corpus at hand is {corpus!r}. "
            "Give the folder of a pack made from it."
        )
    made = manifest["corpus_fingerprint"]
    allowed = [fingerprint] if isinstance(fingerprint, str) else fingerprint
    if allowed is not None and made not in allowed:
        raise PackError(
            f"{folder} was made from another version of the corpus {manifest['corpus']!r}: the pack says {made[:12]}, "
            f"the corpus at hand is {next(iter(allowed))[:12]}. Restore those corpus files, or build the pack again."
        )
    if width is not None and width != manifest["width"]:
        raise PackError(
            f"{folder} holds {manifest['modality']!r} features of width {manifest['width']}, but width {width} is "
            "expected. Give the model's pack, or train with this one."
        )


def _check_counts(
    folder: Path,
    manifest: Mapping[str, Any],
    keys: Sequence[Key],
    values: NDArray[Any],
    offsets: NDArray[Any] | None,
) -> None:
    stated = (manifest["rows"], manifest["width"], manifest["dtype"])
    if stated != (*values.shape, values.dtype.name):
        raise PackError(
            f"{folder / VALUES} holds {values.shape[0]} rows of width {values.shape[1]} ({values.dtype.name}), "
            f"{MANIFEST} says {stated[0]} of width {stated[1]} ({stated[2]}). {AGAIN}"
        )
    if len(keys) != manifest["keys"]:
        raise PackError(f"{folder / KEYS} holds {len(keys)} keys, {MANIFEST} says {manifest['keys']}. {AGAIN}")
    if offsets is None:
        if len(keys) != len(values):
            raise PackError(f"{folder}: {KEYS} names {len(keys)} turns, {VALUES} holds {len(values)} rows. {AGAIN}")
        return
    fault = ""
    if len(offsets) != len(keys) + 1:
        fault = f"there are {len(offsets)} for {len(keys)} turns (one more than turns is right)"
    elif offsets[0] != 0 or (np.diff(offsets) < 0).any():
        fault = "they do not rise from 0"
    elif offsets[-1] != len(values):
        fault = f"they end at row {offsets[-1]} of {len(values)}"
    if fault:
        raise PackError(f"{folder / VALUES}: the offsets do not match: {fault}. {AGAIN}")
