"""What the site's policy brought, and when today's is taken as accepted."""

from __future__ import annotations

from pathlib import Path

import pytest
from stepwedge.constancy.compare import Decided
from stepwedge.constancy.site_answers import SiteAnswers, is_of_today, read_site_answers, write_site_answers
from stepwedge.errors import StepwedgeError

ACCEPTED = SiteAnswers(
    model_digest="m1",
    policy_digest="p1",
    time="2026-11-24T07:00:00+00:00",
    run="r1",
    decided={"ill": Decided(prevalence=0.1, clear_below=None, act_from=None)},
    gates={0: ("answered", "accept", (), "pass")},
)


def test_they_read_back_as_they_were_written(tmp_path: Path) -> None:
    assert read_site_answers(tmp_path, "tiny") is None
    write_site_answers(tmp_path, "tiny", ACCEPTED)
    assert read_site_answers(tmp_path, "tiny") == ACCEPTED


def test_a_damaged_file_says_what_to_do(tmp_path: Path) -> None:
    write_site_answers(tmp_path, "tiny", ACCEPTED)
    (tmp_path / "constancy" / "accepted.tiny.json").write_text("{}")
    with pytest.raises(StepwedgeError, match="--accept"):
        read_site_answers(tmp_path, "tiny")


@pytest.mark.parametrize(
    ("model", "policy", "approved", "held"),
    [
        ("m1", "p1", False, True),
        ("m1", "p2", False, True),  # nobody has approved the change: it stays a difference
        ("m1", "p2", True, False),  # a person has
        ("m2", "p1", False, False),  # another package was put in
    ],
)
def test_only_what_a_person_has_approved_takes_their_place(model: str, policy: str, approved: bool, held: bool) -> None:
    assert is_of_today(ACCEPTED, model_digest=model, policy_digest=policy, approved=approved) is held
    assert not is_of_today(None, model_digest=model, policy_digest=policy, approved=approved)
