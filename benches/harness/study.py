"""What does the harness itself cost, and how often is its gate wrong?  The claims of both bench files."""

from mlexp.study import Above, Below, Claim, Given, Study

SHARE, PER_CELL_S, FALSE, FOUND = 0.02, 0.050, 0.1, 2 / 3  # the bounds that the claims name
MEAN_RULE = 1.05
RULES = {"ab": "mlexp ab", "mean": "mean:5%, same rounds", "separate": "mean:5%, two runs"}
CLAIMS = {
    "H1": Claim("The harness adds less than 2 % to a 100 ms cell, against bare benchmark.pedantic in the same run",
                Below(Given("share added to a 100 ms cell"), SHARE), check=True),
    "H2": Claim("The harness adds less than 50 ms to a cell that does nothing, peak-memory pass included",
                Below(Given("seconds added to an empty cell"), PER_CELL_S), check=True),
    "H3": Claim("Of identical code `mlexp ab` says WORSE in fewer than one comparison of ten",
                Below(Given("share of WORSE, identical code, ab"), FALSE), primary=True),
    "H4": Claim("`mlexp ab` finds code that was made slower in more than two comparisons of three",
                Above(Given("share of WORSE, slower code, ab"), FOUND), primary=True),
    "H5": Claim("Of identical code, mean:5% of two runs says WORSE more often than `mlexp ab`, where one of both does",
                Above(Given("share in which mean:5% says WORSE, of those where one rule does"), 0.5)),
}  # fmt: skip


def estimates(records, out):
    """Quantities of the runs within a cell, and of comparisons as independent trials."""
    import numpy as np

    from mlexp.analysis import intervals

    works = {row.work: out.series(row.key) for row in records.itertuples()} if "work" in records else {}
    found = {}
    if "spin" in works:
        logs = np.log(works["spin"]["cell_s"] / works["spin"]["bare_s"])  # neighbours in one run
        found["share added to a 100 ms cell"] = lambda c: intervals.correlated_interval(np.expm1(logs), c)
    if "noop" in works:
        bare, ours = (np.diff(works["noop"][f"{name}_began_s"]) for name in ("bare", "cell"))
        added = ours - np.median(bare)
        found["seconds added to an empty cell"] = lambda c: intervals.correlated_interval(added, c)
    if "trial" in records and records["trial"].notna().any():
        worse = verdicts(records)
        for truth, text in (("same", "identical code"), ("longer", "slower code")):
            cases = worse[worse["truth"] == truth]["ab"]
            if len(cases):
                found[f"share of WORSE, {text}, ab"] = lambda c, x=cases: intervals.share_interval(x.sum(), len(x), c)
        same = worse[worse["truth"] == "same"]
        one = same[same["ab"] != same["separate"]]["separate"]
        if len(one):
            name = "share in which mean:5% says WORSE, of those where one rule does"
            found[name] = lambda c: intervals.share_interval(one.sum(), len(one), c)
    return found


def verdicts(records):
    """A row a comparison: its truth, and whether `mlexp ab` and mean:5% of two runs say WORSE."""
    cells = records[records["trial"].notna()]
    separate = cells["head_mean_s"] / cells["base_mean_s"] > MEAN_RULE
    return cells[["trial", "truth"]].assign(ab=cells["ab_verdict"] == "WORSE", separate=separate)


STUDY = Study(
    asks="What does the harness itself cost, and how often is its gate wrong?",
    arm="truth",
    arms=(),
    baseline="",
    outcome="wall_s",
    replicates=(),
    claims=CLAIMS,
    estimates=estimates,
)
