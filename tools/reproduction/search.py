"""Searches: each variant's candidates are trained as an experiment of their own, and the best one is taken."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from statistics import mean

from reproduction.experiments import Changes, Experiment
from reproduction.results import Row
from reproduction.runs import Planned, plan

VALUE = "validation_chosen"  # the column by which candidates are judged


def name_of(variant: str, candidate: str) -> str:
    """What a candidate of a variant is called in the search's experiment."""
    return f"{variant}: {candidate}"


def plan_search(
    experiment: Experiment, *, data: Iterable[str] = (), variants: Iterable[str] = (), given: Changes | None = None
) -> list[Planned]:
    """All rows of an experiment's search; raises TrainingError. The arguments are those of ``plan``."""
    search, known = experiment.search, experiment.labelled_variants()
    assert search is not None
    candidates = {
        name_of(variant, label): {**known[variant], **changes}
        for variant in tuple(variants) or known
        for label, changes in search.candidates[variant].items()
    }
    of_search = replace(experiment, name=f"{experiment.name}-search", variants=candidates)
    return plan(of_search, seeds=search.seeds, data=search.data or data, given=given)


def plan_found(
    experiment: Experiment,
    found: Mapping[tuple[str, str], str],
    *,
    seeds: Iterable[int],
    data: Iterable[str] = (),
    variants: Iterable[str] = (),
    given: Changes | None = None,
) -> list[Planned]:
    """All rows of an experiment with what its search has found; without variants for which it has found nothing."""
    search, known = experiment.search, experiment.labelled_variants()
    assert search is not None
    wanted, rows = tuple(variants) or tuple(known), []
    for name in tuple(data) or experiment.data:
        settled = {
            variant: {**known[variant], **search.candidates[variant][found[name, variant]]}
            for variant in wanted
            if (name, variant) in found
        }
        rows += plan(replace(experiment, variants=settled), seeds=seeds, data=[name], given=given)
    return rows


def best(experiment: Experiment, rows: Sequence[Row], data: Iterable[str] = ()) -> dict[tuple[str, str], str]:
    """The best candidate by data and variant.

    It is the one of the highest validation AUROC, mean over the search's data and seeds; the first of equals.
    Candidates whose trainings are not all there, as some have failed, do not count.

    Args:
        experiment: one with a search.
        rows: of the search.
        data: instead of the experiment's own.
    """
    search = experiment.search
    assert search is not None
    found = {}
    for name in tuple(data) or experiment.data:
        for variant, candidates in search.candidates.items():
            values = {}
            for label in candidates:
                reached = value(search.data or (name,), search.seeds, name_of(variant, label), rows)
                if reached is not None:
                    values[label] = reached
            if values:
                found[name, variant] = max(values, key=values.__getitem__)
    return found


def value(data: Sequence[str], seeds: Sequence[int], name: str, rows: Sequence[Row]) -> float | None:
    """A candidate's mean validation AUROC; None if a training is missing."""
    own = {(row["data"], row["seed"]): row[VALUE] for row in rows if row["variant"] == name and VALUE in row}
    wanted = [(each, seed) for each in data for seed in seeds]
    return mean(own[key] for key in wanted) if all(key in own for key in wanted) else None
