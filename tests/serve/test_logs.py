"""The log of a server: lines of several processes in one stream."""

import io
import json
import logging
import os
import select
import subprocess
import sys

from candid.serve.logs import BufferedHandler, JsonFormatter


class Writes(io.StringIO):
    """A stream that remembers the size of each write."""

    def __init__(self):
        super().__init__()
        self.sizes = []

    def write(self, text):
        self.sizes.append(len(text.encode()))
        return super().write(text)


def record(message):
    return logging.LogRecord("candid.serve", logging.INFO, "", 0, message, (), None)


def test_long_logs_are_written_in_parts_that_a_pipe_takes_whole():
    stream = Writes()
    handler = BufferedHandler(stream, seconds=60)
    messages = [f"{number} " + "é" * (number % 700) for number in range(300)]
    for message in messages:
        handler.emit(record(message))
    handler.flush()
    assert max(stream.sizes) <= select.PIPE_BUF
    assert min(stream.sizes[:-1]) > select.PIPE_BUF / 2
    assert stream.getvalue() == "\n".join(messages) + "\n"


def test_line_longer_than_a_part_is_kept():
    stream = Writes()
    handler = BufferedHandler(stream, seconds=60)
    messages = ["short", "x" * 10_000, "short"]
    for message in messages:
        handler.emit(record(message))
    handler.flush()
    assert stream.getvalue().splitlines() == messages


def test_lines_of_a_worker_have_its_number():
    assert json.loads(JsonFormatter(3).format(record("hello")))["worker"] == 3
    assert "worker" not in json.loads(JsonFormatter().format(record("hello")))


def test_lines_of_several_processes_stay_whole():
    program = (
        "from candid.serve.logs import log_event, set_up_logging\n"
        "import sys\n"
        "set_up_logging(worker=int(sys.argv[1]))\n"
        "for number in range(5000):\n"
        "    log_event('request', number=number, text='x' * (number % 300))\n"
    )
    read_end, write_end = os.pipe()
    processes = [
        subprocess.Popen([sys.executable, "-c", program, str(worker)], stderr=write_end)
        for worker in (1, 2, 3)
    ]
    os.close(write_end)
    with os.fdopen(read_end) as stream:
        lines = [json.loads(line) for line in stream]
    for worker, process in enumerate(processes, 1):
        assert process.wait() == 0
        numbers = [line["number"] for line in lines if line["worker"] == worker]
        assert numbers == list(range(5000))
