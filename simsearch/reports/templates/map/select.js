// The selection: what a lasso, a search or values of the legend choose; the others fade. Within the lasso, if there is
// one, the search and the legend choose.
const lower = [];  // of items: what a search looks at, made when first needed
function searchable() {
  if (!lower.length) {
    const texts = fields.filter(each => each.kind === "category" && (each === clusters || each.name === "label"));
    for (let i = 0; i < n; i++) lower.push([fullPath(i), ...texts.map(each => valueOf(each, i) || "")].join("\n").toLowerCase());
  }
  return lower;
}
const pressed = new Set();  // codes of the legend's pressed values
let area = null, border = null;  // (n,) 1 for what is in the lasso; its corners, on the plane
function select(test, announce = true) {
  const chosen = new Uint8Array(n);
  count = 0;
  for (let i = 0; i < n; i++) if ((!area || area[i]) && test(i)) { chosen[i] = 1; count++; }
  selected = chosen;
  if (announce) say(`${count.toLocaleString("en")} of ${n.toLocaleString("en")} pictures selected`);
  showSelection();
  redraw();
}
function clearSelection() {
  selected = null; count = 0; path = null; area = border = null;
  pressed.clear();
  $("search").value = "";
  tellArea(); showSelection(); showLegend(); redraw();
}
const tellArea = () => { $("search").placeholder = area ? "Search in the lasso" : "Search paths and labels"; };
function selectArea() { if (area) select(() => true); else clearSelection(); }
const chosenItems = () => { const list = []; if (selected) for (let i = 0; i < n; i++) if (selected[i]) list.push(i); return list; };
function byLasso(corners) {  // on the plane
  const inside = (x, y) => {
    let odd = false;
    for (let a = 0, b = corners.length - 1; a < corners.length; b = a++) {
      const [ax, ay] = corners[a], [bx, by] = corners[b];
      if (ay > y !== by > y && x < (bx - ax) * (y - ay) / (by - ay) + ax) odd = !odd;
    }
    return odd;
  };
  pressed.clear(); $("search").value = ""; showLegend();
  area = null; border = corners;
  select(i => inside(xy[2 * i], xy[2 * i + 1]));
  area = selected; tellArea();
  if (!count) { clearSelection(); say("No pictures there"); }
}
function bySearch(text) {
  pressed.clear(); showLegend();
  const words = text.trim().toLowerCase().split(/\s+/).filter(Boolean);
  if (!words.length) { selectArea(); return; }
  const texts = searchable();
  select(i => words.every(word => texts[i].includes(word)));
}
function byLegend() {
  $("search").value = "";
  if (!pressed.size) { selectArea(); return; }
  select(i => pressed.has(field.values[i]));
}
function* nearestOf(i) { for (let at = i * near; at < (i + 1) * near; at++) if (neighbours[at] < n) yield neighbours[at]; }
function itemAt(x, y, reach = 12) {  // the picture or point under or nearest to a place on the screen; -1 for none
  for (const [i, px, py, width, height] of shown) if (Math.abs(x - px) <= width / 2 && Math.abs(y - py) <= height / 2) return i;
  let best = (reach + radiusNow()) ** 2, found = -1;
  const px = (x - view.ox) / view.k, py = (y - view.oy) / view.k, away = (reach + radiusNow()) / view.k;
  for (const i of itemsIn(px - away, py - away, px + away, py + away)) {
    if (selected && !selected[i]) continue;
    const distance = (screenX(i) - x) ** 2 + (screenY(i) - y) ** 2;
    if (distance < best) { best = distance; found = i; }
  }
  return found;
}
