// -- the address: each search and each view of the index has its own address, which can be reloaded, shared and returned to
const FLAGS = [...document.querySelectorAll("[data-option]")].map(box => box.id);
const NUMBERS = ["min_similarity", "max_distance"], HIGHEST = { min_similarity: 1, max_distance: Number.MAX_VALUE };
const RULES = ["largest", "oldest", "newest", "shortest-path"];  // for the picture of a group of duplicates that stays
const ORDERS = ["newest", "oldest", "id"];
const LISTS = ["plus", "minus", "filter"];
const MAPPED = ["at", "colour", "lasso", "q"], UNMAPPED = { at: "", colour: "", lasso: "", q: "" };  // the view of a map: its part, colours, selection and search

function parse(search) {
  const given = new URLSearchParams(search), state = {};
  for (const name of ["index", "upload", "url", "folder", "sort", "keep", ...MAPPED]) state[name] = given.get(name) || "";
  state.duplicates = given.get("duplicates") === "1"; state.map = given.get("map") === "1" && !state.duplicates; if (!RULES.includes(state.keep)) state.keep = ""; if (!ORDERS.includes(state.sort)) state.sort = "";
  for (const name of ["id", "view"]) state[name] = /^\d+$/.test(given.get(name) || "") ? Number(given.get(name)) : null;
  for (const name of NUMBERS) { const number = Number(given.get(name)); state[name] = given.get(name) && number >= 0 && number <= HIGHEST[name] ? number : null; }
  for (const name of FLAGS) state[name] = given.get(name) === "1";
  for (const name of LISTS) state[name] = given.getAll(name);
  for (const name of ["plus", "minus"]) state[name] = state[name].filter(text => /^\d+$/.test(text)).map(Number);
  const crop = (given.get("crop") || "").split(",").map(Number);
  state.crop = crop.length === 4 && crop.every(n => Number.isInteger(n) && n >= 0) ? crop : null;
  return state;
}

function address(state) {
  const made = new URLSearchParams();
  for (const [name, value] of Object.entries(state)) {
    if (LISTS.includes(name)) for (const each of value) made.append(name, each);
    else if (name === "crop" && value) made.set(name, value.join(","));
    else if (value === true) made.set(name, "1");
    else if (value !== null && value !== "" && value !== false) made.set(name, value);
  }
  return "?" + made;
}

const searching = state => state.id !== null || !!state.upload || !!state.url;
const contents = state => address({ ...state, view: null, ...UNMAPPED });  // the address without the large view and the view of a map

let now = parse(location.search);
const NEW = { id: null, upload: "", url: "", crop: null, plus: [], minus: [], view: null, duplicates: false, keep: "", map: false, ...UNMAPPED };  // the changes by which a new search begins

function go(changes, { replace = false } = {}) {
  const next = { ...now, ...changes };
  if (address(next) === address(now)) return;
  const entry = { opened: changes.view && !replace ? true : replace && history.state ? history.state.opened : false };
  if (replace) history.replaceState({ ...history.state, ...entry }, "", address(next)); else history.pushState(entry, "", address(next));
  show(next);
}
