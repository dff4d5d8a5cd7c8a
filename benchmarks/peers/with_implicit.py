"""Matrix factorisation by ``implicit``: BPR, and alternating least squares."""

from __future__ import annotations

from typing import Any

import implicit
import numpy as np
from implicit.als import AlternatingLeastSquares
from implicit.bpr import BayesianPersonalizedRanking
from scipy.sparse import csr_matrix
from turns import Ints, K, Turns, arguments, lists_of


def main() -> None:
    """Train in turns."""
    data, folder, settings = arguments()
    shape = (data.num_users, data.num_items)
    matrix = csr_matrix((np.ones(len(data.users), np.float32), (data.users, data.items)), shape)
    kinds = {"bpr": BayesianPersonalizedRanking, "als": AlternatingLeastSquares}
    model = kinds[settings["model"]](
        factors=settings["dim"],
        iterations=settings["epochs"],
        num_threads=settings["threads"],
        random_state=settings["seed"],
        use_gpu=False,
        **settings["options"],
    )

    def recommend() -> Ints:
        if settings["model"] == "als":
            # What it keeps of its factors is stale in the middle of a fit.
            model._YtY = model._XtX = None
        lists, _ = model.recommend(data.asked, matrix[data.asked], N=K)
        return lists

    turns = Turns(recommend, lists_of(settings["name"], folder))

    def after_epoch(epoch: int, *_: Any) -> None:
        turns.end()

    turns.begin(versions={"implicit": implicit.__version__, "numpy": np.__version__})
    model.fit(matrix, show_progress=False, callback=after_epoch)


if __name__ == "__main__":
    main()
