"use strict";
// Pictures and clips go to the endpoint once, at the lowest threshold; the slider filters what came back.
const $ = (id) => document.getElementById(id);
const COLORS = ["#2563eb", "#dc2626", "#059669", "#d97706", "#7c3aed", "#db2777", "#0891b2", "#65a30d", "#ea580c"];
const color = (label) => COLORS[(label - 1) % COLORS.length];
const entries = [];
let limits = {};

function make(tag, parent, text, className) {
  const node = document.createElement(tag);
  if (text !== undefined) node.textContent = text; // never as HTML: names come from files and checkpoints
  if (className) node.className = className;
  if (parent) parent.append(node);
  return node;
}

const threshold = () => Number($("threshold").value);
const above = (list) => list.filter((one) => one.score >= threshold());

async function start() {
  const answer = await (await fetch("api/models")).json();
  limits = answer.limits;
  for (const model of answer.models) make("option", $("model"), model.name).value = model.name;
  const mib = (bytes) => Math.round(bytes / 2 ** 20);
  $("limits").textContent = `Pictures up to ${mib(limits.image_bytes)} MiB, clips up to ${mib(limits.clip_bytes)} MiB ` +
    `and ${limits.frames} frames. For programs: POST an image to /api/detect; `;
  const link = make("a", $("limits"), "schema");
  link.href = "openapi.json";
}

async function add(files) {
  for (const file of files) {
    const entry = { file, clip: file.type.startsWith("video/"), frame: 0 };
    entry.node = make("article");
    $("results").prepend(entry.node);
    entries.unshift(entry);
    await detect(entry);
  }
}

async function detect(entry) {
  const { file, clip, node } = entry;
  $("status").textContent = `Looking at ${file.name} ...`;
  Object.assign(entry, { answer: null, error: null, model: $("model").value });
  const most = clip ? limits.clip_bytes : limits.image_bytes;
  try {
    if (file.size > most) throw new Error(`${file.size} bytes: at most ${most} are taken`);
    const way = clip ? "detect-clip" : "detect";
    const address = `api/${way}?threshold=0.05&model=${encodeURIComponent(entry.model)}`;
    const response = await fetch(address, { method: "POST", body: file });
    const answer = await response.json();
    if (!response.ok) throw new Error(answer.error);
    entry.answer = answer;
    entry.picture ??= clip ? await openClip(file) : await createImageBitmap(file).catch(() => null); // TIFF
  } catch (error) {
    entry.error = error.message;
  }
  $("status").textContent = "";
  build(entry, node);
  $("download").disabled = !entries.some((one) => one.answer);
}

function openClip(file) {
  return new Promise((resolve) => {
    const video = document.createElement("video");
    Object.assign(video, { muted: true, playsInline: true, src: URL.createObjectURL(file) });
    video.onloadeddata = () => resolve(video);
    video.onerror = () => resolve(null); // the browser cannot play it: boxes are shown on black
  });
}

function build(entry, node) {
  node.replaceChildren();
  const title = make("h2", node, `${entry.file.name} `);
  entry.count = make("span", title);
  if (!entry.answer) {
    make("p", node, entry.error, "error");
    return;
  }
  const sides = make("div", node, undefined, "sides");
  const picture = make("div", sides, undefined, "picture");
  entry.canvas = make("canvas", picture);
  const { width, height } = entry.answer;
  entry.scale = Math.max(1, 640 / Math.max(width, height)); // small pictures: room for lines and letters
  Object.assign(entry.canvas, { width: width * entry.scale, height: height * entry.scale });
  if (!entry.picture) make("p", picture, "This browser cannot show the file itself; the boxes are right.", "note");
  entry.table = make("table", make("div", sides, undefined, "list"));
  draw(entry);
  if (entry.clip) controls(entry, picture);
}

function controls(entry, picture) {
  const row = make("div", picture, undefined, "controls");
  const play = make("button", row, "Play");
  const slider = make("input", row);
  Object.assign(slider, { type: "range", min: 0, max: entry.answer.frames.length - 1, value: 0, step: 1 });
  const show = (frame) => {
    entry.frame = Math.min(entry.answer.frames.length - 1, frame);
    slider.value = entry.frame;
    draw(entry);
  };
  const rate = entry.answer.frames_per_second;
  const seek = (frame) => {
    if (!entry.picture) return show(frame);
    entry.picture.onseeked = () => show(frame);
    entry.picture.currentTime = (frame + 0.5) / rate;
  };
  slider.oninput = () => seek(Number(slider.value));
  let timer = null;
  play.onclick = () => {
    if (timer) {
      timer = clearInterval(timer);
    } else {
      timer = setInterval(() => seek((entry.frame + 1) % entry.answer.frames.length), 1000 / Math.min(rate, 15));
    }
    play.textContent = timer ? "Pause" : "Play";
  };
  seek(0);
}

function draw(entry) {
  if (!entry.answer) return;
  const found = above(entry.clip ? entry.answer.frames[entry.frame] : entry.answer.detections);
  const context = entry.canvas.getContext("2d");
  const { width, height } = entry.canvas;
  context.clearRect(0, 0, width, height);
  context.imageSmoothingEnabled = entry.scale < 4;
  if (entry.picture) context.drawImage(entry.picture, 0, 0, width, height);
  const side = Math.max(width, height);
  const shown = entry.canvas.clientWidth / width || 1; // on a narrow screen a picture is shown smaller than it is
  const letters = Math.max(10 / shown, side / 55);
  context.font = `600 ${letters}px system-ui, "DejaVu Sans", sans-serif`;
  context.textBaseline = "top";
  context.lineWidth = Math.max(1.5 / shown, side / 400);
  const scaled = found.map((one) => [one, one.box.map((value) => value * entry.scale)]).reverse();
  for (const [one, [x1, y1]] of scaled) {
    const text = `${one.name} ${one.score.toFixed(2)}`;
    const room = context.measureText(text).width + letters / 2;
    const left = Math.max(0, Math.min(x1, width - room));
    const top = y1 >= letters * 1.3 ? y1 - letters * 1.3 : y1;
    context.fillStyle = color(one.label);
    context.fillRect(left, top, room, letters * 1.3);
    context.fillStyle = "#fff";
    context.fillText(text, left + letters / 4, top + letters * 0.15);
  }
  for (const [one, [x1, y1, x2, y2]] of scaled) { // after the names: they bury no box
    context.strokeStyle = color(one.label);
    context.strokeRect(x1, y1, x2 - x1, y2 - y1);
  }
  list(entry, found);
}

function list(entry, found) {
  const what = `${found.length} object${found.length === 1 ? "" : "s"} above ${threshold().toFixed(2)}`;
  const where = entry.clip ? `, frame ${entry.frame + 1} of ${entry.answer.frames.length}` +
    (entry.answer.complete ? "" : " (the rest of the clip was not looked at)") : "";
  entry.count.textContent = `${what}${where}, by ${entry.model}`;
  entry.table.replaceChildren();
  const head = make("tr", make("thead", entry.table));
  for (const name of ["class", "score", "x1, y1, x2, y2"]) make("th", head, name);
  const body = make("tbody", entry.table);
  for (const one of found) {
    const row = make("tr", body);
    const name = make("td", row);
    make("i", name).style.background = color(one.label);
    name.append(one.name);
    make("td", row, one.score.toFixed(3));
    make("td", row, one.box.map((value) => value.toFixed(1)).join(", "));
  }
}

function download() {
  const images = entries.filter((entry) => entry.answer).map((entry) => {
    const { frames, detections, ...rest } = entry.answer;
    const found = entry.clip ? { frames: frames.map(above) } : { detections: above(detections) };
    return { file: entry.file.name, threshold: threshold(), ...rest, ...found };
  });
  const link = make("a");
  link.href = URL.createObjectURL(new Blob([JSON.stringify(images, null, 1)], { type: "application/json" }));
  link.download = "detections.json";
  link.click();
}

$("threshold").oninput = () => {
  $("shown").textContent = threshold().toFixed(2);
  entries.forEach(draw);
};
window.onresize = () => entries.forEach(draw);
$("model").onchange = async () => { for (const entry of entries) await detect(entry); };
$("download").onclick = download;
$("files").onchange = () => add([...$("files").files]);
const drop = $("drop");
for (const name of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(name, (event) => {
    event.preventDefault();
    drop.classList.toggle("over", name === "dragover");
    if (name === "drop") add([...event.dataTransfer.files]);
  });
}
start();
