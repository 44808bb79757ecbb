// The embedded data: positions, fields, neighbours and paths of n items; all text from outside is set as text only.
const $ = id => document.getElementById(id);
const bytesOf = text => Uint8Array.from(atob(text), c => c.charCodeAt(0));
const fail = text => { $("state").textContent = text; throw new Error(text); };
if (!("DecompressionStream" in window)) fail("This browser is too old for the map: it cannot decompress its data.");
const unpacked = new Blob([bytesOf($("data").textContent)]).stream().pipeThrough(new DecompressionStream("gzip"));
const buffer = await new Response(unpacked).arrayBuffer();
$("data").remove();
const headLength = new DataView(buffer).getUint32(0, true);
const utf8 = new TextDecoder();
const head = JSON.parse(utf8.decode(new Uint8Array(buffer, 8, headLength)));
const TYPES = { f4: Float32Array, f8: Float64Array, u1: Uint8Array, u2: Uint16Array, u4: Uint32Array };
const array = name => {
  const [type, offset, length] = head.arrays[name];
  return new TYPES[type](buffer, 8 + headLength + offset, length);
};
const n = head.items, near = head.near, NONE = 0xFFFF;
const xy = array("positions"), ids = array("ids"), neighbours = array("neighbours");
const names = utf8.decode(array("paths")).split("\n");
const fullPath = i => head.folder + names[i];
const fields = head.fields.map(field => ({ ...field, values: array(field.array) }));
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

// Small pictures: m of the items have one, on sheets.
const pictured = array("pictured"), sizes = array("sizes"), m = pictured.length;
const pictureOf = new Int32Array(n).fill(-1);
pictured.forEach((place, j) => { pictureOf[place] = j; });
const sheets = [];
async function openSheets() {
  for (const element of document.querySelectorAll(".sheet")) {
    sheets.push(await createImageBitmap(new Blob([bytesOf(element.textContent)], { type: "image/webp" })));
    element.remove();
    redraw();
  }
}
function place(j) {  // of picture j: its sheet, and the part of it
  const { side, columns } = head.sheet, each = columns * columns, at = j % each;
  return [sheets[Math.floor(j / each)], at % columns * side, Math.floor(at / columns) * side, sizes[2 * j], sizes[2 * j + 1]];
}
function drawPicture(target, j, x, y, width, height) {
  const [sheet, left, top, w, h] = place(j);
  if (sheet) target.drawImage(sheet, left, top, w, h, x, y, width, height);
  return Boolean(sheet);
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
