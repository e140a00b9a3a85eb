// Tables sort by a click on a heading: up, down, as they were. Without this script they read as they stand.
const MISSING = "\u2013";
const natural = new Intl.Collator("en", { numeric: true }).compare;

function number(text) {
  return text === "inf" ? Infinity : text === "-inf" ? -Infinity : Number(text.replaceAll(",", ""));
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
