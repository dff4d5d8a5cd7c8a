"""The image and the service: probes have a port of their own, which the health check asks."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from candid.serve.http.listening import bind
from candid.serve.http.probes import ProbeProcess
from candid.serve.server_status import ServerStatus

ROOT = Path(__file__).parents[3]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
HEALTH_CHECK = json.loads(
    re.search(r"HEALTHCHECK .* CMD (\[.*?\])\n", DOCKERFILE, re.S)[1].replace("\\\n", "")
)
ENTRYPOINT = json.loads(re.search(r"ENTRYPOINT (\[.*\])", DOCKERFILE)[1])
SERVICE = re.search(
    r"ExecStart=(.*?[^\\])\n", (ROOT / "deploy" / "candid.service").read_text(), re.S
)[1].replace("\\\n", "")


@pytest.fixture
def probes():
    """A process that answers probes; its port and the status that it is sent."""
    status = ServerStatus()
    probes = ProbeProcess(bind("127.0.0.1", 0, "--probe-port"), status, lambda: b"")
    probes.start()
    yield probes.address[1], status
    probes.stop()


@pytest.mark.parametrize("command", [ENTRYPOINT, shlex.split(SERVICE)], ids=["image", "service"])
def test_server_has_a_port_for_probes(command):
    port, probe_port = (command[command.index(option) + 1] for option in ("--port", "--probe-port"))
    assert (port, probe_port) == ("8000", "8001")


def test_health_check_asks_the_port_for_probes(probes):
    port, status = probes
    program = HEALTH_CHECK[-1]
    probe_port = ENTRYPOINT[ENTRYPOINT.index("--probe-port") + 1]
    assert program.count(f"'127.0.0.1', {probe_port}, timeout=2") == 1
    command = [sys.executable, *HEALTH_CHECK[1:-1], program.replace(probe_port, str(port))]
    assert subprocess.run(command, check=False).returncode == 1  # the models are being loaded
    status.beat()
    status.not_ready = None
    # The status reaches the process that answers a moment later.
    assert any(subprocess.run(command, check=False).returncode == 0 for _ in range(20))
