"""Studies with planted differences, written as records and values of users."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

import numpy as np

from candid.study.records import (
    CalibrationBin,
    CellKey,
    CurvePoint,
    Measured,
    PopularityGroup,
    Quantiles,
    Record,
)


@dataclass(frozen=True)
class PlantedArm:
    """An arm with known differences to the others, which have none."""

    ndcg: float = 0.0
    nll: float = 0.0
    drift: float | None = 0.0
    gradient_bias: float | None = None
    cpu_seconds: float = 100.0
    seeds: int | None = None
    failed: tuple[int, ...] = ()


@dataclass(frozen=True)
class PlantedStudy:
    """Cells of one dataset: users and seeds differ, and the arms by what is planted."""

    points: dict[tuple[str, int], dict[str, PlantedArm]]
    full: PlantedArm | None = field(default_factory=PlantedArm)
    dataset: str = "films"
    users: int = 600
    seeds: int = 5
    num_items: int = 60_000
    ndcg: float = 0.4
    noise: float = 0.01
    seed: int = 0

    def write(self, folder):
        (folder / "users").mkdir(exist_ok=True)
        # All lines at once: to lock and sync a file for each would take most of the time.
        lines = [json.dumps(record.to_json()) + "\n" for record in self._records(folder)]
        with (folder / "records.jsonl").open("a") as file:
            file.writelines(lines)

    def _records(self, folder):
        rng = np.random.default_rng(self.seed)
        base = {
            "ndcg": self.ndcg + 0.1 * rng.standard_normal(self.users),
            "nll": 6.0 + rng.standard_normal(self.users),
        }
        for (sampler, n), arms in self.points.items():
            for name, arm in arms.items():
                yield from self._arm(folder, (sampler, n, name), arm, base, rng)
        if self.full is not None:
            yield from self._arm(folder, ("none", 0, "full_softmax"), self.full, base, rng)

    def _arm(self, folder, place, arm, base, rng):
        for seed in range(self.seeds if arm.seeds is None else arm.seeds):
            sampler, n, name = place
            key = CellKey("main", self.dataset, "time", "small", sampler, n, name, 0.01, seed)
            if seed in arm.failed:
                error = "the loss is nan at step 3; lower the learning rate"
                yield Record(key, "failed", error)
                continue
            # A training shifts all users a little, and each user a little more.
            ndcg, nll = (
                base[metric]
                + getattr(arm, metric)
                + 0.02 * self.noise * rng.standard_normal()
                + self.noise * rng.standard_normal(self.users)
                for metric in ("ndcg", "nll")
            )
            users = f"users/{key.id}.npz"
            np.savez(
                folder / users,
                user_ids=np.arange(self.users),
                ndcg=ndcg,
                nll=nll,
                decile=np.arange(self.users) % 10,
                probability=np.exp(-nll),
            )
            yield self._record(key, arm, users, ndcg.mean(), nll.mean())

    def _record(self, key, arm, users, ndcg, nll):
        test = {"ndcg@10": Measured(float(ndcg), 0.001), "nll": Measured(float(nll), 0.01)}
        full = key.sampler == "none"
        return Record(
            key,
            "finished",
            code_commit="1" * 40,
            num_items=2 * self.num_items,
            softmax_items=self.num_items,
            ranked_items=self.num_items,
            num_users=self.users,
            candidates_per_row=self.num_items if full else key.num_candidates,
            steps=200,
            test=test,
            validation=test,
            curve=tuple(
                CurvePoint(step, step / 2, float(ndcg) * step / 200, float(nll) + 1 / step, 0.9)
                for step in (50, 100, 200)
            ),
            cpu_seconds=arm.cpu_seconds + key.seed,
            peak_mib=500.0,
            chi2=None if full else Quantiles(2.0, 8.0, 50.0),
            chi2_users=0 if full else 256,
            drift_users=0 if full or arm.drift is None else 64,
            drift=None if full or arm.drift is None else Measured(arm.drift, 0.001),
            gradient_bias=None
            if full or arm.gradient_bias is None
            else Measured(arm.gradient_bias, 0.001),
            calibration=tuple(
                CalibrationBin(low, 10 * low, 1000, 3 * low, 2 * low) for low in (1e-4, 1e-3, 1e-2)
            ),
            popularity=tuple(
                PopularityGroup(
                    f"{10 * part} to {10 * part + 9}",
                    100,
                    Measured(float(ndcg) * (part + 1) / 10, 0.001),
                    Measured(float(nll) + 1 - part / 10, 0.01),
                )
                for part in range(10)
            ),
            users=users,
        )
