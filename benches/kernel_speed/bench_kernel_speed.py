"""Are the branch kernels faster than torch, eager or compiled?  Fixed: vocabulary 50257, 200-token prompts, T = 0.8."""

import math
from dataclasses import dataclass
from functools import partial
from typing import Annotated, NamedTuple

import pytest

from mlexp.settings import AtLeast, OneOf
from mlexp.settings import Settings as Base
from mlexp.study import Above, All, Any, Claim, Given, Study

VOCAB, TEMPERATURE = 50257, 0.8
TIPS, PROMPT, COLUMNS, WIDTH = 20, 200, 49, 64  # of a tree: paths; tokens before it; ancestors of a path; of a head
THRESHOLD_NATS, BRANCH_FACTOR = 0.4 * math.log(VOCAB), 3


class Logits(NamedTuple):
    """entropy_sample: a draw from each of so many rows of logits."""

    rows: int
    vocab: int = VOCAB

    def bytes_moved(self, size: int) -> int:
        """Logits and seeds in; entropy, ln Z, token (8 bytes) and log-probability out."""
        return self.rows * (self.vocab * size + 8 + 4 + 4 + 8 + 4)


class Forest(NamedTuple):
    """fork: trees of as many particles as rows."""

    trees: int
    width: int = TIPS
    columns: int = COLUMNS

    def bytes_moved(self, size: int) -> int:
        """Entropy, tip, multiplicity, token in; tip, source, multiplicity, parts out; a row's ancestors both ways."""
        return self.trees * self.width * (4 + 3 * 8 + 4 * 8 + 2 * 4 * self.columns)


class Tips(NamedTuple):
    """tree_attention: the tips of a tree behind each prompt, paths that parted at the first token."""

    heads: int
    depth: int
    prompts: int = 1
    tips: int = TIPS
    prompt: int = PROMPT
    width: int = WIDTH

    def bytes_moved(self, size: int) -> int:
        """Keys and values of the prompts and of all ancestors, queries in; outputs; lengths and ancestors' slots."""
        n = self.prompts * self.tips
        slots = self.prompts * self.prompt + n * self.depth
        return (2 * slots + 2 * n) * self.heads * self.width * size + n * (8 + 4 * self.depth)


SHAPES = {
    "entropy_sample": {"rows20": Logits(20), "rows10x20": Logits(200), "rows4096": Logits(4096)},
    "fork": {"paths20": Forest(1), "paths10x20": Forest(10)},
    "tree_attention": {
        "heads12_depth25": Tips(12, 25),  # gpt2_small
        "heads12_depth49": Tips(12, 49),
        "heads25_depth25": Tips(25, 25),  # gpt2_xl
        "heads25_depth49": Tips(25, 49),
        "heads12_prompts10": Tips(12, 49, prompts=10),
        "heads25_prompts10": Tips(25, 49, prompts=10),
    },
}
"""Kernel -> its shapes. No name is part of another, so that `-k` selects one."""

LARGE = ("rows4096",)  # 823 MB in float32: on a CPU only where it is asked for
KERNELS = tuple(SHAPES)
ALL_SHAPES = tuple(shape for shapes in SHAPES.values() for shape in shapes)
BACKENDS = ("eager", "compile", "triton", "cuda")
WITHOUT_CUDA = ("fork", "tree_attention")  # kernels that have no CUDA C++ of their own
FRONT = {"eager": "reference", "compile": "reference"}  # what the kernels' front door calls a backend, if not the same
NEEDS = {"eager": "reference", "compile": "triton"}  # torch.compile writes its own Triton


OURS = ("triton", "cuda")
MIN_SPEEDUP, MIN_SHARE = 3.0, 0.7  # the bounds that the claims name


@dataclass(frozen=True)
class Settings(Base):
    """`large_on_cpu`: whether shapes of close to a gigabyte run on a CPU too."""

    kernels: Annotated[tuple[str, ...], OneOf(KERNELS)] = KERNELS
    shapes: Annotated[tuple[str, ...], OneOf(ALL_SHAPES)] = ALL_SHAPES
    backends: Annotated[tuple[str, ...], OneOf(BACKENDS)] = BACKENDS
    rounds: Annotated[int, AtLeast(2)] = 30
    large_on_cpu: bool = False


SETTINGS = {
    "smoke": Settings(shapes=("rows20", "paths20", "heads12_depth25"), rounds=3),
    "quick": Settings(rounds=10),
    "full": Settings(rounds=100, large_on_cpu=True),
}


def faster(kernel: str, shape: str, backend: str) -> Given:
    """Eager's time over a backend's."""
    return Given(f"{kernel} {shape}: eager over {backend}")


def share(kernel: str, shape: str, backend: str) -> Given:
    """The bandwidth that a backend reaches over that of a large copy."""
    return Given(f"{kernel} {shape}: {backend}'s share of the copy bandwidth")


CLAIMS = {
    "H1": Claim("entropy_sample in Triton or CUDA is at least 3x faster than the eager chain at 20 x 50257", check=True,
                statement=Any(*(Above(faster("entropy_sample", "rows20", b), MIN_SPEEDUP) for b in OURS))),
    "H2": Claim("entropy_sample in Triton or CUDA reaches at least 70 % of the copy bandwidth at 4096 x 50257",
                check=True, statement=Any(*(Above(share("entropy_sample", "rows4096", b), MIN_SHARE) for b in OURS))),
    "H3": Claim("tree_attention in Triton beats the eager reference at every shape", check=True, statement=
                All(*(Above(faster("tree_attention", s, "triton"), 1.0) for s in SHAPES["tree_attention"]))),
}  # fmt: skip


def estimates(records, out):
    """Ratios of timings of one process, with the spread of their rounds."""
    from mlexp.analysis.intervals import timed_interval, timing_spread

    if records["device"].iloc[0] != "cuda":
        why = "no GPU records: these are of a CPU, where only the reference runs"
        return {quantity.name: why for kernel, shapes in SHAPES.items() for shape in shapes for backend in OURS
                for quantity in (faster(kernel, shape, backend), share(kernel, shape, backend))}  # fmt: skip
    cells = {(row.kernel, row.shape, row.backend): row for row in records.itertuples()}
    spread = {key: timing_spread(row.wall_s, row.wall_iqr_s, row.rounds) for key, row in cells.items()}
    found = {}

    def add(quantity, value, error, rounds):
        found[quantity.name] = lambda confidence: timed_interval(value, error, int(rounds), confidence)

    for (kernel, shape, backend), row in cells.items():
        key, eager = (kernel, shape, backend), (kernel, shape, "eager")
        add(share(*key), row.bytes_moved / row.wall_s / row.copy_bytes_per_s, spread[key], row.rounds)
        if backend != "eager" and eager in cells:
            both = math.hypot(spread[key], spread[eager])
            add(faster(*key), cells[eager].wall_s / row.wall_s, both, row.rounds)
    return found


STUDY = Study(
    asks="Are the branch kernels faster than torch, eager or compiled?",
    arm="backend",
    arms=BACKENDS,
    baseline="eager",
    over=("shape",),
    replicates=(),
    outcome="wall_s",
    settings=SETTINGS,
    axes={"kernel": "kernels", "shape": "shapes", "backend": "backends"},
    metrics={
        "bytes_moved": ("bytes", "none", "each input read once and each output written once, by formula"),
        "copy_bytes_per_s": ("bytes/s", "none", "what a large copy reads and writes, measured in the same process"),
        "kernel_backend": ("name", "none", "the backend that kernels.choose gave; under `compile`, what was compiled"),
    },
    claims=CLAIMS,
    estimates=estimates,
)


def collects(params, settings, device) -> bool:
    """A kernel's own shapes, on backends that it has and the device can have: on a CPU the reference alone."""
    kernel, shape, backend = params["kernel"], params["shape"], params["backend"]
    if shape not in SHAPES[kernel] or (backend == "cuda" and kernel in WITHOUT_CUDA):
        return False
    return device == "cuda" or (backend == "eager" and (settings.large_on_cpu or shape not in LARGE))


def test_kernel(cell, pytestconfig, kernel, shape, backend):
    import torch

    from mlexp.decoding import kernels

    if lacking := kernels.missing(NEEDS.get(backend, backend), cell.device):
        (pytest.fail if pytestconfig.option.require_gpu else pytest.skip)(f"{kernel} on {backend}: {lacking}")
    dims, dtype = SHAPES[kernel][shape], getattr(torch, cell.dtype)
    args = INPUTS[kernel](dims, torch.Generator(cell.device).manual_seed(cell.seed), dtype)
    run = partial(function(kernel, backend), **args)
    with torch.no_grad():
        cell.progress(0, cell.settings.rounds, "checking against float64")
        GATES[kernel](args, run())
        cell.time(run, rounds=cell.settings.rounds, device_time=True)
    cell.record(
        bytes_moved=dims.bytes_moved(dtype.itemsize),
        copy_bytes_per_s=cell.copy_bytes_per_s(),
        kernel_backend=kernels.choose(kernel, cell.device, FRONT.get(backend, backend)),
    )


def function(kernel: str, backend: str):
    """The kernel on a backend; `compile` is the reference through torch.compile, for one shape at a time."""
    import torch

    from mlexp.decoding import kernels
    from mlexp.decoding.kernels import reference

    if backend != "compile":
        return partial(getattr(kernels, kernel), backend=FRONT.get(backend, backend))
    torch.compiler.reset()  # what other shapes left counts against the limit of recompilations
    return torch.compile(getattr(reference, kernel), dynamic=False)


def sample_inputs(dims: Logits, random, dtype) -> dict:
    """Logits far from 0, as GPT-2's are; a seed for each draw."""
    import torch

    make = {"generator": random, "device": random.device}
    return {
        "logits": (3 * torch.randn(dims, **make) - 30).to(dtype),
        "temperature": TEMPERATURE,
        "seeds": torch.randint(2**62, (dims.rows,), **make),
        "position": torch.full((), 17, device=random.device),  # on the device: the kernels read it there
    }


def fork_inputs(dims: Forest, random, dtype) -> dict:
    """Particles spread over eight tips, half of them uncertain, with few distinct tokens, so that some are equal."""
    import torch

    from mlexp.decoding.settings import BranchRule

    make = {"generator": random, "device": random.device}
    T, W, L = dims
    tip = torch.randint(min(8, W), (T, W), **make)
    entropy = 2 * THRESHOLD_NATS * torch.rand(T, W, **make)
    return {
        "entropy": entropy.gather(1, tip),
        "tip": tip,
        "multiplicity": torch.zeros_like(tip).scatter_add_(1, tip, torch.ones_like(tip)),
        "token": torch.randint(5, (T, W), **make),
        "ancestors": torch.randint(1 << 20, (T * W, L), **make).int(),
        "depth": torch.full((), L // 2, device=random.device),
        "first_slot": PROMPT,
        "rule": BranchRule(THRESHOLD_NATS, BRANCH_FACTOR, max_paths=W),
    }


def attention_inputs(dims: Tips, random, dtype) -> dict:
    """Paths that share no ancestor, their rows shuffled from depth to depth; columns behind the depth are not read."""
    import torch

    make = {"generator": random, "device": random.device}
    B, n, P, L = dims.prompts, dims.prompts * dims.tips, dims.prompt, max(COLUMNS, dims.depth)
    row = torch.rand(L, B, dims.tips, **make).argsort(-1) + dims.tips * torch.arange(B, device=random.device)[:, None]
    slot = B * P + n * torch.arange(L, device=random.device)[:, None] + row.view(L, n)
    pool = (B * P + n * L, dims.heads, dims.width)
    return {
        "q": torch.randn(n, dims.heads, dims.width, **make).to(dtype),
        "k_pool": torch.randn(pool, **make).to(dtype),
        "v_pool": torch.randn(pool, **make).to(dtype),
        "prompt_len": P,
        "ancestors": slot.T.contiguous().int(),
        "lengths": torch.full((n,), dims.depth, device=random.device),
        "group": dims.tips,
    }


def check_sample(args: dict, out: tuple) -> None:
    """Entropy, ln Z and log-probability near float64's; no token's perturbed logit is above that of the one drawn."""
    import torch

    from mlexp.decoding.kernels import reference
    from mlexp.decoding.rng import token_words

    seeds, V = args["seeds"], args["logits"].shape[1]
    for rows in torch.arange(len(seeds), device=seeds.device).split(64):
        x = reference.tempered(args["logits"][rows].double(), args["temperature"])
        h, log_z = reference.entropy(x)
        entropy, normaliser, tokens, logprobs = (value[rows] for value in out)
        assert tokens.shape == (len(rows), 1) and tokens.min() >= 0 and tokens.max() < V, (
            "tokens outside the vocabulary"
        )
        perturbed = reference.gumbel(token_words(seeds[rows], args["position"], V), x.dtype) + x
        best, taken = perturbed.amax(-1), perturbed.gather(1, tokens)[:, 0]
        near("entropy", entropy, h)
        near("log_z", normaliser, log_z)
        near("logprobs", logprobs, x.gather(1, tokens) - log_z[:, None])
        near("perturbed logit of the token", taken, best)


def check_fork(args: dict, out: tuple) -> None:
    """Every integer is the reference's; rows without a tip have no ancestors to compare."""
    from mlexp.decoding.kernels import reference

    right = reference.fork(**args)
    live = right[2].flatten() > 0
    for name, one, other in zip(("tip", "source", "multiplicity", "parts", "ancestors"), out, right, strict=True):
        if name == "ancestors":
            one, other = one[live], other[live]
        wrong = int((one != other).sum()) if one.shape == other.shape else other.numel()
        assert not wrong, f"{name}: {wrong} of {other.numel()} differ from the reference"


def check_attention(args: dict, out) -> None:
    """Each head's output near float64's, by the length of the difference; bfloat16 rounds at 2^-9, and weights too."""
    from mlexp.decoding.kernels import reference

    right = reference.tree_attention(
        **{name: value.double() if name in ("q", "k_pool", "v_pool") else value for name, value in args.items()}
    )
    assert out.shape == right.shape, f"output {tuple(out.shape)}, not {tuple(right.shape)}"
    error = float(((out.double() - right).norm(dim=-1) / right.norm(dim=-1)).max())
    allowed = 1e-4 if args["v_pool"].itemsize == 4 else 2e-2
    assert error <= allowed, f"relative error {error:.2g} against float64; at most {allowed:g}"


def near(name: str, one, right) -> None:
    """Within float32's rounding of numbers as large as the logits; NaN is not."""
    assert one.shape == right.shape, f"{name}: {tuple(one.shape)}, not {tuple(right.shape)}"
    error = float((one.double() - right).abs().nan_to_num(nan=math.inf).max())
    assert error <= 1e-4, f"{name}: off by {error:.2g} from float64; at most 1e-4"


INPUTS = {"entropy_sample": sample_inputs, "fork": fork_inputs, "tree_attention": attention_inputs}
GATES = {"entropy_sample": check_sample, "fork": check_fork, "tree_attention": check_attention}
