"""The HTTP server, in three layers.

- ``http``: middleware, routes, bodies, errors and the server process.
- ``batching``: a generic queue whose requests run in batches; it depends on neither of the others.
- ``model_version``: one version of a model: checks a request, searches, writes the answer.

``service`` connects the layers, ``models`` holds the version in use of each model, and ``bundle``
opens a run for serving. The server needs the extra ``candid-retrieval[serve]``.

Modules load on first use: ``ServeConfig`` works without torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from candid.serve.batching import BatchQueue
    from candid.serve.bundle import ServingBundle, open_bundle
    from candid.serve.config import ServeConfig
    from candid.serve.model_version import ModelVersion

__all__ = ["BatchQueue", "ModelVersion", "ServeConfig", "ServingBundle", "open_bundle"]

_MODULES = {
    "BatchQueue": "batching",
    "ModelVersion": "model_version",
    "ServeConfig": "config",
    "ServingBundle": "bundle",
    "open_bundle": "bundle",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'candid.serve' has no attribute {name!r}")
    return getattr(import_module(f"candid.serve.{_MODULES[name]}"), name)
