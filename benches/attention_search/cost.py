"""What the arms of attention_search cost, and how they compare where each has spent as much as the cheapest."""

import math

import numpy as np
import pandas as pd

from mlexp.analysis.tables import pair_table

PARAM_BYTES = 4  # peak_bytes is above what was resident, which the model was
PEAK_FLOPS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "4090": 165e12}  # bfloat16, dense, by the vendor
CONTROL = "mla_plain"


def cut_table(data, out) -> pd.DataFrame:
    """Training loss where every arm has spent as much as the cheapest does in all."""
    rows = data.rows("")
    arms = [name for name in data.arms if name not in data.study.apart]
    rows = rows[rows["variant"].isin(arms)]
    means = rows.groupby("variant")[["flops", "wall_s"]].mean()
    share = means.min() / means
    found = {a: {"variant": a} for a in arms}
    for cost, name in (("flops", "flops"), ("wall_s", "time")):
        losses = [cut(out.series(key).get("losses", ()), share.at[a, cost])
                  for key, a in zip(rows["key"], rows["variant"], strict=True)]  # fmt: skip
        there = data.under(fixed={}).with_records(rows.assign(cut_loss=losses))
        pairs = pair_table(there, {a: (a, CONTROL) for a in found}, metric="cut_loss").set_index("arm")
        for a, row in found.items():
            row |= {f"steps_share_{name}": share.at[a, cost],
                    f"loss_{name}": there.records.loc[rows["variant"] == a, "cut_loss"].mean()}  # fmt: skip
            if a in pairs.index:
                names = (f"difference_{name}", f"low_{name}", f"high_{name}")
                row |= dict(zip(names, pairs.loc[a, ["value", "low", "high"]], strict=True))
    return pd.DataFrame(found.values()).sort_values("loss_flops", ignore_index=True)


def cut(losses, share: float) -> float:
    """The mean of the last tenth of the steps before this share of them; NaN where the curve was not stored."""
    if not len(losses):
        return math.nan
    last = max(1, round(share * len(losses)))
    return float(np.mean(losses[max(0, last - max(1, len(losses) // 10)) : last]))


def peak_flops(data) -> float | None:
    """What the vendor says that the device can do in bfloat16; None where the table does not know it."""
    first = data.records.iloc[0]
    known = (flops for name, flops in PEAK_FLOPS.items() if name in str(first["machine"]))
    return next(known, None) if (first["device"], first["dtype"]) == ("cuda", "bfloat16") else None


def cost_table(data) -> pd.DataFrame:
    rows = data.rows("")
    rate = rows["flops"] / rows["wall_s"]
    costs = rows.assign(
        tokens_per_s=rows["n_tokens"] / rows["wall_s"],
        flop_per_s=rate,
        flops_per_token=rows["flops"] / rows["n_tokens"],
        counted_over_closed_form=rows["flops"] / rows["flops_closed_form"],
        peak_with_params_bytes=rows["peak_bytes"] + PARAM_BYTES * rows["n_params"],
        mfu=rate / (peak_flops(data) or math.nan),
    )
    names = ["tokens_per_s", "flop_per_s", "mfu", "flops_per_token", "counted_over_closed_form",
             "peak_with_params_bytes", "saved_activation_bytes", "training_bytes", "kv_bytes_per_token",
             "n_params"]  # fmt: skip
    table = costs.groupby("variant", sort=False)[names].mean().loc[data.arms].reset_index()
    table["attention_kernel"] = table["variant"].map(rows.groupby("variant")["attention_kernel"].first())
    return table.dropna(axis=1, how="all")


def cost_sentence(data) -> str:
    kernels, peak = ", ".join(sorted(data.records["attention_kernel"].unique())), peak_flops(data)
    if peak:
        mfu = f"`mfu` is FLOPs executed (active experts alone) over the vendor's {peak / 1e12:.0f} TFLOP/s."
    else:
        mfu = "No MFU: it is only said of GPUs in bfloat16 whose peak is known."
    return f"Attention kernel of every arm: {kernels}. {mfu}"
