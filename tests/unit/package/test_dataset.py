"""A table of labels is read whatever program wrote it, and everything wrong in it is named by line and column."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from stepwedge.package.dataset import (
    Columns,
    DatasetError,
    LabelledImage,
    age_group,
    distinct_labels,
    fold_of,
    of_fold,
    read_labels,
    read_table,
)

CLASSES = ("No Finding", "Effusion", "Pleural_Thickening")


def table(folder: Path, text: str, *, encoding: str = "utf-8", files: int = 4) -> Path:
    for number in range(files):
        (folder / f"{number}.png").touch()
    file = folder / "labels.csv"
    file.write_bytes(text.encode(encoding))
    return file


def read(folder: Path, text: str, columns: Columns | None = None, *, exclusive: bool = True) -> list[LabelledImage]:
    return read_labels(table(folder, text), folder, CLASSES, exclusive=exclusive, columns=columns)


def test_a_row_is_an_image_with_its_labels_patient_and_subgroups(tmp_path: Path) -> None:
    images = read(tmp_path, "file,nih_patient_id,finding_labels,sex,age\n0.png,10.0,Effusion|Pleural_Thickening,F,61\n")
    assert images == [
        LabelledImage(
            file=tmp_path / "0.png",
            patient="10",
            fold=fold_of("10"),
            labels=frozenset({"Effusion", "Pleural_Thickening"}),
            subgroups={"sex": "F", "age": "40 to 64"},
        )
    ]


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_spreadsheets_write_csv_in_their_own_ways(tmp_path: Path, separator: str, encoding: str, end: str) -> None:
    lines = ["file,patient,label", "0.png,a,Effusion", '"1.png",b,"No Finding"', ""]
    file = table(tmp_path, end.join(lines).replace(",", separator), encoding=encoding)
    images = read_labels(file, tmp_path, CLASSES, exclusive=True)
    assert [image.labels for image in images] == [{"Effusion"}, {"No Finding"}]


def test_labels_are_matched_without_regard_to_case_spaces_and_underscores(tmp_path: Path) -> None:
    images = read(tmp_path, "file,patient,label\n0.png,a,pleural thickening\n1.png,b,NO_FINDING\n")
    assert [image.labels for image in images] == [{"Pleural_Thickening"}, {"No Finding"}]


def test_labels_may_stand_in_one_column_for_each_class(tmp_path: Path) -> None:
    text = "file,patient,no finding,effusion,Pleural_Thickening\n0.png,a,0,1,1.0\n1.png,b,0,0,false\n"
    images = read(tmp_path, text, exclusive=False)
    assert [image.labels for image in images] == [{"Effusion", "Pleural_Thickening"}, set()]


def test_a_cell_of_such_a_column_is_yes_or_no(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"line 2, column Effusion: found '-1', wanted 0 or 1"):
        read(tmp_path, "file,patient,No Finding,Effusion,Pleural_Thickening\n0.png,a,0,-1,1\n", exclusive=False)


def test_images_may_lie_in_a_folder_of_that_name(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "x.png").touch()
    assert read(tmp_path, "file,patient,label\nx.png,a,Effusion\n")[0].file == tmp_path / "images" / "x.png"


def test_the_fold_column_says_what_an_image_is_for(tmp_path: Path) -> None:
    text = "file,patient,label,fold\n0.png,a,Effusion,train\n1.png,b,Effusion,Calibrate\n2.png,c,Effusion,test\n"
    images = read(tmp_path, text)
    assert [image.fold for image in images] == ["train", "calibrate", "test"]
    assert of_fold(images, "test") == images[2:]


def test_without_folds_patients_are_split_the_same_everywhere() -> None:
    folds = {f"patient {number}": fold_of(f"patient {number}") for number in range(3000)}
    shares = {fold: count / len(folds) for fold, count in Counter(folds.values()).items()}
    assert shares == pytest.approx({"calibrate": 0.4, "gate": 0.3, "test": 0.3}, abs=0.03)
    assert [folds[f"patient {number}"] for number in range(4)] == ["gate", "gate", "test", "test"]


WRONG = {
    "no file column": (
        "path,patient,label\n0.png,a,Effusion\n",
        r"no column 'file'.*path, patient, label.*--file-column",
    ),
    "no patient column": ("file,label\n0.png,Effusion\n", r"no column names the patient.*--patient-column"),
    "two patient columns": ("file,a_patient,b_patient,label\n0.png,a,a,Effusion\n", r"several columns.*a_patient, b_"),
    "no label column": ("file,patient\n0.png,a\n", r"no column 'label'.*--label-column"),
    "no images": ("file,patient,label\n", r"there are no images in it"),
    "nothing": ("", r"there are no images in it"),
    "a column twice": ("file,patient,label,label\n0.png,a,Effusion,Effusion\n", r"line 1: the column 'label'.*twice"),
    "a short row": ("file,patient,label\n0.png,a\n", r"line 2: 2 cells, wanted 3"),
    "a missing file": ("file,patient,label\n9.png,a,Effusion\n", r"line 2, column file: there is no file '9\.png' in"),
    "a file twice": ("file,patient,label\n0.png,a,Effusion\n0.png,a,Effusion\n", r"line 3.*listed on line 2 already"),
    "an unknown label": (
        "file,patient,label\n0.png,a,Effsion\n",
        r"line 2, column label: 'Effsion' is no class.*Effusion",
    ),
    "no label": ("file,patient,label\n0.png,a,\n", r"line 2: no label"),
    "no patient": ("file,patient,label\n0.png,,Effusion\n", r"line 2, column patient: no patient"),
    "an unknown fold": ("file,patient,label,fold\n0.png,a,Effusion,val\n", r"line 2, column fold: 'val' is no fold"),
    "a patient in two folds": (
        "file,patient,label,fold\n0.png,a,Effusion,gate\n1.png,a,Effusion,test\n",
        r"line 3, column fold: the patient is in fold test here and in fold gate on line 2",
    ),
}


@pytest.mark.parametrize(("text", "message"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_is_named_by_line_and_column(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DatasetError, match=message) as raised:
        read(tmp_path, text)
    assert "labels.csv" in str(raised.value)


def test_many_troubles_are_counted_after_the_first_ten(tmp_path: Path) -> None:
    rows = "".join(f"no{number}.png,a,Effusion\n" for number in range(30))
    with pytest.raises(DatasetError) as raised:
        read(tmp_path, f"file,patient,label\n{rows}")
    assert len(str(raised.value).splitlines()) == 11
    assert "and 20 more like these" in str(raised.value)


def test_a_missing_table_or_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"none\.csv: the table of labels cannot be read"):
        read_labels(tmp_path / "none.csv", tmp_path, CLASSES, exclusive=True)
    with pytest.raises(DatasetError, match="nowhere: there is no such folder"):
        read_labels(
            table(tmp_path, "file,patient,label\n0.png,a,Effusion\n"), tmp_path / "nowhere", CLASSES, exclusive=True
        )


def test_text_of_another_encoding_is_named(tmp_path: Path) -> None:
    file = table(tmp_path, "file,patient,label\n0.png,Mü,Effusion\n", encoding="latin-1")
    with pytest.raises(DatasetError, match="not UTF-8"):
        read_labels(file, tmp_path, CLASSES, exclusive=True)


def test_a_label_can_be_left_out_by_name(tmp_path: Path) -> None:
    columns = Columns(ignored_labels=frozenset({"Support Devices"}))
    images = read(tmp_path, "file,patient,label\n0.png,a,Support_Devices|Effusion\n", columns)
    assert images[0].labels == {"Effusion"}


def test_columns_can_be_named(tmp_path: Path) -> None:
    columns = Columns(file="path", label="truth", patient="who", fold="part", subgroups=["scanner", "ward"])
    text = "path,who,truth,part,scanner,ward,sex\n0.png,a,Effusion,gate,X1,,F\n"
    image = read(tmp_path, text, columns)[0]
    assert (image.patient, image.fold, dict(image.subgroups)) == ("a", "gate", {"scanner": "X1"})


def test_the_labels_in_use_can_be_listed(tmp_path: Path) -> None:
    found = read_table(table(tmp_path, "file,patient,label\n0.png,a,b|a\n1.png,b,c\n2.png,b,\n"))
    assert distinct_labels(found) == ["a", "b", "c"]


@pytest.mark.parametrize(("years", "group"), [(0.2, "under 1"), (3, "1 to 5"), (17.9, "6 to 17"), (80, "65 and older")])
def test_ages_are_grouped(years: float, group: str) -> None:
    assert age_group(years) == group
