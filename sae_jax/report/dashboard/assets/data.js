// What the page holds, and which part of it the address names.

const unpacked = new Map();

/** The value of a data block, unpacked once. */
function data(name) {
  if (!unpacked.has(name)) unpacked.set(name, unpack(document.getElementById(`data-${name}`)));
  return unpacked.get(name);
}

async function unpack(block) {
  const bytes = Uint8Array.from(atob(block.textContent), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).json();
}

/** View and parameters of the address, such as #latents?member=3&latent=17. */
function place() {
  const [view, query] = location.hash.slice(1).split("?");
  const known = ["sweep", "latents", "glossary"].includes(view);
  return { view: known ? view : "sweep", query: new URLSearchParams(query ?? "") };
}

function address(view, parameters) {
  const query = new URLSearchParams();
  for (const [name, value] of Object.entries(parameters)) {
    if (value !== null && value !== undefined && value !== "") query.set(name, value);
  }
  const text = query.toString();
  return `#${view}${text ? `?${text}` : ""}`;
}

/** Goes to an address with some parameters changed; `replace` leaves no step to go back to. */
function go(changes, replace = false) {
  const { view, query } = place();
  const target = address(view, { ...Object.fromEntries(query), ...changes });
  if (target === location.hash) return;
  if (replace) location.replace(target);
  else location.hash = target;
}

/**
 * Whether row i passes a filter such as "k=50 fvu<5 topk". Comparisons are with numbers as they
 * are shown, percentages too; other words have to be in some cell.
 */
function compileFilter(text, columns) {
  const words = text.toLowerCase().split(/\s+/).filter(Boolean);
  const tests = words.map((word) => {
    const parts = word.match(/^([^=<>!]+)(<=|>=|!=|=|<|>)(.+)$/);
    const column = parts && columns.find((c) => [c.name, c.title].some((name) => plain(name) === plain(parts[1])));
    if (!column) return (i) => columns.some((c) => cellText(c, i).toLowerCase().includes(word));
    const [, , sign, value] = parts;
    const wanted = Number(value);
    return (i) => {
      const found = column.get(i);
      if (typeof found === "number" && Number.isFinite(wanted)) {
        const number = column.unit === "%" ? 100 * found : found;
        return { "=": number === wanted, "!=": number !== wanted, "<": number < wanted, ">": number > wanted, "<=": number <= wanted, ">=": number >= wanted }[sign];
      }
      const same = cellText(column, i).toLowerCase().includes(value);
      return sign === "=" ? same : sign === "!=" ? !same : false;
    };
  });
  return (i) => tests.every((test) => test(i));
}

function plain(name) {
  return name.toLowerCase().replace(/[^a-z0-9|]/g, "");
}

function cellText(column, i) {
  return column.text ? column.text(i) : shown(column.get(i), column.unit);
}
