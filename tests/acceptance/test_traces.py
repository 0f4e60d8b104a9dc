"""A study through the running service is one trace over its roles. The collector is a stand-in that reads the real
protocol; the PACS is a real one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from otlp_receiver import ReceivedSpan, StandInCollector, collecting
from packages import write_package, write_policy
from peers import Orthanc, free_ports
from sender import BRIGHT, make_study, send_once

from service import Service, destination, settings_for, until


@dataclass(frozen=True)
class Traced:
    """A study's spans, once the service has stopped."""

    study: str
    unit: str
    spans: list[ReceivedSpan]
    collector: StandInCollector
    service: Service

    def of(self, name: str, role: str | None = None) -> list[ReceivedSpan]:
        return [span for span in self.spans if span.name == name and role in {None, span.role}]


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Traced]:
    folder = tmp_path_factory.mktemp("traces")
    (folder / "orthanc").mkdir()
    package, policy = write_package(folder / "package"), write_policy(folder / "policy.yaml")
    (away,) = free_ports(1)
    with Orthanc.started(folder / "orthanc") as pacs, collecting() as collector:
        values = settings_for(
            package,
            policy,
            [destination(pacs.dicom_port), destination(away, name="away")],
            tracing={"endpoint": collector.endpoint},
        )
        service = Service(folder / "service", values)
        service.start()
        try:
            assert send_once(service.settings.node.port, make_study(folder, 1, BRIGHT).file) == 0

            def taken() -> str:
                with service.store() as store:
                    deliveries = {item.destination: item for item in store.deliveries()}
                done = deliveries.keys() == {"pacs", "away"} and deliveries["pacs"].state == "delivered"
                return deliveries["away"].unit if done and deliveries["away"].attempts >= 2 else ""

            unit = until(taken, "the PACS has the result, and the other was tried twice", service)
        finally:
            status = service.stop()
        assert status == 0
        study = unit.partition(".")[0]
        yield Traced(study, unit, collector.trace(study), collector, service)


def test_the_roles_are_in_one_trace_that_has_the_name_of_the_study(traced: Traced) -> None:
    assert {span.role for span in traced.spans} == {"listen", "work", "infer"}
    assert {span.trace for span in traced.collector.spans} == {traced.study}
    assert traced.service.events("instance_stored")[0]["study"] == traced.study


def test_every_span_hangs_on_one_that_is_there(traced: Traced) -> None:
    identifiers = {span.span for span in traced.spans}
    assert len(identifiers) == len(traced.spans)
    assert [span.name for span in traced.spans if span.parent not in identifiers] == ["study"]


def test_the_way_of_a_study_can_be_read_from_it(traced: Traced) -> None:
    (study,), (revision,), (stored,) = traced.of("study"), traced.of("revision"), traced.of("C-STORE")
    (analyse,), (image,) = traced.of("analyse"), traced.of("image")
    assert revision.parent == stored.parent == study.span
    assert {span.parent for span in (analyse, *traced.of("deliver"))} == {revision.span}
    assert image.parent == analyse.span
    stages = [span.name for span in sorted(traced.spans, key=lambda span: span.began) if span.parent == image.span]
    assert stages[:5] == ["gate_header", "decode", "gate_pixels", "preprocess", "infer"]
    assert "decide" in stages
    (report,) = traced.of("report")
    assert report.parent == analyse.span
    assert stored.attributes["bytes"] > 1000
    assert revision.attributes["units"] == [traced.unit]
    assert analyse.attributes["state"] == image.attributes["state"]


def test_the_server_is_a_part_of_the_request_that_the_worker_made(traced: Traced) -> None:
    requests = {span.span: span for span in traced.of("request", "work")}
    served = traced.of("infer", "infer")
    assert served
    for span in served:
        assert requests[span.parent].began <= span.began <= span.ended <= requests[span.parent].ended
        assert span.attributes["model_seconds"] > 0


def test_every_attempt_to_deliver_is_a_span(traced: Traced) -> None:
    by_destination = {
        name: [span for span in traced.of("deliver") if span.attributes["destination"] == name]
        for name in ("pacs", "away")
    }
    assert [span.attributes["outcome"] for span in by_destination["pacs"]] == ["delivered"]
    assert len(by_destination["away"]) >= 2
    assert all(span.failed for span in by_destination["away"])
