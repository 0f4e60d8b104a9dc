"""Figures of a fold: what is counted, what deciding costs worked out by hand, and what cannot be said is not said."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from labelled import write_manifest
from packages import write_policy
from stepwedge.errors import PackageError
from stepwedge.manifest import Calibration, FindingCalibration, Manifest, read_manifest
from stepwedge.package.evaluate import FindingSample, Scored, Way, cost_figures, evaluate, sample_of, ways
from stepwedge.package.figures import Strategy
from stepwedge.package.statistics import Floats, Labels
from stepwedge.policy import FindingPolicy, load_policy
from stepwedge.records import Costs

OUTPUT = {"scores": "logits", "classes": ["normal", "ill"], "kind": "exclusive"}
SITE = FindingPolicy(miss=10, false_alarm=1, deferral=0.3, prevalence=0.1)
OWN = FindingCalibration(method="none", prevalence=0.5, positives=100, negatives=100)
PACKAGE, WITHOUT = "this package: least expected cost, with deferral", "the same without deferral"


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """Of a model with the exclusive classes normal and ill."""
    return read_manifest(write_manifest(tmp_path_factory.mktemp("bright") / "model.yaml", output=OUTPUT))


@pytest.fixture
def calibration() -> Calibration:
    """The model's own output is taken as it is."""
    return Calibration(findings={"ill": OWN})


def sample(score: Sequence[float] | Floats, truth: Sequence[bool] | Labels) -> FindingSample:
    return FindingSample(
        index=np.arange(len(score)),
        patients=[str(i) for i in range(len(score))],
        truth=np.array(truth, bool),
        score=np.array(score, float),
    )


def fold(images: int = 200, seed: int = 0, share_ill: float = 0.5, sure: float = 2.0) -> Scored:
    """A fold whose scores are true log-odds at even shares, two images of each patient."""
    rng = np.random.default_rng(seed)
    ill = rng.random(images) < share_ill
    score = rng.normal(np.where(ill, sure, -sure), np.sqrt(2 * sure))
    return Scored(
        patients=[f"p{i // 2}" for i in range(images)],
        labels=[frozenset(["ill" if one else "normal"]) for one in ill],
        outputs=np.stack([-score / 2, score / 2], axis=1).astype(np.float32),
        subgroups={
            "sex": ["FM"[i % 2] for i in range(images)],
            "site": ["rare" if i < 6 else "" for i in range(images)],
        },
    )


def named(strategies: Sequence[Strategy]) -> dict[str, Strategy]:
    return {way.name: way for way in strategies}


class TestCostByHand:
    """Four ill and four well images; with costs 10 : 1 : 0.3 clear below .03, act from .7."""

    # Log-odds at a prevalence of one half; at 10 % they are 2.197 less: .97, .40, .01 and .002 are the probabilities.
    SCORES = (5.8, 1.8, -2.4, 5.8, -4.0, -4.0, 1.8, 5.8)
    TRUTH = (True, True, True, True, False, False, False, False)

    @pytest.fixture
    def ways(self) -> dict[str, Strategy]:
        found = cost_figures("ill", sample(self.SCORES * 10, self.TRUTH * 10), OWN, SITE, fold="test", samples=200)
        return named(found.strategies)

    def test_the_expected_cost_is_that_of_its_errors_and_deferrals(self, ways: dict[str, Strategy]) -> None:
        # Ill: two acted on, one deferred, one missed. Well: two cleared, one deferred, one false alarm.
        own = ways[PACKAGE]
        ill, well = (0.3 + 10) / 4, (0.3 + 1) / 4
        assert own.cost.value == pytest.approx(100 * (0.1 * ill + 0.9 * well), abs=1e-4)
        assert own.deferred.value == pytest.approx(0.25)
        assert (own.sensitivity.value, own.missed.value) == (0.5, 0.25)
        assert (own.specificity.value, own.false_alarms.value) == (0.5, 0.25)

    def test_predictive_values_are_those_at_the_sites_prevalence(self, ways: dict[str, Strategy]) -> None:
        own = ways[PACKAGE]
        assert own.ppv is not None
        assert own.npv is not None
        assert own.ppv.value == pytest.approx(0.1 * 0.5 / (0.1 * 0.5 + 0.9 * 0.25), abs=1e-4)
        assert own.npv.value == pytest.approx(0.9 * 0.5 / (0.9 * 0.5 + 0.1 * 0.25), abs=1e-4)

    def test_without_deferral_the_cheaper_error_is_chosen(self, ways: dict[str, Strategy]) -> None:
        # What was deferred, at .40, is above 1/11 and acted on: an ill one found, another false alarm.
        assert ways[WITHOUT].cost.value == pytest.approx(100 * (0.1 * 10 / 4 + 0.9 * 2 / 4), abs=1e-4)
        assert ways[WITHOUT].deferred.value == 0

    def test_a_ratio_is_the_packages_cost_over_the_other_ways(self, ways: dict[str, Strategy]) -> None:
        assert ways[PACKAGE].ratio is None
        for name, way in ways.items():
            if name != PACKAGE:
                assert way.ratio is not None
                assert way.ratio.value == pytest.approx(ways[PACKAGE].cost.value / way.cost.value, abs=1e-4)

    def test_what_is_done_blindly_costs_what_it_must(self, ways: dict[str, Strategy]) -> None:
        costs = {"everybody left to a person": 30.0, "everybody acted on": 90.0, "everybody cleared": 100.0}
        assert {name: ways[name].cost.value for name in costs} == pytest.approx(costs)
        assert ways["everybody cleared"].net_benefit.value == pytest.approx(0)

    def test_net_benefit_without_deferral_is_that_of_vickers(self, ways: dict[str, Strategy]) -> None:
        # True positives less false ones at the odds of the threshold, 1/11: (1/11) / (10/11).
        vickers = 0.1 * 0.75 - 0.9 * 0.5 * (1 / 10)
        assert ways[WITHOUT].net_benefit.value == pytest.approx(100 * vickers, abs=1e-4)


def test_each_image_costs_what_was_done_with_it() -> None:
    acted, cleared = np.array([True, True, False, False, False]), np.array([False, False, True, True, False])
    way = Way(name="", acted=acted, cleared=cleared)
    truth = np.array([True, False, True, False, True])
    costs = Costs(miss=10, false_alarm=1, deferral=0.3)
    assert way.cost(truth, costs) == pytest.approx([0, 1, 10, 0, 0.3])


def test_the_packages_way_is_the_cheapest_where_its_probabilities_are_true() -> None:
    scored = fold(20_000)
    truth = np.array([labels == {"ill"} for labels in scored.labels])
    score = scored.outputs[:, 1].astype(float) - scored.outputs[:, 0]
    found = named(cost_figures("ill", sample(score, truth), OWN, SITE, fold="test", samples=20).strategies)
    assert found[PACKAGE].cost.value == min(way.cost.value for way in found.values())


def test_ways_to_decide_name_each_thing_once() -> None:
    zero = np.zeros(3)
    compared = ways(zero, zero + 0.5, zero + 0.1, SITE.costs)
    assert len({way.name for way in compared}) == len(compared)
    for way in compared:
        assert (way.acted.astype(int) + way.cleared + way.deferred == 1).all()


class TestFold:
    def test_images_patients_and_kinds_are_counted(self, manifest: Manifest, calibration: Calibration) -> None:
        found = evaluate(fold(), manifest, calibration, samples=50)
        figures = found.findings["ill"]
        assert (found.images, found.patients) == (200, 100)
        assert figures.positives + figures.negatives == 200
        assert figures.prevalence == pytest.approx(figures.positives / 200)

    def test_true_probabilities_are_found_to_be_true(self, manifest: Manifest, calibration: Calibration) -> None:
        figures = evaluate(fold(4000), manifest, calibration, samples=100).findings["ill"]
        assert figures.calibration_error_after is not None
        assert figures.calibration_error_by_chance is not None
        assert figures.calibration_error_after.value <= figures.calibration_error_by_chance
        assert figures.prevalence_estimated is not None
        assert figures.prevalence_estimated.low <= (figures.prevalence or 0) <= figures.prevalence_estimated.high

    def test_without_a_policy_nothing_is_said_of_decisions(self, manifest: Manifest, calibration: Calibration) -> None:
        assert evaluate(fold(), manifest, calibration, samples=50).costs == []

    def test_with_one_its_costs_and_prevalence_decide(
        self, manifest: Manifest, calibration: Calibration, tmp_path: Path
    ) -> None:
        policy = load_policy(write_policy(tmp_path / "policy.yaml", model="bright", prevalence=0.2, miss=7), manifest)
        found = evaluate(fold(), manifest, calibration, policy, samples=50)
        (costs,) = found.costs
        assert (costs.prevalence, costs.miss, costs.patients) == (0.2, 7, 100)
        assert found.policy == "test 1"

    def test_an_inconclusive_finding_is_not_decided_on(
        self, manifest: Manifest, calibration: Calibration, tmp_path: Path
    ) -> None:
        policy = load_policy(write_policy(tmp_path / "policy.yaml", model="bright"), manifest)
        unsure = Calibration(findings={"ill": OWN.model_copy(update={"inconclusive": "3 positive patients"})})
        found = evaluate(fold(), manifest, unsure, policy, samples=50)
        assert found.costs == []
        assert found.findings["ill"].inconclusive == "3 positive patients"

    def test_of_one_kind_alone_no_ranking_is_claimed(self, manifest: Manifest, calibration: Calibration) -> None:
        figures = evaluate(fold(share_ill=0.0), manifest, calibration, samples=50).findings["ill"]
        assert figures.positives == 0
        assert figures.auroc is None
        assert figures.auprc is None

    def test_a_subgroup_of_too_few_patients_is_counted_and_nothing_more(
        self, manifest: Manifest, calibration: Calibration
    ) -> None:
        found = {(g.group, g.value): g for g in evaluate(fold(), manifest, calibration, samples=50).subgroups}
        assert set(found) == {("sex", "F"), ("sex", "M"), ("site", "rare")}  # the blank is nobody's group
        assert found["sex", "F"].auroc is not None
        rare = found["site", "rare"]
        assert rare.positives + rare.negatives == 6
        assert rare.auroc is None

    def test_an_empty_fold_is_refused(self, manifest: Manifest, calibration: Calibration) -> None:
        empty = Scored(patients=[], labels=[], outputs=np.zeros((0, 2), np.float32))
        with pytest.raises(PackageError, match="no image in the test fold"):
            evaluate(empty, manifest, calibration)


def test_only_images_with_a_class_among_those_told_apart_count(manifest: Manifest) -> None:
    scored = Scored(
        patients=list("abc"),
        labels=[frozenset(["ill"]), frozenset(), frozenset(["normal"])],
        outputs=np.array([[0, 1], [0, 2], [0, 3]], np.float32),
    )
    finding = manifest.findings[0]
    assert sample_of(scored, manifest, finding).truth.tolist() == [True, False, False]
    among = finding.model_copy(update={"among": ["normal", "ill"]})
    chosen = sample_of(scored, manifest, among)
    assert chosen.index.tolist() == [0, 2]
    assert chosen.score == pytest.approx([1, 3])


def test_a_fold_whose_columns_differ_in_length_is_no_fold() -> None:
    with pytest.raises(ValueError, match=r"of \[199, 200\] images; wanted one number"):
        replace(fold(), patients=["p"] * 199)
