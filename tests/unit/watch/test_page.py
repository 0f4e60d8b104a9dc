"""The status page says what a person needs at a glance, and says nothing that a study could have put there."""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from markupsafe import escape
from stand_in_detectors import StandInAlarm, StandInSignal
from stepwatch.figures import Figure, GroupFigure, Performance, Prevalence
from stepwatch.history import History, Point
from stepwatch.overview import Overview
from stepwatch.page import column_of, render, stratum_text, value_text
from stepwatch.performance import LABELS_FOLLOW, NOT_BELIEVED
from stepwatch.plots import HEIGHT, WIDTH, draw
from stepwatch.watch import View
from stepwedge.observation import ConstancyRun

WHEN = datetime(2026, 3, 2, 12, tzinfo=UTC)


def view(**changes: Any) -> View:
    values: dict[str, Any] = {
        "model": "chest-pneumonia", "version": "1.1.0", "digest": "d", "usable": True, "baseline_rows": 1000,
        "studies": 1200, "last_row": WHEN, "limit": 5.3, "signals": (StandInSignal(signal="pixel_mean"),),
    }  # fmt: skip
    return View(**(values | changes))


def page(*views: View, **changes: Any) -> str:
    return render(Overview(**{"database": "", "models": views, "at": WHEN, **changes}))


def alarm(**changes: Any) -> dict[str, Any]:
    raised = StandInAlarm(alarm="12-all-pixel_mean", raised_row=12, raised_time=WHEN.isoformat())
    return {**raised.to_dict(), **changes}


def test_a_calm_model_says_so() -> None:
    text = page(view())
    assert "No change beyond the ordinary" in text
    assert "1,200 studies taken" in text
    assert "baseline of 1,000 studies" in text
    assert text.count("<svg") == 1


def test_an_alarm_is_told_with_its_evidence_place_and_what_to_do() -> None:
    text = page(view(alarms=(alarm(),)))
    for wanted in (
        "1 lasting change from the baseline", "higher than usual", "images are made in another way",
        "90 % from DX-2, working days", "10<sup>6.0</sup>", "by nobody yet",
        "stepwatch acknowledge 12-all-pixel_mean --by NAME", '<figure class="card alarm">',
    ):  # fmt: skip
        assert wanted in text, wanted


def test_a_stop_is_an_event_and_not_drift() -> None:
    text = page(view(alarms=(alarm(kind_of_alarm="event", shift="stop", direction="absent"),)))
    assert "1 source has stopped sending; nothing else has changed" in text
    assert "lasting change" not in text


def test_a_model_that_is_not_watched_and_a_database_that_is_away_cannot_be_overlooked() -> None:
    text = page(view(usable=False, problem="the baseline has 3 studies"), database="locked")
    assert "This model is not watched: the baseline has 3 studies" in text
    assert "what follows may be old: locked" in text
    assert "No change" not in text
    assert "No model is watched" in page()


def test_measured_stands_beside_estimated_and_what_the_estimate_cannot_see_is_said() -> None:
    figures = tuple(
        Figure(finding="pneumonia", measure="auroc", how=how, value=value, low=value - 0.1, high=value + 0.1)
        for how, value in (("measured", 0.8), ("estimated", 0.9))
    )  # fmt: skip
    known = Performance(
        figures=figures,
        labelled={"pneumonia": 212},
        prevalences=(Prevalence(finding="pneumonia", how="labelled", value=0.25),),
    )
    text = page(view(), performance={"chest-pneumonia": known})
    assert re.search(r"AUROC</th><td>0.800 \(0.700 … 0.900\)</td><td>0.900 \(0.800 … 1.000\)", text)
    assert "It cannot see concept drift" in text
    assert "212 labelled studies" in text
    assert "It cannot see concept drift" in page(view())
    assert "Without them concept drift goes unnoticed" in page(view())
    fed = page(view(saved_labels=300, waiting_labels=2))
    assert "300 readings of the random audit bet upon, against concept drift · 2 wait for the study." in fed
    assert "goes unnoticed" not in fed


def test_an_estimate_that_is_not_to_be_believed_cannot_be_overlooked() -> None:
    def known(measured: float, only: tuple[str, ...] = ()) -> Performance:
        figures = tuple(
            Figure(finding="pneumonia", measure="auroc", how=how, value=value, low=value - 0.02, high=value + 0.02)
            for how, value in (("measured", measured), ("estimated", 0.9))
        )  # fmt: skip
        return Performance(figures=figures, labelled={"pneumonia": 212}, only_labelled=only)

    decayed = page(view(), performance={"chest-pneumonia": known(0.75)})
    assert "<s>0.900 (0.880 … 0.920)</s>" in decayed
    assert "Labels contradict what the model expects of itself: pneumonia" in decayed
    assert "No change beyond the ordinary" not in decayed
    assert NOT_BELIEVED in decayed
    assert str(escape(LABELS_FOLLOW)) not in decayed
    follow = page(view(), performance={"chest-pneumonia": known(0.9, ("pneumonia",))})
    assert str(escape(LABELS_FOLLOW)) in follow
    assert NOT_BELIEVED not in follow
    assert "<s>" not in follow
    assert "No change beyond the ordinary" in follow


def test_subgroups_are_shown_with_their_intervals_and_verdicts() -> None:
    groups = (
        GroupFigure(
            finding="pneumonia", group="sex", level="F", measure="calibration", value=-0.1, low=-0.2, high=-0.05,
            studies=40, verdict="miscalibrated",
        ),
        GroupFigure(finding="pneumonia", group="sex", level="X", measure="auroc", value=math.nan, verdict="too_few"),
    )  # fmt: skip
    text = page(view(), performance={"chest-pneumonia": Performance(groups=groups)})
    assert '<td>40</td><td>−0.100 (−0.200 … −0.050)</td><td><span class="tag moved">miscalibrated</span></td>' in text
    assert "<td>0</td><td>–</td><td>too few</td>" in text
    assert "No change beyond the ordinary" in text
    worse = page(view(), performance={"chest-pneumonia": Performance(groups=(replace(groups[0], verdict="worse"),))})
    assert "Worse than elsewhere: pneumonia where sex is F" in worse
    assert "No change beyond the ordinary" not in worse


def test_constancy_requests_and_drawn_pages_are_shown() -> None:
    run = ConstancyRun(
        run="r", time=WHEN.isoformat(), model_name="chest-pneumonia", model_version="", model_digest="",
        policy_digest="", studies=24, answered=24, verdict="moved", stage="scores", differences={"scores": 2.5},
    )  # fmt: skip
    request = {
        "request": "r-1", "event": "approved", "at": 1.0, "who": "key", "body": {}, "opened_at": 0.0,
        "because": {"signal": "pixel_mean"},
    }  # fmt: skip
    text = page(
        view(), constancy=(run,), requests=(request,), pages=({"path": "a b.html", "at": 1.0, "reason": "alarm"},)
    )
    assert "first moved: <strong>scores</strong>" in text
    assert "2.50" in text
    assert "approved" in text
    assert 'href="pages/a%20b.html"' in text


def test_what_a_sender_wrote_into_a_header_stays_text() -> None:
    strange = "scanner=<script>alert(1)</script>\"'"
    signal = StandInSignal(signal=strange, stratum="<b>|working", evidence=5.0)
    text = page(
        view(model="<i>", signals=(signal,), alarms=(alarm(signal=strange, attribution={"<u>|off": 1.0}),)),
        database="<s>",
    )
    for tag in ("<script", "<b>|", "<u>", "<i>", "<s>"):
        assert tag not in text.replace('<i style="width', "").replace("<b>&lt;", ""), tag
    assert "&lt;script&gt;" in text


def test_it_is_a_page_without_program_that_renews_itself() -> None:
    text = page(view(alarms=(alarm(),)))
    assert '<meta http-equiv="refresh" content="30">' in text
    assert "prefers-color-scheme: dark" in text
    assert 'name="viewport"' in text
    assert "<script" not in text
    assert not re.search(r'\son\w+="', text)
    for picture in re.findall(r"<svg.*?</svg>", text, re.S):
        ET.fromstring(picture)


@pytest.mark.parametrize(
    ("signal", "column", "text"),
    [
        ("pixel_mean", "pixel_mean", "+0.50 SD"),
        ("pixel_mean given others", "pixel_mean", "+0.50 SD"),
        ("pixel_mean tail low", "pixel_mean", "50.0 %"),
        ("pixel_mean ≤ 0.3", "pixel_mean", "50.0 %"),
        ("embedding distance 0.95", "embedding", "50.0 %"),
        ("embedding.3", "embedding.3", "+0.50 SD"),
        ("scanner=DX 1 = new", "scanner", "50.0 %"),
        ("sex missing", "sex", "50.0 %"),
        ("scanner unseen", "scanner", "50.0 %"),
        ("probability.pneumonia", "probability.pneumonia", "50.0 %"),
    ],
)
def test_a_signal_is_told_in_its_unit(signal: str, column: str, text: str) -> None:
    assert column_of(signal) == column
    assert value_text(signal, 0.5) == text
    assert value_text(signal, math.nan) == "–"


def test_a_stratum_is_told_in_words() -> None:
    assert stratum_text("DX-2|working") == "DX-2, working days"
    assert stratum_text("|off") == "days off"
    assert stratum_text("") == ""
    assert stratum_text({"scanner": "DX-2"}) == "scanner: DX-2"


def test_a_plot_stays_within_its_frame_and_breaks_where_nothing_is_known() -> None:
    points = [Point(n, math.nan if n == 40 else n / 10, n) for n in range(0, 100, 20)]
    plot = draw(points, low=-1, high=1, baseline=0, limit=5)
    assert plot.values.count("M") == 2
    for path in (plot.values, plot.evidence):
        for x, y in re.findall(r"([\d.]+) ([\d.]+)", path):
            assert 0 <= float(x) <= WIDTH
            assert 0 <= float(y) <= HEIGHT
    empty = draw([], low=0, high=0, baseline=0, limit=5)
    assert (empty.values, empty.evidence, empty.last) == ("", "", None)


def test_the_history_of_signals_is_bounded_and_survives_being_saved() -> None:
    history = History()
    for studies in range(0, 4000, 20):
        assert history.is_due(studies) == (studies >= 20)
        history.add(studies, [StandInSignal(signal="a"), StandInSignal(signal="b", present_value=math.nan)])
    again = History.from_text(history.to_text())
    assert len(again.of("a", "")) == 60
    assert again.of("a", "") == history.of("a", "")
    assert math.isnan(again.of("b", "")[-1].value)
    assert not again.is_due(3999)
    assert History.from_text("").of("a", "") == ()


def test_history_keeps_no_more_signals_than_it_says() -> None:
    history = History()
    history.add(20, [StandInSignal(signal=f"signal {n}") for n in range(5000)])
    assert len(history.copy()) == 1500


def test_of_a_prevalence_the_evidence_is_shown_and_no_present_value_that_bets_cannot_tell() -> None:
    signal = StandInSignal(signal="probability.viral_pneumonia", baseline_value=0.31, present_value=0.99)
    text = page(view(signals=(signal,), points={(signal.signal, ""): (Point(20, 0.99, 1.0), Point(40, 0.99, 2.0))}))
    assert "viral pneumonia" in text
    assert "was 31.0 %" in text
    assert "99.0 %" not in text
    assert 'class="evidence"' in text
    assert 'class="values"' not in text
