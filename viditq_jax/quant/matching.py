"""Rules that say by patterns what they are for: the first that matches wins, and none may be idle."""

import difflib
import fnmatch
import re
from collections.abc import Iterable, Sequence
from typing import Protocol, runtime_checkable

_HINTS = 20  # faults that say what lies near; finding it takes long


@runtime_checkable
class Matching(Protocol):
    """What a rule has to be found by; patterns are of `fnmatch`, and "*" also matches "/"."""

    @property
    def match(self) -> tuple[str, ...]:
        """Patterns of paths."""
        ...

    @property
    def optional(self) -> bool:
        """Whether patterns may match nothing."""
        ...


def matches(patterns: Iterable[str], path: str) -> bool:
    """Whether one of the patterns matches."""
    return any(fnmatch.fnmatchcase(path, pattern) for pattern in patterns)


def winners(
    rules: Sequence[Matching], paths: Iterable[str], *, rule: str, what: str
) -> tuple[dict[str, int], list[str]]:
    """The number, from 0 on, of the first rule that matches, for each path that has one; and all faults.

    A pattern that matches nothing is a fault, and so is a rule that never wins, unless the rule is optional.
    rule, what: how messages call a rule, and those that have the paths.
    """
    paths = list(paths)
    faults: list[str] = []
    taken = {pattern: _taken(pattern, paths) for pattern in {item for each in rules for item in each.match}}
    first: dict[str, int] = {}
    for i, each in enumerate(rules):
        for path in (path for pattern in each.match for path in taken[pattern]):
            first.setdefault(path, i)
    winner = {path: first[path] for path in paths if path in first}
    winning = set(winner.values())
    for i, each in enumerate(rules):
        if each.optional:
            continue
        idle = [pattern for pattern in each.match if not taken[pattern]]
        for pattern in idle:
            near = ", ".join(_nearest(pattern, paths) if len(faults) < _HINTS else ()) or "none"
            faults.append(
                f"{rule} {i + 1}: {pattern} matches none of the {len(paths)} {what}; nearest: {near}. Fix"
                f" or delete the pattern, or mark the rule as optional"
            )
        if not idle and i not in winning:
            where = f"{rule} {i + 1}: {' | '.join(each.match)}"
            faults.append(f"{where}: earlier rules take all of its {what}. Move it up, or delete it")
    return winner, faults


def _taken(pattern: str, paths: list[str]) -> list[str]:
    """The paths that a pattern matches."""
    match = re.compile(fnmatch.translate(pattern)).match
    return [path for path in paths if match(path)]


def _nearest(pattern: str, paths: list[str]) -> list[str]:
    return difflib.get_close_matches(pattern, paths, n=3, cutoff=0.3) or paths[:3]
