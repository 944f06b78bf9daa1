"""Findings of ``doctor`` about the files of IEMOCAP."""

from __future__ import annotations

from collections.abc import Iterable

from ercfusion.data.corpora._iemocap_files import Dialogue
from ercfusion.data.corpus import Finding


def transcripts(dialogues: list[Dialogue]) -> list[Finding]:
    """Rated utterances without a transcript, and the reverse."""
    silent, unrated = [], []
    for dialogue in dialogues:
        rated = {utterance.id for utterance in dialogue.utterances}
        silent += [f"{dialogue.name}_{identifier}" for identifier in sorted(rated - set(dialogue.texts))]
        unrated += [f"{dialogue.name}_{identifier}" for identifier in sorted(set(dialogue.texts) - rated)]
    findings = []
    if silent:
        findings.append(Finding("note", "transcripts", f"rated utterances without a transcript: {some(silent)}"))
    if unrated:
        findings.append(Finding("note", "transcripts", f"transcribed utterances without a rating: {some(unrated)}"))
    if not silent and not unrated:
        findings.append(Finding("ok", "transcripts", "rated and transcribed utterances are the same"))
    pieces = sum(len(dialogue.pieces) for dialogue in dialogues)
    nameless = sum(dialogue.nameless for dialogue in dialogues)
    if pieces or nameless:
        text = f"omitted: {pieces} transcribed pieces (XX) and {nameless} lines without an utterance's name"
        findings.append(Finding("note", "transcripts", text))
    return findings


def times(dialogues: list[Dialogue]) -> list[Finding]:
    """Utterances that overlap, or do not end after they start."""
    overlapping, still = 0, []
    for dialogue in dialogues:
        latest = 0.0
        for one in dialogue.utterances:
            overlapping += one.start < latest
            latest = max(latest, one.end)
            still += [f"{dialogue.name}_{one.id}"] * (one.end <= one.start)
    findings = []
    if overlapping:
        text = f"{overlapping} utterances start before an earlier one ends"
        findings.append(Finding("note", "times", text))
    if still:
        findings.append(Finding("note", "times", f"utterances that do not end after they start: {some(still)}"))
    return findings or [Finding("ok", "times", "no two utterances of a dialogue overlap")]


def some(names: Iterable[str]) -> str:
    """Number of names, and the first five."""
    listed = list(names)
    return f"{len(listed)} ({', '.join(listed[:5])}{', ...' if len(listed) > 5 else ''})"
