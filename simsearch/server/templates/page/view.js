// -- the large view
const LARGE = 1024, HEAVY = 6e6;  // side in pixels of the picture that is shown first; size in bytes from which the original is not loaded automatically
let viewed = null, viewBlobs = [];

const placeOf = id => shown ? shown.items.findIndex(item => item.id === id) : -1;
async function showView() {
  const id = now.view;
  if (id === null) { closeView(); return; }
  let item = shown && shown.items.find(each => each.id === id);
  try { item = item && !item.stub ? item : await (await call(where("v1/items/" + id))).json(); }
  catch (error) { report(error); go({ view: null }, { replace: true }); return; }
  if (now.view !== id) return;
  const fresh = !viewed || viewed.id !== id; viewed = item;
  drawView(item);
  if (!$("view").open) { $("view").showModal(); $("from-here").focus(); }
  if (fresh) loadLarge(item);
}
function closeView() {
  if (!$("view").open) return;
  $("view").close(); $("viewstage").querySelectorAll("img, p").forEach(each => each.remove());
  viewBlobs.forEach(url => URL.revokeObjectURL(url)); viewBlobs = [];
  const tile = viewed && document.querySelector('[data-id="' + viewed.id + '"]:is(.item, .member)'); viewed = null;
  if (now.map) $("map-canvas").focus({ preventScroll: true });
  if (tile) { tile.querySelector("a").focus({ preventScroll: true }); tile.scrollIntoView({ block: "nearest" }); }
}
function leaveView() { if (history.state && history.state.opened) history.back(); else go({ view: null }, { replace: true }); }

function drawView(item) {
  const place = placeOf(item.id), name = fileName(item.path), about = [];
  $("viewname").textContent = name; $("previous").disabled = place < 1;
  $("next").disabled = place < 0 || (place === shown.items.length - 1 && shown.done);
  if (item.rank) about.push(["Match", MEANING[wordOf(item.similarity)][0] + ", distance " + shortDistance(item.distance)]);
  if (item.group) about.push(["Duplicate", (canMove() ? goes(item) ? verb() + ", " : "Keep, " : "") + "distance " + shortDistance(item.distance) + " to the first of its group"]);
  if (item.label) about.push(["Label", item.label]);
  about.push(["Size", item.width + " × " + item.height + ", " + bytesText(item.bytes)]);
  if (item.modified) about.push(["Date", new Date(item.modified).toLocaleString("en-GB", { dateStyle: "long", timeStyle: "short" })]);
  for (const [field, value] of Object.entries(item.metadata)) about.push([field, String(value)]);
  about.push(["Path", item.path]);
  $("about").replaceChildren(...about.flatMap(([term, value]) => [make("dt", "", term), make("dd", "", value)]));
  $("open").href = $("save").href = fileURL(item.id, "image"); $("save").download = name;
  $("copy").lastElementChild.textContent = "Copy path";
  for (const button of $("facts").querySelectorAll("[data-vote]")) {
    button.hidden = !searching(now); button.setAttribute("aria-pressed", String(now[button.dataset.vote].includes(item.id)));
  }
}
async function loadLarge(item) {
  const stage = $("viewstage"), here = () => viewed === item;
  stage.querySelectorAll("img, p").forEach(each => each.remove());
  const show = async (kind, size) => {
    const url = await pictureURL(item.id, kind, size), image = new Image();
    if (key) viewBlobs.push(url);
    image.src = url; image.alt = fileName(item.path); await image.decode();
    if (here()) { stage.querySelectorAll("img, p").forEach(each => each.remove()); stage.prepend(image); }
  };
  try { await show("thumbnail", LARGE); }
  catch { if (here()) stage.prepend(make("p", "", "The file of this picture is not available.")); return; }
  if (!key) for (const by of [1, -1]) {  // loads the pictures beside this one ahead, so that they appear at once
    const place = placeOf(item.id), next = place < 0 ? null : shown.items[place + by];
    if (next) new Image().src = fileURL(next.id, "thumbnail", LARGE);
  }
  try { if (here() && item.bytes < HEAVY && Math.max(item.width, item.height) > LARGE) await show("image"); } catch { /* a format that browsers cannot show */ }
}
async function step(by) {
  let place = placeOf(viewed.id);
  if (place < 0) return;
  if (place + by === shown.items.length) await more();
  const next = shown.items[place + by];
  if (next) go({ view: next.id }, { replace: true });
}

$("shut").onclick = leaveView; $("previous").onclick = () => step(-1); $("next").onclick = () => step(1);
$("view").addEventListener("cancel", event => { event.preventDefault(); leaveView(); });
$("view").addEventListener("keydown", event => {
  if (event.key === "ArrowLeft") step(-1); else if (event.key === "ArrowRight") step(1); else return;
  event.preventDefault();
});
let swipe = null;
$("viewstage").addEventListener("pointerdown", event => { swipe = event.isPrimary && event.pointerType !== "mouse" ? [event.clientX, event.clientY] : null; });
$("viewstage").addEventListener("pointerup", event => {
  if (!swipe) return;
  const [x, y] = [event.clientX - swipe[0], event.clientY - swipe[1]]; swipe = null;
  if (Math.abs(x) > 50 && Math.abs(x) > 2 * Math.abs(y)) step(x < 0 ? 1 : -1);
});
$("from-here").onclick = () => go({ ...NEW, id: viewed.id });
$("details").onclick = () => { const hidden = $("facts").hidden = !$("facts").hidden; $("details").setAttribute("aria-expanded", String(!hidden)); };
$("copy").onclick = async () => {
  let done = true;
  try { await navigator.clipboard.writeText(viewed.path); }
  catch {  // no clipboard without HTTPS
    const field = make("textarea"); field.value = viewed.path; $("view").append(field); field.select();
    done = document.execCommand("copy"); field.remove();
  }
  $("copy").lastElementChild.textContent = done ? "Copied" : "Not allowed here"; $("copy").focus();
};
for (const button of $("facts").querySelectorAll("[data-vote]")) button.onclick = () => {
  const id = viewed.id, kind = button.dataset.vote, other = kind === "plus" ? "minus" : "plus";
  go({ view: null, [kind]: now[kind].includes(id) ? now[kind].filter(n => n !== id) : [...now[kind], id], [other]: now[other].filter(n => n !== id) });
};
for (const link of [$("open"), $("save")]) link.onclick = async event => {
  if (!key) return;  // the browser follows the link
  event.preventDefault();
  try {
    const url = await pictureURL(viewed.id, "image"); viewBlobs.push(url);
    const once = make("a"); once.href = url; if (link === $("save")) once.download = link.download; else { once.target = "_blank"; once.rel = "noopener"; } once.click();
  } catch (error) { report(error); }
};
