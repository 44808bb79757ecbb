// -- what is shown: the items of the index, or the matches of a search
const PAGE = 60;
let service = null, shown = null, running = null, loading = null;
const kept = new Map();  // the last lists, by address, so that going back takes no time

const indexName = (state = now) => state.index || (service ? (service.indexes.find(index => index.items) || service.indexes[0]).name : "");
const say = text => { $("status").textContent = text; };
function problem(error) {
  $("what").textContent = error ? error.message : ""; $("problem").hidden = !error; $("again").hidden = !error || !error.passing;
  if (error) $("problem").scrollIntoView({ block: "nearest" });  // on a phone, it lies below open filters
}

async function fetchList(state, list, signal, again) {  // loads the next page of a list; its items also have their sizes
  if (list.map) return fetchMap(list, signal, again);
  if (list.duplicates) return fetchGroups(state, list, signal);
  if (!list.search) {
    const given = new URLSearchParams({ limit: PAGE, sort: state.sort || "newest" });
    if (list.next !== null) given.set("after", list.next);
    if (state.folder) given.set("folder", state.folder);
    for (const filter of state.filter) given.append("filter", filter);
    const page = await (await patiently(where("v1/items?" + given), { signal })).json();
    list.total = page.total; list.next = page.next; list.notes = page.notes; list.done = page.next === null;
    return page.items;
  }
  const k = Math.min(list.items.length + PAGE, service.max_k), began = performance.now();
  const answer = await (await patiently(where("v1/search"), { ...await asked(state, k), signal })).json();
  list.done = answer.matches.length < k || k === service.max_k || k >= service.indexes.find(index => index.name === indexName(state)).items;
  list.notes = answer.notes; list.facts = { milliseconds: Math.round(performance.now() - began), took: Math.round(answer.took_ms), exact: answer.exact };
  const fresh = answer.matches.slice(list.items.length), sizes = new Map();
  for (let start = 0; start < fresh.length; start += 100) {
    const ids = fresh.slice(start, start + 100).map(match => "id=" + match.id).join("&");
    for (const item of (await (await patiently(where("v1/items?" + ids), { signal })).json()).items) sizes.set(item.id, item);
  }
  return fresh.map(match => ({ width: 1, height: 1, bytes: 0, modified: null, ...sizes.get(match.id), ...match }));
}
async function asked(state, k) {  // makes the request for a search
  const body = { k }, filters = [...state.filter, ...(state.folder ? ["path~" + literal(state.folder) + "/*"] : [])];
  if (filters.length) body.filter = filters;
  for (const name of [...NUMBERS, "crop"]) if (state[name] !== null) body[name] = state[name];
  for (const name of FLAGS) if (state[name]) body[name] = true;
  for (const name of ["plus", "minus"]) if (state[name].length) body[name] = state[name];
  if (!state.upload) {
    if (state.url) body.url = state.url; else body.id = state.id;
    return { method: "POST", body: JSON.stringify(body), headers: { "Content-Type": "application/json" } };
  }
  const form = new FormData(), file = await uploaded(state.upload);
  form.append("image", file, file.name || "pasted picture");
  for (const [name, value] of Object.entries(body))
    if (Array.isArray(value) && name !== "crop") value.forEach(each => form.append(name, each)); else form.append(name, String(value));
  return { method: "POST", body: form };
}

function show(state, restored = null) {  // shows an address; restored: the state of an entry of the history
  const before = now; now = state;
  $("home").href = address({ ...parse(""), index: state.index });
  if (service && service.indexes.length) $("index").value = indexName();
  drawFilters(); loadFacets(); drawQuery();
  if (before.duplicates !== state.duplicates) tellDone("");
  if (before.map && !state.map) closeMap();
  if (service) { drawDuplicates(); drawMap(); }
  if (loading !== contents(state) && (!shown || shown.key !== contents(state) || loading)) load(state, restored, searching(before) !== searching(state) || before.duplicates !== state.duplicates || before.map !== state.map || queryKey(before) !== queryKey(state));
  else { document.querySelectorAll(".item").forEach(mark); if (map && state.map) map.restore(state); }
  showView();
}
async function load(state, restored = null, changed = true, again = false) {
  if (running) running.abort();
  const mine = running = new AbortController(), list = { key: contents(state), search: searching(state), duplicates: state.duplicates && !searching(state), map: state.map && !searching(state), items: [], total: null, next: null, done: false };
  loading = list.key; problem(null); $("end").replaceChildren(); $("tools").hidden = false;
  const waiting = setTimeout(() => { if (changed || !shown) { $("state").hidden = true; skeleton(!list.duplicates && !list.map); if (list.duplicates || list.map) $("results").replaceChildren(); } else $("results").setAttribute("aria-busy", "true"); }, 150);
  say(list.search ? "Searching…" : list.duplicates ? "Looking for duplicates…" : list.map ? "Loading the map…" : "Loading…");
  try {
    const known = restored && !list.duplicates && !list.map && kept.get(list.key);
    if (known) Object.assign(list, known);
    else {
      list.items = await fetchList(state, list, mine.signal, again);
      while (restored && list.items.length < (restored.count || 0) && !list.done) list.items.push(...await fetchList(state, list, mine.signal));
    }
    if (mine !== running) return;
    shown = list; remember(); settle(waiting); paint(list); tell();
    scrollTo({ top: restored ? restored.top || 0 : changed ? 0 : scrollY });
  } catch (error) {
    if (mine !== running || error.name === "AbortError") return;
    settle(waiting); report(error);
  } finally { clearTimeout(waiting); if (mine === running) { loading = null; } }  // also for a list that another list replaced
}
function settle(waiting) { clearTimeout(waiting); comparing(null); skeleton(false); $("results").removeAttribute("aria-busy"); say(""); }
function remember() { kept.delete(shown.key); kept.set(shown.key, shown); if (kept.size > 10) kept.delete(kept.keys().next().value); }

let growing = null;
function more() {  // loads the next page
  const list = shown;
  if (!list || list.done || loading || !$("problem").hidden || $("end").children.length) return null;
  growing = growing || (async () => {
    $("end").textContent = "Loading more…";
    let failed = null;
    try {
      const count = list.items.length, fresh = await fetchList(now, list, running.signal);
      if (list !== shown) return;
      list.items.push(...fresh); paint(list, count); tell(); if (viewed) drawView(viewed);
    } catch (error) { if (error.name !== "AbortError") failed = error; }
    finally { growing = null; $("end").textContent = ""; }
    if (failed && list === shown) { if (failed.status === 401) needKey(failed); else stopped(failed); }
    if (list === shown && $("end").getBoundingClientRect().top < innerHeight + 800) setTimeout(more);
  })();
  return growing;
}
function stopped(error) {  // says at the end of the list, where the user looks, why no more items follow
  const again = make("button", "", "Try again"); again.type = "button";
  again.onclick = () => { $("end").replaceChildren(); more(); };
  $("end").replaceChildren(make("p", "", error.message), again);
}
new IntersectionObserver(seen => { if (seen[0].isIntersecting) more(); }, { rootMargin: "800px" }).observe($("end"));

// -- messages
function tell() {
  const list = shown, count = list.map ? list.total : list.items.length, index = service.indexes.find(each => each.name === indexName());
  $("tools").hidden = !count && !filtered(now) && !list.search && !list.duplicates && !list.map;
  state(count ? null : list.duplicates ? index.items ? "alone" : "empty" : list.search || filtered(now) ? "nothing" : "empty", (list.notes || []).map(note => note[0].toUpperCase() + note.slice(1) + (note.endsWith("?") ? "" : ".")).join(" "));
  if (list.map) say(count ? plural(count, "picture", "pictures") + ", similar ones side by side." : "");
  else if (list.duplicates) say(count ? plural(list.total, "group", "groups") + " of near-identical pictures, " + list.inGroups.toLocaleString("en") + " in all" + (list.complete ? "." : "; not all pairs of this large index were compared.") : "");
  else if (list.search) say(!count ? "No matches." : list.done ? plural(count, "match", "matches") + ", nearest first." : "The " + count + " nearest pictures.");
  else say(plural(list.total, "picture", "pictures") + (filtered(now) ? " of " + index.items.toLocaleString("en") : "") + ".");
  if (!count && !list.search && !list.duplicates && !list.map && !filtered(now)) say("");
  const technical = [["Index", index.name + ", " + plural(index.items, "item", "items")], ["Model", index.model], ["Features", index.dimension + " numbers; random pictures are " + shortDistance(index.median_distance) + " apart"]];
  if (list.facts) technical.push(["Search", (list.facts.exact ? "exact" : "approximate") + ", " + list.facts.milliseconds + " ms, " + list.facts.took + " ms of it in the service"]);
  $("technical").replaceChildren(...technical.flatMap(([term, value]) => [make("dt", "", term), make("dd", "", value)]));
}
function report(error) {
  if (error.status === 401) { needKey(error); return; }
  if (error.status === 0 && !shown) { state("gone"); return; }
  if (now.map && error.code === "no_map") { shown = null; closeMap(); drawMap(); state("unmapped", error.message); return; }
  problem(error);
  if (shown && shown.key !== contents(now)) say(shown.items.length ? "Below are the results from before." : "");
  if (!shown) state(error.passing ? null : "lost");
}
const STATES = {
  empty: ["picture", "Nothing is indexed here yet", "Add pictures on the machine that serves this page, then reload:", "simsearch build FOLDER -i INDEX"],
  nothing: ["search", "No pictures meet these conditions", "Take some of them back, or choose other ones."],
  lost: ["search", "There is nothing at this address", "All pictures of the index are still here."],
  alone: ["twins", "No duplicates", "No two pictures here are so near each other. A larger distance finds more."],
  unmapped: ["map", "No map yet", ""],
  gone: ["cloud", "The service cannot be reached", "It may be starting, or have been stopped."],
  key: ["key", "This service needs an API key", "Whoever runs it can give you one. It is kept until this tab is closed."],
};
function state(name, extra = "") {
  $("state").hidden = !name; $("state").dataset.of = name || "";
  if (!name) return;
  const [picture, title, text, command] = STATES[name], again = make("button", "main", name === "nothing" ? "Remove filters" : name === "lost" ? "All pictures" : "Try again");
  $("results").replaceChildren(); $("state").replaceChildren(icon(picture), make("h2", "", title), make("p", "", extra || text));
  if (command) $("state").append(make("code", "", command));
  again.type = "button"; again.onclick = () => { if (name === "nothing") go(ANY); else if (name === "lost") $("home").click(); else start(); };
  if (name === "gone" || name === "lost" || (name === "nothing" && filtered(now))) $("state").append(again);
}
function needKey(error) {
  shown = null; $("tools").hidden = true; problem(null); say("");
  state("key", key ? error.message : "");
  const form = make("form"), field = make("input"), button = make("button", "main", "Continue");
  field.id = "key"; field.type = "password"; field.autocomplete = "off"; field.setAttribute("aria-label", "API key"); form.append(field, button); $("state").append(form);
  form.onsubmit = event => { event.preventDefault(); key = field.value.trim(); sessionStorage.setItem("simsearch-key", key); start(); };
  field.focus();
}

async function start() {
  const waiting = setTimeout(() => { state(null); skeleton(true); }, 150);
  problem(null);
  try {
    const facts = await (await call("v1/indexes")).json();
    service = facts;
    $("index").replaceChildren(...facts.indexes.map(index => new Option(index.name + " (" + index.items.toLocaleString("en") + ")", index.name)));
    $("index").hidden = facts.indexes.length < 2; $("urlform").hidden = !facts.urls;
    if (now.index && !facts.indexes.some(index => index.name === now.index)) { problem(new Problem("There is no index called " + now.index + ".", 404)); now = { ...now, ...NEW, ...ANY, index: "" }; history.replaceState(history.state, "", address(now)); }
    settle(waiting); state(null); loading = null; shown = null;
    const wrong = $("what").textContent; show(now, history.state || {}); if (wrong) { problem(new Problem(wrong, 404)); }
  } catch (error) { settle(waiting); report(error); }
}

history.scrollRestoration = "manual";
let resting = null;
addEventListener("scroll", () => {
  clearTimeout(resting);
  resting = setTimeout(() => { if (!loading && shown) history.replaceState({ ...history.state, top: scrollY, count: shown.items.length }, ""); }, 200);
}, { passive: true });
addEventListener("popstate", event => show(parse(location.search), event.state || {}));
$("again").onclick = () => { if (!service) start(); else if (shown && shown.key === contents(now)) { problem(null); more(); } else load(now); };
$("dismiss").onclick = () => problem(null);
$("home").onclick = event => { if (event.ctrlKey || event.metaKey) return; event.preventDefault(); go({ ...parse(""), index: now.index }); };
start();
