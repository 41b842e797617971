"""The sequences of any model (tokens, latents, outputs), found by what queries and keys were computed from.

Attention updates the sequence that its queries belong to, and reads the sequences that make up its keys. A sequence is
identified by its origins (`Lineage`): what it was computed from before its first attention.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from perceiver.inspection.watched.intercept import AttentionCall
from perceiver.inspection.watched.lineage import Lineage
from perceiver.roles import LATENTS, OUTPUTS, TOKENS, Role


@dataclass
class WatchedSequence:
    """A sequence of a model.

    Attributes:
        length: number of its elements.
        origins: what it was computed from, see `Lineage`.
        module: path of the first module that updates it; empty for an input that is only read.
        reads: the numbers of the other sequences that it reads.
    """

    length: int
    origins: set[int]
    module: str = ""
    reads: set[int] = field(default_factory=set)


@dataclass(frozen=True)
class Connection:
    """A call with the number of the sequence that it updates, and the numbers and lengths of those that it reads."""

    call: AttentionCall
    queries: int
    keys: dict[int, int]


class Sequences:
    """The sequences of one forward pass.

    Attributes:
        lineage: of its tensors.
        found: number -> sequence, in the order of their first attention.
    """

    def __init__(self) -> None:
        self.lineage = Lineage()
        self.found: dict[int, WatchedSequence] = {}

    @property
    def inputs(self) -> list[int]:
        """The numbers of the sequences that read no other one."""
        return [number for number, one in self.found.items() if not one.reads]

    @property
    def final(self) -> list[int]:
        """The numbers of the sequences that no other one reads."""
        read_by_others = {number for one in self.found.values() for number in one.reads}
        return [number for number in self.found if number not in read_by_others]

    def connect(self, call: AttentionCall) -> Connection:
        """Find the sequences of a call, or add them."""
        _, _, num_queries, num_keys = call.shape
        queries = self._owner(call.query_origins, num_queries) or self._new(call.query_origins, num_queries)
        self.found[queries].module = self.found[queries].module or call.module
        keys = self._keys(call, queries, num_keys)
        self.found[queries].reads |= keys.keys() - {queries}
        return Connection(call, queries, keys)

    def names(self, connections: Sequence[Connection], roles: Mapping[str, str]) -> dict[int, str]:
        """Name the sequences by the given roles, or else by their origins.

        Args:
            connections: of all calls.
            roles: pattern of module paths -> name of the sequence that their attention updates.
        """
        names: dict[int, str] = {}
        for connection in connections:
            given = (name for pattern, name in roles.items() if fnmatchcase(connection.call.module, pattern))
            if (name := next(given, None)) is not None:
                names[connection.queries] = name
        inputs = self.inputs
        for number, one in self.found.items():
            if number in names:
                continue
            if number in inputs:
                name = one.module.split(".")[0] or "inputs" if len(inputs) > 1 else TOKENS
            elif one.origins & self.lineage.indices:
                name = OUTPUTS
            else:
                name = OUTPUTS if LATENTS in names.values() else LATENTS
            taken = sum(other.rstrip("0123456789") == name for other in names.values())
            names[number] = f"{name}{taken}" if taken else name
        return names

    def _owners(self, origins: Sequence[int]) -> list[int]:
        """Return the sequences that origins belong to, in order."""
        found = []
        for origin in origins:
            own = [number for number, one in self.found.items() if origin == number or origin in one.origins]
            found += [number for number in own if origin == number or self.found[number].origins <= set(origins)]
        return list(dict.fromkeys(found))

    def _owner(self, origins: Sequence[int], length: int) -> int | None:
        fitting = [number for number in self._owners(origins) if self.found[number].length == length]
        return fitting[-1] if fitting else None

    def _new(self, origins: Sequence[int], length: int) -> int:
        number = self.lineage.new()
        self.found[number] = WatchedSequence(length, set(origins))
        self.lineage.within[number] = set(origins)
        return number

    def _keys(self, call: AttentionCall, queries: int, num_keys: int) -> dict[int, int]:
        """Return the numbers and lengths of the sequences that a call reads, in the order of its keys."""
        of_queries, of_keys = set(call.query_origins), set(call.key_origins)
        own = self.found[queries]
        if own.length == num_keys and (of_queries <= of_keys or of_keys <= of_queries):
            return {queries: num_keys}
        whole = self._owner(call.key_origins, num_keys)
        if whole is None and queries in call.key_origins:  # an updated element instead of one that it started as
            whole = self._owner((*call.key_origins, *own.origins), num_keys)
        if whole is not None:
            return {whole: num_keys}
        owners = self._owners(call.key_origins)
        known = {number: self.found[number].length for number in owners}
        covered = {one for number in owners for one in (number, *self.found[number].origins)}
        rest = [origin for origin in call.key_origins if origin not in covered]
        missing = num_keys - sum(known.values())
        if missing == 0 and not rest:
            return known
        if missing > 0 and rest:  # a concatenation with something that is seen for the first time
            new = self._new(rest, missing)
            is_first = call.key_origins[0] in rest
            return {new: missing} | known if is_first else known | {new: missing}
        return {self._new(call.key_origins, num_keys): num_keys}


def role_between(queries: str, keys: Sequence[str], *, is_input: bool) -> Role:
    """Return the role of a layer that reads some sequences; of an input, where it updates one that reads no other."""
    first = next((name for name in keys if name != queries), queries)
    if queries == OUTPUTS != first:
        return Role("decode", queries, first)
    kind = "encode" if is_input else "cross" if queries != first else "decode_self" if queries == OUTPUTS else "self"
    is_usual = {queries, first} <= {TOKENS, LATENTS, OUTPUTS}
    return Role(kind if is_usual else f"{queries}/{kind}", queries, first)
