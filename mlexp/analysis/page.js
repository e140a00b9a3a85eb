// Tables sort by a click on a heading: up, down, as they were. Without this script all reads as it stands.
const MISSING = "\u2013";
const natural = new Intl.Collator("en", { numeric: true }).compare;

function number(text) {
  const plain = text.split(" to ")[0].replace("\u2212", "-").replaceAll(",", "").replace(/^</, "").replace(/x$/, "");
  return plain === "inf" ? Infinity : plain === "-inf" ? -Infinity : Number(plain);
}

function order(one, other, sign) {
  if (one === MISSING || other === MISSING) return (one === MISSING) - (other === MISSING); // last, both ways
  const [a, b] = [number(one), number(other)];
  return sign * (Number.isNaN(a) || Number.isNaN(b) ? natural(one, other) : a === b ? 0 : a < b ? -1 : 1);
}

for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0], rows = [...body.rows], heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const next = { ascending: "descending", descending: null }[head.ariaSort] ?? (head.ariaSort ? null : "ascending");
      heads.forEach((each) => each.removeAttribute("aria-sort"));
      if (next) head.setAttribute("aria-sort", next);
      const sign = next === "descending" ? -1 : 1, text = (row) => row.cells[column].textContent;
      body.append(...(next ? [...rows].sort((a, b) => order(text(a), text(b), sign)) : rows));
    });
  });
}

// An arm is highlighted in all figures and tables of its question: while pointed at, or until clicked again.
let pinned = null;
function light(arm) {
  for (const each of document.querySelectorAll(".lit, .on")) each.classList.remove("lit", "on");
  const card = arm?.closest(".card"), name = arm?.dataset.arm;
  card?.classList.add("lit");
  for (const each of card?.querySelectorAll("[data-arm]") ?? []) each.classList.toggle("on", each.dataset.arm === name);
}
for (const [event, pins] of [["pointerover", false], ["click", true]]) {
  document.addEventListener(event, ({ target }) => {
    const arm = target.closest("[data-arm]");
    if (pins && arm) pinned = pinned?.dataset.arm === arm.dataset.arm ? null : arm;
    else if (pins && !target.closest("a, button, input, summary")) pinned = null;
    light(pinned ?? arm);
  });
}

// A box that leaves only the claims, figures and tables that hold its words.
const box = document.createElement("input"), folds = [...document.querySelectorAll("details")];
Object.assign(box, { type: "search", placeholder: "filter claims, figures, tables" });
box.setAttribute("aria-label", "Filter claims, figures and tables");
document.querySelector(".contents").prepend(box);
box.addEventListener("input", () => {
  const words = box.value.trim().toLowerCase();
  for (const each of document.querySelectorAll(".verdicts > li, .matrix tbody tr, .card figure")) {
    each.hidden = words !== "" && !each.textContent.toLowerCase().includes(words);
  }
  folds.forEach((fold) => { if (words && fold.closest(".card")) fold.open = true; });
});

// What a link points at may be folded away; what is printed is open.
const unfold = () => {
  for (let each = document.getElementById(location.hash.slice(1)); each; each = each.parentElement) each.open = true;
};
addEventListener("hashchange", unfold);
unfold();
addEventListener("beforeprint", () => folds.forEach((fold) => { fold.dataset.was = fold.open; fold.open = true; }));
addEventListener("afterprint", () => folds.forEach((fold) => { fold.open = fold.dataset.was === "true"; }));
