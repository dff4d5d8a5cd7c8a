"""A trained run as an export reads it."""

from __future__ import annotations

from candid.export import ExportParts, Side
from candid.runs.index import model_fingerprint
from candid.runs.run import Run


def export_parts(run: Run) -> ExportParts:
    """What ``export.export`` needs of a run."""
    features, model = run.features, run.model
    tables = {
        "item": (features.item, run.config.features.item, model.reads_item_features),
        "user": (features.user, run.config.features.user, model.reads_user_features),
        "context": (features.context, run.config.features.context, model.reads_context),
    }
    return ExportParts(
        name=run.config.name,
        model=model,
        dataset=run.dataset,
        fingerprint=model_fingerprint(run),
        max_length=run.config.batches.max_length,
        sides={
            side: Side(table, configs)
            for side, (table, configs, is_read) in tables.items()
            if table is not None and is_read
        },
    )
