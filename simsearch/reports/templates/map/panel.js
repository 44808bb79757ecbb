// The panel: the legend and the selection; and the card of a picture.
const LISTED = 500, LEGEND = 100;
let timer = 0;
function say(text) { clearTimeout(timer); timer = setTimeout(() => { $("status").textContent = text; }, 150); }
function make(tag, text = "", properties = {}) { const made = Object.assign(document.createElement(tag), properties); if (text) made.textContent = text; return made; }

function showLegend() {
  const numeric = field.kind !== "category";
  $("legendname").textContent = field === clusters ? "Clusters" : field.name;
  $("ramp").hidden = !numeric; $("legend").hidden = numeric; $("rest").textContent = "";
  if (numeric) {
    $("low").textContent = format(field.low); $("high").textContent = format(field.high);
    $("ramp").querySelector("i").style.background = `linear-gradient(to right, ${RAMP.map(css).join(", ")})`;
    return;
  }
  const codes = Array.from(field.counts.keys()).sort((a, b) => ranks[a] - ranks[b]);
  $("legend").replaceChildren(...codes.slice(0, LEGEND).map(code => {
    const button = make("button", "", { type: "button" }), dot = make("i"), name = make("span", field.names[code], { dir: "auto" });
    dot.style.background = css(colourOf(tints[code]));
    button.append(dot, name, make("small", field.counts[code].toLocaleString("en")));
    button.setAttribute("aria-pressed", pressed.has(code));
    button.title = field === clusters && field.notes[code] ? `${field.names[code]}: ${field.notes[code]}` : field.names[code];
    button.onclick = () => { pressed.has(code) ? pressed.delete(code) : pressed.add(code); button.setAttribute("aria-pressed", pressed.has(code)); byLegend(); };
    const item = make("li"); item.append(button);
    return item;
  }));
  const without = field.values.reduce((total, code) => total + (code === NONE), 0);
  $("rest").textContent = [codes.length > LEGEND ? `and ${(codes.length - LEGEND).toLocaleString("en")} more` : "", without ? `${without.toLocaleString("en")} without` : ""].filter(Boolean).join(", ");
}

function showSelection() {
  $("selection").hidden = !selected;
  if (!selected) return;
  $("selected").textContent = `${count.toLocaleString("en")} selected`;
  for (const id of ["copy", "save", "zoom"]) $(id).disabled = !count;
  const list = chosenItems(), items = list.slice(0, LISTED).map(i => { const item = make("li", names[i].split("/").slice(-2).join("/"), { title: fullPath(i) }); item.dataset.item = i; return item; });
  if (list.length > LISTED) items.push(make("li", `and ${(list.length - LISTED).toLocaleString("en")} more`, { className: "faint" }));
  $("paths").replaceChildren(...items);
}
const pathsText = () => chosenItems().map(fullPath).join("\n") + "\n";
async function copyPaths() {
  const text = pathsText();
  try { await navigator.clipboard.writeText(text); }
  catch {  // a page opened from a file may not use it everywhere
    const area = make("textarea", text); document.body.append(area); area.select(); document.execCommand("copy"); area.remove();
  }
  $("copy").textContent = "Copied"; say(`${count.toLocaleString("en")} paths copied`);
  setTimeout(() => { $("copy").textContent = "Copy paths"; }, 1500);
}
function savePaths() {
  const link = make("a", "", { href: URL.createObjectURL(new Blob([pathsText()], { type: "text/plain" })), download: "paths.txt" });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

function showCard(i, x, y) {
  const card = $("card"), preview = $("preview");
  card.classList.toggle("pinned", pinned === i);
  card.hidden = false;
  $("path").textContent = names[i];
  preview.hidden = !pictures.has(i);
  if (!preview.hidden) {
    [preview.width, preview.height] = pictures.size(i).map(length => 2 * length);
    pictures.draw(preview.getContext("2d"), i, 0, 0, preview.width, preview.height);
    preview.setAttribute("aria-label", `Picture ${names[i]}`);
  }
  $("values").replaceChildren(...fields.map(each => [each.name, valueOf(each, i)]).filter(pair => pair[1] !== null).slice(0, 6).concat([["id", String(ids[i])]]).map(([name, value]) => {
    const line = make("div"); line.append(make("dt", name), make("dd", value, { dir: "auto" })); return line;
  }));
  if (pinned === i) showNearest(i);
  const { width, height } = card.getBoundingClientRect();
  card.style.left = `${Math.max(8, x + 18 + width > view.width ? x - width - 18 : x + 18)}px`;
  card.style.top = `${Math.max(8, Math.min(view.height - height - 8, y - 20))}px`;
}
function squareOf(i, side) {  // the middle of a picture
  const made = make("canvas", "", { width: side, height: side }), [w, h] = pictures.size(i), scale = side / Math.min(w, h);
  pictures.draw(made.getContext("2d"), i, (side - w * scale) / 2, (side - h * scale) / 2, w * scale, h * scale);
  return made;
}
function showNearest(i) {
  $("nearest").hidden = !near;
  $("nearest").querySelector("ul").replaceChildren(...Array.from(nearestOf(i), other => {
    const button = make("button", "", { type: "button", title: names[other] });
    button.setAttribute("aria-label", `Go to ${names[other]}`);
    if (pictures.has(other)) button.append(squareOf(other, 96));
    else button.textContent = names[other].split("/").pop();
    button.onclick = () => goTo(other);
    const item = make("li"); item.append(button);
    return item;
  }));
}
function refreshCard() {  // when its picture has come
  const i = hovered;
  if (i < 0 || $("card").hidden || !host.open) return;
  const { left, top } = $("card").style;
  showCard(i, 0, 0); Object.assign($("card").style, { left, top });
}
function hideCard() { if (pinned >= 0 || hovered >= 0 || !$("card").hidden) { pinned = hovered = -1; $("card").hidden = true; redraw(); } }
function pin(i) {
  if (host.open) { hideCard(); tellChange(); host.open(i, chosenItems()); return; }
  pinned = i; hovered = -1; redraw(); showCard(i, screenX(i), screenY(i));
  say(`${names[i]}, ${valueOf(clusters, i) || ""}`);
}
function goTo(i) {  // brings it to the middle of the map, and shows its card
  view.ox += view.width / 2 - screenX(i); view.oy += view.height / 2 - screenY(i);
  if (view.k < 4 * view.fit) zoomBy(4 * view.fit / view.k);
  if (host.open) { hovered = i; redraw(); showCard(i, screenX(i), screenY(i)); } else pin(i);
}
function showFacts() {
  canvas.setAttribute("aria-label", `Map of ${n.toLocaleString("en")} pictures`);
  $("facts").replaceChildren(...Object.entries(source.facts).map(([name, value]) => { const line = make("div"); line.append(make("dt", name), make("dd", value, { dir: "auto" })); return line; }));
}
