"""The presentation state shows the contours on the image that was analysed, and leaves its grey scale as it was."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import Dataset
from results import NODE, heat, picture, read_back, result, source, with_bytes, written
from stepwedge.dicom.presentation import PRESENTATION_STATE, presentation_object
from stepwedge.dicom.report import is_own_result


def state(image: Dataset, *, demonstration: bool = True) -> Dataset | None:
    made = presentation_object(result(demonstration=demonstration), heat(image), node=NODE)
    return None if made is None else read_back(made)


def restated(image: Dataset) -> Dataset:
    made = state(image)
    assert made is not None
    return made


def test_it_names_the_image_and_draws_closed_lines_on_a_layer_of_its_own() -> None:
    image = source()
    made = restated(image)
    assert (made.SOPClassUID, made.Modality) == (PRESENTATION_STATE, "PR")
    (series,) = made.ReferencedSeriesSequence
    assert series.SeriesInstanceUID == image.SeriesInstanceUID
    assert series.ReferencedImageSequence[0].ReferencedSOPInstanceUID == image.SOPInstanceUID
    (annotation,) = made.GraphicAnnotationSequence
    assert annotation.ReferencedImageSequence[0].ReferencedSOPClassUID == image.SOPClassUID
    assert [layer.GraphicLayer for layer in made.GraphicLayerSequence] == [annotation.GraphicLayer]
    assert len(annotation.GraphicObjectSequence) == 2  # one place, two levels
    for line in annotation.GraphicObjectSequence:
        points = np.reshape(line.GraphicData, (-1, 2))
        assert (line.GraphicType, line.GraphicAnnotationUnits) == ("POLYLINE", "PIXEL")
        assert len(points) == line.NumberOfGraphicPoints
        assert (points[0] == points[-1]).all()
        # Padded to a square of 2000, second row and third column of four: 1250 − 100 columns, 750 rows.
        assert points.mean(axis=0) == pytest.approx([1150, 750], abs=40)


def test_it_says_what_it_is_in_characters_that_any_font_has() -> None:
    (text,) = restated(source()).GraphicAnnotationSequence[0].TextObjectSequence
    assert text.UnformattedTextValue.startswith("DEMONSTRATION - NOT FOR CLINICAL USE\r\n")
    assert "Pneumonia" in text.UnformattedTextValue
    assert text.UnformattedTextValue.isascii()
    clinical = state(source(), demonstration=False)
    assert clinical is not None
    assert "DEMONSTRATION" not in str(clinical)


def test_all_of_the_image_is_shown_in_its_own_shape() -> None:
    (area,) = restated(source(ImagerPixelSpacing=[0.2, 0.1])).DisplayedAreaSelectionSequence
    assert area.DisplayedAreaTopLeftHandCorner == [1, 1]
    assert area.DisplayedAreaBottomRightHandCorner == [1800, 2000]
    assert area.PresentationPixelSpacing == [0.2, 0.1]
    (area,) = restated(source(ImagerPixelSpacing=None, PixelAspectRatio=[2, 1])).DisplayedAreaSelectionSequence
    assert area.PresentationPixelAspectRatio == [2, 1]


@pytest.mark.parametrize(("photometric", "shape"), [("MONOCHROME1", "INVERSE"), ("MONOCHROME2", "IDENTITY")])
def test_white_stays_white(photometric: str, shape: str) -> None:
    assert restated(source(PhotometricInterpretation=photometric)).PresentationLUTShape == shape


def test_the_first_window_and_the_rescaling_are_said_again() -> None:
    image = source(
        WindowCenter=[40, 300], WindowWidth=[80, 1500], VOILUTFunction="SIGMOID", RescaleSlope=2, RescaleIntercept=-1024
    )
    made = restated(image)
    (window,) = made.SoftcopyVOILUTSequence
    assert (window.WindowCenter, window.WindowWidth, window.VOILUTFunction) == (40, 80, "SIGMOID")
    assert (made.RescaleSlope, made.RescaleIntercept, made.RescaleType) == (2, -1024, "US")


def test_an_image_of_eight_bits_needs_no_window() -> None:
    assert "SoftcopyVOILUTSequence" not in restated(source(WindowCenter=None, WindowWidth=None, BitsStored=8))


def table(first: int, values: list[int], bits: int = 12, *, as_bytes: bool) -> Dataset:
    item = Dataset()
    item.add_new("LUTDescriptor", "SS" if first < 0 else "US", [len(values), first, bits])
    if as_bytes:
        item.add_new("LUTData", "OW", np.array(values, "<u2").tobytes())
    else:
        item.add_new("LUTData", "US", values)
    return item


@pytest.mark.parametrize("as_bytes", [True, False])
@pytest.mark.parametrize("first", [0, -3])
def test_tables_are_said_again(as_bytes: bool, first: int) -> None:
    values = [0, 7, 4095, 12]
    modality = table(0, values, as_bytes=as_bytes)
    modality.ModalityLUTType = "OD"
    image = source(VOILUTSequence=[table(first, values, as_bytes=as_bytes)], ModalityLUTSequence=[modality])
    made = restated(image)
    (window,) = made.SoftcopyVOILUTSequence
    assert "WindowCenter" not in window
    shown, measured = window.VOILUTSequence[0], made.ModalityLUTSequence[0]
    assert np.frombuffer(measured.LUTData, "<u2").tolist() == values
    assert list(measured.LUTDescriptor) == [4, 0, 12]
    # What is shown is a share of white: the same in 16 bits, which every reader knows.
    assert np.frombuffer(shown.LUTData, "<u2") / 65535 == pytest.approx(np.array(values) / 4095, abs=1e-5)
    assert list(shown.LUTDescriptor) == [4, first, 16]
    assert made.ModalityLUTSequence[0].ModalityLUTType == "OD"


@pytest.mark.parametrize(
    "values",
    [
        {"PhotometricInterpretation": "RGB"},
        {"PhotometricInterpretation": "PALETTE COLOR"},
        {"PhotometricInterpretation": None},
        {"SamplesPerPixel": 3},
        {"WindowWidth": None},
        {"WindowWidth": None, "WindowCenter": None},
        {"WindowWidth": None, "WindowCenter": None, "BitsStored": 12},
        {"WindowWidth": "0"},
        {"VOILUTFunction": "LOGARITHMIC"},
        {"RescaleSlope": "0", "RescaleIntercept": "0"},
        {"RescaleSlope": "1"},
        {"VOILUTSequence": [table(0, [1, 2, 5000], as_bytes=False)]},
        {"VOILUTSequence": [table(0, [1, 2, 3], bits=20, as_bytes=False)]},
        {"ModalityLUTSequence": [Dataset()]},
    ],
    ids=str,
)
def test_a_grey_scale_that_cannot_be_said_again_gets_no_presentation_state(values: dict[str, object]) -> None:
    assert state(source(**values)) is None


def test_the_other_objects_are_written_without_it(tmp_path: Path) -> None:
    image = source(PhotometricInterpretation="RGB", SamplesPerPixel=3)
    objects = written(tmp_path, result(), [image], image=picture(), heat=heat(image))
    assert [item.kind for item in objects] == ["sr", "sc", "heat"]


def test_the_collimated_border_stays_covered() -> None:
    edges = {"Left": "10", "Right": "900"}
    shutter = {f"Shutter{side}VerticalEdge": value for side, value in edges.items()}
    shutter |= {"ShutterUpperHorizontalEdge": "5", "ShutterLowerHorizontalEdge": "700"}
    made = restated(source(ShutterShape="RECTANGULAR", **shutter))
    assert (made.ShutterShape, made.ShutterRightVerticalEdge, made.ShutterPresentationValue) == ("RECTANGULAR", 900, 0)
    assert "ShutterShape" not in restated(source(ShutterShape="RECTANGULAR"))


@given(
    values=st.dictionaries(
        st.sampled_from(
            [
                "WindowCenter",
                "WindowWidth",
                "RescaleSlope",
                "RescaleIntercept",
                "RescaleType",
                "VOILUTFunction",
                "ImagerPixelSpacing",
                "PixelAspectRatio",
                "ShutterShape",
                "CenterOfCircularShutter",
                "VOILUTSequence",
                "PhotometricInterpretation",
                "SpecificCharacterSet",
            ]
        ),
        st.binary(max_size=40),
    )
)
@settings(max_examples=100, deadline=None)
@pytest.mark.filterwarnings("ignore::UserWarning:pydicom")
def test_no_bytes_in_a_header_stop_it(values: dict[str, bytes]) -> None:
    image = source()
    for keyword, value in values.items():
        with_bytes(image, keyword, value)
    made = presentation_object(result(), heat(image), node=NODE)
    assert made is None or made.PresentationLUTShape in {"IDENTITY", "INVERSE"}


def test_it_is_known_as_ours(tmp_path: Path) -> None:
    objects = written(tmp_path, result(), image=picture(), heat=heat())
    assert [item.kind for item in objects] == ["sr", "sc", "heat", "pr"]
    assert all(is_own_result(pydicom.dcmread(item.path)) for item in objects)
