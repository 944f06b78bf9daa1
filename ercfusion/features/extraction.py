"""Extraction of feature packs, the same for every tool.

Results are appended to a journal next to the pack, so a stopped extraction continues. The pack appears when complete.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ercfusion._core.errors import MissingExtraError, PackError, RunError
from ercfusion._core.files import (
    StrPath,
    atomic_write,
    expanded,
    is_leftover,
    one_at_a_time,
    remove_leftovers,
    user_cache,
)
from ercfusion._core.pool import default_workers, usable_cores
from ercfusion._core.progress import duration, rate, track
from ercfusion._core.schemas.reading import read_json
from ercfusion.config.hints import command
from ercfusion.data.corpus import Corpus, Protocol, Splits
from ercfusion.data.features import FeatureTable, Key
from ercfusion.data.pack import (
    bound_pack_folder,
    default_pack_folder,
    has_pack,
    read_manifest,
    refuse_if_in_the_way,
    tidy_packs,
    write_pack,
)
from ercfusion.data.pack_schema import Work
from ercfusion.data.recordings import Source, digest_of, source_of
from ercfusion.data.storage import KEYS, MANIFEST, read_keys
from ercfusion.features.clip_error import ClipError
from ercfusion.features.encode import SentenceExtractor
from ercfusion.features.executors import Group, Outcomes, executor, in_this_process
from ercfusion.features.extractor import TextExtractor
from ercfusion.features.journal import Journal, Result
from ercfusion.features.recipe import Recipe
from ercfusion.features.reuse import announce, announce_changed, existing_pack, forget_changed, source_paths, take_over
from ercfusion.features.text import licence_of_texts, text_pack_folder
from ercfusion.features.work import WorkList, clip_work, relative_name, text_work

logger = logging.getLogger("ercfusion")

_WORK, _JOURNAL, _RAW = "work.json", "journal.bin", "values.raw"
# Up to this many groups of texts are encoded in this process.
_FEW_GROUPS = 32
# Rounds for recordings that change meanwhile.
_ROUNDS = 3


@dataclass(frozen=True)
class Extraction:
    """The result of an extraction.

    Args:
        folder: The pack.
        missing: Reasons of turns without features.
        notes: Oddities by turn.
        existed: Nothing was to be done.
    """

    folder: Path
    missing: dict[Key, str]
    notes: dict[Key, str]
    existed: bool = False


def extract_pack(
    corpus: Corpus,
    protocol: Protocol,
    recipe: Recipe,
    *,
    out: StrPath | None = None,
    workers: int | None = None,
    executor_name: str = "local",
    address: str | None = None,
    fresh: bool = False,
    retry: bool = False,
    strict: bool = False,
) -> Extraction:
    """Make the pack of a recipe, continue a stopped extraction, or extract changed recordings again.

    Args:
        corpus, protocol: Source of the texts, or of the recordings: :meth:`Corpus.clips`.
        recipe: Tool and settings.
        out: The pack's folder; by default where training finds it.
        workers: Processes; None for one per core.
        executor_name, address: ``local``, or ``dask`` and the address of its scheduler.
        fresh: Discard earlier results.
        retry: Try missing turns again, and compare recordings by content.
        strict: Stop at the first recording without features.

    Raises:
        PackError: another pack is in the folder, nothing could be extracted, or a file cannot be written.
        RunError: another process makes the same pack, processes died over texts, or the cluster disappeared.
        ClipError: ``strict``, and a recording has no features.
        ConfigError, CorpusNotFoundError, MissingExtraError, BatchError: see the recipe's tool and the corpus.
    """
    extractor = recipe.extractor()
    splits = corpus.conversations(protocol)
    is_text = isinstance(extractor, TextExtractor)
    work = text_work(corpus, splits) if is_text else clip_work(corpus, protocol, extractor.kind)
    identity = (
        extractor.identity(work.digest)
        if is_text
        else {"tool": extractor.tool, **_settings(extractor, recipe), "items": work.digest}
    )
    target = _target(out, corpus, recipe, extractor, identity)
    building = target.with_name(f".{target.name}.building")
    tidy_packs(target.parent)
    old = None
    if has_pack(target) and not fresh:
        old = existing_pack(target, corpus, identity, work, extractor, doubt=retry)
        changed = old.changed(work)
        if not (changed or retry):
            announce(old, work, extractor)
            _clear_if_written(building, target)
            return Extraction(target, old.remarks("missing"), old.remarks("notes"), existed=True)
        announce_changed(old, changed, work, extractor)
    refuse_if_in_the_way(target, overwrite=has_pack(target))  # before hours of work
    if extractor.licence:
        _announce(extractor.tool, extractor.licence)
    remarks = _remarks_on_all(extractor, work)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with one_at_a_time(building, f"the pack {target.name}"):
            remove_leftovers(building)
            if fresh:
                _forget(building)
            _check_work(building, extractor, identity, corpus)
            with Journal(building / _JOURNAL) as journal:
                forget_changed(journal, work, extractor, finished=False)
                if old is not None:
                    take_over(old, journal, work, extractor, retry=retry)
                if strict:
                    journal.records = {item: record for item, record in journal.records.items() if record.position >= 0}
                for _ in range(_ROUNDS):
                    groups = _groups(work, recipe, extractor.batch if is_text else 1, journal)
                    run = _runner(executor_name, address, workers, len(groups), is_text)
                    _work_off(run, groups, work, journal, extractor, strict=strict, what=recipe.name)
                    if not forget_changed(journal, work, extractor, finished=True):
                        break
                else:
                    raise PackError(
                        f"{target}: recordings still change while they are extracted. Wait until they are complete, "
                        "and run the same command again."
                    )
                made = _assemble(journal, work, building, remarks)
                _write(target, made, corpus, recipe, extractor, identity, overwrite=has_pack(target))
            _clear(building)
    except OSError as error:
        raise PackError(
            f"{target}: the pack cannot be written there ({error}). Choose another folder with out=FOLDER or the "
            "environment variable ERCFUSION_PACKS."
        ) from error
    return Extraction(target, made.missing, made.notes)


def find_pack(corpus: Corpus, recipe: Recipe, modality: str, splits: Splits) -> Path:
    """The pack of a recipe in its default folder; of several, the one covering most of ``splits``.

    Raises:
        PackError: none, or several covering equally many turns.
    """
    root = default_pack_folder(corpus.name, recipe.name, settings={}, fingerprint="").parent
    fingerprints = corpus.pack_fingerprints()
    try:
        extractor = recipe.extractor()
        wanted = {"tool": extractor.tool, **_settings(extractor, recipe)}
    except MissingExtraError:  # packs do not need their tool
        wanted = {"tool": recipe.tool, **recipe.settings}
    everyone = [conversation for split in splits.values() for conversation in split]
    keys = {(conversation.id, turn.id) for conversation in everyone for turn in conversation.turns}
    most, best = -1, list[Path]()
    tidy_packs(root)
    for folder in sorted(root.glob(f"{recipe.name}-*")):
        if not has_pack(folder):
            continue
        manifest = read_manifest(folder)
        origin = {"tool": manifest["tool"], **manifest["settings"]}
        if manifest["corpus_fingerprint"] in fingerprints and all(origin.get(key) == wanted[key] for key in wanted):
            covered = len(keys.intersection(read_keys(folder / KEYS)))
            best = [*best, folder] if covered == most else [folder] if covered > most else best
            most = max(most, covered)
    if not best:
        place = {"data.raw": str(corpus.raw)} if corpus.raw else {}
        words = (f"data={corpus.name}", f"features={recipe.name}")
        raise PackError(
            f"data.packs.{modality}={recipe.name}: {root} has no pack of this recipe for {corpus.name}. Make it with: "
            f"{command('missing pack', 'extract', *words, settings=place)}"
        )
    if len(best) > 1:
        raise PackError(
            f"data.packs.{modality}={recipe.name}: {len(best)} packs of this recipe fit {corpus.name}. Give the folder "
            f"of one: {', '.join(map(str, best[:3]))}"
        )
    return best[0]


# Before


def _settings(extractor: Any, recipe: Recipe) -> dict[str, Any]:
    # With defaults, which may change.
    return dict(getattr(extractor, "settings", recipe.settings))


def _source(extractor: Any) -> str:
    return "text" if isinstance(extractor, TextExtractor) else str(extractor.kind)


def _target(out: StrPath | None, corpus: Corpus, recipe: Recipe, extractor: Any, identity: dict[str, Any]) -> Path:
    if out is not None:
        return expanded(out).absolute()
    if isinstance(extractor, SentenceExtractor):
        return text_pack_folder(corpus, identity)  # the folder that training reads
    return bound_pack_folder(corpus, recipe.name, identity, _source(extractor))


def _announce(tool: str, licence: str) -> None:
    # Once per user.
    try:
        marker = user_cache() / "licences" / f"{tool}-{sha256(licence.encode()).hexdigest()[:12]}"
    except RunError:  # no folder to remember it
        logger.info("%s", licence)
        return
    if marker.exists():
        return
    logger.info("%s", licence)
    try:
        with atomic_write(marker) as stream:
            stream.write(licence + "\n")
    except OSError as error:
        logger.debug("could not record that the licence was shown: %s", error)


def _remarks_on_all(extractor: Any, work: WorkList) -> dict[Any, str]:
    remarks: dict[Any, str] = extractor.remarks(work.items) if hasattr(extractor, "remarks") else {}
    if remarks:
        first, text = next(iter(remarks.items()))
        logger.warning(
            "%d of %d recordings are unlike the others (first: %s, %s). Acoustic features depend on the sampling rate: "
            "use features.resample=all features.rate=16000 for one rate",
            len(remarks),
            len(work.items),
            relative_name(first.path, work.root),
            text,
        )
    return remarks


def _forget(building: Path) -> None:
    for name in (_WORK, _JOURNAL):
        (building / name).unlink(missing_ok=True)


def _clear(building: Path) -> None:
    # The work list first: nothing is continued without it.
    _forget(building)
    (building / _RAW).unlink(missing_ok=True)
    for path in list(building.iterdir()):
        if is_leftover(path.name):
            path.unlink(missing_ok=True)
    if not any(building.iterdir()):
        building.rmdir()


def _clear_if_written(building: Path, target: Path) -> None:
    # After a process killed between writing the pack and removing this folder: the raw values are older than a complete
    # pack's manifest.
    if not building.is_dir():
        return
    raw = building / _RAW
    try:
        written = raw.is_file() and raw.stat().st_mtime_ns <= (target / MANIFEST).stat().st_mtime_ns
        if written or not (building / _WORK).is_file():
            with one_at_a_time(building, f"the pack {target.name}"):
                _clear(building)
    except (OSError, RunError) as error:
        logger.debug("%s stays: %s", building, error)


def _check_work(building: Path, extractor: Any, identity: dict[str, Any], corpus: Corpus) -> None:
    # Results of two tools or corpus versions must not end in one pack.
    current = {
        "tool_version": extractor.tool_version,
        "corpus": corpus.name,
        "corpus_fingerprint": corpus.source_fingerprint(_source(extractor)),
        **identity,
    }
    path = building / _WORK
    if not path.is_file():
        (building / _JOURNAL).unlink(missing_ok=True)
        with atomic_write(path) as stream:
            json.dump(current, stream, indent=2)
        return
    earlier = read_json(path, Work, error=PackError, advice="Start again with --fresh.")
    for name in dict.fromkeys([*current, *earlier]):
        if earlier.get(name) != current.get(name):
            raise PackError(
                f"{building}: a stopped extraction had {name} {str(earlier.get(name))[:60]}, now it is "
                f"{str(current.get(name))[:60]}. Start again with --fresh, or choose another folder with out=."
            )


def _groups(work: WorkList, recipe: Recipe, batch: int, journal: Journal) -> Sequence[Group]:
    # Cut before finished items are skipped, so that groups, and values, are the same after a stop.
    groups = []
    for start in range(0, len(work.items), batch):
        numbers = tuple(range(start, min(start + batch, len(work.items))))
        if any(number not in journal.records for number in numbers):
            groups.append(Group(recipe, numbers, tuple(work.items[number] for number in numbers), work.root))
    return groups


def _runner(
    name: str, address: str | None, workers: int | None, groups: int, is_text: bool
) -> Callable[[Iterable[Group]], Outcomes]:
    if name == "local" and is_text and workers in (None, 1) and (workers == 1 or groups <= _FEW_GROUPS):
        executor(name, address=address, workers=1)  # for its checks
        return in_this_process
    if workers is None:
        workers = default_workers(groups) if is_text else max(1, min(usable_cores(), groups))
    return executor(name, address=address, workers=workers)


# Working


def _work_off(
    run: Callable[[Iterable[Group]], Outcomes],
    groups: Sequence[Group],
    work: WorkList,
    journal: Journal,
    extractor: Any,
    *,
    strict: bool,
    what: str,
) -> None:
    if not groups:
        return
    paths = source_paths(work, extractor)
    left = sum(len(group.numbers) for group in groups)
    if left < len(work.items):
        logger.info("%s: %s of %s already done", what, f"{len(work.items) - left:,}", f"{len(work.items):,}")
    begun = time.monotonic()
    seconds = 0.0
    for number, result in track(_results(run(groups), not paths), what, total=left):
        if result.source is None and number in paths:  # its process died
            result = replace(result, source=source_of(paths[number], work.root))
        journal.append(number, result)
        seconds += result.seconds
        if result.values is None:
            name = relative_name(work.items[number].path, work.root)
            if strict:
                raise ClipError(
                    f"{name}: {result.reason.rstrip('.')}. Omit --strict to record it as missing and continue (results "
                    "are kept)."
                )
            logger.warning("%s: no features: %s", name, result.reason)
    took = time.monotonic() - begun
    if seconds and took > 0:
        logger.info(
            "%s of recordings in %s (%s times real time)", duration(seconds), duration(took), rate(seconds / took)
        )


def _results(outcomes: Outcomes, is_text: bool) -> Iterator[tuple[int, Result]]:
    for group, results, reason in outcomes:
        if results is None and is_text:
            raise RunError(f"the encoder's process died ({reason}). Run the same command with workers=1.")
        yield from zip(group.numbers, results or [Result(None, reason or "")] * len(group.numbers), strict=True)


# After


@dataclass(frozen=True)
class _Made:
    keys: list[Key]
    values: NDArray[Any]
    offsets: NDArray[np.int64]
    missing: dict[Key, str]
    notes: dict[Key, str]
    remarks: dict[Key, str]
    recordings: list[Source]


def _assemble(journal: Journal, work: WorkList, building: Path, remarks: Mapping[Any, str]) -> _Made:
    records = [journal.records[owner] for owner in work.owners]
    items = [work.items[owner] for owner in work.owners]
    stored = [position for position, record in enumerate(records) if record.position >= 0]
    missing = {work.keys[at]: record.reason for at, record in enumerate(records) if record.position < 0}
    if not stored:
        reasons = "; ".join(dict.fromkeys(missing.values()))[:300]
        _forget(building)  # the next attempt tries everything
        raise PackError(
            f"none of the {len(records)} turns has features: {reasons.rstrip('.')}. Check the recordings with "
            "ercfusion.doctor."
        )
    if not sum(records[at].rows for at in stored):
        raise PackError("every turn has an empty sequence, so there is nothing to store. Check the recipe's settings.")
    widths = {records[at].width for at in stored}
    if len(widths) > 1:
        odd = next(at for at in stored if records[at].width != records[stored[0]].width)
        raise PackError(
            f"turn {'/'.join(work.keys[odd])}: {records[odd].width} dimensions, but {records[stored[0]].width} in "
            "others. Correct the tool: every clip needs the same columns."
        )
    offsets = np.concatenate([[0], np.cumsum([records[at].rows for at in stored])]).astype(np.int64)
    dtype = np.float16 if all(records[at].half for at in stored) else np.float32
    width, raw = widths.pop(), building / _RAW
    with raw.open("wb") as stream:
        for at in stored:
            stream.write(journal.values(work.owners[at]).astype(dtype, copy=False).tobytes())
    # Mapped, not loaded: a pack may exceed memory.
    values = np.memmap(raw, dtype=dtype, mode="r", shape=(int(offsets[-1]), width))
    used = {records[at].source for at in stored}
    files = {record.source for record in records if record.source is not None}
    return _Made(
        [work.keys[at] for at in stored],
        values,
        offsets,
        missing,
        {work.keys[at]: note for at in stored if (note := _note(records[at].reason, remarks.get(items[at], "")))},
        {work.keys[at]: remarks[items[at]] for at in stored if items[at] in remarks},
        sorted(replace(one, used=one in used) for one in files),
    )


def _note(own: str, remark: str) -> str:
    # A reused note may contain the remark.
    return own if remark in own else "; ".join(part for part in (own, remark) if part)


def _write(
    target: Path,
    made: _Made,
    corpus: Corpus,
    recipe: Recipe,
    extractor: Any,
    identity: dict[str, Any],
    *,
    overwrite: bool,
) -> None:
    offsets = made.offsets if extractor.level == "sequence" else None
    if offsets is None and len(made.values) != len(made.keys):
        raise PackError(
            f"the tool {recipe.tool} gave several rows per utterance at level 'utterance'. Set the level to "
            "'sequence', or return one row."
        )
    more, sources = extractor.described() if isinstance(extractor, TextExtractor) else ({}, {})
    settings = {name: value for name, value in {**identity, **more}.items() if name != "tool"}
    terms = (
        licence_of_texts(corpus)
        if isinstance(extractor, TextExtractor)
        else (f"Made from the recordings of: {corpus.card.title}. {corpus.card.licence}")
    )
    write_pack(
        target,
        FeatureTable(extractor.modality, made.keys, made.values, offsets),
        tool=extractor.tool,
        tool_version=extractor.tool_version,
        settings=settings,
        corpus=corpus.name,
        fingerprint=corpus.source_fingerprint(_source(extractor)),
        licence=" ".join(part for part in (extractor.licence, recipe.licence, terms) if part),
        dimension_names=getattr(extractor, "dimension_names", None),
        sources={**digest_of(one for one in made.recordings if one.used), **sources},
        missing=made.missing,
        notes=made.notes,
        remarks=made.remarks,
        recordings=made.recordings,
        overwrite=overwrite,
    )
