// -- pictures that were chosen, dropped or pasted; the browser keeps the last ones, so that their addresses still work here
const files = new Map(), KEEP = 20;
const database = () => new Promise((done, failed) => {
  const opening = indexedDB.open("simsearch", 1);
  opening.onupgradeneeded = () => opening.result.createObjectStore("uploads");
  opening.onsuccess = () => done(opening.result); opening.onerror = () => failed(opening.error);
});
const finished = request => new Promise((done, failed) => { request.onsuccess = () => done(request.result); request.onerror = () => failed(request.error); });
async function keep(name, file) {
  files.set(name, file);
  try {
    const uploads = (await database()).transaction("uploads", "readwrite").objectStore("uploads");
    await finished(uploads.put(file, name));
    const names = await finished(uploads.getAllKeys());
    for (const old of names.slice(0, -KEEP)) uploads.delete(old);
  } catch { /* cannot be kept: its address works until the page is left */ }
}
async function uploaded(name) {
  if (!files.has(name)) {
    try { const file = await finished((await database()).transaction("uploads").objectStore("uploads").get(name)); if (file) files.set(name, file); }
    catch { /* none */ }
  }
  if (!files.has(name)) throw new Problem("This search is by a picture that only the browser it was chosen in has. Choose it again.", 410);
  return files.get(name);
}
function take(file) {
  if (!file) return;
  if (file.type && !file.type.startsWith("image/")) { problem(new Problem(file.name + " is not a picture.", 422)); return; }
  const name = Date.now().toString(36) + Math.random().toString(36).slice(2, 6);
  keep(name, file); go({ ...NEW, upload: name });
}

// -- the strip with the query's picture
let query = { key: "", name: "", size: null, url: null };
const queryKey = state => [state.upload, state.url, state.id, indexName(state)].join("|");
async function drawQuery() {
  $("query").hidden = !searching(now);
  document.title = "simsearch: find similar pictures";
  if (!searching(now)) { query = { key: "", name: "", size: null, url: null }; return; }
  if (query.key !== queryKey(now)) {
    const mine = query = { key: queryKey(now), name: now.url || "the picture", size: null, url: null };
    $("stage").hidden = $("private").hidden = true; $("shown").removeAttribute("src"); $("name").textContent = mine.name;
    try {
      if (now.upload) { const file = await uploaded(now.upload); mine.name = file.name || "pasted picture"; mine.url = URL.createObjectURL(file); }
      else if (now.id !== null) {
        const item = (shown && shown.items.find(each => each.id === now.id)) || await (await call(where("v1/items/" + now.id))).json();
        mine.name = fileName(item.path); mine.size = [item.width, item.height]; mine.url = await pictureURL(item.id, "thumbnail", 640);
      }
    } catch { /* the search itself says why */ }
    if (mine !== query) return;
    if (mine.url) $("shown").src = mine.url;
  }
  $("name").textContent = query.name; $("shown").alt = "The query: " + query.name; document.title = "Pictures like " + query.name + " · simsearch";
  $("private").hidden = !files.has(now.upload); drawBox(now.crop); drawLiked();
}
function drawBox(crop) {
  const image = $("shown"), style = $("box").style;
  $("stage").hidden = $("crophint").hidden = $("croplabel").hidden = !query.url; $("box").hidden = !crop || !query.size || !query.url;
  $("whole").hidden = !crop; $("crop").value = crop ? crop.join(",") : "";
  if ($("box").hidden) return;
  const ratio = image.clientWidth / query.size[0];
  ["left", "top", "width", "height"].forEach((side, n) => { style[side] = crop[n] * ratio + "px"; });
}
function drawLiked() {
  const votes = [...now.plus.map(id => [id, "plus"]), ...now.minus.map(id => [id, "minus"])], kept = new Map([...$("liked").children].map(each => [each.dataset.id, each]));
  $("likedfield").hidden = !votes.length;
  $("liked").replaceChildren(...votes.map(([id, kind]) => {
    const more = kind === "plus", item = kept.get(String(id)) || make("li"), button = make("button"), image = item.querySelector("img") || new Image();
    item.dataset.id = id; item.className = more ? "more" : "less"; button.type = "button"; image.alt = "";
    if (!image.src) pictureURL(id, "thumbnail", 128).then(url => { image.src = url; }).catch(() => {});
    button.setAttribute("aria-label", "Remove: " + (more ? "more" : "less") + " like picture " + id);
    button.append(image, make("b", "", more ? "+" : "−")); button.onclick = () => vote(id, kind); item.replaceChildren(button);
    return item;
  }));
}

$("shown").onload = () => { if (!query.size) query.size = [$("shown").naturalWidth, $("shown").naturalHeight]; drawBox(now.crop); };
$("shown").onerror = () => { query.url = null; drawBox(now.crop); };  // a format that the browser cannot show
addEventListener("resize", () => { if (searching(now)) drawBox(now.crop); });

let from = null, dragged = null;
const point = event => {
  const box = $("shown").getBoundingClientRect(), ratio = query.size[0] / box.width, place = (at, most) => Math.min(Math.max(Math.round(at * ratio), 0), most);
  return [place(event.clientX - box.left, query.size[0]), place(event.clientY - box.top, query.size[1])];
};
$("stage").onpointerdown = event => { if (!query.size) return; from = point(event); dragged = now.crop; $("stage").setPointerCapture(event.pointerId); };
$("stage").onpointermove = event => {
  if (!from) return;
  const to = point(event), crop = [0, 1].map(n => Math.min(from[n], to[n])).concat([0, 1].map(n => Math.abs(to[n] - from[n])));
  dragged = crop[2] < 4 || crop[3] < 4 ? null : crop; drawBox(dragged);
};
$("stage").onpointerup = () => { if (from) { from = null; go({ crop: dragged }); } };
$("stage").onpointercancel = () => { from = null; drawBox(now.crop); };
function inPixels(lengths) {  // far edges are rounded, not lengths, as the service does
  const size = query.size || [NaN, NaN], exact = lengths.map((text, n) => text.endsWith("%") ? text.slice(0, -1) / 100 * size[n % 2] : Number(text));
  return exact.map((n, place) => !lengths[place].endsWith("%") ? n : place < 2 ? Math.round(n) : Math.round(exact[place - 2] + n) - Math.round(exact[place - 2]));
}
$("crop").onchange = () => {
  const numbers = inPixels($("crop").value.split(/[ ,]+/).filter(Boolean));
  if (numbers.length && !(numbers.length === 4 && numbers.every(n => Number.isInteger(n) && n >= 0))) { problem(new Problem("A part of the picture is x,y,width,height: whole numbers of pixels, or percent such as 50%.", 422)); return; }
  go({ crop: numbers.length ? numbers : null });
};
$("whole").onclick = () => go({ crop: null });
$("forget").onclick = () => go({ plus: [], minus: [] });
$("clear").onclick = () => go({ ...NEW });
$("choose").onclick = () => $("file").click(); $("camera-button").onclick = () => $("camera").click();
for (const input of [$("file"), $("camera")]) input.onchange = () => { take(input.files[0]); input.value = ""; };
for (const name of ["dragover", "dragleave", "drop"]) addEventListener(name, event => {
  if (!event.dataTransfer || ![...event.dataTransfer.types].includes("Files")) return;
  event.preventDefault(); document.body.classList.toggle("over", name === "dragover");
  if (name === "drop") take(event.dataTransfer.files[0]);
});
addEventListener("paste", event => { const file = [...event.clipboardData.files].find(f => f.type.startsWith("image/")); if (file) take(file); });
$("urlform").onsubmit = event => { event.preventDefault(); const url = $("url").value.trim(); if (url) { $("url").value = ""; go({ ...NEW, url }); } };
