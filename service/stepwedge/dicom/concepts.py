"""Concepts of our own, coding scheme 99STEPWEDGE, for what has no standard code."""

from __future__ import annotations

from pydicom.sr.coding import Code

SCHEME = "99STEPWEDGE"
_OWN = {  # code values have 16 characters at most (Short String)
    # Numbers of a finding.
    "clear-below": "Cleared below this probability",
    "act-from": "Acted on from this probability",
    "prevalence": "Prevalence applied",
    "cost-miss": "Cost of a miss",
    "cost-false-alarm": "Cost of a false alarm",
    "cost-deferral": "Cost of a deferral",
    # What the least expected cost makes of a finding.
    "decision": "Decision of least expected cost",
    "decision-act": "Act: treat the finding as present",
    "decision-clear": "Clear: treat the finding as absent",
    "decision-defer": "Defer: leave the finding to a person",
    "decision-none": "Not decided",
    "decision-inconcl": "Inconclusive: too little evidence in the package",
    # The result as a whole.
    "state": "State of the AI result",
    "state-reported": "Reported",
    "state-deferred": "Deferred: no AI result, read without AI",
    "state-rejected": "Rejected: no AI result, image not suitable",
    "gate": "Verdict of the gate",
    "gate-accept": "Accepted",
    "gate-defer": "Left to a person",
    "gate-reject": "Rejected",
    "reason": "Reason",
    "gate-measure": "Measure of the gate",
    "tamper": "Verdict of the tamper check",
    "tamper-pass": "Passed",
    "tamper-flagged": "Flagged: the answer does not hold under small changes",
    "tamper-unfitted": "Not fitted: not checked",
    "tamper-measure": "Measure of the tamper check",
    "tamper-threshold": "Flagged above this measure",
    # What shows where the answer comes from.
    "heat-map": "Heat map over the image",
    "heat-map-state": "Image with the contours of the heat map",
    "revision": "Revision",
}


def own(value: str) -> Code:
    """One of our concepts, by its code value."""
    return Code(value, SCHEME, _OWN[value])
