// The page: videos, queries, hits, feedback and exports.

import {
  ApiError, finished, jobFile, media, onTokenNeeded, openSession, request, thumbnail, upload,
} from "./api.js";
import { clock, h, icon, scoreText, spanText } from "./elements.js";
import { Timelines } from "./timeline.js";

const MOMENTS = 5;
const HITS = 24;
const FILTER_FROM = 9;
const MOST_ALERTS = 3;
const FORMATS = {
  csv: "Table (CSV)",
  json: "JSON lines",
  vtt: "Chapters (WebVTT)",
  otio: "OpenTimelineIO",
  edl: "Edit list (EDL)",
  label_studio: "Label Studio tasks",
  mp4: "Clips (MP4, zipped)",
  reel: "One reel (MP4)",
};

const $ = (id) => document.getElementById(id);
const player = $("video");
const timelines = new Timelines($("timelines"), player, (q, m) => showPicked(q, m));

const state = {
  videos: [],
  video: null,
  results: [],
  // Key of a moment -> what was said about it.
  verdicts: new Map(),
  queriesMax: 8,
  searches: 0,
};

// Errors

function showError(error) {
  if (!(error instanceof ApiError)) console.error(error);
  const close = h("button", { type: "button", class: "icon-button", "aria-label": "Close message" },
    icon("remove"));
  const detail = error.requestId ? h("small", {}, `request ${error.requestId}`) : null;
  const alert = h("div", { class: "alert", role: "alert" }, h("p", {}, error.message, detail), close);
  close.addEventListener("click", () => alert.remove());
  $("alerts").append(alert);
  while ($("alerts").children.length > MOST_ALERTS) $("alerts").firstChild.remove();
}

/** A handler whose errors are shown; the element is disabled while it runs. */
function guarded(action) {
  return async (event) => {
    const button = event?.currentTarget?.matches?.("button") ? event.currentTarget : null;
    if (button) button.disabled = true;
    try {
      await action(event);
    } catch (error) {
      showError(error);
    } finally {
      if (button) button.disabled = false;
    }
  };
}

onTokenNeeded(() => new Promise((resolve) => {
  const dialog = $("token-dialog");
  if (!dialog.open) dialog.showModal();
  $("token-form").addEventListener("submit", async (event) => {
    event.preventDefault();
    try {
      await openSession($("token").value);
      dialog.close();
    } catch (error) {
      $("token-problem").textContent = error.message;
      $("token-problem").hidden = false;
    }
    resolve();
  }, { once: true });
}));

// Videos

async function loadStatus() {
  const status = await request("GET", "/v1/status");
  state.queriesMax = status.queries_max;
  const trained = status.trained_on ? `, trained on ${status.trained_on}` : "";
  const said = status.zero_shot ? "zero-shot: no trained model" : `${status.model}${trained}`;
  $("model").textContent = said;
  $("model").title = `mrmodel ${status.version}${status.note ? `. ${status.note}` : ""}`;
}

async function loadVideos() {
  state.videos = (await request("GET", "/v1/videos")).videos;
  $("video-count").textContent = state.videos.length || "";
  $("filter").hidden = state.videos.length < FILTER_FROM;
  showVideos();
}

function showVideos() {
  const wanted = $("filter").value.trim().toLowerCase();
  const shown = state.videos.filter((video) => video.name.toLowerCase().includes(wanted));
  $("videos").replaceChildren(...shown.map((video) => {
    const open = h("button", {
      type: "button",
      class: "video",
      "aria-current": video.id === state.video?.id ? "true" : null,
      title: video.name,
      onclick: guarded(() => openVideo(video)),
    },
    picture(video, video.duration_s / 3, 160),
    h("span", { class: "video-text" }, h("span", { class: "name" }, video.name),
      h("span", { class: "quiet" }, factsOf(video))));
    return h("li", {}, open);
  }));
  showEmpty();
}

function factsOf(video) {
  const length = clock(video.duration_s, 0);
  return video.status === "ok" ? length : `${length}, ${video.status}`;
}

function picture(video, seconds, width) {
  const frame = h("span", { class: "picture" });
  if (video.status !== "missing") {
    frame.append(h("img", {
      src: thumbnail(video.id, seconds, width),
      alt: "",
      loading: "lazy",
      onerror: (event) => event.target.remove(),
    }));
  }
  return frame;
}

function showEmpty() {
  const idle = !state.video && $("hits").hidden;
  $("empty").hidden = !idle;
  $("empty").textContent = state.videos.length
    ? "Describe a moment to search all videos, or choose one of them."
    : "No videos yet. Choose one, drop it here, or add a folder with “mrmodel index add”.";
}

async function openVideo(video, seconds = null) {
  state.video = video;
  location.hash = video.id;
  $("unplayable").hidden = true;
  player.src = media(video.id);
  player.poster = thumbnail(video.id, video.duration_s / 3, 960);
  if (seconds !== null) timelines.seek(seconds);
  $("video-name").textContent = video.name;
  $("video-facts").textContent = factsOf(video);
  $("delete").hidden = !video.uploaded;
  $("hits").hidden = true;
  $("viewer").hidden = false;
  const inVideo = document.querySelector("input[name=scope][value=video]");
  inVideo.disabled = false;
  inVideo.checked = true;
  showResults([]);
  showVideos();
  $("viewer").scrollIntoView({ block: "nearest" });
}

function closeVideo() {
  state.video = null;
  player.removeAttribute("src");
  player.load();
  history.replaceState(null, "", location.pathname);
  $("viewer").hidden = true;
  document.querySelector("input[name=scope][value=video]").disabled = true;
  document.querySelector("input[name=scope][value=library]").checked = true;
}

player.addEventListener("error", () => {
  if (!player.getAttribute("src")) return;
  $("unplayable").textContent =
    "This browser cannot play the file. Its moments can be searched and exported all the same.";
  $("unplayable").hidden = false;
});

$("delete").addEventListener("click", () => {
  $("delete-name").textContent = state.video.name;
  $("delete-dialog").showModal();
});

$("delete-dialog").addEventListener("close", guarded(async () => {
  const { returnValue } = $("delete-dialog");
  $("delete-dialog").returnValue = "";
  if (returnValue !== "delete") return;
  await request("DELETE", `/v1/videos/${state.video.id}`);
  closeVideo();
  await loadVideos();
}));

$("filter").addEventListener("input", showVideos);

// Uploads

async function uploadAll(files) {
  for (const file of files) await uploadOne(file);
}

async function uploadOne(file) {
  const bar = h("progress", { max: 1, value: 0, "aria-label": `Upload of ${file.name}` });
  const said = h("span", { class: "quiet" }, "sending");
  const entry = h("li", {}, h("span", { class: "name" }, file.name), said, bar);
  $("uploads").append(entry);
  try {
    const job = await upload(file, (fraction) => {
      bar.value = fraction;
      if (fraction === 1) said.textContent = "checking";
    });
    bar.removeAttribute("value");
    said.textContent = "encoding";
    const { video } = await finished(job, ({ progress }) => {
      if (progress !== null) bar.value = progress;
    });
    await loadVideos();
    await openVideo(video);
  } catch (error) {
    error.message = error.message.includes(file.name)
      ? error.message : `${file.name}: ${error.message}`;
    showError(error);
  } finally {
    entry.remove();
  }
}

$("file").addEventListener("change", async (event) => {
  const files = [...event.target.files];
  event.target.value = "";
  await uploadAll(files);
});

for (const name of ["dragenter", "dragover", "dragleave", "drop"]) {
  document.addEventListener(name, (event) => {
    event.preventDefault();
    document.body.classList.toggle("dropping", name === "dragenter" || name === "dragover");
    if (name === "drop") uploadAll([...event.dataTransfer.files]);
  });
}

// Queries

function addQuery(text = "") {
  const number = $("queries").children.length + 1;
  const input = h("input", {
    class: "query",
    maxlength: 1000,
    autocomplete: "off",
    enterkeyhint: "search",
    placeholder: number === 1 ? "a dog jumps into the lake" : "another moment",
    "aria-label": `Query ${number}`,
    value: text,
  });
  const remove = h("button", {
    type: "button", class: "icon-button", "aria-label": `Remove query ${number}`,
    onclick: () => {
      row.remove();
      numberQueries();
    },
  }, icon("remove"));
  const row = h("li", {}, h("span", { class: "dot", "aria-hidden": "true" }), input, remove);
  $("queries").append(row);
  numberQueries();
  return input;
}

function numberQueries() {
  const rows = [...$("queries").children];
  rows.forEach((row, number) => {
    row.className = `q${number % 8}`;
    row.querySelector(".icon-button").hidden = rows.length === 1;
  });
  $("add-query").disabled = rows.length >= state.queriesMax;
}

function setQueries(texts) {
  $("queries").replaceChildren();
  texts.forEach((text) => addQuery(text));
}

function givenQueries() {
  return [...$("queries").querySelectorAll("input")].map((one) => one.value.trim()).filter(Boolean);
}

$("add-query").addEventListener("click", () => addQuery().focus());

$("search").addEventListener("submit", async (event) => {
  event.preventDefault();
  const queries = givenQueries();
  if (!queries.length) {
    $("queries").querySelector("input").focus();
    return;
  }
  const scope = new FormData($("search")).get("scope");
  await searching(() => (scope === "video" ? searchVideo(queries) : searchLibrary(queries)));
});

$("highlights").addEventListener("click", () => searching(async () => {
  const path = `/v1/videos/${state.video.id}/highlights`;
  showResults([await request("POST", path, { top: MOMENTS })]);
}));

/** Show that a search runs; the answer to an earlier one is not shown. */
async function searching(search) {
  const number = (state.searches += 1);
  document.body.classList.add("searching");
  $("go").textContent = "Searching…";
  try {
    await search();
  } catch (error) {
    showError(error);
  } finally {
    if (number === state.searches) {
      document.body.classList.remove("searching");
      $("go").textContent = "Search";
    }
  }
}

async function searchVideo(queries) {
  const { id } = state.video;
  const number = state.searches;
  const found = await request("POST", `/v1/videos/${id}/search`, { queries, top: MOMENTS });
  if (number === state.searches && id === state.video?.id) showResults(found.results);
}

async function searchLibrary(queries) {
  const number = state.searches;
  const answers = [];
  for (const query of queries) {
    answers.push(await request("POST", "/v1/search", { query, top: HITS }));
  }
  if (number === state.searches) showHits(queries, answers);
}

// Hits in all videos

function showHits(queries, answers) {
  closeVideo();
  const groups = queries.map((query, q) => h("section", { class: `group q${q % 8}` },
    h("h2", {}, h("span", { class: "dot", "aria-hidden": "true" }), query),
    ...answers[q].notes.map((note) => h("p", { class: "note" }, note)),
    answers[q].hits.length
      ? h("ol", { class: "cards" }, ...answers[q].hits.map((hit) => cardOf(hit, query)))
      : h("p", { class: "quiet" }, "Nothing found.")));
  const hits = queries.flatMap((query, q) => answers[q].hits.map(
    (hit) => exportable(hit.video.id, query, hit)));
  $("hits").replaceChildren(...groups, hits.length ? exportBar(() => hits) : "");
  $("hits").hidden = false;
  showVideos();
}

function cardOf(hit, query) {
  const { video } = hit;
  const open = h("button", {
    type: "button",
    class: "card",
    onclick: guarded(async () => {
      await openVideo(video, hit.start_s);
      setQueries([query]);
      await searching(() => searchVideo([query]));
      pickNearest(hit);
    }),
  },
  h("span", { class: "card-picture" }, picture(video, (hit.start_s + hit.end_s) / 2, 320),
    h("span", { class: "badge" }, spanText(hit))),
  h("span", { class: "name" }, video.name),
  hit.evidence ? h("q", {}, hit.evidence) : null);
  return h("li", {}, open);
}

function pickNearest(hit) {
  const moments = state.results[0]?.moments ?? [];
  const distance = (one) => Math.abs(one.start_s - hit.start_s) + Math.abs(one.end_s - hit.end_s);
  const nearest = moments.reduce(
    (best, one, m) => (distance(one) < distance(moments[best]) ? m : best), 0);
  if (moments.length) {
    timelines.pick(0, nearest);
    showPicked(0, nearest);
  }
}

// Moments of one video

function showResults(results) {
  state.results = results;
  $("timelines").hidden = !results.length;
  $("moments").hidden = !results.length;
  timelines.show(results, state.video.duration_s);
  if (!results.length) return;
  const groups = results.map((result, q) => h("section", { class: `group q${q % 8}` },
    h("h3", {}, h("span", { class: "dot", "aria-hidden": "true" }), result.query || "Highlights"),
    h("ol", {}, ...result.moments.map((moment, m) => momentRow(q, m, moment)))));
  const bar = exportBar(() => state.results.flatMap((result) => result.moments.map((moment) =>
    exportable(state.video.id, queryOf(result, moment), moment))));
  $("moments").replaceChildren(...groups, bar);
  results.forEach((result, q) => result.moments.forEach((moment, m) => showVerdict(q, m)));
}

const queryOf = (result, moment) => moment.query || result.query;
const rowId = (q, m) => `moment-${q}-${m}`;

function momentRow(q, m, moment) {
  const verdict = (name, label) => h("button", {
    type: "button",
    class: `icon-button verdict ${name}`,
    "aria-label": `${label}: ${spanText(moment)}`,
    "aria-pressed": "false",
    title: label,
    onclick: name === "correct"
      ? () => editMoment(q, m, moment)
      : guarded(() => say(q, m, { verdict: name })),
  }, icon(name));
  return h("li", { class: "moment", id: rowId(q, m) },
    h("button", { type: "button", class: "go-to", onclick: () => timelines.choose(q, m, false) },
      h("span", { class: "rank" }, String(m + 1)),
      h("span", { class: "span" }, spanText(moment)),
      h("span", { class: "quiet score", title: "Score" }, scoreText(moment.score))),
    h("span", { class: "verdicts", role: "group", "aria-label": "Feedback" },
      verdict("accept", "Right"), verdict("correct", "Correct the times"),
      verdict("reject", "Not this")),
    moment.query ? h("span", { class: "quiet fits" }, moment.query) : null,
    h("p", { class: "said", role: "status" }));
}

function showPicked(q, m) {
  document.querySelectorAll(".moment.picked").forEach((row) => row.classList.remove("picked"));
  const row = $(rowId(q, m));
  row.classList.add("picked");
  row.scrollIntoView({ block: "nearest" });
}

// Feedback

function keyOf(q, m) {
  const { start_s, end_s } = state.results[q].moments[m];
  const query = queryOf(state.results[q], state.results[q].moments[m]);
  return JSON.stringify([state.video.id, query, start_s, end_s]);
}

async function say(q, m, said) {
  const key = keyOf(q, m);
  const moment = state.results[q].moments[m];
  await request("POST", "/v1/feedback", {
    video: state.video.id,
    query: queryOf(state.results[q], moment),
    start_s: moment.start_s,
    end_s: moment.end_s,
    ...said,
  });
  state.verdicts.set(key, said);
  if (state.results[q]?.moments[m] && keyOf(q, m) === key) showVerdict(q, m);
  await loadFeedback();
}

function showVerdict(q, m) {
  const said = state.verdicts.get(keyOf(q, m));
  if (!said) return;
  const row = $(rowId(q, m));
  row.dataset.verdict = said.verdict;
  row.querySelectorAll(".verdict").forEach((button) =>
    button.setAttribute("aria-pressed", String(button.classList.contains(said.verdict))));
  const window = { start_s: said.corrected_start_s, end_s: said.corrected_end_s };
  row.querySelector(".said").textContent =
    said.verdict === "correct" ? `corrected to ${spanText(window)}` : "";
  timelines.mark(q, m, said.verdict);
}

function editMoment(q, m, moment) {
  const row = $(rowId(q, m));
  if (row.querySelector("form")) {
    row.querySelector("form").remove();
    return;
  }
  const side = (label, value) => {
    const input = h("input", {
      type: "number", class: "field", step: 0.1, min: 0, max: state.video.duration_s,
      value: value.toFixed(1), required: true, "aria-label": `${label} in seconds`,
    });
    const take = h("button", {
      type: "button", class: "button small", title: "Take the time of the player",
      onclick: () => { input.value = player.currentTime.toFixed(1); },
    }, "Now");
    return { input, field: h("label", { class: "side" }, h("span", {}, label), input, take) };
  };
  const known = state.verdicts.get(keyOf(q, m)) ?? {};
  const start = side("Start", known.corrected_start_s ?? moment.start_s);
  const end = side("End", known.corrected_end_s ?? moment.end_s);
  const problem = h("p", { class: "problem", role: "alert", hidden: true });
  const form = h("form", { class: "edit", novalidate: true }, start.field, end.field, problem,
    h("div", { class: "row-end" },
      h("button", { type: "button", class: "button small ghost", onclick: () => form.remove() }, "Cancel"),
      h("button", { type: "submit", class: "button small primary" }, "Save")));
  form.addEventListener("submit", guarded(async (event) => {
    event.preventDefault();
    const [from, to] = [Number(start.input.value), Number(end.input.value)];
    problem.hidden = from < to;
    problem.textContent = "The end must be after the start.";
    if (from >= to) return;
    await say(q, m, { verdict: "correct", corrected_start_s: from, corrected_end_s: to });
    form.remove();
  }));
  row.append(form);
  start.input.focus();
}

async function loadFeedback() {
  const counts = await request("GET", "/v1/feedback");
  const parts = [
    counts.deliverable ? `${counts.deliverable} to deliver` : "nothing to deliver",
    counts.rejected_waiting ? `${counts.rejected_waiting} rejected, waiting` : null,
  ];
  $("feedback-counts").textContent = counts.entries
    ? parts.filter(Boolean).join(" · ") : "Say which moments are right, and the model can learn it.";
  $("deliver").disabled = !counts.deliverable;
}

$("deliver").addEventListener("click", async () => {
  $("deliver").disabled = true;
  try {
    const { job } = await request("POST", "/v1/feedback/deliver");
    showDelivery(await finished(job));
  } catch (error) {
    showError(error);
  }
  await guarded(loadFeedback)();
});

function showDelivery({ delivery, rows, left_out: leftOut }) {
  const what = delivery ? `${delivery}: ${rows} ${rows === 1 ? "row" : "rows"}.` : "Nothing new.";
  $("delivered").replaceChildren(h("p", {}, what),
    ...leftOut.map((reason) => h("p", {}, `Left out: ${reason}`)));
  $("delivered").hidden = false;
}

// Exports

const exportable = (video, query, { start_s, end_s, score }) =>
  ({ video, query, start_s, end_s, score });

function exportBar(hits) {
  const format = h("select", { class: "field", "aria-label": "Format of the export" },
    ...Object.entries(FORMATS).map(([name, label]) => h("option", { value: name }, label)));
  const exact = h("input", { type: "checkbox" });
  const exactLabel = h("label", { class: "check", hidden: true }, exact, "Exact to the frame");
  format.addEventListener("change", () => {
    exactLabel.hidden = !["mp4", "reel"].includes(format.value);
  });
  const link = h("span", { class: "saved", role: "status" });
  const button = h("button", {
    type: "button",
    class: "button",
    onclick: guarded(async () => {
      link.replaceChildren("Working…");
      try {
        const body = { format: format.value, hits: hits(), exact: exact.checked };
        const { job } = await request("POST", "/v1/exports", body);
        await finished(job, ({ progress }) => {
          if (progress) link.replaceChildren(`${Math.round(progress * 100)} %`);
        });
        const file = h("a", { href: jobFile(job.id), download: "" }, "Save again");
        link.replaceChildren(file);
        file.click();
      } catch (error) {
        link.replaceChildren();
        throw error;
      }
    }),
  }, "Export");
  return h("div", { class: "export" }, format, exactLabel, button, link);
}

// Start

addEventListener("hashchange", guarded(async () => {
  const video = state.videos.find((one) => one.id === location.hash.slice(1));
  if (video && video.id !== state.video?.id) await openVideo(video);
}));

await guarded(async () => {
  addQuery();
  await loadStatus();
  numberQueries();
  await Promise.all([loadVideos(), loadFeedback()]);
  const video = state.videos.find((one) => one.id === location.hash.slice(1));
  if (video) await openVideo(video);
})();
