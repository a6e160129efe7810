document.querySelectorAll("table.sortable th").forEach((head) => head.addEventListener("click", () => {
  const table = head.closest("table"), body = table.tBodies[0], column = head.cellIndex;
  const down = head.dataset.order !== "down";
  const key = (row) => row.cells[column].dataset.value ?? row.cells[column].innerText;
  table.querySelectorAll("th").forEach((other) => delete other.dataset.order);
  head.dataset.order = down ? "down" : "up";
  [...body.rows].sort((a, b) => {
    const x = key(a), y = key(b);
    if (x === "" || y === "") return (x === "") - (y === "");
    if (isNaN(x) || isNaN(y)) return (down ? 1 : -1) * x.localeCompare(y);
    return down ? y - x : x - y;
  }).forEach((row) => body.append(row));
}));
