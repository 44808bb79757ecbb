// What is drawn: positions xy, ids, names (paths without the folder that they share) and fields to colour by of n items,
// and the `near` nearest ones of each, if they are known. All text from outside is set as text only.
const $ = name => document.getElementById("map-" + name);
const { n, xy, ids, neighbours, near, folder, names, fields, pictures } = source, NONE = 0xFFFF;
const leaving = new AbortController();  // takes all listeners away when the map makes room for another
const listen = (target, type, act, options = {}) => target.addEventListener(type, act, { ...options, signal: leaving.signal });
const fullPath = i => folder + names[i];
for (const field of fields) {
  if (field.kind !== "category") {
    field.low = Infinity; field.high = -Infinity;
    for (const value of field.values) if (!Number.isNaN(value)) { field.low = Math.min(field.low, value); field.high = Math.max(field.high, value); }
    continue;
  }
  field.counts = new Uint32Array(field.names.length);
  for (const code of field.values) if (code !== NONE) field.counts[code]++;
}
const clusters = fields[0];
const format = value => value.toLocaleString("en", { maximumSignificantDigits: 6, useGrouping: Math.abs(value) >= 10000 });
function valueOf(field, i) {
  const value = field.values[i];
  if (field.kind === "category") return value === NONE ? null : field.names[value];
  return Number.isNaN(value) ? null : format(value);
}

// Cells of a grid over the plane, to find items near a point.
let lowX = Infinity, highX = -Infinity, lowY = Infinity, highY = -Infinity;
for (let i = 0; i < n; i++) {
  lowX = Math.min(lowX, xy[2 * i]); highX = Math.max(highX, xy[2 * i]); lowY = Math.min(lowY, xy[2 * i + 1]); highY = Math.max(highY, xy[2 * i + 1]);
}
const extent = Math.max(highX - lowX, highY - lowY, 1e-6), CELLS = Math.max(1, Math.min(256, Math.ceil(Math.sqrt(n / 4))));
const cellOf = (value, low) => Math.max(0, Math.min(CELLS - 1, Math.floor((value - low) / extent * CELLS)));
const starts = new Uint32Array(CELLS * CELLS + 1), inCells = new Uint32Array(n), cellOfItem = new Uint32Array(n);
for (let i = 0; i < n; i++) starts[(cellOfItem[i] = cellOf(xy[2 * i + 1], lowY) * CELLS + cellOf(xy[2 * i], lowX)) + 1]++;
for (let c = 0; c < CELLS * CELLS; c++) starts[c + 1] += starts[c];
const next = starts.slice();
for (let i = 0; i < n; i++) inCells[next[cellOfItem[i]]++] = i;
const cellXY = new Float32Array(2 * n);  // positions in this order, so that points drawn one after the other lie close
for (let j = 0; j < n; j++) { cellXY[2 * j] = xy[2 * inCells[j]]; cellXY[2 * j + 1] = xy[2 * inCells[j] + 1]; }
function* itemsIn(x0, y0, x1, y1) {  // of the cells that a box touches
  const left = cellOf(x0, lowX), right = cellOf(x1, lowX);
  for (let row = cellOf(y0, lowY); row <= cellOf(y1, lowY); row++)
    for (let at = starts[row * CELLS + left]; at < starts[row * CELLS + right + 1]; at++) yield inCells[at];
}
