"""The folder of a saved baseline: its files and its manifest, written and read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from candid.atomic import atomic_folder
from candid.checksums import (
    check_entries,
    check_file,
    check_seal,
    file_entry,
    read_error,
    write_sealed_json,
)
from candid.component import lookup
from candid.config import validated
from candid.data import PreparedDataset
from candid.errors import ArtifactError, ConfigError
from candid.evaluation import EvaluationConfig
from candid.json_text import read_json
from candid.runs.folder import BASELINE, check_is_empty, dataset_of, store_dataset

if TYPE_CHECKING:
    from candid.baselines import Baseline

FORMAT: Final = 2
"""Version of ``baseline.json`` and the arrays beside it."""
SAVE_AGAIN: Final = "save the baseline again"
ARRAYS: Final = "arrays.safetensors"
ITEMS: Final = "items.parquet"


@dataclass(frozen=True)
class SavedBaseline:
    """The content of the folder of a saved baseline.

    Attributes:
        name: in ``candid.baselines.BASELINES``.
        model: the fitted baseline.
        dataset: the prepared dataset that it was fitted to.
        evaluation: settings of evaluations.
        manifest: content of ``baseline.json``.
    """

    name: str
    model: Baseline
    dataset: PreparedDataset
    evaluation: EvaluationConfig
    manifest: dict[str, Any]


def write_baseline(
    folder: Path, model: Baseline, dataset: PreparedDataset, facts: Mapping[str, Any]
) -> dict[str, Any]:
    """Write a baseline into a new or empty folder, completely or not at all.

    Args:
        folder: the folder.
        model: the fitted baseline.
        dataset: that it was fitted to; one in memory is stored in the folder.
        facts: content of ``baseline.json``, without the checksums of the files.

    Returns:
        content of ``baseline.json``.

    Raises:
        ConfigError: the folder has content.
        ArtifactError: the operating system refuses.
    """
    # Here, because only functions of baselines need scipy.
    from candid.baselines.storage import write_arrays

    check_is_empty(folder, "--save")
    with atomic_folder(folder) as temporary:
        write_arrays(temporary / ARRAYS, model)
        dataset.items.select("source_id").write_parquet(temporary / ITEMS)
        store_dataset(temporary, dataset)
        files = {name: file_entry(temporary / name) for name in (ARRAYS, ITEMS)}
        added = {"fingerprint": files[ARRAYS]["sha256"], "files": files}
        return write_sealed_json(temporary / BASELINE, {**facts, **added})


def read_saved_baseline(
    folder: Path, data: PreparedDataset | Path | str | None = None
) -> SavedBaseline:
    """Read the folder of a saved baseline.

    Args:
        folder: the folder.
        data: the prepared dataset, or its folder; None: the one that ``baseline.json`` names.

    Raises:
        ArtifactError: not a saved baseline, one of another version, a damaged one, or another
            dataset.
    """
    from candid.baselines import BASELINES
    from candid.baselines.storage import read_baseline

    manifest = read_baseline_manifest(folder)
    name = manifest["baseline"]
    try:
        baseline = lookup(BASELINES, "baseline", name)
        config = validated(baseline.Config, manifest["settings"], "settings")
        evaluation = validated(EvaluationConfig, manifest["evaluation"], "evaluation")
    except ConfigError as error:
        raise ArtifactError(
            f"{folder / BASELINE}: {error}; the file is damaged or of another version of candid: "
            "save the baseline again"
        ) from None
    dataset = dataset_of(folder, manifest["dataset"], data, made="fitted", again="save it again")
    check_file(folder / ARRAYS, manifest["files"][ARRAYS], SAVE_AGAIN)
    model = read_baseline(folder / ARRAYS, baseline, config)
    if len(model.target_counts) != dataset.num_items:
        raise ArtifactError(
            f"{folder / ARRAYS} has {len(model.target_counts)} items and the dataset has "
            f"{dataset.num_items}: save the baseline again"
        )
    return SavedBaseline(name, model, dataset, evaluation, manifest)


def read_baseline_manifest(folder: Path) -> dict[str, Any]:
    """Read ``baseline.json``, and compare it with its checksum.

    Raises:
        ArtifactError: missing, damaged or of another format.
    """
    path = folder / BASELINE
    try:
        manifest: dict[str, Any] = read_json(path)
        baseline_format = manifest["format"]
        manifest["dataset"]["fingerprint"], manifest["dataset"]["path"]
        for key in ("baseline", "settings", "evaluation", "fingerprint"):
            manifest[key]
        if baseline_format == FORMAT:
            check_entries(manifest["files"])
    except (FileNotFoundError, NotADirectoryError):
        raise ArtifactError(f"{folder} is not a saved baseline: it has no {BASELINE}") from None
    except OSError as error:
        raise read_error(path, error) from error
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ArtifactError(f"{path} is damaged; {SAVE_AGAIN}") from None
    if baseline_format != FORMAT:
        raise ArtifactError(
            f"{folder} holds a baseline of format {baseline_format} and this version of candid "
            f"reads format {FORMAT}: save the baseline again"
        )
    check_seal(path, manifest, SAVE_AGAIN)
    return manifest
