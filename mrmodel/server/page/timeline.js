// One timeline per query: clip scores as a curve, windows as blocks, a line where the player is.

import { clock, h, s, scoreText, spanText } from "./elements.js";

const CURVE = 44;
const GAP = 6;
const BLOCK = 18;
const LANE = BLOCK + 4;
const LEAST_WIDTH = 8;
const TICKS = [0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200];
const TICK_PIXELS = 72;

export class Timelines {
  /**
   * @param root element that is filled
   * @param video the player, which is sought
   * @param onPick called with the numbers of a query and of its moment when one is chosen
   */
  constructor(root, video, onPick) {
    this.root = root;
    this.video = video;
    this.onPick = onPick;
    this.rows = [];
    this.duration = 1;
    this.picked = null;
    new ResizeObserver(() => this.draw()).observe(root);
    for (const event of ["timeupdate", "seeking", "play"]) {
      video.addEventListener(event, () => this.followPlayer());
    }
  }

  /** Show the results of queries about a video of `duration` seconds. */
  show(results, duration) {
    this.duration = Math.max(duration, 0.1);
    this.picked = null;
    this.axis = s("svg", { class: "axis", "aria-hidden": "true" });
    this.rows = results.map((result, q) => this.rowOf(result, q));
    this.root.replaceChildren(...this.rows.map((row) => row.element), this.axis);
    this.draw();
  }

  /** Mark a moment as chosen; with `focus`, the keyboard continues there. */
  pick(q, m, focus = false) {
    this.picked = { q, m };
    this.rows.forEach((row, number) => {
      row.blocks.forEach((block, place) => {
        const chosen = number === q && place === m;
        block.setAttribute("aria-pressed", String(chosen));
        if (number === q) block.setAttribute("tabindex", chosen ? "0" : "-1");
      });
      this.placeBand(row, number === q ? row.result.moments[m] : null);
    });
    if (focus) this.rows[q].blocks[m].focus();
  }

  /** Show what was said about a moment: accept, correct or reject. */
  mark(q, m, verdict) {
    this.rows[q].blocks[m].dataset.verdict = verdict;
  }

  rowOf(result, q) {
    const label = result.query || "Highlights";
    const plot = s("svg", { class: "plot", role: "group", "aria-label": `Moments for ${label}` });
    plot.addEventListener("click", (event) => {
      const inside = event.clientX - plot.getBoundingClientRect().left;
      this.seek((inside / plot.clientWidth) * this.duration);
    });
    const best = result.moments.reduce((most, moment) => Math.max(most, moment.score), -Infinity);
    const blocks = result.moments.map((moment, m) =>
      s("g", {
        class: "block",
        role: "button",
        tabindex: m === 0 ? "0" : "-1",
        "aria-pressed": "false",
        "aria-label": `${moment.query || label}: ${clock(moment.start_s)} to ` +
          `${clock(moment.end_s)}, score ${scoreText(moment.score)}, ` +
          `${m + 1} of ${result.moments.length}`,
        "data-weak": moment.score < best / 2,
        onclick: (event) => {
          event.stopPropagation();
          this.choose(q, m, true);
        },
        onkeydown: (event) => this.onKey(event, q, m),
      },
      s("title", {}, `${spanText(moment)}, score ${scoreText(moment.score)}`),
      s("rect", { rx: 4 }), s("text", { "aria-hidden": "true" }, String(m + 1))));
    const row = {
      result, plot, blocks,
      lanes: lanesOf(result.moments),
      area: s("path", { class: "area" }),
      line: s("path", { class: "line" }),
      band: s("rect", { class: "band" }),
      head: s("line", { class: "head" }),
      grid: s("path", { class: "grid" }),
    };
    plot.append(row.grid, row.band, row.area, row.line, ...blocks, row.head);
    row.element = h("div", { class: `timeline q${q % 8}` },
      h("h3", {}, h("span", { class: "dot", "aria-hidden": "true" }), label),
      plot, ...result.notes.map((note) => h("p", { class: "note" }, note)));
    return row;
  }

  draw() {
    if (!this.rows.length) return;
    const width = this.rows[0].plot.clientWidth;
    if (!width) return;
    this.scale = width / this.duration;
    const ticks = ticksOf(this.duration, width);
    for (const row of this.rows) {
      const height = CURVE + GAP + LANE * Math.max(1, ...row.lanes.map((lane) => lane + 1));
      row.plot.setAttribute("height", height);
      row.plot.setAttribute("viewBox", `0 0 ${width} ${height}`);
      row.grid.setAttribute("d", ticks.map((t) => `M${this.x(t)} 0V${height}`).join(""));
      const { area, line } = curveOf(row.result, this.scale, width);
      row.area.setAttribute("d", area);
      row.line.setAttribute("d", line);
      row.head.setAttribute("y2", height);
      row.band.setAttribute("height", height);
      row.blocks.forEach((block, m) => this.placeBlock(row, block, m, width));
    }
    this.axis.setAttribute("viewBox", `0 0 ${width} 18`);
    this.axis.replaceChildren(...ticks.map((t) =>
      s("text", { x: this.x(t), y: 12, "text-anchor": t ? "middle" : "start" }, clock(t, t % 1 ? 1 : 0))));
    if (this.picked) this.pick(this.picked.q, this.picked.m);
    this.placeHead();
  }

  placeBlock(row, block, m, width) {
    const { start_s: start, end_s: end } = row.result.moments[m];
    const size = Math.max((end - start) * this.scale, LEAST_WIDTH);
    const left = Math.max(0, Math.min(this.x(start), width - size));
    const top = CURVE + GAP + row.lanes[m] * LANE;
    const [, rect, text] = block.children;
    for (const [name, value] of Object.entries({ x: left, y: top, width: size, height: BLOCK })) {
      rect.setAttribute(name, value);
    }
    text.setAttribute("x", left + size / 2);
    text.setAttribute("y", top + BLOCK / 2);
    text.toggleAttribute("hidden", size < 14);
  }

  placeBand(row, moment) {
    row.band.toggleAttribute("hidden", !moment);
    if (!moment || !this.scale) return;
    row.band.setAttribute("x", this.x(moment.start_s));
    row.band.setAttribute("width", (moment.end_s - moment.start_s) * this.scale);
  }

  x(seconds) {
    return Math.round(seconds * this.scale * 10) / 10;
  }

  followPlayer() {
    cancelAnimationFrame(this.frame);
    this.placeHead();
    if (!this.video.paused) this.frame = requestAnimationFrame(() => this.followPlayer());
  }

  placeHead() {
    if (!this.scale) return;
    const x = this.x(Math.min(this.video.currentTime, this.duration));
    for (const { head } of this.rows) {
      head.setAttribute("x1", x);
      head.setAttribute("x2", x);
    }
  }

  choose(q, m, focus) {
    this.pick(q, m, focus);
    this.seek(this.rows[q].result.moments[m].start_s);
    this.onPick(q, m);
  }

  seek(seconds) {
    const go = () => {
      this.video.currentTime = seconds;
    };
    if (this.video.readyState >= HTMLMediaElement.HAVE_METADATA) go();
    else this.video.addEventListener("loadedmetadata", go, { once: true });
  }

  onKey(event, q, m) {
    if (event.key === "Enter" || event.key === " ") this.choose(q, m, true);
    else {
      const next = this.neighbour(event.key, q, m);
      if (!next) return;
      this.choose(next.q, next.m, true);
    }
    event.preventDefault();
  }

  /** Where a key leads from a moment: to the sides by time, up and down to the next query. */
  neighbour(key, q, m) {
    const order = this.rows[q].result.moments
      .map((moment, number) => ({ number, start: moment.start_s }))
      .sort((a, b) => a.start - b.start)
      .map(({ number }) => number);
    const place = order.indexOf(m);
    const inRow = { ArrowLeft: place - 1, ArrowRight: place + 1, Home: 0, End: order.length - 1 };
    if (key in inRow) {
      const found = order[inRow[key]];
      return found === undefined ? null : { q, m: found };
    }
    const step = { ArrowUp: -1, ArrowDown: 1 }[key];
    for (let row = q + step; step && row >= 0 && row < this.rows.length; row += step) {
      if (this.rows[row].blocks.length) return { q: row, m: 0 };
    }
    return null;
  }
}

/** A lane for each moment, such that none overlap in one; the best moments lie in the first. */
function lanesOf(moments) {
  const lanes = [];
  return moments.map(({ start_s: start, end_s: end }) => {
    let lane = lanes.findIndex((taken) => taken.every(([a, b]) => end <= a || start >= b));
    if (lane < 0) lane = lanes.push([]) - 1;
    lanes[lane].push([start, end]);
    return lane;
  });
}

/** Paths of the scores of clips, from the lowest of the query at the bottom to the highest. */
function curveOf({ clip_scores: scores, clip_len_s: step }, scale, width) {
  if (!scores.length) return { area: "", line: "" };
  const low = Math.min(...scores);
  const range = Math.max(...scores) - low || 1;
  const points = [];
  // Of several clips in one pixel the highest counts.
  const perPixel = Math.max(1, Math.floor(1 / (step * scale)));
  for (let first = 0; first < scores.length; first += perPixel) {
    const value = Math.max(...scores.slice(first, first + perPixel));
    const x = Math.min((first + perPixel / 2) * step * scale, width);
    points.push(`${x.toFixed(1)} ${(CURVE - 2 - ((value - low) / range) * (CURVE - 6)).toFixed(1)}`);
  }
  const right = Math.min(scores.length * step * scale, width).toFixed(1);
  const [, firstY] = points[0].split(" ");
  const [, lastY] = points[points.length - 1].split(" ");
  const line = `M0 ${firstY}L${points.join("L")}L${right} ${lastY}`;
  return { line, area: `${line}V${CURVE}H0Z` };
}

function ticksOf(duration, width) {
  const least = (duration / width) * TICK_PIXELS;
  const step = TICKS.find((one) => one >= least) ?? TICKS[TICKS.length - 1];
  const count = Math.floor(duration / step - 0.3);
  return Array.from({ length: Math.max(count, 0) + 1 }, (_, number) => number * step);
}
