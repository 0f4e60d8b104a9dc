"""Champion against challenger on locked cases: what deciding costs, compared patient by patient."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stepwatch.candidate import package_of, policy_of
from stepwatch.errors import WatchError
from stepwatch.settings import Retrain

Case = Mapping[str, Any]
Floats = NDArray[np.float64]

SAMPLES = 2000  # of the bootstrap
LEAST_PATIENTS = 10  # with, and without, a finding, below which nothing is said: as in a package's card
_SEED = 20110630
_EVALUATE_SECONDS = 86_400.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Compared:
    """What the challenger costs more than the champion a study, with a 95 % interval; None: too few to say."""

    where: str  # "overall", or "<subgroup>=<level>"
    patients: int
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    margin: float
    verdict: str  # not worse, worse, uncertain, too few to say
    left_out: tuple[str, ...] = ()  # findings with too few patients, of which nothing is said


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """The verdict on a candidate: ``validated``, ``declined`` or ``inconclusive``, and what it rests on."""

    state: str
    because: str
    compared: tuple[Compared, ...]

    def to_dict(self) -> dict[str, Any]:
        """For the log."""
        return {"because": self.because, "compared": [asdict(each) for each in self.compared]}


def locked_cases(settings: Retrain) -> tuple[Path, Path]:
    """The locked cases and their labels. Raises WatchError if the settings name none."""
    if settings.locked_data is None or settings.locked_labels is None:
        raise WatchError("retrain.locked_data and retrain.locked_labels name no locked cases: nothing to compare on")
    return settings.locked_data, settings.locked_labels


def decide_cases(release: Path, policy: Path | None, settings: Retrain, out: Path) -> list[dict[str, Any]]:
    """What a package decides for each locked case, by ``stepwedge package evaluate``.

    Raises
    ------
    WatchError
        If there are no locked cases or no policy, or they cannot be answered for; nothing is said of the package then.
    """
    data, labels = locked_cases(settings)
    policy = policy_of(release) or policy
    if policy is None:
        raise WatchError(f"{release}: no policy.yaml beside the package and none in the settings: costs are not known")
    command = [
        sys.executable, "-m", "stepwedge", "package", "evaluate", str(package_of(release)), "--json",
        "--data", str(data), "--labels", str(labels),
        "--policy", str(policy), "--cases", str(out), "--device", "cpu",
    ]  # fmt: skip
    try:
        done = subprocess.run(  # noqa: S603 - our own command
            command, capture_output=True, text=True, timeout=_EVALUATE_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        raise WatchError(f"{release}: answering for the locked cases took more than {_EVALUATE_SECONDS:g} s") from None
    if done.returncode:
        raise WatchError(f"{release}: cannot be measured on the locked cases: {done.stderr.strip()[-500:]}")
    return [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]


def compare(champion: Sequence[Case], challenger: Sequence[Case], settings: Retrain) -> Outcome:
    """Compare what both decided for the same cases, at the champion's costs and prevalence.

    The interval is by a bootstrap that draws patients, the same for both (Efron and Tibshirani 1993, chapter 8).

    Raises
    ------
    WatchError
        If the cases are not the same.
    """
    if [_identity(case) for case in champion] != [_identity(case) for case in challenger]:
        raise WatchError("champion and challenger did not answer for the same cases and findings; measure both again")
    everybody = list(range(len(champion)))
    overall = _compared("overall", champion, challenger, everybody, settings.worse_by)
    groups: dict[str, list[int]] = {}
    for index, case in enumerate(champion):
        for name, level in case["subgroups"].items():
            groups.setdefault(f"{name}={level}", []).append(index)
    parts = [
        _compared(where, champion, challenger, rows, settings.subgroup_worse_by)
        for where, rows in sorted(groups.items())
    ]
    every = (overall, *parts)
    worse = [each.where for each in every if each.verdict == "worse"]
    uncertain = [each.where for each in every if each.verdict == "uncertain"]
    if worse:
        return Outcome(state="declined", because=f"worse than the margin: {', '.join(worse)}", compared=every)
    if overall.verdict == "too few to say":
        return Outcome(state="inconclusive", because="too few locked cases to say", compared=every)
    if uncertain:
        because = f"may be worse than the margin, with too few locked cases to say: {', '.join(uncertain)}"
        return Outcome(state="inconclusive", because=because, compared=every)
    few = [each.where for each in parts if each.verdict == "too few to say"]
    few += [f"{name} ({each.where})" for each in every if each.verdict != "too few to say" for name in each.left_out]
    if few and settings.every_subgroup:
        because = f"too few locked cases to say of {', '.join(few)}, and retrain.every_subgroup asks for all of them"
        return Outcome(state="inconclusive", because=because, compared=every)
    because = "not worse than the margin, overall and in every subgroup"
    if few:
        because += f" with enough patients; too few to say of {', '.join(few)}"
    return Outcome(state="validated", because=because, compared=every)


def _identity(case: Case) -> Any:
    return case["patient"], case["subgroups"], {name: each["truth"] for name, each in case["findings"].items()}


def _compared(
    where: str, champion: Sequence[Case], challenger: Sequence[Case], rows: Sequence[int], margin: float
) -> Compared:
    numbers = {patient: n for n, patient in enumerate(dict.fromkeys(champion[row]["patient"] for row in rows))}
    patients = len(numbers)
    rng = np.random.default_rng(_SEED)
    weights = rng.multinomial(patients, np.full(patients, 1 / patients), size=SAMPLES).astype(np.float64)
    weights = np.vstack([np.ones(patients), weights])  # the first is the sample itself
    total, said = np.zeros(len(weights)), False
    left_out: list[str] = []
    for name in sorted({finding for row in rows for finding in champion[row]["findings"]}):
        # By patient: the summed difference over cases with (1) and without (0) the finding, and how many they are.
        sums, counts = np.zeros((2, patients)), np.zeros((2, patients))
        prevalence = 0.0
        for row in rows:
            old, new = champion[row]["findings"].get(name), challenger[row]["findings"].get(name)
            if old is None or new is None or old["truth"] is None:
                continue
            kind, number = int(old["truth"]), numbers[champion[row]["patient"]]
            sums[kind, number] += _cost(new["decision"], old) - _cost(old["decision"], old)
            counts[kind, number] += 1
            prevalence = float(old["prevalence"])
        if min((counts > 0).sum(axis=1)) < LEAST_PATIENTS:
            left_out.append(name)
            continue
        said = True
        total += prevalence * _mean(weights, sums[1], counts[1]) + (1 - prevalence) * _mean(weights, sums[0], counts[0])
    if not said:
        return Compared(
            where=where, patients=patients, margin=margin, verdict="too few to say", left_out=tuple(left_out)
        )
    low, high = (float(value) for value in np.nanpercentile(total[1:], [2.5, 97.5]))
    verdict = "worse" if low > margin else "not worse" if high <= margin else "uncertain"
    return Compared(
        where=where,
        patients=patients,
        difference=round(float(total[0]), 5),
        low=round(low, 5),
        high=round(high, 5),
        margin=margin,
        verdict=verdict,
        left_out=tuple(left_out),
    )


def _mean(weights: Floats, sums: Floats, counts: Floats) -> Floats:
    drawn = weights @ counts
    with np.errstate(invalid="ignore"):
        return np.asarray(weights @ sums / drawn, np.float64)


def _cost(decision: str, finding: Mapping[str, Any]) -> float:
    """Of one decision; what is never decided is left to a person."""
    if decision == "act":
        return 0.0 if finding["truth"] else float(finding["false_alarm"])
    if decision in ("clear", "none"):
        return float(finding["miss"]) if finding["truth"] else 0.0
    return float(finding["deferral"])
