"""A protocol belongs to the files of a release: other files under their names are recorded under another protocol."""

from __future__ import annotations

from dataclasses import replace

from ercfusion.data.check import check_counts, check_label_counts
from ercfusion.data.corpus import Corpus, Finding, Protocol, Splits

OTHER = "-other"
"""Ends the id of a protocol whose corpus was read from other files than those of the release."""


def bound_protocol(corpus: Corpus, protocol: Protocol, splits: Splits) -> Protocol:
    """``protocol``, or one with another id if what was read has other counts than the corpus's card.

    Files of another version, such as MELD's dyadic ones, or a part of a release may have the release's names. A table
    must not mix their numbers with those of the release. Generated corpora, and those whose card has no counts, keep
    their protocols.

    Args:
        corpus: Whose card has the counts.
        protocol: As the corpus has it.
        splits: Its conversations under the protocol.
    """
    if not differences_from_card(corpus, protocol, splits):
        return protocol
    return replace(
        protocol,
        id=f"{protocol.id}{OTHER}",
        description=f"{protocol.description}; read from other files than the release's",
    )


def differences_from_card(corpus: Corpus, protocol: Protocol, splits: Splits) -> list[Finding]:
    """The counts that are not those of the release."""
    card = corpus.card
    if card.synthetic:
        return []
    found = check_counts(splits, card, default=protocol.id == corpus.protocol().id)
    found += check_label_counts(splits, card, protocol) + corpus.other_counts(protocol, splits)
    return [finding for finding in found if finding.level == "fault"]
