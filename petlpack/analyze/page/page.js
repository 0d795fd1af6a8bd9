"use strict";

// ---- numbers for people, as the command line writes them (decimal units; a tie goes to the even digit) ----

function fixed(value, digits) {
  const text = value.toFixed(digits);
  const tie = (Math.abs(value) * 2 ** (digits + 1)) % 2 === 1;
  return tie && "13579".includes(text.at(-1)) ? (value - 0.5 / 10 ** digits).toFixed(digits) : text;
}

function size(bytes) {
  if (bytes < 1000) return `${fixed(bytes, 0)} B`;
  const units = ["kB", "MB", "GB", "TB", "PB"];
  let power = 1;
  while (bytes / 1000 ** power >= 999.95 && power < units.length) power += 1;
  return `${fixed(bytes / 1000 ** power, 1)} ${units[power - 1]}`;
}

function ratio(before, after) {
  if (!before || !after) return "-";
  const times = before / after;
  return times >= 100 ? `${whole(Number(fixed(times, 0)))}x` : `${fixed(times, times >= 10 ? 1 : 2)}x`;
}

const whole = (number) => number.toLocaleString("en-US");
const count = (number, noun) => `${whole(number)} ${noun}${number === 1 ? "" : "s"}`;
const percent = (part, all) => (all ? `${fixed((100 * part) / all, 1)} %` : "-");
const glued = (text) => text.replace(/(\d) (?=%|[kMGTP]?B\b)/g, "$1\u00a0"); // a number and its unit stay on one line
const known = (value, text) => (value === null ? "-" : text(value));
const sum = (rows, value) => rows.reduce((total, row) => total + value(row), 0);

/** Sum of values; null where one is not known. */
function knownSum(rows, value) {
  return rows.some((row) => value(row) === null) ? null : sum(rows, value);
}

// ---- elements: texts become text nodes, and nothing else ----

const $ = (id) => document.getElementById(id);

function make(tag, attributes = {}, ...children) {
  const svg = ["svg", "path", "line", "circle", "text", "title", "g"].includes(tag);
  const element = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

// ---- the data ----

const data = JSON.parse($("data").textContent);
const tasks = data.tasks.map((row) => {
  const [name, method, codec, exact, error, payload, head, files, header, share, dense, score, sections] = row;
  const total = payload + head + files + header;
  const [value, metric] = score ?? [null, null];
  return {
    name, exact, error, payload, head, files, header, share, total, takes: total + share, dense, sections,
    method: data.texts[method], codec: data.texts[codec],
    score: value, metric: metric === null ? "" : data.texts[metric],
  };
});
const bytesOf = ({ bytes }) => bytes;
const shared = data.shared.map(([sha, role, bytes, users]) => ({ sha, role, bytes, users }));
const readable = data.disk - data.lost; // bytes on disk without the files of unreadable tasks
const denseBytes = data.dense === null ? null : data.dense * tasks.length;

// ---- the conclusion and the key figures ----

/** One sentence, as the command line has it. */
function conclusion() {
  if (!tasks.length) return `No readable task; the files take ${size(data.disk)}.`;
  const broken = data.damaged.length;
  const more = broken ? ` (${whole(broken)} unreadable ${broken === 1 ? "one" : "ones"} ${size(data.lost)} more)` : "";
  const [least, most] = [size(data.least), size(data.next)];
  const next = tasks.length === 1 && least !== most
    ? `another will take ${least} to ${most}, depending on whether it shares the parts of this one`
    : `the next will take about ${most}`;
  const before = denseBytes === null
    ? `as runs they took ${size(data.runs)} (${ratio(data.runs, readable)})`
    : `as dense models they would take ${size(denseBytes)} (${ratio(denseBytes, readable)})`;
  const take = tasks.length === 1 ? "takes" : "take";
  return `${count(tasks.length, "task")} ${take} ${size(readable)}${more}; ${next}; ${before}.`;
}

function fromTasks(number) {
  return number === null ? "never" : `from ${count(number, "task")}`;
}

/** Name, value and note of each; what is not known is left out. Unreadable tasks have one of their own. */
function figures() {
  const rows = [
    ["On disk", size(data.disk), `${whole(data.disk)} bytes`],
    ["Tasks", whole(tasks.length), data.damaged.length ? "readable" : "all readable"],
  ];
  if (data.damaged.length) rows.push(["Unreadable tasks", whole(data.damaged.length), `${size(data.lost)} on disk`]);
  const apart = data.damaged.length ? ", unreadable tasks apart" : "";
  if (!tasks.length) return rows;
  const headers = sum(tasks, (task) => task.header);
  rows.push(
    ["Each task", size(readable / tasks.length), `bytes on disk / tasks${apart}`],
    ["The next task", size(data.next), `${size(data.least)} if it brings no new shared part`],
    ["Manifests and headers", size(headers), `${percent(headers, readable)} of the bytes on disk${apart}`],
  );
  const asBig = (bytes) => `${ratio(bytes, readable)} as big`;
  if (denseBytes === null) rows.push(["Runs as they were", asBig(data.runs), `${size(data.runs)} of tensors`]);
  else rows.push(["Dense models", asBig(denseBytes), `${size(denseBytes)}, the base not counted`]);
  const base = known(data.base, (bytes) => `the base, ${size(bytes)}, counted once`);
  const isKnown = denseBytes !== null && data.base !== null;
  if (isKnown) rows.push(["Smaller than dense models", fromTasks(data.even.dense), base]);
  else rows.push(["Smaller than the runs", fromTasks(data.even.runs), "of tasks like these"]);
  const each = known(lora(), (bytes) => `of rank ${data.rank}, ${size(bytes)} each`);
  if (lora() !== null) rows.push(["Smaller than LoRAs", fromTasks(data.even.lora), each]);
  return rows;
}

/** What cannot be compared, and what tells it; empty where all is known. */
function missing() {
  const lacking = tasks.filter((task) => task.dense === null).length;
  const some = lacking < tasks.length ? ` for ${count(lacking, "task")} of ${whole(tasks.length)}` : "";
  const unknown = [
    ...(denseBytes === null ? [`dense models: not known${some}`] : []),
    ...(data.base === null ? ["bytes of the base: not known"] : []),
    ...(lora() === null ? ["LoRAs: not known"] : []),
  ];
  const told = unknown.join("; ");
  return tasks.length && told ? `${told[0].toUpperCase()}${told.slice(1)}; give --base DIR.` : "";
}

function card([name, value, note]) {
  return make("div", {}, make("dt", {}, name), make("dd", {}, value), make("dd", {}, note));
}

function lora() {
  return data.amortized.length ? data.amortized[0][3] : null;
}

// ---- the tree of bytes: a node has a name, bytes, a colour and, where there is more to see, its children ----

// Tol's light scheme: told apart by the colour-blind, and black text is readable on each.
const COLOURS = ["#77aadd", "#ee8866", "#44bb99", "#eedd88", "#ffaabb", "#99ddff", "#bbcc33", "#aaaa00"];
const GREY = "#dddddd";
const RED = "#ffb3b3";

function packNode() {
  const children = [
    ...methodNodes(),
    { name: "shared parts", bytes: sum(shared, bytesOf), colour: GREY, noun: "part", children: sharedNodes },
    { name: "other files", bytes: data.other, colour: GREY },
    { name: "unreadable tasks", bytes: data.lost, colour: RED },
  ];
  return { name: data.pack, bytes: data.disk, colour: GREY, noun: "row", children: () => children };
}

function methodNodes() {
  const methods = new Map();
  for (const task of tasks) {
    if (!methods.has(task.method)) methods.set(task.method, []);
    methods.get(task.method).push(task);
  }
  const nodes = [...methods].map(([name, rows]) => ({ name, rows, bytes: sum(rows, (task) => task.total) }));
  return nodes.sort((a, b) => b.bytes - a.bytes).map(({ name, rows, bytes }, i) => {
    const colour = COLOURS[i % COLOURS.length];
    return { name, bytes, colour, noun: "task", children: () => rows.map((task) => taskNode(task, colour)) };
  });
}

function taskNode(task, colour) {
  const children = () => [
    ...sectionNodes(task, colour),
    { name: "kept files", bytes: task.files, colour: GREY },
    { name: "manifest and header", bytes: task.header, colour: GREY },
  ];
  return { name: task.name, bytes: task.total, colour, noun: "section", children };
}

function sectionNodes({ sections }, colour) {
  const nodes = [];
  for (let i = 0; i < sections.length; i += 2) {
    const name = data.texts[sections[i]];
    const paler = `color-mix(in srgb, ${colour} 45%, white)`;
    nodes.push({ name, bytes: sections[i + 1], colour: /^head(\.|$)/.test(name) ? paler : colour });
  }
  return nodes;
}

function sharedNodes() {
  return shared.map((part) => ({
    name: `${part.role} (${part.sha.slice(0, 12)}, ${count(part.users, "task")})`, bytes: part.bytes, colour: GREY,
  }));
}

// ---- the treemap: squarified (Bruls, Huizing, van Wijk 2000) ----

const LEAST_AREA = 24 * 24; // pixels: what a finger hits
const GROUP_AREA = 72 * 72;
const MOST_CELLS = 300;
const FEW_CELLS = 40; // so many are all shown, whatever their size

/** Lay nodes out in a box, in their order; each gets an area in proportion to its bytes, and at least LEAST_AREA. */
function squarify(nodes, box) {
  const floor = (LEAST_AREA * sum(nodes, bytesOf)) / (box.width * box.height);
  const weights = nodes.map((node) => Math.max(node.bytes, floor));
  const scale = (box.width * box.height) / weights.reduce((a, b) => a + b, 0);
  const cells = [];
  let { x, y, width, height } = box;
  for (let first = 0; first < nodes.length;) {
    const side = Math.max(Math.min(width, height), 1e-9);
    let last = first, area = 0, worst = Infinity;
    for (let least = Infinity, most = 0; last < nodes.length; last += 1) {
      const next = weights[last] * scale;
      least = Math.min(least, next);
      most = Math.max(most, next);
      const aspect = Math.max((side * side * most) / (area + next) ** 2, (area + next) ** 2 / (side * side * least));
      if (aspect > worst) break;
      [worst, area] = [aspect, area + next];
    }
    const depth = area / side;
    let along = 0;
    for (; first < last; first += 1) {
      const length = (weights[first] * scale) / depth;
      cells.push(width < height
        ? { node: nodes[first], x: x + along, y, width: length, height: depth }
        : { node: nodes[first], x, y: y + along, width: depth, height: length });
      along += length;
    }
    if (width < height) [y, height] = [y + depth, height - depth];
    else [x, width] = [x + depth, width - depth];
  }
  return cells;
}

/** The children of a node, biggest first; those too small to see in groups, which are nodes themselves. */
function visible(node, box) {
  const nodes = node.children().filter((child) => child.bytes > 0).sort((a, b) => b.bytes - a.bytes);
  if (nodes.length <= FEW_CELLS) return nodes;
  const scale = (box.width * box.height) / sum(nodes, bytesOf);
  const big = nodes.slice(0, MOST_CELLS).filter((child) => child.bytes * scale >= LEAST_AREA);
  const small = nodes.slice(big.length);
  if (small.length < 2) return nodes;
  const area = sum(small, bytesOf) * scale;
  const groups = Math.max(1, Math.min(Math.sqrt(small.length), area / GROUP_AREA));
  const each = Math.ceil(small.length / Math.floor(groups));
  const several = each < small.length;
  for (let i = 0; i < small.length; i += each) big.push(group(small.slice(i, i + each), node.noun, several));
  return big.sort((a, b) => b.bytes - a.bytes);
}

function group(nodes, noun, several) {
  const rest = count(nodes.length - 1, `more ${noun}`);
  const name = several && nodes.length > 1 ? `${nodes[0].name} and ${rest}` : count(nodes.length, `smaller ${noun}`);
  const [label, bytes] = [count(nodes.length, noun), sum(nodes, bytesOf)];
  return { name, label, bytes, colour: nodes[0].colour, noun, children: () => nodes };
}

function place(element, cell, box) {
  element.style.left = `${(100 * (cell.x - box.x)) / box.width}%`;
  element.style.top = `${(100 * (cell.y - box.y)) / box.height}%`;
  element.style.width = `${(100 * cell.width) / box.width}%`;
  element.style.height = `${(100 * cell.height) / box.height}%`;
}

const path = [packNode()];

function said(node) {
  const share = `${percent(node.bytes, path.at(-1).bytes)} of ${path.at(-1).name}`;
  return path.length === 1 ? `${node.name}: ${size(node.bytes)}, ${share}`
    : `${node.name}: ${size(node.bytes)}, ${share}, ${percent(node.bytes, data.disk)} of the pack`;
}

/** Draw what is inside the last node of the path; `focus` is the number of the cell to be focused, if one is to be. */
function drawMap(focus = null) {
  const map = $("map");
  const box = { x: 0, y: 0, width: map.clientWidth, height: map.clientHeight };
  if (!box.width) return;
  map.replaceChildren(...squarify(visible(path.at(-1), box), box).map((cell, at) => cellButton(cell, at, box)));
  const current = map.children[focus ?? 0] ?? map.children[0];
  if (current) current.tabIndex = 0;
  $("cell").textContent = "Point at a cell to read it.";
  if (focus !== null) current?.focus();
  drawTrail();
}

function cellButton(cell, at, box) {
  const { node } = cell;
  const text = said(node);
  const button = make("button", { type: "button", class: "cell", tabindex: -1, title: text, "aria-label": text });
  [button.dataset.name, button.dataset.bytes] = [node.name, node.bytes];
  button.style.background = node.colour;
  place(button, cell, box);
  if (cell.width >= 44 && cell.height >= 22) button.append(make("span", {}, node.label ?? node.name));
  const share = cell.width >= 120 ? `, ${percent(node.bytes, path.at(-1).bytes)}` : "";
  if (cell.width >= 60 && cell.height >= 42) button.append(make("span", {}, size(node.bytes) + share));
  if (node.children) button.append(...tiles(cell));
  else button.setAttribute("aria-disabled", "true");
  button.addEventListener("click", () => node.children && go([...path, { ...node, at }], 0));
  const tell = () => { $("cell").textContent = text; };
  for (const event of ["focus", "pointerenter"]) button.addEventListener(event, tell);
  return button;
}

/** What one will see inside a cell, where it is large enough to show it. */
function tiles(cell) {
  const inner = { x: cell.x + 4, y: cell.y + 42, width: cell.width - 10, height: cell.height - 48 };
  if (inner.width < 60 || inner.height < 40) return [];
  const nodes = visible(cell.node, inner);
  if (nodes.length < 2) return [];
  return squarify(nodes, inner).map((tile) => {
    const text = tile.width >= 52 && tile.height >= 20 ? tile.node.label ?? tile.node.name : "";
    const element = make("i", { class: "tile", "aria-hidden": "true" }, text);
    element.style.background = tile.node.colour;
    place(element, tile, { x: cell.x, y: cell.y, width: cell.width - 2, height: cell.height - 2 });
    return element;
  });
}

function drawTrail() {
  $("trail").replaceChildren(...path.map((node, depth) => {
    const text = `${node.name}, ${size(node.bytes)}`;
    if (depth === path.length - 1) return make("span", { "aria-current": "location" }, text);
    const button = make("button", { type: "button" }, text);
    button.addEventListener("click", () => go(path.slice(0, depth + 1), path[depth + 1].at));
    return button;
  }));
}

function go(nodes, focus) {
  path.splice(0, path.length, ...nodes);
  drawMap(focus);
}

function onMapKey(event) {
  const cells = [...$("map").children];
  const at = cells.indexOf(document.activeElement);
  const [next, last] = [at + 1, cells.length - 1];
  const steps = { ArrowRight: next, ArrowDown: next, ArrowLeft: at - 1, ArrowUp: at - 1, Home: 0, End: last };
  if (event.altKey || event.ctrlKey || event.metaKey) return;
  if (event.key in steps) {
    const chosen = cells[Math.min(Math.max(steps[event.key], 0), last)];
    for (const cell of cells) cell.tabIndex = cell === chosen ? 0 : -1;
    chosen?.focus();
  } else if (["Escape", "Backspace"].includes(event.key)) {
    if (path.length > 1) go(path.slice(0, -1), path.at(-1).at);
  } else return;
  event.preventDefault();
}

// ---- tables: sorted by a click on a column's head; rows come in portions ----

const FIRST_ROWS = 200;

function compare(a, b) {
  return a < b ? -1 : a > b ? 1 : 0;
}

/**
 * Sort rows by a column, within the groups of values that can be compared; what is not known comes last both ways, and
 * equals stay in the order they came in.
 */
function sorted(rows, { value, group = () => "" }, down) {
  const keyed = rows.map((row) => [value(row), group(row), row]);
  keyed.sort(([a, first], [b, second]) => {
    if (a === null || b === null) return (a === null) - (b === null);
    return compare(first, second) || compare(a, b) * (down ? -1 : 1);
  });
  return keyed.map(([, , row]) => row);
}

/**
 * Add a table to a section, and return what shows some of its rows only. A column has a name and a value, and may have
 * a text, a sum of rows, and a group: values of different groups are not compared. Rows with a noun are counted.
 */
function addTable(section, columns, rows, { noun, by = 0, down = false }) {
  const state = { rows, by, down, most: FIRST_ROWS };
  const heads = columns.map((column, i) => headCell(column, () => {
    state.down = state.by === i ? !state.down : Boolean(column.number);
    state.by = i;
    draw();
  }));
  const [body, foot] = [make("tbody"), make("tfoot")];
  const more = make("button", { type: "button", class: "more" });
  const status = make("p", { class: "note", role: "status" });
  const named = { "aria-labelledby": `${section.id}-title` };
  const table = make("table", named, make("thead", {}, make("tr", {}, ...heads)), body, foot);
  const box = make("div", { class: "box", tabindex: 0, role: "region", ...named }, table);
  section.append(...(noun ? [status] : []), box, more);
  more.addEventListener("click", () => {
    state.most += FIRST_ROWS;
    draw();
  });

  function draw() {
    heads.forEach((head, i) => {
      head.setAttribute("aria-sort", i !== state.by ? "none" : state.down ? "descending" : "ascending");
    });
    const shown = sorted(state.rows, columns[state.by], state.down).slice(0, state.most);
    const line = (cell) => make("tr", {}, ...columns.map(cell));
    body.replaceChildren(...shown.map((row) => line((column, i) => bodyCell(column, row, i))));
    const sums = columns.some((column) => column.sum) && state.rows.length;
    foot.replaceChildren(...(sums ? [line((column, i) => footCell(column, state.rows, i, noun))] : []));
    more.hidden = shown.length === state.rows.length;
    more.textContent = `Show ${whole(Math.min(FIRST_ROWS, state.rows.length - shown.length))} more`;
    const part = state.rows.length < rows.length ? ` of ${whole(rows.length)}` : "";
    const first = more.hidden ? "" : `, the first ${whole(shown.length)} shown`;
    if (noun) status.textContent = count(state.rows.length, noun) + part + first;
  }

  draw();
  return (kept) => {
    [state.rows, state.most] = [kept, FIRST_ROWS];
    box.scrollTop = 0;
    draw();
  };
}

const kind = (column) => (column.number ? "number" : column.kind ?? "words");

function headCell(column, onSort) {
  const button = make("button", { type: "button" }, column.name);
  if (column.about) button.title = column.about;
  button.addEventListener("click", onSort);
  return make("th", { scope: "col", class: kind(column) }, button);
}

function bodyCell(column, row, i) {
  const value = column.value(row);
  const text = column.text ? column.text(row) : known(value, column.number === "bytes" ? size : String);
  const cell = make(i ? "td" : "th", { class: kind(column), ...(i ? {} : { scope: "row" }) }, text);
  if (column.number === "bytes" && value !== null) cell.title = `${whole(value)} bytes`;
  return cell;
}

function footCell(column, rows, i, noun) {
  if (!i) return make("th", { scope: "row", class: kind(column) }, count(rows.length, noun));
  return make("td", { class: kind(column) }, column.sum ? column.sum(rows) : "");
}

function bytesColumn(name, value, about) {
  return { name, about, value, number: "bytes", sum: (rows) => known(knownSum(rows, value), size) };
}

// ---- the tables of this page ----

const TASK_COLUMNS = [
  { name: "Task", value: (task) => task.name },
  { name: "Method", value: (task) => task.method },
  { name: "Codec", value: (task) => task.codec, kind: "word" },
  { name: "Exact, or error", about: "the largest absolute error that the encoder states", kind: "word",
    value: (task) => (task.exact ? -1 : task.error), text: exactness },
  bytesColumn("Takes", (task) => task.takes, "total and share"),
  bytesColumn("Payload", (task) => task.payload, "bytes of what the method trained"),
  bytesColumn("Head", (task) => task.head, "bytes of the task's head"),
  bytesColumn("Files", (task) => task.files, "kept files and parts that no other task has"),
  bytesColumn("Header", (task) => task.header, "manifest and header of the task's file"),
  bytesColumn("Total", (task) => task.total, "payload, head, files and header"),
  bytesColumn("Share", (task) => task.share, "the task's share of the parts that others use, too"),
  bytesColumn("Dense", (task) => task.dense, "bytes of a whole dense model of this task"),
  { name: "Ratio", about: "dense / takes", number: "times",
    value: (task) => (task.dense === null ? null : task.dense / task.takes),
    text: (task) => ratio(task.dense, task.takes),
    sum: (rows) => ratio(knownSum(rows, (task) => task.dense), sum(rows, (task) => task.takes)) },
  { name: "Score", about: "what the run states of itself; sorted within each metric", number: "score",
    value: (task) => task.score, group: (task) => task.metric,
    text: (task) => known(task.score, (score) => `${Number(score.toPrecision(4))} ${task.metric}`) },
];

function exactness(task) {
  if (task.exact) return "exact";
  return task.error === null ? "inexact" : `within ${task.error.toPrecision(2)}`;
}

function showTasks() {
  const columns = TASK_COLUMNS.filter((column) => column.name !== "Score" || tasks.some((task) => task.score !== null));
  const show = addTable($("tasks"), columns, tasks, { noun: "task", by: 4, down: true });
  const metrics = new Set(tasks.filter((task) => task.score !== null).map((task) => task.metric)).size;
  const apart = `Scores are of ${count(metrics, "metric")}: only those of the same metric compare, and sort.`;
  if (metrics > 1) $("tasks").append(make("p", { id: "metrics" }, apart));
  const methods = [...new Set(tasks.map((task) => task.method))].sort(compare);
  $("method").append(...methods.map((name) => make("option", { value: `=${name}` }, name)));
  const sizes = [0, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9].filter((bytes) => tasks.some((task) => task.takes >= bytes));
  $("least").append(...sizes.map((bytes) => make("option", { value: bytes }, bytes ? size(bytes) : "any size")));
  const texts = new Map(tasks.map((task) => [task, `${task.name}\n${task.method}\n${task.codec}`.toLowerCase()]));
  const filter = () => {
    const [find, method, least] = [$("find").value.trim().toLowerCase(), $("method").value, Number($("least").value)];
    const isMethod = (task) => !method || method === `=${task.method}`;
    show(tasks.filter((task) => texts.get(task).includes(find) && isMethod(task) && task.takes >= least));
  };
  $("filter").addEventListener("input", filter);
  $("filter").addEventListener("submit", (event) => event.preventDefault());
}

function showShared() {
  addTable($("shared"), [
    { name: "SHA-256", kind: "sha", value: (part) => part.sha, text: (part) => part.sha.slice(0, 12) },
    { name: "What it is", value: (part) => part.role },
    bytesColumn("Size", (part) => part.bytes),
    { name: "Tasks", number: "count", value: (part) => part.users, text: (part) => whole(part.users) },
  ], shared, { noun: "part", by: 2, down: true });
}

function showDamaged() {
  addTable($("damaged"), [
    { name: "Task", value: ([name]) => name },
    { name: "Why", kind: "words reason", value: ([, why]) => why },
  ], data.damaged, { noun: "unreadable task" });
}

const tasksColumn = { name: "Tasks", number: "count", value: ([number]) => number, text: ([number]) => whole(number) };

function showAmortized() {
  addTable($("growth"), [
    tasksColumn,
    ...LINES.map(({ name, value }) => ({ name, number: "bytes", value })),
    { name: "Run as it was", number: "bytes", value: (row) => row[2] },
  ], data.amortized, {});
}

function money(value) {
  if (value > 0 && value < 0.01) return "<0.01";
  return value.toLocaleString("en-US", { minimumFractionDigits: 2, maximumFractionDigits: 2 });
}

function showForecast() {
  const { rows, error, price, egress, daily } = data.forecast;
  const columns = [tasksColumn];
  const when = (days) => (!days ? "now" : days < 1 ? "<1 day" : count(Math.ceil(days), "day"));
  const reached = { name: "Reached in", number: "days", value: (row) => row[1], text: (row) => known(row[1], when) };
  if (daily !== null) columns.push(reached);
  [["This pack", 2], ["LoRAs", 3], ["Dense", 4]].forEach(([name, at]) => {
    const column = (label, i, number, write) => {
      const value = (row) => row[at] && row[at][i];
      columns.push({ name: `${name}, ${label}`, number, value, text: (row) => known(value(row), write) });
    };
    column("size", 0, "bytes", size);
    if (price !== null) column("cost per month", 1, "money", money);
    if (egress !== null) column("cost to send", 2, "money", money);
  });
  const notes = ["Predicted for more tasks of the same mix; the base is not counted."];
  notes.push(error === null ? "How far off that may be is unknown: one task does not show how much tasks differ."
    : `The pack's sizes may be off by ${fixed(100 * error, 1)} % (with a confidence of 95 %).`);
  if (price !== null) notes.push(`A GB costs ${price} a month.`);
  if (egress !== null) notes.push(`A GB sent costs ${egress}; each task is sent once.`);
  if (price !== null || egress !== null) notes.push("Costs are in the currency of the price that was given.");
  if (daily !== null) notes.push(`${daily} tasks are added per day.`);
  $("forecast-note").textContent = glued(notes.join(" "));
  addTable($("forecast"), columns, rows, {});
}

// ---- the chart: bytes per task against tasks, both logarithmic ----

const LINES = [
  { name: "This pack", kind: "pack", value: (row) => row[1] },
  { name: "Pack and base", kind: "both", value: (row) => (data.base === null ? null : row[1] + data.base / row[0]) },
  { name: `LoRA, rank ${data.rank}`, kind: "lora", value: (row) => row[3] },
  { name: "Dense model", kind: "dense", value: (row) => row[4] },
].filter(({ value }) => data.amortized.every((row) => value(row) > 0));

function drawChart() {
  const width = $("chart").clientWidth;
  if (!width || !LINES.length) return;
  const box = { left: 64, top: 44, right: width - 108, bottom: 320 };
  const values = LINES.flatMap(({ value }) => data.amortized.map(value)).map(Math.log10);
  const [low, high] = [Math.floor(Math.min(...values)), Math.ceil(Math.max(...values) + 1e-9)];
  const most = Math.log10(data.amortized.at(-1)[0]);
  const x = (number) => box.left + (Math.log10(number) / most) * (box.right - box.left);
  const y = (bytes) => box.bottom - ((Math.log10(bytes) - low) / (high - low)) * (box.bottom - box.top);
  const ends = apart(LINES.map(({ value }) => y(value(data.amortized.at(-1)))));
  const image = { role: "img", "aria-labelledby": "growth-title", "aria-describedby": "even" };
  $("chart").replaceChildren(make("svg", { viewBox: `0 0 ${width} 368`, height: 368, ...image },
    ...axes(box, x, y, low, high, most),
    ...marks(box, x, most),
    ...LINES.flatMap((line, i) => lineOf(line, x, y, ends[i], box)),
  ));
}

function axes(box, x, y, low, high, most) {
  const powers = (from, to, step = 1) => {
    return Array.from({ length: Math.floor((to - from) / step) + 1 }, (_, i) => 10 ** (from + i * step));
  };
  const step = Math.ceil((48 * most) / (box.right - box.left)); // decades between two numbers that have room
  const middle = (box.left + box.right) / 2;
  return [
    ...powers(low, high).flatMap((bytes) => [
      make("line", { class: "grid", x1: box.left, x2: box.right, y1: y(bytes), y2: y(bytes) }),
      make("text", { x: box.left - 8, y: y(bytes) + 4, "text-anchor": "end" }, size(bytes)),
    ]),
    ...powers(0, Math.floor(most), step).flatMap((number) => [
      make("line", { class: "grid", x1: x(number), x2: x(number), y1: box.top, y2: box.bottom }),
      make("text", { x: x(number), y: box.bottom + 18, "text-anchor": "middle" }, whole(number)),
    ]),
    make("text", { x: middle, y: box.bottom + 40, "text-anchor": "middle" }, "tasks"),
  ];
}

/** Dotted lines where the pack begins to pay. */
function marks(box, x, most) {
  const found = [["dense", data.base === null ? null : data.even.dense], ["LoRA", data.even.lora]];
  const drawn = found.filter(([, number]) => number !== null && Math.log10(number) <= most).map(([name, number], i) => {
    const [left, top] = [x(number), box.top - 16 * i];
    const side = left < (box.left + box.right) / 2 ? { x: left + 4 } : { x: left - 4, "text-anchor": "end" };
    return [
      make("line", { class: "mark", x1: left, x2: left, y1: top - 14, y2: box.bottom }),
      make("text", { class: "over", ...side, y: top - 6 }, `under ${name} from ${count(number, "task")}`),
    ];
  });
  return [...drawn.map(([line]) => line), ...drawn.map(([, text]) => text)];
}

function lineOf({ name, kind: style, value }, x, y, end, box) {
  const points = data.amortized.map((row) => [x(row[0]), y(value(row)), row]);
  return [
    make("path", { class: style, d: `M${points.map(([left, top]) => `${left} ${top}`).join("L")}` }),
    ...points.map(([cx, cy, row]) => make("circle", { class: style, cx, cy, r: 3.5 },
      make("title", {}, `${name}: ${size(value(row))} a task at ${count(row[0], "task")}`))),
    make("text", { class: `name ${style}`, x: box.right + 9, y: end + 4 }, name),
  ];
}

/** Move heights apart, so that a line of text fits to each. */
function apart(heights) {
  const order = heights.map((height, i) => [height, i]).sort(([a], [b]) => a - b);
  order.forEach((entry, i) => { if (i) entry[0] = Math.max(entry[0], order[i - 1][0] + 16); });
  const moved = [];
  for (const [height, i] of order) moved[i] = height;
  return moved;
}

function even() {
  const against = (name, number) => {
    return number === null ? `never less than ${name}` : `less than ${name} from ${count(number, "task")} on`;
  };
  const all = [];
  const dense = "dense models, the base counted once beside the pack,";
  if (denseBytes !== null && data.base !== null) all.push(against(dense, data.even.dense));
  if (lora() !== null) all.push(against(`one LoRA of rank ${data.rank} a task`, data.even.lora));
  all.push(against("the runs as they were", data.even.runs));
  return `A pack like this one takes ${all.join("; ")}.`;
}

// ---- light and dark ----

const night = matchMedia("(prefers-color-scheme: dark)");

function isDark() {
  const asked = document.documentElement.dataset.theme;
  return asked ? asked === "dark" : night.matches;
}

function showTheme() {
  $("theme").setAttribute("aria-pressed", String(isDark()));
}

// ---- the page ----

function show() {
  $("pack").textContent = data.pack;
  $("version").textContent = data.version;
  $("conclusion").textContent = glued(conclusion());
  $("missing").textContent = missing();
  $("missing").hidden = !missing();
  $("figures").append(...figures().map(card));
  for (const [id, draw, wanted] of [
    ["tasks", showTasks, tasks.length],
    ["growth", () => { $("even").textContent = glued(even()); showAmortized(); }, data.amortized.length],
    ["forecast", showForecast, data.forecast],
    ["shared", showShared, shared.length],
    ["damaged", showDamaged, data.damaged.length],
  ]) {
    if (wanted) draw();
    else $(id).hidden = true;
  }
  $("map").addEventListener("keydown", onMapKey);
  $("theme").addEventListener("click", () => {
    document.documentElement.dataset.theme = isDark() ? "light" : "dark";
    showTheme();
  });
  night.addEventListener("change", showTheme);
  showTheme();
  onWidth($("map"), () => {
    const at = [...$("map").children].indexOf(document.activeElement);
    drawMap(at < 0 ? null : at);
  });
  onWidth($("chart"), drawChart);
}

/** Draw now, and again whenever the width of an element changes. */
function onWidth(element, draw) {
  let width = null;
  new ResizeObserver(() => {
    if (element.clientWidth === width) return;
    width = element.clientWidth;
    draw();
  }).observe(element);
}

show();
