"""Traces: off and free by default; on, one trace a study, whatever becomes of the collector. The collector is a
stand-in that reads the real protocol.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog
from otlp_receiver import StandInCollector, collecting
from peers import free_ports
from stepwedge import tracing
from stepwedge.errors import SettingsError
from stepwedge.settings import Tracing, load_settings

STUDY = "0123456789abcdef" * 2


@pytest.fixture
def collector() -> Iterator[StandInCollector]:
    with collecting() as found:
        yield found
        tracing.stop()


def started(collector: StandInCollector, **changes: object) -> None:
    tracing.start(Tracing.model_validate({"endpoint": collector.endpoint, **changes}), "work", "worker-1")


@pytest.mark.parametrize("module", ["stepwedge.roles", "stepwedge.supervise", "stepwedge.workflow", "stepwedge.cli"])
def test_no_role_of_ours_imports_opentelemetry_while_tracing_is_off(module: str) -> None:
    script = (
        f"import sys, {module}\nfrom stepwedge import tracing\nfrom stepwedge.settings import Tracing\n"
        "tracing.start(Tracing(), 'work')\n"
        f"with tracing.span('analyse', under=tracing.of_study('{STUDY}')) as span: span.note(size=1)\n"
        "print([name for name in sys.modules if name.startswith(('opentelemetry.sdk', 'opentelemetry.exporter'))])"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_off_a_span_is_nothing_and_one_and_the_same() -> None:
    first = tracing.span("analyse", under=tracing.of_study(STUDY))
    assert first is tracing.span("deliver")
    with first as span:
        span.note(size=1)
        span.failed("x")
        assert tracing.header() == {}
    tracing.record("C-STORE", under=tracing.of_study(STUDY), began=0, ended=1)


def test_the_trace_of_a_study_is_named_as_the_study_is(collector: StandInCollector) -> None:
    started(collector)
    now = time.time()
    root, revision = tracing.of_study(STUDY), tracing.of_revision(STUDY, 1)
    tracing.record("C-STORE", under=root, kind="server", began=now, ended=now + 0.5, bytes=7)
    tracing.record_at(root, "study", began=now, ended=now + 2)
    tracing.record_at(revision, "revision", under=root, began=now + 1, ended=now + 2, units=["a", "b"])
    with tracing.span("analyse", under=tracing.of_unit(f"{STUDY}.1.aaaa")), tracing.span("decode"):
        tracing.note(state="reported", nothing=None)
    tracing.stop()
    spans = {span.name: span for span in collector.trace(STUDY)}
    assert set(spans) == {"C-STORE", "study", "revision", "analyse", "decode"}
    assert spans["study"].parent == ""
    assert spans["C-STORE"].parent == spans["revision"].parent == spans["study"].span
    assert spans["analyse"].parent == spans["revision"].span
    assert spans["decode"].parent == spans["analyse"].span
    assert spans["decode"].attributes == {"state": "reported"}
    assert spans["revision"].attributes == {"units": ["a", "b"]}
    assert spans["C-STORE"].ended - spans["C-STORE"].began == pytest.approx(0.5e9, rel=1e-3)
    assert {span.role for span in spans.values()} == {"work"}


def test_another_process_takes_a_span_up_by_the_header(collector: StandInCollector) -> None:
    started(collector)
    with tracing.span("request", under=tracing.of_study(STUDY), kind="client"):
        header = tracing.header()[tracing.HEADER]
    with tracing.span("infer", under=tracing.from_header(header), kind="server"):
        pass
    tracing.stop()
    spans = {span.name: span for span in collector.trace(STUDY)}
    assert spans["infer"].parent == spans["request"].span


@pytest.mark.parametrize("value", [None, "", "junk", "00-" + "0" * 32 + "-" + "0" * 16 + "-01", "00-zz-zz-01\n"])
def test_a_header_that_says_nothing_is_no_trace(value: str | None) -> None:
    assert tracing.from_header(value) is None


def test_a_span_under_nothing_is_not_recorded(collector: StandInCollector) -> None:
    started(collector)
    with tracing.span("decode"), tracing.span("analyse", under=tracing.of_unit("no unit")):
        tracing.note(state="x")
    tracing.record("C-STORE", under=tracing.of_study("no hash"), began=0, ended=1)
    tracing.stop()
    assert collector.spans == []


def test_an_exception_is_named_by_its_type_alone(collector: StandInCollector) -> None:
    started(collector)
    with (
        pytest.raises(ValueError, match="Zebulon"),
        tracing.span("analyse", under=tracing.of_study(STUDY)),
        tracing.span("decode"),
    ):
        raise ValueError("Zebulon^Quillfeather has no pixels")
    tracing.stop()
    assert [(span.name, span.failed, span.events) for span in collector.spans] == [
        ("decode", "ValueError", 0),
        ("analyse", "ValueError", 0),
    ]
    assert not any("Zebulon" in text for text in collector.texts)


def test_every_process_traces_the_same_studies(collector: StandInCollector) -> None:
    low, high = "f" * 16 + "0" * 15 + "1", "0" * 15 + "1" + "f" * 16
    for _ in range(2):
        started(collector, sample_ratio=0.5)
        for study in (low, high):
            with tracing.span("analyse", under=tracing.of_study(study)):
                pass
        tracing.stop()
    assert [span.trace for span in collector.spans] == [low, low]


def test_headers_come_from_a_file_and_the_path_may_be_given(collector: StandInCollector, tmp_path: Path) -> None:
    file = tmp_path / "headers"
    file.write_text("# of the collector\nAuthorization: Bearer abc\n\nX-Scope-OrgID: radiology\n")
    settings = tmp_path / "stepwedge.yaml"
    settings.write_text(f"tracing: {{endpoint: '{collector.endpoint}/v1/traces', headers_file: headers}}\n")
    tracing.start(load_settings(settings).tracing, "work")
    with tracing.span("analyse", under=tracing.of_study(STUDY)):
        pass
    tracing.stop()
    assert len(collector.spans) == 1
    assert collector.headers[0]["authorization"] == "Bearer abc"
    assert collector.headers[0]["x-scope-orgid"] == "radiology"


def test_a_file_of_headers_that_is_none_is_refused_without_its_contents(tmp_path: Path) -> None:
    file = tmp_path / "headers"
    settings = Tracing(endpoint="http://127.0.0.1:9", headers_file=file)
    with pytest.raises(SettingsError, match="headers_file cannot be read"):
        tracing.start(settings, "work")
    file.write_text("secret-token")
    with pytest.raises(SettingsError, match="line 1 is no header") as refused:
        tracing.start(settings, "work")
    assert "secret-token" not in str(refused.value)


@pytest.mark.parametrize("endpoint", ["collector:4318", "grpc://collector:4317", "http://user:word@collector:4318"])
def test_an_endpoint_that_is_no_plain_url_is_refused(endpoint: str, tmp_path: Path) -> None:
    settings = tmp_path / "stepwedge.yaml"
    settings.write_text(f"tracing: {{endpoint: '{endpoint}'}}\n")
    with pytest.raises(SettingsError, match=r"tracing\.endpoint"):
        load_settings(settings)


def test_a_collector_that_is_away_is_told_of_once_and_holds_nothing_up() -> None:
    (port,) = free_ports(1)
    with structlog.testing.capture_logs() as logged:
        tracing.start(Tracing(endpoint=f"http://127.0.0.1:{port}"), "work")
        for _ in range(3000):
            with tracing.span("analyse", under=tracing.of_study(STUDY)):
                pass
        began = time.monotonic()
        tracing.stop()
        took = time.monotonic() - began
    assert [line["event"] for line in logged] == ["traces_not_taken"]
    assert took < 10, "the library alone would try for half a minute"


def test_a_collector_that_comes_back_is_told_of() -> None:
    with collecting(status=400) as collector, structlog.testing.capture_logs() as logged:
        started(collector)
        with tracing.span("analyse", under=tracing.of_study(STUDY)):
            pass
        deadline = time.monotonic() + 60
        while not logged and time.monotonic() < deadline:
            time.sleep(0.05)
        collector.status = 200
        with tracing.span("deliver", under=tracing.of_study(STUDY)):
            pass
        tracing.stop()
    assert [(line["event"], line.get("lost")) for line in logged] == [
        ("traces_not_taken", None),
        ("traces_taken_again", 1),
    ]
    assert [span.name for span in collector.spans] == ["deliver"]
