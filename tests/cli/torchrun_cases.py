"""The command line under torchrun; a process is killed once. Run as: TORCHRUN_CASES ARGUMENTS."""

import os
import signal

from candid.cli import main as candid
from candid.index import FaissIndex
from candid.training import Trainer

KILLED_AT = int(os.environ.get("KILLED_AT", "0"))
"""Step after which process 1 is killed."""
KILLED = os.environ.get("KILLED")
"""Process that is killed after it has built its part of an index."""


def main():
    step = Trainer.step

    def counted(self, *args, **kwargs):
        result = step(self, *args, **kwargs)
        is_first = os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
        if is_first and os.environ["RANK"] == "1" and self.state.step == KILLED_AT:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    Trainer.step = counted
    build_part = FaissIndex.Config.build_part

    def build_and_die(self, *args):
        build_part(self, *args)
        if os.environ["RANK"] == KILLED:
            os.kill(os.getpid(), signal.SIGKILL)

    FaissIndex.Config.build_part = build_and_die
    candid()


if __name__ == "__main__":
    main()
