// The sweep as a whole: the table of its members, and plots that choose from it.

const MAX_CURVES = 24;

class SweepView {
  constructor(root, sweep, withLatents) {
    Object.assign(this, { root, sweep, withLatents: new Set(withLatents) });
    this.count = sweep.curves.length;
    const names = Object.keys(sweep.columns);
    this.varying = names.filter((name) => new Set(sweep.columns[name]).size > 1);
    this.fields = sweep.fields.filter((name) => this.varying.includes(name));
    this.all = names.map((name) => this.column(name));
    this.byName = new Map(this.all.map((column) => [column.name, column]));
    this.shownColumns = new Set(this.initialColumns());
    const colors = this.fields.filter((name) => !["seed", "data_seed"].includes(name));
    this.colorFields = colors.length ? colors : ["k"];
    const hasAll = (name) => this.sweep.columns[name].every((value) => value !== null);
    this.colorBy = ["k", "architecture", "d_sae", ...this.colorFields].find((name) => colors.includes(name) && hasAll(name)) ?? this.colorFields[0];
    this.xName = this.fields.includes("d_sae") || !this.fields.includes("k") ? "d_sae" : "k";
    this.build();
  }

  column(name) {
    const values = this.sweep.columns[name];
    const column = meaningOf(name, this.sweep.glossary[name]);
    return { ...column, get: (i) => values[i], descending: column.better === "up" };
  }

  initialColumns() {
    // A small screen shows three columns or so.
    const first = innerWidth <= 500 ? ["architecture", "fvu", "l0"] : ["architecture"];
    const wanted = [...first, "layer", "position", "k", "target_l0", "d_sae", "seed"];
    const fields = this.fields.filter((name) => !wanted.includes(name) && name !== "data_seed");
    const scores = ["fvu", "l0", "dead_fraction", "calibrated_rate_supported", "calibrated_null", "published_rate", "published_null", "feature_stability", "explained_variance", "diverged_at"];
    return [...new Set([...wanted, ...fields, ...scores])].filter((name) => this.varying.includes(name) || ["k", "d_sae", "seed"].includes(name));
  }

  build() {
    this.table = new RowTable({
      label: "Members of the sweep",
      numRows: this.count,
      onSort: (name, descending) => go({ sort: name, down: descending ? 1 : null }, true),
      onRow: (i, event) => this.choose([i], event),
      isMarked: (i) => this.chosen.has(i),
    });
    this.filter = element("input", { type: "search", placeholder: "Filter: k=50 fvu<5 topk", "aria-label": "Filter members", oninput: () => go({ filter: this.filter.value }, true) });
    this.status = element("p.status", { role: "status" });
    this.facets = this.fields
      .filter((name) => new Set(this.sweep.columns[name]).size <= 24)
      .map((name) => this.facet(name));
    const boxes = this.all.map((column) => {
      const box = element("input", { type: "checkbox", checked: this.shownColumns.has(column.name), onchange: () => { box.checked ? this.shownColumns.add(column.name) : this.shownColumns.delete(column.name); this.render(); } });
      return element("label", {}, box, ` ${column.title}${column.title === column.name ? "" : ` (${column.name})`}`);
    });
    this.best = element("div.best");
    this.l0 = element("input", { type: "number", min: 1, value: this.typicalL0(), "aria-label": "L0", oninput: () => this.drawBest() });
    this.pareto = element("div.plot");
    this.legend = element("div.legend");
    this.panels = element("div.panels");
    this.losses = element("div.plot");
    this.map = element("div.plot");
    const slices = new Set(this.sweep.columns.layer.map((layer, i) => `${layer} ${this.sweep.columns.position[i]}`));
    this.hasMap = slices.size > 1;
    this.mapColumn = "fvu";
    const measures = this.all.filter((column) => this.measured(column.name));
    this.root.append(
      element("div.tools", {}, this.filter, this.facets, button("Clear", () => go({ filter: null, chosen: null, ...Object.fromEntries(this.fields.map((name) => [`is_${name}`, null])) })),
        element("details.columns", {}, element("summary", {}, "Columns"), element("div.boxes", {}, boxes))),
      this.status,
      this.table.root,
      element("div.pair", {},
        element("figure", {}, element("figcaption", {}, element("h2", {}, "Reconstruction against sparsity"), element("p", {}, "A point is a member; down and left is better. The dashed line joins the settings that no other beats in both. Click to choose, with Ctrl or Shift to add.")),
          element("div.tools", {}, select("Color by", this.colorFields.map((name) => [name, this.byName.get(name).title]), this.colorBy, (name) => { this.colorBy = name; this.draw(); })), this.legend, this.pareto),
        element("figure", {}, element("figcaption", {}, element("h2", {}, "Best at one sparsity"), element("p", {}, "Settings whose mean L0 is within 10 % of this, by fvu: mean over seeds ± 95 % interval.")),
          element("label.field", {}, element("span", {}, "L0"), this.l0), this.best)),
      element("figure", {}, element("figcaption", {}, element("h2", {}, "What size and sparsity do"), element("p", {}, "Means over seeds with 95 % intervals, where there are several. Dotted lines with × are what chance gives: shuffled problems, or random directions. Death and reconstruction have no chance level.")),
        element("div.tools", {}, select("Against", ["d_sae", "k"].map((name) => [name, this.byName.get(name).title]), this.xName, (name) => { this.xName = name; this.draw(); })), this.panelNote = element("p.note"), this.panels),
      this.hasMap ? element("figure", {}, element("figcaption", {}, element("h2", {}, "Layers and positions"), element("p", {}, "Mean over the members of a cell that pass the filter. Click a cell to keep its members alone.")),
        element("div.tools", {}, select("Show", measures.map((column) => [column.name, column.title]), this.mapColumn, (name) => { this.mapColumn = name; this.drawMap(); })), this.map) : [],
      element("figure", {}, element("figcaption", {}, element("h2", {}, "Training loss"), this.lossNote = element("p")), this.losses),
    );
    new ResizeObserver(() => this.root.hidden || this.draw()).observe(this.pareto);
  }

  facet(name) {
    const values = [...new Set(this.sweep.columns[name])].sort((a, b) => (a > b) - (a < b));
    const options = [["", "any"], ...values.map((value) => [value, shown(value)])];
    return select(this.byName.get(name).title, options, "", (value) => go({ [`is_${name}`]: value }));
  }

  measured(name) {
    return !this.sweep.fields.includes(name) && this.sweep.settings.some((setting) => name in setting.summaries);
  }

  typicalL0() {
    const values = [...this.sweep.columns.l0].filter((value) => value !== null).sort((a, b) => a - b);
    return values.length ? Math.round(values[Math.floor(values.length / 2)]) : 50;
  }

  /** Reads the address. */
  update(query) {
    const numbers = (query.get("chosen") ?? "").split(",").filter(Boolean).map(Number);
    const before = this.chosen ?? new Set();
    this.chosen = new Set(numbers.filter((i) => Number.isInteger(i) && i >= 0 && i < this.count));
    this.query = query;
    if (this.filter.value !== (query.get("filter") ?? "")) this.filter.value = query.get("filter") ?? "";
    const facets = this.fields.filter((name) => new Set(this.sweep.columns[name]).size <= 24);
    facets.forEach((name, n) => { this.facets[n].querySelector("select").value = query.get(`is_${name}`) ?? ""; });
    this.render();
    const added = this.table.order.findIndex((i) => this.chosen.has(i) && !before.has(i));
    if (added >= 0) this.table.reveal(added);
  }

  render() {
    const passes = compileFilter(this.filter.value, this.all);
    const wanted = this.fields.filter((name) => this.query.get(`is_${name}`)).map((name) => [this.sweep.columns[name], this.query.get(`is_${name}`)]);
    this.visible = d3.range(this.count).filter((i) => wanted.every(([values, value]) => String(values[i]) === value) && passes(i));
    const columns = [...this.shownColumns].map((name) => this.byName.get(name));
    const sort = this.byName.get(this.query.get("sort"));
    const descending = this.query.has("down");
    this.table.show(columns, sorted(this.visible, sort, descending), sort?.name, descending);
    this.drawStatus();
    // The table comes first; plots follow when it is on the screen.
    requestAnimationFrame(() => setTimeout(() => this.draw()));
  }

  /** The first of the chosen members whose latents are on this page. */
  chosenWithLatents() {
    return [...this.chosen].find((i) => this.withLatents.has(i)) ?? null;
  }

  drawStatus() {
    const parts = [`${this.visible.length} of ${this.count} members`];
    if (this.chosen.size) parts.push(` · ${this.chosen.size} chosen: `);
    const links = [...this.chosen].filter((i) => this.withLatents.has(i)).slice(0, 6).map((i) => element("a", { href: address("latents", { member: i }) }, `latents of ${this.name(i)}`));
    const none = this.chosen.size && !links.length ? element("span", {}, "their latents are not on this page") : null;
    this.status.replaceChildren(...parts, ...links.flatMap((link, n) => (n ? ["; ", link] : [link])), ...(none ? [none] : []));
  }

  choose(members, event) {
    const adds = event.ctrlKey || event.metaKey || event.shiftKey;
    const isSame = !adds && members.length === this.chosen.size && members.every((i) => this.chosen.has(i));
    const next = adds ? new Set(this.chosen) : new Set();
    for (const i of isSame ? [] : members) adds && this.chosen.has(i) ? next.delete(i) : next.add(i);
    go({ chosen: [...next].sort((a, b) => a - b).join(",") });
  }

  /** What tells a member from the others. */
  name(i, fields = null) {
    const known = fields ?? [...this.sweep.shown_fields, "seed"];
    return known.filter((name) => this.byName.get(name).get(i) !== null)
      .map((name) => (name === "architecture" ? this.byName.get(name).get(i) : `${this.byName.get(name).title} ${shown(this.byName.get(name).get(i))}`)).join(", ");
  }

  /** Names of members, of many the first. */
  listed(members, fields = null) {
    const rest = members.length - 6;
    return members.slice(0, 6).map((i) => this.name(i, fields)).join("; ") + (rest > 0 ? `; and ${rest} more` : "");
  }

  draw() {
    if (this.root.hidden || !this.visible) return;
    const values = this.byName.get(this.colorBy);
    // Colors of all members, so that a filter changes none.
    this.colors = colorsOf(d3.range(this.count).map(values.get));
    const inSight = new Set(this.visible.map(values.get));
    this.color = (i) => this.colors.get(values.get(i));
    this.legend.replaceChildren(element("span", {}, `${values.title}:`), ...[...this.colors].filter(([value]) => inSight.has(value)).slice(0, 16).map(([value, color]) => {
      const dot = element("i");
      dot.style.background = color;
      return element("span.key", {}, dot, shown(value));
    }));
    this.drawPareto();
    this.drawBest();
    this.drawPanels();
    this.drawMap();
    this.drawLosses();
  }

  /** Settings of which some member passes the filter. */
  settings() {
    const visible = new Set(this.visible);
    return this.sweep.settings.filter((setting) => setting.members.some((i) => visible.has(i)));
  }

  drawPareto() {
    const { fvu, l0 } = this.sweep.columns;
    const members = this.visible.filter((i) => fvu[i] !== null && l0[i] !== null).map((i) => ({ member: i, l0: l0[i], fvu: 100 * fvu[i], title: `${this.name(i)}\nfvu ${withUnit(fvu[i], "%")} at L0 ${shown(l0[i])}` }));
    const means = this.settings().filter((setting) => setting.summaries.fvu[0] !== null)
      .map((setting) => ({ l0: setting.summaries.l0[0], fvu: 100 * setting.summaries.fvu[0] })).sort((a, b) => a.l0 - b.l0 || a.fvu - b.fvu);
    let least = Infinity;
    const frontier = means.filter((point) => point.fvu < least && ((least = point.fvu), true));
    this.pareto.replaceChildren(members.length ? paretoPlot(this.pareto.clientWidth, members, frontier, (point) => this.color(point.member), this.chosen, (point, event) => this.choose([point.member], event)) : "No member to draw.");
  }

  drawBest() {
    const wanted = Number(this.l0.value);
    const near = this.settings().filter((setting) => {
      const [l0] = setting.summaries.l0;
      return l0 !== null && setting.summaries.fvu[0] !== null && Math.abs(l0 - wanted) <= 0.1 * wanted;
    }).sort((a, b) => a.summaries.fvu[0] - b.summaries.fvu[0]);
    const rows = near.slice(0, 8).map((setting) => element("tr", {},
      element("td", {}, button(this.name(setting.members[0], this.sweep.shown_fields), (event) => this.choose(setting.members, event), { className: "link" })),
      element("td.number", {}, withInterval(setting.summaries.fvu, "%")),
      element("td.number", {}, shown(setting.summaries.l0[0])),
      element("td.number", {}, String(setting.summaries.fvu[2]))));
    const head = element("tr", {}, ["setting", "fvu", "L0", "seeds"].map((text, n) => element(n ? "th.number" : "th", {}, text)));
    this.best.replaceChildren(near.length ? element("table.plain", {}, head, rows) : "No setting has this L0.");
  }

  drawPanels() {
    const columns = PANELS.filter((name) => this.measured(name)).map((name) => this.byName.get(name));
    const width = Math.max(280, Math.min(460, this.panels.clientWidth / Math.max(1, Math.floor(this.panels.clientWidth / 360)) - 12));
    const series = this.sweep.shown_fields.filter((name) => name !== this.xName);
    const x = this.byName.get(this.xName);
    const leftOff = this.settings().filter((setting) => x.get(setting.members[0]) === null);
    this.panelNote.textContent = leftOff.length ? `Left off, since they have no ${x.title}: ${this.listed(leftOff.map((setting) => setting.members[0]), this.sweep.shown_fields)}.` : "";
    const panels = columns.map((column) => {
      const scale = column.unit === "%" ? 100 : 1;
      const points = this.settings().filter((setting) => setting.summaries[column.name][0] !== null).map((setting) => {
        const [mean, half] = setting.summaries[column.name];
        const chance = this.chance(setting, column.name);
        const first = setting.members[0];
        const byChance = chance === null ? "" : `\nby chance ${withUnit(chance, column.unit)}`;
        return { members: setting.members, x: x.get(first), mean: scale * mean, half: half === null ? null : scale * half, chance: chance === null ? null : scale * chance, series: series.map((name) => this.byName.get(name).get(first)).join("|"),
          title: `${this.name(first, this.sweep.shown_fields)}\n${column.title} ${withInterval(setting.summaries[column.name], column.unit)}${byChance}` };
      }).filter((point) => point.x !== null);
      const title = element("h3", {}, column.title, " ", help(column));
      const plot = points.length ? panelPlot(width, points, column, this.xName, x.title, (point) => this.color(point.members[0]), this.chosen, (point, event) => this.choose(point.members, event)) : "No member to draw.";
      // What the tip says of the chosen settings stays, where nothing can hover.
      const chosen = points.filter((point) => point.members.some((i) => this.chosen.has(i))).slice(0, 3);
      return element("div.panel", {}, title, plot, chosen.map((point) => element("p.note", {}, point.title.replaceAll("\n", "; "))));
    });
    this.panels.replaceChildren(...panels);
  }

  chance(setting, name) {
    const by = this.sweep.chance[name];
    if (by === "stability_by_chance") return setting.stability_by_chance;
    return by in setting.summaries ? setting.summaries[by][0] : null;
  }

  drawMap() {
    if (!this.hasMap) return;
    const column = this.byName.get(this.mapColumn);
    const { layer, position } = this.sweep.columns;
    const groups = d3.rollups(this.visible.filter((i) => column.get(i) !== null), (of) => of, (i) => `${layer[i]}|${position[i]}`);
    const cells = groups.map(([, of]) => {
      const mean = d3.mean(of, column.get);
      return { layer: layer[of[0]], position: String(position[of[0]]), mean, title: `layer ${layer[of[0]]}, position ${position[of[0]]}\n${column.title} ${withUnit(mean, column.unit)}, mean of ${of.length}` };
    });
    const [low, high] = d3.extent(cells, (cell) => cell.mean);
    for (const cell of cells) cell.ink = (cell.mean - low) / (high - low || 1) > 0.55 ? "#000" : "#fff";
    this.map.replaceChildren(slicePlot(Math.min(640, this.map.clientWidth), cells, column, (cell) => go({ is_layer: cell.layer, is_position: cell.position })));
  }

  drawLosses() {
    const chosen = [...this.chosen];
    const all = chosen.length ? chosen : this.settings().map((setting) => setting.members[0]);
    // A loss that is not finite, or 0, at the first step gives no share of it.
    const canDraw = (i) => this.sweep.curves[i][1][0] > 0;
    const members = all.filter(canDraw).slice(0, MAX_CURVES);
    const leftOut = all.filter((i) => !members.includes(i));
    this.lossNote.textContent = `${chosen.length ? "The chosen members" : "The first seed of each setting"}, each loss as a share of its first step's, since architectures have losses of their own units. Steps are binned; a point is the mean of its bin.${leftOut.length ? ` Left out: ${this.listed(leftOut)}.` : ""}`;
    const curves = members.map((i) => ({ member: i, steps: this.sweep.curves[i][0], losses: this.sweep.curves[i][1], title: this.name(i) }));
    this.losses.replaceChildren(curves.length ? lossPlot(this.losses.clientWidth, curves, (point) => this.color(point.member) ?? "currentColor") : "No member to draw.");
  }
}
