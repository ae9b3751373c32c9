// Opens the page: the sweep's table first, then whatever the address names.

/** Says what a column means, in a dialog. */
function explain(column) {
  const dialog = document.getElementById("meaning");
  dialog.replaceChildren(
    element("h2", {}, column.title, column.unit ? ` [${column.unit}]` : ""),
    element("p", {}, column.meaning || "No more is known of this column than its name."),
    element("p.note", {}, `Column ${column.name}. ${{ up: "Higher is better.", down: "Lower is better." }[column.better] ?? ""}`),
    element("form", { method: "dialog" }, element("button", {}, "Close")),
  );
  dialog.showModal();
}

function fillGlossary(root, columns, index) {
  const list = (of) => element("dl.glossary", {}, of.filter((column) => column.meaning).flatMap((column) => [element("dt", {}, `${column.title}${column.unit ? ` [${column.unit}]` : ""} `, element("code", {}, column.name)), element("dd", {}, column.meaning, { up: " Higher is better.", down: " Lower is better." }[column.better] ?? "")]));
  const meanings = (kind) => Object.entries(index.glossary[kind]).map(([name, meaning]) => meaningOf(name, meaning));
  root.append(element("h2", {}, "What the numbers mean"),
    element("p", {}, "Metrics are taken on validation samples, which no SAE was trained on. An interval is 95 % of Student's t over seeds; that of stability, a score of pairs of seeds, is a jackknife."),
    list(columns), element("h2", {}, "Latents"), list(meanings("latent")), element("h2", {}, "Labels shared by seeds"), list(meanings("sharing")));
}

async function start() {
  const [sweep, index] = await Promise.all([data("sweep"), data("latents")]);
  const sections = Object.fromEntries(["sweep", "latents", "glossary"].map((name) => [name, document.getElementById(name)]));
  const sweepView = new SweepView(sections.sweep, sweep, index.members);
  const latentsView = new LatentsView(sections.latents, sweepView, index);
  // Of the configuration only what differs between members.
  const columns = sweepView.all.filter(({ name }) => !sweep.fields.includes(name) || sweepView.varying.includes(name) || ["k", "d_sae", "architecture"].includes(name));
  fillGlossary(sections.glossary, columns, index);

  const show = async () => {
    const { view, query } = place();
    for (const [name, section] of Object.entries(sections)) section.hidden = name !== view;
    for (const link of document.querySelectorAll("nav a")) {
      if (link.dataset.view === view) link.setAttribute("aria-current", "page");
      else link.removeAttribute("aria-current");
    }
    document.querySelector(`nav a[data-view=${view}]`).href = location.hash || "#sweep";
    if (view === "sweep") {
      sweepView.update(query);
      const member = sweepView.chosenWithLatents();
      if (member !== null) document.querySelector("nav a[data-view=latents]").href = address("latents", { member });
    }
    if (view === "latents") await latentsView.update(query);
    performance.mark("shown");
    document.body.dataset.ready = location.hash || "#";
  };
  const themes = matchMedia("(prefers-color-scheme: dark)");
  document.getElementById("theme").addEventListener("click", () => {
    document.documentElement.dataset.theme = isDark() ? "light" : "dark";
    sweepView.draw();
  });
  themes.addEventListener("change", () => sweepView.draw());
  addEventListener("hashchange", show);
  await show();
}

start();
