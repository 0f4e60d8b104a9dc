"""The heat map as something that a viewer can switch on and off: a Grayscale Softcopy Presentation State.

It draws the contours of the heat on a graphic layer of its own over the image that was analysed. A Segmentation would
need a frame of reference, which projection radiographs have not, and would call a heat map a structure; a Parametric
Map few viewers show. A presentation state is shown by most, and names its image at full resolution.

A presentation state replaces the whole way from stored values to grey (PS3.4 section N.2): what the image says of it
has to be said again, or the image looks different as soon as the contours are switched on. Where that cannot be done
there is no presentation state.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from highdicom import pr
from highdicom.color import CIELabColor
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.sequence import Sequence as DicomSequence

from stepwedge.dicom import wording
from stepwedge.dicom.codestream import FOREIGN_ERRORS
from stepwedge.dicom.context import (
    MANUFACTURER,
    NodeIdentity,
    floats,
    new_object,
    numbers,
    reference,
    set_text,
)
from stepwedge.dicom.heatmap import PlacedHeat, contours, explained_finding, image_size
from stepwedge.dicom.texts import element_count, element_text, element_values
from stepwedge.records import UnitResult

PRESENTATION_STATE = "1.2.840.10008.5.1.4.1.1.11.1"

_LABEL = "AI HEAT MAP"  # Content Label and Graphic Layer, Code Strings
_COLOUR = (70.0, 35.0, 70.0)  # orange, L*a*b*; viewers on grey screens take white
_TEXT_BOX = (0.01, 0.01, 0.75, 0.09)  # left, top, right, bottom as parts of the displayed area: the upper left corner
_TEXT_LENGTH = 1024  # characters (Short Text)
_FILLED_BITS = 8  # stored bits whose whole range an image is taken to use; of more, what is used has to be said
_VOI_FUNCTIONS = {"LINEAR", "LINEAR_EXACT", "SIGMOID"}
# highdicom warns of a UID that is out of form, and quotes it: it gets this one, and the true one takes its place.
_STAND_IN = "2.25.1"
_STATE_MODULES = (
    "GraphicAnnotationSequence",
    "GraphicLayerSequence",
    "DisplayedAreaSelectionSequence",
    "ContentLabel",
    "ContentDescription",
)


class _NotRestatableError(Exception):
    """What an image says of its grey scale cannot be said again."""


def presentation_object(result: UnitResult, placed: PlacedHeat, *, node: NodeIdentity) -> Dataset | None:
    """The presentation state (PS3.3 section A.33.1); None where the image's grey scale cannot be restated."""
    finding = explained_finding(result, placed)
    size = image_size(placed.image)
    if finding is None or size is None:
        return None
    try:
        grey_scale = _grey_scale(placed.image)
    except _NotRestatableError:
        return None
    lines = [line for level in wording.LEVELS for line in contours(placed, level)]
    text = "\r\n".join([*([wording.DEMONSTRATION] if result.policy.demonstration else []), wording.heat_line(finding)])
    stand_in = _stand_in(*size)
    layer = pr.GraphicLayer(
        layer_name=_LABEL,
        order=1,
        description=f"AI heat map of {result.model.name}",
        display_color=CIELabColor(*_COLOUR),
    )
    annotation = pr.GraphicAnnotation(
        referenced_images=[stand_in],
        graphic_layer=layer,
        graphic_objects=[pr.GraphicObject(graphic_type="POLYLINE", graphic_data=line, units="PIXEL") for line in lines],
        text_objects=[
            pr.TextObject(
                text_value=_plain(text)[:_TEXT_LENGTH],
                units="DISPLAY",
                bounding_box=_TEXT_BOX,
                text_justification="LEFT",
            )
        ],
    )
    state = pr.GrayscaleSoftcopyPresentationState(
        referenced_images=[stand_in],
        series_instance_uid=_STAND_IN,
        series_number=1,
        sop_instance_uid=_STAND_IN,
        instance_number=1,
        manufacturer=MANUFACTURER,
        manufacturer_model_name=MANUFACTURER,
        software_versions=MANUFACTURER,
        device_serial_number=MANUFACTURER,
        content_label=_LABEL,
        content_description=f"AI heat map: {wording.label(finding)}"[:64],
        graphic_annotations=[annotation],
        graphic_layers=[layer],
    )
    made = new_object("pr", PRESENTATION_STATE, result, placed.image, node)
    for keyword in _STATE_MODULES:
        made[keyword] = state[keyword]
    made.SeriesDescription = _plain(wording.heat_series_description(result))
    made.Laterality = None  # of a series of images; this one shows none itself
    made.ContentCreatorName = ""  # no person
    made.PresentationCreationDate, made.PresentationCreationTime = made.ContentDate, made.ContentTime
    del made.ContentDate, made.ContentTime
    made.GraphicAnnotationSequence[0].ReferencedImageSequence = [reference(placed.image)]
    _set_displayed_area(made.DisplayedAreaSelectionSequence[0], placed.image)
    series = Dataset()
    set_text(series, "SeriesInstanceUID", element_text(placed.image, "SeriesInstanceUID"))
    series.ReferencedImageSequence = [reference(placed.image)]
    made.ReferencedSeriesSequence = [series]
    for element in grey_scale:
        made[element.tag] = element
    return made


def _plain(text: str) -> str:
    """Viewers draw graphic annotations in fonts that may have no dash."""
    return text.replace("–", "-")


def _stand_in(rows: int, columns: int) -> Dataset:
    """What highdicom needs to know of the image, without its identity."""
    image = Dataset()
    for keyword in ("SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"):
        setattr(image, keyword, _STAND_IN)
    image.SOPClassUID = "1.2.840.10008.5.1.4.1.1.1"  # Computed Radiography: one frame, no special rules
    for keyword in ("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber"):
        setattr(image, keyword, "")
    for keyword in ("StudyID", "StudyDate", "StudyTime", "ReferringPhysicianName"):
        setattr(image, keyword, "")
    image.Rows, image.Columns, image.SamplesPerPixel = rows, columns, 1
    return image


def _set_displayed_area(area: Dataset, image: Dataset) -> None:
    """All of the image, in its own shape (PS3.3 section C.10.4)."""
    for keyword in ("PixelSpacing", "ImagerPixelSpacing"):
        spacing = floats(image, keyword, 2)
        if spacing and min(spacing) > 0:
            area.PresentationPixelSpacing = spacing
            area.pop("PresentationPixelAspectRatio", None)
            return
    ratio = [text for text in element_values(image, "PixelAspectRatio") if text.isdecimal() and int(text) > 0]
    if len(ratio) == 2:
        area.PresentationPixelAspectRatio = [int(text) for text in ratio]


def _grey_scale(image: Dataset) -> Dataset:
    """The way from stored values to grey, as the image states it: Modality LUT, Softcopy VOI LUT, Presentation LUT.

    Raises
    ------
    _NotRestatableError
        If the image is not of one grey scale, or states it in a form that cannot be read.
    """
    photometric = element_text(image, "PhotometricInterpretation")
    if photometric not in {"MONOCHROME1", "MONOCHROME2"} or element_count(image, "SamplesPerPixel") not in {None, 1}:
        raise _NotRestatableError
    made = Dataset()
    _add_modality(made, image)
    _add_window(made, image)
    _add_shutter(made, image)
    # The smallest value is shown black with IDENTITY and white with INVERSE, whatever the image is (C.11.6.1.2).
    made.PresentationLUTShape = "INVERSE" if photometric == "MONOCHROME1" else "IDENTITY"
    return made


def _add_modality(made: Dataset, image: Dataset) -> None:
    tables = _items(image, "ModalityLUTSequence")
    if tables:
        item = _table(tables[0], image)
        item.ModalityLUTType = element_text(tables[0], "ModalityLUTType") or "US"
        made.ModalityLUTSequence = [item]
        return
    if "RescaleSlope" not in image and "RescaleIntercept" not in image:
        return
    slope, intercept = numbers(image, "RescaleSlope"), numbers(image, "RescaleIntercept")
    if len(slope) != 1 or len(intercept) != 1 or slope[0] == 0:
        raise _NotRestatableError
    set_text(made, "RescaleIntercept", element_text(image, "RescaleIntercept"))
    set_text(made, "RescaleSlope", element_text(image, "RescaleSlope"))
    made.RescaleType = element_text(image, "RescaleType")[:64] or "US"


def _add_window(made: Dataset, image: Dataset) -> None:
    """The first table or, without one, the first window: a viewer begins with it."""
    tables = _items(image, "VOILUTSequence")
    item = Dataset()
    if tables:
        item.VOILUTSequence = [_in_sixteen_bits(_table(tables[0], image))]
    elif element_values(image, "WindowCenter") or element_values(image, "WindowWidth"):
        centre, width = numbers(image, "WindowCenter"), numbers(image, "WindowWidth")
        function = element_text(image, "VOILUTFunction") or "LINEAR"
        least = 1 if function == "LINEAR" else 0
        if not centre or not width or function not in _VOI_FUNCTIONS or width[0] < least or width[0] == 0:
            raise _NotRestatableError
        set_text(item, "WindowCenter", element_values(image, "WindowCenter")[0])
        set_text(item, "WindowWidth", element_values(image, "WindowWidth")[0])
        if function != "LINEAR":
            item.VOILUTFunction = function
    elif "ModalityLUTSequence" in image or element_count(image, "BitsStored") != _FILLED_BITS:
        # Viewers find a window of their own for such an image; a presentation state without one means the whole range.
        raise _NotRestatableError
    else:
        return
    made.SoftcopyVOILUTSequence = [item]


def _items(image: Dataset, keyword: str) -> Sequence[Dataset]:
    try:
        value = image.get(keyword)
    except FOREIGN_ERRORS:
        raise _NotRestatableError from None
    if value is not None and not isinstance(value, DicomSequence):
        raise _NotRestatableError
    return value or []


def _table(source: Dataset, image: Dataset) -> Dataset:
    """A look-up table, checked and written anew (PS3.3 section C.11.1.1.1)."""
    try:
        entries, first, bits = (int(value) for value in source.LUTDescriptor)
        data: Any = source.LUTData
        if isinstance(data, bytes):
            big = getattr(image, "original_encoding", (None, True))[1] is False
            data = np.frombuffer(data, ">u2" if big else "<u2")
        values = np.asarray(list(data) if isinstance(data, MultiValue) else data).astype(np.int64) & 0xFFFF
    except FOREIGN_ERRORS:
        raise _NotRestatableError from None
    entries &= 0xFFFF
    if values.shape != (entries or 65536,) or not 8 <= bits <= 16 or values.max() >= 1 << bits:
        raise _NotRestatableError
    signed = first < 0
    if signed and entries > 0x7FFF:
        entries -= 0x10000  # the same two bytes
    made = Dataset()
    made.add_new("LUTDescriptor", "SS" if signed else "US", [entries, first, bits])
    made.add_new("LUTData", "OW", values.astype("<u2").tobytes())
    return made


def _in_sixteen_bits(table: Dataset) -> Dataset:
    """The table with its output, which is a share of the whole range, in 16 bits: older readers know 8 and 16 only."""
    entries, first, bits = table.LUTDescriptor
    if bits not in {8, 16}:
        values = np.frombuffer(table.LUTData, "<u2").astype(np.float64) * (0xFFFF / ((1 << bits) - 1))
        table.LUTData = values.round().astype("<u2").tobytes()
        table.LUTDescriptor = [entries, first, 16]
    return table


def _add_shutter(made: Dataset, image: Dataset) -> None:
    """The collimated border stays covered (PS3.3 section C.7.6.11). A shutter that cannot be read is left out."""
    counts = {
        "ShutterLeftVerticalEdge": 1,
        "ShutterRightVerticalEdge": 1,
        "ShutterUpperHorizontalEdge": 1,
        "ShutterLowerHorizontalEdge": 1,
        "CenterOfCircularShutter": 2,
        "RadiusOfCircularShutter": 1,
    }
    needed = {
        "RECTANGULAR": list(counts)[:4],
        "CIRCULAR": list(counts)[4:],
        "POLYGONAL": ["VerticesOfThePolygonalShutter"],
    }
    shapes = [shape for shape in element_values(image, "ShutterShape") if shape in needed]
    taken = Dataset()
    for keyword in (keyword for shape in shapes for keyword in needed[shape]):
        values = [text for text in element_values(image, keyword) if text.lstrip("+-").isdecimal()]
        count = counts.get(keyword)
        if not values or len(values) % 2 != (count or 2) % 2 or (count is not None and len(values) != count):
            return
        set_text(taken, keyword, "\\".join(values))
    if shapes:
        taken.ShutterShape = shapes
        taken.ShutterPresentationValue = 0  # P-value: black
        made.update(taken)


def state_reference(image: Dataset, state_uid: str) -> Dataset:
    """The image under the presentation state, as an item of a reference sequence (PS3.3 section C.18.4)."""
    item = reference(image)
    state = Dataset()
    state.ReferencedSOPClassUID = PRESENTATION_STATE
    state.ReferencedSOPInstanceUID = state_uid
    item.ReferencedSOPSequence = [state]
    return item
