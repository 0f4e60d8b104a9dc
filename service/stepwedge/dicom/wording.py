"""What a person reads in the report and in the picture: the same words in both."""

from __future__ import annotations

from stepwedge.records import Decision, Finding, HeatMap, Reason, State, TamperResult, UnitResult, Verdict

DEMONSTRATION = "DEMONSTRATION – NOT FOR CLINICAL USE"

# The states in which there is something to read, with their headline.
HEADLINES = {
    State.REPORTED: "AI result",
    State.DEFERRED: "No AI result: read without AI",
    State.REJECTED: "No AI result: image not suitable",
}
# The finding as present or absent, and what the policy makes of it.
PRESENCE = {
    Decision.ACT: "PRESENT",
    Decision.CLEAR: "ABSENT",
    Decision.DEFER: "UNDECIDED",
    Decision.NONE: "NOT DECIDED",
    Decision.INCONCLUSIVE: "INCONCLUSIVE",
}
ACTIONS = {
    Decision.ACT: "act",
    Decision.CLEAR: "clear",
    Decision.DEFER: "read without AI",
    Decision.NONE: "no action",
    Decision.INCONCLUSIVE: "read without AI",
}
INCONCLUSIVE = "too little evidence in the package"
TAMPER = {
    "pass": "passed",
    "flagged": "flagged: the answer changes under changes of the image that should not matter",
    "not_fitted": "not fitted: not checked",
}
METHODS = {
    "activation_map": "what each place adds to the score (activation map of the model)",
    "occlusion": "how much the score falls when a place is covered (occlusion)",
}
_DESCRIPTION_LENGTH = 64  # characters (Long String)
LEVELS = (0.5, 0.75)  # shares of the strongest place at which a heat map's contours are drawn
VERDICTS = {
    Verdict.ACCEPT: "accepted by the gate",
    Verdict.DEFER: "left to a person by the gate",
    Verdict.REJECT: "rejected by the gate",
}


def label(finding: Finding) -> str:
    """The finding's name for people."""
    return finding.code.meaning or finding.name


def finding_line(finding: Finding) -> str:
    """The finding's answer, with the figures that made it; none where there is too little evidence for any."""
    if finding.decision is Decision.INCONCLUSIVE:
        return f"{label(finding)}: {PRESENCE[finding.decision]} – {INCONCLUSIVE}, {ACTIONS[finding.decision]}"
    limits = thresholds_line(finding)
    return (
        f"{label(finding)}: {PRESENCE[finding.decision]} – {ACTIONS[finding.decision]}; "
        f"probability {figures(finding)[0]}" + (f" ({limits})" if limits else "")
    )


def thresholds_line(finding: Finding) -> str:
    """The thresholds that the probability was held against; empty without any."""
    if finding.thresholds is None:
        return ""
    _, clear_below, act_from = figures(finding)
    return f"act from {act_from}, clear below {clear_below}"


def figures(finding: Finding) -> list[str]:
    """The probability, and the two thresholds if there are any, with as many digits as tell them apart.

    A probability just below a threshold must not read as if it were at it, and none reads as certainty.
    """
    values = [finding.probability]
    if finding.thresholds is not None:
        values += [finding.thresholds.clear_below, finding.thresholds.act_from]
    texts: list[str] = []
    for digits in range(2, 7):
        texts = [f"{value:.{digits}f}" for value in values]
        if len(set(texts)) == len(set(values)) and float(texts[0]) not in (0.0, 1.0):
            break
    certain = {"0.000000": "<0.000001", "1.000000": ">0.999999"}
    return [certain.get(texts[0], texts[0]), *texts[1:]]


def revision_line(result: UnitResult, supersedes: int | None) -> str:
    """Which revision this is, and which one it replaces."""
    line = f"Revision {result.revision}"
    return line if supersedes is None else f"{line}, supersedes revision {supersedes}"


def reason_lines(reasons: tuple[Reason, ...]) -> list[str]:
    """The sentences of the reasons, each once."""
    return list(dict.fromkeys(reason.text for reason in reasons))


def images_line(result: UnitResult) -> str:
    """How many images were judged, and what became of them."""
    counts = [(sum(i.gate.verdict is verdict for i in result.images), words) for verdict, words in VERDICTS.items()]
    total = len(result.images)
    what = f"{total} image{'' if total == 1 else 's'}"
    members = sum(len(image.members) for image in result.images)
    if members:
        what = f"{total} stack{'' if total == 1 else 's'} of {members} image{'' if members == 1 else 's'} in all"
    return f"{what} judged: " + ", ".join(f"{count} {words}" for count, words in counts if count)


def tamper_line(tamper: TamperResult) -> str:
    """What the tamper check found, with the figures that made it."""
    line = f"Tamper check {TAMPER.get(tamper.verdict, tamper.verdict)}"
    if tamper.measure is None or tamper.threshold is None:
        return line
    return f"{line} (measure {tamper.measure:.4g}, flagged above {tamper.threshold:.4g})"


def heat_line(finding: Finding) -> str:
    """What a heat map's contours are, in one line."""
    levels = " and ".join(f"{level:.0%}".replace("%", " %") for level in LEVELS)
    return f"AI heat map, {label(finding)}: contours at {levels} of the strongest place; not the outline of a lesion"


def heat_lines(heat: HeatMap) -> list[str]:
    """What a reader of a heat map must know."""
    rows, columns = heat.values.shape
    return [
        f"Shown: {METHODS.get(heat.method, heat.method)}, relative to the strongest place of this image.",
        f"Coarse: {rows} x {columns} places, smoothed. Neither a probability nor the outline of a lesion.",
    ]


def summary_lines(result: UnitResult) -> list[str]:
    """The result in sentences; findings only where the state is REPORTED."""
    if result.state is State.REPORTED:
        return [HEADLINES[result.state], *(finding_line(finding) for finding in result.findings)]
    return [HEADLINES[result.state], *reason_lines(result.reasons)]


def series_description(result: UnitResult) -> str:
    """What a list of series shows; the most important comes first, because lists cut it."""
    headline = HEADLINES[result.state]
    if not result.policy.demonstration:
        return f"{headline}: {result.model.name}"
    return f"{DEMONSTRATION}: {headline.partition(':')[0]}: {result.model.name}"


def heat_series_description(result: UnitResult) -> str:
    """What a list of series shows of the heat map's contours."""
    headline = f"AI heat map: {result.model.name}"[:_DESCRIPTION_LENGTH]
    return f"{DEMONSTRATION}: {headline}"[:_DESCRIPTION_LENGTH] if result.policy.demonstration else headline
