"""From recordings or texts to a feature pack: one pipeline for every tool.

The work list is fixed at the start. Every result is appended to a journal beside the pack the moment it is there, so a
stopped extraction goes on where it was, whoever stopped it; the pack appears, complete, when all is done. A recording
that gives nothing is recorded as missing, with the reason.
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
# Groups of texts up to this number are encoded in this process: starting others takes longer.
_FEW_GROUPS = 32
# How often recordings are extracted again that changed while the others were.
_ROUNDS = 3


@dataclass(frozen=True)
class Extraction:
    """What an extraction made.

    Args:
        folder: The pack.
        missing: Turns without features, with the reason.
        notes: Turns with something odd, with what it is.
        found: The pack was there already, and nothing was done.
    """

    folder: Path
    missing: dict[Key, str]
    notes: dict[Key, str]
    found: bool = False


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
    """Make the pack of a recipe for all turns of a corpus, or go on making it.

    Of a pack that exists, the recordings that have changed since are extracted again; it stays in its place until the
    new one is complete.

    Args:
        corpus, protocol: What to extract from: the texts, or the recordings of :meth:`Corpus.clips`.
        recipe: Tool and settings.
        out: The pack's folder; by default below ``$ERCFUSION_PACKS`` or the user's cache, where training finds it.
        workers: Processes; None for one a core.
        executor_name, address: ``local``, or ``dask`` and the address of its scheduler.
        fresh: Begin anew, whatever was done before.
        retry: Try again what is missing in a pack that exists, and compare the content of all its recordings, where
            otherwise size and modification time are believed.
        strict: Stop at the first recording that gives nothing.

    Raises:
        PackError: another pack is in the way, nothing could be extracted, or the disk refuses.
        RunError: another process is making the same pack, processes died over texts, or a cluster went away.
        ClipError: ``strict``, and a recording gives nothing.
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
            return Extraction(target, old.remarks("missing"), old.remarks("notes"), found=True)
        announce_changed(old, changed, work, extractor)
    refuse_if_in_the_way(target, overwrite=has_pack(target))  # rather now than when all is done
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
                    journal.entries = {item: entry for item, entry in journal.entries.items() if entry.position >= 0}
                for _ in range(_ROUNDS):
                    groups = _groups(work, recipe, extractor.batch if is_text else 1, journal)
                    run = _runner(executor_name, address, workers, len(groups), is_text)
                    _work_off(run, groups, work, journal, extractor, strict=strict, what=recipe.name)
                    if not forget_changed(journal, work, extractor, finished=True):
                        break
                else:
                    raise PackError(f"{target}: recordings change while they are extracted. Wait until they are whole.")
                made = _assemble(journal, work, building, remarks)
                _write(target, made, corpus, recipe, extractor, identity, overwrite=has_pack(target))
            _clear(building)
    except OSError as error:
        raise PackError(
            f"{target}: the pack cannot be made there: {error}. Choose another place with out=FOLDER, or with the "
            "environment variable ERCFUSION_PACKS."
        ) from error
    return Extraction(target, made.missing, made.notes)


def find_pack(corpus: Corpus, recipe: Recipe, modality: str, splits: Splits) -> Path:
    """The pack of a recipe at its default place; where there are several, the one that covers most of ``splits``.

    Raises:
        PackError: there is none, and the message is the command that makes it; or there are several alike.
    """
    root = default_pack_folder(corpus.name, recipe.name, settings={}, fingerprint="").parent
    fingerprints = corpus.pack_fingerprints()
    try:
        extractor = recipe.extractor()
        wanted = {"tool": extractor.tool, **_settings(extractor, recipe)}
    except MissingExtraError:  # a pack can be used where the tool that made it is not installed
        wanted = {"tool": recipe.tool, **recipe.settings}
    everyone = [conversation for split in splits.values() for conversation in split]
    keys = {(conversation.id, turn.id) for conversation in everyone for turn in conversation.turns}
    most, best = -1, list[Path]()
    tidy_packs(root)
    for folder in sorted(root.glob(f"{recipe.name}-*")):
        if not has_pack(folder):
            continue
        manifest = read_manifest(folder)
        made = {"tool": manifest["tool"], **manifest["settings"]}
        if manifest["corpus_fingerprint"] in fingerprints and all(made.get(key) == wanted[key] for key in wanted):
            covered = len(keys.intersection(read_keys(folder / KEYS)))
            best = [*best, folder] if covered == most else [folder] if covered > most else best
            most = max(most, covered)
    if not best:
        place = {"data.raw": str(corpus.raw)} if corpus.raw else {}
        words = (f"data={corpus.name}", f"features={recipe.name}")
        raise PackError(
            f"data.packs.{modality}={recipe.name}: no pack of this recipe was made for {corpus.name} yet (looked in "
            f"{root}). Make it with: {command('missing pack', 'extract', *words, settings=place)}"
        )
    if len(best) > 1:
        raise PackError(
            f"data.packs.{modality}={recipe.name}: {len(best)} packs of this recipe fit {corpus.name}. Name one by its "
            f"folder: {', '.join(map(str, best[:3]))}"
        )
    return best[0]


# Before


def _settings(extractor: Any, recipe: Recipe) -> dict[str, Any]:
    # All of them, those left at their defaults included: what a default is may change.
    return dict(getattr(extractor, "settings", recipe.settings))


def _source(extractor: Any) -> str:
    return "text" if isinstance(extractor, TextExtractor) else str(extractor.kind)


def _target(out: StrPath | None, corpus: Corpus, recipe: Recipe, extractor: Any, identity: dict[str, Any]) -> Path:
    if out is not None:
        return expanded(out).absolute()
    if isinstance(extractor, SentenceExtractor):
        return text_pack_folder(corpus, identity)  # where training looks for it
    return bound_pack_folder(corpus, recipe.name, identity, _source(extractor))


def _announce(tool: str, licence: str) -> None:
    # Once a user: what a licence asks for must be seen, and not become noise.
    try:
        seen = user_cache() / "licences" / f"{tool}-{sha256(licence.encode()).hexdigest()[:12]}"
    except RunError:  # no place to note it: it is shown every time
        logger.info("%s", licence)
        return
    if seen.exists():
        return
    logger.info("%s", licence)
    try:
        with atomic_write(seen) as stream:
            stream.write(licence + "\n")
    except OSError as error:
        logger.debug("that the licence was shown could not be noted: %s", error)


def _remarks_on_all(extractor: Any, work: WorkList) -> dict[Any, str]:
    # Said before hours of work rather than after them.
    remarks: dict[Any, str] = extractor.remarks(work.items) if hasattr(extractor, "remarks") else {}
    if remarks:
        first, text = next(iter(remarks.items()))
        logger.warning(
            "%d of %d recordings are not like the others (first: %s, %s). Features of sound depend on the sampling "
            "rate; bring all to one with features.resample=all features.rate=16000",
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
    # What is ours; the work list first, without which nothing goes on from here.
    _forget(building)
    (building / _RAW).unlink(missing_ok=True)
    for path in list(building.iterdir()):
        if is_leftover(path.name):
            path.unlink(missing_ok=True)
    if not any(building.iterdir()):
        building.rmdir()


def _clear_if_written(building: Path, target: Path) -> None:
    # For a process that was killed after the pack had been written and before this folder was gone. The values are put
    # together before the pack's own file is written, on the same disk, so the times tell.
    if not building.is_dir():
        return
    raw = building / _RAW
    try:
        written = raw.is_file() and raw.stat().st_mtime_ns <= (target / MANIFEST).stat().st_mtime_ns
        if written or not (building / _WORK).is_file():
            with one_at_a_time(building, f"the pack {target.name}"):
                _clear(building)
    except (OSError, RunError) as error:
        logger.debug("%s stays: %s", building, error)  # another process is at work there, or nothing may be removed


def _check_work(building: Path, extractor: Any, identity: dict[str, Any], corpus: Corpus) -> None:
    # Results of two tools, or of two versions of a corpus, never end in one pack.
    here = {
        "tool_version": extractor.tool_version,
        "corpus": corpus.name,
        "corpus_fingerprint": corpus.source_fingerprint(_source(extractor)),
        **identity,
    }
    path = building / _WORK
    if not path.is_file():
        (building / _JOURNAL).unlink(missing_ok=True)
        with atomic_write(path) as stream:
            json.dump(here, stream, indent=2)
        return
    before = read_json(path, Work, error=PackError, advice="Begin again with --fresh.")
    for name in dict.fromkeys([*here, *before]):
        if before.get(name) != here.get(name):
            raise PackError(
                f"{building} holds an extraction that was stopped, with other {name}: {str(before.get(name))[:60]}, "
                f"now {str(here.get(name))[:60]}. Begin anew with --fresh, or choose another folder with out=."
            )


def _groups(work: WorkList, recipe: Recipe, batch: int, journal: Journal) -> Sequence[Group]:
    # Cut before what is done is left out: the groups, and so the values, are the same after a stop.
    groups = []
    for start in range(0, len(work.items), batch):
        numbers = tuple(range(start, min(start + batch, len(work.items))))
        if any(number not in journal.entries for number in numbers):
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
        logger.info("%s: %s of %s were done before", what, f"{len(work.items) - left:,}", f"{len(work.items):,}")
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
                raise ClipError(f"{name}: {result.reason} (--strict: what was done until now is kept)")
            logger.warning("%s: no features: %s", name, result.reason)
    took = time.monotonic() - begun
    if seconds and took > 0:
        logger.info(
            "%s of recordings in %s (%s times as fast)", duration(seconds), duration(took), rate(seconds / took)
        )


def _results(outcomes: Outcomes, is_text: bool) -> Iterator[tuple[int, Result]]:
    for group, results, reason in outcomes:
        if results is None and is_text:
            raise RunError(f"the encoder's process died ({reason}); go on with the same command and workers=1")
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
    entries = [journal.entries[owner] for owner in work.owners]
    items = [work.items[owner] for owner in work.owners]
    held = [position for position, entry in enumerate(entries) if entry.position >= 0]
    missing = {work.keys[at]: entry.reason for at, entry in enumerate(entries) if entry.position < 0}
    if not held:
        reasons = "; ".join(dict.fromkeys(missing.values()))[:300]
        _forget(building)  # nothing of it is worth keeping, and the next attempt shall try everything
        raise PackError(f"none of the {len(entries)} turns gave any features: {reasons}")
    if not sum(entries[at].rows for at in held):
        raise PackError("every turn gave an empty sequence: there is nothing to store")
    widths = {entries[at].width for at in held}
    if len(widths) > 1:
        odd = next(at for at in held if entries[at].width != entries[held[0]].width)
        raise PackError(
            f"turn {'/'.join(work.keys[odd])} has {entries[odd].width} dimensions, others have "
            f"{entries[held[0]].width}: the tool does not always give the same columns."
        )
    offsets = np.concatenate([[0], np.cumsum([entries[at].rows for at in held])]).astype(np.int64)
    dtype = np.float16 if all(entries[at].half for at in held) else np.float32
    width, raw = widths.pop(), building / _RAW
    with raw.open("wb") as stream:
        for at in held:
            stream.write(journal.values(work.owners[at]).astype(dtype, copy=False).tobytes())
    # Mapped, not loaded: a pack may be larger than memory.
    values = np.memmap(raw, dtype=dtype, mode="r", shape=(int(offsets[-1]), width))
    used = {entries[at].source for at in held}
    files = {entry.source for entry in entries if entry.source is not None}
    return _Made(
        [work.keys[at] for at in held],
        values,
        offsets,
        missing,
        {work.keys[at]: note for at in held if (note := _note(entries[at].reason, remarks.get(items[at], "")))},
        {work.keys[at]: remarks[items[at]] for at in held if items[at] in remarks},
        sorted(replace(one, used=one in used) for one in files),
    )


def _note(own: str, remark: str) -> str:
    # A pack that is taken over has the remark already.
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
        raise PackError(f"the tool {recipe.tool} gave several rows for an utterance, but its level is 'utterance'")
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
