"""The HTTP server, in three layers.

- ``http``: middleware, routes, bodies, errors and the server process.
- ``batching``: a generic queue whose requests run in batches; it depends on neither of the others.
- ``model_version``: one version of a model: checks a request, searches, writes the answer.

``service`` connects the layers, ``models`` holds the version in use of each model, and ``bundle``
opens a run for serving. The server needs the extra ``candid-retrieval[serve]``.
"""
