"""Splits: complete, disjoint, group-safe, the same everywhere."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kizu.data import Augmentation, Dataset, Sample, Split, SplitRule
from kizu.data.coil100 import PAPER as COIL
from kizu.data.folder import RANDOM as FOLDER
from kizu.data.magnetic_tile import RANDOM, TILE
from kizu.data.mnist import HELD_OUT
from kizu.data.mvtec import PAPER as MVTEC
from kizu.errors import DataError

RULES = {rule.text: rule for rule in (COIL, FOLDER, RANDOM, TILE, HELD_OUT, MVTEC)}


def dataset(samples: list[Sample], *rules: SplitRule, own: frozenset[str] = frozenset()) -> Dataset:
    return Dataset("made", None, "mono", tuple(samples), Augmentation(), rules, own)


def sample(index: int, kind: str = "good", group: str = "") -> Sample:
    return Sample(name=f"s{index:04d}", good=kind == "good", kind=kind, group=group or f"s{index:04d}")


def parts(split: Split) -> list[tuple[Sample, ...]]:
    return [split.train, split.validation, split.calibration, split.test]


def names(samples: tuple[Sample, ...]) -> list[str]:
    return [s.name for s in samples]


@st.composite
def datasets(draw: st.DrawFn) -> Dataset:
    rule = RULES[draw(st.sampled_from(sorted(RULES)))]
    size = draw(st.integers(12, 90))
    groups = draw(st.integers(1, 40))
    kinds = draw(st.lists(st.sampled_from(["good"] * 6 + ["crack", "chip"]), min_size=size, max_size=size))
    of_group = draw(st.lists(st.integers(0, groups), min_size=size, max_size=size))
    owned = draw(st.sets(st.integers(0, groups), max_size=8)) if rule.own_test != 0.5 or rule is MVTEC else set()
    samples = [sample(i, kinds[i], f"g{of_group[i]}") for i in range(size)]
    own = frozenset(s.name for s, g in zip(samples, of_group, strict=True) if g in owned)
    return dataset(samples, rule, own=own)


@settings(max_examples=200, deadline=None)
@given(datasets(), st.integers(0, 2**31), st.sampled_from([0.0, 0.1, 0.2, 0.5]), st.randoms())
def test_invariants(data: Dataset, seed: int, calibration: float, shuffler: object) -> None:
    try:
        split = data.split(seed=seed, calibration=calibration)
    except DataError as error:
        if "no good images are left" not in str(error):
            raise
        return
    rule = data.rules[0]
    everything = [name for part in parts(split) for name in names(part)]
    assert sorted(everything) == names(data.samples)  # complete and disjoint
    assert all(s.good for s in split.train + split.calibration)
    assert not data.fixed_test & set(names(split.train + split.calibration))
    if rule.own_test == 0:
        assert set(names(split.test)) == data.fixed_test
    if rule.by_group:
        of_group: dict[str, set[int]] = {}
        for index, part in enumerate(parts(split)):
            for s in part:
                of_group.setdefault(s.group, set()).add(index)
        # A part that the data set itself has on both sides cannot be mended by a split.
        own_groups = {s.group for s in data.samples if s.name in data.fixed_test}
        free_groups = {s.group for s in data.samples if s.name not in data.fixed_test}
        assert all(len(found) == 1 for group, found in of_group.items() if group not in own_groups & free_groups)
    shuffled = list(data.samples)
    shuffler.shuffle(shuffled)  # type: ignore[attr-defined]
    assert replace(data, samples=tuple(shuffled)).split(seed=seed, calibration=calibration) == split


@settings(max_examples=60, deadline=None)
@given(st.integers(20, 400), st.integers(0, 120), st.integers(0, 1000))
def test_shares_of_single_images_are_met_to_within_one(good: int, bad: int, seed: int) -> None:
    samples = [sample(i) for i in range(good)] + [sample(good + i, f"k{i % 3}") for i in range(bad)]
    split = dataset(samples, FOLDER).split(seed=seed, calibration=0.2)
    assert abs(len(split.train + split.calibration) - 0.6 * good) <= 1
    assert abs(len(split.calibration) - 0.2 * len(split.train + split.calibration)) <= 1
    for part in (split.validation, split.test):
        assert abs(sum(s.good for s in part) - 0.2 * good) <= 1
    halves = [Counter(s.kind for s in part if not s.good) for part in (split.validation, split.test)]
    assert abs(halves[0].total() - halves[1].total()) <= 1
    assert all(abs(halves[0][k] - halves[1][k]) <= 1 for k in ("k0", "k1", "k2"))


def test_calibration_comes_out_of_training_and_0_leaves_the_rule_alone() -> None:
    data = dataset([sample(i) for i in range(100)], FOLDER)
    whole, less = data.split(calibration=0), data.split(calibration=0.25)
    assert whole.calibration == ()
    assert set(whole.train) == set(less.train + less.calibration)
    assert (whole.validation, whole.test) == (less.validation, less.test)
    assert len(less.calibration) == 15


def test_seeds_differ() -> None:
    data = dataset([sample(i) for i in range(60)], FOLDER)
    assert len({data.split(seed=seed).test for seed in range(10)}) == 10


def test_every_image_is_tested_under_some_seed() -> None:
    data = dataset([sample(i) for i in range(20)], FOLDER)
    tested = Counter(name for seed in range(200) for name in names(data.split(seed=seed).test))
    # 4 of 20 each time: a fair draw tests an image 40 times in 200, standard deviation 5.7.
    assert len(tested) == 20
    assert 15 <= min(tested.values()) <= max(tested.values()) <= 65


def test_own_test_part_is_halved_with_each_defect() -> None:
    samples = [sample(i) for i in range(30)] + [sample(30 + i, "good") for i in range(9)]
    samples += [sample(40 + i, "crack") for i in range(7)] + [sample(50 + i, "chip") for i in range(5)]
    own = frozenset(s.name for s in samples[30:])
    split = dataset(samples, MVTEC, own=own).split(seed=3, calibration=0.2)
    assert len(split.train) == 24
    assert len(split.calibration) == 6
    kinds = [Counter(s.kind for s in part) for part in (split.validation, split.test)]
    for kind, total in (("good", 9), ("crack", 7), ("chip", 5)):
        assert sorted((kinds[0][kind], kinds[1][kind])) == [total // 2, total - total // 2]


def test_a_broken_part_takes_its_good_pictures_along() -> None:
    samples = [sample(i, "good" if i % 6 else "crack", f"tile{i // 6}") for i in range(60)]
    samples += [sample(100 + i, "good", f"whole{i // 6}") for i in range(60)]
    split = dataset(samples, TILE).split(seed=1)
    assert all(s.group.startswith("whole") for s in split.train + split.calibration)
    assert {s.group for s in split.validation}.isdisjoint(s.group for s in split.test)


def test_random_rule_tears_groups_apart_and_says_so() -> None:
    samples = [sample(i, "good", f"tile{i // 6}") for i in range(120)]
    split = dataset(samples, TILE, RANDOM).split(rule="random")
    assert {s.group for s in split.train} & {s.group for s in split.test}
    assert split.rule == "random"
    assert "both sides" in " ".join(RANDOM.text.split())


def test_errors() -> None:
    data = dataset([sample(i) for i in range(10)], TILE, RANDOM)
    with pytest.raises(DataError, match=r"no split rule 'halves'.*'tile', 'random'"):
        data.split(rule="halves")
    for share in (-0.1, 1.0, float("nan")):
        with pytest.raises(DataError, match="at least 0 and below 1"):
            data.split(calibration=share)
    with pytest.raises(DataError, match="seed -1"):
        data.split(seed=-1)
    with pytest.raises(DataError, match="no good images are left"):
        dataset([sample(0, "crack"), sample(1, "crack")], TILE).split()
    with pytest.raises(DataError, match="neither a file nor an array"):
        sample(0).read()


def test_the_same_split_in_another_process_with_another_hash_seed(tmp_path: Path) -> None:
    for kind, count in (("good", 23), ("bad", 11)):
        (tmp_path / kind).mkdir()
        for index in range(count):
            (tmp_path / kind / f"{index}.pgm").write_bytes(b"P5 1 1 255\n" + bytes([index]))
    code = (
        "import sys; from kizu.data import open_dataset; s = open_dataset(sys.argv[1]).split(seed=5);"
        "print([[x.name for x in p] for p in (s.train, s.validation, s.calibration, s.test)])"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code, str(tmp_path)],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(outputs) == 1
