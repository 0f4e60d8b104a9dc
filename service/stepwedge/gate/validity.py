"""Whether an image is one that the model is intended for, and whether it is an intact image at all.

Two looks: at the header, against the package's intended use, and at the structure of the pixels. What the image shows
is not judged here. The limits on pixels were measured on 4,416 paediatric and 1,309 adult frontal chest radiographs
(JPEG, short side 256 pixels) and on radiographs of chest, hip, limb and breast at full size; none of those 5,739
images is rejected. "Real maximum" below is the largest figure among them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from stepwedge.manifest import Input, IntendedUse
from stepwedge.records import OTHER_TERM, FloatArray, GateVerdict, Header, Image, PixelStatistics, Reason, Verdict

# --- The header ---------------------------------------------------------------------------------------------------

NO_HEADER_NOTE = "The image has no header: modality, body part, view and age were not checked"

# Other spellings of a defined term. Anything else, such as "AP SUPINE", is intended only where a package names it.
_VIEW_SYNONYMS = {
    "ANTEROPOSTERIOR": "AP",
    "ANTERO-POSTERIOR": "AP",
    "POSTEROANTERIOR": "PA",
    "POSTERO-ANTERIOR": "PA",
    "LAT": "LATERAL",
}
_BODY_PART_SYNONYMS = {"THORAX": "CHEST"}
# A package for lateral views takes either side.
_LATERAL = {"LL", "RL", "LATERAL"}

_OLDEST_SHOWN_YEARS = 89  # ages above identify a person (45 CFR 164.514(b)(2)(i)(C))
_SHOWABLE = re.compile(r"[A-Z0-9 _/+-]{1,16}")  # what a Code String may hold (PS3.5 section 6.2); more is free text


def judge_header(header: Header, intended: IntendedUse) -> GateVerdict:
    """Hold a header against the intended use.

    Another modality, body part or view, and several frames, reject. An age outside the range defers, and so does an
    attribute that the intended use needs and the header lacks. All reasons are given; the worst verdict wins.
    """
    if not header.present:
        return GateVerdict(verdict=Verdict.ACCEPT, notes=(NO_HEADER_NOTE,))
    found = [
        *_judge_term("modality", header.modality, intended.modality, {}),
        *_judge_term("body_part", header.body_part, intended.body_part, _BODY_PART_SYNONYMS),
        *_judge_term("view", header.view_position, intended.view, _VIEW_SYNONYMS),
        *_judge_age(header.age_years, intended.age_years),
    ]
    if header.frames > 1:
        found.append((Verdict.REJECT, Reason(code="multi_frame", detail=f"{header.frames} frames")))
    return GateVerdict(verdict=_worst(verdict for verdict, _ in found), reasons=tuple(reason for _, reason in found))


def _worst(verdicts: Iterable[Verdict]) -> Verdict:
    return max(verdicts, key=lambda verdict: verdict.severity, default=Verdict.ACCEPT)


def _judge_term(
    attribute: str, value: str, intended: list[str], synonyms: dict[str, str]
) -> list[tuple[Verdict, Reason]]:
    if not intended:
        return []
    wanted = ", ".join(intended)
    term = _term(value, synonyms)
    if not term and attribute != "modality":  # modality is never empty in a valid object (type 1)
        return [(Verdict.DEFER, Reason(code=f"{attribute}_missing", detail=f"intended {wanted}"))]
    accepted = {_term(item, synonyms) for item in intended}
    if "LATERAL" in accepted and attribute == "view":
        accepted |= _LATERAL
    if term in accepted and term != OTHER_TERM:
        return []
    known = term != OTHER_TERM and _SHOWABLE.fullmatch(term)
    shown = term if known else "not a defined term" if term else "none stated"
    return [(Verdict.REJECT, Reason(code=f"{attribute}_not_intended", detail=f"{shown}, intended {wanted}"))]


def _term(value: str, synonyms: dict[str, str]) -> str:
    term = " ".join(value.upper().split())
    return synonyms.get(term, term)


def _judge_age(years: float | None, intended: tuple[float, float] | None) -> list[tuple[Verdict, Reason]]:
    if intended is None:
        return []
    wanted = f"intended {intended[0]:g} to under {intended[1]:g}"
    if years is None:
        return [(Verdict.DEFER, Reason(code="age_missing", detail=wanted))]
    if intended[0] <= years < intended[1]:
        return []
    shown = f"over {_OLDEST_SHOWN_YEARS}" if years >= _OLDEST_SHOWN_YEARS + 1 else f"{int(years)}"
    return [(Verdict.DEFER, Reason(code="age_not_intended", detail=f"age {shown}, {wanted}"))]


# --- The pixels ---------------------------------------------------------------------------------------------------

_SAMPLED_PIXELS = 250_000  # enough for a percentile to within 0.1 %; the stride that gives it is deterministic
_ENTROPY_BINS = 64

# Of the input's rows and columns: below half, a model sees mostly interpolation.
_SMALLEST_OF_INPUT = 0.5
# p99 - p01 as a share of the stored range: one grey level in 256. Real minimum .36; .022 for a CT in 16 bits.
_BLANK_CONTRAST = 0.004
# Mean difference of neighbours over the standard deviation: 1.13 for noise alone (2/√π). Real maximum .124.
_NOISE_SHARPNESS = 0.7
# Share of pixels at the largest value. Real maximum .03 for chests, .42 for a limb with clipped air around it.
_SATURATED_HIGH = 0.6
# Share of pixels at the smallest value. Real maximum .44 for chests, .48 behind a shutter, .68 for a breast.
_SATURATED_LOW = 0.85
# Share of pixels at either end together: less than a twentieth of the image is left. Real maximum .69.
_SATURATED_TOGETHER = 0.95
# Constant rows at the top or the bottom, as a share of the rows. Real maximum .156 without a band opposite.
_MISSING_ROWS = 0.22
# The same where the band's grey is not near black or white, as decoders fill: the real bands are all black (≤ 2 / 255).
_FILLED_ROWS = 0.05
_NEAR_END = 0.05  # of the range of values present
# A band opposite this large, as a share of the rows, makes both a shutter or collimation.
_OPPOSITE_BAND = 0.01
# Constant or repeated rows with image on both sides, as a share of the rows and in rows. Real maximum .012, 3 rows.
_LOST_ROWS = 0.03
_LOST_ROWS_LEAST = 8
# Share of the rows that must lie on either side for a band not to count as one of the edge (markers, slivers of film).
_FLANK = 0.1
# A lost band is cut straight through the image: this share of the row next to it differs from the band. The border of
# a limb or a breast begins narrow.
_CUT_SHARE = 0.5
_CUT_DISTANCE = 2  # rows between the band and that row, for the ringing of lossy compression
_CUT_DIFFERENCE = 0.02  # of the range of values present


def pixel_statistics(image: Image) -> PixelStatistics:
    """Figures of an image on its own grey scale. Large images are sampled with a fixed stride."""
    pixels = image.pixels
    low, high = image.value_range
    scale = max(high - low, float(np.finfo(np.float32).tiny))
    step = max(1, int(np.sqrt(pixels.size / _SAMPLED_PIXELS)))
    sample = (pixels[::step, ::step].astype(np.float64) - low) / scale
    p01, p50, p99 = (float(p) for p in np.percentile(sample, (1, 50, 99)))
    sd = float(sample.std())
    return PixelStatistics(
        mean=float(sample.mean()),
        sd=sd,
        p01=p01,
        p50=p50,
        p99=p99,
        low_share=float(np.mean(pixels == pixels.min())),
        high_share=float(np.mean(pixels == pixels.max())),
        entropy=_entropy(sample, p01, p99),
        sharpness=_neighbour_difference(pixels, step) / scale / sd if sd > 0 else 0.0,
    )


def _entropy(sample: NDArray[np.float64], low: float, high: float) -> float:
    if high <= low:
        return 0.0
    counts, _ = np.histogram(np.clip(sample, low, high), bins=_ENTROPY_BINS, range=(low, high))
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log2(shares)).sum())


def _neighbour_difference(pixels: FloatArray, step: int) -> float:
    """Mean absolute difference of a pixel and the next one, down and to the right, at every ``step``-th pixel."""
    differences = []
    if pixels.shape[0] > 1:
        differences.append(np.abs(pixels[1::step, ::step] - pixels[:-1:step, ::step]).mean(dtype=np.float64))
    if pixels.shape[1] > 1:
        differences.append(np.abs(pixels[::step, 1::step] - pixels[::step, :-1:step]).mean(dtype=np.float64))
    return float(np.mean(differences)) if differences else 0.0


def judge_pixels(image: Image, statistics: PixelStatistics, spec: Input) -> GateVerdict:
    """Judge the structure of an image: large enough, not blank, not saturated, nothing lost in readout or transfer.

    ``measures`` are the statistics and, as shares of the rows, ``edge_band_rows`` (constant rows at one edge, cut
    straight), ``inner_band_rows`` (constant rows within) and ``repeated_rows`` (identical rows within).
    """
    bands = _bands(image.pixels)
    reasons = [
        *_judge_size(image.pixels, spec),
        *_judge_content(statistics),
        *_judge_saturation(statistics),
    ]
    if not reasons:  # a blank image is one band; once is enough
        reasons = _judge_bands(bands)
    return GateVerdict(
        verdict=Verdict.REJECT if reasons else Verdict.ACCEPT,
        reasons=tuple(reasons),
        measures=asdict(statistics)
        | {
            "edge_band_rows": bands.edge,
            "inner_band_rows": bands.inner,
            "repeated_rows": bands.repeated,
        },
        notes=image.notes,
    )


def _judge_size(pixels: FloatArray, spec: Input) -> list[Reason]:
    rows, columns = pixels.shape
    if rows >= _SMALLEST_OF_INPUT * spec.rows and columns >= _SMALLEST_OF_INPUT * spec.columns:
        return []
    return [Reason(code="image_too_small", detail=f"{rows} × {columns}, the input is {spec.rows} × {spec.columns}")]


def _judge_content(statistics: PixelStatistics) -> list[Reason]:
    contrast = statistics.p99 - statistics.p01
    if contrast < _BLANK_CONTRAST:
        return [Reason(code="image_blank", detail=f"contrast {contrast:.2%} of the grey scale")]
    if statistics.sharpness > _NOISE_SHARPNESS:
        return [Reason(code="image_blank", detail="noise only")]
    return []


def _judge_saturation(statistics: PixelStatistics) -> list[Reason]:
    low, high = statistics.low_share, statistics.high_share
    if high > _SATURATED_HIGH or low > _SATURATED_LOW or low + high > _SATURATED_TOGETHER:
        return [Reason(code="image_saturated", detail=f"{low:.0%} at the smallest value, {high:.0%} at the largest")]
    return []


@dataclass(frozen=True, kw_only=True, slots=True)
class _Bands:
    """Shares of the rows, 0…1."""

    edge: float  # the largest band at the top or bottom that has none opposite and is cut straight
    edge_filled: bool  # its grey is neither near the smallest nor near the largest value present
    inner: float
    repeated: float
    rows: int


def _judge_bands(bands: _Bands) -> list[Reason]:
    if bands.edge >= (_FILLED_ROWS if bands.edge_filled else _MISSING_ROWS):
        return [Reason(code="image_truncated", detail=f"{bands.edge:.0%} of the rows at one edge are constant")]
    least = max(_LOST_ROWS, _LOST_ROWS_LEAST / bands.rows)
    if bands.inner >= least:
        return [Reason(code="image_truncated", detail=f"{bands.inner:.0%} of the rows within are constant")]
    if bands.repeated >= least:
        return [Reason(code="image_truncated", detail=f"{bands.repeated:.0%} of the rows repeat one row")]
    return []


def _bands(pixels: FloatArray) -> _Bands:
    """Look for rows that were lost: readout and transfer go by rows, so columns are not judged."""
    rows = pixels.shape[0]
    smallest, largest = pixels.min(axis=1), pixels.max(axis=1)
    low, high = float(smallest.min()), float(largest.max())
    constant = smallest == largest
    edge, edge_filled, inner = 0.0, False, 0.0
    top, bottom = _run_from_edge(smallest, constant), _run_from_edge(smallest[::-1], constant[::-1])
    if top < rows:
        for length, opposite, ordered in ((top, bottom, pixels), (bottom, top, pixels[::-1])):
            share = length / rows
            if share > edge and opposite / rows < _OPPOSITE_BAND and _cut_straight(ordered, length, high - low):
                grey = (float(ordered[0, 0]) - low) / (high - low)
                edge, edge_filled = share, _NEAR_END < grey < 1 - _NEAR_END
    within = slice(int(_FLANK * rows), rows - int(_FLANK * rows))
    for start, stop in _runs(constant):
        if start >= within.start and stop <= within.stop and _cut_straight(pixels[start:], stop - start, high - low):
            inner = max(inner, (stop - start) / rows)
    same = np.zeros(rows, bool)
    same[1:] = (pixels[1:] == pixels[:-1]).all(axis=1) & ~constant[1:]
    repeated = max(((stop - start) / rows for start, stop in _runs(same)), default=0.0)
    return _Bands(edge=edge, edge_filled=edge_filled, inner=inner, repeated=repeated, rows=rows)


def _run_from_edge(values: NDArray[np.float32], constant: NDArray[np.bool_]) -> int:
    """How many constant rows of one value lie at the beginning."""
    other = np.flatnonzero(~(constant & (values == values[0])))
    return int(other[0]) if other.size else len(values)


def _cut_straight(pixels: FloatArray, length: int, contrast: float) -> bool:
    """Whether a band of ``length`` rows at the beginning ends across most of the width at once."""
    row = min(length + _CUT_DISTANCE, pixels.shape[0] - 1)
    differs = np.abs(pixels[row] - pixels[0, 0]) > _CUT_DIFFERENCE * contrast
    return bool(differs.mean() >= _CUT_SHARE)


def _runs(mask: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Where runs of true start and stop."""
    edges = np.flatnonzero(np.diff(np.concatenate(([0], mask.astype(np.int8), [0]))))
    return [(int(start), int(stop)) for start, stop in zip(edges[::2], edges[1::2], strict=True)]
