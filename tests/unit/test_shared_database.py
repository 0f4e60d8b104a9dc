"""One setting says where the database is; a wrong one is named, and its password never is."""

from __future__ import annotations

from pathlib import Path

import pytest
import sqlalchemy as sa
from peers import free_ports
from postgresql import PASSWORD, PostgreSQL
from stepwedge import database
from stepwedge.errors import SettingsError, StepwedgeError
from stepwedge.settings import Settings, load_settings


def settings(folder: Path, **values: object) -> Settings:
    return Settings.model_validate({"data_dir": folder, "database": values})


def test_without_the_setting_the_database_is_a_file_in_the_data_folder(tmp_path: Path) -> None:
    given = settings(tmp_path)
    assert not database.is_shared(given)
    assert not database.has_database(given)
    database.open_store(given).close()
    assert given.database_file.is_file()
    assert database.has_database(given)
    assert database.queue_url(given) == f"sqlite:///{given.queue_file}"


def test_a_postgresql_is_the_database_and_the_queue(tmp_path: Path, postgresql: PostgreSQL) -> None:
    file = tmp_path / "secret"
    file.write_text(PASSWORD + "\n")
    given = settings(tmp_path / "data", url=postgresql.new_database(), password_file=file)
    store = database.open_store(given)
    assert store.counts()["units"] == {}
    store.close()
    assert not given.database_file.exists()
    assert sa.make_url(database.queue_url(given)).password == PASSWORD


def test_who_cannot_wait_has_a_postgresql_give_up_a_statement(tmp_path: Path, postgresql: PostgreSQL) -> None:
    given = settings(tmp_path, url=postgresql.new_database(), password=PASSWORD)
    store = database.open_store(given, statement_seconds=0.2)
    for _ in range(2):
        with pytest.raises(sa.exc.OperationalError, match="statement timeout"), store.engine.connect() as db:
            db.execute(sa.text("SELECT pg_sleep(60)"))
    assert store.counts()["units"] == {}
    store.close()


def test_the_password_can_come_from_the_environment(
    tmp_path: Path, postgresql: PostgreSQL, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STEPWEDGE_DATABASE__URL", postgresql.new_database())
    monkeypatch.setenv("STEPWEDGE_DATABASE__PASSWORD", PASSWORD)
    monkeypatch.setenv("STEPWEDGE_DATA_DIR", str(tmp_path))
    given = load_settings()
    database.open_store(given).close()
    assert PASSWORD not in repr(given)
    told = database.watch_variables(given)
    assert PASSWORD not in told["STEPWATCH_DATABASE_URL"]
    assert told["PGPASSWORD"] == PASSWORD


@pytest.mark.parametrize(
    ("options", "connect", "silent"),
    [
        ("", "10", "30000"),
        ("?sslmode=verify-full&sslrootcert=/etc/ca.pem", "10", "30000"),
        ("?sslmode=verify-full&connect_timeout=3", "3", "30000"),
        ("?tcp_user_timeout=5000", "10", "5000"),
    ],
)
def test_a_server_that_is_silent_is_given_up_whatever_else_the_address_asks_for(
    tmp_path: Path, options: str, connect: str, silent: str
) -> None:
    url = database.store_url(settings(tmp_path, url=f"postgresql://u@db.example/x{options}", password=PASSWORD))
    assert (url.query["connect_timeout"], url.query["tcp_user_timeout"]) == (connect, silent)
    assert url.query.get("sslmode") == ("verify-full" if "sslmode" in options else None)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"url": f"postgresql://u:{PASSWORD}@db/x"}, "holds a password"),
        ({"url": "mysql://u@db/x"}, "wanted postgresql://"),
        ({"url": f"nonsense {PASSWORD}"}, "not an address"),
        ({"url": "postgresql://u@db"}, "wanted postgresql://"),
        ({"url": "postgresql://u@db/x", "password_file": "/does/not/exist"}, "cannot be read: No such file"),
        ({"url": "postgresql://u@db/x", "password": PASSWORD, "password_file": "/x"}, "both set"),
    ],
)
def test_a_wrong_setting_is_named_without_its_secret(tmp_path: Path, values: dict[str, str], said: str) -> None:
    with pytest.raises(SettingsError, match=said) as error:
        database.open_store(settings(tmp_path, **values))
    assert PASSWORD not in str(error.value)


def test_a_database_that_does_not_answer_is_said_in_a_line(tmp_path: Path) -> None:
    port = free_ports(1)[0]
    with pytest.raises(StepwedgeError, match=f"127.0.0.1:{port}/x: the database cannot be used") as error:
        database.open_store(settings(tmp_path, url=f"postgresql://u@127.0.0.1:{port}/x", password=PASSWORD))
    assert PASSWORD not in str(error.value)
    assert "\n" not in str(error.value)


def test_a_wrong_or_missing_password_is_said_without_it(tmp_path: Path, postgresql: PostgreSQL) -> None:
    url = postgresql.new_database()
    with pytest.raises(StepwedgeError, match="password authentication failed") as error:
        database.open_store(settings(tmp_path, url=url, password="another-secret"))
    assert "another-secret" not in str(error.value)
    with pytest.raises(StepwedgeError, match=r"database\.password_file"):
        database.open_store(settings(tmp_path, url=url))


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_a_second_worker_under_one_name_is_refused(tmp_path: Path, kind: str, request: pytest.FixtureRequest) -> None:
    values: dict[str, object] = {}
    if kind == "postgresql":
        server: PostgreSQL = request.getfixturevalue("postgresql")
        values = {"url": server.new_database(), "password": PASSWORD}
    given = settings(tmp_path, **values)
    other = given.model_copy(update={"worker": given.worker.model_copy(update={"executor_id": "worker-2"})})
    refused = pytest.raises(StepwedgeError, match="another worker runs as worker-1")
    with database.own_executor(given), database.own_executor(other), refused, database.own_executor(given):
        pass
    with database.own_executor(given):
        pass
