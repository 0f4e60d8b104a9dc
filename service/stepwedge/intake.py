"""The images of one unit of work: read from the spool, checked against their receipt, taken down the pipeline."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pydicom
import structlog

from stepwedge.dicom.attributes import read_dataset
from stepwedge.dicom.decode import decode
from stepwedge.dicom.encoded import split_file
from stepwedge.dicom.geometry import place_of
from stepwedge.dicom.header import read_header
from stepwedge.errors import DecodeError, UnusableInstanceError
from stepwedge.identity import Site
from stepwedge.manifest import selects
from stepwedge.observation import Provenance
from stepwedge.pipeline import Case, Equipment, View, analyse_image, analyse_stack, rejected_image
from stepwedge.records import Image, ImageResult, Reason
from stepwedge.store import StoredInstance

log = structlog.get_logger()


@dataclass(kw_only=True)
class Intake:
    """What became of a unit's images.

    ``views``, and the headers ``shown`` of the images in them, go with ``images``. ``evidence`` are the headers of all
    that was analysed, without pixels, in the order of ``images`` and of their members. ``failure`` is why no answer
    may be made of them.
    """

    images: list[ImageResult] = field(default_factory=list)
    views: list[View] = field(default_factory=list)
    shown: list[pydicom.Dataset | None] = field(default_factory=list)
    evidence: list[pydicom.Dataset] = field(default_factory=list)
    failure: Reason | None = None
    provenance: Provenance = field(default_factory=Provenance)

    def add(
        self, result: ImageResult, view: View | None = None, headers: Mapping[str, pydicom.Dataset] | None = None
    ) -> None:
        """Add one answer; ``headers`` are those of its images, by instance."""
        self.images.append(result)
        self.views.append(view or View())
        self.shown.append((headers or {}).get(result.instance))
        self.evidence += [headers[name] for name in result.members or (result.instance,)] if headers else []


def take_in(
    files: Sequence[Path],
    received: Mapping[Path, StoredInstance],
    *,
    site: Site,
    equipment: Equipment,
    maximum_bytes: int,
) -> Intake:
    """Read the files of a revision and analyse what the model selects among them.

    Parameters
    ----------
    received
        What the index knows of the files from their receipt; a file whose content is no longer that content is not
        analysed, and neither is the unit.

    Raises
    ------
    InferenceUnavailableError
        If the inference server does not answer.
    """
    intake = Intake()
    manifest = equipment.package.manifest
    stack: list[tuple[Case, pydicom.Dataset]] = []
    digests: list[str] = []
    senders: set[str] = set()
    for file in files:
        try:
            contents = file.read_bytes()
        except FileNotFoundError:
            intake.failure = Reason(code="instance_missing")
            continue
        known = received.get(file)
        if known is not None:
            digest = _digest_of(contents)
            if digest != known.digest:
                log.error("altered_after_receipt", instance=known.instance)
                intake.failure = Reason(code="altered_after_receipt")
                return intake
            digests.append(digest)
            senders.add(known.sender)
        try:
            dataset = read_dataset(contents, maximum_bytes=maximum_bytes)
        except (UnusableInstanceError, DecodeError) as error:
            intake.add(rejected_image(_instance_of(file), Reason(code=error.code, detail=str(error))))
            continue
        header = read_header(dataset, site.hash)
        if not selects(manifest, modality=header.modality, has_pixels="PixelData" in dataset):
            continue
        case = Case(
            instance=_instance_of(file),
            header=header,
            place=place_of(dataset),
            decode=_decoder(dataset, maximum_bytes),
        )
        if manifest.input.unit == "instance":
            intake.add(*analyse_image(case, equipment), {case.instance: dataset})
            del dataset.PixelData
        else:
            stack.append((case, dataset))
    headers = {case.instance: dataset for case, dataset in stack}
    for cases in grouped([case for case, _ in stack], manifest.input.unit):
        intake.add(*analyse_stack(cases, equipment), headers)
    for dataset in headers.values():
        del dataset.PixelData
    intake.provenance = Provenance(
        senders=tuple(sorted(senders)), content=site.hash("".join(sorted(digests))) if digests else ""
    )
    return intake


def grouped(cases: Sequence[Case], unit: str) -> list[list[Case]]:
    """The cases that a model of series or studies takes together; those of a study are in the order of its series."""
    series: dict[str, list[Case]] = {}
    for case in cases:
        series.setdefault(case.place.series, []).append(case)
    if unit == "study":
        return [list(cases)] if cases else []
    return list(series.values())


def _digest_of(contents: bytes) -> str:
    """The digest of a file's data set, as it is computed at receipt; empty for what cannot be a file of the spool."""
    try:
        return hashlib.sha256(split_file(contents)[2]).hexdigest()
    except UnusableInstanceError:
        return ""


def _instance_of(file: Path) -> str:
    """The key of an instance, from the name of its file in the spool."""
    return file.name.partition(".")[0]


def _decoder(dataset: pydicom.Dataset, maximum_bytes: int) -> Callable[[], Image]:
    return lambda: decode(dataset, maximum_bytes=maximum_bytes)
