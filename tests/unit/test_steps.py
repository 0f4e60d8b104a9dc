"""Each step of the durable work: done twice it is done once, and cut short it is done by the next one."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import structlog
from instances import write_file
from numpy.typing import NDArray
from packages import write_package, write_policy
from prometheus_client import REGISTRY
from radiographs import BRIGHT, DARK, radiograph
from stepwedge import steps
from stepwedge.analysis import delivered_at, read_published, receipt, results_dir
from stepwedge.errors import DeliveryError, InferenceUnavailableError
from stepwedge.identity import load_site
from stepwedge.inference.engine import OnnxEngine
from stepwedge.manifest import load_package
from stepwedge.observation import Observation
from stepwedge.pipeline import Equipment
from stepwedge.policy import load_policy
from stepwedge.records import ModelReference, State
from stepwedge.settings import Destination, Settings
from stepwedge.steps import Bench
from stepwedge.store import Delivery, Revision, Store, Study, Unit, unit_id

STUDY_UID = "1.2.826.0.1.3680043.8.498.91"
STUDY = "cd" * 16  # its keyed hash
NAME = "Quillfeather"  # of the invented patient


class Receiver:
    """A destination that remembers what it took, and refuses while it has an ``error``."""

    def __init__(self) -> None:
        self.taken: list[dict[str, bytes]] = []
        self.error: Exception | None = None

    def send(self, files: list[Path]) -> None:
        if self.error is not None:
            raise self.error
        self.taken.append({file.name: file.read_bytes() for file in files})


class Failing:
    """An engine that raises: nobody can order a real one to."""

    model = ModelReference(name="tiny", version="1.0.0", digest="0")

    def __init__(self, error: Exception) -> None:
        self._error = error
        self.urgent: bool | None = None

    def run(
        self, inputs: Mapping[str, NDArray[np.float32]], *, urgent: bool = False
    ) -> tuple[dict[str, NDArray[np.float32]], str]:
        self.urgent = urgent
        raise self._error


class Department:
    """One study in the spool, the database, and two destinations: a test PACS and a clinical one."""

    def __init__(self, folder: Path, equipment: Equipment) -> None:
        settings = Settings(
            data_dir=folder,
            destinations=[
                Destination(name="test", host="127.0.0.1", port=104, ae_title="TEST", accepts_demonstration=True),
                Destination(name="clinical", host="127.0.0.1", port=104, ae_title="CLINICAL"),
            ],
        )
        self.sinks = {"test": Receiver(), "clinical": Receiver()}
        self.store = Store.open_file(settings.database_file)
        self.bench = Bench(
            settings=settings,
            site=load_site(folder),
            store=self.store,
            equipment={equipment.package.digest: equipment},
            sinks=self.sinks,
        )
        self.digest = equipment.package.digest

    def queue(self, number: int = 1, *, brightness: float = BRIGHT, priority: str = "") -> str:
        """A revision of the study in the spool and in the queue; its unit."""
        path = f"spool/studies/cd/{STUDY}/{1:032x}.{number:016x}.dcm"
        image = radiograph(brightness, study=STUDY_UID)
        image.RequestedProcedurePriority = priority
        write_file(image, self.bench.settings.data_dir / path)
        study = Study(
            study=STUDY, study_uid=STUDY_UID, first_instance_at=1.0, last_instance_at=1.0, revision=number, open=False
        )
        revision = Revision(study=STUDY, revision=number, closed_at=2.0, last_instance_at=1.0, paths=(path,))
        self.store.restore_study(study, [revision])
        unit = Unit(
            unit=unit_id(STUDY, number, self.digest),
            study=STUDY,
            revision=number,
            model_name="tiny",
            model_digest=self.digest,
            created_at=float(number),
            last_instance_at=1.0,
        )
        self.store.restore_unit(unit)
        return unit.unit

    def change(self, **values: Any) -> None:
        self.bench = replace(self.bench, **values)

    def set_destinations(self, *destinations: Destination) -> None:
        self.change(settings=self.bench.settings.model_copy(update={"destinations": list(destinations)}))

    def run_with(self, error: Exception) -> None:
        """From now on every inference raises this."""
        equipment = self.bench.equipment[self.digest]
        self.change(equipment={self.digest: replace(equipment, engine=Failing(error))})

    def unit(self, name: str) -> Unit:
        unit = self.store.unit(name)
        assert unit is not None
        return unit

    def ended(self, name: str) -> tuple[str, tuple[str, ...]]:
        unit = self.unit(name)
        assert unit.ended_at is not None
        return str(unit.state), unit.reasons

    def deliveries(self, name: str) -> dict[str, str]:
        return {item.destination: item.state for item in self.store.deliveries(unit=name)}

    def delivery(self, name: str, destination: str = "test") -> Delivery:
        return next(item for item in self.store.deliveries(unit=name) if item.destination == destination)

    def observations(self) -> list[Observation]:
        return [Observation.from_json(body) for _, body in self.store.observations()]


def equipment_of(folder: Path, version: str) -> Equipment:
    package = load_package(write_package(folder / "tiny", version=version))
    policy = load_policy(write_policy(folder / "policy.yaml"), package.manifest)
    return Equipment(package=package, engine=OnnxEngine(package, "cpu", threads=1), policy=policy)


@pytest.fixture(scope="module")
def equipment(tmp_path_factory: pytest.TempPathFactory) -> Equipment:
    return equipment_of(tmp_path_factory.mktemp("old"), "1.0.0")


@pytest.fixture(scope="module")
def newer(tmp_path_factory: pytest.TempPathFactory) -> Equipment:
    return equipment_of(tmp_path_factory.mktemp("new"), "1.1.0")


@pytest.fixture
def department(tmp_path: Path, equipment: Equipment) -> Iterator[Department]:
    made = Department(tmp_path / "data", equipment)
    yield made
    made.store.close()


def ended_so(priority: str, state: str) -> float:
    """How many studies the metric says have ended so, in whatever time."""
    labels = {"priority": priority, "state": state}
    return REGISTRY.get_sample_value("stepwedge_study_end_seconds_count", labels) or 0.0


class TestTheTimeToTheEnd:
    @pytest.mark.parametrize(("asked", "priority"), [("STAT", "urgent"), ("LOW", "routine"), ("", "routine")])
    def test_it_is_counted_once_under_the_priority_that_was_asked_for(
        self, department: Department, asked: str, priority: str
    ) -> None:
        before = ended_so(priority, "reported")
        unit = department.queue(priority=asked)
        steps.analyse(department.bench, unit)
        steps.analyse(department.bench, unit)
        assert ended_so(priority, "reported") == before + 1

    def test_an_urgent_study_goes_ahead_of_others_at_the_inference_server(self, department: Department) -> None:
        engine = Failing(InferenceUnavailableError("away"))
        department.change(
            equipment={department.digest: replace(department.bench.equipment[department.digest], engine=engine)}
        )
        steps.analyse(department.bench, department.queue(priority="HIGH"))
        assert engine.urgent is True
        steps.analyse(department.bench, department.queue(2, priority="ROUTINE"))
        assert engine.urgent is False

    def test_a_study_that_nobody_answered_for_has_failed_with_a_priority_that_is_not_known(
        self, department: Department
    ) -> None:
        before = ended_so("unknown", "failed")
        steps.give_up(department.bench, department.queue())
        assert ended_so("unknown", "failed") == before + 1


class TestDemonstrationResults:
    def test_they_are_planned_only_for_a_destination_that_accepts_them(self, department: Department) -> None:
        unit = department.queue()
        assert steps.analyse(department.bench, unit) == "reported"
        assert department.deliveries(unit) == {"test": "pending", "clinical": "withheld"}
        assert department.delivery(unit, "clinical").error == "demonstration results do not go there"

    def test_a_delivery_asked_for_all_the_same_sends_nothing(self, department: Department) -> None:
        unit = department.queue()
        steps.analyse(department.bench, unit)
        assert steps.deliver(department.bench, unit, "clinical") == steps.WITHHELD
        assert department.sinks["clinical"].taken == []

    def test_one_that_waits_is_withheld_when_the_destination_no_longer_accepts_them(
        self, department: Department
    ) -> None:
        unit = department.queue()
        steps.analyse(department.bench, unit)
        test, clinical = department.bench.settings.destinations
        department.set_destinations(test.model_copy(update={"accepts_demonstration": False}), clinical)
        assert steps.deliver(department.bench, unit, "test") == steps.WITHHELD
        assert department.deliveries(unit) == {"test": "withheld", "clinical": "withheld"}
        assert department.sinks["test"].taken == []

    def test_one_for_a_destination_that_left_the_settings_is_withheld(self, department: Department) -> None:
        unit = department.queue()
        steps.analyse(department.bench, unit)
        department.set_destinations(department.bench.settings.destinations[1])
        assert steps.deliver(department.bench, unit, "test") == steps.WITHHELD
        assert department.delivery(unit).error == "the destination is not in the settings"
        assert department.sinks["test"].taken == []

    def test_a_destination_that_came_into_the_settings_later_gets_nothing_of_an_earlier_result(
        self, department: Department
    ) -> None:
        unit = department.queue()
        steps.analyse(department.bench, unit)
        test = department.bench.settings.destinations[0]
        department.set_destinations(test, test.model_copy(update={"name": "later"}))
        steps.analyse(department.bench, unit)
        assert department.deliveries(unit) == {"test": "pending", "clinical": "withheld"}


class Cut(BaseException):
    """The process ends here: nothing may catch it."""


class TestAUnitCutShort:
    def test_its_deliveries_are_written_down_before_it_is_said_to_have_ended(
        self, department: Department, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        unit = department.queue()
        with monkeypatch.context() as patch:
            cut_at_the_end(department, patch, Cut())
            with pytest.raises(Cut):
                steps.analyse(department.bench, unit)
        assert department.unit(unit).state is State.RUNNING
        planned = department.store.deliveries(unit=unit)
        assert department.deliveries(unit) == {"test": "pending", "clinical": "withheld"}
        assert steps.analyse(department.bench, unit) == "reported"
        assert department.ended(unit) == ("reported", ())
        assert department.store.deliveries(unit=unit) == planned
        assert len(department.observations()) == 1

    def test_with_its_result_there_an_error_does_not_fail_it(
        self, department: Department, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        unit = department.queue()
        with monkeypatch.context() as patch:
            cut_at_the_end(department, patch, OSError("the disk is full"))
            assert steps.analyse(department.bench, unit) == "reported"
        assert department.ended(unit) == ("reported", ())
        assert steps.deliver(department.bench, unit, "test") == steps.DELIVERED
        assert [item.state for item in department.observations()] == ["reported"]

    def test_with_its_result_there_it_is_not_given_up(self, department: Department) -> None:
        unit = department.queue()
        steps.analyse(department.bench, unit)
        department.store.set_unit(unit, State.RUNNING)
        assert steps.give_up(department.bench, unit) == "reported"
        assert department.ended(unit) == ("reported", ())

    def test_with_its_result_there_it_is_finished_although_its_model_has_left_the_settings(
        self, department: Department
    ) -> None:
        unit = department.queue()
        steps.analyse(department.bench, unit)
        department.store.set_unit(unit, State.RUNNING)
        department.change(equipment={})
        assert steps.analyse(department.bench, unit) == "reported"
        assert steps.deliver(department.bench, unit, "test") == steps.DELIVERED
        assert department.ended(unit) == ("reported", ())

    def test_run_again_after_its_end_it_changes_nothing(self, department: Department) -> None:
        unit = department.queue()
        steps.analyse(department.bench, unit)
        steps.deliver(department.bench, unit, "test")
        before = department.store.deliveries(unit=unit), department.observations()
        assert steps.analyse(department.bench, unit) == "reported"
        assert (department.store.deliveries(unit=unit), department.observations()) == before

    def test_one_that_nobody_knows_ends_failed_and_raises_nothing(self, department: Department) -> None:
        assert steps.analyse(department.bench, "nobody") == "failed"
        assert steps.give_up(department.bench, "nobody") == "failed"


def cut_at_the_end(department: Department, patch: pytest.MonkeyPatch, error: BaseException) -> None:
    """Make the database fail, once, when it is told how a unit ended."""
    real = department.store.set_unit
    errors = [error]

    def set_unit(unit: str, state: State, reasons: Any = (), *, at: float | None = None) -> None:
        if at is not None and errors:
            raise errors.pop()
        real(unit, state, reasons, at=at)

    patch.setattr(department.store, "set_unit", set_unit)


class TestAModelThatLeftTheSettings:
    def test_its_units_fail_with_that_reason(self, department: Department) -> None:
        unit = department.queue()
        department.change(equipment={})
        assert steps.analyse(department.bench, unit) == "failed"
        assert department.ended(unit) == ("failed", ("model_not_configured",))
        (observed,) = department.observations()
        assert (observed.state, observed.reasons) == ("failed", ("model_not_configured",))
        assert department.deliveries(unit) == {}

    def test_another_version_of_it_gets_the_work_and_reports(self, department: Department, newer: Equipment) -> None:
        unit = department.queue()
        department.change(equipment={newer.package.digest: newer})
        assert steps.analyse(department.bench, unit) == "superseded"
        assert department.ended(unit) == ("superseded", ("model_replaced",))
        successor = unit_id(STUDY, 1, newer.package.digest)
        assert department.unit(successor).state is State.QUEUED
        assert steps.analyse(department.bench, successor) == "reported"
        assert steps.deliver(department.bench, successor, "test") == steps.DELIVERED
        published = read_published(department.bench.settings, successor)
        assert published is not None
        assert published.result.model.version == "1.1.0"
        assert [item.state for item in department.observations()] == ["superseded", "reported"]

    def test_the_work_is_handed_on_once(self, department: Department, newer: Equipment) -> None:
        unit = department.queue()
        department.change(equipment={newer.package.digest: newer})
        steps.analyse(department.bench, unit)
        steps.analyse(department.bench, unit_id(STUDY, 1, newer.package.digest))
        assert steps.analyse(department.bench, unit) == "superseded"
        assert [str(item.state) for item in department.store.units(study=STUDY)] == ["superseded", "reported"]


class TestRevisions:
    def test_an_older_one_that_nobody_has_analysed_is_superseded(self, department: Department) -> None:
        first, second = department.queue(1), department.queue(2)
        assert steps.analyse(department.bench, first) == "superseded"
        assert department.ended(first) == ("superseded", ("newer_revision",))
        assert steps.analyse(department.bench, second) == "reported"
        assert department.deliveries(first) == {}

    def test_an_older_one_that_has_a_result_keeps_it(self, department: Department) -> None:
        first = department.queue(1)
        steps.analyse(department.bench, first)
        department.store.set_unit(first, State.RUNNING)
        department.queue(2)
        assert steps.analyse(department.bench, first) == "reported"

    def test_a_newer_one_waits_while_the_older_one_is_analysed(self, department: Department) -> None:
        first, second = department.queue(1), department.queue(2)
        department.store.set_unit(first, State.RUNNING)
        assert steps.analyse(department.bench, second) == steps.WAITING
        assert department.unit(second).state is State.QUEUED
        department.store.set_unit(first, State.FAILED, ("internal_error",), at=1.0)
        assert steps.analyse(department.bench, second) == "reported"

    def test_an_older_one_that_met_a_full_volume_holds_up_no_newer_one(self, department: Department) -> None:
        first = department.queue(1)
        equipment = department.bench.equipment
        department.run_with(OSError(errno.ENOSPC, "no space left on device"))
        assert steps.analyse(department.bench, first) == steps.WAITING
        assert department.unit(first).state is State.QUEUED
        second = department.queue(2)
        department.change(equipment=equipment)
        assert steps.analyse(department.bench, second) == "reported"

    def test_they_go_to_a_destination_in_their_order(self, department: Department) -> None:
        first = department.queue(1, brightness=DARK)
        steps.analyse(department.bench, first)
        second = department.queue(2)
        steps.analyse(department.bench, second)
        assert steps.deliver(department.bench, second, "test") == steps.PENDING
        assert department.sinks["test"].taken == []
        assert steps.deliver(department.bench, first, "test") == steps.DELIVERED
        assert steps.deliver(department.bench, second, "test") == steps.DELIVERED
        assert len(department.sinks["test"].taken) == 2

    def test_waiting_for_the_earlier_one_is_no_attempt(self, department: Department) -> None:
        steps.analyse(department.bench, department.queue(1))
        second = department.queue(2)
        steps.analyse(department.bench, second)
        steps.deliver(department.bench, second, "test")
        assert (department.delivery(second).attempts, department.delivery(second).error) == (0, "")


class TestAnInferenceServerThatIsAway:
    def test_the_unit_waits_and_says_for_what(self, department: Department) -> None:
        unit = department.queue()
        department.run_with(InferenceUnavailableError())
        assert steps.analyse(department.bench, unit) == steps.UNAVAILABLE
        waiting = department.unit(unit)
        assert (waiting.state, waiting.reasons) == (State.QUEUED, ("inference_unavailable",))
        assert waiting.ended_at is None
        assert department.observations() == []

    def test_given_up_and_tried_again_both_tries_are_observed(
        self, department: Department, equipment: Equipment
    ) -> None:
        unit = department.queue()
        department.run_with(InferenceUnavailableError())
        steps.analyse(department.bench, unit)
        assert steps.give_up(department.bench, unit) == "failed"
        assert department.ended(unit) == ("failed", ("inference_unavailable",))
        failed = department.store.unit(unit)
        assert failed is not None
        department.store.retry_unit(failed)
        department.change(equipment={department.digest: equipment})
        assert steps.analyse(department.bench, unit) == "reported"
        first, reported = department.observations()
        assert (first.unit, first.state, first.reasons) == (unit, "failed", ("inference_unavailable",))
        assert (reported.unit, reported.state, reported.reasons) == (unit, "reported", ())
        assert first.model_version == "1.0.0"

    def test_given_up_twice_in_one_try_it_is_observed_once(self, department: Department) -> None:
        unit = department.queue()
        for _ in range(2):
            steps.give_up(department.bench, unit)
        assert len(department.observations()) == 1


class TestAnUnexpectedError:
    def test_it_fails_the_unit_and_no_value_that_it_quotes_is_kept(self, department: Department) -> None:
        unit = department.queue()
        department.run_with(RuntimeError(f"cannot read {NAME}^Zebulon"))
        with structlog.testing.capture_logs() as logged:
            assert steps.analyse(department.bench, unit) == "failed"
        assert department.ended(unit) == ("failed", ("internal_error",))
        (observed,) = department.observations()
        assert observed.reasons == ("internal_error",)
        assert NAME not in str(logged) + observed.to_json()
        (told,) = [event for event in logged if event["event"] == "analysis_failed"]
        assert told["error"] == "RuntimeError"
        assert told["where"].startswith("test_steps:")

    def test_an_instance_that_is_gone_fails_the_unit_until_it_is_back(self, department: Department) -> None:
        unit = department.queue()
        revision = department.store.revision(STUDY, 1)
        assert revision is not None
        file = department.bench.settings.data_dir / revision.paths[0]
        away = file.rename(file.with_suffix(".away"))
        assert steps.analyse(department.bench, unit) == "failed"
        assert department.ended(unit) == ("failed", ("instance_missing",))
        away.rename(file)
        failed = department.store.unit(unit)
        assert failed is not None
        department.store.retry_unit(failed)
        assert steps.analyse(department.bench, unit) == "reported"
        assert [item.state for item in department.observations()] == ["failed", "reported"]


class TestDelivery:
    @pytest.fixture
    def unit(self, department: Department) -> str:
        name = department.queue()
        steps.analyse(department.bench, name)
        return name

    def test_what_is_sent_are_the_bytes_that_were_kept(self, department: Department, unit: str) -> None:
        published = read_published(department.bench.settings, unit)
        assert published is not None
        assert steps.deliver(department.bench, unit, "test") == steps.DELIVERED
        kept = {item.path.name: item.path.read_bytes() for item in published.objects}
        assert department.sinks["test"].taken == [kept]
        assert list(kept) == ["sr.dcm", "sc.dcm"]

    def test_done_again_after_success_it_sends_nothing(self, department: Department, unit: str) -> None:
        steps.deliver(department.bench, unit, "test")
        department.store.set_delivery(unit, "test", "pending", at=1.0)
        assert steps.deliver(department.bench, unit, "test") == steps.DELIVERED
        assert len(department.sinks["test"].taken) == 1

    def test_a_receipt_counts_although_the_database_knows_of_none(self, department: Department, unit: str) -> None:
        with receipt(department.bench.settings, unit, "test") as keep:
            keep(1234.5)
        assert steps.deliver(department.bench, unit, "test") == steps.DELIVERED
        assert department.sinks["test"].taken == []
        assert department.delivery(unit).updated_at == 1234.5

    def test_a_refusal_keeps_it_waiting_with_its_error_and_counts_attempts(
        self, department: Department, unit: str
    ) -> None:
        department.sinks["test"].error = DeliveryError("test: 0xA700 out of resources")
        for attempt in (1, 2):
            assert steps.deliver(department.bench, unit, "test") == steps.PENDING
            waiting = department.delivery(unit)
            assert (waiting.state, waiting.attempts) == ("pending", attempt)
            assert waiting.error == "test: 0xA700 out of resources"
        assert delivered_at(department.bench.settings, unit, "test") is None
        department.sinks["test"].error = None
        assert steps.deliver(department.bench, unit, "test") == steps.DELIVERED
        delivered = department.delivery(unit)
        assert (delivered.state, delivered.attempts, delivered.error) == ("delivered", 3, "")

    def test_an_unexpected_error_keeps_it_waiting_and_quotes_no_value(self, department: Department, unit: str) -> None:
        department.sinks["test"].error = ValueError(f"cannot encode {NAME}^Zebulon")
        with structlog.testing.capture_logs() as logged:
            assert steps.deliver(department.bench, unit, "test") == steps.PENDING
        waiting = department.delivery(unit)
        assert (waiting.state, waiting.attempts) == ("pending", 1)
        assert waiting.error.startswith("internal error ValueError at test_steps:")
        assert NAME not in str(logged) + waiting.error

    def test_without_room_for_its_receipt_it_is_not_sent(
        self, department: Department, unit: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(_: int) -> None:
            raise OSError(errno.ENOSPC, "no space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            assert steps.deliver(department.bench, unit, "test") == steps.PENDING
        assert department.sinks["test"].taken == []
        assert department.delivery(unit).error == "the volume has no room for the receipt"
        assert not list((results_dir(department.bench.settings) / unit).glob(".*"))
        assert steps.deliver(department.bench, unit, "test") == steps.DELIVERED
        assert len(department.sinks["test"].taken) == 1

    def test_a_result_that_cannot_be_read_keeps_it_waiting_and_says_so(self, department: Department, unit: str) -> None:
        file = results_dir(department.bench.settings) / unit / "result.json"
        kept = file.read_text(encoding="utf-8")
        file.write_text(kept[: len(kept) // 2], encoding="utf-8")
        assert steps.deliver(department.bench, unit, "test") == steps.PENDING
        waiting = department.delivery(unit)
        assert (waiting.state, waiting.attempts) == ("pending", 1)
        assert "the result cannot be read" in waiting.error
        assert "restore it from a backup" in waiting.error
        file.write_text(kept, encoding="utf-8")
        assert steps.deliver(department.bench, unit, "test") == steps.DELIVERED

    def test_a_result_that_is_gone_is_withheld(self, department: Department, unit: str) -> None:
        folder = results_dir(department.bench.settings) / unit
        folder.rename(folder.with_name(f".{unit}"))
        assert steps.deliver(department.bench, unit, "test") == steps.WITHHELD
        assert "no longer there" in department.delivery(unit).error
        assert department.sinks["test"].taken == []
