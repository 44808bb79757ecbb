// Mouse, touch and keys.
const pointers = new Map();
let lassoing = false, moved = 0, pinch = null;
const at = event => { const box = canvas.getBoundingClientRect(); return [event.clientX - box.left, event.clientY - box.top]; };
function setLasso(on) { lassoing = on; $("lasso").setAttribute("aria-pressed", on); canvas.classList.toggle("lasso", on); }
const spread = () => { const [[ax, ay], [bx, by]] = [...pointers.values()]; return { x: (ax + bx) / 2, y: (ay + by) / 2, d: Math.hypot(ax - bx, ay - by) || 1 }; };

listen(canvas, "pointerdown", event => {
  if (event.button) return;
  canvas.setPointerCapture(event.pointerId);
  pointers.set(event.pointerId, at(event));
  moved = 0;
  if (pointers.size === 2) { path = null; pinch = spread(); }
  else if (pointers.size === 1 && (lassoing || event.shiftKey)) path = [at(event)];
});
listen(canvas, "pointermove", event => {
  const [x, y] = at(event), before = pointers.get(event.pointerId);
  if (!before) {
    if (event.pointerType === "touch") return;
    const i = itemAt(x, y);
    canvas.classList.toggle("over", i >= 0 && !lassoing);
    if (i !== hovered) { hovered = i; redraw(); if (pinned < 0 && i < 0) $("card").hidden = true; }
    if (i >= 0 && pinned < 0) showCard(i, x, y);
    return;
  }
  pointers.set(event.pointerId, [x, y]);
  moved += Math.hypot(x - before[0], y - before[1]);
  if (pointers.size === 2) {
    const now = spread();
    panBy(now.x - pinch.x, now.y - pinch.y); zoomBy(now.d / pinch.d, now.x, now.y);
    pinch = now;
  } else if (path) { path.push([x, y]); redraw(); }
  else if (pointers.size === 1 && moved > 3) { canvas.classList.add("drags"); hideCard(); panBy(x - before[0], y - before[1]); }
});
function lift(event) {
  if (!pointers.delete(event.pointerId)) return;
  canvas.classList.remove("drags");
  const drawn = path;
  path = null;
  if (drawn && drawn.length > 3) { setLasso(false); hideCard(); byLasso(onPlane(drawn)); openPanel(true); }
  redraw();
}
listen(canvas, "click", event => {  // after all events of the touch, which could meet the card
  if (moved > (event.pointerType === "touch" ? 8 : 3)) return;
  const i = itemAt(...at(event), event.pointerType === "touch" ? 20 : 12);
  if (i >= 0) pin(i); else hideCard();
});
for (const name of ["pointerup", "pointercancel"]) listen(canvas, name, lift);
listen(canvas, "pointerleave", () => { if (pinned < 0) hideCard(); });
listen(canvas, "wheel", event => {
  event.preventDefault();
  hideCard();
  const step = event.deltaY * (event.deltaMode === 1 ? 20 : event.deltaMode === 2 ? 400 : 1) * (event.ctrlKey ? 4 : 1);
  zoomBy(Math.exp(-Math.max(-400, Math.min(400, step)) / 400), ...at(event));
}, { passive: false });
listen(canvas, "dblclick", event => { hideCard(); zoomBy(2, ...at(event)); });

const visited = new Set();
function nextNear() {  // the nearest to the middle of the map that has not been visited
  const x = view.width / 2, y = view.height / 2;
  let best = Infinity, found = -1;
  for (let i = 0; i < n; i++) {
    if (visited.has(i) || selected && !selected[i]) continue;
    const away = (screenX(i) - x) ** 2 + (screenY(i) - y) ** 2;
    if (away < best) { best = away; found = i; }
  }
  if (found < 0) return;
  visited.add(found);
  hovered = found; redraw();
  if (pinned >= 0) pinned = -1;
  showCard(found, screenX(found), screenY(found));
  say(`${names[found]}, ${valueOf(clusters, found) || ""}`);
}
const KEYS = {
  ArrowLeft: () => panBy(60, 0), ArrowRight: () => panBy(-60, 0), ArrowUp: () => panBy(0, 60), ArrowDown: () => panBy(0, -60),
  "+": () => zoomBy(1.4), "=": () => zoomBy(1.4), "-": () => zoomBy(1 / 1.4), 0: () => { showAll(); redraw(); },
  n: nextNear, l: () => setLasso(!lassoing), Enter: () => { if (hovered >= 0) pin(hovered); },
};
listen(canvas, "keydown", event => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const act = KEYS[event.key] || KEYS[event.key.toLowerCase()];
  if (!act) return;
  event.preventDefault();
  if (event.key.startsWith("Arrow") || "+-=0".includes(event.key)) { hideCard(); visited.clear(); }
  act();
});
listen(window, "keydown", event => {
  if (event.key !== "Escape" || document.querySelector("dialog[open]") || !canvas.offsetParent) return;
  if (path || lassoing) { path = null; setLasso(false); redraw(); }
  else if (!$("card").hidden) { hideCard(); visited.clear(); }
  else clearSelection();
});

function openPanel(open) { $("panel").classList.toggle("open", open); $("toggle").setAttribute("aria-expanded", open); }
$("toggle").onclick = () => openPanel(!$("panel").classList.contains("open"));
$("in").onclick = () => zoomBy(1.6); $("out").onclick = () => zoomBy(1 / 1.6); $("fit").onclick = () => { showAll(); redraw(); };
$("lasso").onclick = () => setLasso(!lassoing);
$("copy").onclick = copyPaths; $("save").onclick = savePaths; $("clear").onclick = clearSelection; $("zoom").onclick = () => { frameItems(chosenItems()); canvas.focus(); };
$("paths").onclick = event => { const item = event.target.closest("[data-item]"); if (item) goTo(Number(item.dataset.item)); };
$("unpin").onclick = () => { hideCard(); canvas.focus(); };
$("pictures").onchange = redraw;
let waiting = 0;
listen($("search"), "input", () => { clearTimeout(waiting); waiting = setTimeout(() => bySearch($("search").value), n > 20000 ? 250 : 80); });
listen($("search"), "keydown", event => { if (event.key === "Enter" && count) { frameItems(chosenItems()); } });
$("colour").replaceChildren(...fields.map((each, number) => make("option", each.name, { value: number })));
$("colour").onchange = () => { field = fields[Number($("colour").value)]; if (pressed.size) { pressed.clear(); selectArea(); } paint(); showLegend(); };
$("picturesfield").hidden = !pictures.order.length;

const resized = new ResizeObserver(resize);
resized.observe($("stage"));
paint(); resize(); showLegend(); showFacts(); clearSelection(); hideCard();
$("state").hidden = true;
return { redraw() { redraw(); refreshCard(); }, restore, close() { resized.disconnect(); leaving.abort(); } };
