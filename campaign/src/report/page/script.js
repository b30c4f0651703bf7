"use strict";
(() => {
  const table = document.getElementById("trials");
  if (table) {
    const body = table.tBodies[0];
    const rows = Array.from(body.rows);
    const by = (id) => document.getElementById(id);
    const filter = () => {
      const outcome = by("by-outcome").value;
      const replicas = by("by-replicas").value;
      const words = by("by-text").value.toLowerCase().split(" ").filter(Boolean);
      let shown = 0;
      for (const row of rows) {
        const text = row.textContent.toLowerCase();
        const fits = (!outcome || row.dataset.outcome === outcome)
          && (!replicas || row.dataset.replicas === replicas)
          && words.every((word) => text.includes(word));
        row.hidden = !fits;
        shown += fits ? 1 : 0;
      }
      by("shown").textContent = shown + " of " + rows.length;
    };
    for (const id of ["by-outcome", "by-replicas", "by-text"]) {
      by(id).addEventListener("input", filter);
    }
    filter();
    const original = new Map(rows.map((row, n) => [row, n]));
    Array.from(table.tHead.rows[0].cells).forEach((cell, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...cell.childNodes);
      cell.append(button);
      button.addEventListener("click", () => {
        const next = { none: "ascending", ascending: "descending", descending: "none" };
        const order = next[cell.getAttribute("aria-sort") || "none"];
        for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
        if (order !== "none") cell.setAttribute("aria-sort", order);
        const key = (row) => row.cells[column].textContent;
        const compare = new Intl.Collator("en", { numeric: true }).compare;
        const sign = order === "descending" ? -1 : 1;
        rows.sort((a, b) => (order === "none" ? 0 : sign * compare(key(a), key(b)))
          || original.get(a) - original.get(b));
        body.append(...rows);
      });
    });
  }
  for (const code of document.querySelectorAll(".again code")) {
    code.title = "click to select";
    code.addEventListener("click", () => getSelection().selectAllChildren(code));
  }
})();
