// -- the map: all pictures on a plane, drawn by createMap, which the page of `simsearch map` uses too
const SIDE = 96, LOADING = 6, BITMAPS = 3000;  // side of small pictures in pixels; how many are loaded at once; how many are kept
const STEPS = { neighbours: ["Searching for the neighbours of each picture", "of"], layout: ["Laying the pictures out", "steps of"], names: ["Naming clusters", "of"] };
let map = null, mapOf = null;  // the map that is shown, and the list that it shows

async function fetchMap(list, signal, again) {
  for (;;) {
    const answer = await patiently(where("v1/map" + (again ? "?again=true" : "")), { signal }), found = await answer.json();
    if (answer.status === 202) {
      $("comparing").hidden = false; $("comparing").setAttribute("aria-label", "Drawing the map");
      if (found.total) { $("comparing").max = found.total; $("comparing").value = found.done; } else $("comparing").removeAttribute("value");
      say("Drawing the map. " + STEPS[found.step][0] + (found.total ? ": " + found.done.toLocaleString("en") + " " + STEPS[found.step][1] + " " + found.total.toLocaleString("en") : "") + ".");
      await sleep(found.total ? 700 : 300);
      if (signal.aborted) throw new DOMException("", "AbortError");
      continue;
    }
    comparing(null);
    Object.assign(list, { drawn: found, done: true, total: found.items });
    return [];
  }
}

function smallPictures(found) {  // loads small pictures when they are first drawn, the latest request first
  const bitmaps = new Map(), wanted = [], stopping = new AbortController();
  let busy = 0;
  async function load(i) {
    busy++;
    try {
      const answer = await call(fileURL(found.ids[i], "thumbnail", SIDE), { signal: stopping.signal });
      bitmaps.set(i, await createImageBitmap(await answer.blob()));
      for (const [old, bitmap] of bitmaps) { if (bitmaps.size <= BITMAPS) break; if (bitmap) bitmap.close(); bitmaps.delete(old); }
    } catch { bitmaps.set(i, null); }  // a picture that cannot be read stays a point
    busy--;
    if (stopping.signal.aborted) return;
    if (map) map.redraw();
    next();
  }
  function next() { while (busy < LOADING && wanted.length) { const i = wanted.pop(); if (!bitmaps.has(i)) load(i); } }
  function want(i) {
    if (bitmaps.has(i) || wanted.includes(i)) return;
    wanted.push(i); if (wanted.length > 200) wanted.shift();
    next();
  }
  return {
    order: Uint32Array.from(found.representatives), side: SIDE, has: i => { want(i); return Boolean(bitmaps.get(i)); },
    size: i => { const bitmap = bitmaps.get(i); return bitmap ? [bitmap.width, bitmap.height] : [0, 0]; },
    draw(target, i, x, y, width, height) {
      const bitmap = bitmaps.get(i);
      if (bitmap) target.drawImage(bitmap, x, y, width, height); else want(i);
      return Boolean(bitmap);
    },
    close() { stopping.abort(); bitmaps.forEach(bitmap => { if (bitmap) bitmap.close(); }); },
  };
}
function sourceOf(found) {  // converts an answer of the service to createMap's format
  const n = found.items, xy = new Float32Array(2 * n), NONE = 0xFFFF;
  for (let i = 0; i < n; i++) { xy[2 * i] = found.x[i]; xy[2 * i + 1] = found.y[i]; }
  const fields = found.fields.map(field => field.kind === "number"
    ? { ...field, values: Float32Array.from(field.values, value => value === null ? NaN : value) }
    : { ...field, values: Uint16Array.from(field.codes, code => code === null ? NONE : code) });
  return { n, xy, ids: found.ids, neighbours: null, near: 0, folder: found.folder, names: found.paths, fields, pictures: smallPictures(found), facts: found.facts };
}

function paintMap(list) {
  closeMap();
  if (!list.drawn.items) { drawMap(); return; }
  mapOf = list; $("map").hidden = $("map-head").hidden = false;
  const source = sourceOf(list.drawn);
  map = createMap(source, {
    open(i, chosen) {  // the large view steps through the selection
      list.items = (chosen.length > 1 && chosen.length <= 5000 ? chosen : [i]).map(each => ({ id: source.ids[each], stub: true }));
      go({ view: source.ids[i] });
    },
    changed(found) { if (now.map) go(found, { replace: true }); },
  });
  map.pictures = source.pictures;
  drawMap(); map.restore(now);
}
function closeMap() {
  if (map) { map.close(); map.pictures.close(); }
  map = mapOf = null; $("map").hidden = $("map-head").hidden = true;
}
function drawMap() {  // draws what is around the map
  document.body.classList.toggle("mapped", now.map);
  document.querySelectorAll(".mapping").forEach(each => { each.hidden = !now.map; });
  $("to-all").hidden = !now.duplicates && !now.map;
  $("to-map").href = address({ ...parse(""), index: now.index, map: true });
  if (now.map) document.title = "Map · simsearch";
  const found = now.map && mapOf && mapOf.drawn, changed = found && (found.added || found.removed);
  $("outdated").hidden = !changed;
  if (!changed) return;
  const parts = [found.added ? plural(found.added, "picture is", "pictures are") + " new" : "", found.removed ? plural(found.removed, "picture is", "pictures are") + " gone" : ""].filter(Boolean);
  $("outdated-text").textContent = "The index has changed since this map was drawn: " + parts.join(", ") + ".";
  $("redraw").hidden = !found.redraws; $("outdated-command").hidden = found.redraws; $("outdated-command").textContent = "simsearch map -i " + indexName();
}
$("redraw").onclick = () => { kept.delete(contents(now)); load(now, null, false, true); };
