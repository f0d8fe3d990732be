"""From two answers of `RouterAdmin.evidence` to rows: what each router has counted in between."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, cast

from orchestrator.rollout.evidence.rows import MIRROR, Counts, Delta, mapping, number, whole

_GROWING: Final = ("n", "agree", "top1", "flips", "nonfinite", "misfit", "dropped", "failed", "faster", "slower")
_MOST_ABSENT: Final = 16
_Arms = dict[tuple[str, int], dict[int, Counts]]
"""(traffic, weight) -> generation -> counts."""


def deltas(before: Mapping[str, Any] | None, now: Mapping[str, Any], stable: int, canary: int, t: float) -> list[Delta]:
    """Return what was counted between two looks, ordered by router, traffic and weight; nothing where nothing was.

    Args:
        before: The answer that was judged last. None at the first look of a rollout: then the canary's counts are all of this rollout,
            but the stable generation's may be of an earlier one, so that only its growth from here on counts.
        now: The answer now. A router that was not in `before` (it was restarted) counts from zero.
        stable: Number of the generation that is compared with.
        canary: Number of the generation that is judged.
        t: When `now` was read, unix seconds.
    """
    former = {str(router.get("boot")): router for router in _routers(before)}
    if before is None:
        former = {str(router.get("boot")): _without(router, canary) for router in _routers(now)}
    found: list[Delta] = []
    for router in sorted(_routers(now), key=lambda router: str(router.get("boot"))):
        boot = str(router.get("boot"))
        found += _of_router(boot, former.get(boot, {}), router, (stable, canary), t)
    return found


def joined(before: Mapping[str, Any] | None, now: Mapping[str, Any]) -> dict[str, Any]:
    """Return `now` with the routers of `before` that did not answer: one that does again must not count from zero once more."""
    rows = _routers(now)
    boots = {row.get("boot") for row in rows}
    absent = [row for row in _routers(before) if row.get("boot") not in boots]
    return {**now, "routers": [*absent[-_MOST_ABSENT:], *rows]}


def _routers(answer: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
    rows: object = mapping(answer).get("routers")
    return [mapping(row) for row in cast("Sequence[object]", rows)] if isinstance(rows, Sequence) else []


def _without(router: Mapping[str, Any], canary: int) -> dict[str, Any]:
    """Return a router's answer as if the canary had had no request yet."""
    rows: object = router.get("arms")
    arms = [mapping(row) for row in cast("Sequence[object]", rows)] if isinstance(rows, Sequence) else []
    classes = {number: counts for number, counts in mapping(router.get("classes")).items() if number != str(canary)}
    return {"arms": [arm for arm in arms if whole(arm.get("generation")) != canary], "classes": classes}


def _of_router(
    boot: str, before: Mapping[str, Any], now: Mapping[str, Any], generations: tuple[int, int], t: float
) -> list[Delta]:
    stable, canary = generations
    former, arms = _arms(before, generations), _arms(now, generations)
    in_row = whole(mapping(now.get("failures_in_row")).get(str(canary)))
    pairs, classes = _pairs(before, now, generations), _classes(before, now, generations)
    if pairs or classes or in_row:
        arms.setdefault((MIRROR, 0), {})
    found: list[Delta] = []
    first = True
    for place in sorted(arms):
        traffic, weight = place
        grown = {
            number: counts.minus(former.get(place, {}).get(number, Counts())) for number, counts in arms[place].items()
        }
        mine, other = grown.get(canary, Counts()), grown.get(stable, Counts())
        # What belongs to no arm goes with the first row of the copies, once.
        carries = traffic == MIRROR and first
        if not mine.empty or not other.empty or carries:
            extra: dict[str, Any] = {"pairs": pairs, "classes": classes} if carries else {}
            row = Delta(
                t=t,
                boot=boot,
                traffic=traffic,
                weight=weight,
                canary=mine,
                stable=other,
                failures_in_row=in_row,
                **extra,
            )
            found.append(row)
        first = first and traffic != MIRROR
    return found


def _arms(router: Mapping[str, Any], generations: tuple[int, int]) -> _Arms:
    found: _Arms = {}
    rows: object = router.get("arms")
    for row in cast("Sequence[object]", rows) if isinstance(rows, Sequence) else ():
        arm = mapping(row)
        number = whole(arm.get("generation"))
        if number in generations:
            found.setdefault((str(arm.get("traffic")), whole(arm.get("weight"))), {})[number] = Counts.from_json(arm)
    return found


def _pairs(before: Mapping[str, Any], now: Mapping[str, Any], generations: tuple[int, int]) -> dict[str, float] | None:
    rows, old = mapping(now.get("pairs")), mapping(before.get("pairs"))
    if not rows or (whole(rows.get("stable")), whole(rows.get("canary"))) != generations:
        return None
    other = any(rows.get(name) != old.get(name) for name in ("stable", "canary")) or _shrunk(old, rows)
    grown: dict[str, float] = {
        name: whole(rows.get(name)) - (0 if other else whole(old.get(name))) for name in _GROWING
    }
    if not any(grown.values()):
        return None
    return grown | {"max_abs": number(rows.get("max_abs"))}


def _shrunk(old: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    return any(whole(now.get(name)) < whole(old.get(name)) for name in _GROWING)


def _classes(
    before: Mapping[str, Any], now: Mapping[str, Any], generations: tuple[int, int]
) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = {}
    for side, place in zip(("stable", "canary"), generations, strict=True):
        old = mapping(mapping(before.get("classes")).get(str(place)))
        new = mapping(mapping(now.get("classes")).get(str(place)))
        anew = any(whole(new.get(key)) < whole(count) for key, count in old.items())
        grown = {str(key): whole(count) - (0 if anew else whole(old.get(key))) for key, count in new.items()}
        if more := {key: count for key, count in grown.items() if count > 0}:
            found[side] = more
    return found
