"""The audit: studies drawn at random for a blinded reading, and the weights that make figures honest.

Labels that follow the model's answers (a verified report where the model saw something) tell little of what it missed.
A share of all studies is drawn, whatever the model said, and read by someone who does not see its answer. Studies with
a label of another kind then stand for themselves, as all of them are known; those drawn stand for the rest, each for
as many as its probability of being drawn says, scaled to how many the rest are (Hájek 1971).

That holds where a drawn study is as likely to be labelled otherwise as if it had not been drawn, and where readings
that are still missing are missing at random.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from stepwedge.observation import Label

Floats = NDArray[np.float64]
Auditing = Callable[[Label], Label]

LEAST_DRAWN = 10  # readings of the audit: below that they cannot stand for the rest
_PERSON = b"stepwatch-audit"


def is_drawn(study: str, share: float, *, key: bytes = b"") -> bool:
    """Whether a study is in the audit: the same answer always, and nothing is kept.

    The study's name is itself a keyed hash, which nobody without the site's key foresees; ``key`` (at most 64 bytes)
    makes another draw of it. A larger share draws the same studies and more.

    Raises
    ------
    ValueError
        If ``share`` is not in 0…1.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"the share of the audit is {share}; wanted 0 to 1")
    digest = hashlib.blake2b(study.encode(), digest_size=8, key=key, person=_PERSON).digest()
    return int.from_bytes(digest, "big") < share * 2**64


def auditing(readers: Collection[str], share: float) -> Auditing:
    """What marks a label from a report as one of the audit: its study is drawn, and its reader reads for the audit.

    A report says nothing of the audit itself. ``readers`` are codes of those who read drawn studies without seeing the
    answer; a report of anyone else may follow it.
    """
    known = frozenset(readers)

    def audited(label: Label) -> Label:
        if label.source == "sr" and label.reader in known and is_drawn(label.study, share):
            return replace(label, audit=True, probability_drawn=share)
        return label

    return audited


def weigh(otherwise: NDArray[np.bool_], drawn: Floats, rest: int) -> tuple[Floats, bool]:
    """Weights of labelled studies, (n,), and whether the audit stands for the rest.

    Parameters
    ----------
    otherwise
        (n,): has a label that is not of the audit.
    drawn
        (n,): probability of being drawn, of those in the audit; NaN of others.
    rest
        How many studies of the window have no label but of the audit, or none at all.

    Returns
    -------
    Where the audit has too few readings to stand for the rest, and there is a rest, all weights are one and the
    answer is False: then the figures hold for the labelled studies only.
    """
    audited = ~otherwise & ~np.isnan(drawn)
    if int(audited.sum()) < LEAST_DRAWN:
        return np.ones(len(drawn)), rest == int(audited.sum())
    weights = np.where(otherwise, 1.0, 0.0)
    shares = 1 / np.where(audited, np.clip(drawn, 1e-6, 1.0), 1.0)
    return np.where(audited, shares * rest / shares[audited].sum(), weights), True
