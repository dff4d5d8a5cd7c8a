"""A program that runs ``candid`` for shell blocks in forks of itself: FORKED_CANDID FOLDER.

Importing torch and candid takes longer than most commands of the docs. This program imports them
once. It writes ``COMMAND`` to the folder, the ``candid`` that the shell finds: it hands its
arguments, folder, variables and streams over and ends with the exit code of the fork. The program
prints an empty line when it is ready, and ends when its stdin closes.
"""

from __future__ import annotations

import json
import os
import select
import socket
import sys
import traceback
from pathlib import Path

COMMAND = """#!{python} -IS
import json, os, socket, sys
link = socket.socket(socket.AF_UNIX)
link.connect({address!r})
request = [sys.argv[1:], os.getcwd(), dict(os.environ)]
socket.send_fds(link, [b"."], [0, 1, 2])
link.sendall(json.dumps(request).encode())
link.shutdown(socket.SHUT_WR)
code = link.recv(4)
sys.exit(int(code) if code else "candid was killed")
"""


def run_fork(link: socket.socket) -> None:
    """Run the command that a connection asks for in this process, and end the process."""
    code = 70
    try:
        _, streams, _, _ = socket.recv_fds(link, 1, 3)
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
            os.close(stream)
        with link.makefile("rb") as file:
            arguments, folder, variables = json.loads(file.read())
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(variables)
        code = candid_code(arguments)
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        link.sendall(str(code).encode())
        os._exit(code)


def main(folder: Path) -> None:
    """Import everything once, then answer connections."""
    address = str(folder / "socket")
    command = folder / "candid"
    command.write_text(COMMAND.format(python=sys.executable, address=address))
    command.chmod(0o755)
    preload()
    forks = 0
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen()
        sys.stdout.write("\n")
        sys.stdout.flush()
        while listener in select.select([listener, sys.stdin], [], [])[0]:
            link, _ = listener.accept()
            if os.fork() == 0:
                listener.close()
                run_fork(link)
            forks += 1
            link.close()
    for _ in range(forks):
        os.wait()


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
    from faults_process import candid_code, preload

    main(Path(sys.argv[1]))
