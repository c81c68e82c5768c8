// The server's API: JSON requests, uploads, and jobs that are polled.

const POLL_MS = 400;

/** An answer with a status from 400 on, or no answer at all. */
export class ApiError extends Error {
  constructor(status, code, message, requestId = "") {
    super(message);
    this.status = status;
    this.code = code;
    this.requestId = requestId;
  }
}

let askForToken = async () => {};

/** What is awaited before a request that was refused for its token is repeated. */
export function onTokenNeeded(ask) {
  askForToken = ask;
}

async function send(method, path, body) {
  const options = { method, headers: {} };
  if (body !== undefined) {
    options.headers["Content-Type"] = "application/json";
    options.body = JSON.stringify(body);
  }
  let response;
  try {
    response = await fetch(path, options);
  } catch {
    throw new ApiError(0, "unreachable", "The server does not answer. Is it still running?");
  }
  if (response.ok) {
    return response.status === 204 ? null : response.json();
  }
  throw errorOf(response.status, await response.text(), response.headers.get("Retry-After"));
}

function errorOf(status, text, retryAfter) {
  let error = {};
  try {
    error = JSON.parse(text).error ?? {};
  } catch {
    // Not from the program, but from a proxy before it.
  }
  let message = error.message || `The server answered with status ${status}.`;
  if (status === 429) {
    message = `The server is busy. Try again in ${retryAfter ?? "a few"} seconds.`;
  }
  return new ApiError(status, error.code ?? "http", message, error.request_id ?? "");
}

/** The JSON of an answer; asks for the token and repeats the request where one is needed. */
export async function request(method, path, body) {
  for (;;) {
    try {
      return await send(method, path, body);
    } catch (error) {
      if (error.status !== 401) throw error;
      await askForToken();
    }
  }
}

/** Exchange the token for a cookie, which media elements send, too. */
export async function openSession(token) {
  await send("POST", "/v1/session", { token });
}

/** Send a video file; `onProgress` gets the fraction that was sent. */
export function upload(file, onProgress) {
  return new Promise((resolve, reject) => {
    const form = new FormData();
    form.append("file", file);
    // fetch() does not tell how much was sent.
    const transfer = new XMLHttpRequest();
    transfer.open("POST", "/v1/videos");
    transfer.upload.onprogress = (event) => onProgress(event.loaded / event.total);
    transfer.onerror = () =>
      reject(new ApiError(0, "unreachable", `${file.name}: the upload broke off.`));
    transfer.onload = () => {
      const { status, responseText } = transfer;
      if (status < 400) resolve(JSON.parse(responseText).job);
      else reject(errorOf(status, responseText, transfer.getResponseHeader("Retry-After")));
    };
    transfer.send(form);
  });
}

/** The result of a job when it has ended; `onChange` gets it each time that it was looked at. */
export async function finished(job, onChange = () => {}) {
  while (job.state === "queued" || job.state === "running") {
    await new Promise((wake) => setTimeout(wake, POLL_MS));
    job = await request("GET", `/v1/jobs/${job.id}`);
    onChange(job);
  }
  if (job.state === "done") return job.result ?? {};
  if (job.state === "cancelled") throw new ApiError(0, "cancelled", "It was cancelled.");
  throw new ApiError(500, job.error.code, job.error.message, job.error.request_id);
}

export const thumbnail = (id, seconds, width) =>
  `/v1/videos/${id}/thumbnail?t=${seconds.toFixed(2)}&width=${width}`;
export const media = (id) => `/v1/videos/${id}/media`;
export const jobFile = (id) => `/v1/jobs/${id}/result`;
