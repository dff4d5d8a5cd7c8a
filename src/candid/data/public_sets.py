"""The registry of public data sets: their files as published, and how they are read.

Nothing is bundled or downloaded. Sizes and terms of use are those that the publishers state. Where
a publisher names no licence, or none could be confirmed, the entry states so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final


@dataclass(frozen=True)
class RawFiles:
    """One form in which a publisher provides the interactions of a set.

    Attributes:
        pattern: glob pattern of the name of the file.
        settings: keys of ``DataConfig`` that read it.
        rows: rows of the complete file, or None where it depends on the part or is not stated.
        items: name of the file beside it with titles and attributes of items, and its keys of
            ``ItemTableConfig``; None: none is read.
        users: likewise for users, with keys of ``UserTableConfig``.
        query: SELECT statement over ``{path}`` for a file that only DuckDB reads (extra
            ``database``); None: candid reads it.
    """

    pattern: str
    settings: Mapping[str, Any]
    rows: int | None = None
    items: tuple[str, Mapping[str, Any]] | None = None
    users: tuple[str, Mapping[str, Any]] | None = None
    query: str | None = None


@dataclass(frozen=True)
class PublicSet:
    """A public data set.

    Attributes:
        title: its name in publications.
        users: number of users or sessions, or None where it depends on the part.
        items: number of items, likewise.
        licence: terms of use as the publisher states them.
        url: page of the publisher.
        download: what to download, and what it contains.
        files: forms of the interactions; the first whose file is there is read.
        split: keys of ``SplitConfig`` of the usual split.
    """

    title: str
    users: int | None
    items: int | None
    licence: str
    url: str
    download: str
    files: tuple[RawFiles, ...]
    split: Mapping[str, Any] = field(default_factory=lambda: {"kind": "leave-one-out"})

    @property
    def rows(self) -> int | None:
        """Rows of the first form of the interactions."""
        return self.files[0].rows


_MOVIELENS_TERMS: Final = "research only, no redistribution; commercial use needs permission"
_MOVIELENS_URL: Final = "https://grouplens.org/datasets/movielens/"
_NO_LICENCE: Final = "no licence named"
_CITE: Final = f"{_NO_LICENCE}; the page asks to cite its papers"

_DAT: Final = {"user": "user_id", "item": "item_id", "time": "timestamp"}
_MOVIES_DAT: Final = (
    "movies.dat",
    {"item": "item_id", "title": "title", "attributes": ["genres"]},
)
_CSV: Final = {"user": "userId", "item": "movieId", "time": "timestamp"}
_MOVIES_CSV: Final = (
    "movies.csv",
    {"item": "movieId", "title": "title", "attributes": ["genres"]},
)
_RATINGS: Final = {**_DAT, "k_core": 5}
_REVIEWS: Final = {
    "format": "jsonl",
    "user": "reviewerID",
    "item": "asin",
    "time": "unixReviewTime",
    "k_core": 5,
}
_YAMBDA: Final = {"user": "uid", "item": "item_id", "time": "timestamp"}
_YAMBDA_DAYS: Final = {"kind": "temporal", "validation": 25_827_200, "test": 25_913_600}
"""The last day is test, the day before validation; times are seconds since the first day."""
_YAMBDA_URL: Final = "https://huggingface.co/datasets/yandex/yambda"


def _yambda(size: str, users: int, items: int, listens: int, likes: int) -> PublicSet:
    return PublicSet(
        title=f"Yambda-{size.upper()}",
        users=users,
        items=items,
        licence="Apache-2.0",
        url=_YAMBDA_URL,
        download=f"flat/{size}/listens.parquet or flat/{size}/likes.parquet",
        files=(
            RawFiles("listens.parquet", _YAMBDA, rows=listens),
            RawFiles("likes.parquet", _YAMBDA, rows=likes),
        ),
        split=_YAMBDA_DAYS,
    )


PUBLIC_SETS: Final[Mapping[str, PublicSet]] = {
    "ml-100k": PublicSet(
        title="MovieLens 100K",
        users=943,
        items=1_682,
        licence=_MOVIELENS_TERMS,
        url=_MOVIELENS_URL,
        download="ml-100k.zip: u.data, tab separated, without a header",
        files=(
            RawFiles(
                "u.data",
                {
                    **_DAT,
                    "format": "tsv",
                    "column_names": ["user_id", "item_id", "rating", "timestamp"],
                },
                rows=100_000,
            ),
        ),
    ),
    "ml-1m": PublicSet(
        title="MovieLens 1M",
        users=6_040,
        items=3_706,
        licence=_MOVIELENS_TERMS,
        url=_MOVIELENS_URL,
        download="ml-1m.zip: ratings.dat, movies.dat, users.dat",
        files=(
            RawFiles(
                "ratings.dat",
                _DAT,
                rows=1_000_209,
                items=_MOVIES_DAT,
                users=(
                    "users.dat",
                    {"user": "user_id", "attributes": ["gender", "age", "occupation"]},
                ),
            ),
        ),
    ),
    "ml-10m": PublicSet(
        title="MovieLens 10M",
        users=71_567,
        items=10_681,
        licence=_MOVIELENS_TERMS,
        url=_MOVIELENS_URL,
        download="ml-10m.zip: ratings.dat, movies.dat",
        files=(RawFiles("ratings.dat", _DAT, rows=10_000_054, items=_MOVIES_DAT),),
    ),
    "ml-20m": PublicSet(
        title="MovieLens 20M",
        users=138_493,
        items=27_278,
        licence=_MOVIELENS_TERMS,
        url=_MOVIELENS_URL,
        download="ml-20m.zip: ratings.csv, movies.csv",
        files=(RawFiles("ratings.csv", _CSV, rows=20_000_263, items=_MOVIES_CSV),),
    ),
    "ml-25m": PublicSet(
        title="MovieLens 25M",
        users=162_541,
        items=62_423,
        licence=_MOVIELENS_TERMS,
        url=_MOVIELENS_URL,
        download="ml-25m.zip: ratings.csv, movies.csv",
        files=(RawFiles("ratings.csv", _CSV, rows=25_000_095, items=_MOVIES_CSV),),
    ),
    "ml-32m": PublicSet(
        title="MovieLens 32M",
        users=200_948,
        items=87_585,
        licence=_MOVIELENS_TERMS,
        url=_MOVIELENS_URL,
        download="ml-32m.zip: ratings.csv, movies.csv",
        files=(RawFiles("ratings.csv", _CSV, rows=32_000_204, items=_MOVIES_CSV),),
    ),
    "amazon-2014": PublicSet(
        title="Amazon Reviews 2014, one category",
        users=None,
        items=None,
        licence=_CITE,
        url="https://jmcauley.ucsd.edu/data/amazon/",
        download="ratings_CATEGORY.csv, without a header, or reviews_CATEGORY_5.json.gz",
        files=(
            RawFiles(
                "ratings_*.csv",
                {
                    **_DAT,
                    "column_names": ["user_id", "item_id", "rating", "timestamp"],
                    "k_core": 5,
                },
            ),
            RawFiles("reviews_*.json*", _REVIEWS),
        ),
    ),
    "amazon-2018": PublicSet(
        title="Amazon Reviews 2018, one category",
        users=None,
        items=None,
        licence=_CITE,
        url="https://nijianmo.github.io/amazon/",
        download="CATEGORY.csv, without a header, or CATEGORY_5.json.gz",
        files=(
            RawFiles(
                "*.csv",
                {
                    **_DAT,
                    "column_names": ["item_id", "user_id", "rating", "timestamp"],
                    "k_core": 5,
                },
            ),
            RawFiles("*.json*", _REVIEWS),
        ),
    ),
    "amazon-2023": PublicSet(
        title="Amazon Reviews 2023, one category",
        users=None,
        items=None,
        licence="no licence: the publisher states that it cannot assign one; mainly for research",
        url="https://amazon-reviews-2023.github.io/",
        download="CATEGORY.csv (rating_only) or CATEGORY.jsonl (reviews), also with .gz",
        files=tuple(
            RawFiles(
                pattern,
                {"user": "user_id", "item": "parent_asin", "time": "timestamp", "k_core": 5},
            )
            for pattern in ("*.csv*", "*.jsonl*")
        ),
    ),
    "yambda-50m": _yambda("50m", 10_000, 934_057, 46_467_212, 881_456),
    "yambda-500m": _yambda("500m", 100_000, 3_004_578, 466_512_103, 9_033_960),
    "yambda-5b": _yambda("5b", 1_000_000, 9_390_623, 4_649_567_411, 89_334_605),
    "otto": PublicSet(
        title="OTTO sessions",
        users=12_899_779,
        items=1_855_603,
        licence="CC BY 4.0",
        url="https://github.com/otto-de/recsys-dataset",
        download="otto-recsys-train.jsonl, one session a line (needs the extra database)",
        files=(
            RawFiles(
                "*train*.jsonl",
                {"user": "session", "item": "aid", "time": "ts", "event_type": "type"},
                rows=216_716_096,
                query="SELECT session, event.aid AS aid, event.ts AS ts, event.type AS type FROM "
                "(SELECT session, unnest(events) AS event FROM read_json({path}, "
                "format = 'newline_delimited', columns = {{session: 'BIGINT', "
                "events: 'STRUCT(aid BIGINT, ts BIGINT, type VARCHAR)[]'}}))",
            ),
        ),
    ),
    "yoochoose": PublicSet(
        title="YOOCHOOSE clicks (RecSys Challenge 2015)",
        users=9_249_729,
        items=52_739,
        licence="CC BY-NC-ND 4.0",
        url="https://2015.recsyschallenge.com/challenge.html",
        download="yoochoose-clicks.dat, comma separated, without a header",
        files=(
            RawFiles(
                "yoochoose-clicks.dat",
                {
                    "format": "csv",
                    "separator": ",",
                    "column_names": ["session_id", "timestamp", "item_id", "category"],
                    "user": "session_id",
                    "item": "item_id",
                    "time": "timestamp",
                },
                rows=33_003_944,
            ),
        ),
    ),
    "retailrocket": PublicSet(
        title="Retailrocket events",
        users=1_407_580,
        items=None,
        licence="CC BY-NC-SA 4.0",
        url="https://www.kaggle.com/datasets/retailrocket/ecommerce-dataset",
        download="events.csv: views, additions to carts, transactions",
        files=(
            RawFiles(
                "events.csv",
                {
                    "user": "visitorid",
                    "item": "itemid",
                    "time": "timestamp",
                    "event_type": "event",
                },
                rows=2_756_101,
            ),
        ),
    ),
    "diginetica": PublicSet(
        title="Diginetica item views (CIKM Cup 2016)",
        users=310_324,
        items=122_993,
        licence="those of the competition; no licence confirmed",
        url="https://competitions.codalab.org/competitions/11161",
        download="train-item-views.csv, separated by semicolons",
        files=(
            RawFiles(
                "train-item-views.csv",
                {
                    "separator": ";",
                    "user": "sessionId",
                    "item": "itemId",
                    "time": "eventdate",
                    "order": "timeframe",
                },
                rows=1_235_380,
            ),
        ),
    ),
    "gowalla": PublicSet(
        title="Gowalla check-ins",
        users=None,
        items=None,
        licence=_NO_LICENCE,
        url="https://snap.stanford.edu/data/loc-gowalla.html",
        download="loc-gowalla_totalCheckins.txt.gz, tab separated, without a header",
        files=(
            RawFiles(
                "loc-gowalla_totalCheckins.txt*",
                {
                    "format": "tsv",
                    "column_names": ["user_id", "time", "latitude", "longitude", "location_id"],
                    "user": "user_id",
                    "item": "location_id",
                    "time": "time",
                    "k_core": 10,
                },
                rows=6_442_890,
            ),
        ),
    ),
}
"""Name in ``candid data`` -> the set."""
