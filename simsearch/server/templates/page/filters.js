// -- labels, folders and fields to choose from
let facets = null, facetsOf = "";
const COLUMNS = [["path", "File name"], ["width", "Width"], ["height", "Height"], ["bytes", "Bytes"]];
const TEXT = [["=", "is"], ["!=", "is not"], ["~", "contains"]], NUMBER = [["=", "is"], ["!=", "is not"], [">=", "at least"], ["<=", "at most"]];
const literal = text => text.replace(/[*?[]/g, "[$&]");  // escapes wildcards

async function loadFacets() {
  const name = indexName();
  if (facetsOf === name) return;
  facetsOf = name; facets = null;
  try { const found = await (await call(where("v1/facets"))).json(); if (facetsOf === name) facets = found; }
  catch { facetsOf = ""; return; }
  drawFilters();
}
function drawFilters() {
  document.querySelectorAll(".searching").forEach(each => { each.hidden = !searching(now); });
  document.querySelectorAll(".browsing").forEach(each => { each.hidden = searching(now) || now.duplicates || now.map; });
  $("croplabel").hidden = !searching(now) || !query.url;
  $("sort").value = now.sort || "newest"; $("min_similarity").value = WORDS.some(([, least]) => least && least === now.min_similarity) ? String(now.min_similarity) : "";
  $("max_distance").value = now.max_distance ?? ""; for (const name of FLAGS) $(name).checked = now[name];
  drawChosen();
  if (!facets) { $("labels").replaceChildren(); return; }
  const signature = facetsOf + facets.items;
  if ($("labels").dataset.of !== signature || !$("labels").children.length) {
    $("labels").dataset.of = signature;
    $("labels").replaceChildren(...facets.labels.slice(0, 60).map(({ value, items }) => {
      const chip = make("button", "chip", value + " "); chip.type = "button"; chip.dataset.filter = "label=" + value; chip.append(make("small", "", items.toLocaleString("en")));
      chip.onclick = () => toggle(chip.dataset.filter);
      return chip;
    }));
    $("folder").replaceChildren(new Option("All folders", ""), ...facets.folders.map(f => f.value).sort().map(value => new Option(value, value)));
    $("folderlabel").hidden = !facets.folders.length;
    $("field").replaceChildren(...[...(facets.labels.length ? [["label", "Label"]] : []), ...facets.fields.map(field => [field.name, field.name]), ...COLUMNS].map(([value, text]) => new Option(text, value)));
    drawField();
  }
  for (const chip of $("labels").children) chip.setAttribute("aria-pressed", String(now.filter.includes(chip.dataset.filter)));
  if (now.folder && ![...$("folder").options].some(option => option.value === now.folder)) $("folder").add(new Option(now.folder, now.folder));
  $("folder").value = now.folder;
}
function toggle(filter) { go({ filter: now.filter.includes(filter) ? now.filter.filter(each => each !== filter) : [...now.filter, filter], view: null }); }

function drawChosen() {
  const chosen = now.filter.filter(each => ![...$("labels").children].some(chip => chip.dataset.filter === each)).map(each => [each.replace(/^path~\*(.*)\*$/, "file name contains $1"), { filter: now.filter.filter(other => other !== each) }]);
  if (now.folder) chosen.push(["in " + now.folder, { folder: "" }]);
  if (now.max_distance !== null && !now.duplicates) chosen.push(["distance at most " + now.max_distance, { max_distance: null }]);
  for (const name of FLAGS) if (now[name] && searching(now)) chosen.push([$(name).parentElement.textContent, { [name]: false }]);
  $("chosen").replaceChildren(...chosen.map(([text, changes]) => {
    const chip = make("button", "chip", text); chip.type = "button"; chip.setAttribute("aria-label", "Remove: " + text); chip.append(icon("close")); chip.onclick = () => go(changes);
    return chip;
  }));
}
const numeric = name => ["width", "height", "bytes"].includes(name) || (facets && facets.fields.some(field => field.name === name && field.least !== null));
function drawField() {
  const name = $("field").value, field = facets.fields.find(each => each.name === name), values = name === "label" ? facets.labels : field ? field.values : [];
  $("operator").replaceChildren(...(numeric(name) ? NUMBER : name === "path" ? TEXT.slice(2) : TEXT).map(([value, text]) => new Option(text, value)));
  $("values").replaceChildren(...values.slice(0, 100).map(({ value }) => new Option(value)));
  $("value").placeholder = field && field.least !== null ? field.least + " to " + field.most : ""; $("value").inputMode = numeric(name) ? "decimal" : "text";
}

const NO_DISTANCE = "A distance is a number that is not negative.";
const ANY = { filter: [], folder: "", min_similarity: null, max_distance: null };
const filtered = state => state.filter.length || state.folder || state.min_similarity !== null || state.max_distance !== null;
$("filter-button").onclick = () => { const open = $("filters").hidden; $("filters").hidden = !open; $("filter-button").setAttribute("aria-expanded", String(open)); };
$("field").onchange = drawField;
$("condition").onsubmit = event => {
  event.preventDefault();
  const value = $("value").value.trim(), operator = $("operator").value;
  if (!value) { $("value").focus(); return; }
  const filter = $("field").value + operator + (operator === "~" ? "*" + literal(value) + "*" : value);
  $("value").value = ""; if (!now.filter.includes(filter)) toggle(filter);
};
$("folder").onchange = () => go({ folder: $("folder").value });
$("sort").onchange = () => go({ sort: $("sort").value === "newest" ? "" : $("sort").value });
for (const name of NUMBERS) $(name).onchange = () => {
  if (!$(name).checkValidity()) { problem(new Problem(NO_DISTANCE, 422)); return; }
  go({ [name]: $(name).value === "" ? null : Number($(name).value) });
};
for (const name of FLAGS) $(name).onchange = () => go({ [name]: $(name).checked });
$("index").onchange = () => go({ ...NEW, ...ANY, ...(now.upload || now.url ? { upload: now.upload, url: now.url, crop: now.crop } : {}), index: $("index").value });
