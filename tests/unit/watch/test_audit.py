"""The draw of the audit, and the weights that it gives."""

from __future__ import annotations

import numpy as np
import pytest
from stepwatch.audit import is_drawn, weigh

STUDIES = [f"{number:032x}" for number in range(20_000)]


def test_the_draw_is_the_same_always_and_its_share_is_right() -> None:
    drawn = [is_drawn(study, 0.05) for study in STUDIES]
    assert drawn == [is_drawn(study, 0.05) for study in STUDIES]
    assert np.mean(drawn) == pytest.approx(0.05, abs=0.006)


def test_a_larger_share_draws_the_same_studies_and_more() -> None:
    assert all(is_drawn(study, 0.1) for study in STUDIES if is_drawn(study, 0.05))
    assert not any(is_drawn(study, 0) for study in STUDIES)
    assert all(is_drawn(study, 1) for study in STUDIES)


def test_another_key_is_another_draw() -> None:
    one, other = ({s for s in STUDIES if is_drawn(s, 0.05, key=key)} for key in (b"", b"other"))
    assert len(one & other) < len(one) / 5


def test_a_share_is_a_share() -> None:
    with pytest.raises(ValueError, match="wanted 0 to 1"):
        is_drawn("a", 1.5)


def test_drawn_studies_stand_for_all_that_have_no_other_label() -> None:
    otherwise = np.array([True] * 30 + [False] * 20)
    drawn = np.array([0.1] * 5 + [np.nan] * 25 + [0.1] * 10 + [0.2] * 10)
    weights, honest = weigh(otherwise, drawn, rest=300)
    assert honest
    assert (weights[:30] == 1).all()
    assert weights[30:].sum() == pytest.approx(300)
    assert weights[30] == pytest.approx(2 * weights[40])


def test_too_few_readings_of_the_audit_stand_for_nobody() -> None:
    weights, honest = weigh(np.array([True, False]), np.array([np.nan, 0.1]), rest=300)
    assert not honest
    assert (weights == 1).all()


def test_where_every_study_is_labelled_there_is_no_rest_to_stand_for() -> None:
    assert weigh(np.ones(50, dtype=bool), np.full(50, np.nan), rest=0)[1]
