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
// w_i = clamp(score_i - shift, low, high), for the one shift at which the sum is 1. The sum falls as the shift
// grows, and bends only where a view meets a bound: find the two bends around 1, solve the line between.
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
  return range(scores.length).map((v) => !mask[v] ? 0 : bound.has(v) ? bound.get(v) : clamp(scores[v] - shift));
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
const BLUE = "#0072b2", SKY = "#56b4e9", ORANGE = "#d55e00", GREEN = "#007a4d", GREY = "#767676";

function element(id) {
  return document.getElementById(id);
}

// A colour of a map at x in [0, 1].
function colourAt(map, x) {
  const stops = content.maps[map], at = Math.min(Math.max(x, 0), 1) * (stops.length - 1);
  const i = Math.min(Math.floor(at), stops.length - 2);
  const mixed = stops[i].map((c, k) => Math.round(c + (stops[i + 1][k] - c) * (at - i)));
  return `rgb(${mixed.join(",")})`;
}

function escape(text) {
  return String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/"/g, "&quot;");
}

// A piece of SVG: tag("rect", {x: 1}, "inside").
function tag(name, attributes, inside = "") {
  const written = Object.entries(attributes).map(([key, value]) => ` ${key}="${escape(value)}"`).join("");
  return `<${name}${written}>${inside}</${name}>`;
}

function text(x, y, words, options = {}) {
  return tag("text", {x, y, "font-size": 22, ...options}, escape(words));
}

// Put a chart into its place; `said` is what a screen reader says of it.
function show(id, width, height, parts, said) {
  element(id).innerHTML = tag("svg", {viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": said}, parts.join(""));
}

// A table of numbers under a chart: for screen readers, and for whoever wants them exactly.
function table(id, heads, body) {
  const row = (cells, kind) => tag("tr", {}, cells.map((cell) => tag(kind, {}, escape(cell))).join(""));
  element(id).innerHTML = tag("table", {}, row(heads, "th") + body.map((cells) => row(cells, "td")).join(""));
}

function digits(x, n = 3) {
  return Number.isFinite(x) ? x.toFixed(n) : "–";
}

function metres(x) {
  return x > 0 ? `${x.toFixed(2)} ${metre}`.trim() : "not known";
}

function ramp(map, from, to) {
  const stops = range(9).map((i) => colourAt(map, i / 8)).join(",");
  return `${from}<span class="ramp" style="background:linear-gradient(90deg,${stops})"></span>${to}`;
}

function chip(label) {
  return `<span class="chip" style="background:rgb(${content.classes.colours[label].join(",")})"></span>`;
}

// ------------------------------------------------------------------------------------------ the target
const state = {ray: 0, tau: content.tau, subject: "colour", version: "truth", dots: "depth", zoom: "whole ray", stop: -1};
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

// A cross at a pixel (u, v), black on white so that it shows on everything.
function cross(pen, u, v, size) {
  for (const [colour, width] of [["#fff", size / 3], ["#000", size / 7]]) {
    pen.strokeStyle = colour;
    pen.lineWidth = width;
    pen.beginPath();
    for (const [x, y] of [[1, 0], [-1, 0], [0, 1], [0, -1]]) {
      pen.moveTo(u + x * size * 0.35, v + y * size * 0.35);
      pen.lineTo(u + x * size * 1.3, v + y * size * 1.3);
    }
    pen.stroke();
  }
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

function drawTarget() {
  const layer = content.layers[state.subject][state.version], ray = state.ray;
  withImage(layer.image, (image) => {
    if (ray !== state.ray) return;
    const pen = prepare(element("target"), image, Math.max(1, Math.round(960 / W)));
    const [u, v] = of("pixels", ray);
    cross(pen, u, v, W / 40);
    content.tour.forEach((stop, i) => mark(pen, of("pixels", stop.ray), i));
  });
  const legend = {labels: legendOfLabels, colour: () => layer.scale ? ramp("cividis", layer.scale[1], `${layer.scale[2]} of full scale`) : ""};
  const scale = () => ramp(layer.scale[0], layer.scale[1], `${layer.scale[2].toFixed(1)} ${metre}`);
  element("legend").innerHTML = (legend[state.subject] || scale)();
}

// The number of a stop of the tour, small, beside its ray.
function mark(pen, [u, v], i) {
  if (content.tour[i].ray === state.ray) return;
  const size = W / 26;
  pen.fillStyle = "#000";
  pen.beginPath();
  pen.arc(u, v, size * 0.55, 0, 7);
  pen.fill();
  pen.fillStyle = "#fff";
  pen.font = `bold ${size}px sans-serif`;
  pen.textAlign = "center";
  pen.fillText(i + 1, u, v + size * 0.36);
}

function legendOfLabels() {
  if (state.version === "error") return '<span><span class="chip" style="background:#d65e00"></span>wrong</span>';
  const there = new Set([...arrays.true_label.values].filter((label) => label !== IGNORE));
  for (const ray of range(rows * columns)) there.add(likeliest(softmax(Array.from(of("logits", ray))))[0]);
  return [...there].sort((a, b) => a - b).map((label) => `<span>${chip(label)}${escape(names[label])}</span>`).join("");
}

function likeliest(shares) {
  return range(L).sort((a, b) => shares[b] - shares[a]);
}

function seenBy(ray) {
  const has = of("views", ray);
  return has.includes(UNKNOWN) ? "" : `seen by ${has.filter((x) => x === SEEN).length} of ${V} views`;
}

function nameOf(label) {
  return label === IGNORE ? "not known" : names[label];
}

function drawReadout() {
  const ray = state.ray, [u, v] = of("pixels", ray), answer = likeliest(Array.from(of("logits", ray)))[0];
  const truth = of("true_label", ray);
  const swatch = (rgb) => `<span class="chip" style="background:rgb(${Array.from(rgb, (x) => Math.round(255 * x)).join(",")})"></span>`;
  const line = (name, ours, true_) => `<dt>${name}</dt><dd>${ours}</dd><dd>${true_}</dd>`;
  element("readout").innerHTML = line(`pixel ${u}, ${v}`, "ours", "truth") +
    line("label", chip(answer) + escape(names[answer]), truth === IGNORE ? "not known" : chip(truth) + escape(names[truth])) +
    line("depth", metres(of("depth", ray)), metres(of("true_depth", ray))) +
    line("colour", swatch(of("colour", ray)), swatch(of("true_colour", ray)));
  const right = truth === IGNORE ? "" : truth === answer ? ", right" : `, wrong: it is ${nameOf(truth)}`;
  element("live").textContent = `Pixel ${u}, ${v}: ${names[answer]}${right}. Depth ${metres(of("depth", ray))}, ` +
    `truth ${metres(of("true_depth", ray))}. ${seenBy(ray)}`;
}

// ------------------------------------------------------------------------------------------ 1: source views
// The ray's samples in view v: [u, v, s] of each that is valid there.
function dotsIn(ray, v) {
  const [origin, direction] = rayOf(Array.from(of("pixels", ray)), content.target), z = of("z", ray);
  return range(S).filter((s) => valid(ray, s, v)).map((s) => {
    const point = origin.map((x, i) => x + z[s] * direction[i]);
    return [...project(point, content.sources[v]).slice(0, 2), s];
  });
}

function dotColour(ray, s) {
  if (state.dots === "depth") {
    return colourAt("viridis", (of("z", ray)[s] - content.near) / (content.far - content.near));
  }
  return colourAt("viridis", of("weights", ray)[s] / Math.max(...of("weights", ray)));
}

function drawSource(v) {
  const ray = state.ray, figure = element("views").children[v], surface = of("surface", ray);
  const has = of("views", ray)[v], w = weightsAt(ray, surface, state.tau)[v], inside = valid(ray, surface, v);
  const words = ["outside", "sees it", "hidden", "not known"][has];
  figure.lastChild.innerHTML = `<b>${v + 1}</b> ${words}${inside ? `, w ${digits(w)}` : ""}`;
  figure.firstChild.setAttribute("aria-label", `Source view ${v + 1}: the surface is ${words}` +
    `; ${dotsIn(ray, v).length} of ${S} samples fall into it; weight ${digits(w)}`);
  withImage(content.sources[v].image, (image) => {
    if (ray !== state.ray) return;
    const scale = Math.max(1, Math.round(640 / W)), pen = prepare(figure.firstChild, image, scale), r = W / 75;
    if (has === HIDDEN || has === OUTSIDE) pale(pen);
    line(pen, lineIn(ray, v), r);
    for (const [x, y, s] of dotsIn(ray, v)) {
      pen.beginPath();
      pen.arc(x, y, r, 0, 7);
      pen.fillStyle = dotColour(ray, s);
      pen.fill();
      pen.lineWidth = r / 3;
      pen.strokeStyle = "#fff";
      pen.stroke();
    }
    for (const [x, y, s] of dotsIn(ray, v).filter((dot) => dot[2] === surface)) ring(pen, x, y, r * 3);
  });
}

// The whole ray in view v, near to far, where it falls into the image: [u, v] of 200 of its points.
function lineIn(ray, v) {
  const [origin, direction] = rayOf(Array.from(of("pixels", ray)), content.target);
  return range(200).map((i) => {
    const z = content.near + (content.far - content.near) * i / 199;
    return project(origin.map((x, k) => x + z * direction[k]), content.sources[v]);
  }).filter(([x, y, z]) => z > 0 && x >= -0.5 && x <= W - 0.5 && y >= -0.5 && y <= H - 0.5);
}

function line(pen, points, r) {
  for (const [colour, width] of [["#fff", r * 0.9], ["#000", r * 0.4]]) {
    pen.beginPath();
    for (const [x, y] of points) pen.lineTo(x, y);
    pen.strokeStyle = colour;
    pen.lineWidth = width;
    pen.stroke();
  }
}

// Take most of the colour out of what is drawn so far.
function pale(pen) {
  for (const [how, colour] of [["saturation", "#808080"], ["source-over", "rgba(255,255,255,0.55)"]]) {
    pen.globalCompositeOperation = how;
    pen.fillStyle = colour;
    pen.fillRect(-1, -1, W + 1, H + 1);
  }
}

function ring(pen, x, y, r) {
  for (const [colour, width] of [["#fff", r / 2], [ORANGE, r / 3]]) {
    pen.beginPath();
    pen.arc(x, y, r, 0, 7);
    pen.strokeStyle = colour;
    pen.lineWidth = width;
    pen.stroke();
  }
}

function drawSources() {
  range(V).forEach(drawSource);
  element("dotscale").innerHTML = state.dots === "depth" ? ramp("viridis", `${content.near} ${metre}`, `${content.far} ${metre}`)
    : ramp("viridis", "0", digits(Math.max(...of("weights", state.ray)), 2));
}

// ------------------------------------------------------------------------------------------ 2: along the ray
// The depths that the axis shows: all, or those of the fine samples.
function axisRange(ray) {
  const z = of("z", ray);
  if (state.zoom === "whole ray") return [content.near, content.far];
  const spread = sum(range(S).map((s) => of("weights", ray)[s] * Math.abs(z[s] - of("depth", ray))));
  const half = Math.max(2 * spread, (content.far - content.near) / 20);
  return [of("depth", ray) - half, of("depth", ray) + half];
}

function path(points, x, y) {
  return points.map(([z, value], i) => `${i ? "L" : "M"}${x(z).toFixed(1)} ${y(value).toFixed(1)}`).join("");
}

// Three strips over one axis of depth: density, rendering weights, samples.
function drawAlong() {
  const ray = state.ray, [from, to] = axisRange(ray), left = 120, right = 980, coarseZ = content.coarse_z;
  const x = (z) => left + (right - left) * (Math.min(Math.max(z, from), to) - from) / (to - from);
  const inside = (pair) => pair[0] >= from && pair[0] <= to;
  const pairs = (z, values) => range(z.length).map((i) => [z[i], values[i]]).filter(inside);
  const series = [["coarse", SKY, coarseZ, of("coarse_sigma", ray), of("coarse_weights", ray), 4],
    ["fine", ORANGE, of("z", ray), of("sigma", ray), of("weights", ray), 3]];
  const parts = [strip(series, 3, 40, 150, "σ", x, pairs, (top) => `${top.toPrecision(2)} /${metre || "unit"}`),
    strip(series, 4, 190, 300, "weight", x, pairs, (top) => digits(top, 2)), text(0, 345, "samples")];
  series.forEach(([name, colour, z], i) => {
    parts.push(text(right - 250 + 140 * i, 22, name, {fill: i ? ORANGE : BLUE, "font-weight": 700}));
    for (const [at] of pairs(z, z)) {
      parts.push(tag("line", {x1: x(at), x2: x(at), y1: 320 + 22 * i, y2: 338 + 22 * i, stroke: i ? ORANGE : BLUE, "stroke-width": 3}));
    }
  });
  parts.push(...depthMarks(ray, x, from, to), ...depthAxis(from, to, x, 368));
  show("along", 1000, 425, parts, `Along the ray: largest rendering weight ${digits(Math.max(...of("weights", ray)))} at ` +
    `${metres(of("z", ray)[of("surface", ray)])}; rendered depth ${metres(of("depth", ray))}, truth ${metres(of("true_depth", ray))}`);
  table("along-numbers", ["sample", "coarse z", "coarse σ", "coarse weight", "fine z", "fine σ", "fine weight"],
    range(Math.max(S, coarseZ.length)).map((s) => [s + 1, digits(coarseZ[s]), digits(of("coarse_sigma", ray)[s]),
      digits(of("coarse_weights", ray)[s]), digits(of("z", ray)[s]), digits(of("sigma", ray)[s]), digits(of("weights", ray)[s])]));
}

// One strip: the series' values (column `which`) between y = top and bottom. Densities share a scale; a rendering weight
// is of its sample's length, and the fine samples are short: each level has a scale of its own.
function strip(series, which, top, bottom, name, x, pairs, label) {
  const tops = series.map((one) => Math.max(1e-9, ...one[which])), shared = which === 3 ? Math.max(...tops) : 0;
  const lines = series.map(([, , z, , , width], i) => {
    const y = (value) => bottom - (bottom - top) * value / (shared || tops[i]);
    const points = pairs(z, series[i][which]), colour = i ? ORANGE : BLUE;
    const dots = points.map(([at, value]) => tag("circle", {cx: x(at), cy: y(value), r: 5, fill: colour})).join("");
    return tag("path", {d: path(points, x, y), fill: "none", stroke: colour, "stroke-width": width, "stroke-dasharray": i ? "none" : "9 5"}) + dots;
  });
  return text(0, top + 20, name, {"font-weight": 700}) + (shared ? text(0, top + 46, `to ${label(shared)}`, {fill: GREY, "font-size": 19}) : tops.map((one, i) =>
    text(0, top + 46 + 24 * i, `to ${label(one)}`, {fill: i ? ORANGE : BLUE, "font-size": 19})).join("")) +
    tag("line", {x1: 120, x2: 980, y1: bottom, y2: bottom, stroke: "#999"}) + lines.join("");
}

// Where the surface truly is, and where the model renders it.
function depthMarks(ray, x, from, to) {
  const marks = [[of("true_depth", ray), "truth", "#111", "none", 0], [of("depth", ray), "ours", GREEN, "4 5", 1]];
  return marks.filter(([z]) => z > from && z < to).map(([z, name, colour, dash, i]) =>
    tag("line", {x1: x(z), x2: x(z), y1: 28, y2: 362, stroke: colour, "stroke-width": 3, "stroke-dasharray": dash}) +
    text(x(z) + (i ? 1 : -1) * (of("depth", ray) < of("true_depth", ray) ? -8 : 8), 22, name, {fill: colour, "font-weight": 700,
      "text-anchor": (of("depth", ray) < of("true_depth", ray)) === (i === 1) ? "end" : "start"}));
}

function depthAxis(from, to, x, y) {
  const step = [0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 50].find((size) => (to - from) / size <= 9) || (to - from) / 5;
  const ticks = range(12).map((i) => (Math.ceil(from / step) + i) * step).filter((z) => z <= to);
  return [tag("line", {x1: 120, x2: 980, y1: y, y2: y, stroke: "#111", "stroke-width": 2}),
    ...ticks.map((z) => text(x(z), y + 24, +z.toFixed(2), {"text-anchor": "middle"})),
    text(980, y + 50, `depth along z${metre ? ", " + metre : ""}`, {"text-anchor": "end", fill: GREY})];
}

// ------------------------------------------------------------------------------------------ 3, 4: attention
function drawIntra() {
  const ray = state.ray, map = of("intra", ray), surface = of("surface", ray), left = 40, size = (1000 - left) / S, tall = 34;
  const reads = range(V).filter((v) => valid(ray, surface, v));        // elsewhere the sample is not there to read
  const rowOf = (v) => Array.from(map.subarray(v * S, (v + 1) * S));
  const largest = Math.max(1e-9, ...reads.flatMap(rowOf)), parts = [];
  for (const v of range(V)) {
    parts.push(text(0, v * tall + 26, v + 1, {"font-weight": 700}));
    if (!reads.includes(v)) parts.push(text(left, v * tall + 26, "the surface is not in its image", {fill: GREY}));
    else for (const s of range(S)) {
      const fill = valid(ray, s, v) ? colourAt("cividis", map[v * S + s] / largest) : "#fff";
      parts.push(tag("rect", {x: left + s * size, y: v * tall, width: size - 1, height: tall - 1, fill, stroke: fill === "#fff" ? "#ccc" : "none"},
        tag("title", {}, `view ${v + 1}, sample ${s + 1}: ${digits(map[v * S + s])}`)));
    }
  }
  const middle = left + (surface + 0.5) * size, below = V * tall;
  parts.push(tag("rect", {x: left + surface * size - 2, y: -2, width: size + 3, height: below + 3, fill: "none", stroke: ORANGE, "stroke-width": 4}),
    text(middle, below + 24, "surface", {"text-anchor": middle > 930 ? "end" : "middle", fill: ORANGE, "font-weight": 700}),
    ...scaleBar(0, below + 40, largest, "attention"));
  show("intra", 1000, below + 72, parts, `Intra-view attention of sample ${surface + 1}. ` + reads.map((v) => {
    const top = Math.max(...rowOf(v));
    return `View ${v + 1} reads most from sample ${rowOf(v).indexOf(top) + 1}, ${digits(top, 2)}`;
  }).join(". "));
  table("intra-numbers", ["view", ...range(S).map((s) => s + 1)],
    reads.map((v) => [v + 1, ...rowOf(v).map((x, s) => valid(ray, s, v) ? digits(x) : "–")]));
}

function scaleBar(x, y, largest, words) {
  const steps = range(24).map((i) => tag("rect", {x: x + 50 + 8 * i, y, width: 8.5, height: 20, fill: colourAt("cividis", i / 23)}));
  return [text(x + 30, y + 18, "0", {"text-anchor": "end"}), ...steps, text(x + 252, y + 18, `${digits(largest, 2)}  ${words}`)];
}

function drawCross() {
  const ray = state.ray, map = of("cross", ray), surface = of("surface", ray), left = 44, top = 34, size = (500 - left) / V;
  const largest = Math.max(1e-9, ...map), parts = [];
  const there = range(V).map((v) => valid(ray, surface, v));
  for (const v of range(V)) {
    parts.push(text(left - 12, top + (v + 0.5) * size + 9, v + 1, {"text-anchor": "end", "font-weight": 700, "font-size": 26}),
      text(left + (v + 0.5) * size, top - 10, v + 1, {"text-anchor": "middle", "font-weight": 700, "font-size": 26}));
    for (const u of range(V)) {
      const value = map[v * V + u], is = there[v] && there[u], fill = is ? colourAt("cividis", value / largest) : "#fff";
      parts.push(tag("rect", {x: left + u * size, y: top + v * size, width: size - 1.5, height: size - 1.5, fill, stroke: is ? "none" : "#ccc"}));
      if (is) parts.push(text(left + (u + 0.5) * size, top + (v + 0.5) * size + 9, Math.round(100 * value),
        {"text-anchor": "middle", "font-size": Math.min(28, size * 0.5), fill: value / largest > 0.55 ? "#000" : "#fff"}));
    }
  }
  show("cross", 500, top + V * size, parts, `Cross-view attention at sample ${surface + 1}. ` + range(V).filter((v) => there[v]).map((v) => {
    const row = range(V).map((u) => map[v * V + u]), most = Math.max(...row);
    return `View ${v + 1} reads most from view ${row.indexOf(most) + 1}, ${digits(most, 2)}`;
  }).join(". "));
  table("cross-numbers", ["reads", ...range(V).map((v) => v + 1)],
    range(V).map((v) => [v + 1, ...range(V).map((u) => there[v] && there[u] ? digits(map[v * V + u]) : "–")]));
}

// ------------------------------------------------------------------------------------------ 5: view weights
function drawWeights() {
  const ray = state.ray, surface = of("surface", ray), w = weightsAt(ray, surface, state.tau), has = of("views", ray);
  const scores = range(V).map((v) => of("scores", ray)[surface * V + v]), there = range(V).map((v) => valid(ray, surface, v));
  const m = there.filter(Boolean).length, low = state.tau / Math.max(m, 1), high = Math.min(1 / (state.tau * Math.max(m, 1)), 1);
  const tall = 46, top = 40, left = 44, x = (value) => left + (380 - left) * Math.min(value / reach, 1);
  const reach = 1.05 * Math.max(...scores, Math.min(high, 2 * Math.max(...scores)), 1e-6), parts = [];
  for (const v of range(V)) {
    const y = top + v * tall, colour = has[v] === HIDDEN || has[v] === OUTSIDE ? GREY : BLUE;
    parts.push(text(left - 12, y + 28, v + 1, {"text-anchor": "end", "font-weight": 700, "font-size": 26}));
    if (!there[v]) {
      parts.push(text(left + 6, y + 28, "not in its image", {fill: GREY}));
      continue;
    }
    parts.push(tag("rect", {x: left, y: y + 4, width: Math.max(x(w[v]) - left, 1), height: tall - 12, fill: colour}),
      tag("circle", {cx: x(scores[v]), cy: y + tall / 2 - 2, r: 8, fill: "#fff", stroke: "#111", "stroke-width": 3}),
      text(392, y + 28, digits(w[v]), {"font-weight": 700, "font-size": 24}));
    if (has[v] === HIDDEN) parts.push(text(x(w[v]) - 8, y + 28, "hidden", {fill: "#fff", "text-anchor": "end", "font-size": 19}));
  }
  if (m) [low, high].filter((bound) => bound <= reach).forEach((bound, i) => parts.push(
    tag("line", {x1: x(bound), x2: x(bound), y1: top - 6, y2: top + V * tall, stroke: ORANGE, "stroke-width": 3, "stroke-dasharray": "8 5"}),
    text(x(bound) + (i ? 4 : -4), top - 14, digits(bound, 2), {"text-anchor": i ? "start" : "end", fill: ORANGE, "font-weight": 700})));
  parts.push(text(0, top + V * tall + 26, "bar: w · ring: score / sum · dashed: bounds", {"font-size": 21, fill: "#333"}));
  show("weights", 480, top + V * tall + 34, parts, `View weights at tau ${state.tau}, between ${digits(low, 2)} and ${digits(high, 2)}: ` +
    range(V).filter((v) => there[v]).map((v) => `view ${v + 1} ${digits(w[v])}`).join(", "));
  table("weights-numbers", ["view", "score / sum", "w"], range(V).map((v) => there[v] ? [v + 1, digits(scores[v]), digits(w[v])] : [v + 1, "–", "–"]));
  element("tau-shown").textContent = digits(state.tau, 2);
}

// ------------------------------------------------------------------------------------------ 6: the answer
function drawAnswer() {
  const ray = state.ray, model = softmax(Array.from(of("logits", ray))), now = softmax(logitsAt(ray, state.tau));
  const truth = of("true_label", ray), first = likeliest(now)[0], shown = likeliest(now).slice(0, 5);
  if (truth !== IGNORE && !shown.includes(truth)) shown.push(truth);
  const tall = 46, left = 230, x = (share) => left + (840 - left) * share, parts = [];
  shown.forEach((label, i) => {
    const y = i * tall;
    parts.push(text(left - 14, y + 30, names[label], {"text-anchor": "end", "font-size": 25, "font-weight": label === truth ? 700 : 400}),
      tag("rect", {x: left, y: y + 5, width: Math.max(x(now[label]) - left, 1.5), height: tall - 14, fill: `rgb(${content.classes.colours[label].join(",")})`, stroke: "#111", "stroke-width": 1.5}),
      tag("line", {x1: x(model[label]), x2: x(model[label]), y1: y, y2: y + tall - 4, stroke: "#111", "stroke-width": 4}),
      text(860, y + 30, digits(now[label]), {"font-weight": 700, "font-size": 25}));
    if (label === truth) parts.push(text(940, y + 30, "truth", {fill: GREEN, "font-weight": 700}));
  });
  const change = state.tau === content.tau ? "This is the model's own τ." :
    `At the model's τ = ${content.tau}: ${names[likeliest(model)[0]]}, ${digits(Math.max(...model))}.`;
  const verdict = truth === IGNORE ? "" : first === truth ? " Right." : ` Wrong: it is ${names[truth]}.`;
  element("answer-words").textContent = `At τ = ${digits(state.tau, 2)}: ${names[first]}, ${digits(now[first])}.${verdict} ${change}`;
  show("answer", 1010, shown.length * tall + 30, [...parts, text(left, shown.length * tall + 24, "bar: at this τ · line: at the model's τ", {"font-size": 21, fill: "#333"})],
    shown.map((label) => `${names[label]} ${digits(now[label])}${label === truth ? ", the truth" : ""}`).join("; "));
  table("answer-numbers", ["class", "at this τ", "at the model's τ"], shown.map((label) => [names[label], digits(now[label]), digits(model[label])]));
}

// ------------------------------------------------------------------------------------------ what a reader does
function drawTour() {
  [...element("tour").children].forEach((button, i) => button.setAttribute("aria-pressed", i === state.stop));
  element("words").textContent = state.stop < 0 ? "" : content.tour[state.stop].text.join(" ");
}

function draw() {
  for (const part of [drawTarget, drawReadout, drawTour, drawSources, drawAlong, drawIntra, drawCross, drawWeights, drawAnswer]) part();
}

function choose(ray) {
  state.ray = ray;
  state.stop = content.tour.findIndex((stop) => stop.ray === ray);
  draw();
}

// The ray of the grid nearest to a pixel (u, v).
function nearestRay(u, v) {
  const clip = (x, most) => Math.min(Math.max(x, 0), most - 1), first = content.stride >> 1;
  return clip(Math.round((v - first) / content.stride), rows) * columns + clip(Math.round((u - first) / content.stride), columns);
}

function step(right, down) {
  const row = Math.floor(state.ray / columns) + down, column = state.ray % columns + right;
  if (row >= 0 && row < rows && column >= 0 && column < columns) choose(row * columns + column);
}

function setTau(tau) {
  state.tau = tau;
  element("tau").value = tau;
  [drawSources, drawWeights, drawAnswer].forEach((part) => part());
}

// Buttons of which one is down: options of state[id].
function choices(id, options, changed) {
  for (const option of options) {
    const label = document.createElement("label");
    label.innerHTML = `<input type="radio" name="${id}" value="${option}"${state[id] === option ? " checked" : ""}><span>${option}</span>`;
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

function start() {
  const {scene, frame, stride} = content, all = rows * columns;
  const score = content.miou === null ? "" : `, mIoU ${content.miou.toFixed(0)}`;
  element("what").textContent = `${scene}, test view ${frame}${score}, PSNR ${content.psnr.toFixed(1)} dB. Click, or use the arrow keys: ` +
    `${all} rays, ${stride} pixels apart. Keys 1 to ${content.tour.length}: the tour.`;
  if (!content.layers.colour.truth) state.version = "ours";
  choices("subject", Object.keys(content.layers), offerVersions);
  choices("version", ["truth", "ours", "error"], drawTarget);
  choices("dots", ["depth", "rendering weight"], drawSources);
  choices("zoom", ["whole ray", "around the surface"], drawAlong);
  element("views").innerHTML = range(V).map(() => '<figure><canvas role="img"></canvas><figcaption></figcaption></figure>').join("");
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
  element("target").addEventListener("click", (event) => {
    const box = element("target").getBoundingClientRect();
    choose(nearestRay((event.clientX - box.left) / box.width * W - 0.5, (event.clientY - box.top) / box.height * H - 0.5));
  });
  document.addEventListener("keydown", onKey);
  choose(content.tour.length ? content.tour[0].ray : nearestRay(W / 2, H / 2));
}

start();
