// Building elements, and times as people read them. No text is ever parsed as HTML.

const SVG = "http://www.w3.org/2000/svg";

function filled(node, properties, children) {
  for (const [name, value] of Object.entries(properties)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) {
      node.setAttribute(name, value);
    }
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

/** An HTML element: attributes, `onclick` and the like, children (nodes or texts). */
export function h(tag, properties = {}, ...children) {
  return filled(document.createElement(tag), properties, children);
}

/** An SVG element. */
export function s(tag, properties = {}, ...children) {
  return filled(document.createElementNS(SVG, tag), properties, children);
}

const ICONS = {
  accept: "M3.5 8.5l3 3 6-7",
  correct: "M3 13l.6-2.8 7-7 2.2 2.2-7 7z M9.4 4.400l2.2 2.2",
  reject: "M4 4l8 8 M12 4l-8 8",
  remove: "M4.5 4.5l7 7 M11.5 4.500l-7 7",
};

export function icon(name) {
  return s("svg", { class: "icon", viewBox: "0 0 16 16", "aria-hidden": "true" },
    s("path", { d: ICONS[name] }));
}

/** 75.25 as 1:15.3, or 1:15 with no decimals; hours where there are any. */
export function clock(seconds, decimals = 1) {
  const unit = 10 ** decimals;
  const rounded = Math.round(seconds * unit) / unit;
  const hours = Math.floor(rounded / 3600);
  const minutes = Math.floor(rounded / 60) % 60;
  const rest = (rounded % 60).toFixed(decimals).padStart(decimals ? decimals + 3 : 2, "0");
  return hours ? `${hours}:${String(minutes).padStart(2, "0")}:${rest}` : `${minutes}:${rest}`;
}

export const spanText = (moment) => `${clock(moment.start_s)} – ${clock(moment.end_s)}`;

/** A score with two decimals, without a sign before zero. */
export const scoreText = (score) => score.toFixed(2).replace(/^-(?=0\.00$)/, "");
