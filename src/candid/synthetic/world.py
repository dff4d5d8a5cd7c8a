"""A synthetic world whose true P(item | user, history) is known exactly.

A user has a taste, a vector near two favourite topics. The next item depends on the taste
and on the few most recent items (``SyntheticConfig.memory``), each of which pulls towards the
topic after its own; the query is

    q(u, h) = [ taste(u) + drift · Σ_k w_k · context(h_k) ] / temperature

with w_k falling with age and summing to 1 over the items there are. What is chosen given q is
the mode's business (``softmax``, ``topics``). Users may choose an item again: a filter would
make the truth depend on the whole history, so measure likelihoods against the truth without
one. All identifiers here are those of the written files: users 0..U-1, items 0..V-1.

With ``SyntheticConfig.released_share`` items are released over time, and the truth is the softmax
over those released by the time of the choice: everything true then also asks for ``times``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl
from polars.io.plugins import register_io_source

from candid.atomic import replacing
from candid.errors import ConfigError
from candid.synthetic.catalog import Catalog, Ints
from candid.synthetic.choice import Choice
from candid.synthetic.config import SyntheticConfig
from candid.synthetic.counters import Floats, Keys, derive, root_key
from candid.synthetic.softmax import SoftmaxChoice
from candid.synthetic.timeline import Timeline
from candid.synthetic.topics import TopicsChoice
from candid.synthetic.users import Users

MODES: dict[str, type[Choice]] = {"softmax": SoftmaxChoice, "topics": TopicsChoice}

_DECAY = 0.6
"""Weight of an item of the history relative to the one after it."""
_ITEMS_PER_CHUNK = 250_000


class World:
    """Users, items and how they meet.

    Args:
        config: the settings; equal settings make equal worlds.

    Attributes:
        config: the settings.
        catalog: the items.
        releases: [V] int64, microseconds since 1970-01-01 UTC, when each item can first be
            chosen; None where all are there from the start.
    """

    Config = SyntheticConfig

    def __init__(self, config: SyntheticConfig | None = None) -> None:
        self.config = config or SyntheticConfig()
        self.catalog = Catalog(self.config)
        self._timeline = Timeline(self.config)
        self.releases = self._timeline.releases() if self.config.released_share else None
        self._choice = MODES[self.config.mode](self.config, self.catalog, self.releases)
        self._users = Users(self.config, self.catalog, self._choice.centres)

    def query(self, user_ids: Ints, history_ids: Ints, history_offsets: Ints) -> Floats:
        """True query vectors.

        Args:
            user_ids: [B] int64.
            history_ids: packed item ids of the histories, earliest first; only the last
                ``memory`` of each matter.
            history_offsets: [B + 1] int64; query b has
                ``history_ids[history_offsets[b]:history_offsets[b + 1]]``, possibly none.

        Returns:
            [B, D] float64.
        """
        stops, starts = history_offsets[1:, None], history_offsets[:-1, None]
        places = stops - 1 - np.arange(self.config.memory)
        is_present = places >= starts
        recent = np.where(
            is_present, np.append(history_ids, 0)[np.where(is_present, places, -1)], 0
        )
        return self._query(self._users.tastes(user_ids), recent, is_present)

    def item_vectors(self, item_ids: Ints) -> Floats:
        """The item side of mode ``softmax``: [n, D + 1] float64, vector and popularity bias.

        With a 1 appended to ``query``, the dot products are the true logits.

        Raises:
            ConfigError: a mixture of topics is not a dot product, nor is a catalog that grows.
        """
        if self.releases is not None:
            raise ConfigError(
                "with world.released_share the true logits change with time, which no item vector "
                "does: set it to 0, or ask for log_probs"
            )
        if not isinstance(self._choice, SoftmaxChoice):
            raise ConfigError("world.mode 'topics' has no item vectors: set it to 'softmax'")
        return np.hstack([self._choice.vectors[item_ids], self._choice.bias[item_ids, None]])

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
        """Exact log P(item | user, history), in nats.

        Args:
            user_ids: [B] int64.
            history_ids: packed, see ``query``.
            history_offsets: [B + 1] int64.
            item_ids: [B] int64, one item a query; or packed [M] with ``item_offsets``.
            item_offsets: [B + 1] int64, the items of query b are
                ``item_ids[item_offsets[b]:item_offsets[b + 1]]``, all judged by the same
                history.
            times: [B] int64, microseconds since 1970-01-01 UTC, when the choice of each query
                is made; needed only where items are released over time.

        Returns:
            [M] float64, in the order of ``item_ids``; -inf for an item not yet released.

        Raises:
            ConfigError: items are released over time and ``times`` is None.
        """
        query = self.query(user_ids, history_ids, history_offsets)
        rows = np.arange(len(user_ids))
        if item_offsets is not None:
            rows = np.repeat(rows, np.diff(item_offsets))
        items = np.asarray(item_ids, dtype=np.int64)
        return self._choice.log_prob(query, items, rows, self._checked(times))

    def log_probs(
        self,
        user_ids: Ints,
        history_ids: Ints,
        history_offsets: Ints,
        *,
        times: Ints | None = None,
    ) -> Floats:
        """Exact log probabilities of the whole catalog: [B, V] float64, for small catalogs.

        Arguments and errors as for ``log_prob``.
        """
        query = self.query(user_ids, history_ids, history_offsets)
        return self._choice.log_probs(query, self._checked(times))

    def entropy(
        self,
        user_ids: Ints,
        history_ids: Ints,
        history_offsets: Ints,
        *,
        times: Ints | None = None,
    ) -> Floats:
        """Exact entropy of each conditional distribution in nats: [B] float64.

        It is the least expected negative log-likelihood that any model can reach. Arguments and
        errors as for ``log_prob``.
        """
        query = self.query(user_ids, history_ids, history_offsets)
        return self._choice.entropy(query, self._checked(times))

    def sample(
        self,
        user_ids: Ints,
        history_ids: Ints,
        history_offsets: Ints,
        generator: np.random.Generator,
        *,
        times: Ints | None = None,
    ) -> Ints:
        """Draw the next item of each query, exactly: [B] int64.

        Args:
            user_ids: [B] int64.
            history_ids: packed, see ``query``.
            history_offsets: [B + 1] int64.
            generator: source of randomness; same state, same items.
            times: [B] int64, see ``log_prob``.

        Raises:
            ConfigError: items are released over time and ``times`` is None.
        """
        keys = generator.integers(0, 2**64, size=len(user_ids), dtype=np.uint64)
        query = self.query(user_ids, history_ids, history_offsets)
        return self._choice.sample(query, keys, self._checked(times))

    def interactions(self, start: int, stop: int) -> pl.DataFrame:
        """All interactions of users start..stop-1, whatever else is generated.

        Returns:
            columns user_id (int64), item_id (int64) and timestamp (microseconds UTC), sorted
            by user, then time.
        """
        user_ids = np.arange(start, stop, dtype=np.int64)
        lengths = self._timeline.lengths(user_ids)
        timestamps = self._timeline.timestamps(user_ids, lengths)
        sequences = self._sequences(user_ids, lengths, timestamps)
        is_real = np.arange(sequences.shape[1]) < lengths[:, None]
        return pl.DataFrame(
            {
                "user_id": np.repeat(user_ids, lengths),
                "item_id": sequences[is_real],
                "timestamp": timestamps,
            }
        ).with_columns(pl.col("timestamp").cast(pl.Datetime("us", "UTC")))

    def users(self, start: int, stop: int) -> pl.DataFrame:
        """Users start..stop-1 as a table: user_id, favourite, age; see ``write``."""
        return self._users.frame(start, stop)

    def items(self, start: int, stop: int) -> pl.DataFrame:
        """Items start..stop-1 as a table: item_id, title, genres; see ``write``."""
        frame = self.catalog.frame(start, stop)
        if self.releases is None:
            return frame
        released = pl.Series(self.releases[start:stop]).cast(pl.Datetime("us", "UTC"))
        return frame.with_columns(released=released)

    def write(self, out: Path, *, chunk_size: int = 20_000) -> dict[str, Path]:
        """Write the world as ordinary files, streamed and each atomically.

        ``interactions.parquet``: user_id, item_id, timestamp. ``items.parquet``: item_id,
        title, genres ("Drama|Crime"), where items are released over time also released (when).
        ``users.parquet``: user_id, favourite (the genre of the
        user's stronger favourite topic; for 15 % of users any genre, for 5 % null) and age
        (integer, unrelated to anything).

        Args:
            out: the folder, made if it is missing.
            chunk_size: users generated at a time; it bounds the memory and changes nothing
                in the files' contents.

        Returns:
            the paths, under "interactions", "items" and "users".

        Raises:
            ArtifactError: the files cannot be written.
        """
        paths = {name: out / f"{name}.parquet" for name in ("interactions", "items", "users")}
        _stream(paths["items"], _chunks(self.items, self.config.num_items, _ITEMS_PER_CHUNK))
        _stream(
            paths["interactions"], _chunks(self.interactions, self.config.num_users, chunk_size)
        )
        _stream(paths["users"], _chunks(self.users, self.config.num_users, chunk_size))
        return paths

    def _query(self, tastes: Floats, recent: Ints, is_present: npt.NDArray[np.bool_]) -> Floats:
        """From tastes [B, D] and the recent items [B, memory], latest first."""
        weights = np.where(is_present, _DECAY ** np.arange(recent.shape[1]), 0.0)
        weights /= np.maximum(weights.sum(axis=1, keepdims=True), 1e-300)
        pull = np.einsum("bk,bkd->bd", weights, self._choice.context(recent))
        return np.asarray((tastes + self.config.drift * pull) / self.config.temperature)

    def _checked(self, times: Ints | None) -> Ints | None:
        if self.releases is None:
            return None
        if times is None:
            raise ConfigError(
                "with world.released_share the truth depends on when: pass times, or set it to 0"
            )
        return np.asarray(times, dtype=np.int64)

    def _sequences(self, user_ids: Ints, lengths: Ints, timestamps: Ints) -> Ints:
        """Items of each user: [B, longest] int64; places past a user's length mean nothing."""
        memory, longest = self.config.memory, int(lengths.max())
        # Longest users first, so that those still active at a step are a prefix.
        order = np.argsort(-lengths, kind="stable")
        firsts = (np.cumsum(lengths) - lengths)[order]
        active = np.searchsorted(-lengths[order], -np.arange(longest), side="left")
        tastes = self._users.tastes(user_ids[order])
        keys: Keys = derive(root_key(self.config.seed, "choices"), user_ids[order])
        items = np.zeros((len(user_ids), memory + longest), dtype=np.int64)
        for step, count in enumerate(active):
            recent = items[:count, step : step + memory][:, ::-1]
            is_present = np.broadcast_to(np.arange(memory) < step, recent.shape)
            query = self._query(tastes[:count], recent, is_present)
            times = timestamps[firsts[:count] + step]
            own_keys = derive(keys[:count], step)
            items[:count, memory + step] = self._choice.sample(query, own_keys, times)
        sequences = np.empty((len(user_ids), longest), dtype=np.int64)
        sequences[order] = items[:, memory:]
        return sequences


def _chunks(
    make: Callable[[int, int], pl.DataFrame], count: int, size: int
) -> Iterator[pl.DataFrame]:
    for start in range(0, count, size):
        yield make(start, min(start + size, count))


def _stream(path: Path, chunks: Iterator[pl.DataFrame]) -> None:
    """Write frames as the row groups of one parquet file, holding few at a time."""
    first = next(chunks)

    def source(
        with_columns: list[str] | None,
        predicate: pl.Expr | None,
        n_rows: int | None,
        batch_size: int | None,
    ) -> Iterator[pl.DataFrame]:
        # The plan below is a bare copy to a file: nothing is projected, filtered or limited.
        yield first
        yield from chunks

    with replacing(path) as temporary:
        try:
            register_io_source(source, schema=first.schema).sink_parquet(temporary)
        except pl.exceptions.ComputeError as error:
            # Polars wraps what the operating system said (a full disk) in its own error.
            if "os error" not in str(error):
                raise
            raise OSError(str(error)) from error
