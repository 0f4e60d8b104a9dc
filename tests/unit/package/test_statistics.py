"""Figures and their intervals: as scikit-learn has them, as worked out by hand, and as often right as they claim."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, brier_score_loss, log_loss, roc_auc_score
from stepwedge.package import statistics
from stepwedge.package.statistics import Bootstrap, Floats, Labels, bootstrap, estimate, share

TRUTH = np.array([False, True, False, True, True])
SCORE = np.array([0.1, 0.4, 0.4, 0.2, 0.9])
ONES = np.ones((1, 5))


def drawn(seed: int, images: int = 300, *, ties: bool = False) -> tuple[Labels, Floats, Floats]:
    """Truth, score and weights of a fold: scores overlap, and some images are drawn more than once or not at all."""
    rng = np.random.default_rng(seed)
    truth = rng.random(images) < 0.4
    score = rng.normal(truth.astype(float), 1.0)
    return truth, np.round(score, 1) if ties else score, rng.integers(0, 4, size=(1, images)).astype(float)


class TestRanking:
    def test_auroc_is_the_share_of_pairs_in_order_with_ties_as_half(self) -> None:
        # Of the six pairs (.4, .2, .9) against (.1, .4): four in order, one tie, one (.2 against .4) out of order.
        assert statistics.auroc(TRUTH, SCORE, ONES) == pytest.approx([4.5 / 6])

    def test_auprc_is_the_mean_precision_at_the_positive_images(self) -> None:
        # Precision at .9 is 1, at .4 (a tie, both counted) 2/3, at .2 3/4.
        assert statistics.auprc(TRUTH, SCORE, ONES) == pytest.approx([(1 + 2 / 3 + 3 / 4) / 3])

    @pytest.mark.parametrize("ties", [False, True])
    @pytest.mark.parametrize("seed", range(3))
    def test_both_are_those_of_scikit_learn(self, seed: int, ties: bool) -> None:
        truth, score, weights = drawn(seed, ties=ties)
        expected = roc_auc_score(truth, score, sample_weight=weights[0])
        assert statistics.auroc(truth, score, weights) == pytest.approx([expected])
        expected = average_precision_score(truth, score, sample_weight=weights[0])
        assert statistics.auprc(truth, score, weights) == pytest.approx([expected])

    def test_a_weight_is_that_many_images(self) -> None:
        truth, score, weights = drawn(3)
        repeated = np.repeat(np.arange(len(truth)), weights[0].astype(int))
        once = np.ones((1, len(repeated)))
        for figure in (statistics.auroc, statistics.auprc, statistics.brier):
            assert figure(truth, score, weights) == pytest.approx(figure(truth[repeated], score[repeated], once))

    def test_of_one_kind_alone_there_is_none(self) -> None:
        none_ill = np.where(TRUTH, 0.0, 1.0)[None]
        assert np.isnan(statistics.auroc(TRUTH, SCORE, none_ill)).all()
        assert np.isnan(statistics.auprc(TRUTH, SCORE, none_ill)).all()


class TestCalibrationFigures:
    def test_brier_and_log_loss_are_those_of_scikit_learn(self) -> None:
        truth, score, weights = drawn(4)
        p = 1 / (1 + np.exp(-score))
        assert statistics.brier(truth, p, weights) == pytest.approx(
            [brier_score_loss(truth, p, sample_weight=weights[0])]
        )
        assert np.average(statistics.log_losses(truth, p), weights=weights[0]) == pytest.approx(
            log_loss(truth, p, sample_weight=weights[0])
        )

    def test_calibration_error_is_the_mean_gap_of_ten_bins_of_equal_size(self) -> None:
        # Ten bins of ten images that are told .05, .15, … of which 0, 2, 2, 4, 4, … are ill: each bin is off by .05.
        probability = np.repeat(np.arange(10) / 10 + 0.05, 10)
        ill = np.array([0, 2, 2, 4, 4, 6, 6, 8, 8, 10])
        truth = np.concatenate([np.arange(10) < count for count in ill])
        assert statistics.calibration_error(truth, probability, np.ones((1, 100))) == pytest.approx([0.05])

    def test_gaps_that_point_both_ways_do_not_cancel_between_bins(self) -> None:
        truth = np.repeat([True, False], 50)
        probability = np.repeat([0.3, 0.7], 50)
        assert statistics.calibration_error(truth, probability, np.ones((1, 100))) == pytest.approx([0.7])

    def test_true_probabilities_stay_below_what_chance_allows_about_as_often_as_claimed(self) -> None:
        rng = np.random.default_rng(5)
        p = rng.uniform(0.05, 0.95, 400)
        bound = statistics.calibration_error_by_chance(p)
        ones = np.ones((1, 400))
        below = [statistics.calibration_error(rng.random(400) < p, p, ones)[0] <= bound for _ in range(400)]
        assert np.mean(below) == pytest.approx(0.95, abs=0.03)


class TestPrevalence:
    def test_weights_are_carried_to_another_prevalence(self) -> None:
        truth, _, weights = drawn(6)
        carried = statistics.carried(truth, 0.1, np.vstack([weights, np.ones_like(weights)]))
        assert carried.sum(axis=1) == pytest.approx(1)
        assert (carried * truth).sum(axis=1) == pytest.approx(0.1)

    def test_a_mean_at_a_prevalence_mixes_the_means_of_both_kinds(self) -> None:
        values = np.array([1.0, 5.0, 3.0, 5.0, 5.0])
        assert statistics.mean_at(TRUTH, values, 0.25, ONES) == pytest.approx([0.25 * 5 + 0.75 * 2])
        carried = statistics.carried(TRUTH, 0.25, ONES)
        assert statistics.mean(values, carried) == pytest.approx([0.25 * 5 + 0.75 * 2])

    @pytest.mark.parametrize("share_ill", [0.03, 0.1, 0.5, 0.9])
    def test_the_present_prevalence_is_found_without_labels(self, share_ill: float) -> None:
        rng = np.random.default_rng(7)
        truth = rng.random(4000) < share_ill
        score = rng.normal(np.where(truth, 1.5, -1.5), np.sqrt(3.0))  # log-odds at even prevalence: 2 × 1.5 / 3 × score
        probability = 1 / (1 + np.exp(-score))
        found = statistics.estimate_prevalence(probability, 0.5, [str(i) for i in range(4000)], samples=200)
        assert found is not None
        assert found.low <= truth.mean() <= found.high
        assert found.value == pytest.approx(truth.mean(), abs=0.03)

    def test_it_is_what_the_em_algorithm_climbs_to(self) -> None:
        rng = np.random.default_rng(8)
        probability = rng.uniform(0.01, 0.99, 200)
        prior = 0.5
        for _ in range(3000):
            odds = probability / 0.4 * prior / ((1 - probability) / 0.6 * (1 - prior))
            prior = float(np.mean(odds / (1 + odds)))
        assert statistics.prevalence_by_em(probability, 0.4, np.ones((1, 200))) == pytest.approx([prior], abs=1e-6)


class TestIntervals:
    def test_patients_are_drawn_with_all_their_images(self) -> None:
        resampled = bootstrap(["b", "a", "b", "c"], samples=50)
        weights = np.concatenate(list(resampled.weights()))
        assert resampled.patients == 3
        assert (weights[:, 0] == weights[:, 2]).all()
        assert (weights[:, [0, 1, 3]].sum(axis=1) == 3).all()
        assert (weights == np.concatenate(list(bootstrap(["b", "a", "b", "c"], samples=50).weights()))).all()

    def test_an_interval_by_patient_holds_the_truth_as_often_as_it_says_where_one_by_image_does_not(self) -> None:
        """Four images of a patient are nearly one and the same: an interval that counts them apart is too narrow."""
        rng = np.random.default_rng(9)
        by_patient, by_image, times = 0, 0, 200
        for _ in range(times):
            values = np.repeat(rng.normal(size=60), 4) + 0.1 * rng.normal(size=240)
            patients = np.repeat(np.arange(60), 4)
            for kind, names in (("patient", patients), ("image", np.arange(240))):
                resampled = bootstrap([str(n) for n in names], samples=200)
                found = estimate(resampled, partial(statistics.mean, values))
                assert found is not None
                held = found.low <= 0 <= found.high
                by_patient, by_image = by_patient + (held and kind == "patient"), by_image + (held and kind == "image")
        assert by_patient / times >= 0.90
        assert by_image / times <= 0.75

    def test_a_figure_that_most_resamples_cannot_give_is_none(self) -> None:
        truth = np.zeros(20, bool)
        truth[0] = True  # drawn in about two resamples of three
        resampled = bootstrap([str(i) for i in range(20)])
        assert estimate(resampled, lambda w: statistics.auroc(truth, np.arange(20.0), w)) is None

    def test_where_all_are_hit_the_interval_is_the_exact_one_for_as_many_patients(self) -> None:
        patients = [f"p{i // 2}" for i in range(20)]
        resampled = bootstrap(patients)
        for hit, value in ((np.ones(20, bool), 1.0), (np.zeros(20, bool), 0.0)):
            found = share(resampled, hit)
            assert found is not None
            width = 1 - 0.025 ** (1 / 10)  # Clopper and Pearson, none of ten patients
            assert (found.value, found.high - found.low) == pytest.approx((value, width), abs=1e-5)

    def test_a_share_among_some_counts_only_those(self) -> None:
        resampled = bootstrap([str(i) for i in range(5)])
        found = share(resampled, SCORE > 0.3, TRUTH)
        assert found is not None
        assert found.value == pytest.approx(2 / 3, abs=1e-5)
        assert share(resampled, SCORE > 0.3, np.zeros(5, bool)) is None

    def test_many_resamples_come_in_parts_and_none_is_lost(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(statistics, "_CHUNK", 12)
        resampled = Bootstrap(patient=np.arange(5), counts=np.arange(35).reshape(7, 5))
        parts = list(resampled.weights())
        assert [len(part) for part in parts] == [2, 2, 2, 1]
        assert (np.concatenate(parts) == resampled.counts).all()
