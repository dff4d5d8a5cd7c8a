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
VALIDATE_EVERY_STEPS = 4
"""Less than an epoch, which has about 10 steps."""
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
            "validate_every_steps": VALIDATE_EVERY_STEPS,
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
    """Kills this process in a main cell, after the checkpoint of its first validation."""

    def __init__(self, arm):
        self.arm = arm

    def on_step(self, key, state, status):
        if (key.phase, key.arm) == ("main", self.arm) and state.step > VALIDATE_EVERY_STEPS:
            os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    run_study(parse_study(STUDY, "study"), sys.argv[1], progress=KillsIn("refined"))
