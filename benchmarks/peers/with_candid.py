"""candid, by its trainer: what ``candid train`` runs."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from turns import Ints, K, Turns, arguments, lists_of

import candid
from candid.batches import Loader, pack_histories
from candid.config import parse_config
from candid.data import open_dataset
from candid.index import ExactIndex, Exclusions
from candid.runs import build_model, build_objective, set_threads
from candid.towers import RetrievalModel
from candid.training import Trainer


def main() -> None:
    """Train in turns."""
    data, folder, settings = arguments()
    dataset = open_dataset(folder / "dataset")
    config = parse_config(settings["config"], "the benchmark's settings")
    set_threads(config.threads)
    torch.manual_seed(config.seed)
    model = build_model(config, dataset)
    loss, sampler = build_objective(config, dataset)
    seen = [data.history(user) for user in data.asked]
    offsets = np.cumsum([0, *map(len, seen)])
    exclude = Exclusions(torch.from_numpy(np.concatenate(seen)), torch.from_numpy(offsets))

    @torch.inference_mode()
    def recommend() -> Ints:
        model.eval()
        index = ExactIndex(model.encode_catalog())
        found = []
        for begin in range(0, len(data.asked), 256):
            rows = slice(begin, begin + 256)
            histories = [items[-config.batches.max_length :] for items in seen[rows]]
            queries = pack_histories(
                data.asked[rows],
                np.concatenate(histories),
                np.array([len(items) for items in histories]),
            )
            found.append(model.encode_queries(queries))
        lists = index.search(torch.cat(found), K, exclude).item_ids.numpy()
        model.train()
        return lists

    def validate(model: RetrievalModel) -> dict[str, float]:
        turns.end()
        return {"turn": 0.0}

    turns = Turns(recommend, lists_of(settings["name"], folder))
    with TemporaryDirectory() as run:
        trainer = Trainer(
            model=model,
            loader=Loader(dataset, config.batches, seed=config.seed),
            loss=loss,
            sampler=sampler,
            config=config.training,
            folder=Path(run),
            seed=config.seed,
            validate=validate,
            metric="turn",
        )
        turns.begin(versions={"candid": candid.__version__, "torch": torch.__version__})
        trainer.run()


if __name__ == "__main__":
    main()
