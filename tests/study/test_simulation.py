"""Files of records drawn from known models: how often a verdict is false, and an interval beside the truth."""

import math

import pytest

from tests.study.simulate import Model, simulate, study_of

SIZES = ("tiny", "small", "medium", "large", "xl")
MODELS = ("gpt2_small", "gpt2_medium", "gpt2_large", "gpt2_xl")
TEXT = ("n1000", "n2000", "n5000", "n10000", "n20000", "n50000")
LENGTHS = ("len16", "len32", "len64", "len128")
LEARNERS = ("backprop", "looped_mlp", "recurrent_core", "full", "looped_mlp_twin", "recurrent_core_twin", "full_twin")
ORIGINAL = {"prompt_tokens": 200, "samples": 20, "max_new_tokens": 50, "temperature": 0.8, "threshold": 0.4}
WORKLOADS = ("maze_baseline", "maze_poh_hrm", "attention_baseline", "attention_mla_plain")


def maze(base, poh, **more):
    means = {(size, "baseline"): p for size, p in zip(SIZES, base, strict=True)}
    means |= {(size, "poh_hrm"): p for size, p in zip(SIZES, poh, strict=True)}
    return Model("maze_scaling", means, **{"settings": {"test": 300}} | more)


def decoding(speedups, **more):
    means = {(m, "sequential"): math.log(10.0) for m in MODELS}
    means |= {(m, "eab_particles"): math.log(10.0 / s) for m, s in zip(MODELS, speedups, strict=True)}
    means |= {(m, d): math.log(10.0 / s) + math.log(2) for m, s in zip(MODELS, speedups, strict=True)
              for d in ("dedup", "shared_prefill")}  # fmt: skip
    return Model("decoding_speedup", means, settings=ORIGINAL, **more)


def attention(effects, **more):
    names = study_of("attention_search").arms
    return Model("attention_search", {("", name): 2.5 + effects.get(name, 0.0) for name in names}, noise=0.03, **more)


def lm(advantages, rule=0.0, **more):
    """Every variant the same nats better than backprop at each amount of text, the rule as many worse than its twin."""
    means = {}
    for levels, gains in ((TEXT, advantages), (LENGTHS, (0.0,) * 4)):
        for level, gain in zip(levels, gains, strict=True):
            means[level, "backprop"] = 3.0
            for name in LEARNERS[1:]:
                means[level, name] = 3.0 - gain - (rule if name.endswith("_twin") else 0.0)
    means = {key: value for key, value in means.items() if not (key[0] in LENGTHS and key[1].endswith("_twin"))}
    return Model("lm_scale_study", means, **more)


def training(ratios, **more):
    means = {(w, "plain"): 0.0 for w in WORKLOADS}
    means |= {
        (w, loop): -math.log(r) for w, r in zip(WORKLOADS, ratios, strict=True) for loop in ("shared", "compiled")
    }
    return Model("training_speed", means, settings={"device": "cpu"}, **more)


SCENARIOS = {
    "maze null": maze((0.5,) * 5, (0.5,) * 5),
    "maze at its floors": maze((0.3,) * 5, (0.3,) * 5),
    "maze planted": maze((0.3, 0.4, 0.5, 0.6, 0.7), (0.2, 0.4, 0.6, 0.7, 0.8), drop=0.2),
    "maze saturates": maze((0.2, 0.4, 0.6, 0.605, 0.61), (0.2, 0.45, 0.65, 0.65, 0.65), blocks=8, shared=0.01,
                           own=0.003, noise=0.003, settings={"test": 20_000}),
    "decoding null": decoding((1.0,) * 4, blocks=10),
    "decoding at its bands": decoding((1.8, 2.0, 2.2, 2.5), blocks=10),
    "decoding planted": decoding((1.9, 2.2, 2.5, 2.8), blocks=10, drop=0.2),
    "attention null": attention({}),
    "attention at its bounds": attention({"lora_xl": -0.005, "half_size": 0.0}),
    "attention planted": attention({"rope_small": -0.2, "rope_only": -0.05, "enhanced_xl": 0.1, "half_size": 0.4,
                                    "nope": 0.4}, drop=0.2),
    "lm null": lm((0.0,) * 6),
    "lm rule at its bound": lm((-0.2, -0.1, -0.05, 0.0, 0.05, 0.1), rule=0.02),
    "lm planted": lm((-0.3, -0.2, -0.1, 0.1, 0.2, math.log(2)), drop=0.2),
    "training at its targets": training((1.5, 1.5, 1.3, 1.3)),
    "training planted": training((2.0, 1.1, 1.6, 1.2), drop=0.2),
}  # fmt: skip


def check(score, allowed):
    assert score.primary <= allowed, (score.primary, score.false, score.words)
    worst = max(score.false.values(), default=0)
    assert worst <= allowed, (score.false, score.words)
    assert score.intervals and score.inside / score.intervals >= 0.93, (score.inside, score.intervals)


@pytest.mark.slow
@pytest.mark.parametrize("name", SCENARIOS)
def test_two_hundred_files_of_a_scenario_have_few_false_verdicts(name):
    """5 % of 200 is 10; 17 or fewer come with a probability of 98.7 % where it is."""
    check(simulate(SCENARIOS[name], 200, seed=11), 17)


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_few_files_of_a_scenario_have_few_false_verdicts(name):
    """At 5 % six or more of 25 are one case in a thousand."""
    check(simulate(SCENARIOS[name], 25, seed=1), 5)


@pytest.mark.parametrize(
    ("name", "claim", "word"),
    [
        ("maze saturates", "H2", "refuted"),
        ("maze saturates", "H3", "supported"),
        ("decoding planted", "H1", "supported"),
        ("attention planted", "C1", "supported"),
        ("attention planted", "C7", "supported"),
        ("lm planted", "Q", "supported"),
        ("lm planted", "E1", "supported"),
        ("training planted", "maze_baseline cpu", "supported"),
        ("training planted", "maze_poh_hrm cpu", "refuted"),
    ],
)
def test_what_is_planted_large_is_mostly_found(name, claim, word):
    model = SCENARIOS[name]
    model = Model(**{**vars(model), "drop": 0.0})
    words = simulate(model, 10, seed=2).words[claim]
    assert words[word] >= 6, words
