"""The files of a served model: the folders of its run, index and dataset."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from candid.serve.bundle import ServingBundle


@dataclass(frozen=True)
class ModelFiles:
    """Folders from which a model is opened. A call opens them; importing needs no torch.

    Attributes:
        run: folder of the run or of the baseline.
        index: folder of the index; None: the one in the folder of the run, or an exact index in
            memory if it has none.
        data: folder of the prepared dataset; None: the one that the run names.
        verify: whether to compare all files with their checksums.
    """

    run: Path
    index: Path | None = None
    data: Path | None = None
    verify: bool = True

    def __call__(self) -> ServingBundle:
        """Open the model as it is now; see ``candid.serve.open_bundle``.

        Raises:
            CandidError: it cannot be opened.
        """
        from candid.serve.bundle import open_bundle

        return open_bundle(self.run, self.index, self.data, verify=self.verify)

    def to_json(self) -> dict[str, Any]:
        """Return the attributes as plain JSON values."""
        folders = {"run": self.run, "index": self.index, "data": self.data}
        texts = {name: None if path is None else str(path) for name, path in folders.items()}
        return {**texts, "verify": self.verify}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> ModelFiles:
        """Return the files that ``to_json`` wrote."""
        index, data = (
            None if content[name] is None else Path(content[name]) for name in ("index", "data")
        )
        return cls(Path(content["run"]), index, data, content["verify"])
