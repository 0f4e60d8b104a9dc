"""Reports of the Measurement Report template as a reading workstation writes them, made with highdicom."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from highdicom import sr
from instances import make_instance
from pydicom import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.uid import generate_uid

PRESENCE = Code("705057003", "SCT", "Presence")
PRESENT = Code("52101004", "SCT", "Present")
ABSENT = Code("2667000", "SCT", "Absent")
ABSENCE = Code("272519000", "SCT", "Absence")
INDETERMINATE = Code("82334004", "SCT", "Indeterminate")
CHEST = Code("816094009", "SCT", "Chest")
LUNG_LEFT = Code("44029006", "SCT", "Left lung")


def evaluation(value: Code, name: Code = PRESENCE) -> Any:
    """A qualitative evaluation of a group's finding."""
    return sr.QualitativeEvaluation(name=name, value=value)


def size(value: float, unit: Any = codes.UCUM.Millimeter) -> Any:
    """A length that was measured."""
    return sr.Measurement(name=codes.SCT.Length, value=value, unit=unit)


def group(
    finding: Code,
    *evaluations: Any,
    measurements: Sequence[Any] = (),
    site: Code | None = None,
    algorithm: bool = False,
) -> Any:
    """A measurement group (TID 1501) of a finding."""
    return sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=sr.TrackingIdentifier(uid=generate_uid(), identifier="1"),
        finding_type=finding,
        finding_sites=[sr.FindingSite(anatomic_location=site)] if site else None,
        algorithm_id=sr.AlgorithmIdentification(name="finder", version="1") if algorithm else None,
        measurements=list(measurements),
        qualitative_evaluations=list(evaluations),
    )


def measurement_report(*groups: Any, device: bool = False, reader: str = "Doe^Jane") -> Dataset:
    """A verified Comprehensive SR of the Measurement Report template, observed by a person or a device."""
    if device:
        observer = sr.ObserverContext(
            observer_type=codes.DCM.Device,
            observer_identifying_attributes=sr.DeviceObserverIdentifyingAttributes(uid=generate_uid()),
        )
        context = sr.ObservationContext(observer_device_context=observer)
    else:
        observer = sr.ObserverContext(
            observer_type=codes.DCM.Person,
            observer_identifying_attributes=sr.PersonObserverIdentifyingAttributes(name=reader),
        )
        context = sr.ObservationContext(observer_person_context=observer)
    content = sr.MeasurementReport(
        observation_context=context,
        procedure_reported=Code("399208008", "SCT", "Plain chest X-ray"),
        imaging_measurements=list(groups),
    )
    image = make_instance()
    image.PatientBirthDate, image.ReferringPhysicianName = "20200101", ""
    image.StudyID, image.SeriesNumber, image.InstanceNumber, image.AccessionNumber = "1", 1, 1, "A1"
    return sr.ComprehensiveSR(
        evidence=[image],
        content=content,
        series_instance_uid=generate_uid(),
        series_number=1,
        sop_instance_uid=generate_uid(),
        instance_number=1,
        manufacturer="Acme",
        is_complete=True,
        is_final=True,
        is_verified=True,
        verifying_observer_name=reader,
        verifying_organization="A hospital",
    )
