"""A study of seconds, and the program that a test kills in the middle of a cell."""

import os
import signal
import sys

from candid.study import parse_study, run_study

DATASET = {
    "synthetic": {
        "num_users": 60,
        "num_items": 40,
        "num_topics": 4,
        "interactions_mean": 12.0,
        "history_weight": 0.0,
        "dim": 4,
    }
}
STUDY = {
    "name": "small",
    "budget": {"cpu_hours": 1.0},
    "recipe": {
        "device": "cpu",
        "threads": 1,
        "batches": {"unit": "interaction", "batch_size": 64},
        "training": {
            "epochs": 3,
            "warmup_steps": 2,
            "patience": "none",
            "softmax_over": "trained",
            "log_every": 1,
        },
    },
    "datasets": {"synthetic": DATASET},
    "towers": {
        "vectors": {
            "model": {
                "query_tower": {"type": "user_embedding", "dim": 4},
                "item_tower": {"type": "item_embedding", "dim": 4},
            }
        }
    },
    "pilot": {"learning_rates": [0.05], "recipe": {"training": {"epochs": 1}}},
    "measure": {"calibration_users": 20},
    "grids": [{"num_candidates": [4], "arms": ["logq_kept", "refined", "full_softmax"]}],
}


class Silent:
    """A display that shows nothing."""

    def on_note(self, line):
        pass

    def on_cell(self, key, status):
        pass

    def on_step(self, key, state, status):
        pass

    def on_record(self, record, status):
        pass


class KillsIn(Silent):
    """Kills this process in a main cell, after the checkpoint of its first epoch."""

    def __init__(self, arm):
        self.arm = arm
        self.is_validated = False

    def on_step(self, key, state, status):
        if (key.phase, key.arm) == ("main", self.arm) and state.epoch == 1:
            if self.is_validated:  # the checkpoint follows the validation
                os.kill(os.getpid(), signal.SIGKILL)
            self.is_validated = True


if __name__ == "__main__":
    run_study(parse_study(STUDY, "study"), sys.argv[1], progress=KillsIn("refined"))
