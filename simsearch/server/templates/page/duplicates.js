// -- groups of near-identical pictures, side by side: which stay, and which are moved away
const MOST = 1000;  // the most groups in a request
const choices = new Map();  // the user's choices, by index and id of a picture: true if it goes, false if it stays
const keyOf = item => indexName() + "|" + item.id;
let notice = null, busy = false;

const canMove = () => !!service.cleanup;
const verb = () => service.cleanup === "trash" ? "Trash" : "Move";
const target = () => service.cleanup === "trash" ? "the trash" : service.move_to;
const pictures = count => plural(count, "picture", "pictures");
const sized = items => pictures(items.length) + " (" + bytesText(items.reduce((sum, item) => sum + item.bytes, 0)) + ")";
const goes = item => canMove() && !item.fixed && (choices.get(keyOf(item)) ?? (!item.keep && item.is_copy));
const going = group => group.items.filter(goes), staying = group => group.items.filter(item => !goes(item));
const acting = groups => groups.filter(group => going(group).length && staying(group).length);

async function fetchGroups(state, list, signal) {  // loads the next page of groups; returns all their pictures in one list
  const given = new URLSearchParams({ limit: 20, keep: state.keep || "largest" });
  if (list.next !== null) given.set("after", list.next);
  if (state.max_distance !== null) given.set("max_distance", state.max_distance);
  for (;;) {
    const answer = await patiently(where("v1/duplicates?" + given), { signal }), page = await answer.json();
    if (answer.status === 202) {
      comparing(page);
      await sleep(page.total ? 700 : 300);
      if (signal.aborted) throw new DOMException("", "AbortError");
      continue;
    }
    comparing(null);
    Object.assign(list, { total: page.total, next: page.next, done: page.next === null, limit: page.max_distance, inGroups: page.items, complete: page.complete, groups: [...(list.groups || []), ...page.groups] });
    return page.groups.flatMap(group => group.items.map(item => Object.assign(item, { group })));
  }
}
function comparing(progress) {
  $("comparing").hidden = !progress; $("comparing").setAttribute("aria-label", "Comparing the pictures");
  if (!progress) return;
  if (progress.total) { $("comparing").max = progress.total; $("comparing").value = progress.done; } else $("comparing").removeAttribute("value");
  say(progress.total ? "Comparing the pictures: " + progress.done.toLocaleString("en") + " of " + pictures(progress.total) + "." : "Measuring how far apart changed copies of these pictures are…");
}

function drawDuplicates() {  // draws what is around the groups
  document.querySelectorAll(".deduping").forEach(each => { each.hidden = !now.duplicates; });
  $("labels").hidden = $("filter-button").hidden = now.duplicates || now.map;
  if (now.map) { $("filters").hidden = true; $("filter-button").setAttribute("aria-expanded", "false"); }
  if (now.duplicates) { $("filters").hidden = true; $("filter-button").setAttribute("aria-expanded", "false"); document.title = "Duplicates · simsearch"; }
  $("to-duplicates").href = address({ ...parse(""), index: now.index, duplicates: true }); $("to-all").href = address({ ...parse(""), index: now.index });
  $("rule").value = now.keep || "largest"; $("reach").value = now.max_distance ?? "";
  $("reach").placeholder = shown && shown.limit !== undefined ? shortDistance(shown.limit) : "";
  drawBar();
  if (!now.duplicates) $("past").hidden = true;
}

function paintGroups(list, from) {
  $("results").className = "groups";
  const fresh = [...new Set(list.items.slice(from).map(item => item.group))];
  $("results").append(...fresh.map(groupCard));
  drawDuplicates();
  if (!from) drawPast();
}
function groupCard(group) {
  const card = make("li", group.items.length > 2 ? "dups broad" : "dups"), head = make("div", "duphead"), members = make("ul", group.items.length > 3 ? "members" : "members few");
  card.dataset.group = group.group;
  const title = make("h3", "", pictures(group.size)), sum = make("span", "sum");
  head.append(title, sum);
  if (group.size > group.items.length) sum.before(make("span", "hint", group.items.length + " of them are shown"));
  if (canMove()) {
    const act = make("button", "small act"), all = make("button", "small", "Keep all");
    act.onclick = () => confirmMove([group]); all.onclick = () => { group.items.forEach(item => choices.set(keyOf(item), false)); drawGroup(card, group); drawBar(); };
    all.setAttribute("aria-label", "Keep all of " + labelOf(group)); act.type = all.type = "button"; head.append(act, all);
  }
  if (service.writable) {
    const none = make("button", "small", "Not duplicates"); none.type = "button"; none.onclick = () => ignore(group, true);
    none.setAttribute("aria-label", "Not duplicates: " + labelOf(group)); head.append(none);
  }
  const best = { pixels: Math.max(...group.items.map(item => item.width * item.height)), bytes: Math.max(...group.items.map(item => item.bytes)) };
  const above = commonFolder(group.items.map(item => folderOf(item.path)));
  members.setAttribute("aria-label", labelOf(group)); members.append(...group.items.map((item, place) => memberCard(item, place, best, above)));
  card.append(head, members); drawGroup(card, group);
  return card;
}
const labelOf = group => "group of " + fileName(group.items[0].path);
const folderOf = path => path.split("/").slice(0, -1).join("/") || ".";
function commonFolder(folders) {  // the part that all folders of a group share; it is not repeated beside each picture
  const parts = folders.map(folder => folder.split("/"));
  let depth = 0;
  while (depth < Math.min(...parts.map(each => each.length)) - 1 && parts.every(each => each[depth] === parts[0][depth])) depth++;
  return parts[0].slice(0, depth).join("/");
}
function memberCard(item, place, best, above) {
  const card = make("li", "member"), link = make("a", "open"), facts = make("dl");
  card.dataset.id = item.id; link.href = address({ ...now, view: item.id }); link.title = item.path; link.setAttribute("aria-label", "Show " + fileName(item.path) + " large");
  link.onclick = event => { if (event.ctrlKey || event.metaKey || event.shiftKey || event.button) return; event.preventDefault(); go({ view: item.id }); };
  const row = (term, text, kind) => facts.append(make("dt", "sr", term), make("dd", kind || "", text)), folder = folderOf(item.path);
  row("Name", fileName(item.path), "name"); facts.lastChild.title = fileName(item.path);
  row("Pixels", item.width + " × " + item.height, item.width * item.height === best.pixels ? "short best" : "short"); row("Size", bytesText(item.bytes), item.bytes === best.bytes ? "short best" : "short");
  row("Date", item.modified ? new Date(item.modified).toLocaleString("en-GB", { dateStyle: "medium", timeStyle: "short" }) : "no date");
  row("Folder", above && folder !== above ? folder.slice(above.length + 1) : folder, "folder"); facts.lastChild.title = folder;
  if (place) { row("Distance", "distance " + shortDistance(item.distance)); facts.lastChild.title = "From the first picture of the group"; }
  card.append(link, choiceOf(item), facts); watcher.observe(card);
  return card;
}
function choiceOf(item) {  // the buttons to keep or to move a picture; only a text if there is no choice
  if (!canMove()) return make("p", "mark", item.keep ? "Suggested to keep" : "");
  if (item.fixed) return make("p", "mark", "Stays: " + item.fixed);
  const field = make("fieldset", "choice"), legend = make("legend", "sr", fileName(item.path)); field.append(legend);
  for (const [word, value] of [["Keep", false], [verb(), true]]) {
    const label = make("label"), radio = make("input"); radio.type = "radio"; radio.name = "choice-" + item.id; radio.value = value ? "go" : "keep"; radio.checked = goes(item) === value;
    radio.onchange = () => choose(item, value); label.append(radio, make("span", "", word)); field.append(label);
  }
  return field;
}
function choose(item, value) {
  choices.set(keyOf(item), value); drawGroup(document.querySelector('[data-group="' + item.group.group + '"]'), item.group); drawBar();
}
function drawGroup(card, group) {
  const leaving = going(group), alone = leaving.length && !staying(group).length, sum = card.querySelector(".sum"), act = card.querySelector(".act");
  group.items.forEach((item, place) => {
    const member = card.querySelectorAll(".member")[place];
    member.classList.toggle("goes", goes(item)); member.classList.toggle("stays", canMove() ? !goes(item) : item.keep);
    for (const radio of member.querySelectorAll("input")) radio.checked = goes(item) === (radio.value === "go");
  });
  sum.textContent = alone ? "One picture has to stay" : leaving.length ? bytesText(leaving.reduce((all, item) => all + item.bytes, 0)) + " to free here" : canMove() ? "All stay" : "";
  sum.classList.toggle("warn", !!alone);
  if (act) { act.hidden = !leaving.length || !!alone; act.textContent = verb() + " " + leaving.length; act.setAttribute("aria-label", verb() + " " + pictures(leaving.length) + " of the " + labelOf(group)); }
}
function drawBar() {
  const list = now.duplicates && shown && shown.groups ? shown : null, groups = list && canMove() ? acting(list.groups) : [];
  $("cleanbar").hidden = !groups.length; document.body.classList.toggle("barred", !!groups.length);
  $("readonly").hidden = !list || !list.groups.length || canMove();
  if (list && !canMove()) $("readonly-command").textContent = "simsearch duplicates -i " + (indexName() || "INDEX") + " --keep " + (now.keep || "largest") + (now.max_distance === null ? "" : " --max-distance " + now.max_distance) + " --trash";
  if (!groups.length) return;
  const items = groups.flatMap(going);
  $("move").textContent = (service.cleanup === "trash" ? "Trash " : "Move ") + sized(items); $("move").disabled = busy;
  $("where").textContent = "from " + plural(groups.length, "group", "groups") + (list.groups.length < list.total ? " of the " + list.groups.length + " shown; there are " + list.total.toLocaleString("en") : "") + ", to " + target();
}

// -- cleaning up
const asJSON = body => ({ method: "POST", body: JSON.stringify(body), headers: { "Content-Type": "application/json" } });
const request = (groups, dry) => asJSON({ dry_run: dry, action: service.cleanup, ...(now.max_distance === null ? {} : { max_distance: now.max_distance }), groups: groups.map(group => ({ group: group.group, keep: staying(group).map(item => item.id), go: going(group).map(item => item.id) })) });
let confirmed = null;
async function confirmMove(groups) {
  confirmed = acting(groups).slice(0, MOST);
  if (!confirmed.length) return;
  problem(null); $("confirm-title").textContent = verb() + " " + sized(confirmed.flatMap(going)) + "?";
  $("confirm-text").replaceChildren(make("p", "", "Checking the files…")); $("confirm-do").disabled = true; $("confirm-do").textContent = verb();
  $("confirm").showModal(); $("confirm-cancel").focus();
  try {
    const plan = await (await call(where("v1/duplicates/clean-up"), request(confirmed, true))).json(), left = plan.items.filter(item => item.action === "leave");
    const text = [make("p", "", service.cleanup === "trash" ? "They go into the trash of the machine that serves this page." : "They go to " + service.move_to + ", with their folders.")];
    text.push(make("p", "", "The pictures marked Keep stay where they are. Undo brings the others back."));
    if (left.length) text.push(make("p", "", pictures(left.length) + " will be left where " + (left.length === 1 ? "it is" : "they are") + ":"), reasons(left));
    $("confirm-text").replaceChildren(...text); $("confirm-title").textContent = verb() + " " + pictures(plan.files) + " (" + bytesText(plan.bytes) + ")?";
    $("confirm-do").textContent = verb() + " " + pictures(plan.files); $("confirm-do").disabled = !plan.files;
  } catch (error) { $("confirm").close(); failed(error); }
}
function reasons(items) {
  const list = make("ul", "reasons");
  list.append(...items.slice(0, 5).map(item => make("li", "", (item.path ? fileName(item.path) : "picture " + item.id) + ": " + item.reason)));
  if (items.length > 5) list.append(make("li", "", "and " + (items.length - 5) + " more"));
  return list;
}
async function failed(error) {  // the groups stay; those that have changed are listed again
  if (error.status !== 409) { say(""); if (error.status === 401) report(error); else problem(new Problem(error.message, 422)); return; }  // the button stays, to try again
  await load(now, null, false);
  problem(new Problem("These groups had changed, so nothing was done. They are listed again.", 409));
}
async function moveConfirmed() {
  const groups = confirmed; $("confirm").close(); busy = true; drawBar(); say("Moving…");
  try {
    const answer = await call(where("v1/duplicates/clean-up"), request(groups, false)), result = answer.status === 202 ? await finish(await answer.json(), "Moving") : await answer.json();
    const left = (result.items || []).filter(item => item.action === "leave"), count = result.files;
    tellDone(count ? pictures(count) + (result.bytes === undefined ? "" : " (" + bytesText(result.bytes) + ")") + (count === 1 ? " was" : " were") + " moved to " + target() + "." : "Nothing was moved.", left, count ? () => undo(result.journal) : null, result.command);
  } catch (error) { busy = false; await failed(error); return; }
  busy = false; await load(now, null, false);
}
async function finish(run, doing) {  // waits for the end of a run; returns its entry in the list of clean-ups
  for (;;) {
    if (run.total) say(doing + " " + run.done + " of " + run.total + "…");
    await sleep(1000);
    const entry = (await (await call(where("v1/duplicates/clean-up"))).json()).clean_ups.find(each => each.journal === run.journal);
    if (!entry) throw new Problem("The clean-up did not begin.", 503);
    if (!entry.running) return entry;
    run = { journal: run.journal, done: entry.files, total: run.total };
  }
}
async function undo(journal) {
  tellDone("Bringing the pictures back…");
  try {
    const answer = await call(where("v1/duplicates/restore"), asJSON({ journal })), result = answer.status === 202 ? await finish(await answer.json(), "Bringing back") : await answer.json();
    const later = result.files !== undefined && result.indexed !== undefined && result.indexed < result.files;
    tellDone(pictures(result.files) + (result.files === 1 ? " is" : " are") + " back in place." + (later ? " `simsearch build` lists the others here again." : ""), (result.problems || []));
  } catch (error) { tellDone(""); await failed(error); return; }
  await load(now, null, false);
}
async function ignore(group, ignored) {
  try {
    await call(where("v1/duplicates/ignore"), asJSON({ groups: [group.group], ignored, ...(now.max_distance === null ? {} : { max_distance: now.max_distance }) }));
    tellDone(ignored ? "Remembered: the " + labelOf(group) + " is not listed any more." : "", [], ignored ? () => ignore(group, false) : null);
  } catch (error) { await failed(error); return; }
  await load(now, null, false);
}
function tellDone(text, left = [], back = null, command = "") {
  $("notice").hidden = !text; notice = back; $("undo").hidden = !back; $("notice-command").hidden = !command; $("notice-command").textContent = command || "";
  $("notice-text").textContent = text; $("notice-left").replaceChildren(...(left.length ? [make("p", "", pictures(left.length) + " stayed:"), reasons(left)] : []));
  if (back) $("undo").focus();
}
async function drawPast() {  // draws the list of earlier clean-ups, which can be undone even after a reload
  if (!now.duplicates || !canMove()) { $("past").hidden = true; return; }
  try {
    const past = (await (await call(where("v1/duplicates/clean-up"))).json()).clean_ups.filter(each => each.away && !each.running);
    $("past").hidden = !past.length;
    $("past-list").replaceChildren(...past.map(each => {
      const line = make("li"), button = make("button", "small", "Undo"), when = new Date(each.at).toLocaleString("en-GB", { dateStyle: "medium", timeStyle: "short" });
      button.type = "button"; button.onclick = () => undo(each.journal); button.setAttribute("aria-label", "Undo the clean-up of " + when);
      line.append(make("span", "", when + ": " + pictures(each.away) + (each.action === "trash" ? " in the trash" : " moved away")), button);
      return line;
    }));
  } catch { $("past").hidden = true; }
}

for (const link of [$("to-map"), $("to-duplicates"), $("to-all")]) link.onclick = event => { if (event.ctrlKey || event.metaKey || event.shiftKey) return; event.preventDefault(); go({ ...parse(""), index: now.index, duplicates: link === $("to-duplicates"), map: link === $("to-map") }); };
$("rule").onchange = () => { choices.clear(); go({ keep: $("rule").value === "largest" ? "" : $("rule").value }); };
$("reach").onchange = () => $("reach").checkValidity() ? go({ max_distance: $("reach").value === "" ? null : Number($("reach").value) }) : problem(new Problem(NO_DISTANCE, 422));
$("move").onclick = () => confirmMove(shown.groups);
$("confirm-cancel").onclick = () => $("confirm").close(); $("confirm-do").onclick = moveConfirmed;
$("undo").onclick = () => notice && notice(); $("notice-close").onclick = () => tellDone("");
$("results").addEventListener("keydown", event => {  // the keys k and m, for the picture that has the focus
  const card = event.target.closest(".member"), value = { k: false, m: true, t: true, Delete: true }[event.key];
  if (!card || value === undefined || event.ctrlKey || event.metaKey || event.altKey || !canMove()) return;
  const item = shown.items.find(each => each.id === Number(card.dataset.id));
  if (item && !item.fixed) { event.preventDefault(); choose(item, value); }
});
