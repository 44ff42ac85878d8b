"""Further sequences of what users did, such as searches: which of their events each target sees."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from recall_lib.samples.ragged import Ints, Ragged


@dataclass(frozen=True)
class Events:
    """Events of one sequence of U users, one user after the other, each oldest first.

    Attributes:
        user: number of each event's user, ascending, [E].
        order: µs since 1970 or position, int64 [E].
        tokens: token ids of each event (ragged int32 [E]).
    """

    user: Ints
    order: Ints
    tokens: Ragged

    @classmethod
    def of(cls, table: pa.Table, ids: pa.Array) -> Events:
        """From rows user_id, order, tie, tokens in any order; rows of users who are not in `ids` are left out."""
        user = pc.index_in(table.column("user_id").combine_chunks(), ids)
        table, user = table.filter(user.is_valid()), user.drop_null().to_numpy().astype(np.int64)
        order, tie = (table.column(name).to_numpy() for name in ("order", "tie"))
        by_time = np.lexsort((tie, order, user))
        tokens = Ragged.from_arrow(table.column("tokens").combine_chunks())
        tokens = tokens.slices(tokens.offsets[:-1][by_time], tokens.offsets[1:][by_time])
        return cls(user[by_time], order[by_time], tokens)

    def before(self, user: Ints, order: Ints) -> Ints:
        """For each (user, moment): how many events of all users come before it, [T].

        These are the events of earlier users, and those of the same user that are strictly earlier. So of the user's own
        events the target sees the ones from `before(user, oldest moment)` to this number.
        """
        # One sort of events and moments together; a moment comes before the events of the same time.
        is_event = np.append(np.ones(len(self.user), bool), np.zeros(len(user), bool))
        together = np.lexsort((is_event, np.append(self.order, order), np.append(self.user, user)))
        events_so_far = np.cumsum(is_event[together])
        counts = np.empty(len(together), np.int64)
        counts[together] = events_so_far
        return counts[len(self.user) :]


def columns(
    events: Events, user: Ints, targets: Ints, order: Ints, window: int
) -> dict[str, tuple[Ints, npt.NDArray[np.int32]]]:
    """The columns of a sequence in rows of schemas.segments, as {suffix: (offsets of the rows, values)}.

    A row stores the events that its targets see, once. With window 2, and two targets that see the events up to 3 and 5:

        event     0   1   2   3   4   5
        target 0      w   w |                 seen 2: events 1 and 2
        target 1              w   w |         seen 4: events 3 and 4
        stored        1   2   3   4

    Args:
        user: of each row, [R].
        targets: where each row's targets begin, [R + 1]; every row has one.
        order: the moment of each target, ascending in a row, [T].
        window: events that a target sees at most.
    """
    row = np.repeat(np.arange(len(user)), np.diff(targets))
    until = events.before(user[row], order)
    oldest = np.searchsorted(events.user, user)  # [R], the user's first event
    first = np.maximum(oldest, until[targets[:-1]] - window)
    stored = Ragged.spans(first, until[targets[1:] - 1])  # ragged [R]
    tokens = events.tokens.slices(events.tokens.offsets[stored.values], events.tokens.offsets[stored.values + 1])
    return {
        "index": (tokens.offsets[stored.offsets], tokens.values.astype(np.int32)),
        "length": (stored.offsets, tokens.lengths.astype(np.int32)),
        "seen": (targets, (until - first[row]).astype(np.int32)),
    }
