"""Rules that say by patterns what they are for: the first that matches wins, and none may be idle."""

import difflib
import fnmatch
from collections.abc import Iterable, Sequence
from typing import Protocol, runtime_checkable


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
    paths, faults = list(paths), []
    matching = {path: [i for i, each in enumerate(rules) if matches(each.match, path)] for path in paths}
    winner = {path: numbers[0] for path, numbers in matching.items() if numbers}
    for i, each in enumerate(rules):
        if each.optional:
            continue
        idle = [pattern for pattern in each.match if not any(matches([pattern], path) for path in paths)]
        for pattern in idle:
            near = ", ".join(_nearest(pattern, paths)) or "none"
            faults.append(
                f"{rule} {i + 1}: {pattern} matches none of the {len(paths)} {what}; nearest: {near}. Fix"
                f" or delete the pattern, or mark the rule as optional"
            )
        if not idle and i not in winner.values():
            where = f"{rule} {i + 1}: {' | '.join(each.match)}"
            faults.append(f"{where}: earlier rules take all of its {what}. Move it up, or delete it")
    return winner, faults


def _nearest(pattern: str, paths: list[str]) -> list[str]:
    return difflib.get_close_matches(pattern, paths, n=3, cutoff=0.3) or paths[:3]
