"""A radiologist's report, sent by C-STORE, reaches the bets of the monitor: by the database that both share."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from pathlib import Path

from instances import write_file
from listening import listening
from packages import write_package
from pydicom.sr.coding import Code
from stand_in_detectors import StandInDetectors
from stepwatch.database import Database
from stepwatch.settings import Detection, Model, Performance, Settings
from stepwatch.sidecar import Sidecar
from stepwedge.dicom.verified import reader_code
from stepwedge.manifest import load_package
from verified_reports import ABSENT, PRESENT, evaluation, group, measurement_report
from watched import FINDINGS, MONDAY, department, write_watched_package


def test_reports_of_the_audits_reader_are_bet_upon_and_those_of_others_are_not(tmp_path: Path) -> None:
    package = load_package(write_package(tmp_path / "package"))
    spec = package.manifest.findings[0]
    finding = Code(spec.code.value, spec.code.scheme, "Finding")
    digest = write_watched_package(tmp_path / "watched", department(3, start=MONDAY), findings=[spec.name])
    reports = [
        measurement_report(group(finding, evaluation(ABSENT)), reader="Blind^Reader"),
        measurement_report(group(finding, evaluation(PRESENT)), reader="Blind^Reader"),
        measurement_report(group(finding, evaluation(PRESENT)), reader="Other^Reader"),
    ]
    files = [write_file(report, tmp_path / f"{number}.dcm") for number, report in enumerate(reports)]
    with listening(tmp_path / "data", [package]) as node:
        site, store = node.node.site, node.node.store
        rows = [
            replace(row, probabilities={spec.name: row.probabilities[FINDINGS[0]]}, pixel_mean=0.4)
            for row in department(40, start=MONDAY, seed=2, digest=digest)
            if FINDINGS[0] in row.probabilities
        ]
        for report, row in zip(reports, rows, strict=False):
            study = site.hash(report.StudyInstanceUID)
            answered = replace(row, study=study, unit=f"{study}.1.{digest[:12]}")
            store.add_observation(answered.unit, answered.to_json())
        result = node.send(*files)
        assert result.returncode == 0, result.stderr
        settings = Settings(
            database_url=f"sqlite:///{node.node.settings.database_file}",
            models=[Model(package=tmp_path / "watched")],
            detection=Detection(save_seconds=0),
            performance=Performance(audit_share=1.0, audit_readers=[reader_code(site, "Blind^Reader")]),
        )
        database, stand_ins = Database.open(settings.database_url), StandInDetectors()
        sidecar = Sidecar(settings, database, stand_ins, now=lambda: MONDAY + timedelta(days=400))
        try:
            sidecar.look()
            sidecar.look()
        finally:
            database.close()
    said = [(probability, value) for _, probability, value in stand_ins.monitors["1.1.0"].said]
    assert said == [(rows[0].probabilities[spec.name], 0.0), (rows[1].probabilities[spec.name], 1.0)]
