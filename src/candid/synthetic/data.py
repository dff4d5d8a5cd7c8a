"""Synthetic users, items and interactions with an exactly known P(item | user, history).

A user has a taste, a vector near two favourite topics. The next item depends on the taste and on
the last few items (``SyntheticConfig.history_length``), each of which pulls towards the topic
after its own. The query is

    q(u, h) = [ taste(u) + history_weight · Σ_k w_k · context(h_k) ] / temperature

with weights w_k that fall with age and sum to 1 over the items of the history. The distribution
of the choice given q depends on the mode (``softmax``, ``topics``). Users may choose an item
again: a filter would make the distribution depend on the whole history, so compare likelihoods
without one. All ids are those of the written files: users 0..U-1, items 0..V-1.

With ``SyntheticConfig.released_share``, items are released over time, and the distribution is
the softmax over the items released by the time of the choice: the methods that return
probabilities then need ``times``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import polars as pl
from polars.io.plugins import register_io_source

from candid.atomic import replacing
from candid.errors import ConfigError
from candid.synthetic.activity import Activity
from candid.synthetic.choice_model import ChoiceModel
from candid.synthetic.config import SyntheticConfig
from candid.synthetic.counter_rng import Floats, Ints, Keys, derive, root_key
from candid.synthetic.items import SyntheticItems
from candid.synthetic.softmax import SoftmaxChoice
from candid.synthetic.topic_mixture import TopicMixtureChoice
from candid.synthetic.users import SyntheticUsers

CHOICE_MODELS: Final[Mapping[str, type[ChoiceModel]]] = {
    "softmax": SoftmaxChoice,
    "topics": TopicMixtureChoice,
}

_DECAY = 0.6
"""Weight of an item of the history relative to the next more recent one."""
_ITEMS_PER_CHUNK = 250_000


class SyntheticData:
    """A generator of users, items and interactions, and their true distribution.

    Args:
        config: the settings; equal settings give equal data. None: the defaults.

    Attributes:
        config: the settings.
        items: the items.
        release_times: [V] int64, microseconds since 1970-01-01 UTC, the first time at which each
            item can be chosen; None: every item can be chosen at any time.

    Example:
        >>> data = SyntheticData(SyntheticConfig(num_users=100, num_items=50))
        >>> data.interactions(0, 2).columns
        ['user_id', 'item_id', 'timestamp']
    """

    Config = SyntheticConfig

    def __init__(self, config: SyntheticConfig | None = None) -> None:
        self.config = config or SyntheticConfig()
        self.items = SyntheticItems(self.config)
        self._activity = Activity(self.config)
        self.release_times = self._activity.release_times() if self.config.released_share else None
        self._choice = CHOICE_MODELS[self.config.mode](self.config, self.items, self.release_times)
        self._users = SyntheticUsers(self.config, self.items, self._choice.centres)

    def __repr__(self) -> str:
        return f"SyntheticData({self.config!r})"

    def query(self, user_ids: Ints, history_ids: Ints, history_offsets: Ints) -> Floats:
        """Return the true query vectors.

        Args:
            user_ids: [B] int64.
            history_ids: packed item ids of the histories, earliest first; only the last
                ``history_length`` of each are used.
            history_offsets: [B + 1] int64; the history of query b, possibly empty, is
                ``history_ids[history_offsets[b]:history_offsets[b + 1]]``.

        Returns:
            [B, D] float64.
        """
        stops, starts = history_offsets[1:, None], history_offsets[:-1, None]
        positions = stops - 1 - np.arange(self.config.history_length)
        is_present = positions >= starts
        recent = np.where(
            is_present, np.append(history_ids, 0)[np.where(is_present, positions, -1)], 0
        )
        return self._query(self._users.tastes(user_ids), recent, is_present)

    def item_vectors(self, item_ids: Ints) -> Floats:
        """Return the true item vectors of mode ``softmax``, with popularity bias: [n, D + 1].

        With a 1 appended to ``query``, the dot products are the true logits.

        Raises:
            ConfigError: in mode ``topics``, or with release times, the true logits are not dot
                products.
        """
        if self.release_times is not None:
            raise ConfigError(
                "with released_share above 0 the true logits change with time and have no item "
                "vectors; set released_share to 0, or use log_probs"
            )
        return self._choice.item_vectors(item_ids)

    def log_prob(
        self,
        user_ids: Ints,
        history_ids: Ints,
        history_offsets: Ints,
        item_ids: Ints,
        item_offsets: Ints | None = None,
        *,
        times: Ints | None = None,
    ) -> Floats:
        """Return the exact log P(item | user, history), in nats.

        Args:
            user_ids: [B] int64.
            history_ids: packed item ids, see ``query``.
            history_offsets: [B + 1] int64.
            item_ids: [B] int64, one item per query; or packed [M] with ``item_offsets``.
            item_offsets: [B + 1] int64; the items of query b are
                ``item_ids[item_offsets[b]:item_offsets[b + 1]]``, all given the same history.
            times: [B] int64, microseconds since 1970-01-01 UTC, the time of each choice; needed
                with release times only.

        Returns:
            [M] float64, in the order of ``item_ids``; -inf for an item not yet released.

        Raises:
            ConfigError: the data has release times and ``times`` is None.
        """
        query = self.query(user_ids, history_ids, history_offsets)
        rows = np.arange(len(user_ids))
        if item_offsets is not None:
            rows = np.repeat(rows, np.diff(item_offsets))
        items = np.asarray(item_ids, dtype=np.int64)
        return self._choice.log_prob(query, items, rows, self._require_times(times))

    def log_probs(
        self,
        user_ids: Ints,
        history_ids: Ints,
        history_offsets: Ints,
        *,
        times: Ints | None = None,
    ) -> Floats:
        """Return exact log probabilities of all items: [B, V] float64, for small catalogs.

        Arguments and errors are those of ``log_prob``.
        """
        query = self.query(user_ids, history_ids, history_offsets)
        return self._choice.log_probs(query, self._require_times(times))

    def entropy(
        self,
        user_ids: Ints,
        history_ids: Ints,
        history_offsets: Ints,
        *,
        times: Ints | None = None,
    ) -> Floats:
        """Return the exact entropy of each conditional distribution in nats: [B] float64.

        It is a lower bound of the expected negative log-likelihood of any model. Arguments and
        errors are those of ``log_prob``.
        """
        query = self.query(user_ids, history_ids, history_offsets)
        return self._choice.entropy(query, self._require_times(times))

    def sample(
        self,
        user_ids: Ints,
        history_ids: Ints,
        history_offsets: Ints,
        generator: np.random.Generator,
        *,
        times: Ints | None = None,
    ) -> Ints:
        """Sample the next item of each query, exactly: [B] int64.

        Args:
            user_ids: [B] int64.
            history_ids: packed item ids, see ``query``.
            history_offsets: [B + 1] int64.
            generator: source of randomness; equal states give equal items.
            times: [B] int64, see ``log_prob``.

        Raises:
            ConfigError: the data has release times and ``times`` is None.
        """
        keys = generator.integers(0, 2**64, size=len(user_ids), dtype=np.uint64)
        query = self.query(user_ids, history_ids, history_offsets)
        return self._choice.sample(query, keys, self._require_times(times))

    def interactions(self, start: int, stop: int) -> pl.DataFrame:
        """Return all interactions of users start..stop-1, independent of all other users.

        Returns:
            columns user_id (int64), item_id (int64) and timestamp (microseconds UTC), sorted
            by user, then time.
        """
        user_ids = np.arange(start, stop, dtype=np.int64)
        lengths = self._activity.lengths(user_ids)
        timestamps = self._activity.timestamps(user_ids, lengths)
        sequences = self._sequences(user_ids, lengths, timestamps)
        is_real = np.arange(sequences.shape[1]) < lengths[:, None]
        return pl.DataFrame(
            {
                "user_id": np.repeat(user_ids, lengths),
                "item_id": sequences[is_real],
                "timestamp": timestamps,
            }
        ).with_columns(pl.col("timestamp").cast(pl.Datetime("us", "UTC")))

    def user_table(self, start: int, stop: int) -> pl.DataFrame:
        """Return users start..stop-1: user_id, favourite, age; see ``write``."""
        return self._users.frame(start, stop)

    def item_table(self, start: int, stop: int) -> pl.DataFrame:
        """Return items start..stop-1: item_id, title, genres; see ``write``."""
        frame = self.items.frame(start, stop)
        if self.release_times is None:
            return frame
        released = pl.Series(self.release_times[start:stop]).cast(pl.Datetime("us", "UTC"))
        return frame.with_columns(released=released)

    def write(self, out: Path | str, *, chunk_size: int = 20_000) -> dict[str, Path]:
        """Write the data as three Parquet files, streamed, each atomically.

        - ``interactions.parquet``: user_id, item_id, timestamp.
        - ``items.parquet``: item_id, title, genres ("Drama|Crime"); with release times also
          released (a timestamp).
        - ``users.parquet``: user_id, favourite (the genre of the user's stronger favourite
          topic; for 15 % of the users a random genre, for 5 % null) and age (an integer that is
          independent of everything else).

        Args:
            out: the folder; it is created if it is missing.
            chunk_size: users generated at a time; it bounds the memory and does not change the
                contents of the files.

        Returns:
            the paths, under "interactions", "items" and "users".

        Raises:
            ArtifactError: the files cannot be written.
        """
        paths = {name: Path(out) / f"{name}.parquet" for name in ("interactions", "items", "users")}
        _stream(paths["items"], _chunks(self.item_table, self.config.num_items, _ITEMS_PER_CHUNK))
        _stream(
            paths["interactions"], _chunks(self.interactions, self.config.num_users, chunk_size)
        )
        _stream(paths["users"], _chunks(self.user_table, self.config.num_users, chunk_size))
        return paths

    def _query(self, tastes: Floats, recent: Ints, is_present: npt.NDArray[np.bool_]) -> Floats:
        """Combine tastes [B, D] and recent items [B, history_length], latest first: [B, D]."""
        weights = np.where(is_present, _DECAY ** np.arange(recent.shape[1]), 0.0)
        weights /= np.maximum(weights.sum(axis=1, keepdims=True), 1e-300)
        context = np.einsum("bk,bkd->bd", weights, self._choice.context(recent))
        return np.asarray((tastes + self.config.history_weight * context) / self.config.temperature)

    def _require_times(self, times: Ints | None) -> Ints | None:
        if self.release_times is None:
            return None
        if times is None:
            raise ConfigError(
                "with released_share above 0 the probabilities depend on the time of the choice: "
                "pass times, or set released_share to 0"
            )
        return np.asarray(times, dtype=np.int64)

    def _sequences(self, user_ids: Ints, lengths: Ints, timestamps: Ints) -> Ints:
        """Return the items of each user: [B, longest] int64; entries past a length are unused."""
        history_length, longest = self.config.history_length, int(lengths.max())
        # Longest users first, so that the users still active at a step are a prefix.
        order = np.argsort(-lengths, kind="stable")
        firsts = (np.cumsum(lengths) - lengths)[order]
        num_active = np.searchsorted(-lengths[order], -np.arange(longest), side="left")
        tastes = self._users.tastes(user_ids[order])
        keys: Keys = derive(root_key(self.config.seed, "choices"), user_ids[order])
        items = np.zeros((len(user_ids), history_length + longest), dtype=np.int64)
        for step, count in enumerate(num_active):
            recent = items[:count, step : step + history_length][:, ::-1]
            is_present = np.broadcast_to(np.arange(history_length) < step, recent.shape)
            query = self._query(tastes[:count], recent, is_present)
            times = timestamps[firsts[:count] + step]
            step_keys = derive(keys[:count], step)
            items[:count, history_length + step] = self._choice.sample(query, step_keys, times)
        sequences = np.empty((len(user_ids), longest), dtype=np.int64)
        sequences[order] = items[:, history_length:]
        return sequences


def _chunks(
    table: Callable[[int, int], pl.DataFrame], count: int, size: int
) -> Iterator[pl.DataFrame]:
    for start in range(0, count, size):
        yield table(start, min(start + size, count))


def _stream(path: Path, chunks: Iterator[pl.DataFrame]) -> None:
    """Write frames as the row groups of one Parquet file, with few of them in memory."""
    first = next(chunks)

    def source(
        with_columns: list[str] | None,
        predicate: pl.Expr | None,
        n_rows: int | None,
        batch_size: int | None,
    ) -> Iterator[pl.DataFrame]:
        # The plan below only copies to a file: no projection, filter or limit arrives here.
        yield first
        yield from chunks

    with replacing(path) as temporary:
        try:
            # Polars may create a path after it has raised, and the file would stay.
            with temporary.open("wb") as file:
                register_io_source(source, schema=first.schema).sink_parquet(file)
        except pl.exceptions.ComputeError as error:
            # Polars wraps errors of the operating system (a full disk) in its own class.
            if "os error" not in str(error):
                raise
            raise OSError(str(error)) from error
