// Words and figures as the page shows them. Whatever comes from tasks is put in as text, never as HTML.

export const byId = (id) => document.getElementById(id);

export function element(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

// Sets a text only if it is another: a screen reader is told of changes alone, and a selection stays.
export function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

export function duration(seconds) {
  const whole = Math.max(0, Math.floor(seconds));
  const two = (number) => String(number).padStart(2, "0");
  if (whole < 60) return `${whole}s`;
  if (whole < 3600) return `${Math.floor(whole / 60)}m${two(whole % 60)}s`;
  if (whole < 86400) return `${Math.floor(whole / 3600)}h${two(Math.floor((whole % 3600) / 60))}m`;
  return `${Math.floor(whole / 86400)}d${two(Math.floor((whole % 86400) / 3600))}h`;
}

const inEnglish = new Intl.NumberFormat("en");

export function count(number, one, many) {
  const whole = inEnglish.format(number);
  return one === undefined ? whole : `${whole} ${number === 1 ? one : many}`;
}

// A figure as a whole number; what is more than nothing isn't shown as 0.
export function figure(number) {
  if (number === null) return "–";
  return number > 0 && number < 0.5 ? "<1" : count(Math.round(number));
}

export function atTime(seconds) {
  const time = new Date(seconds * 1000);
  const sameDay = time.toDateString() === new Date().toDateString();
  return sameDay ? time.toLocaleTimeString("en-GB") : time.toLocaleString("en-GB");
}

// Characters that can't be seen, or that turn the text around them, are shown as escapes, the same ones as in the commands
// (core/printable.py): two names that differ look different, and none can pass for another.
export function visible(text) {
  const shown = text.replace(/[\p{C}\p{Z}]/gu, (character) => {
    if (character === " ") return character;
    const short = { "\n": "\\n", "\r": "\\r", "\t": "\\t" }[character];
    const number = character.codePointAt(0);
    const [mark, width] = number < 0x100 ? ["x", 2] : number < 0x10000 ? ["u", 4] : ["U", 8];
    return short ?? `\\${mark}${number.toString(16).padStart(width, "0")}`;
  });
  return shown === shown.trim() && shown ? shown : `“${shown}”`;
}

// A name of a lock, task or host, apart from the direction of the text around it.
export function name(text, className) {
  return element("bdi", className, visible(text));
}
