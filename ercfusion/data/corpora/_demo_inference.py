"""The exact posterior of the process generating ``demo``, for observers with all of the evidence or a part.

The chain of the speakers' emotions is computed by forward-backward on their joint state of C ** 3 values (a third
speaker may be silent). Flatness, signs, further labels and the key are summed out in closed form.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ercfusion.data.corpora._demo_process import (
    AUDIO,
    CODE,
    CUES,
    GROUP_CENTRES,
    GROUPS,
    MAX_SPEAKERS,
    MODALITIES,
    PRODUCT,
    PRODUCT_CODES,
    TEXT,
    Bools,
    C,
    Floats,
    Ints,
    Process,
    Sample,
    sources,
)


@dataclass(frozen=True)
class View:
    """The evidence of an observer, besides speakers, flags and lengths.

    Args:
        modalities: Modalities with visible features.
        product: The product dimensions are visible.
        radius: Turn i uses the features of the turns i - radius to i + radius; None: of all turns.
        complete: Missing modalities are visible.
    """

    modalities: tuple[str, ...] = MODALITIES
    product: bool = True
    radius: int | None = None
    complete: bool = False


@dataclass(frozen=True)
class Posterior:
    """Exact probabilities (N, C): p(y_i = c), and p(label k is in the set of turn i)."""

    primary: Floats
    labels: Floats


def posterior(process: Process, sample: Sample, view: View | None = None) -> Posterior:
    """The exact posterior of every turn for one observer."""
    view = View() if view is None else view
    mask = _mask(sample, view)
    visible = _visible(sample, mask, view.product)
    cues = np.concatenate([x[:, CUES] for x in visible], axis=1)
    conditional = _labels_given_primary(process, cues)
    chain = _Chain(process, sample, _likelihood(process, visible, mask, conditional.evidence))
    primary = chain.smooth() if view.radius is None else chain.smooth_windows(view.radius)
    labels = np.einsum("nc,nck->nk", primary, conditional.probability)
    key = _key_posterior(process, sample, visible[TEXT], view.radius)
    primary[sample.recall] = labels[sample.recall] = key[sample.recall]
    return Posterior(primary, labels)


def cues_only(process: Process, sample: Sample) -> Floats:
    """(N, C) p(label k in the set | its cue at this turn)."""
    rate = np.array(process.prior) @ process.label_rates
    cues = np.concatenate([x[:, CUES] for x in _visible(sample, sample.available, True)], axis=1)
    odds = rate / (1.0 - rate) * np.exp(process.cue * cues)
    return odds / (1.0 + odds)


def _mask(sample: Sample, view: View) -> Bools:
    """(N, 3) whether the modality is visible at the turn."""
    return (sample.available | view.complete) & np.isin(MODALITIES, view.modalities)


def _visible(sample: Sample, mask: Bools, product: bool) -> tuple[Floats, ...]:
    """The features, with zeros for everything invisible.

    For codes, cues and products zero is equivalent to absence: all possible means of such a block have the same length.
    Groups need the mask, because a flat turn's mean is 0.
    """
    visible = []
    for m in range(len(MODALITIES)):
        values = np.where(mask[:, m, None], sample.features[m], 0.0).astype(np.float64)
        if not product and m in (TEXT, AUDIO):
            values[:, PRODUCT] = 0.0
        visible.append(values)
    return tuple(visible)


@dataclass(frozen=True)
class _Labels:
    """(N, C, C) p(label k | primary c, cues), and (N, C) the cues' log-likelihood given the primary c."""

    probability: Floats
    evidence: Floats


def _labels_given_primary(process: Process, cues: Floats) -> _Labels:
    # Given the primary emotion the labels are independent: two cases per label, summed.
    rates = process.label_rates[None]
    shown = rates * np.exp(0.5 * process.cue * cues)[:, None]
    hidden = (1.0 - rates) * np.exp(-0.5 * process.cue * cues)[:, None]
    return _Labels(shown / (shown + hidden), np.log(shown + hidden).sum(axis=2))


def _likelihood(process: Process, visible: tuple[Floats, ...], mask: Bools, cue_evidence: Floats) -> Floats:
    """(N, C) p(features of a turn | y_i = c), up to a factor per turn. Meaningless at recall turns."""
    # Two cases per turn; log-densities are relative to the flat one.
    expressive = np.zeros_like(cue_evidence)
    for m, strength in enumerate(process.groups):
        expressive += strength * visible[m][:, GROUPS] @ GROUP_CENTRES[m].T - 0.5 * strength**2 * mask[:, m, None]
    log = cue_evidence + np.log(process.flat + (1.0 - process.flat) * np.exp(expressive))
    # A bit's sign z is summed out: 1/2 sum over z of exp(z * (a + b)) = cosh(a + b), with a from text, b from audio.
    text = process.product * visible[TEXT][:, None, PRODUCT]
    audio = process.product * visible[AUDIO][:, None, PRODUCT] * PRODUCT_CODES
    log += np.logaddexp(text + audio, -text - audio).sum(axis=2)
    likelihood: Floats = np.exp(log - log.max(axis=1, keepdims=True))
    return likelihood


def _key_posterior(process: Process, sample: Sample, text: Floats, radius: int | None) -> Floats:
    """(N, C) p(K = c) of the turn's conversation; uniform if the key turn is not within the radius."""
    turn = np.arange(len(sample.key))
    place = np.full(len(sample.lengths), -1)
    place[sample.conversation[sample.key]] = np.flatnonzero(sample.key)
    place = place[sample.conversation]
    visible = place >= 0
    if radius is not None:
        visible &= np.abs(turn - place) <= radius
    log = np.where(visible[:, None], process.key * text[place, CODE], 0.0)
    likelihood = np.exp(log - log.max(axis=1, keepdims=True))
    normalised: Floats = likelihood / likelihood.sum(axis=1, keepdims=True)
    return normalised


class _Chain:
    """Forward-backward on the joint state (e_0, e_1, e_2), batched over conversations or windows.

    A message is (B, C ** 3), indexed by e_0 * C * C + e_1 * C + e_2. A step reorders the axes to (speaker, source,
    third speaker) by an index table, because the speaker differs within the batch.
    """

    def __init__(self, process: Process, sample: Sample, likelihood: Floats) -> None:
        self._sample = sample
        self._inertia = process.inertia
        self._likelihood = likelihood
        self._prior = np.array(process.prior)
        source = np.concatenate([sources(part) for part in np.split(sample.speaker, sample.first[1:])])
        # (N, C, C): without inertia, the sub-probability of y (axis 1) given the source's emotion s (axis 2).
        contagion = np.where(source >= 0, process.contagion, 0.0)[:, None, None]
        self._jump = contagion * np.eye(C) + (1.0 - process.inertia - contagion) * self._prior[:, None]
        source = np.where(source >= 0, source, (sample.speaker + 1) % MAX_SPEAKERS)
        self._order = _axis_orders()[sample.speaker, source]

    def smooth(self) -> Floats:
        """(N, C) p(y_i = c | all features)."""
        after = self._run_forward(self._likelihood)
        marginal = np.empty((len(after), C))
        beliefs = np.ones((len(self._sample.lengths), C**MAX_SPEAKERS))
        for position in reversed(range(int(self._sample.lengths.max()))):
            active = np.flatnonzero(self._sample.lengths > position)
            turn = self._sample.first[active] + position
            marginal[turn] = self._marginal(after[turn] * beliefs[active], turn)
            beliefs[active] = self._backward(beliefs[active], turn)
        return marginal

    def smooth_windows(self, radius: int) -> Floats:
        """(N, C) p(y_i = c | features of turns i - radius to i + radius).

        Turns before a window are summed out by the forward pass without evidence; turns after it sum to 1.
        """
        sample = self._sample
        turn = np.arange(len(sample.speaker))
        first = sample.first[sample.conversation]
        start = np.maximum(turn - radius, first)
        stop = np.minimum(turn + radius, first + sample.lengths[sample.conversation] - 1)
        after = self._run_forward(np.ones_like(self._likelihood))
        prior = self._initial(len(turn))
        messages = np.where((start > first)[:, None], after[start - 1], prior)
        for offset in range(radius + 1):
            active = np.flatnonzero(start + offset <= turn)
            messages[active] = self._forward(messages[active], start[active] + offset, self._likelihood)
        beliefs = np.ones_like(messages)
        for offset in range(radius):
            active = np.flatnonzero(stop - offset > turn)
            beliefs[active] = self._backward(beliefs[active], stop[active] - offset)
        return self._marginal(messages * beliefs, turn)

    def _initial(self, count: int) -> Floats:
        joint = np.einsum("a,b,c->abc", self._prior, self._prior, self._prior).reshape(-1)
        return np.tile(joint, (count, 1))

    def _run_forward(self, likelihood: Floats) -> Floats:
        """(N, C ** 3): the message after each turn, normalised."""
        after = np.empty((len(likelihood), C**MAX_SPEAKERS))
        messages = self._initial(len(self._sample.lengths))
        for position in range(int(self._sample.lengths.max())):
            active = np.flatnonzero(self._sample.lengths > position)
            turn = self._sample.first[active] + position
            messages[active] = after[turn] = self._forward(messages[active], turn, likelihood)
        return after

    def _forward(self, messages: Floats, turn: Ints, likelihood: Floats) -> Floats:
        """Messages before the given turns -> messages after them (unchanged at recall turns)."""
        before = self._reordered(messages, turn)
        total = before.sum(axis=1, keepdims=True)
        after = self._inertia * before + self._jump[turn][..., None] * total
        after *= likelihood[turn][:, :, None, None]
        return self._restored(after, messages, turn)

    def _backward(self, messages: Floats, turn: Ints) -> Floats:
        """Likelihoods of the turns after the given ones -> including the given ones (unchanged at recall turns)."""
        after = self._reordered(messages, turn) * self._likelihood[turn][:, :, None, None]
        jumped = (self._jump[turn][..., None] * after).sum(axis=1, keepdims=True)
        return self._restored(self._inertia * after + jumped, messages, turn)

    def _marginal(self, joint: Floats, turn: Ints) -> Floats:
        weights = self._reordered(joint, turn).sum(axis=(2, 3))
        normalised: Floats = weights / weights.sum(axis=1, keepdims=True)
        return normalised

    def _reordered(self, messages: Floats, turn: Ints) -> Floats:
        gathered: Floats = np.take_along_axis(messages, self._order[turn], axis=1)
        return gathered.reshape(-1, C, C, C)

    def _restored(self, values: Floats, unchanged: Floats, turn: Ints) -> Floats:
        flat = np.empty_like(unchanged)
        np.put_along_axis(flat, self._order[turn], values.reshape(-1, C**MAX_SPEAKERS), axis=1)
        # Only ratios within a message matter; normalising avoids underflow.
        flat /= flat.sum(axis=1, keepdims=True)
        recall: Bools = self._sample.recall[turn]
        return np.where(recall[:, None], unchanged, flat)


def _axis_orders() -> Ints:
    """(3, 3, C ** 3): for speaker a and source b, positions of the state (e_a, e_b, e_third) in a message."""
    flat = np.arange(C**MAX_SPEAKERS).reshape(C, C, C)
    orders = np.zeros((MAX_SPEAKERS, MAX_SPEAKERS, C**MAX_SPEAKERS), dtype=np.int64)
    for a in range(MAX_SPEAKERS):
        for b in range(MAX_SPEAKERS):
            if a != b:
                orders[a, b] = flat.transpose(a, b, 3 - a - b).reshape(-1)
    return orders
