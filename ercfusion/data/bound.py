"""Protocol ids for files other than those of a release."""

from __future__ import annotations

from dataclasses import replace

from ercfusion.data.check import check_counts, check_label_counts
from ercfusion.data.corpus import Corpus, Finding, Protocol, Splits

OTHER = "-other"
"""Suffix of the protocol id of a corpus with other files than the release's."""


def bound_protocol(corpus: Corpus, protocol: Protocol, splits: Splits) -> Protocol:
    """``protocol``, or one with another id if the conversations have other counts than the corpus's card.

    Files of another version (such as MELD's dyadic ones) or a part of a release may have the release's names, and
    tables must not mix their scores with the release's. Generated corpora, and those without counts in the card, keep
    their protocols.

    Args:
        corpus: The corpus.
        protocol: Its protocol.
        splits: Conversations under the protocol.
    """
    if not differences_from_card(corpus, protocol, splits):
        return protocol
    return replace(
        protocol,
        id=f"{protocol.id}{OTHER}",
        description=f"{protocol.description}; read from other files than the release's",
    )


def differences_from_card(corpus: Corpus, protocol: Protocol, splits: Splits) -> list[Finding]:
    """Counts unlike the release's."""
    card = corpus.card
    if card.synthetic:
        return []
    findings = check_counts(splits, card, default=protocol.id == corpus.protocol().id)
    findings += check_label_counts(protocol.viewed(splits), card, protocol) + corpus.other_counts(protocol, splits)
    return [finding for finding in findings if finding.level == "fault"]
