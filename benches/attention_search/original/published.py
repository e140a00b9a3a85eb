"""The original's published numbers, one seed each: what they can and cannot support, whatever is measured here."""

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import integrate
from scipy import stats as scipy_stats

from mlexp.analysis.multiple import holm

PUBLISHED = json.loads((Path(__file__).parents[1] / "published.json").read_text())
FAMILIES = ("rope", "enhanced", "lora", "bias", "baseline", "control")


def family(arm: str) -> str:
    """The family of an arm of the original; all others are controls."""
    return arm.partition("_")[0] if arm in cells().index else "control"


def cells() -> pd.DataFrame:
    return pd.DataFrame(PUBLISHED["cells"]).set_index("variant")


def noise() -> tuple[float, float, float, int]:
    """SD of a run, its 95 % interval, the arms behind it; the difference of two runs has twice the variance of one."""
    now, before = cells()["loss_nats"], pd.Series(PUBLISHED["predecessor_loss_nats"])
    square = (now[before.index] - before) ** 2 / 2
    n = len(square)
    ends = [math.sqrt(square.sum() / scipy_stats.chi2.ppf(q, n)) for q in (0.975, 0.025)]
    return math.sqrt(square.mean()), *ends, n


def tests() -> pd.DataFrame:
    """Every arm against bias_only and against the best, by that noise: t with as many degrees as it has pairs."""
    losses, (sd, _, _, n) = cells()["loss_nats"], noise()
    error = sd * math.sqrt(2)
    others = losses.drop("bias_only")
    p = 2 * scipy_stats.t.sf(np.abs(others - losses["bias_only"]) / error, n)
    found = pd.DataFrame({"difference": others - losses["bias_only"], "p_holm": holm(p)}, index=others.index)
    bar = scipy_stats.t.ppf(1 - 0.05 / (len(losses) - 1), n) * error
    found.attrs = {"tied": list(losses.index[losses - losses.min() <= bar]), "bar": bar}
    return found


def table() -> pd.DataFrame:
    known, (sd, low, high, n) = cells(), noise()
    losses, size = known["loss_nats"], known["attention_params_per_layer"]
    slope_of, found = PUBLISHED["slope_nats_per_step"], tests()
    first, second = losses.nsmallest(2)
    pearson, spearman = scipy_stats.pearsonr(size, losses), scipy_stats.spearmanr(size, losses)
    families = [losses[[a for a in losses.index if family(a) == f]] for f in ("rope", "lora", "enhanced")]
    kruskal = scipy_stats.kruskal(*families)
    now, before = losses[list(PUBLISHED["predecessor_loss_nats"])], list(PUBLISHED["predecessor_loss_nats"].values())
    order = scipy_stats.spearmanr(now, before).statistic
    span = normal_range(len(losses)) * sd
    apart = found.index[found["p_holm"] < 0.05]
    mha, small = known.loc["baseline"], known.loc["rope_small"]
    rows = [
        ("noise of one run", f"{sd:.4f} nats, 95 % {low:.4f} to {high:.4f}", f"{n} arms that were run twice"),
        ("do the two runs agree on the order?", f"Spearman {order:+.2f}", "no: it is nearly reversed"),
        ("range of 13 identical arms, expected", f"{span:.3f} nats", f"all 13 span {losses.max() - losses.min():.3f}"),
        ("first against second", f"{second - first:.4f} nats", f"{(second - first) / slope_of:.1f} steps of training"),
        ("arms told from bias_only, Holm over 12", ", ".join(apart) or "none",
         f"largest p {found['p_holm'].max():.2g}, rope_small {found['p_holm']['rope_small']:.2g}"),
        ("arms not told from the best", f"{len(found.attrs['tied'])} of {len(losses)}",
         ", ".join(found.attrs["tied"])),
        ("families rope, lora, enhanced", f"Kruskal p {kruskal.pvalue:.2f}", "no family is shown to be better"),
        ("attention parameters against loss", f"Pearson {pearson.statistic:+.2f} (p {pearson.pvalue:.1g}), Spearman "
         f"{spearman.statistic:+.2f}", "after 50 steps at one rate more parameters are worse: they learn more slowly"),
        ("cache of a token, baseline to rope_small",
         f"{mha['kv_bytes_per_token']:,.0f} to {small['kv_bytes_per_token']:,.0f} bytes",
         f"{mha['kv_bytes_per_token'] / small['kv_bytes_per_token']:.1f} times smaller; its report never says so"),
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=["question", "answer", "meaning"])


def normal_range(n: int) -> float:
    """The expected range of n standard normal values (Tippett 1925)."""
    return integrate.quad(lambda x: 1 - scipy_stats.norm.cdf(x) ** n - scipy_stats.norm.sf(x) ** n, -9, 9)[0]


def claims() -> pd.DataFrame:
    """Sentences of the original's report beside its own table."""
    known = cells()
    rank = known["loss_nats"].rank().astype(int)
    memory, params = known["memory_gb"], known["n_params"] / 1e6
    p = tests()["p_holm"]
    ranks = ", ".join(f"{a} {rank[a]}" for a in ("rope_small", "rope_only", "rope_large"))
    smaller = [a for a in known.index if params[a] < params["rope_only"] and rank[a] < rank["rope_only"]]
    rows = [
        ("RoPE scaling is the winner", "undecided", f"p {p['rope_small']:.2f} against bias_only; all 13 have RoPE"),
        ("RoPE variants performed consistently", "undecided", f"ranks {ranks} of 13"),
        ("memory range 15.2-17.0 GB", "refuted", f"{memory.min():.2f} to {memory.max():.2f}: the baseline is left out"),
        ("enhanced_small is the most memory-efficient", "refuted", f"{memory.idxmin()} {memory.min()}, then "
         f"{memory.drop(memory.idxmin()).idxmin()}"),
        ("parameters 162.6-177.8M", "refuted", f"{params.min():.2f} to {params.max():.2f}"),
        ("rope_only is the most parameter-efficient", "refuted", f"smaller and better: {', '.join(smaller)}"),
        ("bias_only: just adding attention bias helps", "undecided", "no arm without the bias was run"),
        ("XL variants underperform", "supported" if p["enhanced_xl"] < 0.05 else "undecided",
         f"enhanced_xl p {p['enhanced_xl']:.3f} against bias_only, at that rate and step count"),
        ("larger LoRA ranks do not help", "undecided", "the four lie within "
         f"{np.ptp(known.loc[[a for a in known.index if family(a) == 'lora'], 'loss_nats']):.3f} nats"),
        ("model size matters more than attention", "undecided", "one size was run"),
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=["claim", "verdict", "its own numbers"])
