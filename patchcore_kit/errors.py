"""Every error that the kit raises on purpose.

    KitError                    catch this one to catch them all
    ├── SettingsError           an argument or option that cannot work          (also a ValueError)
    ├── DataError               a folder, image or mask that cannot be used     (also a ValueError)
    ├── WeightsError            network weights not found or not usable         (also a RuntimeError)
    ├── ModelError              a saved model that cannot be opened or used     (also a RuntimeError)
    ├── ResultsError            a results folder that cannot be written or read (also an OSError)
    └── JobsError               jobs that were not done, or no place to do them

Each message is one sentence: what is wrong, with the value or the file, and what to do about it.
"""

import operator
from collections.abc import Iterable


class KitError(Exception):
    """Base of the kit's errors."""

    def _render_traceback_(self) -> list[str]:
        """What a notebook shows, by IPython's name for it: the sentence, not where in the code it was raised."""
        return [str(self)]


class SettingsError(KitError, ValueError):
    """An argument or option that cannot work."""


class DataError(KitError, ValueError):
    """A folder, image or mask that cannot be used."""


class WeightsError(KitError, RuntimeError):
    """Network weights that were not found or cannot be used.

    otherwise: what to choose instead, which ends the message; of no use where a saved model needs these weights.
    """

    def __init__(self, message: str, otherwise: str = ""):
        super().__init__(message + otherwise)
        self.needed = message


class ModelError(KitError, RuntimeError):
    """A saved model that cannot be opened, or not with these settings."""


class JobsError(KitError):
    """Jobs that were not done, or no place to do them."""


class ResultsError(KitError, OSError):
    """A results folder that cannot be written or read."""


def short(text: object, most: int = 100) -> str:
    """A text from elsewhere as a part of a message: on one line, and of at most so many characters."""
    line = " ".join(str(text)[: 10 * most].split())
    return line if len(line) <= most else f"{line[: most - most // 3 - 1]}…{line[-(most // 3) :]}"


def check_choice(what: str, value: object, choices: Iterable[str]) -> None:
    """Raises SettingsError unless a setting is one of its choices."""
    if value not in (choices := tuple(choices)):  # also what no dict could be asked for
        raise SettingsError(f"unknown {what} {value!r}: there are {', '.join(choices)}")


def whole_number(name: str, value: int, least: int, most: int = 2**63 - 1) -> int:
    """A setting that must be a whole number from `least` to `most`, as an int, whatever integer type it came as.

    Raises SettingsError if it is not.
    """
    try:
        number = least - 1 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = least - 1
    if not least <= number <= most:
        to = f"to {most}" if most < 2**63 - 1 else "on"
        raise SettingsError(f"{name} is {value!r}: it must be a whole number from {least} {to}")
    return number
