"""The commands that the fault campaign kills, and that it runs on full disks.

Each verb that writes has one here. ``verify``, ``data`` without ``--from`` and others that only
print have none; the server is killed in the campaign of updates. ``demo`` takes more than a CPU
minute, and writes with what ``prepare``, ``train`` and ``compare`` write with.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from faults_fixture import BASELINES, DATA_OPTIONS, INDEXES
from faults_programs import COMPILE_KERNEL

INPUTS = ("log.csv", "log2.csv", "items.csv", "users.csv", "ids.toml", "features.toml",
          "data.toml", "space.toml", "study.toml", "ratings.dat")  # fmt: skip
WEIGHTS = r"safetensors#(model|average|optimizer)/"
"""Of processes whose launcher was killed, ``previous.safetensors`` may be of another step: a signal
ends them, after which they write a checkpoint."""
RECORDS = r"^(records\.jsonl:|users/)"
"""Values of the records of a study."""
AUDITED = r"^audit\.json/(?!estimators|ranking|recommend|notes)"
"""Values of an audit that do not follow from measured times, as the order of estimators does."""
AUDIT = ("--users", "8", "--n", "4", "--rows", "16", "--repeats", "16", "--drift-users", "2",
         "--drift-repeats", "16")  # fmt: skip


@dataclass(frozen=True)
class Scenario:
    """One command to kill.

    Attributes:
        arguments: of the command.
        output: files and folders that it writes, relative to its folder.
        needs: artifacts of the fixture, copied into its folder under these names.
        compare: pattern of the values that the finished output must share with an uncut run.
        is_atomic: whether each output appears complete or not at all.
        consume: command that reads the output; it must work or refuse in one sentence.
        of_input: pattern of the values that describe an output which the command also reads: they
            differ where it runs again after it had finished.
        cut: number of the file operation before which a first run was already killed; with 0 the
            command is killed once.
        is_slow: it takes seconds, and has one case where others have three.
    """

    arguments: tuple[str, ...]
    output: tuple[str, ...]
    needs: dict[str, str] = field(default_factory=dict)
    compare: str = ""
    is_atomic: bool = True
    consume: tuple[str, ...] = ()
    of_input: str = ""
    cut: float = 0.0
    is_slow: bool = False

    @property
    def has_ranks(self) -> bool:
        """Whether the command launches processes, of which any one may be killed."""
        return "--processes" in self.arguments


def scenarios() -> dict[str, Scenario]:
    """Return the commands to kill, by name."""
    data = ("--data", "data")
    train = ("--data", "data", "--out", "out", "--no-baselines")
    prepare = ("prepare", "--interactions", "log.csv", *DATA_OPTIONS, "--out", "out")
    read_run = ("recommend", "out", "--user", "3", "--json")
    read_data = ("recommend", "run", "--data", "out", "--user", "3", "--json")
    given = {"data": "data"}
    run_given = {"data": "data", "run": "run"}
    found = {
        "prepare": Scenario(prepare, ("out",), {"run": "run"}, consume=read_data),
        "prepare_again": Scenario(
            prepare, ("out",), {"run": "run", "out": "data2"}, consume=read_data
        ),
        "prepare_ids_from": Scenario(
            ("prepare", "--interactions", "log2.csv", *DATA_OPTIONS, "--ids-from", "out",
             "--out", "out"),
            ("out",), {"run": "run", "out": "data"}, 
            of_input=r"^manifest\.json/(ids_from/|checksum$)",
        ),
        "train": Scenario(
            ("train", "ids.toml", *train), ("out",), given, WEIGHTS, False, read_run
        ),
        "train_features": Scenario(
            ("train", "features.toml", *train), ("out",), given, WEIGHTS, False, read_run
        ),
        "train_with_data": Scenario(
            ("train", "data.toml", "--out", "out", "--no-baselines"),
            ("out",), {}, WEIGHTS, False, read_run,
        ),
        "resume": Scenario(
            ("train", "ids.toml", *train), ("out",), given, WEIGHTS, False, read_run, cut=0.6
        ),
        "refit": Scenario(
            ("train", "ids.toml", *train, "--refit"), ("out",), given, WEIGHTS, False, read_run
        ),
        "refit_resume": Scenario(
            ("train", "ids.toml", *train, "--refit"), ("out",), given, WEIGHTS, False, read_run,
            cut=0.8,
        ),
        "warm_start": Scenario(
            ("train", "--init", "run", "--data", "data2", "--out", "out", "--no-baselines"),
            ("out",), {"data2": "data2", "run": "run"}, WEIGHTS, False, read_run,
        ),
        "tune": Scenario(
            ("tune", "ids.toml", *data, "--out", "out", "--trials", "2", "--space", "space.toml",
             "--set", "training.epochs=1"),
            ("out",), given, r"best\.toml|safetensors#model", False,
        ),
        "evaluate": Scenario(("evaluate", "run", "--out", "out.json"), ("out.json",), run_given),
        "evaluate_in_run": Scenario(
            ("evaluate", "run"), ("run/evaluation-test.json",), run_given,
            consume=("compare", "run", "run", "--json"),
        ),
        "compare": Scenario(
            ("compare", "run", "run2", "--out", "out.html"), ("out.html",),
            {"run": "run", "run2": "run_features"},
        ),
        "recommend": Scenario(
            ("recommend", "run", "--all-users", "--out", "out.parquet"), ("out.parquet",),
            run_given,
        ),
        "recommend_shards": Scenario(
            ("recommend", "run", "--all-users", "--out", "out.parquet", "--shards", "3",
             "--split", "test"),
            ("out.parquet",), run_given,
        ),
        "similar": Scenario(
            ("similar", "run", "--all-items", "--out", "out.csv"), ("out.csv",), run_given
        ),
        "export": Scenario(
            ("export", "run", "--out", "out", "-f", "parquet", "-f", "npy", "-f", "qdrant"),
            ("out",), run_given,
        ),
    }  # fmt: skip
    found |= {
        "kernel": Scenario((COMPILE_KERNEL,), ("cache/candid",)),
        "export_onnx": Scenario(
            ("export", "run", "--out", "out", "-f", "onnx"), ("out",), run_given, is_slow=True
        ),
        "recipe": Scenario(("recipe", "--data", "data", "--out", "out.toml"), ("out.toml",), given),
        "data": Scenario(
            ("data", "ml-1m", "--from", "ratings.dat", "--partial", "--out", "out"), ("out",)
        ),
        "audit": Scenario(
            ("audit", "run", "--data", "data", *AUDIT, "--out", "out"),
            ("out/audit.json",), run_given, AUDITED, False, is_slow=True,
        ),
        "study": Scenario(
            ("study", "study.toml", "--out", "out"),
            ("out",), {}, RECORDS, False, ("study", "study.toml", "--out", "out", "--report"),
            is_slow=True,
        ),
        "train_processes": Scenario(
            ("train", "ids.toml", *train, "--processes", "2"),
            ("out",), given, rf"^(?!previous).*{WEIGHTS}", False, read_run,
        ),
        "index_processes": Scenario(
            ("index", "run", "--out", "out", "-k", "5", "--set", "index.type=faiss", "--set",
             "index.kind=ivf", "--processes", "2"),
            ("out",), run_given, r"npy|parquet", False,
            ("recommend", "run", "--all-users", "--index", "out", "--out", "lists.jsonl"),
        ),
    }  # fmt: skip
    for name in ("exact", "usearch", "hnsw", "kernel_lsh"):
        pairs = [text for setting in INDEXES[name] for text in ("--set", setting)]
        read_index = ("recommend", "run", "--all-users", "--index", "out", "--out", "lists.jsonl")
        for suffix, needs in (("", {}), ("_again", {"out": "index_exact"})):
            found[f"index_{name}{suffix}"] = Scenario(
                ("index", "run", "--out", "out", "-k", "5", *pairs),
                ("out",), run_given | needs, r"npy|parquet", False, read_index,
            )  # fmt: skip
    for name in BASELINES[:3]:
        found[f"baseline_{name}"] = Scenario(
            ("baselines", "data", "--only", name, "--no-tune", "--save", "out", "--out",
             "out.json"),
            ("out", "out.json"), given, consume=("recommend", "out", "--user", "3", "--json"),
        )  # fmt: skip
    return found


def order_of(found: dict[str, Scenario], seed: str) -> list[str]:
    """Return the names in the order of the cases: three of each command, one of a slow one."""
    names = [name for name in sorted(found) for _ in range(1 if found[name].is_slow else 3)]
    random.Random(seed).shuffle(names)
    return names
