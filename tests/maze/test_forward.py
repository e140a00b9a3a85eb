"""The solvers' forward against their formulas written out, their initial values, and what is measured of them."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import entropy

from mlexp.maze import evaluate
from mlexp.maze.archs import ARCHS
from mlexp.maze.data import Recipe, mazes
from mlexp.maze.models import build, rotary_tables
from mlexp.maze.moves import features
from mlexp.maze.sizes import SIZES, Size
from mlexp.training import seed_everything
from mlexp.training.rotary import turn

from . import plain

MINI = Size(16, 2, 24, 2, 1e-3)
KINDS = {name: {"gates": arch.gates, "slow": arch.slow} for name, arch in ARCHS.items()}
PROBED = 4, 60  # a seed, and mazes, for which all three accuracies of a probe differ


def solver(arch, R=3, T=3, seed=0, size=MINI):
    """A solver in double precision all of whose parameters matter: none is zero, nor one."""
    seed_everything(seed)
    model = build(size, ARCHS[arch], R, T).double().eval()
    for p in model.parameters():
        torch.nn.init.normal_(p, float(p.detach().mean().round()), 0.5)
    return model


def inputs(count=3, n=4, seed=3):
    found = mazes(Recipe(n, count, seed, 3, "dfs_loops"), workers=1)
    return found, features(*map(torch.from_numpy, (found.open, found.start, found.goal))).double()


@pytest.mark.parametrize("T", [1, 2, 3, 4])
@pytest.mark.parametrize("arch", ARCHS)
def test_a_forward_is_its_formulas(arch, T):
    model, (_, x), routing = solver(arch, T=T), inputs(), []
    R = ARCHS[arch].iterations or 3
    assert len(model.blocks) == (6 if arch == "baseline_deep" else 2)
    logits, gates = plain.forward(model, x, 2, R, T, **KINDS[arch])
    torch.testing.assert_close(model(x, routing=routing), logits, atol=1e-4, rtol=1e-4)
    assert len(routing) == len(gates) == (2 * R if KINDS[arch]["gates"] != "none" else 0)
    torch.testing.assert_close(routing, gates, atol=1e-4, rtol=1e-4)
    for iterations in (1, 5):  # more or fewer than were trained
        logits, _ = plain.forward(model, x, 2, iterations, T, **KINDS[arch])
        torch.testing.assert_close(model(x, iterations), logits, atol=1e-4, rtol=1e-4)


def test_the_gradient_of_a_turn_is_turned_back():
    tables = [table.double() for table in rotary_tables(2, 8, 2, torch.device("cpu"))]
    x = torch.randn(1, 4, 2, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: turn(x, *tables), x)
    one, again, other = (rotary_tables(n, 8, 2, torch.device("cpu")) for n in (2, 2, 3))
    assert one is again and other[0].shape == (9, 2, 8)


@pytest.mark.parametrize("part", ["uniform", "slow"])
def test_a_part_switched_off_is_the_formula_without_it(part):
    model, (_, x) = solver("poh_hrm"), inputs()
    setattr(*((model, "uniform", True) if part == "uniform" else (model.gates, "slow", False)))
    off = {"uniform": True} if part == "uniform" else {"slow": False}
    logits, _ = plain.forward(model, x, 2, 3, 3, **{"gates": "hrm"} | off)
    torch.testing.assert_close(model(x), logits, atol=1e-4, rtol=1e-4)


def test_checkpointing_computes_activations_again_in_training_alone(monkeypatch):
    model, (_, x), kept = solver("poh_hrm", R=2), inputs(), []
    monkeypatch.setattr("mlexp.maze.models.checkpoint", lambda run, *args, **_: kept.append(run) or run(*args))
    for relieved, training, want in ((False, True, 0), (True, False, 0), (True, True, 2)):
        model.checkpointing = relieved
        model.train(training)(x)
        assert len(kept) == want


@pytest.mark.parametrize("arch", ["baseline", "poh_hrm", "baseline_deep", "poh_static"])
def test_initial_values_are_drawn_with_the_spread_that_is_said(arch):
    seed_everything(0)
    model = build(SIZES["tiny"], ARCHS[arch], 4, 4)
    layers = 8 if arch == "baseline_deep" else 2
    for name, p in model.named_parameters():
        if (
            name.startswith("gates.routers")
            or name == "gates.scores"
            or (name.endswith("bias") and "gates" not in name)
        ):
            assert not p.any(), name
        elif p.ndim == 2 and "gates" not in name:
            std = (3 * 128) ** -0.5 / (math.sqrt(2 * layers) if "out." in name or "down." in name else 1)
            assert p.std().item() == pytest.approx(std, rel=4 / math.sqrt(2 * p.numel())), name
        elif "norm" in name:
            assert (p == ("weight" in name)).all(), name


def test_sizes_and_arms_are_those_of_the_question():
    """The spec's table, width, heads, inner, depth, rate; and what each arm's name promises."""
    table = [(128, 4, 512, 2, 1e-3), (256, 4, 1024, 3, 7e-4), (512, 8, 2048, 4, 5e-4), (768, 12, 3072, 6, 3e-4),
             (1024, 16, 4096, 8, 2e-4)]  # fmt: skip
    assert list(SIZES)[:5] == ["tiny", "small", "medium", "large", "xl"] and list(SIZES.values())[:5] == table
    assert all(size.inner == 4 * size.width and size.width == 64 * size.heads for size in list(SIZES.values())[2:])
    assert {n: a.iterations for n, a in ARCHS.items() if n.startswith("poh")} == {
        "poh_hrm": None, "poh_r1": 1, "poh_uniform": None, "poh_static": None, "poh_t_inf": None}  # fmt: skip
    assert [n for n, a in ARCHS.items() if a.long] == ["baseline_long"]
    whole = ARCHS["poh_hrm"]
    assert ARCHS["poh_r1"] == replace(whole, iterations=1) and ARCHS["poh_t_inf"] == replace(whole, slow=False)
    assert ARCHS["poh_static"] == replace(whole, gates="static") and ARCHS["poh_uniform"] == replace(
        whole, gates="none"
    )


# --- what is measured of a trained solver


class Table(torch.nn.Module):
    """Stands in for a solver: logits (R, N, 4) that are its parameter, with a note of its calls."""

    def __init__(self, *seeds, n=5, R=3):
        super().__init__()
        random = torch.Generator().manual_seed(seeds[0])
        self.table = torch.nn.Parameter(torch.randn(R, n * n, 4, generator=random))
        self.calls = []

    def forward(self, x, iterations=None, routing=None):
        self.calls.append((len(x), iterations, routing, self.training))
        return self.table[:iterations, None].expand(-1, len(x), -1, -1) + x[..., :4]


def scored(table, mazes):
    return plain.outcomes(table[-1].detach() + torch.from_numpy(mazes.open).float(), mazes)


@pytest.fixture(scope="module", params=["dfs", "dfs_loops"])
def test_mazes(request):
    return mazes(Recipe(5, 60, 5, 8, request.param), workers=1)


@pytest.mark.parametrize("wrong", [0.5, 1.5])
def test_outcomes_are_those_of_single_walkers(test_mazes, wrong):
    random = torch.Generator().manual_seed(1)
    best = [[[float(m in row) for m in range(4)] for row in plain.best_moves(o, g)]
            for o, g in zip(test_mazes.open, test_mazes.goal, strict=True)]  # fmt: skip
    logits = torch.tensor(best) + wrong * torch.randn(60, 25, 4, generator=random)
    found, want = evaluate.score(logits, test_mazes), plain.outcomes(logits, test_mazes)
    for name in ("solved", "optimal", "strict"):
        assert getattr(found, name).tolist() == getattr(want, name), name
    np.testing.assert_allclose(found.excess, want.excess, atol=1e-6)
    assert found.cells == pytest.approx(want.cells)
    assert sum(want.strict) < sum(want.solved) and 0.3 < want.cells < 1  # the four measures differ
    assert sum(want.optimal) <= sum(want.solved) and not all(want.solved)


def test_logits_are_of_every_maze_and_iteration_and_the_model_stays_in_its_mode(test_mazes, monkeypatch):
    monkeypatch.setattr(evaluate, "CHUNK", 7)
    for training in (True, False):
        model, routing = Table(0).train(training), []
        logits = evaluate.logits_of(model, test_mazes, 2, routing)
        want = model.table[:2, None] + torch.from_numpy(test_mazes.open)
        torch.testing.assert_close(logits, want.float())
        assert model.training is training
        sizes, *arguments = zip(*model.calls, strict=True)
        assert sum(sizes) == 60 and max(sizes) == 7
        assert {(i, r is routing, t) for i, r, t in zip(*arguments, strict=True)} == {(2, True, False)}


def test_accuracy_by_step_is_that_of_each_state(test_mazes):
    model = Table(0)
    states = {step: Table(step).state_dict() for step in (3, 6, 7, 9)}
    before = model.table.detach().clone()
    found = evaluate.accuracy_of(model, states, test_mazes)
    want = {s: plain.share(scored(state["table"], test_mazes).solved) for s, state in states.items()}
    assert found == pytest.approx(want) and len(set(want.values())) > 2
    assert torch.equal(model.table, before)


@pytest.mark.parametrize("seed", [1, 2])
def test_floors_are_means_over_walks_of_each_policy(test_mazes, seed):
    found = evaluate.floors(test_mazes, seed, repeats=4)
    n, cell = 5, np.arange(25)
    goal, want = test_mazes.goal, {}
    for name in ("random", "manhattan"):
        random, shares = torch.Generator().manual_seed(seed), []
        for _ in range(4):
            draws = torch.rand(60, 25, 4, generator=random)
            if name == "manhattan":
                to = [[plain.neighbour(c, m, n) for m in range(4)] for c in cell]
                away = abs(np.array(to) // n - goal[:, None, None] // n) + abs(
                    np.array(to) % n - goal[:, None, None] % n
                )
                draws = 1e-3 * draws - torch.from_numpy(away)
            shares.append(plain.share(plain.outcomes(draws, test_mazes).solved))
        want[name] = np.mean(shares)
        assert max(shares) > min(shares)
    assert found == pytest.approx(want | {"oracle": 1.0}) and want["random"] != want["manhattan"]
    assert len(torch.unique(torch.tensor([evaluate.floors(test_mazes, s)["random"] for s in range(4)]))) > 1


def test_floors_walk_ten_times_unless_told_otherwise(test_mazes, monkeypatch):
    walks = []
    monkeypatch.setattr(evaluate, "walk", lambda *args, walk=evaluate.walk: walks.append(1) or walk(*args))
    evaluate.floors(test_mazes, 0)
    assert len(walks) == 2 * 10 + 1


def test_probes_are_the_formulas_without_a_part():
    seed, count = PROBED
    model, (found, x) = solver("poh_hrm", R=2, seed=seed), inputs(count, seed=9)
    model.float()
    probes = evaluate.probes(model, found)
    _, gates = plain.forward(model, x.float(), 2, 2, 3, gates="hrm")
    shares = torch.stack(gates).detach().double().numpy() / 2
    assert probes["routing_entropy"] == pytest.approx(entropy(shares, axis=-1).mean() / math.log(2), rel=1e-4)
    accuracy = {}
    for name, off in {"trained": {}, "uniform_gates": {"uniform": True}, "frozen_slow": {"slow": False}}.items():
        logits, _ = plain.forward(model, x.float(), 2, 2, 3, **{"gates": "hrm"} | off)
        accuracy[name] = plain.share(plain.outcomes(logits[-1], found).solved)
    assert len(set(accuracy.values())) == 3  # or the test shows nothing
    for name in ("uniform_gates", "frozen_slow"):
        assert probes[f"{name}_accuracy"] == pytest.approx(accuracy[name])
    assert not model.uniform and model.gates.slow  # as it was


def test_routing_is_of_all_steps_and_relative_to_its_heads():
    """Four heads, of which routing uses one in the second iteration alone: half of the entropy is left."""

    class Half(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight, self.uniform = torch.nn.Parameter(torch.zeros(())), False
            self.gates = torch.nn.Module()
            self.gates.slow = True

        def forward(self, x, iterations=None, routing=None):
            even = torch.ones(*x.shape[:2], 4)
            if routing is not None:
                routing += [even, 4 * torch.nn.functional.one_hot(torch.zeros(x.shape[:2], dtype=torch.long), 4)]
            return torch.zeros(2, *even.shape)

    found, _ = inputs(10)
    assert evaluate.probes(Half(), found)["routing_entropy"] == pytest.approx(0.5)
