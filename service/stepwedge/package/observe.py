"""Labelled images through the pipeline: what the model answers for them, and the observations that makes."""

from __future__ import annotations

import hashlib
import itertools
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import overload

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from stepwedge.casefile import open_case
from stepwedge.errors import DecodeError, PackageError, UnusableInstanceError
from stepwedge.manifest import Manifest
from stepwedge.observation import Observation
from stepwedge.package.dataset import DatasetError, LabelledImage, age_group
from stepwedge.pipeline import Equipment, analyse_image, combine, observation_of, rejected_image
from stepwedge.records import Header, Image, ImageResult, PolicyReference, Reason, State, UnitResult, Verdict

Progress = Callable[[int, int], None]  # images done, of how many

BASELINE = "baseline.parquet"

# Reasons that say that a file, rather than what it shows, is at fault.
_UNREADABLE = frozenset(
    {
        "not_dicom",
        "unreadable",
        "pixel_data_missing",
        "pixel_data_truncated",
        "pixel_data_undecodable",
        "pixel_data_too_large",
        "image_format_not_supported",
    }
)
_MOST_LISTED = 10  # files in a message
_KEPT_BYTES = 1 << 30  # of decoded images that are kept rather than decoded again
_DIGITS = 4  # decimals of scores and embeddings in a baseline: far below what any detector can tell


@dataclass(frozen=True, kw_only=True)
class Answered:
    """A labelled image with what the pipeline made of it."""

    image: LabelledImage
    result: ImageResult

    @property
    def accepted(self) -> bool:
        """Whether the gate accepted the image: only then do figures count it."""
        return self.result.gate.verdict is Verdict.ACCEPT and bool(self.result.scores)

    @property
    def unreadable(self) -> bool:
        """Whether the file could not be read as an image at all."""
        return any(reason.code in _UNREADABLE for reason in self.result.reasons)

    @property
    def reasons(self) -> str:
        """Why the image was not accepted, for people."""
        return "; ".join(reason.text for reason in self.result.reasons)


class Pictures(Sequence[Image]):
    """The decoded images of labelled files, in order; as many are kept as fit into a limit of memory.

    Iterating again decodes again what was not kept. Safe in threads.
    """

    def __init__(self, files: Sequence[Path], *, kept_bytes: int = _KEPT_BYTES) -> None:
        self._files = files
        self._kept: dict[Path, Image] = {}
        self._room = kept_bytes

    def __len__(self) -> int:
        return len(self._files)

    @overload
    def __getitem__(self, index: int) -> Image: ...
    @overload
    def __getitem__(self, index: slice) -> Pictures: ...
    def __getitem__(self, index: int | slice) -> Image | Pictures:
        if isinstance(index, slice):
            return self.only(self._files[index])
        return self.read(self._files[index], open_case(self._files[index]).decode)

    def __iter__(self) -> Iterator[Image]:
        return (self[index] for index in range(len(self)))

    def only(self, files: Sequence[Path]) -> Pictures:
        """The images of some files, with what is kept of them."""
        chosen = Pictures(files, kept_bytes=0)
        chosen._kept = self._kept
        return chosen

    def read(self, file: Path, decoded: Callable[[], Image]) -> Image:
        """The image of a file: as kept, or decoded. Raises DecodeError."""
        kept = self._kept.get(file)
        if kept is not None:
            return kept
        image = decoded()
        if image.pixels.nbytes <= self._room:
            self._room -= image.pixels.nbytes
            self._kept[file] = image
        return image


def answers(
    images: Sequence[LabelledImage],
    equipment: Equipment,
    *,
    pictures: Pictures | None = None,
    progress: Progress | None = None,
) -> list[Answered]:
    """Take images down the pipeline, several at a time; in the order of ``images``.

    Parameters
    ----------
    pictures
        Where decoded images are kept for later.
    """

    done = itertools.count(1)  # the next number is taken in one step, whatever the threads do

    def answer(image: LabelledImage) -> Answered:
        try:
            case = open_case(image.file)
            if pictures is not None:
                decoded = case.decode
                case = replace(case, decode=lambda: pictures.read(image.file, decoded))
            result, _ = analyse_image(case, equipment)
        except (UnusableInstanceError, DecodeError) as error:
            result = rejected_image(str(image.file), Reason(code=error.code, detail=str(error)))
        except OSError as error:
            result = rejected_image(str(image.file), Reason(code="unreadable", detail=error.strerror or ""))
        if progress is not None:
            progress(next(done), len(images))
        return Answered(image=image, result=result)

    pool = ThreadPoolExecutor(max_workers=os.cpu_count() or 1)
    try:
        return list(pool.map(answer, images))
    finally:
        pool.shutdown(cancel_futures=True)


def refuse_unreadable(answered: Sequence[Answered], *, allowed: int) -> None:
    """Raise DatasetError where more files than ``allowed`` cannot be read as images."""
    unreadable = [item for item in answered if item.unreadable]
    if len(unreadable) <= allowed:
        return
    shown = "\n".join(f"{item.image.file}: {item.reasons}" for item in unreadable[:_MOST_LISTED])
    more = f"\nand {len(unreadable) - _MOST_LISTED} more" if len(unreadable) > _MOST_LISTED else ""
    raise DatasetError(
        f"{shown}{more}\n{len(unreadable)} of {len(answered)} images cannot be read, and {allowed} may be "
        "(--allow-unreadable); mend them or take them out of the table"
    )


def refuse_failed(answered: Sequence[Answered]) -> None:
    """Raise PackageError where the model itself failed on an image."""
    failed = [item for item in answered if item.result.state is State.FAILED and not item.unreadable]
    if failed:
        raise PackageError(
            f"the model failed on {len(failed)} of {len(answered)} images, first on {failed[0].image.file}: "
            f"{failed[0].reasons}; mend the model"
        )


def require_accepted(answered: Sequence[Answered], fold: str) -> list[Answered]:
    """The accepted images of a fold. Raises DatasetError where there are none, saying why they were refused."""
    accepted = [item for item in answered if item.accepted]
    if accepted:
        return accepted
    if not answered:
        raise DatasetError(f"the {fold} fold has no images; give every fold some, or leave the column fold out")
    reasons = Counter(reason.text for item in answered for reason in item.result.reasons)
    said = "; ".join(f"{text} ({count} images)" for text, count in reasons.most_common(3))
    raise DatasetError(
        f"the gate refuses all {len(answered)} images of the {fold} fold: {said}. Correct intended_use or input in "
        "model.yaml, or give other images"
    )


def class_outputs(answered: Sequence[Answered], manifest: Manifest) -> NDArray[np.float32]:
    """The model's outputs, (n, classes)."""
    rows = [[item.result.scores[name] for name in manifest.output.classes] for item in answered]
    return np.asarray(rows, np.float32).reshape(len(rows), len(manifest.output.classes))


def subgroups(answered: Sequence[Answered]) -> dict[str, list[str]]:
    """The subgroup of each image by the subgroup's name: from the table, else from the header; empty is unknown."""
    each = [{**_from_header(item.result.header), **item.image.subgroups} for item in answered]
    return {name: [groups.get(name, "") for groups in each] for name in sorted({name for g in each for name in g})}


def baseline(answered: Sequence[Answered], equipment: Equipment, *, created_at: str) -> list[Observation]:
    """What the monitor would have been told of each image; those that cannot be read are left out.

    A package's digest covers its baseline, so the observations hold none. Their keys are hashes of places in the
    data set: a file's name may identify a patient.
    """
    manifest, policy = equipment.package.manifest, equipment.policy
    rows = []
    for place, item in enumerate(answered):
        if item.unreadable:
            continue
        key = hashlib.sha256(f"{manifest.name} {manifest.version} baseline {place}".encode()).hexdigest()[:32]
        image = replace(
            item.result,
            instance=key,
            scores={name: round(value, _DIGITS) for name, value in item.result.scores.items()},
            embedding=tuple(round(value, _DIGITS) for value in item.result.embedding),
        )
        state, reasons, findings = combine([image], equipment)
        unit = UnitResult(
            unit=key,
            study=key,
            revision=1,
            state=state,
            reasons=reasons,
            findings=findings,
            images=(image,),
            model=replace(equipment.package.reference, digest=""),
            policy=policy.reference if policy else _NO_POLICY,
            created_at=created_at,
        )
        rows.append(observation_of(unit, {}))
    return rows


def write_baseline(folder: Path, observations: Sequence[Observation]) -> None:
    """Write ``baseline.parquet``: a column for each field of an observation, without the times by stage."""
    rows: list[dict[str, object]] = []
    for observation in observations:
        row: dict[str, object] = asdict(observation)
        del row["ms"]  # a record without fields, which Parquet has not
        rows.append(row)
    table = pa.Table.from_pylist(rows)
    # A column of nothing but blanks has no type of its own, and doubles would double the embedding's size.
    typed: Mapping[pa.DataType, pa.DataType] = {
        pa.null(): pa.float64(),
        pa.list_(pa.null()): pa.list_(pa.string()),
        pa.list_(pa.float64()): pa.list_(pa.float32()),
    }
    fields = [_as_typed(field, typed) for field in table.schema]
    pq.write_table(table.cast(pa.schema(fields)), folder / BASELINE, compression="zstd")


def _as_typed(field: pa.Field, typed: Mapping[pa.DataType, pa.DataType]) -> pa.Field:
    if field.name == "embedding":
        return pa.field(field.name, pa.list_(pa.float32()))
    return pa.field(field.name, typed.get(field.type, field.type))


_NO_POLICY = PolicyReference(name="none", version="", digest="", demonstration=True)


def _from_header(header: Header) -> dict[str, str]:
    if not header.present:
        return {}
    known = {
        "sex": header.sex,
        "view": header.view_position,
        "manufacturer": header.manufacturer,
        "age": "" if header.age_years is None else age_group(header.age_years),
    }
    return {name: value for name, value in known.items() if value}
