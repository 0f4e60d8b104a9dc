"""The model card: written from the package's own description and its measured figures, never by hand."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from stepwedge.manifest import Calibration, FindingCalibration, FindingSpec, Manifest
from stepwedge.package.figures import (
    EVALUATION,
    KNOWING,
    CostFigures,
    Estimate,
    Evaluation,
    FaithfulnessFigures,
    FindingFigures,
    GateFigures,
    Measured,
    Notes,
    TamperFigures,
    read_notes,
)

__all__ = ["CARD", "EVALUATION", "Evaluation", "Notes", "card", "read_notes"]

CARD = "CARD.md"
_NOTHING = "–"


_METHODS = ("none", "temperature", "sigmoid", "isotonic")  # from the simplest


def card(manifest: Manifest, calibration: Calibration, evaluation: Evaluation) -> str:
    """The text of ``CARD.md`` (Markdown). What was not measured is said to be so."""
    sections = (
        _heading(manifest),
        _intended_use(manifest),
        _data(evaluation),
        _performance(manifest, evaluation),
        _calibration(manifest, calibration, evaluation),
        _decisions(manifest, calibration, evaluation),
        _subgroups(evaluation),
        _gate(evaluation.gate, evaluation.notes.content_detection),
        _tamper(evaluation.tamper, evaluation.notes.tamper_attacks),
        _faithfulness(evaluation.faithfulness),
        _confounders(evaluation.notes),
        _limits(manifest, calibration, evaluation),
    )
    return "\n\n".join(section for section in sections if section) + "\n"


def _heading(manifest: Manifest) -> str:
    lines = [f"# {manifest.name} {manifest.version}", "", manifest.description]
    if manifest.demonstration_only:
        lines += ["", "**This model demonstrates the software. It is not for clinical use.**"]
    lines += ["", f"Licence of the weights: {manifest.licence}."]
    return "\n".join(lines)


def _intended_use(manifest: Manifest) -> str:
    use = manifest.intended_use
    rows = [("Modality", ", ".join(use.modality))]
    if use.body_part:
        rows.append(("Body part", ", ".join(use.body_part)))
    if use.view:
        rows.append(("View", ", ".join(use.view)))
    if use.age_years is not None:
        rows.append(("Age", f"from {use.age_years[0]:g} to below {use.age_years[1]:g} years"))
    return f"## Intended use\n\n{use.summary}\n\n" + _table(("attribute", "value"), rows)


def _data(evaluation: Evaluation) -> str:
    notes, data = evaluation.notes, evaluation.notes.data
    parts = ["## Data"]
    if data is None:
        parts.append("Nothing is noted about where the images came from.")
    else:
        parts.append(f"{data.name}, {data.licence}. {data.population}".strip())
        parts += [data.citation] if data.citation else []
    parts.append(
        f"The figures below are of {evaluation.images} images of {evaluation.patients} patients, those of the "
        f"{evaluation.fold} fold that the gate accepted."
    )
    if evaluation.folds:
        parts.append("Patients are split once into folds that never mix.")
        classes = list(dict.fromkeys(name for fold in evaluation.folds.values() for name in fold.images))
        head = ("fold", "used for", "patients", "images", "not accepted by the gate", *classes)
        parts.append(
            _table(
                head,
                (
                    (
                        name,
                        notes.uses.get(name, fold.use),  # type: ignore[call-overload]  # a name of no fold finds nothing
                        str(fold.patients),
                        str(sum(fold.images.values()) if fold.total is None else fold.total),
                        str(fold.left_out),
                        *(str(fold.images.get(label, 0)) for label in classes),
                    )
                    for name, fold in evaluation.folds.items()
                ),
            )
        )
    parts += [notes.selection] if notes.selection else []
    return "\n\n".join(parts)


def _performance(manifest: Manifest, evaluation: Evaluation) -> str:
    rows = []
    for finding in manifest.findings:
        figures = evaluation.findings[finding.name]
        rows.append(
            (
                _named(finding),
                f"{figures.positives} / {figures.negatives}",
                f"{figures.positive_patients} / {figures.negative_patients}",
                _shown(figures.auroc),
                _shown(figures.auprc),
                _shown(figures.brier),
                "decided" if not figures.inconclusive else "**inconclusive**",
            )
        )
    text = (
        "## Performance\n\n"
        f"In brackets: 95 % interval, bootstrap over patients ({evaluation.bootstrap_samples} samples). AUROC is the "
        "share of pairs of an ill and a well image that the score puts in order; AUPRC is the average precision at "
        "the share of ill images in this fold; the Brier score is the mean squared error of the probability.\n\n"
    )
    head = (
        "finding",
        "images positive / negative",
        "patients positive / negative",
        "AUROC",
        "AUPRC",
        "Brier score",
        "verdict",
    )
    text += _table(head, rows)
    reasons = [
        f"- {name}: {figures.inconclusive}." for name, figures in evaluation.findings.items() if figures.inconclusive
    ]
    if reasons:
        text += (
            "\n\nInconclusive findings get no threshold and are never decided; the model's probability for them is "
            "shown as it is. Why:\n\n" + "\n".join(reasons)
        )
    return text


def _calibration(manifest: Manifest, calibration: Calibration, evaluation: Evaluation) -> str:
    text = (
        "## Calibration\n\n"
        "How far a probability can be taken at its word. Calibration error: the difference of probability and truth, "
        "averaged over ten groups of equal number. Even probabilities that are exactly true show some error in a fold "
        "of this size; one time in twenty it is larger than the column “by chance” says.\n\n"
    )
    rows = [
        _calibration_row(spec, calibration.findings[spec.name], evaluation.findings[spec.name])
        for spec in manifest.findings
    ]
    head = (
        "finding",
        "error before",
        "error after",
        "by chance",
        "method",
        "fitted on images positive / negative",
        "share positive",
        "the same, estimated by EM",
    )
    text += _table(head, rows)
    tried = [
        (
            name if index == 0 else "",
            method + (" (chosen)" if method == fitted.method else ""),
            f"{seen.log_loss:.4f}",
            f"{seen.calibration_error:.3f} ({seen.low:.3f}–{seen.high:.3f})",
        )
        for name, fitted in ((spec.name, calibration.findings[spec.name]) for spec in manifest.findings)
        for index, (method, seen) in enumerate((m, fitted.evidence[m]) for m in _METHODS if m in fitted.evidence)
    ]
    if tried:
        text += (
            "\n\nThe method was chosen on the calibrate fold by cross-validation over patients: the simplest whose log "
            "loss is no more than one standard error above the best one's, on positive and negative images alike.\n\n"
            + _table(("finding", "method", "log loss", "calibration error"), tried)
        )
    return text


def _calibration_row(spec: FindingSpec, fitted: FindingCalibration, figures: FindingFigures) -> tuple[str, ...]:
    how = {
        "none": "none",
        "temperature": f"temperature, slope {fitted.slope:.3f}",
        "sigmoid": f"sigmoid, slope {fitted.slope:.3f}, intercept {fitted.intercept:+.3f}",
        "isotonic": f"isotonic, {len(fitted.points)} points",
    }[fitted.method]
    chance, prevalence = figures.calibration_error_by_chance, figures.prevalence
    return (
        spec.name,
        _shown(figures.calibration_error_before),
        _shown(figures.calibration_error_after),
        _NOTHING if chance is None else f"{chance:.3f}",
        how,
        f"{fitted.positives} / {fitted.negatives}",
        _NOTHING if prevalence is None else f"{prevalence:.3f}",
        _shown(figures.prevalence_estimated),
    )


def _decisions(manifest: Manifest, calibration: Calibration, evaluation: Evaluation) -> str:
    parts = ["## Decisions"]
    if not evaluation.costs:
        parts.append("Nothing was measured about decisions: they need a site policy with costs and a prevalence.")
        return "\n\n".join(parts)
    parts.append(
        f"Under the policy {evaluation.policy}. An image is acted on (the finding is treated as present), cleared or "
        "left to a person (deferred), whichever is expected to cost least. Costs are per 100 studies and in the "
        "policy's unit. A ratio below 1 says that this package costs less than the other way. Net benefit is ill "
        "studies found per 100 studies, less what was paid for them; clearing everybody has none."
    )
    given = {spec.name: spec.given for spec in manifest.findings}
    parts += [_costs(costs, given.get(costs.finding)) for costs in evaluation.costs]
    undecided = [
        name
        for name, fitted in calibration.findings.items()
        if not fitted.inconclusive and name not in {costs.finding for costs in evaluation.costs}
    ]
    if undecided:
        parts.append(f"The policy states no costs for {', '.join(undecided)}, or the fold has images of one kind only.")
    return "\n\n".join(parts)


def _costs(costs: CostFigures, given: str | None) -> str:
    among = f", as if {given} had been acted on" if given else ""
    rows = [
        (
            f"**{way.name}**" if index == 0 else way.name,
            _brief(way.cost),
            _shown(way.ratio),
            _per_cent(way.deferred),
            _per_cent(way.sensitivity),
            _per_cent(way.missed),
            _per_cent(way.specificity),
            _per_cent(way.false_alarms),
            _per_cent(way.ppv),
            _per_cent(way.npv),
            _brief(way.net_benefit),
        )
        for index, way in enumerate(costs.strategies)
    ]
    head = (
        "decided by",
        "cost per 100",
        "ratio",
        "deferred, %",
        "ill acted on (sensitivity), %",
        "ill cleared, %",
        "well cleared (specificity), %",
        "well acted on, %",
        "PPV, %",
        "NPV, %",
        "net benefit",
    )
    return (
        f"### {costs.finding}\n\n"
        f"{costs.images} images of {costs.patients} patients of the {costs.fold} fold{among}, weighted to a prevalence "
        f"of {costs.prevalence:.1%}. A miss costs {costs.miss:g}, a false alarm {costs.false_alarm:g}, a deferral "
        f"{costs.deferral:g}. At this prevalence the AUPRC is {_shown(costs.auprc)} and the calibration error "
        f"{_shown(costs.calibration_error)}.\n\n{_in_counts(costs)}\n\n" + _table(head, rows)
    )


def _in_counts(costs: CostFigures) -> str:
    """The package's own way in numbers of patients, which are easier to judge than rates."""
    own, ill = costs.strategies[0], 1000 * costs.prevalence
    well = 1000 - ill

    def of(count: float, kind: str, acted: Estimate, cleared: Estimate) -> str:
        left = count * (1 - acted.value - cleared.value)
        return (
            f"Of the {count:.0f} that {kind}, {count * acted.value:.0f} would be acted on, {count * cleared.value:.0f} "
            f"cleared and {abs(left):.0f} left to a person."
        )

    return (
        f"In 1,000 such studies: {of(ill, 'are positive', own.sensitivity, own.missed)} "
        f"{of(well, 'are not', own.false_alarms, own.specificity)}"
    )


def _subgroups(evaluation: Evaluation) -> str:
    notes = evaluation.notes.subgroup_notes
    if not evaluation.subgroups and not notes:
        return "## Subgroups\n\nThe labels name no subgroup: nothing is known about any, and fairness cannot be judged."
    parts = ["## Subgroups"]
    if evaluation.subgroups:
        parts.append(
            "“Too few” stands where there are fewer than ten positive or ten negative patients. With this many "
            "subgroups some intervals miss the others by chance alone."
        )
        rows = [
            (
                group.finding,
                f"{group.group}: {group.value}",
                f"{group.positives} / {group.negatives}",
                *(
                    ("too few", *[_NOTHING] * 3)
                    if group.auroc is None
                    else (
                        _shown(group.auroc),
                        _shown(group.calibration_error),
                        _per_cent(group.sensitivity),
                        _per_cent(group.specificity),
                    )
                ),
            )
            for group in evaluation.subgroups
        ]
        head = (
            "finding",
            "subgroup",
            "images positive / negative",
            "AUROC",
            "calibration error",
            "ill acted on, %",
            "well cleared, %",
        )
        parts.append(_table(head, rows))
    return "\n\n".join(parts + ([_bullets(notes)] if notes else []))


def _gate(figures: GateFigures | None, detection: Sequence[Measured]) -> str:
    if figures is None:
        text = (
            "## Validity gate\n\nNothing was measured: whether images that are not such as the model was accepted on "
            "are refused is unknown."
        )
    else:
        text = (
            f"Fitted to refuse {figures.declared:.1%} of proper images. Measured on the {figures.fold} fold, which it "
            "was not fitted on."
        )
        text = _measured("Validity gate", text, figures.rows, figures.notes)
        if detection:
            text += f"\n\nShare not accepted of images that the model was not made for:\n\n{_rows(detection)}"
    return text


def _tamper(figures: TamperFigures | None, attacks: Sequence[Measured]) -> str:
    if figures is None:
        return "## Tamper check\n\nNothing was measured: images that were altered to mislead the model may pass."
    text = (
        f"Fitted to flag {figures.declared:.1%} of untouched images. Measured on the {figures.fold} fold, which it was "
        "not fitted on."
    )
    return _measured("Tamper check", text, figures.rows, figures.notes) + f"\n\n{_attacks(attacks)}"


def _attacks(rows: Sequence[Measured]) -> str:
    if not rows:
        return "Which attacks it catches was not measured."
    known = [row for row in rows if row.what.startswith(KNOWING)]
    count = sum(row.n for row in known)
    measured = f"{sum(round(row.value * row.n) for row in known)} of {count} such attacks were flagged" if count else ""
    return (
        f"Share flagged, of harmless changes and of the attacks that changed the answer:\n\n{_rows(rows)}\n\n"
        f"**An attacker who knows the check gets through** ({measured or 'not measured here'}), and no check of the "
        "image alone would stop one. What protects is knowing that an image is the one that was sent, and by whom: the "
        "digest of the data set taken at receipt and compared before the model sees it, and the systems that sent it, "
        "which every observation names."
    )


def _faithfulness(figures: FaithfulnessFigures | None) -> str:
    if figures is None:
        return "## Explanation\n\nNothing was measured of how far a heat map shows what the answer rests on."
    text = f"Heat maps are made by {figures.method}; measured on the {figures.fold} fold."
    return _measured("Explanation", text, figures.rows, figures.notes)


def _measured(title: str, text: str, rows: Sequence[Measured], notes: Sequence[str]) -> str:
    parts = [f"## {title}", text, _rows(rows)]
    return "\n\n".join(parts + ([_bullets(notes)] if notes else []))


def _rows(rows: Sequence[Measured]) -> str:
    lines = [
        (
            row.what,
            str(row.n),
            f"{row.value:.3f}" + ("" if row.low is None or row.high is None else f" ({row.low:.3f}–{row.high:.3f})"),
            row.note,
        )
        for row in rows
    ]
    return _table(("what", "n", "value", "note"), lines)


def _confounders(notes: Notes) -> str:
    if not notes.confounders and not notes.confounder_notes:
        return "## Known confounders\n\nNone was looked for."
    parts = ["## Known confounders"]
    if notes.confounders:
        rows = [(c.question, c.fold, str(c.images), c.measure, str(c.value)) for c in notes.confounders]
        parts.append(_table(("question", "fold", "images", "measure", "value"), rows))
    return "\n\n".join([*parts, *notes.confounder_notes])


def _limits(manifest: Manifest, calibration: Calibration, evaluation: Evaluation) -> str:
    limits = list(evaluation.notes.limits)
    inconclusive = [name for name, fitted in calibration.findings.items() if fitted.inconclusive]
    if inconclusive:
        limits.append(f"Nothing is decided on {', '.join(inconclusive)}: the evidence is too thin.")
    limits.append("Every figure is of the data above. Expect others, mostly worse ones, at another site.")
    if manifest.demonstration_only:
        limits.append("It demonstrates the software. It is not for clinical use.")
    return "## Limits\n\n" + _bullets(limits)


def _named(finding: FindingSpec) -> str:
    among = f" among {', '.join(finding.among)}" if finding.among else ""
    return f"{finding.name} ({', '.join(finding.positive)}{among})"


def _shown(figure: Estimate | None) -> str:
    return _NOTHING if figure is None else str(figure)


def _brief(figure: Estimate) -> str:
    return f"{figure.value:.1f} ({figure.low:.1f}–{figure.high:.1f})"


def _per_cent(figure: Estimate | None) -> str:
    if figure is None:
        return _NOTHING
    return f"{100 * figure.value:.1f} ({100 * figure.low:.1f}–{100 * figure.high:.1f})"


def _bullets(items: Iterable[str]) -> str:
    return "\n".join(f"- {item}" for item in items)


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
