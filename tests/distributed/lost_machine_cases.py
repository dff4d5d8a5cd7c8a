"""A training in float64 under torchrun, whose machine may be lost: LOST_MACHINE_CASES ARGUMENTS."""

import os
import signal
import time
from pathlib import Path

from candid.cli import main as candid
from candid.runs import training
from candid.training import Trainer

LOST_AT = int(os.environ.get("LOST_AT", "0"))
"""Step after which the process and its torchrun are killed."""
KILLED_AT = int(os.environ.get("KILLED_AT", "0"))
"""Step after which the process alone is killed, once."""
WAITS_AT = int(os.environ.get("WAITS_AT", "0"))
"""Step from which a process without others waits for a machine."""


def main():
    build_model, step = training.build_model, Trainer.step
    training.build_model = lambda *args, **kwargs: build_model(*args, **kwargs).double()

    def counted(self, *args, **kwargs):
        result = step(self, *args, **kwargs)
        number = self.state.step
        with Path(os.environ["STEPS"]).open("a") as file:
            file.write(f"{os.environ['WORLD_SIZE']} {os.environ['RANK']} {number}\n")
        if number == LOST_AT:
            os.kill(os.getppid(), signal.SIGKILL)
        is_first = os.environ.get("TORCHELASTIC_RESTART_COUNT") == "0"
        if number == LOST_AT or (number == KILLED_AT and is_first):
            os.kill(os.getpid(), signal.SIGKILL)
        if WAITS_AT and number >= WAITS_AT and os.environ["WORLD_SIZE"] == "1":
            time.sleep(0.5)
        return result

    Trainer.step = counted
    candid()


if __name__ == "__main__":
    main()
