// The embedded data: a header and arrays, compressed, and sheets of small pictures.
const element = id => document.getElementById(id);
const bytesOf = text => Uint8Array.from(atob(text), c => c.charCodeAt(0));
const fail = text => { element("map-state").textContent = text; throw new Error(text); };
if (!("DecompressionStream" in window)) fail("This browser is too old for the map: it cannot decompress its data.");
const unpacked = new Blob([bytesOf(element("data").textContent)]).stream().pipeThrough(new DecompressionStream("gzip"));
const buffer = await new Response(unpacked).arrayBuffer();
element("data").remove();
const headLength = new DataView(buffer).getUint32(0, true), utf8 = new TextDecoder();
const head = JSON.parse(utf8.decode(new Uint8Array(buffer, 8, headLength)));
const TYPES = { f4: Float32Array, f8: Float64Array, u1: Uint8Array, u2: Uint16Array, u4: Uint32Array };
const array = name => {
  const [type, offset, length] = head.arrays[name];
  return new TYPES[type](buffer, 8 + headLength + offset, length);
};
const order = array("pictured"), sizes = array("sizes"), onSheets = new Int32Array(head.items).fill(-1), sheets = [];
order.forEach((item, j) => { onSheets[item] = j; });
const pictures = {  // of some of the items
  order, side: head.sheet.side,
  has: i => onSheets[i] >= 0 && sheets.length > 0,
  size: i => [sizes[2 * onSheets[i]], sizes[2 * onSheets[i] + 1]],
  draw(target, i, x, y, width, height) {
    const { side, columns } = head.sheet, each = columns * columns, j = onSheets[i], at = j % each, sheet = sheets[Math.floor(j / each)];
    if (sheet) target.drawImage(sheet, at % columns * side, Math.floor(at / columns) * side, sizes[2 * j], sizes[2 * j + 1], x, y, width, height);
    return Boolean(sheet);
  },
};
const map = createMap({
  n: head.items, xy: array("positions"), ids: array("ids"), neighbours: array("neighbours"), near: head.near,
  folder: head.folder, names: utf8.decode(array("paths")).split("\n"), fields: head.fields.map(field => ({ ...field, values: array(field.array) })),
  pictures, facts: head.facts,
});
for (const each of document.querySelectorAll(".sheet")) {
  sheets.push(await createImageBitmap(new Blob([bytesOf(each.textContent)], { type: "image/webp" })));
  each.remove();
  map.redraw();
}
