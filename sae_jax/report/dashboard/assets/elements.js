// Elements, numbers and colors. Whatever comes from data enters the page as text.

/** An element, as element("td.number", {title: "..."}, "text", child). */
function element(kind, properties = {}, ...children) {
  const [tag, ...classes] = kind.split(".");
  const made = document.createElement(tag);
  made.classList.add(...classes);
  for (const [name, value] of Object.entries(properties)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (name.includes("-") || name === "role" || name === "for") made.setAttribute(name, value);
    else made[name] = value;
  }
  made.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return made;
}

function button(label, onclick, properties = {}) {
  return element("button", { type: "button", onclick, ...properties }, label);
}

/** A column or number with what it means. */
function meaningOf(name, [title, unit, better, meaning]) {
  return { name, title, unit, better, meaning };
}

/** A button that says what a column means. */
function help(column) {
  return button("?", () => explain(column), { className: "help", "aria-label": `What ${column.title} means` });
}

function select(label, options, value, onchange) {
  const list = options.map(([of, text]) => element("option", { value: String(of) }, text));
  const made = element("select", { "aria-label": label, onchange: () => onchange(made.value) }, list);
  made.value = String(value);
  return element("label.field", {}, element("span", {}, label), made);
}

/** A number as a reader wants it; a share is shown in percent. */
function shown(value, unit = "") {
  if (value === null || value === undefined || value === "") return "–";
  if (typeof value !== "number") return String(value);
  const scaled = unit === "%" ? 100 * value : value;
  const size = Math.abs(scaled);
  if (Number.isInteger(scaled) && unit !== "%") return String(scaled).replace(/^-/, "−");
  let text;
  // Two decimals stand below each other in a column.
  if (unit === "%") text = size === 0 || size >= 0.01 ? scaled.toFixed(2) : scaled.toPrecision(1);
  else if (size !== 0 && (size < 1e-3 || size >= 1e6)) text = scaled.toExponential(1);
  else text = scaled.toPrecision(size >= 1000 ? 4 : 3);
  return text.replace(/^-/, "−").replace("e-", "e−").replace("e+", "e");
}

function withUnit(value, unit = "") {
  const text = shown(value, unit);
  return unit && text !== "–" ? `${text} ${unit}` : text;
}

function withInterval([mean, half], unit = "") {
  const interval = half === null ? "" : ` ± ${shown(half, unit)}`;
  return `${shown(mean, unit)}${interval}${unit ? ` ${unit}` : ""}`;
}

/** Colors of a field's values that color-blind readers tell apart. */
function colorsOf(values) {
  const all = new Set(values);
  const sorted = [...all].filter((value) => value !== null).sort((a, b) => (a > b) - (a < b));
  const dark = isDark();
  const none = all.has(null) ? [[null, dark ? "#8d97a5" : "#7b8591"]] : [];
  if (sorted.length > 1 && sorted.every((value) => typeof value === "number")) {
    const [from, to] = dark ? [0.3, 1] : [0, 0.82];
    const step = (to - from) / (sorted.length - 1);
    return new Map([...sorted.map((value, i) => [value, d3.interpolateViridis(from + i * step)]), ...none]);
  }
  // Okabe and Ito's, without yellow and black, which one of the two backgrounds hides.
  const palette = dark
    ? ["#56b4e9", "#e69f00", "#00c49a", "#cc79a7", "#f0e442", "#ff8c4a", "#8ab8ff"]
    : ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b07c00", "#56b4e9", "#5e4fa2"];
  return new Map([...sorted.map((value, i) => [value, palette[i % palette.length]]), ...none]);
}

function isDark() {
  const forced = document.documentElement.dataset.theme;
  return forced ? forced === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
}
