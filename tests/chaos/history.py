"""What was done to which process and when, so that every repeated call can be held against one of these.

Owns: Event, History and the two questions of the verdict: which event explains that a call was made again,
and whether a worker could have known of a stop. Times are Unix seconds of this machine.
"""

from __future__ import annotations

from dataclasses import dataclass, field

IN_FLIGHT_S = 5.0  # a call and its commit, at most, on a busy machine
IN_BUFFERS_S = 0.5  # a dead caller's last requests arrive when the provider gets to read them
BLIND_AFTER_S = 3.0  # an outage shorter than this loses no lease of 6 s that is renewed every 2 s
WAKE_S = 1.0  # a frozen worker's calls that had passed every check, when it wakes


# of a worker, then of a link; where several explain the same call, the first names it
KINDS = ("death", "freeze", "drain", "upstream", "database", "valkey")


@dataclass(slots=True)
class Event:
    """`target`: the caller (a worker's incarnation) that died or froze, or the link that was cut."""

    kind: str
    target: str
    start: float
    end: float = float("inf")


@dataclass
class History:
    events: list[Event] = field(default_factory=list)

    def note(self, kind: str, target: str, start: float, end: float | None = None) -> Event:
        event = Event(kind, target, start, float("inf") if end is None else end)
        self.events.append(event)
        return event

    def explains(self, caller: str, time: float) -> str | None:
        """The kind of event by which the answer to `caller`'s call at `time` may have been lost; None: by none."""
        causes = {event.kind for event in self.events if self._covers(event, caller, time)}
        return min(causes, key=KINDS.index, default=None)

    def _covers(self, event: Event, caller: str, time: float) -> bool:
        lasted = event.end - event.start
        match event.kind:
            case "death":
                return event.target == caller and self._is_open_at(time, event.start)
            case "freeze":
                since = event.start - self._lag(event.start)
                is_long = lasted >= BLIND_AFTER_S - WAKE_S
                return event.target == caller and is_long and since <= time <= event.end + WAKE_S
            case "drain":  # what lands is recorded, if there is a database
                was_away = self._outage("database", event.start - 1, event.start + 10)
                return event.target == caller and was_away and self._is_open_at(time, event.start + 10)
            case "upstream":
                return event.start - IN_FLIGHT_S <= time <= event.end + WAKE_S
            case "database":
                is_long = lasted >= BLIND_AFTER_S
                return is_long and event.start - IN_FLIGHT_S <= time <= event.end + IN_FLIGHT_S
        return False

    def is_blind(self, caller: str, start: float, end: float) -> bool:
        """True when `caller` could not read the database at some time in between."""
        frozen = any(e.kind == "freeze" and e.target == caller and e.start < end and e.end > start - 1
                     for e in self.events)  # fmt: skip
        return frozen or self._outage("database", start - 1, end)

    def _is_open_at(self, time: float, moment: float) -> bool:
        """The call at `time` may not have been committed at `moment`."""
        return -IN_BUFFERS_S <= moment - time <= self._lag(moment)

    def _lag(self, moment: float) -> float:
        """How far back answers may be uncommitted at `moment`: further when the database was away."""
        away = [e.start for e in self.events if e.kind == "database" and e.start <= moment <= e.end + IN_FLIGHT_S]
        return moment - min(away) + IN_FLIGHT_S if away else IN_FLIGHT_S

    def _outage(self, kind: str, start: float, end: float) -> bool:
        return any(e.kind == kind and e.start < end and e.end > start for e in self.events)
