// The latents of one member: a table of them, and everything known of one.

const ANY = "any";

class LatentsView {
  constructor(root, sweepView, index) {
    Object.assign(this, { root, sweepView, index });
    this.member = null;
    this.detail = element("article.detail", { tabIndex: -1 });
    if (!index.members.length) {
      root.append(element("p.empty", {}, "This page holds no latents: it was made without the validation samples."));
      return;
    }
    this.table = new RowTable({
      label: "Latents of the member",
      onSort: (name, descending) => go({ sort: name, down: descending ? 1 : null }, true),
      onRow: (i) => go({ latent: i }),
      isMarked: (i) => i === this.latent,
    });
    this.search = element("input", { type: "search", placeholder: "Search labels and problems, or lift>3", "aria-label": "Search latents", oninput: () => go({ search: this.search.value }, true) });
    this.status = element("p.status", { role: "status" });
    this.seeds = element("div");
    this.tools = element("div.tools");
    root.append(this.tools, this.seeds, element("div.split", {}, element("div.list", {}, this.status, this.table.root), this.detail));
    root.addEventListener("keydown", (event) => this.key(event));
    document.addEventListener("keydown", (event) => { if (!root.hidden && event.target === document.body) this.key(event); });
  }

  async update(query) {
    if (!this.index.members.length) return;
    this.query = query;
    const asked = Number(query.get("member") ?? NaN);
    const member = this.index.members.includes(asked) ? asked : this.index.members[0];
    const latents = await data(`member-${member}`);
    const samples = await data(`slice-${latents.slice}`);
    if (query !== this.query) return;
    if (member !== this.member) this.open(member, latents, samples);
    const latent = query.has("latent") ? Number(query.get("latent")) : null;
    this.latent = Number.isInteger(latent) && latent >= 0 && latent < latents.support.length ? latent : null;
    if (this.search.value !== (query.get("search") ?? "")) this.search.value = query.get("search") ?? "";
    this.label.querySelector("select").value = query.get("label") ?? "";
    this.render();
  }

  open(member, latents, samples) {
    Object.assign(this, { member, latents, samples });
    this.count = latents.support.length;
    this.table.numRows = this.count;
    this.columns = this.makeColumns();
    this.byName = new Map(this.columns.map((column) => [column.name, column]));
    this.table.root.scrollTop = 0;
    const options = this.index.members.map((i) => [i, this.sweepView.name(i)]);
    const labels = [["", "all"], [ANY, "with a label"], ...samples.names.map((name) => [name, name])];
    this.label = select("Label", labels, "", (value) => go({ label: value }));
    this.tools.replaceChildren(select("Member", options, member, (i) => go({ member: i, latent: null })), this.search, this.label,
      element("a.button", { href: address("sweep", { chosen: member }) }, "Show in the sweep"));
    this.drawSeeds();
  }

  meaning(kind, name) {
    return meaningOf(name, this.index.glossary[kind][name]);
  }

  makeColumns() {
    const { latents, samples } = this;
    const total = samples.problem_of_sample.length;
    const column = (name, get, rest = {}) => ({ ...this.meaning("latent", name), get, ...rest });
    const number = (name, values, rest = {}) => column(name, (i) => values[i], { descending: true, ...rest });
    const ascending = { descending: false };
    const names = (i) => latents.labels[i].map((p) => samples.names[p]).join(", ");
    const columns = [
      number("latent", d3.range(this.count), ascending),
      number("support", latents.support),
      latents.shared ? number("shared", latents.shared.map((count, i) => (latents.labels[i].length ? count : null))) : null,
      column("labels", names, { text: (i) => names(i) || "–" }),
      number("lift", latents.lift),
      number("q", latents.q, ascending),
      ...this.cosineColumns(),
      number("rate", latents.support.map((count) => count / total)),
      column("best", (i) => (latents.support[i] ? samples.names[latents.best[i]] : null)),
      number("p", latents.p, ascending),
      column("published", (i) => latents.published[i], { text: (i) => latents.published[i] || "–" }),
      number("mean", latents.mean),
      number("fvu_rise", latents.fvu_rise),
      latents.effect ? number("effect", latents.effect, ascending) : null,
    ];
    return columns.filter((column) => column && d3.range(this.count).some((i) => !["", null, undefined].includes(column.get(i))));
  }

  cosineColumns() {
    const seeds = this.latents.matches.filter((match) => match.kind === "seed");
    if (!seeds.length) return [];
    const chance = shown(this.index.cosine_by_chance[this.member]);
    const best = d3.range(this.count).map((i) => d3.max(seeds, (match) => (match.cosine[i] === null ? null : Math.abs(match.cosine[i]))) ?? null);
    const column = this.meaning("latent", "cosine");
    return [{ ...column, get: (i) => best[i], descending: true, meaning: `${column.meaning} Here it is ${chance} on average.` }];
  }

  /** Labels in all seeds of the setting, in how many they are shared, and what chance gives. */
  drawSeeds() {
    const found = this.index.seeds.find((of) => of.members.includes(this.member));
    if (!found) return this.seeds.replaceChildren();
    const order = d3.range(this.samples.names.length).sort((a, b) => found.shared[b] - found.shared[a] || found.labeled[b] - found.labeled[a]);
    const columns = Object.keys(this.index.glossary.sharing).filter((name) => name !== "shared_by_all" || found.members.length > 2).map((name) => this.meaning("sharing", name));
    const rows = order.filter((p) => found.labeled[p] > 0).map((p) => element("tr", {},
      element("td", {}, element("a", { href: this.sharedAddress(found, p) }, this.samples.names[p])),
      ...columns.map(({ name }) => element(name === "shared" ? "td.number.main" : "td.number", {}, shown(found[name][p]))),
    ));
    const head = element("tr", {}, element("th", {}, "property"), columns.map((column) => element("th.number", {}, `${column.title} `, help(column))));
    const none = order.filter((p) => found.labeled[p] === 0).map((p) => this.samples.names[p]);
    const content = rows.length && element("div.wide", {}, element("table.plain", {}, element("thead", {}, head), element("tbody", {}, rows)));
    const summary = `Labels shared by the ${found.members.length} seeds of this setting, beside chance`;
    this.seeds.replaceChildren(
      element("details.seeds", { open: this.seedsOpen ?? true, ontoggle: (event) => { this.seedsOpen = event.target.open; } }, element("summary", {}, summary), content || null,
        none.length ? element("p", {}, `No latent of these seeds has the label ${none.join(", ")}.`) : null,
        element("p.note", {}, `Chance: the labels of shuffled problems, or each seed's labels dealt anew among its latents that fire; p is the share of deals that reach what was found. A latent counts as shared if the latent of another seed with the most similar decoder row has the same label; the best of as many random directions has a cosine of ${shown(this.index.cosine_by_chance[this.member])}. Click a property to list its latents in the seed that shares most of them, the shared ones first.`)),
      this.index.seeds.length > 1 ? this.allSettings() : "");
  }

  /** Address of a property's latents, in the seed that has the most shared ones, then labeled ones. */
  sharedAddress(of, p) {
    const seeds = d3.range(of.members.length);
    const best = d3.greatest(seeds, (a, b) => of.shared_of[a][p] - of.shared_of[b][p] || of.labeled_of[a][p] - of.labeled_of[b][p] || (of.members[a] === this.member) - (of.members[b] === this.member));
    return address("latents", { member: of.members[best], label: this.samples.names[p], sort: "shared", down: 1 });
  }

  /** The other seeds that have latents with the label, each a link. */
  otherSeeds(p) {
    const of = this.index.seeds.find((setting) => setting.members.includes(this.member));
    if (!of || p < 0) return [];
    const links = of.members.map((member, n) => [member, of.labeled_of[n][p]]).filter(([member, count]) => count && member !== this.member)
      .map(([member, count]) => element("a", { href: address("latents", { member, label: this.samples.names[p], sort: "shared", down: 1 }) }, `${this.sweepView.name(member, ["seed"])} (${count})`));
    return links.length ? ["; other seeds with this label: ", ...links.flatMap((link, n) => (n ? [", ", link] : [link]))] : [];
  }

  /** Shared and labeled latents of every setting with several seeds on this page. */
  allSettings() {
    const { names } = this.samples;
    const order = d3.sort(d3.range(names.length), (p) => -d3.sum(this.index.seeds, (of) => of.labeled[p]));
    const cell = (of, p) => element("td.number", {}, of.labeled[p]
      ? [element("a", { href: this.sharedAddress(of, p) }, `${of.shared[p]} of ${of.labeled[p]}`), element("small", {}, `chance ${shown(of.shared_dealt[p])}`)]
      : "0");
    const head = element("tr", {}, element("th", {}, "setting"), order.map((p) => element("th.number", {}, names[p])));
    const rows = this.index.seeds.map((of) => element("tr", {}, element("td", {}, this.sweepView.name(of.members[0], this.sweepView.sweep.shown_fields)), order.map((p) => cell(of, p))));
    return element("details.seeds", {}, element("summary", {}, "The same for every setting"), element("div.wide", { tabIndex: 0 }, element("table.plain", {}, head, rows)),
      element("p.note", {}, "Latents shared by at least one other seed, of the labeled ones, all seeds of the setting together; below, how many would be shared with labels dealt anew. A link opens the setting with its p in the table above. The properties with the most latents come first."));
  }

  render() {
    const label = this.query.get("label") ?? "";
    const wanted = this.samples.names.indexOf(label);
    const passes = this.compileSearch(this.query.get("search") ?? "");
    const { labels } = this.latents;
    const order = d3.range(this.count).filter((i) => (label === "" || (label === ANY ? labels[i].length : labels[i].includes(wanted))) && passes(i));
    const sort = this.byName.get(this.query.get("sort") ?? "support");
    const descending = this.query.has("sort") ? this.query.has("down") : true;
    this.order = sorted(order, sort, descending);
    this.table.show(this.columns, this.order, sort?.name, descending);
    this.latent ??= this.order[0] ?? null;
    const at = this.order.indexOf(this.latent);
    if (at >= 0 && at !== this.table.cursor) { this.table.cursor = at; this.table.reveal(at); }
    const alive = this.latents.support.filter((count) => count > 0).length;
    this.status.replaceChildren(`${order.length} of ${this.count} latents; ${this.count - alive} fire on no validation sample`, ...this.otherSeeds(wanted));
    this.drawDetail();
  }

  /** Cells, and the texts of a latent's problems and the tokens that it speaks for. */
  compileSearch(text) {
    const words = text.toLowerCase().split(/\s+/).filter(Boolean);
    const comparisons = words.filter((word) => /[<>=]/.test(word));
    const plainText = words.filter((word) => !/[<>=]/.test(word)).join(" ");
    const passes = compileFilter(comparisons.join(" "), this.columns);
    if (!plainText) return passes;
    if (/^\d+$/.test(plainText)) {
      // A number alone is a latent's, or one in its problems.
      const own = Number(plainText);
      const inText = this.inProblems(plainText);
      return (i) => passes(i) && (i === own || inText(i));
    }
    const inText = this.inProblems(plainText);
    const cells = this.columns.filter((column) => ["labels", "best", "published"].includes(column.name));
    const lens = this.latents.lens;
    return (i) => passes(i) && (cells.some((column) => cellText(column, i).toLowerCase().includes(plainText)) || inText(i) || this.tokens(i).some(([token]) => token.toLowerCase().includes(plainText)) && Boolean(lens));
  }

  inProblems(text) {
    const { start, sample, quantile } = this.latents;
    const found = this.samples.problems.map(([id, question, answer, steps]) => [id, question, answer, ...steps.map(([step]) => step)].join("\n").toLowerCase().includes(text));
    return (i) => {
      for (let n = start[i]; n < start[i + 1]; n++) if (quantile[n] === 1 && found[this.samples.problem_of_sample[sample[n]]]) return true;
      return false;
    };
  }

  /** Tokens whose logits latent i raises, then those that it lowers, each with the change. */
  tokens(i, kinds = ["raised", "lowered"]) {
    const lens = this.latents.lens;
    const row = lens?.row[i] ?? -1;
    if (row < 0) return [];
    return kinds.flatMap((kind) => d3.range(row * lens.num, (row + 1) * lens.num).map((n) => [lens.tokens[lens[kind][n]], lens[`${kind}_by`][n]]));
  }

  drawDetail() {
    const i = this.latent;
    if (i === null) {
      this.detail.replaceChildren(element("p.empty", {}, "No latent passes the search."));
      return;
    }
    const at = this.order.indexOf(i);
    const step = (by) => () => this.step(by);
    const stats = this.columns.filter((column) => !["latent"].includes(column.name)).map((column) => element("div.stat", {}, element("dt", {}, column.title, " ", help(column)), element("dd", {}, column.text ? column.text(i) : withUnit(column.get(i), column.unit))));
    this.detail.replaceChildren(
      element("div.tools", {}, element("h2", {}, `Latent ${i}`), element("span", {}, this.sweepView.name(this.member)), button("← before (k)", step(-1), { disabled: at <= 0 }), button("next (j) →", step(1), { disabled: at < 0 || at >= this.order.length - 1 }),
        element("a.button", { href: address("latents", { member: this.member, latent: i }), title: "An address that opens exactly this latent" }, "Link")),
      element("dl.stats", {}, stats),
      ...(this.latents.support[i] ? [this.histogram(i), this.lens(i), this.relatives(i), this.examples(i)].filter(Boolean) : [element("p.empty", {}, "It fires on no validation sample.")]),
    );
  }

  histogram(i) {
    const { low, high, counts } = this.latents;
    const bins = counts.length / this.count;
    const plot = histogramPlot(Math.max(280, Math.min(520, this.detail.clientWidth - 24)), low[i], high[i], counts.slice(i * bins, (i + 1) * bins));
    return element("section", {}, element("h3", {}, "z where it fires"), plot);
  }

  lens(i) {
    const list = (title, kind) => element("p", {}, `${title}: `, this.tokens(i, [kind]).flatMap(([token, by]) => [element("code", { title: `logit ${shown(by)} at z = 1` }, token), " "]));
    if (!this.tokens(i).length) return null;
    return element("section", {}, element("h3", {}, "Tokens (logit lens)"), list("Raises", "raised"), list("Lowers", "lowered"), element("p.note", {}, "Decoder row times the model's unembedding, before any norm; for z < 0 the other way round."));
  }

  relatives(i) {
    const chance = this.index.cosine_by_chance[this.member];
    const link = (member, latent) => element("a", { href: address("latents", { member, latent }) }, `latent ${latent}`);
    const row = (where, member, latent, cosine) => element("tr", {}, element("td", {}, where), element("td", {}, link(member, latent)), element("td.number", {}, shown(cosine)));
    const matches = this.latents.matches.filter((match) => match.latent[i] >= 0).map((match) => row(this.sweepView.name(match.member, match.kind === "seed" ? ["seed"] : ["d_sae", "seed"]), match.member, match.latent[i], match.cosine[i]));
    const count = this.latents.near.length / this.count;
    const neighbors = d3.range(i * count, (i + 1) * count).filter((n) => this.latents.near[n] >= 0).map((n) => row("this SAE", this.member, this.latents.near[n], this.latents.near_cosine[n]));
    const table = (title, rows) => (rows.length ? element("div", {}, element("h3", {}, title), element("table.plain", {}, element("tr", {}, ["in", "latent", "cosine"].map((text) => element(text === "cosine" ? "th.number" : "th", {}, text))), rows)) : null);
    return element("section", {}, element("div.pair", {}, table("The same latent elsewhere", matches), table("Nearest neighbors", neighbors)), element("p.note", {}, `Cosines of decoder rows. Chance: the best of as many random directions has ${shown(chance)}. SAEs of one seed start from the same rows, which a latent that hardly ever fires keeps.`));
  }

  examples(i) {
    const { start, quantile } = this.latents;
    const groups = d3.groups(d3.range(start[i], start[i + 1]), (n) => quantile[n]);
    return element("section", {}, element("p.note", {}, "The deeper a text's color, the larger |z| beside the latent's largest; orange where z > 0, blue where z < 0. Steps in green have a property that the latent is labeled with, or else the one of its strongest tie."), groups.map(([of, numbers]) => element("div", {}, element("h3", {}, of === 1 ? "Strongest problems" : `Around the ${Math.round(100 * of)} % quantile of |z|`), numbers.map((n) => this.example(i, n)))));
  }

  example(i, n) {
    const { sample, z, strips, labels, best, high, low } = this.latents;
    const [id, question, answer, steps] = this.samples.problems[this.samples.problem_of_sample[sample[n]]];
    const marked = new Set(labels[i].length ? labels[i] : [best[i]]);
    const strength = Math.abs(z[n]) / (Math.max(Math.abs(high[i]), Math.abs(low[i])) || 1);
    const text = element(z[n] < 0 ? "p.text.negative" : "p.text", {}, question);
    text.style.setProperty("--strength", `${Math.round(100 * strength)}%`);
    const chips = steps.map(([step, held]) => {
      const names = held.filter((p) => marked.has(p)).map((p) => this.samples.names[p]);
      return element(names.length ? "code.step.held" : "code.step", { title: names.join(", ") }, step);
    });
    const tokens = strips && this.samples.tokens?.[this.samples.problem_of_sample[sample[n]]];
    if (tokens) {
      text.classList.add("tokens");
      text.replaceChildren(...tokens.map((token, at) => { const span = element("span.token", { title: `strength ${strips[n][at]} of 9` }, token); span.style.setProperty("--strength", `${Math.round((100 * strips[n][at]) / 9)}%`); return span; }));
    }
    const strip = strips && !tokens ? element("div.strip", { title: "strength on each sample of the problem" }, [...strips[n]].map((level) => { const cell = element("i"); cell.style.setProperty("--strength", `${Math.round((100 * level) / 9)}%`); return cell; })) : null;
    return element("div.example", {}, element("div.activation", {}, element("strong", {}, `z = ${shown(z[n])}`), element("span", {}, id)), text, strip, element("div.steps", {}, chips, answer ? element("span", {}, `answer ${answer}`) : null));
  }

  step(by) {
    const at = this.order.indexOf(this.latent);
    const next = this.order[at < 0 ? 0 : at + by];
    if (next !== undefined) go({ latent: next }, true);
  }

  key(event) {
    if (["INPUT", "SELECT", "TEXTAREA"].includes(event.target.tagName) || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "j") this.step(1);
    else if (event.key === "k") this.step(-1);
    else if (event.key === "/") this.search.focus();
    else return;
    event.preventDefault();
    event.stopPropagation();
  }
}
