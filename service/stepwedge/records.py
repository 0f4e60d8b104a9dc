"""The frozen records that travel down the pipeline: shapes, units, ranges."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float32]


class State(StrEnum):
    """Where an image, a unit of work or a study stands. All but the first three are ends."""

    QUEUED = "queued"
    RUNNING = "running"
    NOT_ROUTED = "not_routed"  # studies only: no model selects anything in it
    REPORTED = "reported"
    DEFERRED = "deferred"
    REJECTED = "rejected"
    FAILED = "failed"
    SUPERSEDED = "superseded"  # units only: a newer revision, or a newer model, answers instead


class Verdict(StrEnum):
    """What the gate says of an image."""

    ACCEPT = "accept"
    DEFER = "defer"
    REJECT = "reject"

    @property
    def severity(self) -> int:
        """How bad it is: of several verdicts, the largest counts."""
        return list(Verdict).index(self)


class Decision(StrEnum):
    """What the least expected cost makes of a calibrated probability."""

    ACT = "act"  # treat the finding as present
    CLEAR = "clear"  # treat the finding as absent
    DEFER = "defer"  # leave it to a person
    NONE = "none"  # not decided: the policy states no costs, or the finding it depends on was not acted upon
    INCONCLUSIVE = "inconclusive"  # never decided: the package has too little evidence on this finding


# Requested Procedure Priority (0040,1003) that goes ahead of the others (PS3.4 section F.7.2).
URGENT = frozenset({"STAT", "HIGH"})
# What a coded attribute of a header reads as whose value is no term that is known.
OTHER_TERM = "OTHER"

# Every reason that a verdict, a state or a quarantine may carry: its code, and what a person reads.
REASONS: Mapping[str, str] = {
    # The header against the package's intended use.
    "modality_not_intended": "The modality is not one that the model is intended for",
    "body_part_not_intended": "The body part is not one that the model is intended for",
    "body_part_missing": "The header names no body part, and the intended use needs it",
    "view_not_intended": "The view is not one that the model is intended for",
    "view_missing": "The header names no view, and the intended use needs it",
    "age_not_intended": "The patient's age is outside the range that the model is intended for",
    "age_missing": "The header gives no usable age or birth date, and the intended use needs it",
    "multi_frame": "The image has several frames, and the model takes one",
    # The pixel data.
    "image_format_not_supported": "The file is an image of a kind that is not read here (PNG, JPEG and TIFF are)",
    "pixel_data_missing": "The object has no pixel data",
    "pixel_data_truncated": "The pixel data is shorter than the header says",
    "pixel_data_undecodable": "The pixel data cannot be decoded",
    "pixel_data_too_large": "The decoded image would be larger than the limit",
    "photometric_not_supported": "The photometric interpretation is not one of grey-scale images",
    "image_too_small": "The image is smaller than the model's input needs",
    "image_blank": "The image has no content",
    "image_saturated": "Too large a part of the image is at the end of its grey scale",
    "image_truncated": "A large part of the image is one constant band, as after an interrupted readout",
    # What the pixels show, against what the gate was fitted on.
    "content_not_intended": "The image does not look like those that the model was accepted on",
    "image_inverted": "Black and white look exchanged",
    "image_rotated": "The image looks rotated",
    "image_flipped": "Left and right look exchanged",
    "image_cropped": "The image looks like a part of one",
    "image_blurred": "The image is too blurred to read",
    "image_grey_scale": "The grey scale is too narrow, too dark or too bright to show the anatomy",
    "population_not_intended": "The image is of the intended kind, but unlike the patients or equipment of the gate",
    "tamper_suspected": "The answer changes under changes of the image that should not matter, as after tampering",
    "altered_after_receipt": "The pixel data is not what was received",
    # Series and studies as input.
    "stack_too_small": "There are fewer images than the model needs",
    "stack_inconsistent": "The images of the series do not fit together",
    # The decision.
    "inconclusive": "The package has too little evidence to decide on any of its findings",
    "uncertain": "The probability lies where a reading by a person costs least",
    # Failures: each can be tried again by one command.
    "inference_unavailable": "The inference server did not answer",
    "inference_refused": "The inference server refused the request",
    "model_output_invalid": "The model gave an output that is not finite or not of the declared shape",
    "report_failed": "The report could not be written",
    "patient_mismatch": "The images of the study name different patients; nothing is reported for any of them",
    "model_not_configured": "The model that was to answer is no longer in the settings",
    "newer_revision": "A newer revision of the study came before this one was analysed",
    "model_replaced": "The model was replaced by another version before this unit was analysed",
    "instance_missing": "An instance of the study is no longer in the spool",
    "internal_error": "An unexpected error; the log names it",
    "unreadable": "The file cannot be read",
    # Studies and instances.
    "no_model_selects": "No configured model selects an image of this study",
    "not_dicom": "The object cannot be parsed as DICOM",
    "bad_uid": "A UID is missing or not a valid DICOM UID",
    "identity_mismatch": "The SOP class or instance differs between the command and the data set",
    "sop_class_not_supported": "The SOP class is not one that this node stores",
    "too_many_versions": "The instance was sent with different content too often",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Reason:
    """A coded reason. ``detail`` holds facts about the image, never about the patient."""

    code: str
    detail: str = ""

    def __post_init__(self) -> None:
        if self.code not in REASONS:
            raise ValueError(f"unknown reason code {self.code!r}: add it to stepwedge.records.REASONS")

    @property
    def text(self) -> str:
        """The sentence that a person reads."""
        return f"{REASONS[self.code]} ({self.detail})" if self.detail else REASONS[self.code]


@dataclass(frozen=True, kw_only=True, slots=True)
class Header:
    """What the gate and the monitor read of an image's header. Nothing here identifies a patient.

    Coded attributes hold known terms, or ``OTHER_TERM``.
    """

    sop_class_uid: str = ""
    transfer_syntax_uid: str = ""
    modality: str = ""
    body_part: str = ""
    view_position: str = ""
    age_years: float | None = None  # from (0010,1010), else from birth date and study date; 90.0: 90 or older
    sex: str = ""  # M, F, O
    manufacturer: str = ""
    model_name: str = ""
    station: str = ""  # keyed hash of the station name
    photometric_interpretation: str = ""
    rows: int = 0
    columns: int = 0
    bits_stored: int = 0
    frames: int = 1
    exposure: float | None = None  # mAs, (0018,1152)
    kvp: float | None = None  # kV, (0018,0060)
    pixel_spacing: float | None = None  # mm, row spacing
    burned_in_annotation: str = ""
    priority: str = ""
    present: bool = True  # False for a plain image file, which has no header to judge


@dataclass(frozen=True, kw_only=True, slots=True)
class Image:
    """A decoded single-frame grey-scale image.

    ``pixels`` is float32, (rows, columns), after the modality transformation; larger values are brighter
    (MONOCHROME1 is inverted). Padding (0028,0120) is set to the smallest other value. ``window`` is
    (centre, width) in the units of ``pixels``, or None when the header has none. ``value_range`` is the
    smallest and largest value that the stored bits could represent, in the units of ``pixels``.
    """

    pixels: FloatArray
    value_range: tuple[float, float]
    window: tuple[float, float] | None = None
    notes: tuple[str, ...] = ()  # e.g. that a picture was in colour


@dataclass(frozen=True, kw_only=True, slots=True)
class PixelStatistics:
    """Figures of an image on its own grey scale, each of them scaled to 0…1 by ``Image.value_range``."""

    mean: float
    sd: float
    p01: float
    p50: float
    p99: float
    low_share: float  # share of pixels at the smallest value present
    high_share: float  # share of pixels at the largest value present
    entropy: float  # bits, of a 64-bin histogram between p01 and p99
    sharpness: float  # mean absolute difference of neighbours, over the standard deviation


@dataclass(frozen=True, kw_only=True, slots=True)
class GateVerdict:
    """What the gate found. ``measures`` are the figures behind it, by name."""

    verdict: Verdict
    reasons: tuple[Reason, ...] = ()
    measures: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()  # e.g. that a plain image has no header to judge


@dataclass(frozen=True, kw_only=True, slots=True)
class TamperResult:
    """What the tamper check found. ``verdict`` is pass, flagged or not_fitted."""

    verdict: str = "not_fitted"
    measure: float | None = None  # in units of the check: flagged above ``threshold``
    threshold: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class HeatMap:
    """Where in the image the answer on one finding comes from.

    ``values`` is float32 (rows, columns) on 0…1, coarse, over the whole area that the model was shown.
    """

    finding: str
    method: str  # activation_map or occlusion
    values: FloatArray


@dataclass(frozen=True, kw_only=True, slots=True)
class Costs:
    """What errors cost, in any one unit (only ratios matter)."""

    miss: float
    false_alarm: float
    deferral: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Thresholds:
    """Clear below ``clear_below``, act from ``act_from`` up, defer between. Probabilities, 0…1."""

    clear_below: float
    act_from: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Code:
    """A coded concept (PS3.3 section 8.1)."""

    value: str
    scheme: str
    meaning: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """The answer for one finding."""

    name: str
    code: Code
    score: float  # log-odds of the model's own output, uncalibrated
    probability: float  # calibrated, at the policy's prevalence
    prevalence: float  # the prevalence that was applied
    decision: Decision
    thresholds: Thresholds | None = None  # None where the policy states no costs
    costs: Costs | None = None
    calibration: str = ""  # method


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelReference:
    """Which model answered. ``digest`` is SHA-256 over the package's list of file digests, hexadecimal."""

    name: str
    version: str
    digest: str


@dataclass(frozen=True, kw_only=True, slots=True)
class PolicyReference:
    """Under which policy. ``demonstration`` is true until a person has approved the policy with a key."""

    name: str
    version: str
    digest: str
    demonstration: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageResult:
    """What became of one image, or of a stack of images that the model takes together.

    ``instance`` is its key in the spool (a keyed hash), or a path for `predict`; of a stack, that of the middle image,
    whose header and statistics are given, and ``members`` are all of them in order.
    """

    instance: str
    members: tuple[str, ...] = ()
    state: State
    reasons: tuple[Reason, ...]
    header: Header
    gate: GateVerdict
    statistics: PixelStatistics | None = None
    tamper: TamperResult = field(default_factory=TamperResult)
    findings: tuple[Finding, ...] = ()
    scores: Mapping[str, float] = field(default_factory=dict)  # the model's raw outputs by class
    embedding: tuple[float, ...] = ()
    provider: str = ""  # ONNX Runtime execution provider that ran the model
    ms: Mapping[str, float] = field(default_factory=dict)  # milliseconds by stage
    prints: Mapping[str, tuple[float, ...]] = field(default_factory=dict)  # of reference studies only


@dataclass(frozen=True, kw_only=True, slots=True)
class UnitResult:
    """What became of one unit of work: a study's revision under one model."""

    unit: str
    study: str  # keyed hash of the Study Instance UID
    revision: int  # from 1
    state: State
    reasons: tuple[Reason, ...]
    findings: tuple[Finding, ...]
    images: tuple[ImageResult, ...]
    model: ModelReference
    policy: PolicyReference
    created_at: str  # ISO 8601 with offset
