// Where one looks, the colour and the selection as short texts, so that an address can hold them.
const CORNERS = 60, short = value => String(Number(value.toPrecision(5)));
function onPlane(corners) {  // of a lasso on the screen; at most CORNERS of them
  const step = Math.max(1, corners.length / CORNERS), found = [];
  for (let at = 0; at < corners.length; at += step) { const [x, y] = corners[Math.floor(at)]; found.push([(x - view.ox) / view.k, (y - view.oy) / view.k]); }
  return found;
}
function describe() {
  const x = (view.width / 2 - view.ox) / view.k, y = (view.height / 2 - view.oy) / view.k, zoom = view.k / view.fit;
  const whole = Math.abs(zoom - 1) < .01 && Math.abs(x - (lowX + highX) / 2) + Math.abs(y - (lowY + highY) / 2) < extent / 100;
  return {
    at: whole ? "" : [x, y, zoom].map(short).join(","), colour: field === clusters ? "" : field.name,
    lasso: border ? border.map(corner => corner.map(short).join(",")).join(";") : "", q: $("search").value.trim(),
  };
}
let told = "", telling = 0;
function tellChange() {
  clearTimeout(telling);
  const found = describe(), text = JSON.stringify(found);
  if (!host.changed || leaving.signal.aborted || text === told || !canvas.offsetParent) return;
  told = text; host.changed(found);
}
function noteChange() { clearTimeout(telling); telling = setTimeout(tellChange, 300); }
function restore({ at, colour, lasso, q }) {  // what `describe` gave, now or in another browser
  told = JSON.stringify({ at, colour, lasso, q });
  if (told === JSON.stringify(describe())) return;
  const numbers = text => text.split(",").map(Number), right = (values, count) => values.length === count && values.every(Number.isFinite);
  field = fields.find(each => each.name === colour) || clusters;
  $("colour").value = fields.indexOf(field);
  clearSelection(); paint(); showLegend();
  const corners = lasso.split(";").map(numbers);
  if (corners.length > 2 && corners.every(corner => right(corner, 2))) byLasso(corners);
  if (q) { $("search").value = q; bySearch(q); }
  showAll();
  const [x, y, zoom] = numbers(at);
  if (right(numbers(at), 3) && zoom > 0) { view.k = view.fit * Math.max(.5, Math.min(400, zoom)); view.ox = view.width / 2 - x * view.k; view.oy = view.height / 2 - y * view.k; }
  redraw();
}
