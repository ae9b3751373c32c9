// A sortable table that makes only the rows in sight.

const ROW_HEIGHT = 30;
const OVERSCAN = 12;

class RowTable {
  /**
   * columns: {name, title, unit, text?, get(i), meaning?}; numRows: all there are; onSort(name, descending),
   * onRow(i, event); isMarked(i) says which rows are chosen.
   */
  constructor({ label, numRows, onSort, onRow, isMarked }) {
    Object.assign(this, { numRows, onSort, onRow, isMarked });
    this.columns = [];
    this.order = [];
    this.cursor = -1;
    this.head = element("tr");
    this.body = element("tbody");
    this.widths = element("colgroup");
    this.table = element("table", { role: "grid", "aria-label": label }, this.widths, element("thead", {}, this.head), this.body);
    this.root = element("div.rows", {
      tabIndex: 0,
      onscroll: () => requestAnimationFrame(() => this.draw()),
      onkeydown: (event) => this.key(event),
    }, this.table);
    new ResizeObserver(() => this.draw()).observe(this.root);
  }

  show(columns, order, sort, descending) {
    this.columns = columns;
    this.order = order;
    for (const column of columns) {
      column.numeric ??= !column.text && d3.range(this.numRows).some((i) => typeof column.get(i) === "number");
    }
    this.cursor = Math.min(this.cursor, order.length - 1);
    this.head.replaceChildren(...columns.map((column) => this.heading(column, sort, descending)));
    this.widths.replaceChildren(...columns.map((column) => this.width(column)));
    const total = columns.reduce((sum, column) => sum + column.width, 0);
    this.table.style.width = `max(100%, ${total}ch)`;
    this.table.setAttribute("aria-rowcount", order.length);
    this.drawn = null;
    this.draw();
    if (sort !== this.sort) this.showColumn(sort);
    this.sort = sort;
  }

  /** Scrolls sideways to a column that is not in sight. */
  showColumn(name) {
    const heading = [...this.head.children].find((of) => of.dataset.column === name);
    if (!heading) return;
    const [left, right] = [heading.offsetLeft, heading.offsetLeft + heading.offsetWidth];
    if (left < this.root.scrollLeft || right > this.root.scrollLeft + this.root.clientWidth) this.root.scrollLeft = right - this.root.clientWidth;
  }

  heading(column, sort, descending) {
    const sorted = column.name === sort;
    const arrow = sorted ? (descending ? "↓ " : "↑ ") : "";
    const unit = column.unit && column.unit !== column.title ? ` [${column.unit}]` : "";
    const title = button(`${arrow}${column.title}${unit}`, () => this.onSort(column.name, sorted ? !descending : column.descending ?? false), { className: "sort" });
    const meaning = column.meaning ? help(column) : null;
    return element(column.numeric ? "th.number" : "th", { scope: "col", "data-column": column.name, "aria-sort": sorted ? (descending ? "descending" : "ascending") : "none" }, title, meaning);
  }

  width(column) {
    if (!column.width) {
      const step = Math.max(1, Math.floor(this.numRows / 200));
      let widest = column.title.length + (column.unit ? column.unit.length + 3 : 0) + 6;
      for (let i = 0; i < this.numRows; i += step) widest = Math.max(widest, cellText(column, i).length + 2);
      column.width = Math.min(widest, 40);
    }
    const made = element("col");
    made.style.width = `${column.width}ch`;
    return made;
  }

  draw() {
    const height = this.root.clientHeight || 400;
    const first = Math.max(0, Math.floor(this.root.scrollTop / ROW_HEIGHT) - OVERSCAN);
    const last = Math.min(this.order.length, first + Math.ceil(height / ROW_HEIGHT) + 2 * OVERSCAN);
    const drawn = `${first}-${last}`;
    if (drawn === this.drawn) return;
    this.drawn = drawn;
    const rows = [];
    for (let n = first; n < last; n++) rows.push(this.row(n));
    this.body.replaceChildren(this.space(first), ...rows, this.space(this.order.length - last));
  }

  redraw() {
    this.drawn = null;
    this.draw();
  }

  space(count) {
    const made = element("tr.space", { ariaHidden: "true" });
    made.style.height = `${count * ROW_HEIGHT}px`;
    return made;
  }

  row(n) {
    const i = this.order[n];
    const cells = this.columns.map((column) => element(column.numeric ? "td.number" : "td", { title: cellText(column, i) }, cellText(column, i)));
    const made = element("tr.row", { "aria-selected": String(this.isMarked(i)), "aria-rowindex": n + 1, "data-row": i, onclick: (event) => { this.cursor = n; this.onRow(i, event); } }, cells);
    if (n === this.cursor) made.classList.add("cursor");
    return made;
  }

  key(event) {
    const page = Math.floor(this.root.clientHeight / ROW_HEIGHT) - 2;
    const steps = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -Infinity, End: Infinity };
    if (event.target !== this.root) return;
    if (event.key in steps) {
      this.cursor = Math.max(0, Math.min(this.order.length - 1, this.cursor + steps[event.key]));
      this.reveal(this.cursor);
    } else if ((event.key === "Enter" || event.key === " ") && this.cursor >= 0) {
      this.onRow(this.order[this.cursor], event);
    } else return;
    event.preventDefault();
  }

  reveal(n) {
    const top = n * ROW_HEIGHT;
    const height = this.root.clientHeight - this.head.offsetHeight - ROW_HEIGHT;
    if (top < this.root.scrollTop) this.root.scrollTop = top;
    else if (top > this.root.scrollTop + height) this.root.scrollTop = top - height;
    this.redraw();
  }
}

/** Row numbers in the order of a column; those without a value come last. */
function sorted(order, column, descending) {
  if (!column) return order;
  const sign = descending ? -1 : 1;
  const missing = (value) => value === null || value === undefined || value === "";
  return [...order].sort((a, b) => {
    const [x, y] = [column.get(a), column.get(b)];
    if (missing(x) || missing(y)) return missing(x) - missing(y) || a - b;
    if (typeof x !== typeof y) return typeof x === "number" ? -1 : 1;
    return sign * ((x > y) - (x < y)) || a - b;
  });
}
