// -- justified rows: the height of each row is chosen so that its pictures fill the width
const GAP = () => innerWidth > 768 ? 8 : 4, HEIGHT = () => innerWidth > 768 ? 215 : 120;

function rows(shapes, width, gap, height) {  // [[width, height], ...] of pictures with these aspect ratios; null begins a group
  const sizes = [];
  let row = [], sum = 0;
  const close = full => {
    const high = full ? (width - gap * (row.length - 1)) / sum : Math.min(height, (width - gap * (row.length - 1)) / sum);
    let edge = 0, exact = 0;  // widths are rounded so that their sum is exactly the width
    for (const shape of row) {
      exact += shape * high;
      const wide = Math.round(exact) - edge;
      edge += wide; sizes.push([wide, Math.round(high)]);
    }
    row = []; sum = 0;
  };
  for (const shape of shapes) {
    if (shape === null) { if (row.length) close(false); sizes.push(null); continue; }
    row.push(shape); sum += shape;
    if (sum * height + gap * (row.length - 1) >= width) close(true);
  }
  if (row.length) close(false);
  return sizes;
}

const shapeOf = item => Math.min(3.2, Math.max(.45, (item.width || 1) / (item.height || 1)));
const widthOf = element => Math.floor(element.getBoundingClientRect().width);
let laidOut = 0;
function layOut() {
  const list = $("results"), width = laidOut = widthOf(list);
  if (!width || list.classList.contains("groups")) return;
  const tiles = [...list.children], shapes = tiles.map(tile => tile.classList.contains("group") ? null : Number(tile.dataset.shape));
  rows(shapes, width, GAP(), HEIGHT()).forEach((size, n) => {
    if (size) { tiles[n].style.width = size[0] + "px"; tiles[n].style.height = size[1] + "px"; }
  });
}
new ResizeObserver(() => { if (widthOf($("results")) !== laidOut && !$("view").open) layOut(); }).observe($("results"));

function skeleton(shown) {
  $("skeleton").hidden = !shown; $("results").hidden = shown;
  if (!shown) return;
  const shapes = Array.from({ length: 24 }, (_, n) => [1.5, .75, 1.33, 1, 1.78, 1.33][n * 7 % 6]);
  const sizes = rows(shapes, widthOf($("skeleton")), GAP(), HEIGHT());
  $("skeleton").replaceChildren(...sizes.map(([wide, high]) => { const box = make("i"); box.style.width = wide + "px"; box.style.height = high + "px"; return box; }));
}

// -- tiles
const MONTH = new Intl.DateTimeFormat("en", { month: "long", year: "numeric" });
const MEANING = { copy: ["Copies", "the same picture, changed a little"], close: ["Close", "nearer than the nearest neighbour of most pictures"],
  similar: ["Similar", "a little farther than the nearest neighbour of most pictures"], weak: ["Weak", "here only because nothing is nearer"] };
function groupOf(item) {
  if (item.rank) return MEANING[wordOf(item.similarity)];
  if (now.sort === "id") return ["", ""];
  return [item.modified ? MONTH.format(new Date(item.modified)) : "No date", ""];
}

let thumbs = new AbortController(), blobs = [];
const watcher = new IntersectionObserver(seen => {
  for (const each of seen) if (each.isIntersecting) { watcher.unobserve(each.target); loadThumbnail(each.target); }
}, { rootMargin: "900px" });

async function loadThumbnail(tile) {
  const link = tile.querySelector("a"), image = new Image(), signal = thumbs.signal;
  const failed = () => { link.textContent = "not available"; };
  try {
    const size = devicePixelRatio > 1.3 ? 640 : 384, url = await pictureURL(tile.dataset.id, "thumbnail", size, signal);
    if (key) blobs.push(url);
    image.alt = ""; image.decoding = "async"; image.onload = () => image.classList.add("here"); image.onerror = failed; image.src = url;
    link.replaceChildren(image);
  } catch (error) { if (error.name !== "AbortError") failed(); }
}

function quickButton(name, text, act) {
  const button = make("button"); button.type = "button"; button.title = text.split(":")[0]; button.setAttribute("aria-label", text);
  button.append(icon(name)); button.onclick = act;
  return button;
}
function tileOf(item) {
  const tile = make("li", "item"), link = make("a"), quick = make("div", "quick"), name = nameOf(item);
  tile.dataset.id = item.id; tile.dataset.shape = shapeOf(item); link.href = address({ ...now, view: item.id });
  link.className = "open"; link.title = item.path;
  link.setAttribute("aria-label", item.rank ? "Match " + item.rank + ": " + name + ", " + wordOf(item.similarity) + ", distance " + shortDistance(item.distance) : name + ", " + fileName(item.path));
  link.onclick = event => { if (event.ctrlKey || event.metaKey || event.shiftKey || event.button) return; event.preventDefault(); go({ view: item.id }); };
  quick.append(quickButton("search", "Find pictures like this: " + name, () => go({ ...NEW, id: item.id })));
  if (item.rank) for (const [kind, sign, words] of [["plus", "more", "More like this"], ["minus", "less", "Less like this"]]) {
    const button = quickButton(sign, words + ": match " + item.rank + ", " + name, () => vote(item.id, kind));
    button.dataset.vote = kind; quick.append(button);
  }
  const caption = make("span", "caption"); caption.append(make("span", "of", item.rank ? name + " · " : name));
  if (item.rank) caption.append(make("span", "far", shortDistance(item.distance)));
  tile.append(link, caption, quick);
  mark(tile); watcher.observe(tile);
  return tile;
}

function vote(id, kind) {  // a second vote of the same kind takes the first one back
  const other = kind === "plus" ? "minus" : "plus";
  go({ [kind]: now[kind].includes(id) ? now[kind].filter(n => n !== id) : [...now[kind], id], [other]: now[other].filter(n => n !== id) });
}
function mark(tile) {
  const id = Number(tile.dataset.id);
  tile.classList.toggle("more", now.plus.includes(id)); tile.classList.toggle("less", now.minus.includes(id));
  for (const button of tile.querySelectorAll("[data-vote]")) button.setAttribute("aria-pressed", String(now[button.dataset.vote].includes(id)));
}

function paint(list, from = 0) {  // from: the number of items that are painted already
  if (!from) {
    thumbs.abort(); thumbs = new AbortController(); watcher.disconnect();
    blobs.forEach(url => URL.revokeObjectURL(url)); blobs = [];
    $("results").replaceChildren(); list.group = null;
  }
  if (list.map) { paintMap(list); return; }
  closeMap();
  if (list.duplicates) { paintGroups(list, from); return; }
  const tiles = [];
  for (const item of list.items.slice(from)) {
    const [title, meaning] = groupOf(item);
    if (title && title !== list.group) { const heading = make("li", "group"); heading.append(make("h2", "", title), make("span", "", meaning)); tiles.push(heading); }
    list.group = title; tiles.push(tileOf(item));
  }
  $("results").append(...tiles); $("results").className = list.search ? "matches" : ""; layOut();
}
