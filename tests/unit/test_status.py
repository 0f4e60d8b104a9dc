"""What the node holds, for people and for programs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from stepwedge.errors import StepwedgeError
from stepwedge.records import State
from stepwedge.settings import Settings
from stepwedge.status import describe, snapshot
from stepwedge.store import Quarantined, Revision, Store, StoredInstance, Unit

UID = "1.2.826.0.1.3680043.8.498.55"
MOMENT = 1_760_000_000.0  # seconds since 1970


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path)


@pytest.fixture
def store(settings: Settings) -> Iterator[Store]:
    store = Store.open_file(settings.database_file)
    yield store
    store.close()


def arrive(store: Store, study: str, at: float = MOMENT) -> None:
    store.add_instance(
        StoredInstance(
            study=study,
            instance="i" * 32,
            digest="d" * 64,
            path="spool/file.dcm",
            study_uid=UID,
            series_uid=f"{UID}.1",
            sop_uid=f"{UID}.1.1",
            sop_class_uid="1.2.840.10008.5.1.4.1.1.1.1",
            transfer_syntax_uid="1.2.840.10008.1.2.1",
            modality="DX",
            routed=True,
            size=1,
            received_at=at,
            sender="CT1",
        )
    )


def close(store: Store, name: str, states: list[State], revision: int = 1) -> list[str]:
    study = store.study(name)
    assert study is not None
    units = [
        Unit(
            unit=f"{name}.{revision}.{index}",
            study=name,
            revision=revision,
            model_name=f"model-{index}",
            model_digest="m" * 64,
            created_at=MOMENT + index,
            last_instance_at=MOMENT,
        )
        for index in range(len(states))
    ]
    closed = Revision(
        study=name, revision=revision, closed_at=MOMENT, last_instance_at=MOMENT, paths=("spool/file.dcm",)
    )
    assert store.close_study(study, closed if units else None, units)
    for unit, state in zip(units, states, strict=True):
        store.set_unit(unit.unit, state, ["inference_unavailable"] if state is State.FAILED else [])
    return [unit.unit for unit in units]


def study_state(settings: Settings, name: str = "s1") -> str:
    state = snapshot(settings)
    return next(state.state(study) for study in state.studies if study.study == name)


class TestAStudysState:
    def test_while_instances_come_it_is_arriving(self, settings: Settings, store: Store) -> None:
        arrive(store, "s1")
        assert study_state(settings) == "arriving"

    def test_that_no_model_wants_is_not_routed(self, settings: Settings, store: Store) -> None:
        arrive(store, "s1")
        close(store, "s1", [])
        assert study_state(settings) == "not_routed"

    def test_that_no_model_wants_says_why_it_has_no_result(self, settings: Settings, store: Store) -> None:
        arrive(store, "s1")
        close(store, "s1", [])
        state = snapshot(settings)
        assert "No configured model selects an image of this study" in describe(state)
        assert json.loads(state.to_json())["studies"][0]["reasons"] == ["no_model_selects"]

    @pytest.mark.parametrize(
        ("states", "expected"),
        [
            ([State.REPORTED], "reported"),
            ([State.REJECTED], "rejected"),
            ([State.REPORTED, State.REJECTED], "reported"),
            ([State.REPORTED, State.DEFERRED], "deferred"),
            ([State.DEFERRED, State.QUEUED], "queued"),
            ([State.QUEUED, State.RUNNING], "running"),
            ([State.RUNNING, State.FAILED, State.REPORTED], "failed"),
        ],
    )
    def test_it_is_that_of_the_unit_which_wants_most_attention(
        self, settings: Settings, store: Store, states: list[State], expected: str
    ) -> None:
        arrive(store, "s1")
        close(store, "s1", states)
        assert study_state(settings) == expected

    def test_earlier_revisions_no_longer_count(self, settings: Settings, store: Store) -> None:
        arrive(store, "s1")
        close(store, "s1", [State.FAILED])
        close(store, "s1", [State.REPORTED], revision=2)
        assert study_state(settings) == "reported"


class TestDescription:
    def test_a_folder_without_a_node_is_told_and_left_alone(self, settings: Settings) -> None:
        with pytest.raises(StepwedgeError, match="no database here"):
            snapshot(settings)
        assert not settings.database_file.exists()

    @pytest.mark.usefixtures("store")
    def test_an_empty_node_says_so(self, settings: Settings) -> None:
        assert describe(snapshot(settings)) == "no studies yet"
        assert json.loads(snapshot(settings).to_json()) == {"studies": [], "quarantine": []}

    def test_it_shows_studies_units_reasons_deliveries_and_quarantine(self, settings: Settings, store: Store) -> None:
        arrive(store, "s1")
        failed, reported = close(store, "s1", [State.FAILED, State.REPORTED])
        store.set_delivery(reported, "pacs", "pending", at=1, error="connection refused")
        store.quarantine(
            Quarantined(
                digest="q" * 64,
                reason="bad_uid",
                sender="CT1",
                count=1,
                first_seen=1,
                last_seen=1,
                size=9,
                path="spool/quarantine/q.dcm",
            )
        )
        text = describe(snapshot(settings))
        assert "s1  failed  revision 1" in text
        assert f"{failed}  model-0  failed  inference_unavailable" in text
        assert f"{reported}  model-1  reported\n" in text
        assert "to pacs: pending, 1 attempts  connection refused" in text
        assert "quarantine: bad_uid  from CT1  1 times  spool/quarantine/q.dcm" in text

    def test_newest_studies_come_first_and_a_long_list_is_cut_with_a_word(
        self, settings: Settings, store: Store
    ) -> None:
        for index in range(53):
            arrive(store, f"s{index}", MOMENT + index)
        text = describe(snapshot(settings))
        assert text.index("s52  arriving") < text.index("s51  arriving")
        assert text.endswith("and 3 earlier studies (--json shows them)")
        assert len(json.loads(snapshot(settings).to_json())["studies"]) == 53

    def test_for_programs_it_is_one_json_object_with_the_same_facts(self, settings: Settings, store: Store) -> None:
        arrive(store, "s1")
        (unit,) = close(store, "s1", [State.REPORTED])
        store.set_delivery(unit, "pacs", "delivered", at=7)
        (study,) = json.loads(snapshot(settings).to_json())["studies"]
        assert (study["study"], study["state"], study["revision"]) == ("s1", "reported", 1)
        (shown,) = study["units"]
        assert (shown["unit"], shown["model"], shown["state"], shown["reasons"]) == (unit, "model-0", "reported", [])
        assert shown["deliveries"][0] == {
            "destination": "pacs",
            "state": "delivered",
            "attempts": 1,
            "error": "",
            "updated_at": 7,
        }

    def test_neither_shows_a_uid(self, settings: Settings, store: Store) -> None:
        arrive(store, "s1")
        close(store, "s1", [State.REPORTED])
        state = snapshot(settings)
        assert UID not in describe(state) + state.to_json()
