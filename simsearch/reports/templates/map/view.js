// Where one looks: k pixels for a unit of the plane, the plane's origin at (ox, oy) on the canvas; and colours.
const canvas = $("canvas"), context = canvas.getContext("2d", { alpha: false }), PIXELS = 3e6;
const view = { k: 1, ox: 0, oy: 0, fit: 1, width: 1, height: 1, ratio: 1 };
const screenX = i => xy[2 * i] * view.k + view.ox, screenY = i => xy[2 * i + 1] * view.k + view.oy;
function resize() {
  const { width, height } = canvas.getBoundingClientRect();
  if (!width || !height) return;
  const before = view.width > 1 ? { x: (view.width / 2 - view.ox) / view.k, y: (view.height / 2 - view.oy) / view.k, zoom: view.k / view.fit } : null;
  view.width = width; view.height = height;
  view.ratio = Math.min(window.devicePixelRatio || 1, Math.sqrt(PIXELS / (width * height)));
  labelImages.clear();
  canvas.width = Math.round(width * view.ratio); canvas.height = Math.round(height * view.ratio);
  showAll();
  if (before) { view.k = view.fit * before.zoom; view.ox = width / 2 - before.x * view.k; view.oy = height / 2 - before.y * view.k; }
  redraw();
}
function frame(x0, y0, x1, y1, most) {  // shows a box of the plane
  const pad = Math.min(48, view.width / 10, view.height / 10);
  view.k = Math.min((view.width - 2 * pad) / Math.max(x1 - x0, 1e-6), (view.height - 2 * pad) / Math.max(y1 - y0, 1e-6), most);
  view.ox = view.width / 2 - (x0 + x1) / 2 * view.k; view.oy = view.height / 2 - (y0 + y1) / 2 * view.k;
}
function showAll() { frame(lowX, lowY, highX, highY, Infinity); view.fit = view.k; }
function zoomBy(factor, x = view.width / 2, y = view.height / 2) {
  const k = Math.max(view.fit / 2, Math.min(view.fit * 400, view.k * factor));
  view.ox = x - (x - view.ox) * k / view.k; view.oy = y - (y - view.oy) * k / view.k; view.k = k;
  redraw();
}
function panBy(x, y) { view.ox += x; view.oy += y; redraw(); }
function frameItems(list) {
  let x0 = Infinity, y0 = Infinity, x1 = -Infinity, y1 = -Infinity;
  for (const i of list) { x0 = Math.min(x0, xy[2 * i]); x1 = Math.max(x1, xy[2 * i]); y0 = Math.min(y0, xy[2 * i + 1]); y1 = Math.max(y1, xy[2 * i + 1]); }
  if (x0 <= x1) frame(x0, y0, x1, y1, view.fit * 40);
  redraw();
}

// The item nearest to the middle of each cluster, where its name stands: to the medians of its x and y.
const centres = (() => {
  const xs = clusters.names.map(() => []), ys = clusters.names.map(() => []), best = clusters.names.map(() => [Infinity, 0]);
  const step = Math.max(1, Math.floor(n / 50000)), middle = values => values.sort((a, b) => a - b)[values.length >> 1] || 0;
  for (let i = 0; i < n; i += step) { xs[clusters.values[i]].push(xy[2 * i]); ys[clusters.values[i]].push(xy[2 * i + 1]); }
  const middles = xs.map((values, c) => [middle(values), middle(ys[c])]);
  for (let i = 0; i < n; i++) {
    const c = clusters.values[i], away = Math.hypot(xy[2 * i] - middles[c][0], xy[2 * i + 1] - middles[c][1]);
    if (away < best[c][0]) best[c] = [away, i];
  }
  return best.map(each => each[1]);
})();
const dark = matchMedia("(prefers-color-scheme: dark)"), COLOURED = 60;
const GREY = [140, 146, 154];
function hsl(h, s, l) {
  const channel = shift => { const at = (shift + h / 30) % 12; return Math.round(255 * (l - s * Math.min(l, 1 - l) * Math.max(-1, Math.min(at - 3, 9 - at, 1)))); };
  return [channel(0), channel(8), channel(4)];
}
// Hues a golden angle apart, so that any number of the first differ, in turn darker and lighter.
const colourOf = rank => rank < COLOURED ? hsl((212 + rank * 137.508) % 360, [.62, .58, .7][rank % 3], [.5, .62, .4][rank % 3] + (dark.matches ? .1 : 0)) : GREY;
// Clusters that lie side by side get colours that differ: each, the largest first, the one of 24 that is least like
// those of its neighbours.
const apart = (a, b) => Math.hypot(a[0] - b[0], a[1] - b[1], a[2] - b[2]);
function spreadColours(spots) {  // spots: of clusters, on the plane; the rank of the colour of each
  const colours = Array.from({ length: 24 }, (_, rank) => colourOf(rank)), found = [];
  spots.forEach(([x, y]) => {
    const cost = colours.map(colour => found.reduce((sum, rank, c) => sum + Math.exp(-Math.hypot(spots[c][0] - x, spots[c][1] - y) / (.2 * extent) - apart(colour, colours[rank]) / 60), 0));
    found.push(cost.indexOf(Math.min(...cost)));
  });
  return Uint32Array.from(found);
}
const RAMP = [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [240, 220, 40]];
function rampColour(t) {
  const at = Math.max(0, Math.min(.9999, t)) * (RAMP.length - 1), from = Math.floor(at), part = at - from;
  return RAMP[from].map((value, c) => Math.round(value + (RAMP[from + 1][c] - value) * part));
}
const css = ([r, g, b]) => `rgb(${r} ${g} ${b})`;
let field = clusters, ranks = null, tints = null;
const shades = new Uint32Array(n);  // 0xBBGGRR, in the order of the cells
function shadeOf(i) {
  const value = field.values[i];
  if (field.kind === "category") return value === NONE ? GREY : colourOf(tints[value]);
  return Number.isNaN(value) ? GREY : rampColour((value - field.low) / (field.high - field.low || 1));
}
function paint() {  // by the field; of its values the most frequent come first
  if (field.kind === "category") {
    const order = Array.from(field.counts.keys()).sort((a, b) => field.counts[b] - field.counts[a] || a - b);
    ranks = new Uint32Array(order.length);
    order.forEach((code, rank) => { ranks[code] = rank; });
    tints = field === clusters ? spreadColours(centres.map(i => [xy[2 * i], xy[2 * i + 1]])) : ranks;
  }
  for (let j = 0; j < n; j++) { const [r, g, b] = shadeOf(inCells[j]); shades[j] = b << 16 | g << 8 | r; }
  redraw();
}
listen(dark, "change", () => { paint(); showLegend(); labelImages.clear(); });
