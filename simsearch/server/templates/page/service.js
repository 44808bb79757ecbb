// -- talking to the service
const $ = id => document.getElementById(id);
const sleep = ms => new Promise(done => setTimeout(done, ms));
let key = sessionStorage.getItem("simsearch-key") || "";

class Problem extends Error {
  constructor(text, status, wait) { super(text); this.status = status; this.wait = wait; }
  get passing() { return [0, 429, 500, 502, 503, 504].includes(this.status); }  // true if trying again may help
}

function where(path) {  // adds the name of the index that is shown
  const name = indexName();
  return name ? path + (path.includes("?") ? "&" : "?") + "index=" + encodeURIComponent(name) : path;
}

async function call(path, options = {}) {
  const headers = { ...(options.headers || {}), ...(key ? { Authorization: "Bearer " + key } : {}) };
  let answer;
  try { answer = await fetch(path, { ...options, headers }); }
  catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem("The service cannot be reached.", 0);
  }
  if (answer.ok) return answer;
  let text = "The service answered with status " + answer.status + ".", code = "";
  try { ({ message: text, code } = (await answer.json()).error); text = text[0].toUpperCase() + text.slice(1) + "."; } catch { /* no JSON */ }
  if (answer.status === 401) text = key ? "This key is not valid." : "This service needs an API key.";
  if (answer.status === 429) text = "The service is busy.";
  throw Object.assign(new Problem(text, answer.status, Number(answer.headers.get("retry-after")) || 1), { code });
}

async function patiently(path, options) {
  for (let attempt = 1; ; attempt++) {
    try { return await call(path, options); }
    catch (error) {
      if (error.status !== 429 || attempt === 4) throw error;
      say("The service is busy; trying again in " + error.wait + " s (" + attempt + " of 3).");
      await sleep(1000 * error.wait);
      if (options.signal.aborted) throw new DOMException("", "AbortError");
    }
  }
}

const fileURL = (id, kind, size) => where("v1/items/" + id + "/" + kind + (size ? "?size=" + size : ""));
async function pictureURL(id, kind, size, signal) {  // a URL that an <img> can load; if there is an API key, the picture is fetched first
  const url = fileURL(id, kind, size);
  return key ? URL.createObjectURL(await (await call(url, { signal })).blob()) : url;
}

// -- words for people
const plural = (count, one, many) => count.toLocaleString("en") + " " + (count === 1 ? one : many);
const fileName = path => path.split("/").pop();
const nameOf = item => item.label || fileName(item.path);
const wordOf = similarity => WORDS.find(([, least]) => similarity >= least)[0];
const shortDistance = distance => distance < 1e-3 ? "0" : distance.toPrecision(4);
function bytesText(count) {
  for (const unit of ["B", "KB", "MB"]) { if (count < 1000) return (unit === "B" ? count : count.toPrecision(3)) + " " + unit; count /= 1000; }
  return count.toPrecision(3) + " GB";
}
function make(tag, kind, text) {
  const element = document.createElement(tag);
  if (kind) element.className = kind;
  if (text !== undefined) element.textContent = text;
  return element;
}
function icon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg"), use = document.createElementNS("http://www.w3.org/2000/svg", "use");
  svg.setAttribute("aria-hidden", "true"); use.setAttribute("href", "#i-" + name); svg.append(use);
  return svg;
}
