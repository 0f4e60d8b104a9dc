"""A radiologist's verified report, sent by C-STORE, becomes a label beside the observations."""

from __future__ import annotations

import json
from pathlib import Path

import sqlalchemy as sa
from instances import write_file
from listening import listening
from packages import write_package
from prometheus_client import REGISTRY
from pydicom import Dataset
from pydicom.sr.coding import Code
from stepwedge.manifest import load_package
from unit.dicom.test_verified import ABSENT, PRESENT, coded, report
from verified_reports import ABSENT as SR_ABSENT
from verified_reports import INDETERMINATE as SR_INDETERMINATE
from verified_reports import PRESENT as SR_PRESENT
from verified_reports import evaluation, group, measurement_report


def counted(outcome: str) -> float:
    return REGISTRY.get_sample_value("stepwedge_labels_total", {"outcome": outcome}) or 0.0


def kept(database: Path) -> list[dict[str, object]]:
    engine = sa.create_engine(f"sqlite:///{database}")
    try:
        with engine.connect() as db:
            return [json.loads(body) for (body,) in db.execute(sa.text("select body from labels order by id"))]
    finally:
        engine.dispose()


def test_a_verified_report_is_a_label_and_starts_no_work(tmp_path: Path) -> None:
    package = load_package(write_package(tmp_path / "package"))
    spec = package.manifest.findings[0]
    code = (spec.code.value, spec.code.scheme)
    dataset = report(coded(code, PRESENT))
    later = report(coded(code, ABSENT), reader="Roe^Richard")
    later.StudyInstanceUID = dataset.StudyInstanceUID
    own = report(coded(code, ABSENT))
    own.Manufacturer = "Stepwedge"
    files = [write_file(item, tmp_path / f"{i}.dcm") for i, item in enumerate((dataset, later, own))]
    with listening(tmp_path / "data", [package]) as node:
        for _ in range(2):  # sent again, nothing more is said
            result = node.send(*files)
            assert result.returncode == 0, result.stderr
        study = node.node.site.hash(dataset.StudyInstanceUID)
        labels = kept(node.node.settings.database_file)
        assert not any(row.routed for row in node.node.store.instances(study))
    assert [(label["study"], label["finding"], label["value"]) for label in labels] == [
        (study, spec.name, 1.0),
        (study, spec.name, 0.0),
    ]
    assert labels[0]["reader"] != labels[1]["reader"]


def test_a_measurement_report_is_taken_at_its_evaluation_and_never_for_present_by_its_finding_alone(
    tmp_path: Path,
) -> None:
    package = load_package(write_package(tmp_path / "package"))
    spec = package.manifest.findings[0]
    finding = Code(spec.code.value, spec.code.scheme, "Finding")
    unknown = evaluation(Code("1", "99SITE", "Unlikely"), Code("2", "99SITE", "Opinion"))
    sent: list[Dataset] = [
        measurement_report(group(finding, evaluation(SR_PRESENT))),
        measurement_report(group(finding, evaluation(SR_ABSENT))),
        measurement_report(group(finding, evaluation(SR_INDETERMINATE))),
        measurement_report(group(finding, unknown)),
        measurement_report(group(finding, evaluation(SR_PRESENT), evaluation(SR_ABSENT))),
    ]
    addendum = measurement_report(group(finding, unknown))
    addendum.StudyInstanceUID = sent[0].StudyInstanceUID
    files = [write_file(item, tmp_path / f"{i}.dcm") for i, item in enumerate(sent)]
    before = {reason: counted(reason) for reason in ("new", "not_understood", "contradictory")}
    with listening(tmp_path / "data", [package]) as node:
        result = node.send(*files)
        assert result.returncode == 0, result.stderr
        labels = kept(node.node.settings.database_file)
        result = node.send(write_file(addendum, tmp_path / "addendum.dcm"))
        assert result.returncode == 0, result.stderr
        [first, *_, withdrawn] = kept(node.node.settings.database_file)
        studies = [node.node.site.hash(item.StudyInstanceUID) for item in sent]
    assert {label["study"]: label["value"] for label in labels} == {studies[0]: 1.0, studies[1]: 0.0, studies[2]: None}
    assert {reason: counted(reason) - before[reason] for reason in before} == {
        "new": 4,
        "not_understood": 2,
        "contradictory": 1,
    }
    # What the reader said of the first study before does not stand any more.
    assert (withdrawn["study"], withdrawn["reader"], withdrawn["value"]) == (studies[0], first["reader"], None)
