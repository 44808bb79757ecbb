// A frame: points as pixels in memory, which takes the same time for any number of pictures on any graphics card; over
// them small pictures, the names of clusters, the lasso, and lines to the nearest pictures of the one pinned.
let pending = 0, image = null, pixels = null;
let selected = null, count = 0;  // (n,) 1 for selected; null for none
let hovered = -1, pinned = -1, path = null;  // path: of the lasso, in pixels
let shown = [];  // pictures in this frame: item, x, y, width, height
function redraw() { if (!pending && !leaving.signal.aborted) pending = requestAnimationFrame(() => { pending = 0; if (!leaving.signal.aborted) { draw(); noteChange(); } }); }

const discs = new Map();
function disc(radius) {  // its pixels: the way to each in memory, and how much of it is covered, of 256
  const key = Math.round(radius * 4), { width } = image;
  if (discs.width !== width) { discs.clear(); discs.width = width; }
  if (!discs.has(key)) {
    const r = key / 4, reach = Math.ceil(r), cells = [];
    for (let y = -reach; y <= reach; y++)
      for (let x = -reach; x <= reach; x++) {  // the smallest are squares of 2 x 2
        const cover = key < 5 ? (x >= 0 && y >= 0 && x < 2 && y < 2 ? 210 : 0) : Math.round(225 * Math.max(0, Math.min(1, r + .5 - Math.hypot(x, y))));
        if (cover > 8) cells.push(y * width + x, cover);
      }
    discs.set(key, { reach: Math.max(reach, 1), cells: Int32Array.from(cells) });
  }
  return discs.get(key);
}
const rgbOf = name => { const value = getComputedStyle(document.documentElement).getPropertyValue(name).trim(); const hex = value.length === 4 ? value.replace(/[0-9a-f]/gi, "$&$&") : value; return [1, 3, 5].map(at => parseInt(hex.slice(at, at + 2), 16)); };

function stamp(which, radius, faint) {  // draws the points that `which` chooses: 0 all, 1 selected, 2 others
  const { width, height } = image, { reach, cells } = disc(radius), { k, ox, oy, ratio } = view;
  const scale = k * ratio, left = ox * ratio, top = oy * ratio, length = cells.length;
  const weight = faint ? (n > 20000 ? 36 : 60) : 256, grey = faint && GREY[2] << 16 | GREY[1] << 8 | GREY[0];
  const first = cellOf(-ox / k - reach / scale, lowX), last = cellOf((view.width - ox) / k + reach / scale, lowX);
  const until = cellOf((view.height - oy) / k + reach / scale, lowY);
  for (let row = cellOf(-oy / k - reach / scale, lowY); row <= until; row++) {  // cell by cell: only those in sight
    const end = starts[row * CELLS + last + 1];
    for (let j = starts[row * CELLS + first]; j < end; j++) {
      if (which && (selected[inCells[j]] === 1) !== (which === 1)) continue;
      const x = Math.round(cellXY[2 * j] * scale + left), y = Math.round(cellXY[2 * j + 1] * scale + top);
      if (x < reach || y < reach || x >= width - reach || y >= height - reach) continue;
      const shade = faint ? grey : shades[j], r = shade & 255, g = shade >> 8 & 255, b = shade >> 16, at = y * width + x;
      for (let c = 0; c < length; c += 2) {
        const to = at + cells[c], a = cells[c + 1] * weight >> 8, old = pixels[to];
        const or = old & 255, og = old >> 8 & 255, ob = old >> 16 & 255;
        pixels[to] = 0xFF000000 | ob + ((b - ob) * a >> 8) << 16 | og + ((g - og) * a >> 8) << 8 | or + ((r - or) * a >> 8);
      }
    }
  }
}

function radiusNow() {
  const least = Math.max(.8, Math.min(3.2, .32 * Math.sqrt(view.width * view.height / n)));
  return Math.min(7.5, least * Math.pow(view.k / view.fit, .4));
}
function draw() {
  const { width, height } = canvas, { ratio } = view;
  if (!image || image.width !== width || image.height !== height) { image = context.createImageData(width, height); pixels = new Uint32Array(image.data.buffer); }
  const [r, g, b] = rgbOf("--map");
  pixels.fill(0xFF000000 | b << 16 | g << 8 | r);
  const radius = radiusNow() * ratio;
  if (selected) { stamp(2, radius, true); stamp(1, radius, false); } else stamp(0, radius, false);
  context.setTransform(1, 0, 0, 1, 0, 0);
  context.putImageData(image, 0, 0);
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  drawPictures();
  if (pinned >= 0) drawLines();
  drawNames();
  for (const i of [hovered, pinned]) if (i >= 0) ring(i);
  if (path) drawLasso();
}

function drawPictures() {
  shown = [];
  const mode = $("pictures").value, { side, order } = pictures;
  if (mode === "never" || !order.length) return;
  const size = Math.max(34, Math.min(side, 44 * Math.pow(view.k / view.fit, .18))), gap = size + 6;
  const across = Math.ceil(view.width / gap), down = Math.ceil(view.height / gap), seen = [];
  for (const i of order) {
    const x = screenX(i), y = screenY(i);
    if (x > -size && y > -size && x < view.width + size && y < view.height + size && (!selected || selected[i])) seen.push(i);
  }
  if (mode === "auto" && (view.k < 1.6 * view.fit || seen.length > 3 * across * down) && n > 60) return;
  const taken = new Map();  // by square of the screen: the boxes in it
  const free = (x, y) => {
    const column = Math.floor(x / gap), row = Math.floor(y / gap);
    for (let a = -1; a <= 1; a++) for (let c = -1; c <= 1; c++)
      for (const [ox, oy] of taken.get((row + a) * 4096 + column + c) || []) if (Math.abs(ox - x) < gap && Math.abs(oy - y) < gap) return false;
    const key = row * 4096 + column;
    taken.set(key, [...(taken.get(key) || []), [x, y]]);
    return true;
  };
  for (const i of seen) {  // those that show most of the map come first
    const x = screenX(i), y = screenY(i);
    if (!free(x, y)) continue;
    const scale = size / side, [width, height] = pictures.size(i).map(length => length * scale);
    context.fillStyle = css(shadeOf(i));
    context.fillRect(x - width / 2 - 2, y - height / 2 - 2, width + 4, height + 4);
    if (pictures.draw(context, i, x - width / 2, y - height / 2, width, height)) shown.push([i, x, y, width + 4, height + 4]);
  }
}

function drawLines() {
  context.strokeStyle = dark.matches ? "#ffffffb0" : "#000000a0"; context.lineWidth = 1.5;
  context.beginPath();
  for (const other of nearestOf(pinned)) { context.moveTo(screenX(pinned), screenY(pinned)); context.lineTo(screenX(other), screenY(other)); }
  context.stroke();
}
function ring(i) {
  const box = shown.find(each => each[0] === i), x = screenX(i), y = screenY(i);
  context.strokeStyle = dark.matches ? "#fff" : "#000"; context.lineWidth = 2.5;
  context.beginPath();
  if (box) context.rect(x - box[3] / 2, y - box[4] / 2, box[3], box[4]); else context.arc(x, y, radiusNow() + 3, 0, 7);
  context.stroke();
}
function drawLasso() {
  context.beginPath();
  path.forEach(([x, y], at) => at ? context.lineTo(x, y) : context.moveTo(x, y));
  context.closePath();
  context.fillStyle = dark.matches ? "#84b6ee30" : "#1f5fa820"; context.fill();
  context.strokeStyle = dark.matches ? "#84b6ee" : "#1f5fa8"; context.lineWidth = 2; context.setLineDash([6, 4]); context.stroke(); context.setLineDash([]);
}

// Names of clusters: the larger one comes first, none over another.
const labelImages = new Map();
function labelImage(c) {
  if (!labelImages.has(c)) {
    const made = document.createElement("canvas"), to = made.getContext("2d"), font = "600 13px system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', sans-serif";
    const name = clusters.names[c], text = name.length > 30 ? name.slice(0, 29) + "…" : name;
    to.font = font;
    const width = Math.ceil(to.measureText(text).width) + 8;
    made.width = width * view.ratio; made.height = 22 * view.ratio;
    to.scale(view.ratio, view.ratio);
    to.font = font; to.textBaseline = "middle"; to.lineJoin = "round"; to.lineWidth = 4;
    to.strokeStyle = dark.matches ? "#0f1215e0" : "#fffffff0"; to.fillStyle = dark.matches ? "#fff" : "#14171a";
    to.strokeText(text, 4, 11); to.fillText(text, 4, 11);
    labelImages.set(c, { made, width });
  }
  return labelImages.get(c);
}
function drawNames() {
  if (clusters.names.length < 2) return;
  const boxes = [];
  for (let c = 0; c < clusters.names.length; c++) {
    const x = screenX(centres[c]), y = screenY(centres[c]);
    if (x < 0 || y < 0 || x > view.width || y > view.height) continue;
    const { made, width } = labelImage(c), left = Math.max(2, Math.min(view.width - width - 2, x - width / 2)), top = y - 11;
    if (boxes.some(([l, t, w]) => l < left + width && left < l + w && Math.abs(t - top) < 20)) continue;
    boxes.push([left, top, width]);
    context.drawImage(made, left, top, width, 22);
  }
}
