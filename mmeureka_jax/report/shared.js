const read = (id) => JSON.parse(document.getElementById(id).textContent);
function element(tag, kind, ...children) {
  const made = document.createElement(tag);
  if (kind) made.className = kind;
  made.append(...children);
  return made;
}

// Formulas: each has a tree of known elements, under the text that is replaced by it.
let formulaTrees = new Map();
let FORMULA = /(?!)/g;
let drawsFormulas = () => true;
function useFormulas(formulas, drawn = () => true) {
  formulaTrees = new Map(Object.entries(formulas.trees));
  FORMULA = new RegExp(formulas.pattern, "gsu");
  drawsFormulas = drawn;
}
function mathml([name, ...content]) {
  const made = document.createElementNS("http://www.w3.org/1998/Math/MathML", name);
  for (const one of content) {
    if (typeof one === "string") made.append(one);
    else if (Array.isArray(one)) made.append(mathml(one));
    else Object.entries(one).forEach(([key, given]) => made.setAttribute(key, given));
  }
  return made;
}
function formula(source, display) {
  const made = element("span", display ? "formula display" : "formula", mathml(formulaTrees.get(source)));
  made.title = source;
  return made;
}
function drawText(text) {
  if (!drawsFormulas()) return [text];
  const made = [];
  let end = 0;
  for (const { 0: source, index, groups } of text.matchAll(FORMULA)) {
    if (!formulaTrees.has(source)) continue;
    const display = [groups.display, groups.brackets, groups.environment].some((own) => own !== undefined);
    const before = text.slice(end, index);
    made.push(display && before.endsWith("\n") ? before.slice(0, -1) : before, formula(source, display));
    end = index + source.length;
    if (display) end += text.slice(end).match(/^[ \t]*\n?/)[0].length; // it has a line of its own anyway
  }
  return [...made, text.slice(end)];
}
function drawGold(text) {
  const bare = drawsFormulas() && formulaTrees.has(text);
  return bare ? [formula(text, false)] : drawText(text);
}
