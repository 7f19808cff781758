"""The scoring rules: NumPy's means, the twin's bits whatever the machine and the batch, and errors in words."""

from __future__ import annotations

import math
import threading
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from helpers import python_output
from kizu import _core
from kizu.errors import ScoreError
from kizu.scoring import RULES, Scorer, check_weight, rule
from kizu.scoring_reference import map_reference, score_reference, softplus_reference
from rows import OPS

Tensors = dict[str, NDArray[Any]]
ROWS = {row.name: row for row in OPS}
RESIDUAL = [name for name, found in RULES.items() if found.residual]
WEIGHING = [name for name, found in RULES.items() if found.weighs]
DTYPES = (np.float32, np.float16)


def tensors(
    seed: int,
    images: int,
    *,
    channels: int = 3,
    side: tuple[int, int] = (7, 9),
    features: tuple[int, ...] = (11,),
    dtype: Any = np.float32,
    scale: float = 1.0,
) -> Tensors:
    """What all rules read, drawn at random."""
    rng = np.random.default_rng(seed)

    def draw(*shape: int) -> NDArray[Any]:
        return (rng.standard_normal((images, *shape)) * scale).astype(dtype)

    return {
        "x": draw(channels, *side),
        "x_hat": draw(channels, *side),
        "f": draw(*features),
        "f_hat": draw(*features),
        "logit": draw(),
    }


def by_numpy(name: str, given: Tensors, weight: float) -> NDArray[np.float64]:
    """The rules as one would write them, in float64."""
    t = {name: array.astype(np.float64) for name, array in given.items()}
    if name == "logit":
        return -t["logit"]
    residual: NDArray[np.float64] = np.abs(t["x"] - t["x_hat"]).mean((1, 2, 3))
    if name == "residual":
        return residual
    if name == "residual_logit":
        other = np.logaddexp(0, -t["logit"])
    else:
        other = np.abs(t["f"] - t["f_hat"]).reshape(len(residual), -1).mean(1)
    mixed: NDArray[np.float64] = (1 - weight) * residual + weight * other
    return mixed


def assert_same_bits(found: NDArray[Any], expected: NDArray[Any]) -> None:
    """Equal to the last bit and in the sign of zero; a NaN is as good as another."""
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(np.signbit(found) & ~np.isnan(found), np.signbit(expected) & ~np.isnan(expected))


# Values

SIDES = [(1, 1), (1, 255), (16, 16), (1, 257), (2047, 1), (32, 64), (1, 2049), (47, 113), (100, 100)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("side", SIDES, ids=str)
@pytest.mark.parametrize("name", RULES)
def test_scores_are_the_twins_and_numpys(name: str, side: tuple[int, int], dtype: Any) -> None:
    features = (side[0] * side[1] * 5) % 5000 + 1
    for channels in (1, 2, 5):
        given = tensors(channels, 3, channels=channels, side=side, features=(features,), dtype=dtype, scale=3)
        weight = 0.3 if rule(name).weighs else 0.0
        found = ROWS["score"].run(name, given, weight=weight)
        assert_same_bits(found, ROWS["score"].reference(name, given, weight=weight))
        np.testing.assert_allclose(found, by_numpy(name, given, weight), rtol=1e-6)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**32), st.integers(1, 6), st.integers(1, 5), st.integers(1, 90), st.integers(1, 90),
    st.lists(st.integers(1, 20), min_size=1, max_size=3), st.sampled_from(list(RULES)), st.sampled_from(DTYPES),
    st.integers(1, 4), st.floats(0, 1), st.sampled_from([1e-6, 1.0, 1e4]),
)  # fmt: skip
def test_any_shape_has_the_bits_of_the_twin(
    seed: int,
    images: int,
    channels: int,
    height: int,
    width: int,
    features: list[int],
    name: str,
    dtype: Any,
    threads: int,
    weight: float,
    scale: float,
) -> None:
    given = tensors(
        seed, images, channels=channels, side=(height, width), features=tuple(features), dtype=dtype, scale=scale
    )
    weight = weight if rule(name).weighs else 0.0
    found = ROWS["score"].run(name, given, weight=weight, threads=threads)
    assert_same_bits(found, ROWS["score"].reference(name, given, weight=weight))
    if rule(name).residual:
        maps = ROWS["map"].run(given["x"], given["x_hat"], rule=name, threads=threads)
        assert_same_bits(maps, ROWS["map"].reference(given["x"], given["x_hat"]))


@pytest.mark.parametrize("name", RULES)
def test_a_rule_reads_what_it_says_and_no_more(name: str) -> None:
    every = tensors(2, 4, side=(30, 40))
    reads = [*rule(name).outputs, *(["x"] if rule(name).residual else [])]
    scorer, scores = Scorer(name), np.empty(4, np.float32)
    scorer({key: every[key] for key in reads}, scores)
    assert_same_bits(scores, score_reference(name, every))
    for missing in reads:
        with pytest.raises(ScoreError, match=f"the rule reads {missing}, and it is missing"):
            scorer({key: every[key] for key in reads if key != missing}, scores)


@pytest.mark.parametrize("name", RESIDUAL)
def test_the_map_is_the_mean_residual_and_changes_no_score(name: str) -> None:
    for channels in (1, 2, 3, 5):
        given = tensors(5, 4, channels=channels, side=(75, 96))
        scorer = Scorer(name, weight=0.5 if rule(name).weighs else 0.0)
        scores, maps = np.empty(4, np.float32), np.empty((4, 75, 96), np.float32)
        scorer(given, scores, maps)
        expected = np.abs(given["x"].astype(np.float64) - given["x_hat"]).mean(1)
        np.testing.assert_allclose(maps, expected, rtol=1e-6)
        assert_same_bits(maps, map_reference(given["x"], given["x_hat"]))
        without = np.empty(4, np.float32)
        scorer(given, without)
        assert_same_bits(scores, without)


def test_weights_at_the_ends_take_one_part_alone() -> None:
    given = tensors(1, 5, side=(40, 50), features=(3000,))
    for name in WEIGHING:
        parts = by_numpy(name, given, 0.0), by_numpy(name, given, 1.0)
        for weight in (0.0, 1.0, 0, 1):
            np.testing.assert_allclose(ROWS["score"].run(name, given, weight=weight), parts[int(weight)], rtol=1e-6)


def test_large_sums_lose_nothing() -> None:
    # 0.1 added ten million times in float32 would be off by percents
    x = np.full((1, 1, 2500, 4000), np.float32(0.1))
    given = {"x": x, "x_hat": np.zeros_like(x), "logit": np.zeros(1, np.float32)}
    for name in ("residual", "residual_logit"):
        assert ROWS["score"].run(name, given)[0] == pytest.approx(np.float64(np.float32(0.1)), rel=1e-7)


# softplus


def softplus(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The native one, as float32, of what float32 logits can be."""
    logit = (-values).astype(np.float32)
    zeros = np.zeros((len(values), 1, 1, 1), np.float32)
    return ROWS["score"].run("residual_logit", {"x": zeros, "x_hat": zeros, "logit": logit}, weight=1.0)


def test_softplus_is_numpys() -> None:
    rng = np.random.default_rng(0)
    x = np.concatenate(
        [rng.uniform(-60, 60, 3000), rng.uniform(-740, 740, 3000), rng.normal(0, 1e-4, 500), [0.0, -0.0]]
    )
    exact = np.logaddexp(np.longdouble(0), x.astype(np.longdouble))
    np.testing.assert_allclose(softplus_reference(x).astype(np.longdouble), exact, rtol=1e-15, atol=1e-323)
    assert (np.diff(softplus_reference(np.sort(x))) >= 0).all()
    x = x.astype(np.float32).astype(np.float64)
    assert_same_bits(softplus(x), softplus_reference(x).astype(np.float32))


def test_softplus_at_the_ends() -> None:
    x = np.array([np.inf, 1e308, -np.inf, -1e308, np.nan, -745.0, -746.5, 5e-324])
    np.testing.assert_array_equal(
        softplus_reference(x), [np.inf, 1e308, 0, 0, np.nan, math.exp(-745), 0, softplus_reference(np.zeros(1))[0]]
    )
    extreme = np.array([np.inf, 3e38, -np.inf, -3e38, np.nan, -87.0, -103.0, -104.0])
    assert_same_bits(softplus(extreme), softplus_reference(np.float64(np.float32(extreme))).astype(np.float32))


# The same bits everywhere

DIGESTS = """
import hashlib
import numpy as np
from kizu.scoring import RULES
from kizu.scoring_reference import map_reference, score_reference
from rows import OPS
from test_scoring import tensors

ops = {row.name: row for row in OPS}
score, mapped, smooth = (ops[n].OPERATION for n in ("score", "map", "smooth_map"))
total = hashlib.sha256()
for seed in range(24):
    rng = np.random.default_rng(seed)
    side = tuple(int(n) for n in rng.integers(1, 120, 2))
    dtype = (np.float32, np.float16)[seed % 2]
    given = tensors(seed, 4, channels=seed % 5 + 1, side=side, features=(seed * 211 + 1,), dtype=dtype, scale=2)
    if dtype == np.float16:  # every exponent, from subnormal to infinite, and NaN
        given["f"].reshape(-1).view(np.uint16)[:] = rng.integers(0, 2**16, given["f"].size)
    for name, rule in RULES.items():
        weight = 0.25 if rule.weighs else 0.0
        for reduce in ("max", "mean"):
            total.update(np.nan_to_num(score(name, given, weight=weight, views=2, reduce=reduce), nan=7).tobytes())
    maps = mapped(given["x"], given["x_hat"])
    total.update(maps.tobytes())
    total.update(smooth(maps[0], (40 + seed, 90), sigma=(2.5, 3.5)).tobytes())
print(total.hexdigest())
"""


def test_every_instruction_set_gives_the_same_bits() -> None:
    script = "import sys; sys.path.insert(0, sys.argv[1])\n" + DIGESTS
    here = __file__.rpartition("/")[0]
    twin = python_output(script.replace("OPERATION", "reference"), here)
    for name in _core.instruction_sets():
        found = python_output(script.replace("OPERATION", "run"), here, environment={"KIZU_SIMD": name})
        assert found == twin, name


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", RULES)
def test_batch_position_and_threads_change_no_bit(name: str, dtype: Any) -> None:
    given = tensors(3, 256, channels=2, side=(30, 41), features=(2100,), dtype=dtype)
    single = np.concatenate(
        [ROWS["score"].run(name, {key: array[i : i + 1] for key, array in given.items()}) for i in range(256)]
    )
    assert len(np.unique(single)) > 200
    for threads in (1, 2, 3, 4):
        for n in (1, 2, 7, 64, 255, 256):
            for start in {0, 256 - n}:
                part = {key: array[start : start + n] for key, array in given.items()}
                assert_same_bits(ROWS["score"].run(name, part, threads=threads), single[start : start + n])


def test_one_image_is_shared_among_threads() -> None:
    given = tensors(4, 1, side=(400, 500), features=(300, 30, 30))
    expected = score_reference("residual_feature", given, weight=0.4)
    for threads in range(1, 5):
        for _ in range(20):
            assert_same_bits(ROWS["score"].run("residual_feature", given, weight=0.4, threads=threads), expected)
            assert_same_bits(
                ROWS["map"].run(given["x"], given["x_hat"], threads=threads), map_reference(given["x"], given["x_hat"])
            )


def test_several_callers_take_turns() -> None:
    given = [tensors(seed, 3, side=(90, 70), features=(4000,)) for seed in range(4)]
    scorer, wrong = Scorer("residual_feature", weight=0.5, threads=2), []
    expected = [score_reference("residual_feature", each, weight=0.5) for each in given]

    def work(which: int) -> None:
        scores = np.empty(3, np.float32)
        for _ in range(100):
            scorer(given[which], scores)
            if scores.tobytes() != expected[which].tobytes():
                wrong.append(which)

    threads = [threading.Thread(target=work, args=(which,)) for which in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


# Views


@pytest.mark.parametrize("name", RULES)
def test_views_are_reduced(name: str) -> None:
    given = tensors(6, 12, side=(13, 17))
    each = ROWS["score"].run(name, given).reshape(-1, 4)
    assert_same_bits(ROWS["score"].run(name, given, views=4), each.max(1))
    mean = ROWS["score"].run(name, given, views=4, reduce="mean")
    np.testing.assert_allclose(mean, each.astype(np.float64).mean(1), rtol=1e-7)
    assert_same_bits(mean, score_reference(name, given, views=4, reduce="mean"))
    assert ROWS["score"].run(name, given, views=12).shape == (1,)


# Values that are not finite


@pytest.mark.parametrize("where", ["x", "x_hat", "f", "f_hat", "logit"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_value_that_is_not_finite_stays_in_its_image_and_is_seen(where: str, value: float, dtype: Any) -> None:
    for name, found in RULES.items():
        if where not in (*found.outputs, "x" if found.residual else None):
            continue
        clean = tensors(7, 4, side=(60, 70), features=(2300,), dtype=dtype)
        for place in (0, 255, 256, 2047, 2048, -1):
            given = {key: array.copy() for key, array in clean.items()}
            given[where].reshape(4, -1)[2, place if where != "logit" else 0] = value
            scores = ROWS["score"].run(name, given, weight=0.5 if found.weighs else 0.0)
            assert np.isfinite(scores[[0, 1, 3]]).all()
            if where == "logit":
                expected = {"logit": -value, "residual_logit": scores[2] if value > 0 else -value}[name]
            else:
                expected = abs(value)
            np.testing.assert_array_equal(scores[2], expected)
            if np.isnan(value):
                for reduce in ("max", "mean"):
                    assert np.isnan(ROWS["score"].run(name, given, views=4, reduce=reduce))[0]


def test_a_nan_wins_wherever_it_stands() -> None:
    for place in range(5):
        logit = np.arange(5, dtype=np.float32)
        logit[place] = np.nan
        assert np.isnan(ROWS["score"].run("logit", {"logit": logit}, views=5)).all()


def test_infinities_of_one_sign_leave_no_number() -> None:
    given = tensors(8, 1)
    given["x"][0, 1, 2, 3] = given["x_hat"][0, 1, 2, 3] = np.inf
    for name in RESIDUAL:
        assert np.isnan(ROWS["score"].run(name, given))[0]
    maps = ROWS["map"].run(given["x"], given["x_hat"])
    assert np.isnan(maps[0, 2, 3])
    assert np.isnan(maps).sum() == 1


def test_half_precision_is_widened_exactly() -> None:
    every = np.arange(2**16, dtype=np.uint16).view(np.float16)
    zeros = np.zeros((len(every), 1, 1, 1), np.float16)
    given = {"x": every.reshape(-1, 1, 1, 1), "x_hat": zeros, "logit": zeros.ravel()}
    with np.errstate(invalid="ignore"):  # signalling NaNs
        for name in ("residual", "residual_logit"):
            assert_same_bits(ROWS["score"].run(name, given), np.abs(every).astype(np.float32))
        assert_same_bits(ROWS["score"].run("logit", {"logit": every}), -every.astype(np.float32))
        wide = {"x": np.tile(every[None, None, None], (1, 1, 3, 1)), "x_hat": np.zeros((1, 1, 3, 2**16), np.float16)}
        assert_same_bits(ROWS["map"].run(**wide)[0, 1], np.abs(every).astype(np.float32))


# Memory


def test_nothing_outside_the_outputs_is_written_and_the_inputs_stay() -> None:
    for side in ((1, 1), (3, 85), (64, 33)):
        given = tensors(9, 3, side=side)
        before = {name: array.copy() for name, array in given.items()}
        for array in given.values():
            array.flags.writeable = False
        scores, maps = np.full(64 + 3, -5, np.float32), np.full(128 + 3 * side[0] * side[1], -5, np.float32)
        Scorer("residual_feature", weight=0.5, threads=2)(given, scores[32:35], maps[64:-64].reshape(3, *side))
        for whole, margin in ((scores, 32), (maps, 64)):
            assert (whole[:margin] == -5).all()
            assert (whole[-margin:] == -5).all()
            assert (whole[margin:-margin] >= 0).all()
        for name, array in given.items():
            assert_same_bits(array, before[name])


def test_memory_need_only_be_aligned_to_its_values() -> None:
    given = tensors(10, 2, side=(37, 70))
    shifted = {}
    for name, array in given.items():
        room = np.empty(array.size + 3, np.float32)
        shifted[name] = room[3:].reshape(array.shape)
        shifted[name][...] = array
    assert_same_bits(
        ROWS["score"].run("residual_feature", shifted, weight=0.5),
        ROWS["score"].run("residual_feature", given, weight=0.5),
    )


# Errors


def test_an_unknown_rule_and_wrong_arguments_are_refused() -> None:
    with pytest.raises(ScoreError, match="no scoring rule is called 'sum'; this version of kizu knows logit, residual"):
        Scorer("sum")
    for weight in (-0.1, 1.1, math.nan, math.inf, "0.5", None, True):
        with pytest.raises(ScoreError, match=r"weight is .*, but must be a number from 0 to 1"):
            Scorer("residual_logit", weight=weight)  # type: ignore[arg-type]
    assert check_weight("residual_logit", 1) == 1.0
    for name in set(RULES) - set(WEIGHING):
        assert check_weight(name, 0) == 0.0
        with pytest.raises(ScoreError, match=rf"weight is 0\.5, but the rule {name} weighs nothing"):
            Scorer(name, weight=0.5)
    wrong: list[dict[str, Any]] = [{"views": 0}, {"views": 1.5}, {"reduce": "sum"}, {"threads": 0}]
    for options in wrong:
        with pytest.raises(ScoreError, match=r"there is no such scorer|views is"):
            Scorer("residual_logit", **options)


BAD: list[tuple[str, dict[str, Any], str]] = [
    ("residual_feature", {"x_hat": None}, "the rule reads x_hat, and it is missing"),
    ("residual_logit", {"logit": None}, "the rule reads logit, and it is missing"),
    ("residual", {"x_hat": np.zeros((4, 3, 9, 7), np.float32)}, r"x_hat has the shape \(4, 3, 9, 7\)"),
    ("residual", {"map": np.zeros((4, 9, 7), np.float32)}, r"map has the shape \(4, 9, 7\)"),
    ("residual_feature", {"x": [1.0]}, "x is a list, but must be a NumPy array"),
    ("logit", {"logit": np.zeros(4)}, "logit is float64, but the tensors must all be float32, or all float16"),
    ("logit", {"logit": np.zeros(4, ">f4")}, "logit is >f4"),
    ("logit", {"logit": np.zeros(4, np.int32)}, "logit is int32"),
    ("residual_logit", {"logit": np.zeros(4, np.float16)}, "logit is float16, but the tensors must all be float32"),
    ("logit", {"logit": np.zeros((4, 1), np.float32)}, r"logit has the shape \(4, 1\), but must be \(images,\)"),
    ("logit", {"logit": np.zeros(0, np.float32)}, "there are 0 images"),
    ("residual_logit", {"logit": np.zeros(3, np.float32)}, r"logit has the shape \(3,\), but must have the images"),
    ("residual_logit", {"x_hat": np.zeros((4, 3, 9, 7), np.float32)}, r"x_hat has the shape \(4, 3, 9, 7\)"),
    ("residual_logit", {"x_hat": np.zeros((4, 3, 7, 8), np.float32)}, "that of what it is compared with"),
    ("residual_feature", {"f_hat": np.zeros((4, 12), np.float32)}, r"f_hat has the shape \(4, 12\)"),
    ("residual_feature", {"f": np.zeros((4, 0), np.float32), "f_hat": np.zeros((4, 0), np.float32)},
     "f has 0 features"),
    ("residual_logit", {"x": np.zeros((4, 9), np.float32), "x_hat": np.zeros((4, 9), np.float32)},
     r"x has the shape \(4, 9\), but must be \(images, channels, height, width\)"),
    ("residual_logit", {"x": np.zeros((4, 0, 7, 9), np.float32), "x_hat": np.zeros((4, 0, 7, 9), np.float32)},
     "x has 0 channels of 63 pixels"),
    ("residual_logit", {"x": np.zeros((4, 3, 7, 18), np.float32)[..., ::2]}, "x must be C-contiguous"),
    ("logit", {"logit": np.zeros(17, np.uint8)[1:].view(np.float32)}, "logit must be aligned to its dtype"),
    ("logit", {"out": np.zeros(3, np.float32)}, r"scores has the shape \(3,\), but for these tensors it must be"),
    ("logit", {"out": np.zeros(4)}, "scores must be float32"),
    ("logit", {"out": np.zeros(8, np.float32)[::2]}, "scores must be C-contiguous"),
    ("logit", {"out": np.broadcast_to(np.zeros(4, np.float32), 4)}, "read-only|not writeable"),
    ("logit", {"out": [0.0] * 4}, "out is a list, but must be a NumPy array"),
    ("logit", {"map": np.zeros((4, 7, 9), np.float32)}, "the rule logit has no map"),
    ("residual_logit", {"map": np.zeros((4, 9, 7), np.float32)}, r"map has the shape \(4, 9, 7\)"),
    ("residual_logit", {"map": np.zeros((4, 7, 9), np.float16)}, "map must be float32"),
    ("residual_logit", {"map": "yes"}, "map is a str, but must be a NumPy array"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "change", "fault"), BAD, ids=lambda value: value if isinstance(value, str) else "")
def test_what_does_not_fit_is_refused(name: str, change: dict[str, Any], fault: str) -> None:
    scorer = Scorer(name)
    arguments: dict[str, Any] = {**tensors(0, 4), "out": np.empty(4, np.float32), "map": None}
    scorer(arguments, arguments["out"], arguments["map"])
    before = arguments["out"].copy()
    arguments |= change
    given = {key: array for key, array in arguments.items() if key not in ("out", "map") and array is not None}
    with pytest.raises(ScoreError, match=fault) as caught:
        scorer(given, arguments["out"], arguments["map"])
    assert f"the rule {name} cannot score this" in str(caught.value) or "must be a NumPy array" in str(caught.value)
    if "out" not in change:
        assert_same_bits(arguments["out"], before)
    scorer(tensors(0, 4), before)  # the next call is fine


def test_images_must_make_whole_frames() -> None:
    with pytest.raises(ScoreError, match="there are 4 images, but there must be at least one and a multiple of the 3"):
        Scorer("logit", views=3)(tensors(0, 4), np.empty(1, np.float32))


SUBNORMAL = """
import numpy as np
import torch
from kizu.scoring import Scorer
from kizu.scoring_reference import score_reference

x = np.full((1, 1, 40, 40), 1e-40, np.float32)
half = np.full((1, 1, 40, 40), 6e-8, np.float16)
torch.set_flush_denormal(True)
for threads in (1, 2):
    for given in (x, half):
        out = np.full(1, np.nan, np.float32)
        f = np.ones((1, 3), given.dtype)
        Scorer("residual_feature", threads=threads)({"x": given, "x_hat": given * 0, "f": f, "f_hat": f}, out)
        assert torch.set_flush_denormal(True)
        print(out.tobytes().hex())
"""


@pytest.mark.parametrize("level", _core.instruction_sets())
def test_subnormal_numbers_count_whatever_mode_the_process_is_in(level: str) -> None:
    found = python_output(SUBNORMAL, environment={"KIZU_SIMD": level}).split()
    expected = [np.float32(1e-40), np.float32(np.float16(6e-8))]
    assert found == [value.tobytes().hex() for value in expected] * 2
