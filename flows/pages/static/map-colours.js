// Colours of points, as [r, g, b] in [0, 1]. They are told apart on a light and on a dark ground.

const DISTINCT = [
  "#4269d0", "#e07b00", "#d6455b", "#2f9e8c", "#5fa13c", "#b8860b", "#9c5fc2", "#e377a8", "#8c6d4f",
  "#1f9ac4", "#8a8f2a", "#c04a9b", "#7b8bea", "#d1602e", "#2f8f5b", "#b04a4a", "#6b8e9e", "#7d5ba6",
];
const SCALE = ["#c2185b", "#e8742e", "#d9b44a", "#6fa8b5", "#3f7fb5"]; // of a score, from low to high
const QUIET = { light: "#c9cfcc", dark: "#4b5459" }; // what needs no attention
const QUIET_NAMES = /^(no decision|not scored|[\d,]+ other classes)$/;

/** A colour for each value of a colouring, whose `is_scale` says if the values have an order. */
export function coloursOf({ values, is_scale: isScale }, isDark) {
  let next = 0;
  const steps = Math.max(values.filter(({ name }) => !QUIET_NAMES.test(name)).length - 1, 1);
  return values.map(({ name }) => {
    if (QUIET_NAMES.test(name)) return quiet(isDark);
    const position = next++;
    return isScale ? between(position / steps) : parts(DISTINCT[position % DISTINCT.length]);
  });
}

/** The colour of what needs no attention. */
export function quiet(isDark) {
  return parts(isDark ? QUIET.dark : QUIET.light);
}

/** A colour for CSS. */
export function css([red, green, blue]) {
  return `rgb(${[red, green, blue].map((share) => Math.round(255 * share)).join(" ")})`;
}

/** The computed colour of an element's ground. */
export function groundOf(node) {
  return getComputedStyle(node).backgroundColor.match(/[\d.]+/g).slice(0, 3).map((value) => value / 255);
}

function between(share) {
  const place = share * (SCALE.length - 1), low = Math.min(Math.floor(place), SCALE.length - 2);
  const [from, to] = [parts(SCALE[low]), parts(SCALE[low + 1])];
  return from.map((value, i) => value + (to[i] - value) * (place - low));
}

function parts(hex) {
  return [1, 3, 5].map((start) => parseInt(hex.slice(start, start + 2), 16) / 255);
}
