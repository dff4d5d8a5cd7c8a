"""The command line under torchrun; process 1 is killed once. Run as: TORCHRUN_CASES ARGUMENTS."""

import os
import signal
import sys

from candid.cli import run
from candid.training import Trainer

KILLED_AT = int(os.environ.get("KILLED_AT", "0"))


def main():
    step = Trainer.step

    def counted(self, *args, **kwargs):
        result = step(self, *args, **kwargs)
        is_first = os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
        if is_first and os.environ["RANK"] == "1" and self.state.step == KILLED_AT:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    Trainer.step = counted
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
