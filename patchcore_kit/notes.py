"""What has to be told of files without being an error: each kind once, in a sentence, with the first file's name."""

import logging

LOGGER = logging.getLogger(__name__)


class Notes:
    """Collects what was noticed, from any thread, and tells it: a line for each kind, of however many files."""

    def __init__(self) -> None:
        self.noticed: dict[str, list[tuple[float, str, str]]] = {}
        self._told: set[str] = set()

    def __bool__(self) -> bool:
        return bool(self.noticed)

    def add(self, name: object, sentence: str, kind: str = "", rank: float = 0) -> None:
        """A file's name and what is to be said of it.

        kind: what it shares with others, the sentence itself if "". Of a kind the lowest rank is told, and of those the
        first name.
        """
        self.noticed.setdefault(kind or sentence, []).append((rank, str(name), sentence))  # in one step for threads

    def tell(self, others: "Notes | None" = None) -> None:
        """Log a warning for each kind that was not told yet; or leave them to other notes to tell."""
        for kind, noticed in self.noticed.items():
            _, name, sentence = min(noticed)
            if others is not None:
                others.noticed.setdefault(kind, []).extend(noticed)
            elif kind not in self._told:
                more = f" (and {len(noticed) - 1} more)" if len(noticed) > 1 else ""
                LOGGER.warning("%s%s: %s", name, more, sentence)
                self._told.add(kind)
