// Plots of a sweep. Each returns an SVG whose points can be clicked.

const PANELS = ["fvu", "explained_variance", "dead_fraction", "calibrated_rate_supported", "published_rate", "feature_stability"];

function frame(width, options) {
  return Plot.plot({
    width,
    height: 300,
    marginLeft: 56,
    marginBottom: 40,
    style: { background: "transparent", color: "currentColor", fontSize: "12px" },
    grid: true,
    r: { type: "identity" },
    ...options,
  });
}

/** A numeric axis; logarithmic if values span more than a factor of 4. */
function axis(values, label) {
  const found = values.filter((value) => typeof value === "number");
  const [low, high] = d3.extent(found);
  const log = low > 0 && high / low > 4;
  const ticks = [...new Set(found)].sort((a, b) => a - b);
  return { type: log ? "log" : "linear", label, nice: !log, inset: 12, ...(ticks.length <= 8 ? { ticks, tickFormat: (value) => shown(value) } : log ? { ticks: 4, tickFormat: "~s" } : { ticks: 6 }) };
}

/** Hands a click to `onPoint` with the point whose tip is shown, which is the nearest. */
function clickable(svg, onPoint) {
  svg.addEventListener("click", (event) => svg.value && onPoint(svg.value, event));
  svg.style.cursor = "pointer";
  return svg;
}

/** fvu against L0: members as points, and the settings that none beats in both. */
function paretoPlot(width, members, frontier, color, chosen, onPoint) {
  const any = members.some((point) => chosen.has(point.member));
  const svg = frame(width, {
    ariaLabel: "fvu against L0",
    x: { ...axis(members.map((point) => point.l0), "L0 [latents firing on a sample] →"), ticks: 6, tickFormat: "~s" },
    y: { ...axis(members.map((point) => point.fvu), "↑ fvu [%]"), ticks: 6 },
    marks: [
      Plot.line(frontier, { x: "l0", y: "fvu", stroke: "currentColor", strokeOpacity: 0.5, strokeDasharray: "4,3" }),
      Plot.dot(members, {
        className: "members",
        x: "l0", y: "fvu", r: (point) => (chosen.has(point.member) ? 6 : 4),
        fill: (point) => color(point), fillOpacity: (point) => (any && !chosen.has(point.member) ? 0.25 : 0.85),
        stroke: (point) => (chosen.has(point.member) ? "currentColor" : "none"), strokeWidth: 1.5,
      }),
      Plot.tip(members, Plot.pointer({ x: "l0", y: "fvu", title: "title" })),
    ],
  });
  return clickable(svg, onPoint);
}

/** One column against d_sae or K: means over seeds, 95 % intervals, and the chance level. */
function panelPlot(width, points, column, xName, xTitle, color, chosen, onPoint) {
  const any = points.some((point) => point.members.some((i) => chosen.has(i)));
  const isChosen = (point) => point.members.some((i) => chosen.has(i));
  const opacity = (point) => (any && !isChosen(point) ? 0.25 : 1);
  const byChance = points.filter((point) => point.chance !== null);
  // The tip is also found from the chance level, which may be far from its setting.
  const tipped = [...points, ...byChance.map((point) => ({ ...point, mean: point.chance }))];
  const svg = frame(width, {
    height: 240,
    ariaLabel: `${column.title} against ${xTitle}`,
    x: axis(points.map((point) => point.x), `${xTitle} →`),
    y: { label: `↑ ${column.title}${column.unit ? ` [${column.unit}]` : ""}`, nice: true, ticks: 5, ...(byChance.length ? { zero: true } : {}) },
    marks: [
      Plot.line(byChance, { x: "x", y: "chance", z: "series", stroke: "currentColor", strokeOpacity: 0.55, strokeDasharray: "2,3", sort: "x" }),
      Plot.dot(byChance, { x: "x", y: "chance", symbol: "times", r: 4, stroke: "currentColor", strokeOpacity: 0.55 }),
      Plot.line(points, { x: "x", y: "mean", z: "series", stroke: (point) => color(point), strokeOpacity: any ? 0.3 : 0.8, sort: "x" }),
      Plot.ruleX(points.filter((point) => point.half !== null), { x: "x", y1: (p) => p.mean - p.half, y2: (p) => p.mean + p.half, stroke: (point) => color(point), strokeOpacity: opacity, strokeWidth: 1.5 }),
      Plot.dot(points, { className: "settings", x: "x", y: "mean", r: (point) => (isChosen(point) ? 6 : 4), fill: (point) => color(point), fillOpacity: opacity, stroke: (point) => (isChosen(point) ? "currentColor" : "none") }),
      Plot.tip(tipped, Plot.pointer({ x: "x", y: "mean", title: "title" })),
    ],
  });
  return clickable(svg, onPoint);
}

function lossPlot(width, curves, color) {
  const points = curves.flatMap((curve) => curve.steps.map((step, n) => ({ ...curve, step, loss: curve.losses[n], share: curve.losses[n] / curve.losses[0] }))).filter((point) => point.loss !== null && point.loss > 0);
  return frame(width, {
    ariaLabel: "training loss against step",
    x: { type: "log", label: "training step →", ticks: 4, tickFormat: "~s" },
    y: { type: "log", label: "↑ training loss / that of the first step", ticks: 4, tickFormat: "~g" },
    marks: [
      Plot.line(points, { x: "step", y: "share", z: "member", stroke: (point) => color(point), strokeWidth: 1.5 }),
      Plot.tip(points, Plot.pointer({ x: "step", y: "share", title: (point) => `${point.title}\nstep ${point.step}: loss ${shown(point.loss)}` })),
    ],
  });
}

/** A number for each layer and position: the mean of a column over members there. */
function slicePlot(width, cells, column, onCell) {
  const svg = frame(width, {
    height: Math.max(120, 36 * new Set(cells.map((cell) => cell.layer)).size + 70),
    ariaLabel: `${column.title} by layer and position`,
    grid: false,
    marginTop: 20,
    x: { type: "band", label: "position →" },
    y: { type: "band", label: "layer", reverse: true },
    color: { type: "linear", interpolate: (t) => d3.interpolateViridis(0.15 + 0.8 * t) },
    marks: [
      Plot.cell(cells, { x: "position", y: "layer", fill: "mean", inset: 1, className: "slices" }),
      Plot.text(cells, { x: "position", y: "layer", text: (cell) => shown(cell.mean, column.unit), fill: (cell) => cell.ink, pointerEvents: "none" }),
      Plot.tip(cells, Plot.pointer({ x: "position", y: "layer", title: "title" })),
    ],
  });
  return clickable(svg, onCell);
}

function histogramPlot(width, low, high, counts) {
  const step = (high - low) / counts.length || 1;
  const bins = counts.map((count, n) => ({ x1: low + n * step, x2: low + (n + 1) * step, count })).filter((bin) => bin.count);
  return frame(width, {
    height: 150,
    marginTop: 16,
    ariaLabel: "histogram of z over the samples on which the latent fires",
    x: { label: "z (samples' units) →", ticks: 6 },
    y: { label: "↑ samples", ticks: Math.min(4, d3.max(counts)), tickFormat: "~s" },
    marks: [
      Plot.rectY(bins, { x1: "x1", x2: "x2", y: "count", fill: "var(--accent)", insetLeft: 0.5, insetRight: 0.5 }),
      Plot.ruleY([0]),
    ],
  });
}
