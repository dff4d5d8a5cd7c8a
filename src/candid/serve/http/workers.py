"""A server with several worker processes behind one port. Needs no torch in this process."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path

from candid.errors import ArtifactError
from candid.serve.config import ServeConfig
from candid.serve.http.access import AccessRules
from candid.serve.http.listening import bind, log_keys, num_cores, url_of
from candid.serve.http.probes import ProbeProcess
from candid.serve.logs import log_event, set_up_logging
from candid.serve.metrics import read_all
from candid.serve.model_files import ModelFiles
from candid.serve.server_status import ServerStatus
from candid.serve.supervisor import Supervisor
from candid.serve.update_log import ItemUpdates
from candid.temporary import TemporaryFolder


def run_workers(
    files: Mapping[str, ModelFiles],
    *,
    config: ServeConfig,
    access: AccessRules,
    host: str,
    port: int,
    num_workers: int,
    probe_port: int | None = None,
    item_updates: Path | str | None = None,
) -> None:
    """Serve with several processes until a signal stops this one; SIGHUP reloads all models.

    Args:
        files: of the models, by name; the first is the default.
        config: limits of each worker; ``threads``, if not set, is its share of the cores.
        access: keys of clients, allowed host names and trusted proxies.
        host: address to listen on.
        port: port to listen on; 0: any free one.
        num_workers: processes that answer requests.
        probe_port: port for probes, which one process answers for all workers; 0: any free one.
            None: the workers answer them.
        item_updates: file that stores item updates; None: updates end with the server.

    Raises:
        CandidError: a model cannot be opened, the address is not available, or all workers end
            again and again before they are ready.
    """
    sock = bind(host, port, "--port")
    probe_sock = None if probe_port is None else bind(host, probe_port, "--probe-port")
    set_up_logging()
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    if config.threads is None:
        config = config.model_copy(update={"threads": max(1, num_cores() // num_workers)})
    log_keys(access, host)
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.closing(sock))
        metrics = stack.enter_context(_metrics_folder())
        status = ServerStatus()
        if probe_sock is not None:
            probes = ProbeProcess(probe_sock, status, lambda: read_all(metrics))
            probes.start()
            stack.callback(probes.stop)
            log_event("probes listening", address=url_of(probes.address))
        updates = stack.enter_context(contextlib.closing(ItemUpdates(item_updates)))
        updates.log_unserved(files)

        def report(reason: str | None) -> None:
            status.not_ready = reason

        Supervisor(
            files,
            config=config,
            access={
                "read": access.keys.read,
                "admin": access.keys.admin,
                "hosts": access.hosts.names,
                "proxies": access.proxies.addresses,
            },
            listener=sock,
            address=url_of(sock.getsockname()),
            updates=updates,
            metrics=metrics,
            report=report,
            beat=status.beat,
            num_workers=num_workers,
        ).run()


@contextlib.contextmanager
def _metrics_folder() -> Iterator[Path]:
    """Yield a private folder for the metrics of the workers, and remove it in the end."""
    try:
        folder = TemporaryFolder("metrics")
    except OSError as error:
        raise ArtifactError(
            f"cannot create a folder for the metrics of the workers ({error.strerror}): set TMPDIR "
            "to a folder with free space"
        ) from None
    with folder:
        yield folder.path
