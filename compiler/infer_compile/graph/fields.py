"""Reading a ``config.json``: each read states type and default, and all mistakes are kept until the end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..runtime.errors import InferCompileError, Problem


class Fields:
    """The fields of a Hugging Face config.

    A read that fails records its problem and returns a harmless value, so that one pass finds all mistakes;
    ``finish`` raises them. ``sound`` guards comparisons of fields against such values.
    """

    def __init__(self, config: Mapping[str, object], where: str) -> None:
        self.config = config
        self.where = where
        self.problems: list[Problem] = []
        self._broken: set[str] = set()

    def has(self, key: str) -> bool:
        """Whether ``key`` is present and not null."""
        return self.config.get(key) is not None

    def sound(self, *keys: str) -> bool:
        """Whether no read of ``keys`` failed."""
        return self._broken.isdisjoint(keys)

    def integer(self, key: str, default: int | None = None, minimum: int = 1) -> int:
        """A whole number of at least ``minimum``; required if there is no ``default``."""
        value = self.config.get(key)
        if value is None:
            return default if default is not None else self._missing(key, minimum)
        if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
            self.wrong(key, f"a whole number of at least {minimum}")
            return default if default is not None else minimum
        return value

    def nullable(self, key: str, minimum: int = 1) -> int | None:
        """The same where null means that there is none; absent is a mistake."""
        if key in self.config and not self.has(key):
            return None
        return self.integer(key, minimum=minimum)

    def number(self, key: str, default: float | None = None) -> float:
        """A positive number; required if there is no ``default``."""
        value = self.config.get(key)
        if value is None:
            return default if default is not None else self._missing(key, 1)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
            self.wrong(key, "a positive number")
            return default if default is not None else 1.0
        return float(value)

    def boolean(self, key: str, default: bool) -> bool:
        value = self.config.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            self.wrong(key, "true or false")
            return default
        return value

    def text(self, key: str, default: str) -> str:
        value = self.config.get(key)
        if value is None:
            return default
        if not isinstance(value, str):
            self.wrong(key, "a name")
            return default
        return value

    def names(self, key: str) -> Sequence[str] | None:
        """A list of names, or None where absent."""
        value = self.config.get(key)
        if value is None:
            return None
        if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
            self.wrong(key, "a list of names")
            return None
        return value

    def integers(self, key: str) -> Sequence[int] | None:
        """A list of whole numbers, or None where absent."""
        value = self.config.get(key)
        if value is None:
            return None
        if not isinstance(value, list | tuple) or not all(type(item) is int for item in value):
            self.wrong(key, "a list of whole numbers")
            return None
        return value

    def kinds(self, key: str, entries: int, known: Mapping[str, str]) -> Sequence[str] | None:
        """A list of one entry per layer, each translated by ``known``; None where absent. Entries beyond
        those of ``entries`` layers belong to layers that predict further tokens."""
        value = self.config.get(key)
        if value is None:
            return None
        if (
            not isinstance(value, list | tuple | str)
            or len(value) < entries
            or not all(str(item) in known for item in value)
        ):
            self.wrong(key, f"a list of {entries} or more of: {', '.join(known)}")
            return [next(iter(known.values()))] * entries
        return [known[str(item)] for item in value[:entries]]

    def section(self, key: str) -> Fields | None:
        """The object under ``key``, or None where it is absent or empty. Its problems are this one's."""
        value = self.config.get(key)
        if value is None or value == {}:
            return None
        if not isinstance(value, Mapping):
            self.wrong(key, "an object")
            return None
        section = Fields(value, f"{self.where}: {key}")
        section.problems = self.problems
        return section

    def wrong(self, key: str, wanted: str) -> None:
        """Record, once, that ``key`` is not ``wanted``."""
        if key in self._broken:
            return
        self._broken.add(key)
        message = f"{key} is {self.config.get(key)!r}"
        self.problems.append(Problem("IC112", message, self.where, fix=f"{key} has to be {wanted}"))

    def contradiction(self, message: str, because: str, fix: str = "") -> None:
        """Record that fields do not go together."""
        self.refuse(Problem("IC113", message, self.where, because, fix))

    def refuse(self, problem: Problem) -> None:
        """Record ``problem``, once."""
        if problem not in self.problems:
            self.problems.append(problem)

    def finish(self) -> None:
        """Raise what was found."""
        if self.problems:
            raise InferCompileError(self.problems)

    def need(self, key: str) -> None:
        """Record that ``key`` is missing, if it is."""
        if self.config.get(key) is None:
            self._missing(key, 1)

    def _missing(self, key: str, placeholder: int) -> int:
        if key not in self._broken:
            self._broken.add(key)
            fix = f"take {key} from the model's own config.json"
            self.problems.append(Problem("IC111", f"{key} is missing", self.where, fix=fix))
        return placeholder
