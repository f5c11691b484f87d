"use strict";
// The ray explorer: what the page does with the numbers that tools/explore.py put into it.
// Four parts: the numbers, the two formulas that are computed here, the panels, what a reader does.
// Dimension key: R rays, S samples, V source views, L classes. An array is flat, row by row, as in PyTorch.

// ------------------------------------------------------------------------------------------ the numbers
const content = JSON.parse(document.getElementById("content").textContent);
const [H, W] = content.size, [rows, columns] = content.grid;
const arrays = {};                                   // name -> {values, shape}
for (const [name, packed] of Object.entries(content.arrays)) arrays[name] = unpack(packed);
const S = arrays.z.shape[1], V = content.sources.length, L = content.classes.names.length;
const OUTSIDE = 0, SEEN = 1, HIDDEN = 2, UNKNOWN = 3;
const IGNORE = 255;
const names = content.classes.names;
const metre = content.unit;

// Text in base 64 -> its bytes.
function bytes(text) {
  return Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0)).buffer;
}

// An array of tools/explore.py's `packed` -> its numbers.
function unpack({kind, shape, text, scale}) {
  const Type = {f4: Float32Array, u1: Uint8Array, u2: Uint16Array, share: Uint16Array, byte: Int8Array}[kind];
  let values = new Type(bytes(text));
  if (kind === "share") values = Float64Array.from(values, (x) => x / 65535);
  return {values, shape, scale: scale ? new Float32Array(bytes(scale)) : null};
}

// What an array has of one ray: a flat array, or a number if the array has one number a ray.
function of(name, ray) {
  const {values, shape, scale} = arrays[name];
  const length = shape.slice(1).reduce((a, b) => a * b, 1);
  const part = values.subarray(ray * length, (ray + 1) * length);
  if (scale) return Float64Array.from(part, (x) => x * scale[ray]);
  return shape.length === 1 ? part[0] : part;
}

// All of a ray but `differences`, which is long: {z, weights, ...}.
function everythingOf(ray) {
  const wanted = Object.keys(arrays).filter((name) => name !== "differences");
  return {ray, ...Object.fromEntries(wanted.map((name) => [name, of(name, ray)]))};
}

// Is view v valid at sample s: in front of the camera and inside its image (03_reprojection.py)?
function valid(ray, s, v) {
  return (of("mask", ray)[s] >> v & 1) === 1;
}

function range(n) {
  return [...Array(n).keys()];
}

function sum(list) {
  return list.reduce((a, b) => a + b, 0);
}

// ------------------------------------------------------------------------------------------ 01: cameras
// 01_data.rays: a pixel (u, v) of a camera -> origin (3), direction (3): origin + z * direction has depth z.
function rayOf([u, v], {K, c2w}) {
  const inCamera = [(u - K[0][2] - K[0][1] * (v - K[1][2]) / K[1][1]) / K[0][0], (v - K[1][2]) / K[1][1], 1];
  const direction = range(3).map((i) => sum(range(3).map((j) => c2w[i][j] * inCamera[j])));
  return [range(3).map((i) => c2w[i][3]), direction];
}

// 01_data.project: a point (3) into a camera -> its pixel u, v and its depth z.
function project(point, {K, c2w}) {
  const inCamera = range(3).map((i) => sum(range(3).map((j) => c2w[j][i] * (point[j] - c2w[j][3]))));
  const [x, y, z] = range(3).map((i) => sum(range(3).map((j) => K[i][j] * inCamera[j])));
  return [x / z, y / z, z];
}

// ------------------------------------------------------------------------------------------ 05: eq. 3
// 05_weighting.project_onto_C: scores (V), mask (V) -> w (V) in C(tau), 0 where invalid.
// w_i = clamp(score_i - shift, low, high), for the one shift at which the sum is 1. The sum falls as the
// shift grows, and bends only where a view meets a bound: find the two bends around 1, solve the line between.
function projectOntoC(scores, mask, tau) {
  const views = range(scores.length).filter((v) => mask[v]), m = views.length;
  if (m === 0) return scores.map(() => 0);
  const low = tau / m, high = 1 / (tau * m);
  const clamp = (x) => Math.min(Math.max(x, low), high);
  const total = (shift) => sum(views.map((v) => clamp(scores[v] - shift)));
  const bends = views.flatMap((v) => [scores[v] - low, scores[v] - high]);
  const left = Math.max(...bends.filter((bend) => total(bend) >= 1));
  const right = Math.min(...bends.filter((bend) => total(bend) < 1));      // Infinity: tau = 1, nothing falls
  const middle = right === Infinity ? left : (left + right) / 2;
  const bound = new Map();                                                 // the views that end on a bound
  for (const v of views) {
    if (scores[v] - middle >= high) bound.set(v, high);
    else if (scores[v] - middle <= low) bound.set(v, low);
  }
  const free = views.filter((v) => !bound.has(v));
  const shift = (sum(free.map((v) => scores[v])) - (1 - sum([...bound.values()]))) / Math.max(free.length, 1);
  const weight = (v) => bound.has(v) ? bound.get(v) : clamp(scores[v] - shift);
  return range(scores.length).map((v) => mask[v] ? weight(v) : 0);
}

// The view weights (V) of a ray's sample s at a tau.
function weightsAt(ray, s, tau) {
  const scores = Array.from(of("scores", ray).subarray(s * V, (s + 1) * V));
  return projectOntoC(scores, range(V).map((v) => valid(ray, s, v)), tau);
}

// The pixel's logits (L) at a tau: the model's, and what other view weights change (tools/explore.py).
// logits_l += sum_s W_s sum_v (w_sv(tau) - w_sv) D_svl
function logitsAt(ray, tau) {
  const logits = Array.from(of("logits", ray));
  if (Math.abs(tau - content.tau) < 1e-9) return logits;
  const D = of("differences", ray), rendering = of("weights", ray);
  for (let s = 0; s < S; s++) {
    const now = weightsAt(ray, s, tau), model = weightsAt(ray, s, content.tau);
    for (let v = 0; v < V; v++) {
      const change = rendering[s] * (now[v] - model[v]);
      for (let l = 0; l < L; l++) logits[l] += change * D[(s * V + v) * L + l];
    }
  }
  return logits;
}

function softmax(logits) {
  const largest = Math.max(...logits), powers = logits.map((x) => Math.exp(x - largest)), total = sum(powers);
  return powers.map((x) => x / total);
}

// ------------------------------------------------------------------------------------------ drawing
const BLUE = "#0072b2", ORANGE = "#d55e00", GREEN = "#007a4d", GREY = "#6b6b6b", PALE = "#ccc";
const BOLD = {"font-weight": 700}, MIDDLE = {"text-anchor": "middle"}, END = {"text-anchor": "end"};
const HALO = {"paint-order": "stroke", stroke: "#fff", "stroke-width": 7};         // white around a text

function element(id) {
  return document.getElementById(id);
}

// A colour of a map at x in [0, 1].
function colourAt(map, x) {
  const stops = content.maps[map], at = Math.min(Math.max(x, 0), 1) * (stops.length - 1);
  const i = Math.min(Math.floor(at), stops.length - 2);
  return rgb(stops[i].map((c, k) => c + (stops[i + 1][k] - c) * (at - i)));
}

function rgb(colour) {
  return `rgb(${Array.from(colour, (c) => Math.round(c)).join(",")})`;
}

function colourOf(label) {
  return rgb(content.classes.colours[label]);
}

function escape(words) {
  return String(words).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/"/g, "&quot;");
}

// A piece of SVG or HTML: tag("rect", {x: 1}, "inside").
function tag(name, attributes, inside = "") {
  const written = Object.entries(attributes).map(([key, value]) => ` ${key}="${escape(value)}"`).join("");
  return `<${name}${written}>${inside}</${name}>`;
}

function text(x, y, words, options = {}) {
  return tag("text", {x, y, "font-size": 22, ...options}, escape(words));
}

function box(x, y, width, height, fill, options = {}, inside = "") {
  return tag("rect", {x, y, width: Math.max(width, 0), height, fill, ...options}, inside);
}

function rule(x1, y1, x2, y2, stroke, options = {}) {
  return tag("line", {x1, y1, x2, y2, stroke, "stroke-width": 3, ...options});
}

// Put a chart into its place; `said` is what a screen reader says of it.
function show(id, width, height, parts, said) {
  const attributes = {viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": said};
  element(id).innerHTML = tag("svg", attributes, parts.join(""));
}

// A table of numbers under a chart: for screen readers, and for whoever wants them exactly.
function table(id, heads, body) {
  const row = (cells, kind) => tag("tr", {}, cells.map((cell) => tag(kind, {}, escape(cell))).join(""));
  const written = row(heads, "th") + body.map((cells) => row(cells, "td")).join("");
  element(id).innerHTML = tag("table", {}, written);
}

function digits(x, n = 3) {
  return Number.isFinite(x) ? x.toFixed(n) : "–";
}

function metres(x) {
  return x > 0 ? `${x.toFixed(2)} ${metre}`.trim() : "not known";
}

// A colour map's bar between two words.
function ramp(map, from, to) {
  const stops = range(9).map((i) => colourAt(map, i / 8)).join(",");
  return from + tag("span", {class: "ramp", style: `background:linear-gradient(90deg,${stops})`}) + to;
}

function chip(colour) {
  return tag("span", {class: "chip", style: `background:${colour}`});
}

// ------------------------------------------------------------------------------------------ the target
const state = {ray: 0, tau: content.tau, stop: -1, subject: "colour", version: "truth", dots: "depth",
  zoom: "whole ray"};
const images = {};                                   // address -> a loaded Image

// A picture of the page, loaded once; `then` is called when it can be drawn.
function withImage(address, then) {
  if (!images[address]) {
    images[address] = new Image();
    images[address].src = address;
  }
  const image = images[address];
  if (image.complete) then(image);
  else image.addEventListener("load", () => then(image), {once: true});
}

// A canvas of the image's size times `scale`, in whose units a pixel's centre (u, v) is at (u, v).
function prepare(canvas, image, scale) {
  canvas.width = W * scale;
  canvas.height = H * scale;
  const pen = canvas.getContext("2d");
  pen.scale(scale, scale);
  pen.drawImage(image, 0, 0, W, H);
  pen.translate(0.5, 0.5);
  return pen;
}

// Stroke what draw() outlines twice: wide in white, then narrow in a colour. It shows on everything.
function outlined(pen, width, colour, draw) {
  for (const [style, wide] of [["#fff", width], [colour, width * 0.45]]) {
    pen.strokeStyle = style;
    pen.lineWidth = wide;
    pen.beginPath();
    draw();
    pen.stroke();
  }
}

function drawTarget() {
  const layer = content.layers[state.subject][state.version], ray = state.ray;
  withImage(layer.image, (image) => {
    if (ray !== state.ray || layer !== content.layers[state.subject][state.version]) return;
    const pen = prepare(element("target"), image, Math.max(1, Math.round(960 / W)));
    content.tour.filter((stop) => stop.ray !== ray).forEach((stop) => drawStop(pen, stop));
    const [u, v] = of("pixels", ray), size = W / 40;
    outlined(pen, size / 3, "#000", () => {
      for (const [x, y] of [[1, 0], [-1, 0], [0, 1], [0, -1]]) {
        pen.moveTo(u + x * size * 0.35, v + y * size * 0.35);
        pen.lineTo(u + x * size * 1.3, v + y * size * 1.3);
      }
    });
  });
  element("legend").innerHTML = legendOf(layer);
}

// The number of a stop of the tour beside its ray.
function drawStop(pen, stop) {
  const [u, v] = of("pixels", stop.ray), size = W / 26;
  pen.fillStyle = "#000";
  pen.beginPath();
  pen.arc(u, v, size * 0.55, 0, 7);
  pen.fill();
  pen.fillStyle = "#fff";
  pen.font = `bold ${size}px sans-serif`;
  pen.textAlign = "center";
  pen.fillText(content.tour.indexOf(stop) + 1, u, v + size * 0.36);
}

function legendOf(layer) {
  if (layer.scale) {
    const [map, low, high] = layer.scale;
    return ramp(map, low, state.subject === "colour" ? `${high} of full scale` : `${high.toFixed(1)} ${metre}`);
  }
  if (state.subject !== "labels") return "";
  if (state.version === "error") return tag("span", {}, `${chip(ORANGE)}wrong`);
  const there = new Set(Array.from(arrays.true_label.values).filter((label) => label !== IGNORE));
  for (const ray of range(rows * columns)) there.add(likeliest(of("logits", ray))[0]);
  const inOrder = [...there].sort((a, b) => a - b);
  return inOrder.map((label) => tag("span", {}, chip(colourOf(label)) + escape(names[label]))).join("");
}

// The classes in the order of these numbers (L), the largest first.
function likeliest(numbers) {
  return range(L).sort((a, b) => numbers[b] - numbers[a]);
}

function drawReadout() {
  const r = everythingOf(state.ray), [u, v] = r.pixels, answer = likeliest(r.logits)[0];
  const known = r.true_label !== IGNORE, swatch = (colour) => chip(rgb(colour.map((c) => 255 * c)));
  const named = (label) => chip(colourOf(label)) + escape(names[label]);
  const line = (name, ours, truth) => tag("dt", {}, name) + tag("dd", {}, ours) + tag("dd", {}, truth);
  element("readout").innerHTML = line(`pixel ${u}, ${v}`, "ours", "truth") +
    line("label", named(answer), known ? named(r.true_label) : "not known") +
    line("depth", metres(r.depth), metres(r.true_depth)) +
    line("colour", swatch(r.colour), swatch(r.true_colour));
  const wrong = r.true_label === answer ? ", right" : `, wrong: it is ${names[r.true_label]}`;
  const count = r.views.filter((has) => has === SEEN).length;
  const seen = r.views.includes(UNKNOWN) ? "" : `Seen by ${count} of ${V} views.`;
  element("live").textContent = `Pixel ${u}, ${v}: ${names[answer]}${known ? wrong : ""}. ` +
    `Depth ${metres(r.depth)}, truth ${metres(r.true_depth)}. ${seen}`;
}

// ------------------------------------------------------------------------------------------ 1: source views
// Where points at these depths of a ray fall in view v: [u, v, z] each.
function pixelsIn(ray, v, depths) {
  const [origin, direction] = rayOf(of("pixels", ray), content.target);
  return Array.from(depths, (z) => project(origin.map((x, i) => x + z * direction[i]), content.sources[v]));
}

// The ray's samples in view v: [u, v, s] of each that is valid there.
function dotsIn(ray, v) {
  const pixels = pixelsIn(ray, v, of("z", ray));
  return range(S).filter((s) => valid(ray, s, v)).map((s) => [pixels[s][0], pixels[s][1], s]);
}

// The whole ray in view v, near to far, where it falls into the image.
function lineIn(ray, v) {
  const depths = range(200).map((i) => content.near + (content.far - content.near) * i / 199);
  return pixelsIn(ray, v, depths).filter(([x, y, z]) =>
    z > 0 && x >= -0.5 && x <= W - 0.5 && y >= -0.5 && y <= H - 0.5);
}

function dotColour(r, s) {
  const share = state.dots === "depth" ? (r.z[s] - content.near) / (content.far - content.near)
    : r.weights[s] / Math.max(...r.weights);
  return colourAt("viridis", share);
}

// Take most of the colour out of what is drawn so far.
function pale(pen) {
  for (const [how, colour] of [["saturation", "#808080"], ["source-over", "rgba(255,255,255,0.55)"]]) {
    pen.globalCompositeOperation = how;
    pen.fillStyle = colour;
    pen.fillRect(-1, -1, W + 1, H + 1);
  }
}

// View v: its image, pale unless it sees the surface; the ray as a line, its samples as dots, a ring.
function drawSource(r, v) {
  const [canvas, caption] = element("views").children[v].children, dots = dotsIn(r.ray, v);
  const has = r.views[v], words = ["outside", "sees it", "hidden", "not known"][has];
  const weight = digits(weightsAt(r.ray, r.surface, state.tau)[v]);
  caption.innerHTML = tag("b", {}, v + 1) + words + (valid(r.ray, r.surface, v) ? `, w ${weight}` : "");
  canvas.setAttribute("aria-label", `Source view ${v + 1}: the surface is ${words}; ` +
    `${dots.length} of ${S} samples fall into it; weight ${weight}`);
  withImage(content.sources[v].image, (image) => {
    if (r.ray !== state.ray) return;
    const pen = prepare(canvas, image, Math.max(1, Math.round(640 / W))), radius = W / 75;
    if (has === HIDDEN || has === OUTSIDE) pale(pen);
    outlined(pen, radius, "#000", () => lineIn(r.ray, v).forEach(([x, y]) => pen.lineTo(x, y)));
    for (const [x, y, s] of dots) {
      outlined(pen, radius * 0.6, "#fff", () => pen.arc(x, y, radius, 0, 7));
      pen.fillStyle = dotColour(r, s);
      pen.fill();
    }
    for (const [x, y] of dots.filter((dot) => dot[2] === r.surface)) {
      outlined(pen, radius * 1.6, ORANGE, () => pen.arc(x, y, radius * 3, 0, 7));
    }
  });
}

function drawSources() {
  const r = everythingOf(state.ray);
  range(V).forEach((v) => drawSource(r, v));
  element("dotscale").innerHTML = state.dots === "depth"
    ? ramp("viridis", `${content.near} ${metre}`, `${content.far} ${metre}`)
    : ramp("viridis", "0", digits(Math.max(...r.weights), 2));
}

// ------------------------------------------------------------------------------------------ 2: along the ray
const LEFT = 120, RIGHT = 980;                       // the depth axis, in the chart's 1000 units

// The depths that the axis shows: all, or those around the rendered surface.
function axisRange(r) {
  if (state.zoom === "whole ray") return [content.near, content.far];
  const spread = sum(range(S).map((s) => r.weights[s] * Math.abs(r.z[s] - r.depth)));
  const half = Math.max(2 * spread, (content.far - content.near) / 20);
  return [r.depth - half, r.depth + half];
}

// Three strips over one axis of depth: density, rendering weights, samples.
function drawAlong() {
  const r = everythingOf(state.ray), [from, to] = axisRange(r);
  const axis = {from, to, at: (z) => LEFT + (RIGHT - LEFT) * (z - from) / (to - from)};
  const levels = [
    {name: "coarse", colour: BLUE, dash: "9 5", z: content.coarse_z, sigma: r.coarse_sigma,
      weights: r.coarse_weights},
    {name: "fine", colour: ORANGE, dash: "none", z: r.z, sigma: r.sigma, weights: r.weights}];
  const most = Math.max(1e-9, ...r.sigma, ...r.coarse_sigma);
  const parts = [text(0, 60, "σ", BOLD),
    text(0, 86, `to ${most.toPrecision(2)} /${metre || "unit"}`, {fill: GREY}),
    text(0, 210, "weight", BOLD)];
  levels.forEach((level, i) => {
    const top = Math.max(1e-9, ...level.weights), tick = 314 + 26 * i;
    parts.push(text(0, tick + 17, level.name, {...BOLD, fill: level.colour}),
      curve(level, level.sigma, 40, 150, most, axis), curve(level, level.weights, 190, 300, top, axis),
      text(0, 238 + 26 * i, `to ${digits(top, 2)}`, {fill: level.colour}));
    for (const z of level.z.filter((z) => z >= from && z <= to)) {
      parts.push(rule(axis.at(z), tick, axis.at(z), tick + 18, level.colour));
    }
  });
  const peak = metres(r.z[r.surface]);
  show("along", 1000, 425, [...parts, ...depthMarks(r, axis), ...depthAxis(axis)],
    `Along the ray: largest rendering weight ${digits(Math.max(...r.weights))} at ${peak}; ` +
    `rendered depth ${metres(r.depth)}, truth ${metres(r.true_depth)}`);
  const heads = ["sample", "coarse z", "coarse σ", "coarse weight", "fine z", "fine σ", "fine weight"];
  table("along-numbers", heads, range(Math.max(S, content.coarse_z.length)).map((s) => [s + 1,
    ...levels.flatMap((level) => [level.z, level.sigma, level.weights].map((x) => digits(x[s])))]));
}

// A level's values over its samples, between the heights top and bottom; `most` is at the top.
function curve(level, values, top, bottom, most, axis) {
  const points = range(level.z.length).filter((i) => level.z[i] >= axis.from && level.z[i] <= axis.to)
    .map((i) => [axis.at(level.z[i]).toFixed(1), (bottom - (bottom - top) * values[i] / most).toFixed(1)]);
  const style = {fill: "none", stroke: level.colour, "stroke-width": 3, "stroke-dasharray": level.dash};
  return rule(LEFT, bottom, RIGHT, bottom, "#999", {"stroke-width": 1}) +
    tag("polyline", {points: points.map((point) => point.join()).join(" "), ...style}) +
    points.map(([cx, cy]) => tag("circle", {cx, cy, r: 5, fill: level.colour})).join("");
}

// Where the surface truly is, and where the model renders it. The words stand on the outer sides.
function depthMarks(r, axis) {
  const marks = [[r.true_depth, "truth", "#111", "none", r.true_depth < r.depth],
    [r.depth, "ours", GREEN, "4 5", r.depth <= r.true_depth]];
  return marks.filter(([z]) => z > axis.from && z < axis.to).map(([z, name, fill, dash, first]) =>
    rule(axis.at(z), 28, axis.at(z), 362, fill, {"stroke-dasharray": dash}) +
    text(axis.at(z) + (first ? -8 : 8), 22, name, {...BOLD, ...HALO, fill, ...(first ? END : {})}));
}

function depthAxis({from, to, at}) {
  const sizes = [0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 50];
  const step = sizes.find((size) => (to - from) / size <= 9) || (to - from) / 5;
  const ticks = range(12).map((i) => (Math.ceil(from / step) + i) * step).filter((z) => z <= to);
  return [rule(LEFT, 368, RIGHT, 368, "#111"), ...ticks.map((z) => text(at(z), 392, +z.toFixed(2), MIDDLE)),
    text(RIGHT, 418, `depth along z${metre ? ", " + metre : ""}`, {...END, fill: GREY})];
}

// ------------------------------------------------------------------------------------------ 3, 4: attention
// The views in which the surface sample is valid: elsewhere it reads nothing.
function readers(r) {
  return range(V).filter((v) => valid(r.ray, r.surface, v));
}

function drawIntra() {
  const r = everythingOf(state.ray), reads = readers(r), left = 40, wide = (1000 - left) / S, tall = 34;
  const rowOf = (v) => Array.from(r.intra.subarray(v * S, (v + 1) * S)), below = V * tall;
  const largest = Math.max(1e-9, ...reads.flatMap(rowOf)), parts = [];
  for (const v of range(V)) {
    parts.push(text(0, v * tall + 26, v + 1, BOLD));
    if (!reads.includes(v)) {
      parts.push(text(left, v * tall + 26, "the surface is not in its image", {fill: GREY}));
      continue;
    }
    rowOf(v).forEach((x, s) => {
      const is = valid(r.ray, s, v), said = tag("title", {}, `view ${v + 1}, sample ${s + 1}: ${digits(x)}`);
      const fill = is ? colourAt("cividis", x / largest) : "#fff", edge = {stroke: is ? "none" : PALE};
      parts.push(box(left + s * wide, v * tall, wide - 1, tall - 1, fill, edge, said));
    });
  }
  const frame = {stroke: ORANGE, "stroke-width": 5}, x = left + r.surface * wide;
  reads.forEach((v) => parts.push(box(x - 1, v * tall, wide, tall - 1, "none", frame)));
  const word = Math.min(Math.max(x + wide / 2, 90), 950), last = (Math.max(...reads, 0) + 1) * tall;
  const dotted = {"stroke-dasharray": "3 5"};
  if (reads.length) parts.push(rule(x + wide / 2, last, x + wide / 2, below + 6, ORANGE, dotted));
  parts.push(text(word, below + 26, "surface", {...BOLD, ...MIDDLE, fill: ORANGE}),
    ...scaleBar(below + 40, largest));
  const most = (v) => `View ${v + 1} reads most from sample ${rowOf(v).indexOf(Math.max(...rowOf(v))) + 1}, ` +
    digits(Math.max(...rowOf(v)), 2);
  show("intra", 1000, below + 68, parts,
    `Intra-view attention of sample ${r.surface + 1}. ${reads.map(most).join(". ")}`);
  table("intra-numbers", ["view", ...range(S).map((s) => s + 1)],
    reads.map((v) => [v + 1, ...rowOf(v).map((x, s) => valid(r.ray, s, v) ? digits(x) : "–")]));
}

function scaleBar(y, largest) {
  const steps = range(24).map((i) => box(50 + 8 * i, y, 8.5, 20, colourAt("cividis", i / 23)));
  return [text(30, y + 18, "0", END), ...steps, text(252, y + 18, `${digits(largest, 2)} of its attention`)];
}

function drawCross() {
  const r = everythingOf(state.ray), reads = readers(r), left = 44, top = 34, size = (500 - left) / V;
  const both = (v, u) => reads.includes(v) && reads.includes(u), at = (v, u) => r.cross[v * V + u];
  const largest = Math.max(1e-9, ...reads.flatMap((v) => reads.map((u) => at(v, u)))), parts = [];
  const middle = (v) => (v + 0.5) * size, name = {...BOLD, "font-size": 26};
  for (const v of range(V)) {
    parts.push(text(left - 12, top + middle(v) + 9, v + 1, {...name, ...END}),
      text(left + middle(v), top - 10, v + 1, {...name, ...MIDDLE}));
    for (const u of range(V)) {
      const x = left + u * size, y = top + v * size, share = at(v, u) / largest;
      if (!both(v, u)) {
        parts.push(box(x, y, size - 1.5, size - 1.5, "#fff", {stroke: PALE}));
        continue;
      }
      const options = {...MIDDLE, "font-size": Math.min(28, size / 2), fill: share > 0.55 ? "#000" : "#fff"};
      parts.push(box(x, y, size - 1.5, size - 1.5, colourAt("cividis", share)),
        text(x + size / 2, y + size / 2 + 9, Math.round(100 * at(v, u)), options));
    }
  }
  const most = (v) => reads.reduce((a, b) => at(v, b) > at(v, a) ? b : a);
  const said = reads.map((v) =>
    `View ${v + 1} reads most from view ${most(v) + 1}, ${digits(at(v, most(v)), 2)}`);
  show("cross", 500, top + V * size, parts,
    `Cross-view attention at sample ${r.surface + 1}. ${said.join(". ")}`);
  table("cross-numbers", ["reads", ...range(V).map((v) => v + 1)],
    range(V).map((v) => [v + 1, ...range(V).map((u) => both(v, u) ? digits(at(v, u)) : "–")]));
}

// ------------------------------------------------------------------------------------------ 5: view weights
function drawWeights() {
  const r = everythingOf(state.ray), there = readers(r), m = Math.max(there.length, 1);
  const scores = range(V).map((v) => r.scores[r.surface * V + v]), w = weightsAt(r.ray, r.surface, state.tau);
  const low = state.tau / m, high = Math.min(1 / (state.tau * m), 1), best = Math.max(...scores, 1e-6);
  const reach = 1.05 * Math.max(best, Math.min(high, 2 * best)), tall = 46, top = 40, left = 44;
  const x = (value) => left + (380 - left) * Math.min(value / reach, 1), parts = [];
  if (there.length) {
    [low, high].filter((bound) => bound <= reach).forEach((bound, i) => parts.push(
      rule(x(bound), top - 6, x(bound), top + V * tall, ORANGE, {"stroke-dasharray": "8 5"}),
      text(x(bound) + (i ? 4 : -4), top - 14, digits(bound, 2), {...BOLD, ...(i ? {} : END), fill: ORANGE})));
  }
  for (const v of range(V)) {
    const y = top + v * tall, pale = r.views[v] === HIDDEN || r.views[v] === OUTSIDE;
    parts.push(text(left - 12, y + 28, v + 1, {...BOLD, ...END, "font-size": 26}));
    if (!there.includes(v)) {
      parts.push(text(left + 6, y + 28, "not in its image", {...HALO, fill: GREY}));
      continue;
    }
    parts.push(box(left, y + 4, Math.max(x(w[v]) - left, 1), tall - 12, pale ? GREY : BLUE),
      tag("circle", {cx: x(scores[v]), cy: y + 21, r: 8, fill: "#fff", stroke: "#111", "stroke-width": 3}),
      text(392, y + 28, digits(w[v]), {...BOLD, "font-size": 24}));
    if (r.views[v] === HIDDEN) parts.push(text(left + 8, y + 28, "hidden", {fill: "#fff"}));
  }
  parts.push(text(0, top + V * tall + 26, "bar: w · ring: score / sum · dashed: bounds", {fill: "#333"}));
  show("weights", 480, top + V * tall + 34, parts,
    `View weights at tau ${digits(state.tau, 2)}, between ${digits(low, 2)} and ${digits(high, 2)}: ` +
    there.map((v) => `view ${v + 1} ${digits(w[v])}`).join(", "));
  const cells = (v) => there.includes(v) ? [digits(scores[v]), digits(w[v])] : ["–", "–"];
  table("weights-numbers", ["view", "score / sum", "w"], range(V).map((v) => [v + 1, ...cells(v)]));
  element("tau-shown").textContent = digits(state.tau, 2);
}

// ------------------------------------------------------------------------------------------ 6: the answer
function drawAnswer() {
  const r = everythingOf(state.ray);
  const model = softmax(Array.from(r.logits)), now = softmax(logitsAt(r.ray, state.tau));
  const truth = r.true_label, known = truth !== IGNORE, order = likeliest(now), first = order[0];
  const labels = [...order.slice(0, 5), ...(known && order.indexOf(truth) > 4 ? [truth] : [])];
  const tall = 46, left = 230, x = (share) => left + 610 * share, below = labels.length * tall, parts = [];
  labels.forEach((label, i) => {
    const y = i * tall, size = {"font-size": 25}, edge = {stroke: "#111", "stroke-width": 1.5};
    parts.push(text(left - 14, y + 30, names[label], {...size, ...END, ...(label === truth ? BOLD : {})}),
      box(left, y + 5, Math.max(x(now[label]) - left, 1.5), tall - 14, colourOf(label), edge),
      rule(x(model[label]), y, x(model[label]), y + tall - 4, "#111", {"stroke-width": 4}),
      text(860, y + 30, digits(now[label]), {...BOLD, ...size}));
    if (label === truth) parts.push(text(940, y + 30, "truth", {...BOLD, fill: GREEN}));
  });
  parts.push(text(left, below + 24, "bar: at this τ · line: at the model's τ", {fill: "#333"}));
  const own = state.tau === content.tau ? "This is the model's own τ."
    : `At the model's τ = ${content.tau}: ${names[likeliest(model)[0]]}, ${digits(Math.max(...model))}.`;
  const verdict = first === truth ? " Right." : ` Wrong: it is ${names[truth]}.`;
  element("answer-words").textContent = `At τ = ${digits(state.tau, 2)}: ${names[first]}, ` +
    `${digits(now[first])}.${known ? verdict : ""} ${own}`;
  show("answer", 1010, below + 30, parts, labels.map((label) =>
    `${names[label]} ${digits(now[label])}${label === truth ? ", the truth" : ""}`).join("; "));
  table("answer-numbers", ["class", "at this τ", "at the model's τ"],
    labels.map((label) => [names[label], digits(now[label]), digits(model[label])]));
}

// -------------------------------------------------------------------------------------- what a reader does
function drawTour() {
  [...element("tour").children].forEach((button, i) => button.setAttribute("aria-pressed", i === state.stop));
  element("words").textContent = state.stop < 0 ? "" : content.tour[state.stop].text.join(" ");
}

function choose(ray) {
  state.ray = ray;
  state.stop = content.tour.findIndex((stop) => stop.ray === ray);
  [drawTarget, drawReadout, drawTour, drawSources, drawAlong, drawIntra, drawCross].forEach((draw) => draw());
  [drawWeights, drawAnswer].forEach((draw) => draw());
}

// The ray of the grid nearest to a pixel (u, v).
function nearestRay(u, v) {
  const first = content.stride >> 1;
  const nearest = (x, count) => Math.min(Math.max(Math.round((x - first) / content.stride), 0), count - 1);
  return nearest(v, rows) * columns + nearest(u, columns);
}

function step(right, down) {
  const row = Math.floor(state.ray / columns) + down, column = state.ray % columns + right;
  if (row >= 0 && row < rows && column >= 0 && column < columns) choose(row * columns + column);
}

function setTau(tau) {
  state.tau = tau;
  element("tau").value = tau;
  [drawSources, drawWeights, drawAnswer].forEach((draw) => draw());
}

// Buttons of which one is down: options of state[id].
function choices(id, options, changed) {
  for (const option of options) {
    const label = document.createElement("label");
    label.innerHTML = `<input type="radio" name="${id}" value="${option}"><span>${option}</span>`;
    label.firstChild.checked = state[id] === option;
    label.firstChild.addEventListener("change", () => {
      state[id] = option;
      changed();
    });
    element(id).append(label);
  }
}

// Not every subject has a truth: offer the versions that are there.
function offerVersions() {
  const there = content.layers[state.subject];
  if (!there[state.version]) state.version = "ours";
  for (const input of element("version").querySelectorAll("input")) {
    input.disabled = !there[input.value];
    input.checked = input.value === state.version;
  }
  drawTarget();
}

function onKey(event) {
  const moves = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1]};
  if (event.target.tagName === "INPUT" || event.ctrlKey || event.altKey || event.metaKey) return;
  if (moves[event.key] && [element("target"), document.body].includes(event.target)) {
    step(...moves[event.key]);
    event.preventDefault();
  } else if (content.tour[event.key - 1]) {
    choose(content.tour[event.key - 1].ray);
  }
}

function onClick(event) {
  const {left, top, width, height} = element("target").getBoundingClientRect();
  choose(nearestRay((event.clientX - left) / width * W - 0.5, (event.clientY - top) / height * H - 0.5));
}

function start() {
  const score = content.miou === null ? "" : `mIoU ${content.miou.toFixed(0)}, `;
  element("what").textContent = `${content.scene}, test view ${content.frame}, ${score}PSNR ` +
    `${content.psnr.toFixed(1)} dB. Click, or use the arrow keys: ${rows * columns} rays, ${content.stride} ` +
    `pixels apart. ${content.tour.length ? `Keys 1 to ${content.tour.length}: the tour.` : ""}`;
  choices("subject", Object.keys(content.layers), offerVersions);
  choices("version", ["truth", "ours", "error"], drawTarget);
  choices("dots", ["depth", "rendering weight"], drawSources);
  choices("zoom", ["whole ray", "around the surface"], drawAlong);
  const figure = '<figure><canvas role="img"></canvas><figcaption></figcaption></figure>';
  element("views").innerHTML = figure.repeat(V);
  content.tour.forEach((stop, i) => {
    const button = document.createElement("button");
    button.textContent = `${i + 1} ${stop.title}`;
    button.addEventListener("click", () => choose(stop.ray));
    element("tour").append(button);
  });
  element("tau-back").textContent = `back to ${content.tau}`;
  element("tau-back").addEventListener("click", () => setTau(content.tau));
  element("tau").addEventListener("input", (event) => setTau(Number(event.target.value)));
  element("tau").value = content.tau;
  element("target").addEventListener("click", onClick);
  document.addEventListener("keydown", onKey);
  choose(content.tour.length ? content.tour[0].ray : nearestRay(W / 2, H / 2));
}

start();
