"use strict";
// The program of the page: draws everything about the token that is chosen.
// All numbers come from the JSON in the page; nothing is computed but sums and shares.

const data = JSON.parse(document.getElementById("data").textContent);
const by = (id) => document.getElementById(id);
const name = (token) => data.names[token];
// In a sentence a comma would be lost without marks around it.
const quoted = (token) => `“${name(token)}”`;
const now = { step: 0, layer: 0, head: 0, row: 0, column: 0 };

// ---- small things ------------------------------------------------------------

// An element with attributes and children; a child that is text stays text.
function make(kind, attributes = {}, ...children) {
  const made = document.createElement(kind);
  for (const [key, value] of Object.entries(attributes)) {
    if (key === "class") made.className = value;
    else if (key === "p") made.style.setProperty("--p", value);
    else made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
}

// "23.4%", and "0.0012%" where that would be 0.
function percent(p) {
  if (p === 0 || p === 1) return p ? "100%" : "0";
  if (p < 5e-7) return "<0.0001%";
  if (p >= 0.999995) return ">99.999%";
  const digits = p >= 0.9995 && p < 1 ? 3 : p >= 0.001 ? 1 : 4;
  return (100 * p).toFixed(digits) + "%";
}

// The same with three digits, where two numbers are compared.
const fine = (p) => (p > 0.999 || p < 1e-6 ? percent(p) : (100 * p).toPrecision(3) + "%");

function short(count) {
  for (const [size, word] of [[1e9, "G"], [1e6, "M"], [1e3, "k"]]) {
    if (count >= size) return (count / size).toPrecision(3) + " " + word; // 4.37 M
  }
  return String(count) + " ";
}

// A token, as a link to the server that goes on from it, if there is one.
function tokenCell(step, token, marks = "") {
  const shown = make("span", { class: "token" }, name(token));
  const cell = make("th", { scope: "row" }, marks);
  if (data.bytes.includes(token)) shown.append(make("small", { class: "soft" }, " byte"));
  // What a format or a ban has removed cannot come; what truncation has, could.
  const click = step.stages.findIndex((stage) => stage.name === CLICKED && !stage.same);
  const free = step.stages.slice(0, click < 0 ? undefined : click);
  const able = free.filter((stage) => !data.shape.includes(stage.name)).pop();
  const address = able.probs[step.tokens.indexOf(token)] > 0 ? onward(token) : null;
  cell.append(address ? make("a", { href: address, title: "go on from here" }, shown) : shown);
  return cell;
}

function onward(token) {
  if (data.server === null) return null;
  const first = [...data.tokens.slice(data.begin, data.begin + now.step), token];
  const asked = { prompt: data.prompt, first, seed: data.seed, options: data.options };
  return data.server + "/explain?asked=" + encodeURIComponent(JSON.stringify(asked));
}

function table(head, rows, foot = []) {
  const made = make("table", {}, make("thead", {}, make("tr", {}, ...head)));
  made.append(make("tbody", {}, ...rows));
  if (foot.length) made.append(make("tfoot", {}, ...foot));
  return make("div", { class: "scroll", tabindex: "0" }, made);
}

const head = (words, small = "") =>
  make("th", { scope: "col" }, words, make("small", {}, small));

// ---- the candidates ------------------------------------------------------------

const CLICKED = "prefix_allowed_tokens_fn"; // how a click is obeyed

// What a step of the pipeline is called, and its value.
function stageHead(stage) {
  if (stage.name === "") return head("model", "its own odds");
  const value = data.options[stage.name];
  const written = value === undefined ? "" : JSON.stringify(value);
  // Long names may break after an underscore.
  const words = stage.name.split("_").map((word, i) => (i ? "_\u200b" : "") + word).join("");
  if (stage.name === CLICKED) return head("clicked", "a token was chosen by hand");
  const cell = head(words, written.length > 12 ? "" : written);
  cell.title = data.says[stage.name];
  return cell;
}

function drawStages(step) {
  const stages = step.stages.filter((stage, i) => i === 0 || !stage.same);
  const idle = step.stages.slice(1).filter((stage) => stage.same && stage.name !== CLICKED);
  const rows = step.tokens.map((token, i) => {
    const came = token === step.token;
    const marks = came ? "▶ " : token === step.guess ? "guess " : "";
    const row = make("tr", came ? { class: "came" } : {}, tokenCell(step, token, marks));
    stages.forEach((stage, n) => {
      const p = stage.probs[i];
      const before = n ? stages[n - 1].probs[i] : 1;
      if (p > 0) row.append(make("td", { class: "bar", p: 100 * p + "%" }, percent(p)));
      else if (before > 0) row.append(make("td", { class: "cut" }, "cut"));
      else row.append(make("td", { class: "gone" }, "–"));
    });
    return row;
  });
  const count = make("tr", {}, make("th", { scope: "row" }, "tokens left"),
    ...stages.map((stage) => make("td", {}, stage.left.toLocaleString("en"))));
  const like = make("tr", {}, make("th", { scope: "row" }, "as open as among"),
    ...stages.map((stage) => make("td", {}, stage.like.toFixed(1))));
  by("stages").replaceChildren(table([head("token"), ...stages.map(stageHead)], rows, [count, like]));
  for (const stage of stages.slice(1)) by("stages").append(effect(step, stage, stages));
  if (idle.length) {
    const names = idle.map((stage) => stage.name).join(", ");
    by("stages").append(make("p", { class: "note soft" }, "Without effect here: " + names + "."));
  }
}

// One sentence on what a step did.
function effect(step, stage, stages) {
  const n = stages.indexOf(stage), old = stages[n - 1];
  const gone = old.left - stage.left;
  const moved = (i) => (stage.probs[i] > 0 ? Math.abs(stage.probs[i] - old.probs[i]) : 0);
  const most = step.tokens.map((_, i) => i).reduce((a, b) => (moved(b) > moved(a) ? b : a));
  const verb = gone > 0
    ? `removed ${gone.toLocaleString("en")} of ${old.left.toLocaleString("en")} tokens, which had ${percent(1 - stage.kept)} together`
    : `changed the odds, most those of ${quoted(step.tokens[most])}: ${fine(old.probs[most])} to ${fine(stage.probs[most])}`;
  return make("p", { class: "note" }, make("b", {}, stage.name), ` (${data.says[stage.name]}) ${verb}.`);
}

// ---- the draw --------------------------------------------------------------------

function drawLine(step) {
  const place = by("line");
  place.replaceChildren();
  const told = (words) => place.append(make("p", { class: "note" }, words));
  if (step.q !== null) drawTest(step, told, place);
  if (step.line === null) {
    if (step.u.length === 0) told(data.levels.length ? "A search compares this token with those of all other beams: see the tree."
      : "Nothing was drawn: the likeliest token that is left was taken.");
    return;
  }
  const u = step.u[step.u.length - 1], i = step.tokens.indexOf(step.token);
  const low = step.line.low[i], high = low + step.line.wide[i];
  const whose = step.line.rest ? " of what the model has more of than the draft" : "";
  told(`The number u = ${u.toFixed(6)} was drawn. Laid end to end by their numbers, the probabilities${whose}`
    + ` fill the line from 0 to 1; u falls on ${quoted(step.token)}, from ${low.toFixed(6)} to ${high.toFixed(6)}.`);
  const pieces = step.tokens.map((token, j) => [step.line.low[j], step.line.wide[j], name(token), j === i]);
  place.append(line(pieces, u));
}

// A draft's guess x is kept if u < p(x) / q(x).
function drawTest(step, told, place) {
  const limit = Math.min(1, step.p / step.q), u = step.u[0];
  const verdict = u * step.q < step.p ? "kept" : "thrown away";
  told(`The draft guessed ${quoted(step.guess)} with q = ${percent(step.q)}; the model gives it p = ${percent(step.p)}.`
    + ` It is kept if u = ${u.toFixed(6)} lies below p / q = ${(step.p / step.q).toFixed(6)}: it is ${verdict}.`);
  place.append(line([[0, limit, "keep", verdict === "kept"],
    [limit, 1 - limit, "throw away", verdict !== "kept"]], u));
}

function line(pieces, u) {
  const made = make("div", { class: "line", role: "img", "aria-label": `a line from 0 to 1 with u at ${u}` });
  for (const [low, wide, words, came] of pieces) {
    if (wide <= 0) continue;
    const piece = make("span", { title: `${words}: ${low.toFixed(4)} to ${(low + wide).toFixed(4)}` }, wide > 0.03 ? words : "");
    piece.style.left = 100 * low + "%";
    piece.style.width = 100 * wide + "%";
    if (came) piece.className = "came";
    made.append(piece);
  }
  const mark = make("i", { "data-u": "▼ u = " + u.toFixed(4), class: u > 0.6 ? "left" : "" });
  mark.style.left = 100 * u + "%";
  const end = make("b", {}, "1");
  end.style.right = "0";
  made.append(mark, make("b", {}, "0"), end);
  return made;
}

// ---- the layers --------------------------------------------------------------------

function drawLayers(step) {
  const rows = step.said.map((said, layer) => {
    const right = said.rank === 0;
    const row = make("tr", right ? { class: "came" } : {},
      make("th", { scope: "row" }, layer === 0 ? "embedding" : "layer " + (layer - 1)));
    const rank = right ? "first ✓" : (said.rank + 1).toLocaleString("en") + ".";
    row.append(make("td", {}, rank), make("td", { class: "bar", p: 100 * said.prob + "%" }, percent(said.prob)));
    for (const [token, p] of said.top) {
      row.append(make("td", {}, make("span", { class: "token" }, name(token)), " " + percent(p)));
    }
    return row;
  });
  const title = "of " + quoted(step.token);
  by("layers").replaceChildren(table([head("after"), head("rank", title), head("odds", title),
    head("1."), head("2."), head("3.")], rows));
}

// ---- attention ---------------------------------------------------------------------

const seen = data.seen && Uint8Array.from(atob(data.seen.weights), (c) => c.charCodeAt(0));
const N = data.tokens.length - 1; // positions that the model has run
const before = (i) => (i * (i + 1)) / 2; // weights of all rows before row i

// The weight, in 1/255, with which position i sees position j; null if it is not kept.
function weight(layer, h, i, j) {
  const first = data.seen.first;
  if (i < first || j > i) return null;
  const size = before(N) - before(first);
  return seen[(layer * data.model.H + h) * size + before(i) - before(first) + j];
}

function ink() {
  const probe = make("span");
  probe.style.color = "var(--link)";
  document.body.append(probe);
  const found = getComputedStyle(probe).color.match(/\d+/g).slice(0, 3).map(Number);
  probe.remove();
  return found;
}

// A head as a picture of N by N points; of several weights in a point, the largest counts.
function paint(canvas, layer, h, most = N) {
  const n = Math.min(N, most);
  canvas.width = canvas.height = n;
  const context = canvas.getContext("2d"), image = context.createImageData(n, n);
  const [red, green, blue] = ink();
  for (let i = data.seen.first; i < N; i++) {
    const row = Math.floor((i * n) / N) * n;
    for (let j = 0; j <= i; j++) {
      const at = 4 * (row + Math.floor((j * n) / N));
      // Small weights are lifted, or they could not be told from nothing.
      const strength = 255 * Math.sqrt(weight(layer, h, i, j) / 255);
      image.data.set([red, green, blue, Math.max(strength, image.data[at + 3])], at);
    }
  }
  context.putImageData(image, 0, 0);
}

const SMALL = 60; // points along the edge of a small picture

function makeHeads() {
  const { L, H } = data.model;
  by("heads").style.setProperty("--H", H);
  for (let layer = 0; layer < L; layer++) {
    by("layer").append(make("option", { value: layer }, String(layer)));
    for (let h = 0; h < H; h++) {
      const small = make("canvas");
      const button = make("button", { type: "button", "data-layer": layer, "data-head": h,
        "aria-label": `layer ${layer}, head ${h}`, title: `layer ${layer}, head ${h}`, "aria-pressed": "false" }, small);
      paint(small, layer, h, SMALL);
      button.addEventListener("click", () => pickHead(layer, h));
      by("heads").append(button);
    }
  }
  for (let h = 0; h < H; h++) by("head").append(make("option", { value: h }, String(h)));
}

function pickHead(layer, h) {
  now.layer = layer;
  now.head = h;
  by("layer").value = layer;
  by("head").value = h;
  for (const button of by("heads").children) {
    const here = button.dataset.layer == layer && button.dataset.head == h;
    button.setAttribute("aria-pressed", here);
    button.tabIndex = here ? 0 : -1; // one stop of the tab key for all of them
    if (here) by("heads").scrollTop = button.offsetTop - by("heads").offsetTop - 60;
  }
  paint(by("matrix"), layer, h);
  pickSquare(now.row, now.column);
}

function pickSquare(row, column) {
  now.row = Math.max(data.seen.first, Math.min(N - 1, row));
  now.column = Math.max(0, Math.min(now.row, column));
  const spot = by("spot"), size = 100 / N;
  spot.hidden = false;
  Object.assign(spot.style, { left: now.column * size + "%", top: now.row * size + "%",
    width: size + "%", height: size + "%" });
  const w = weight(now.layer, now.head, now.row, now.column);
  const place = (i) => `${quoted(data.tokens[i])} (${i})`;
  by("weight").textContent = `Layer ${now.layer}, head ${now.head}: ${place(now.row)} looks at `
    + `${place(now.column)} with ${(w / data.seen.of).toFixed(3)}.`;
  drawMost();
}

// Where the looking position looks most.
function drawMost() {
  const row = [];
  for (let j = 0; j <= now.row; j++) row.push([weight(now.layer, now.head, now.row, j) / data.seen.of, j]);
  row.sort((a, b) => b[0] - a[0] || a[1] - b[1]);
  const rows = row.slice(0, 5).map(([w, j]) => make("tr", {},
    make("th", { scope: "row" }, make("span", { class: "token" }, name(data.tokens[j])), ` (${j})`),
    make("td", { class: "bar", p: 100 * w + "%" }, w.toFixed(3))));
  by("most").replaceChildren(table([head(`${quoted(data.tokens[now.row])} (${now.row}) looks at`), head("weight")], rows));
}

function squareAt(event) {
  const box = by("matrix").getBoundingClientRect();
  const part = (at, low, size) => Math.floor((N * (at - low)) / size);
  pickSquare(part(event.clientY, box.top, box.height), part(event.clientX, box.left, box.width));
}

// ---- the cost ----------------------------------------------------------------------

const KINDS = { text: "the model", draft: "the draft", second: "a second opinion" };

function drawRuns(step) {
  const runs = step.runs.map((i) => data.runs[i]), parts = {};
  let flops = 0, bytes = 0;
  for (const run of runs) {
    flops += run.flops;
    bytes += run.bytes;
    for (const [part, [f, b]] of Object.entries(run.parts)) {
      const sum = parts[part] || (parts[part] = [0, 0]);
      sum[0] += f;
      sum[1] += b;
    }
  }
  const passes = runs.map((run) => `${KINDS[run.kind]} ran ${run.new} new position${run.new > 1 ? "s" : ""}`
    + `${run.rows > 1 ? ` of ${run.rows} texts` : ""} after ${run.start}`);
  const last = runs.filter((run) => run.kind === "text").pop();
  const held = last ? last.start + last.new : 0;
  const share = round() ? " All tokens of a round share its passes." : "";
  const said = make("p", { class: "note" },
    `${short(flops)}FLOPs, ${short(bytes)}B: ${grouped(passes)}.${share} The cache then holds ${held} positions`
    + `${last && last.rows > 1 ? ` of ${last.rows} texts` : ""}, ${short(held * (last ? last.rows : 1) * data.position)}B.`);
  const rows = Object.entries(parts).map(([part, [f, b]]) => make("tr", {},
    make("th", { scope: "row" }, part), make("td", { class: "bar", p: (100 * f) / flops + "%" }, f.toLocaleString("en")),
    make("td", {}, percent(f / flops)), make("td", {}, b.toLocaleString("en"))));
  by("runs").replaceChildren(said, table([head("product"), head("FLOPs"), head("share"), head("bytes")], rows));
}

// Equal words once, with their number.
function grouped(words) {
  if (words.length <= 3) return words.join("; ");
  return words.slice(0, 2).join("; ") + `; and ${words.length - 2} more passes`;
}

// ---- a search, a draft ---------------------------------------------------------------

function drawBeams() {
  const level = data.levels[now.step];
  if (!level) return;
  const fate = ([p, t]) => {
    const among = (list) => list.some(([q, one]) => q === p && one === t);
    return among(level.going) ? "goes on" : among(level.ended) ? "ended" : "dropped";
  };
  const rows = level.candidates.map((beam) => {
    const came = beam[0] === data.way[now.step] && beam[1] === data.steps[now.step].token;
    return make("tr", came ? { class: "came" } : {},
      make("th", { scope: "row" }, came ? "▶ " : "", make("span", { class: "token" }, name(beam[1]))),
      make("td", {}, String(beam[0])), make("td", {}, beam[2].toFixed(4)), make("td", {}, fate(beam)));
  });
  by("beams").replaceChildren(table([head("token"), head("after beam"), head("score"), head("fate")], rows));
  by("branches").scrollTo({ left: 120 * now.step - 120 });
}

const round = () => data.rounds.find((one) => now.step >= one.first && now.step < one.first + one.tokens);

function makeRounds() {
  data.rounds.forEach((one, number) => {
    const row = make("div", { class: "guesses" }, make("span", { class: "round" }, "round " + (number + 1)));
    const came = data.steps.slice(one.first, one.first + one.tokens).map((step) => step.token);
    let i = 0;
    while (i < one.guesses.length && one.guesses[i] === came[i]) i++;
    one.guesses.forEach((token, n) => {
      const kept = n < i;
      const shown = (kept ? "✓ " : "✕ ") + name(token);
      row.append(make("span", { class: kept ? "kept" : "lost", title: kept ? "kept" : "thrown away" }, shown));
    });
    came.slice(i).forEach((token) => row.append(make("span", { class: "own", title: "the model's own" }, "+ " + name(token))));
    by("guesses").append(row);
  });
}

// ---- going from token to token ---------------------------------------------------------

function show(number, focus = false) {
  now.step = Math.max(0, Math.min(data.steps.length - 1, number));
  const step = data.steps[now.step];
  for (const button of by("tokens").querySelectorAll("button")) {
    const here = Number(button.dataset.step) === now.step;
    button.setAttribute("aria-pressed", here);
    button.tabIndex = here ? 0 : -1;
    if (here && focus) button.focus();
  }
  by("where").textContent = `${now.step + 1} of ${data.steps.length}: ${quoted(step.token)}`;
  by("back").disabled = now.step === 0;
  by("on").disabled = now.step === data.steps.length - 1;
  drawStages(step);
  drawLine(step);
  drawLayers(step);
  drawRuns(step);
  if (data.levels.length) drawBeams();
  // The position before a token is the one that looked for it.
  if (seen) pickSquare(data.begin + now.step - 1, now.column);
  history.replaceState(null, "", "#token-" + (now.step + 1));
}

const ARROWS = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };

function listen() {
  by("back").addEventListener("click", () => show(now.step - 1));
  by("on").addEventListener("click", () => show(now.step + 1));
  by("tokens").addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (button) show(Number(button.dataset.step));
  });
  document.addEventListener("keydown", (event) => {
    const free = document.activeElement === document.body || by("tokens").contains(document.activeElement);
    const goal = { ArrowLeft: now.step - 1, ArrowRight: now.step + 1, Home: 0, End: data.steps.length - 1 }[event.key];
    if (!free || goal === undefined || event.ctrlKey || event.altKey || event.metaKey) return;
    event.preventDefault();
    show(goal, true);
  });
  if (!seen) return;
  by("matrix").addEventListener("pointermove", squareAt);
  by("matrix").addEventListener("pointerdown", squareAt);
  by("matrix").addEventListener("keydown", (event) => {
    const move = ARROWS[event.key];
    if (!move) return;
    event.preventDefault();
    pickSquare(now.row + move[0], now.column + move[1]);
  });
  by("heads").addEventListener("keydown", (event) => {
    const move = ARROWS[event.key];
    if (!move) return;
    event.preventDefault();
    const { L, H } = data.model, limit = (x, size) => Math.max(0, Math.min(size - 1, x));
    pickHead(limit(now.layer + move[0], L), limit(now.head + move[1], H));
    by("heads").querySelector('[aria-pressed="true"]').focus();
  });
  by("layer").addEventListener("change", (event) => pickHead(Number(event.target.value), now.head));
  by("head").addEventListener("change", (event) => pickHead(now.layer, Number(event.target.value)));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    for (const button of by("heads").children) {
      paint(button.firstChild, Number(button.dataset.layer), Number(button.dataset.head), SMALL);
    }
    pickHead(now.layer, now.head);
  });
}

if (seen) makeHeads();
makeRounds();
listen();
if (seen) {
  now.row = data.begin - 1;
  pickHead(data.model.L - 1, 0);
}
const asked = /^#token-(\d+)$/.exec(location.hash);
show(asked ? Number(asked[1]) - 1 : 0);
