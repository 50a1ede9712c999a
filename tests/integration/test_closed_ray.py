"""The Ray that raydd starts is for this machine and its own process: others get nothing from it."""

from __future__ import annotations

import ipaddress
import json
import subprocess
import sys
from http.client import HTTPConnection

import psutil
import pytest
from driving import environment

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]
TOKEN, OTHER = "5e" * 32, "0" * 64
SESSION = """
import json, os, sys
from raydd.runtime.ray.ray_session import ray_session
before = dict(os.environ)
with ray_session(cpus=1) as dashboard:
    import ray
    print(json.dumps({"dashboard": dashboard, "head": ray.get_runtime_context().gcs_address}), flush=True)
    sys.stdin.read()
left = {name for name in set(before) | set(os.environ) if before.get(name) != os.environ.get(name)}
print(json.dumps(sorted(left)), flush=True)
"""
JOIN = """
import ray, sys
ray.init(address=sys.argv[1], log_to_driver=False)
print("joined")
"""


def listening(process: psutil.Process) -> set[str]:
    """Return the addresses at which a process and those that it started listen."""
    return {
        connection.laddr.ip
        for one in (process, *process.children(recursive=True))
        for connection in one.net_connections(kind="inet")
        if connection.status == psutil.CONN_LISTEN
    }


def is_loopback(address: str) -> bool:
    """Return whether an address is this machine's own, also one of version 4 within 6."""
    found = ipaddress.ip_address(address)
    mapped = found.ipv4_mapped if isinstance(found, ipaddress.IPv6Address) else None
    return (mapped or found).is_loopback


def answer(dashboard: str, token: str | None) -> int:
    """Return the status with which a dashboard answers who asks for its jobs."""
    place = HTTPConnection(dashboard, timeout=120)
    place.request(
        "GET", "/api/jobs/", headers={"Authorization": f"Bearer {token}"} if token else {}
    )
    status = place.getresponse().status
    place.close()
    return status


def test_who_has_no_token_is_turned_away() -> None:
    env = environment(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=TOKEN)
    env.pop("RAYDD_RAY_DASHBOARD", None)
    session = subprocess.Popen(
        [sys.executable, "-c", SESSION],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=env,
        text=True,
    )
    assert session.stdout is not None
    try:
        facts = json.loads(session.stdout.readline())
        found = listening(psutil.Process(session.pid))
        assert found
        assert [address for address in found if not is_loopback(address)] == []
        answers = [answer(facts["dashboard"], token) for token in (None, OTHER, TOKEN)]
        assert answers == [401, 403, 200]
        for token in ("", OTHER, TOKEN):
            joined = subprocess.run(
                [sys.executable, "-c", JOIN, facts["head"]], capture_output=True, text=True, timeout=240, check=False,
                env=environment(RAY_AUTH_MODE="token" if token else "disabled", RAY_AUTH_TOKEN=token),
            )  # fmt: skip
            assert ("joined" in joined.stdout) == (token == TOKEN), joined.stderr
        rest, _ = session.communicate("", timeout=240)
        assert not {name for name in json.loads(rest) if "CLUSTER" in name or "GLOO" in name}
    finally:
        session.kill()
        session.wait()
