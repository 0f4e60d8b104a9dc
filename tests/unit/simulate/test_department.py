"""A department is the same whenever it is asked for, differs from day to day, and changes by its events alone."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from datetime import date, timedelta
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from peers import dicom_errors
from sklearn.metrics import roc_auc_score
from stepwedge.demo.main_job import newest_package
from stepwedge.dicom.decode import decode
from stepwedge.dicom.header import read_header
from stepwedge.errors import StepwedgeError
from stepwedge.inference.engine import OnnxEngine
from stepwedge.manifest import load_package
from stepwedge.pipeline import Case, analyse_image, equip
from stepwedge.policy import load_policy
from stepwedge.records import Verdict
from stepwedge.simulate import Simulator, load_simulator
from stepwedge.simulate.department import WELL, Department, Examination, examinations, radiograph
from stepwedge.simulate.events import EFFECTS, parse_event

MODEL = Path(__file__).parents[3] / "models" / "chest-pneumonia"
MANY = 6000  # studies of which only the plan is made


@pytest.fixture(scope="module")
def simulator() -> Simulator:
    return load_simulator(MODEL / "simulated.npz")


def plan(simulator: Simulator, *events: str, **options: object) -> list[Examination]:
    given = {"studies": 400, "seed": 1, **options}
    department = Department(events=tuple(parse_event(text) for text in events), **given)  # type: ignore[arg-type]
    return list(examinations(department, simulator))


def without_names(child: Examination) -> Examination:
    """A study without what names the department it is of, and the events in force."""
    return replace(child, study_uid="", accession="", patient="", in_force=(), changed_by=())


class TestTheStream:
    def test_the_same_options_give_the_same_studies_to_the_last_bit(self, simulator: Simulator) -> None:
        department = Department(studies=3, seed=4, rows=300)
        first, second = (
            [radiograph(child, department, simulator) for child in examinations(department, simulator)]
            for _ in range(2)
        )
        assert first == second

    @pytest.mark.parametrize(
        "other", [{"seed": 2}, {"prevalence": 0.2}, {"generator": "x"}, {"start": date(2027, 1, 4)}]
    )
    def test_departments_that_differ_share_no_uid(self, simulator: Simulator, other: dict[str, object]) -> None:
        uids = {child.study_uid for child in plan(simulator, studies=20)}
        assert not uids & {child.study_uid for child in plan(simulator, **{"studies": 20, **other})}

    def test_studies_come_in_the_order_of_time_from_the_first_morning_on(self, simulator: Simulator) -> None:
        times = [child.taken for child in plan(simulator)]
        assert times == sorted(times)
        assert (times[0].date(), times[0].hour >= 7) == (date(2026, 1, 5), True)

    def test_working_days_are_busier_than_weekends_and_mornings_than_nights(self, simulator: Simulator) -> None:
        children = plan(simulator, studies=MANY)
        days = max(child.taken for child in children) - min(child.taken for child in children)
        weekend = sum(child.taken.weekday() >= 5 for child in children) / 2
        working = sum(child.taken.weekday() < 5 for child in children) / 5
        assert days > timedelta(days=30)
        assert 0.2 < weekend / working < 0.6
        night, morning = (sum(child.taken.hour in hours for child in children) for hours in (range(6), range(8, 14)))
        assert morning > 6 * night

    def test_the_scanners_daily_shares_vary_several_times_more_than_independent_draws(
        self, simulator: Simulator
    ) -> None:
        days: dict[date, list[bool]] = defaultdict(list)
        for child in plan(simulator, studies=MANY):
            if child.taken.weekday() < 5:
                days[child.taken.date()].append(child.scanner.name == "wall-stand")
        counts = np.array([len(day) for day in days.values()])
        shares = np.array([np.mean(day) for day in days.values()])
        share = (counts * shares).sum() / counts.sum()
        assert 4 < np.mean((shares - share) ** 2 * counts / (share * (1 - share))) < 30

    def test_one_child_in_ten_is_ill_and_all_are_one_to_five(self, simulator: Simulator) -> None:
        children = plan(simulator, studies=MANY)
        assert np.mean([child.label != WELL for child in children]) == pytest.approx(0.1, abs=0.025)
        assert {int(child.age_years) for child in children} == {1, 2, 3, 4, 5}
        assert {child.sex for child in children} == {"M", "F"}
        assert {child.view for child in children} == {"AP", "PA"}

    def test_few_headers_lack_what_the_gate_needs(self, simulator: Simulator) -> None:
        children = plan(simulator, studies=MANY)
        needed = {"ViewPosition", "BodyPartExamined"}
        lacking = [
            bool(needed & set(child.missing)) or {"PatientAge", "PatientBirthDate"} <= set(child.missing)
            for child in children
        ]
        assert 0 < np.mean(lacking) < 0.03


SMALL = Department(studies=60, seed=1, rows=300, events=(parse_event("scanner-change@40"),))


class TestTheObject:
    def test_an_independent_checker_finds_no_error(self, simulator: Simulator, tmp_path: Path) -> None:
        children = {child.scanner.name: child for child in examinations(SMALL, simulator) if not child.missing}
        assert set(children) == {"bedside", "wall-stand", "newcomer"}
        for child in children.values():
            file = tmp_path / f"{child.number}.dcm"
            radiograph(child, SMALL, simulator).save_as(file, enforce_file_format=True)
            assert dicom_errors(file) == []

    def test_its_header_says_what_the_truth_says(self, simulator: Simulator) -> None:
        child = next(child for child in examinations(SMALL, simulator) if not child.missing)
        dataset = radiograph(child, SMALL, simulator)
        header = read_header(dataset)
        assert header.age_years == int(child.age_years)
        assert (header.sex, header.view_position, header.body_part) == (child.sex, child.view, "CHEST")
        assert header.model_name == child.scanner.equipment.model_name
        assert f"{dataset.StudyDate}{dataset.StudyTime}" == f"{child.taken:%Y%m%d%H%M%S}"
        assert (dataset.StudyInstanceUID, dataset.PatientID) == (child.study_uid, child.patient)
        born = read_header(_without(dataset, "PatientAge"))
        assert born.age_years == pytest.approx(child.age_years, abs=0.01)

    def test_a_missing_attribute_is_missing_in_the_code_beside_it_too(self, simulator: Simulator) -> None:
        child = next(iter(examinations(SMALL, simulator)))
        absent = ("ViewPosition", "BodyPartExamined", "PatientAge", "PatientBirthDate", "Exposure", "KVP")
        header = read_header(radiograph(replace(child, missing=absent), SMALL, simulator))
        assert (header.view_position, header.body_part, header.age_years) == ("", "", None)
        assert (header.exposure, header.kvp) == (None, None)

    def test_the_two_scanners_look_different(self, simulator: Simulator) -> None:
        """The same child, on either."""
        children = {child.scanner.name: child for child in examinations(SMALL, simulator)}
        images = {
            name: pixels(replace(children["bedside"], scanner=children[name].scanner), SMALL, simulator)
            for name in ("bedside", "wall-stand")
        }
        assert images["bedside"].shape[0] > images["wall-stand"].shape[0]
        assert images["wall-stand"].std() > 1.04 * images["bedside"].std()

    def test_the_size_can_be_chosen(self, simulator: Simulator) -> None:
        department = Department(studies=1, rows=400)
        dataset = radiograph(next(iter(examinations(department, simulator))), department, simulator)
        assert 300 < dataset.Rows < 480


class TestEvents:
    @pytest.mark.parametrize("name", EFFECTS)
    def test_no_event_changes_a_study_before_it_and_each_says_which_it_changed(
        self, simulator: Simulator, name: str
    ) -> None:
        ordinary, changed = plan(simulator), plan(simulator, f"{name}@200")
        for before, after in zip(ordinary, changed, strict=True):
            same = without_names(before) == without_names(after)
            assert same == (after.changed_by == ())
            if after.number < 200:
                assert same
                assert after.in_force == ()
        assert any(child.changed_by == (name,) for child in changed)

    def test_a_new_scanner_brings_its_tags_unless_they_are_hidden(self, simulator: Simulator) -> None:
        known = {child.scanner.equipment.model_name for child in plan(simulator)}
        for name, new in (("scanner-change", {"Vista One"}), ("scanner-change-hidden", set())):
            after = plan(simulator, f"{name}@100")[100:]
            assert {child.scanner.equipment.model_name for child in after} - known == new
            assert {child.scanner.name for child in after} == {"bedside", "newcomer"}

    def test_a_stop_ends(self, simulator: Simulator) -> None:
        children = plan(simulator, "scanner-stop@100:1", studies=600)
        stopped = [child for child in children if "scanner-stop" in child.in_force]
        assert {child.scanner.name for child in stopped} == {"bedside"}
        assert stopped[-1].taken - stopped[0].taken < timedelta(days=1)
        assert "wall-stand" in {child.scanner.name for child in children if child.number > stopped[-1].number}

    def test_prevalence_becomes_what_was_asked_for(self, simulator: Simulator) -> None:
        after = plan(simulator, "prevalence@1001:0.4", studies=MANY)[1000:]
        assert np.mean([child.label != WELL for child in after]) == pytest.approx(0.4, abs=0.08)

    def test_concept_parts_labels_from_images_and_leaves_both_as_common_as_before(self, simulator: Simulator) -> None:
        options = {"studies": MANY, "prevalence": 0.3}
        before, after = plan(simulator, **options), plan(simulator, "concept@1:0.5", **options)
        assert [child.shows for child in after] == [child.shows for child in before]
        assert np.mean([child.label != WELL for child in after]) == pytest.approx(
            np.mean([child.label != WELL for child in before]), abs=0.02
        )
        unlike = [np.mean([child.label != child.shows for child in group]) for group in (before, after)]
        assert unlike[0] < 0.03
        assert unlike[1] > 0.18

    def test_population_brings_older_patients_of_other_proportions(self, simulator: Simulator) -> None:
        older = [child for child in plan(simulator, "population@1:0.5") if child.age_years >= 6]
        assert 0.4 < len(older) / 400 < 0.6
        assert all(child.proportions != (1.0, 1.0) for child in older)
        assert max(child.age_years for child in older) > 60

    def test_brightness_moves_the_mean_grey_by_standard_deviations_between_studies(self, simulator: Simulator) -> None:
        department = Department(studies=400, seed=1, rows=256)
        children = list(examinations(department, simulator))[::10]
        means = np.array([pixels(child, department, simulator).mean() for child in children])
        brighter = [pixels(replace(c, brightness=c.brightness + 1), department, simulator).mean() for c in children]
        assert np.mean(brighter - means) / means.std() == pytest.approx(1, abs=0.4)

    def test_tampering_is_seen_in_the_pixels_and_nowhere_else(self, simulator: Simulator) -> None:
        department = Department(studies=1, rows=300)
        child = next(iter(examinations(department, simulator)))
        plain = pixels(child, department, simulator)
        for kind in ("patch", "pattern"):
            changed = pixels(replace(child, tampering=kind), department, simulator)  # type: ignore[arg-type]
            assert changed.shape == plain.shape
            assert np.abs(changed - plain).max() > 0.01
            assert np.abs(changed - plain).mean() < 0.05

    def test_of_two_events_of_one_name_the_later_holds(self, simulator: Simulator) -> None:
        after = plan(simulator, "prevalence@1:0.9", "prevalence@201:0.05")[200:]
        assert np.mean([child.label != WELL for child in after]) < 0.2


class TestWhatCannotBe:
    @pytest.mark.parametrize(
        ("text", "says"),
        [
            ("earthquake@5", "no event is called 'earthquake'; there are scanner-change,"),
            ("brightness", "wanted NAME@STUDY"),
            ("brightness@0", "'0' is not the number of a study"),
            ("brightness@five", "'five' is not the number of a study"),
            ("brightness@5:9", "from -4 to 4; found '9'"),
            ("brightness@5:nan", "found 'nan'"),
            ("prevalence@5:lots", "found 'lots'"),
            ("scanner-change@5:2", "scanner-change has no size; leave out :2"),
        ],
    )
    def test_an_event_is_refused_with_what_is_wrong(self, text: str, says: str) -> None:
        with pytest.raises(StepwedgeError) as refusal:
            parse_event(text)
        assert says in str(refusal.value)

    @pytest.mark.parametrize(
        ("options", "says"),
        [
            ({"studies": 0}, "--studies 0"),
            ({"studies": 5, "seed": -1}, "--seed -1"),
            ({"studies": 5, "prevalence": 1.0}, "--prevalence 1"),
            ({"studies": 5, "rate": 0.0}, "--rate 0"),
            ({"studies": 5, "rate": float("nan")}, "--rate nan"),
            ({"studies": 5, "rows": 20}, "--size 20"),
            ({"studies": 5, "events": (parse_event("tamper@6"),)}, "tamper@6: there are only 5 studies"),
        ],
    )
    def test_a_department_is_refused_with_what_is_wrong(self, options: dict[str, object], says: str) -> None:
        with pytest.raises(StepwedgeError) as refusal:
            Department(**options)  # type: ignore[arg-type]
        assert says in str(refusal.value)

    def test_a_generator_without_well_children_makes_no_department(self, simulator: Simulator) -> None:
        with pytest.raises(StepwedgeError, match="needs 'normal' and another label"):
            next(iter(examinations(Department(studies=1), {"viral": simulator["viral"]})))


def pixels(child: Examination, department: Department, simulator: Simulator) -> NDArray[np.float32]:
    """The decoded image on 0…1."""
    image = decode(radiograph(child, department, simulator))
    return np.asarray(image.pixels / image.value_range[1])


def _without(dataset: object, keyword: str) -> object:
    delattr(dataset, keyword)
    return dataset


@pytest.mark.slow
def test_the_shipped_model_accepts_and_tells_apart_an_ordinary_days_children(simulator: Simulator) -> None:
    """Against the labels, some of which no image shows; ``make bench-department`` measures it on more."""
    package = load_package(newest_package(MODEL))
    policy = load_policy(MODEL / "policy.yaml", package.manifest)
    equipment = equip(package, OnnxEngine(package, "cpu", 1), policy, explain=False)
    department = Department(studies=140, seed=8, prevalence=0.3)
    truth, scores, accepted = [], [], 0
    for child in examinations(department, simulator):
        dataset = radiograph(child, department, simulator)
        case = Case(instance="", header=read_header(dataset), decode=partial(decode, dataset))
        result, _ = analyse_image(case, equipment)
        if result.gate.verdict is Verdict.ACCEPT:
            accepted += 1
            truth.append(child.label != WELL)
            scores.append(result.findings[0].score)
    assert accepted >= 0.93 * department.studies  # 95 %, less what so few studies leave to chance
    assert roc_auc_score(truth, scores) >= 0.95
