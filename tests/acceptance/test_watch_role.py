"""The monitor runs beside the service, is started again when it ends, and never keeps the service from being ready."""

from __future__ import annotations

import json
from pathlib import Path

import httpx
import yaml
from packages import write_package, write_policy
from peers import free_ports

from service import Service, settings_for, until


def test_the_monitor_is_a_role_that_the_service_does_without(tmp_path: Path) -> None:
    package, policy = write_package(tmp_path / "package"), write_policy(tmp_path / "policy.yaml")
    [port] = free_ports(1)
    own = tmp_path / "service" / "stepwatch.yaml"
    own.parent.mkdir()
    own.write_text(yaml.safe_dump({"http": {"port": port}, "detection": {"poll_seconds": 0.1}}))
    values = settings_for(package, policy, [], watch={"enabled": True, "config": own.name})
    service = Service(tmp_path / "service", values)

    def told() -> bool:
        return bool(json.loads(service.get("/readyz") or "{}").get("watch"))

    def watching() -> bool:
        try:
            return httpx.get(f"http://127.0.0.1:{port}/readyz", timeout=10).status_code == 200
        except httpx.HTTPError:
            return False

    try:
        service.start()
        until(lambda: told() and watching(), "the monitor has found the service's database", service)
        text = httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=10).text
        assert "stepwatch_database_up 1.0" in text
        assert "stepwedge_" not in text, "the service's own counters are not the monitor's"
        first = service.pid("watch")
        service.kill("watch")
        assert service.get("/readyz", "status") == 200
        until(lambda: service.pid("watch") != first and watching(), "the monitor is started again", service)
        assert 'stepwedge_role_restarts_total{role="watch"} 1.0' in service.get("/metrics")
        last = service.pid("watch")
    finally:
        status = service.stop()
    assert status == 0
    assert not Path(f"/proc/{last}").exists()
