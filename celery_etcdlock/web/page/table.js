// Parts of tables. On a phone they are drawn as blocks, which would cost them their meaning: so each says what it is.

import { element } from "./text.js";

export function part(tag, role, className, text) {
  const made = element(tag, className, text);
  made.setAttribute("role", role);
  return made;
}

export function cell(row, label, className, text) {
  const made = part("td", "cell", className, text);
  if (label) made.dataset.label = label;
  row.append(made);
  return made;
}
