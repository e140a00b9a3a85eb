"""The Triton kernels against the reference: on a GPU natively, elsewhere in Triton's interpreter on CPU tensors."""

import math

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mlexp.decoding import kernels
from mlexp.decoding.engine import grow
from mlexp.decoding.kernels import reference
from mlexp.decoding.rng import path_seeds, token_words
from mlexp.decoding.settings import BranchRule, Sampling
from mlexp.flops import count_flops

from ..models import prompt_of, tiny
from .compare import assert_draws_agree
from .inputs import EXTRAS, KINDS, SEEDS, VOCABULARIES, forest, logits, poisoned, pools

triton = pytest.importorskip("triton", reason="needs the triton package: pip install 'pytest-mlexp[triton]'")
import triton.language as tl  # noqa: E402

from mlexp.decoding.kernels import triton as ours  # noqa: E402
from mlexp.decoding.kernels import triton_device as device  # noqa: E402

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
FLOATS = st.sampled_from([torch.float32, torch.bfloat16, torch.float16])
FEW = settings(max_examples=12)  # interpreted, an example takes a quarter of a second


def put(values: dict) -> dict:
    return {name: v.to(DEVICE) if isinstance(v, torch.Tensor) else v for name, v in values.items()}


def sampled(x, seeds, position, k, rows=None, block=4096):
    """(the kernel's four results on poisoned memory, the tempered logits of each draw)."""
    where = torch.arange(len(seeds)) if rows is None else rows
    moved = put({"logits": x, "seeds": seeds, "position": torch.tensor(position), "rows": rows})
    with poisoned():
        got = ours.entropy_sample(moved["logits"], 0.8, moved["seeds"], moved["position"], k, moved["rows"], block)
    return tuple(g.cpu() for g in got), reference.tempered(x, 0.8)[where]


@triton.jit
def _show_words(seeds, position, tokens, words, BLOCK: tl.constexpr):
    block, i = tl.program_id(0), tl.arange(0, BLOCK)
    token, word = device.words(tl.load(seeds), tl.load(position), block, BLOCK)
    tl.store(tokens + block * BLOCK + i, token)
    tl.store(words + block * BLOCK + i, word)


@pytest.mark.parametrize("block", [128, 512])
def test_the_random_words_are_the_references(block):
    seeds, position = path_seeds(11, 1, 1).view(-1), 2**20 + 3
    tokens, words = (torch.full((1024,), -7, dtype=torch.int64, device=DEVICE) for _ in range(2))
    _show_words[1024 // block,](seeds.to(DEVICE), torch.tensor(position, device=DEVICE), tokens, words, block)
    assert torch.equal(tokens.sort().values.cpu(), torch.arange(1024))
    assert torch.equal(words.cpu()[tokens.cpu().argsort()] & 0xFFFFFFFF, token_words(seeds, position, 1024)[0])


@triton.jit
def _show_gumbel(words, to, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(to + i, device.gumbel(tl.load(words + i).to(tl.uint32)))


def test_gumbel_numbers_are_their_definition_from_the_first_word_to_the_last():
    words = torch.cat([torch.tensor([0, 1, 2, 3, 7]), torch.logspace(1, 32, 123, 2).long() - 1])
    got = torch.full((128,), math.nan, device=DEVICE)
    _show_gumbel[1,](words.to(DEVICE), got, 128)
    v = ((words.double() + 0.5) / 2**32).clamp(max=1 - 2.0**-24)
    torch.testing.assert_close(got.cpu().double(), -(-torch.log1p(-v)).log(), atol=2e-6, rtol=2e-6)


def draws_case(**change):
    case = {"rows": 2, "draws": 3, "vocab": 1000, "kind": "sharp", "dtype": torch.float32, "k": 3, "block": 128,
            "position": 5, "seed": 1}  # fmt: skip
    return example(**case | change)


@draws_case()  # many blocks, each with a maximum of its own
@draws_case(kind="holes", vocab=129, dtype=torch.float16, k=4)
@draws_case(kind="empty", vocab=33, dtype=torch.bfloat16, block=4096)
@given(rows=st.integers(1, 3), draws=st.integers(1, 5), vocab=VOCABULARIES, kind=st.sampled_from(KINDS), dtype=FLOATS,
       k=st.integers(1, 4), block=st.sampled_from([128, 512, 4096]), position=st.integers(0, 2**31),
       seed=SEEDS)  # fmt: skip
@FEW
def test_draws_and_entropies_are_the_references(rows, draws, vocab, kind, dtype, k, block, position, seed):
    rng = np.random.default_rng(seed)
    x, seeds = logits(rng, rows, vocab, kind, dtype), path_seeds(seed, 1, draws)[0]
    which = torch.from_numpy(rng.integers(0, rows, draws))
    got, tempered = sampled(x, seeds, position, k, which, block)
    want = reference.entropy_sample(x, 0.8, seeds, position, k, which)
    assert_draws_agree(got, want, tempered, seeds, position, k)


def test_gpt2s_vocabulary_which_no_block_divides():
    x, seeds = logits(np.random.default_rng(0), 3, 50257, "plain"), path_seeds(0, 1, 3)[0]
    got, tempered = sampled(x, seeds, 5, 8)
    assert assert_draws_agree(got, reference.entropy_sample(x, 0.8, seeds, 5, 8), tempered, seeds, 5, 8) > 0.9
    wrong = got[2].clone()
    wrong[0, 0] += 1
    with pytest.raises(AssertionError):
        assert_draws_agree((*got[:2], wrong, got[3]), got, tempered, seeds, 5, 8)


@given(
    vocab=VOCABULARIES, kind=st.sampled_from(KINDS), k=st.integers(1, 3), seed=SEEDS, order=st.permutations(range(4))
)
@FEW
def test_draws_do_not_depend_on_blocks_order_or_company(vocab, kind, k, seed, order):
    x, seeds = logits(np.random.default_rng(seed), 4, vocab, kind), path_seeds(seed, 1, 4)[0]
    (_, _, tokens, _), _ = sampled(x, seeds, 3, k)
    assert torch.equal(sampled(x, seeds, 3, k, block=128)[0][2], tokens)
    assert torch.equal(sampled(x[order], seeds[list(order)], 3, k)[0][2], tokens[list(order)])
    assert torch.equal(sampled(x[:1], seeds[:1], 3, k)[0][2], tokens[:1])
    wide = torch.cat([x, x], 1)[:, :vocab]  # rows that are not next to each other in memory
    assert torch.equal(sampled(wide, seeds, 3, k)[0][2], tokens)


@triton.jit
def _show_best(values, tokens, found, kept, k: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    value = tl.load(values + i)
    device.take_best(value, tl.load(tokens + i), value, 0.0, k, None, found, kept)


def test_ties_go_to_the_lowest_token():
    values = torch.tensor([1.0, 2.0, 2.0, 2.0, -math.inf, -math.inf, -math.inf, -math.inf], device=DEVICE)
    found, kept = torch.full((5,), -7, device=DEVICE), torch.full((5,), math.nan, device=DEVICE)
    tokens = torch.tensor([4, 30, 10, 20, 0, 1, 2, 3], device=DEVICE)  # blocks need not be in the order of tokens
    _show_best[1,](values, tokens, found, kept, 5, 8)
    assert found.tolist() == [10, 20, 30, 4, -1] and kept.tolist() == [2.0, 2.0, 2.0, 1.0, -math.inf]


def test_a_number_of_draws_that_does_not_exist_is_named():
    x = torch.zeros(1, 4, device=DEVICE)
    with pytest.raises(ValueError, match="k=9: the Triton kernel draws 1 to 8"):
        ours.entropy_sample(x, 1.0, path_seeds(0, 1, 1)[0].to(DEVICE), torch.tensor(0, device=DEVICE), 9, None)


@given(trees=st.integers(1, 3), particles=st.sampled_from([1, 2, 5, 20, 33]), spare=st.integers(0, 3),
       k=st.integers(1, 4), threshold_nats=st.sampled_from([0.0, 0.5, 2.0]), lossless=st.booleans(),
       depth=st.integers(0, 4), columns=st.integers(0, 5), seed=SEEDS)  # fmt: skip
@FEW
def test_fork_is_the_references_to_the_bit(trees, particles, spare, k, threshold_nats, lossless, depth, columns, seed):
    state = forest(np.random.default_rng(seed), trees, particles, particles + spare, columns)
    limit = int((state["multiplicity"] > 0).sum(1).max()) + spare
    rule = BranchRule(threshold_nats, k, limit, lossless)
    with poisoned():
        got = kernels.fork(**put(state), depth=depth, first_slot=50, rule=rule, backend="triton")
    want = reference.fork(*state.values(), depth, 50, rule)
    assert all(torch.equal(g.cpu(), w) for g, w in zip(got, want, strict=True))
    assert (got[2].sum(1) == particles).all()


@pytest.mark.parametrize("limit", [1, 4, 40])
def test_a_tip_splits_at_the_threshold_itself_as_far_as_the_limit_allows(limit):
    state = forest(np.random.default_rng(3), 3, 20, 20, 4)
    state["entropy"].fill_(0.5)
    live = int((state["multiplicity"] > 0).sum(1).max())
    rule = BranchRule(0.5, branch_factor=3, max_paths=live + limit)
    got = kernels.fork(**put(state), depth=2, first_slot=50, rule=rule, backend="triton")
    want = reference.fork(*state.values(), 2, 50, rule)
    assert all(torch.equal(g.cpu(), w) for g, w in zip(got, want, strict=True)) and (want[3] > 1).any()


def test_trees_do_not_see_each_other_in_a_fork():
    state = forest(np.random.default_rng(1), 3, 20, 20, 4)
    state["tip"].zero_()
    state["multiplicity"].zero_()[:, 0] = 20
    other = {name: x.clone() for name, x in state.items()}
    other["token"][1] = torch.arange(20)
    rule = BranchRule(0.5, branch_factor=3, max_paths=20, lossless=True)
    a, b = (kernels.fork(**put(s), depth=1, first_slot=0, rule=rule, backend="triton") for s in (state, other))
    for x, y in zip(a, b, strict=True):
        x, y = (z.view(3, -1) for z in (x, y))
        assert torch.equal(x[[0, 2]], y[[0, 2]])
    assert not torch.equal(a[2][1], b[2][1])


def attention_case(**change):
    case = {"prompts": 1, "per": 20, "heads": (6, 2), "width": 16, "value_width": 24, "prompt": 70, "columns": 5,
            "extras": set(EXTRAS), "dtype": torch.float32, "splits": 2, "seed": 1}  # fmt: skip
    return example(**case | change)


@attention_case()  # more queries than a tile holds
@attention_case(prompts=2, extras=set(), dtype=torch.bfloat16, value_width=None, splits=None)
@given(prompts=st.integers(1, 3), per=st.sampled_from([1, 2, 5]), heads=st.sampled_from([(1, 1), (4, 4), (6, 2)]),
       width=st.sampled_from([1, 5, 16, 64]), value_width=st.sampled_from([None, 1, 24, 64]),
       prompt=st.sampled_from([1, 15, 33, 40]), columns=st.integers(0, 5), extras=st.sets(st.sampled_from(EXTRAS)),
       dtype=st.sampled_from([torch.float32, torch.bfloat16]), splits=st.sampled_from([None, 1, 2, 5]),
       seed=SEEDS)  # fmt: skip
@settings(max_examples=16)
def test_attention_is_the_references(prompts, per, heads, width, value_width, prompt, columns, extras, dtype, splits,
                                     seed):  # fmt: skip
    rng = np.random.default_rng(seed)
    args = pools(rng, prompts * per, heads, width, prompt, prompts, columns, dtype, value_width, extras)
    exact = args | {name: args[name].double() for name in ("q", "k_pool", "v_pool", "sinks") if name in args}
    with poisoned():
        got = ours.tree_attention(**put(args), splits=splits).cpu()
    want = reference.tree_attention(**exact)
    assert got.dtype == dtype
    near = {"atol": 2e-5, "rtol": 1e-4} if dtype == torch.float32 else {"atol": 0.03, "rtol": 0.03}
    torch.testing.assert_close(got.double(), want, **near)
    with pytest.raises(AssertionError):  # the comparison can fail
        torch.testing.assert_close(got.double() + 0.2, want, **near)


@pytest.mark.parametrize("extras", [(), EXTRAS])
def test_attention_of_strided_queries_and_all_columns(extras):
    args = put(pools(np.random.default_rng(3), 4, (6, 2), 16, 9, 1, 0, value_width=5, extras=extras))
    args |= {"ancestors": torch.tensor([[9, 10], [9, 11], [12, 13], [9, 10]], device=DEVICE).int(), "lengths": None}
    args["k_pool"], args["v_pool"] = (x.nan_to_num(0.5) for x in (args["k_pool"], args["v_pool"]))
    wide = torch.cat([args["q"], args["q"] * 2], 2)[..., :16]
    want = reference.tree_attention(**args)
    for q in (wide, args["q"].transpose(0, 1).contiguous().transpose(0, 1)):
        got = kernels.tree_attention(**args | {"q": q}, backend="triton")
        torch.testing.assert_close(got, want, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("tip, first", [(0, 3), (1, 32), (2, 40), (3, 41), (4, 43)])
def test_a_window_that_is_off_by_one_is_caught(tip, first):
    """Windows that begin within a tile of the prompt, at one, at the prompt's end, and at ancestors."""
    rng = np.random.default_rng(5)
    args = pools(rng, 5, (2, 1), 16, 40, 1, 5)
    args |= {name: torch.from_numpy(rng.normal(size=(80, 1, 16))).float() for name in ("k_pool", "v_pool")}
    args |= {"lengths": torch.full((5,), 5), "ancestors": 40 + torch.arange(25).view(5, 5).int()}
    near, window = {"atol": 2e-5, "rtol": 1e-4}, torch.tensor([3, 32, 40, 41, 43])
    assert window[tip] == first
    got = kernels.tree_attention(**put(args | {"first": window}), backend="triton").cpu()
    torch.testing.assert_close(got, reference.tree_attention(**args, first=window), **near)
    for off in (-1, 1):
        wrong = window.clone()
        wrong[tip] += off
        with pytest.raises(AssertionError):
            torch.testing.assert_close(got, reference.tree_attention(**args, first=wrong), **near)


@pytest.mark.parametrize("splits", [1, 3])
def test_tiles_of_the_prompt_that_no_tip_sees_are_not_read(splits):
    args = pools(np.random.default_rng(6), 3, (4, 4), 16, 200, 1, 3)
    args["first"] = torch.tensor([130, 150, 201])
    args["lengths"] = args["lengths"].clamp(min=2)
    args["ancestors"] = 200 + torch.arange(9).view(3, 3).int()
    args["k_pool"], args["v_pool"] = (args[name].nan_to_num(0.5) for name in ("k_pool", "v_pool"))
    want = reference.tree_attention(**args)
    args["k_pool"][:128] = args["v_pool"][:128] = math.nan
    got = ours.tree_attention(**put(args), splits=splits).cpu()
    torch.testing.assert_close(got, want, atol=2e-5, rtol=1e-4)
    args["first"][1] = 127  # 127 is read, so the test can fail
    assert ours.tree_attention(**put(args), splits=splits).isnan().any()


@pytest.mark.parametrize("extras", [(), EXTRAS])
def test_attention_of_more_query_heads_than_a_tile_holds(extras):
    args = pools(np.random.default_rng(7), 2, (142, 2), 64, 9, 1, 3, extras=extras)
    assert ours.suffix_tile(64, 71, 3)[0] < 71
    got = kernels.tree_attention(**put(args), backend="triton").cpu()
    torch.testing.assert_close(got, reference.tree_attention(**args), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("width, value_width", [(192, 128), (100, 256), (512, 512)])
def test_attention_of_wide_heads(width, value_width, dtype):
    args = pools(np.random.default_rng(8), 5, (4, 2), width, 40, 1, 3, dtype, value_width, EXTRAS)
    exact = args | {name: args[name].double() for name in ("q", "k_pool", "v_pool", "sinks")}
    got = kernels.tree_attention(**put(args), backend="triton").cpu()
    near = {"atol": 2e-5, "rtol": 1e-4} if dtype == torch.float32 else {"atol": 0.03, "rtol": 0.03}
    torch.testing.assert_close(got.double(), reference.tree_attention(**exact), **near)


@triton.jit
def _show_capped(scores, softcap, to, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(to + i, device.capped(tl.load(scores + i), softcap))


@pytest.mark.parametrize("softcap", [0.5, 50.0, 1e4])
def test_the_softcap_is_exact_at_every_size_of_a_score(softcap):
    sizes = softcap * torch.cat([torch.tensor([0.0, math.inf]), torch.logspace(-30, 5, 510, dtype=torch.float64)])
    scores = torch.cat([-sizes, sizes]).float()
    got = torch.full((1024,), math.nan, device=DEVICE)
    _show_capped[1,](scores.to(DEVICE), softcap, got, 1024)
    want = softcap * torch.tanh(scores.double() / softcap)
    torch.testing.assert_close(got.cpu().double(), want, atol=1e-37, rtol=2e-6)


def operators():
    """Calls of each custom operator."""
    rng, seeds = np.random.default_rng(0), path_seeds(0, 1, 2)[0]
    zero = torch.tensor(0)
    args = pools(rng, 4, (2, 1), 8, 5, 2, 3)
    full = pools(rng, 4, (2, 1), 8, 5, 2, 3, value_width=12, extras=EXTRAS) | {"scale": 0.3}
    order = (*list(args), "scale", *EXTRAS)
    fork = (*forest(rng, 2, 4, 4, 3).values(), zero, 10, 0.5, 3, 4, False, "triton")
    return {
        "entropy_sample": [(logits(rng, 2, 40, "plain"), 0.8, seeds, zero, 2, None, "triton")],
        "fork": [fork],
        "tree_attention": [(*(given.get(name) for name in order), "triton") for given in (args, full)],
    }


@pytest.mark.parametrize("backend", ["reference", "triton"])
def test_the_front_door_hands_every_argument_on(backend):
    args = pools(np.random.default_rng(9), 4, (4, 2), 16, 9, 2, 3, value_width=24, extras=EXTRAS) | {"scale": 0.3}
    want = reference.tree_attention(**args)
    got = kernels.tree_attention(**put(args), backend=backend).cpu()
    torch.testing.assert_close(got, want, atol=2e-5, rtol=1e-4)
    for name, other in (("scale", 0.5), ("first", args["first"] + 1), ("softcap", 9.0), ("sinks", args["sinks"] + 1)):
        assert not torch.allclose(reference.tree_attention(**args | {name: other}), want, atol=1e-3), name


@pytest.mark.parametrize("name, call", [(name, i) for name in kernels.BACKENDS for i in range(len(operators()[name]))])
def test_the_operators_are_well_formed(name, call):
    args = [a.to(DEVICE) if isinstance(a, torch.Tensor) else a for a in operators()[name][call]]
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(getattr(torch.ops.mlexp, name).default, args, test_utils=tests)
    whole = torch.compile(lambda *a: getattr(torch.ops.mlexp, name)(*a), fullgraph=True, backend="aot_eager")
    got, want = (f(*args) for f in (whole, getattr(torch.ops.mlexp, name)))
    for g, w in zip(*((x,) if isinstance(x, torch.Tensor) else x for x in (got, want)), strict=True):
        torch.testing.assert_close(g, w, equal_nan=True)


def test_the_flop_formula_counts_what_the_reference_executes():
    args = put(pools(np.random.default_rng(0), 4, (6, 2), 8, 5, 2, 3))
    own = int(args["lengths"].sum())  # the kernel stops at a tip's length, the reference goes on to the last column
    assert count_flops(lambda: kernels.tree_attention(**args, backend="triton"))[1] == 4 * 6 * 8 * (4 * 5 + own)
    args |= {"lengths": None, "ancestors": args["ancestors"].clamp(max=12)}
    args |= {name: args[name].nan_to_num(0.5) for name in ("k_pool", "v_pool")}
    counts = [count_flops(lambda b=b: kernels.tree_attention(**args, backend=b))[1] for b in ("triton", "reference")]
    assert counts[0] == counts[1] == 4 * 4 * 6 * 8 * (5 + 3)
    args["first"] = torch.tensor([0, 3, 5, 7], device=DEVICE)
    args["v_pool"] = args["v_pool"][..., :6].contiguous()
    seen = 4 * (5 + 3) - (3 + 5 + 7)  # the reference multiplies the other slots too
    counts = [count_flops(lambda b=b: kernels.tree_attention(**args, backend=b))[1] for b in ("triton", "reference")]
    assert counts == [2 * (8 + 6) * 6 * seen, 2 * (8 + 6) * 6 * 4 * (5 + 3)]
    x, seeds = torch.zeros(2, 9, device=DEVICE), path_seeds(0, 1, 2)[0].to(DEVICE)
    assert count_flops(lambda: kernels.entropy_sample(x, 1.0, seeds, 0, backend="triton"))[1] == 0


@pytest.mark.parametrize("decoder", ["dedup", "eab_paper", "eab_particles"])
def test_the_engine_grows_the_same_trees_on_the_kernels(decoder):
    sampling = Sampling(samples=4, max_new_tokens=4, max_paths=3, threshold=0.5)
    lm = tiny("llama", layers=1, dtype=torch.float32)  # every tip and cached head of a layer is an interpreted program
    prompts = torch.stack([prompt_of(7, seed=i) for i in range(2)])
    want, _ = grow(lm.model, prompts, sampling, decoder, 3)
    model = lm.model.to(DEVICE)
    got, _ = grow(model, prompts, sampling, decoder, 3, backend="triton", idle_rows=True)
    assert (got.tokens() == want.tokens()).all() and (got.multiplicity == want.multiplicity).all()
    np.testing.assert_allclose(got.logprob, want.logprob, atol=1e-4)
    assert len(want.token) > 10
