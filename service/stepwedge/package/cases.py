"""What a package decided for each labelled image, so that two packages can be compared case by case.

One JSON object a line: ``patient`` (a number, in the order of the table of labels), ``subgroups``, and by finding
``truth`` (null where the image does not count for it), ``decision``, and the costs and prevalence of the policy. No
name, number or file of a patient is in it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stepwedge.errors import PackageError
from stepwedge.package.observe import Answered
from stepwedge.pipeline import Equipment
from stepwedge.records import State


def write_cases(path: Path, answered: Sequence[Answered], equipment: Equipment) -> None:
    """Write them for every image, in the order of the labels; an image without a decision counts as left to people.

    Raises
    ------
    PackageError
        If there is no policy that decides, or the file cannot be written.
    """
    policy, manifest = equipment.policy, equipment.package.manifest
    if policy is None:
        raise PackageError("--cases needs --policy: without costs nothing is decided")
    numbers: dict[str, int] = {}
    lines = []
    for item in answered:
        decided = {f.name: str(f.decision) for f in item.result.findings if item.result.state is State.REPORTED}
        findings: dict[str, Any] = {}
        for spec in manifest.findings:
            labels, among, site = item.image.labels, frozenset(spec.among), policy.finding(spec.name)
            if site is None:
                continue
            counts = not among or bool(labels & among)
            findings[spec.name] = {
                "truth": bool(labels & frozenset(spec.positive)) if counts else None,
                "decision": decided.get(spec.name, "defer"),
                "miss": site.miss,
                "false_alarm": site.false_alarm,
                "deferral": site.deferral,
                "prevalence": site.prevalence,
            }
        patient = numbers.setdefault(item.image.patient, len(numbers))
        lines.append(
            json.dumps({"patient": patient, "subgroups": dict(item.image.subgroups), "findings": findings}) + "\n"
        )
    try:
        path.write_text("".join(lines), encoding="utf-8")
    except OSError as error:
        raise PackageError(f"{path}: cannot be written: {error.strerror}") from None
