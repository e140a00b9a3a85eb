"""The original's outputs from these records: its JSON, its six panels, its report under its own headings."""

import json
from pathlib import Path

import numpy as np

from mlexp.analysis import plots
from mlexp.analysis.tables import pair_table
from mlexp.study import load

HERE = Path(__file__).parent
figures, published = load(HERE.parent / "figures.py"), load(HERE / "published.py")
ORIGINAL = load(HERE.parent / "study.py").ORIGINAL
SIX_PANELS = (
    "The original's six panels, means over seeds. Grey: what a control under two names differs by. Memory to train is "
    "computed: activations kept for backward, and parameters with gradient and optimiser state."
)


def files(data, table, out):
    """`table`: every arm, best first, with its cost."""
    table = table[table["variant"].isin(ORIGINAL)].reset_index(drop=True)
    if table.empty:
        out.text("None of the original's 13 arms is in these records: its files are not written.")
        return
    table["wall_s"] = table["variant"].map(data.rows("").groupby("variant")["wall_s"].mean())
    out.file("architecture_search_results_fast.json", json.dumps(as_json(table), indent=2) + "\n")
    best = table.iloc[0]
    finding = f"Of the original's 13, {best['variant']} has the lowest mean loss: {best['loss_nats']:.3f} nats"
    fig = six_panels(data, table)
    out.figure(fig, "architecture_search_comprehensive_fast.png", finding, SIX_PANELS, shown="linked")
    out.file("architecture_search_report_fast.md", report(data, table, out.findings))


def as_json(table) -> list[dict]:
    """As the original's: a row an arm, best first, with our intervals and seeds beside its fields."""
    return [
        {"config_name": f"medium_{row.variant}", "success": True, "eval_loss": row.loss_nats,
         "eval_accuracy": row.accuracy, "eval_perplexity": row.perplexity, "training_time_minutes": row.wall_s / 60,
         "peak_memory_gb": row.training_bytes / 1e9, "parameters_millions": row.n_params / 1e6,
         "eval_loss_low": None if np.isnan(row.low) else row.low,
         "eval_loss_high": None if np.isnan(row.high) else row.high, "tied_with_best": bool(row.tied),
         "seeds": int(row.seeds)}
        for row in table.itertuples()
    ]  # fmt: skip


def six_panels(data, table):
    table = table.assign(millions=table["n_params"] / 1e6, minutes=table["wall_s"] / 60,
                         megabytes=table["training_bytes"] / 1e6)  # fmt: skip
    fig, panels = plots.figures(3, rows=2, size=(14, 8))
    axes = (
        ("millions", "loss_nats"), ("millions", "accuracy"), ("millions", "perplexity"),
        ("minutes", "megabytes"), ("minutes", "loss_nats"),
    )  # fmt: skip
    names = {"millions": "parameters, millions", "loss_nats": "test loss, nats", "minutes": "training time, minutes",
             "megabytes": "memory to train, MB", "accuracy": "accuracy", "perplexity": "perplexity"}  # fmt: skip
    for ax, (x, y) in zip(panels, axes, strict=False):
        for row in table.itertuples():
            look = data.looks[row.variant]
            ax.plot(getattr(row, x), getattr(row, y), color=look.colour, marker=look.marker, linestyle="")
            if y != "loss_nats":  # between the floors there is no room for names
                left = getattr(row, x) > table[x].quantile(0.9)
                ax.annotate(row.variant, (getattr(row, x), getattr(row, y)), xytext=(-4 if left else 4, 3),
                            textcoords="offset points", ha="right" if left else "left", fontsize=6)  # fmt: skip
        title = f"{names[y].partition(',')[0]} against {names[x].partition(',')[0]}"
        ax.set(title=title, xlabel=names[x], ylabel=names[y])
    figures.floor_lines(panels[0], data)
    figures.floor_lines(panels[4], data)
    shown = [f for f in published.FAMILIES if f in set(table["family"])]
    panels[5].boxplot([table[table["family"] == f]["loss_nats"] for f in shown], tick_labels=shown)
    panels[5].set(title="loss by family", ylabel=names["loss_nats"])
    figures.floor_lines(panels[5], data)
    return fig


def report(data, table, findings) -> str:
    """The original's report under its own headings, with what these records say."""
    rows, top = data.rows(""), table.head(5)
    same = [row.variant for row in table.itertuples() if row.tied]
    first, setting = rows.iloc[0], data.settings

    def verdicts(*ids):
        found = [findings[id] for id in ids if id in findings]
        return [f"- **{f.verdict}**: {f.claim.text} ({', '.join(filter(None, (f.effect, f.reason)))})" for f in found]

    def spread(name, scale=1.0, digits=4):
        values = table[name] * scale
        mean, sd, low, high = (f"{v:.{digits}f}" for v in (values.mean(), values.std(), values.min(), values.max()))
        return f"{mean} +- {sd} ({low} to {high})"

    rank = [f"{i}. **{r.variant}**: loss {r.loss_nats:.4f}, accuracy {r.accuracy:.4f}, time {r.wall_s / 60:.2f} min, "
            f"memory {r.training_bytes / 1e6:.0f} MB, parameters {r.n_params / 1e6:.2f}M"
            for i, r in enumerate(top.itertuples(), 1)]  # fmt: skip
    parts = pair_table(data, data.study.parts)
    spans = ["" if np.isnan(row.low) else f" [{row.low:+.4f}, {row.high:+.4f}]" for row in parts.itertuples()]
    effects = [f"- {row.name}: {row.value:+.4f} nats{span}"
               for row, span in zip(parts.itertuples(index=False), spans, strict=True)]  # fmt: skip
    by_family = table.groupby("family")["loss_nats"].agg(["min", "max", "mean"]).sort_values("mean")
    lines = [
        "# Fair architecture search (fixed model size)", "",
        "## Overview", "", "Arms differ in their attention alone. Each claim of the first report stands below with "
        "what these records say of it.", "",
        "## Experimental Setup", "", "### Fixed model configuration", "",
        f"Shape {setting['shape']}, text {first['corpus']}, {setting['steps']} steps of batch "
        f"{setting['batch']}, budget {first['budget']}, {rows['seed'].nunique()} seeds; "
        f"{first['machine']}, {first['dtype']}.", "",
        "### Attention mechanisms tested", "", ", ".join(table["variant"]) + ".", "",
        "## Results Summary", "", f"Arms finished: {len(table)} of {len(ORIGINAL)}.", "",
        "### Top 5 by loss", "", *rank, "",
        f"Not told from the best: {ties(same)}.", "",
        "### Statistics", "",
        f"- Loss: {spread('loss_nats')}", f"- Accuracy: {spread('accuracy')}",
        f"- Time, minutes: {spread('wall_s', 1 / 60, 2)}",
        f"- Memory to train, MB: {spread('training_bytes', 1e-6, 1)}",
        f"- Parameters, millions: {spread('n_params', 1e-6, 2)}", "",
        "## Key Findings", "",
        "### 1. RoPE scaling", "", *verdicts("C1", "C2", "C3"), "", "### 2. LoRA", "", *verdicts("C4", "C11"), "",
        "### 3. Enhanced configurations", "", *verdicts("C5", "C6", "C7"), "",
        "### 4. Baseline", "", *verdicts("C8"), "",
        "### 5. Bias only", "", *verdicts("C9"), "",
        "## Architecture Insights", "", "### Performance ranking by attention type", "",
        *(f"{i}. {f}: {r['min']:.4f} to {r['max']:.4f}" for i, (f, r) in enumerate(by_family.iterrows(), 1)), "",
        *verdicts("C10"), "", "### Parameter efficiency", "", *verdicts("C11"),
        "- Not beaten in both parameters and loss: " + ", ".join(figures.unbeaten(table, "n_params")) + ".", "",
        "### Memory usage", "", *verdicts("C12"), "",
        "## Technical Analysis", "", "One thing at a time, arm minus the same arm without it (tests in `factors.csv`):",
        "", *effects, "",
        "## Recommendations", "",
        "- Among the arms tied with the best, the smallest cache: "
        + (smallest_cache(table, same) if same else "cannot be said of one seed") + ".",
        "- Avoid, worse than the best beyond doubt: "
        + (", ".join(a for a in table["variant"] if a not in same) or "none" if same else "cannot be said") + ".", "",
        "## Conclusion", "", "### Model size against attention", "", *verdicts("C13"), "",
        "## Files Generated", "", "- `architecture_search_results_fast.json`",
        "- `architecture_search_comprehensive_fast.png`", "- this report", "",
    ]  # fmt: skip
    return "\n".join(lines)


def ties(same: list[str]) -> str:
    """The arms tied with the best of all, in words."""
    if not same:
        return "one seed cannot tell any arm from another, or none of the 13 is"
    return ", ".join(same) if len(same) > 1 else "none"


def smallest_cache(table, arms) -> str:
    """The arm of these that caches the fewest bytes of a token, and how many."""
    first = table[table["variant"].isin(arms)].sort_values(["kv_bytes_per_token", "loss_nats"]).iloc[0]
    return f"{first['variant']} ({first['kv_bytes_per_token']:,.0f} bytes a token)"
