"use strict";

const words = JSON.parse(document.body.dataset.words);
const form = document.getElementById("form");
const query = document.getElementById("q");
const file = document.getElementById("file");
const asked = document.getElementById("asked");
const status = document.getElementById("status");
const hits = document.getElementById("hits");
const other = document.getElementById("other");

let running = new AbortController();

function say(text) {
  status.textContent = text;
}

function made(name, content, text) {
  const element = document.createElement(name);
  element.className = content;
  element.textContent = text;
  return element;
}

function noPicture() {
  return made("div", "none", words.no_picture);
}

function shown(hit) {
  const item = document.createElement("li");
  if (hit.thumbnail) {
    const image = document.createElement("img");
    image.loading = "lazy";
    image.decoding = "async";
    image.alt = String(hit.id);
    image.addEventListener("error", () => image.replaceWith(noPicture()), { once: true });
    image.src = hit.thumbnail;
    item.append(image);
  } else {
    item.append(noPicture());
  }
  const line = document.createElement("p");
  const id = made("span", "id", String(hit.id));
  id.title = String(hit.id);
  line.append(id, made("span", "score", hit.score.toFixed(3)));
  item.append(line);
  return item;
}

async function find(address, options) {
  running.abort();
  const mine = (running = new AbortController());
  hits.setAttribute("aria-busy", "true");
  say(words.searching);
  try {
    const answer = await fetch(address, { ...options, signal: mine.signal });
    // A proxy in front answers in HTML, such as that a picture is too large for it.
    if (!/^application\/json/.test(answer.headers.get("Content-Type"))) throw new Error(`HTTP ${answer.status}`);
    const found = await answer.json();
    if (!answer.ok) throw new Error(found.error.message);
    hits.replaceChildren(...found.hits.map(shown));
    say(found.hits.length ? words.found.replace("{count}", found.hits.length) : words.none);
  } catch (error) {
    if (mine.signal.aborted) return;
    hits.replaceChildren();
    say(words.failed.replace("{reason}", error instanceof TypeError ? words.not_reached : error.message));
  }
  hits.removeAttribute("aria-busy");
}

function showAsked(picture) {
  const image = asked.querySelector("img");
  if (image.src) URL.revokeObjectURL(image.src);
  asked.hidden = !picture;
  if (picture) image.src = URL.createObjectURL(picture);
  else image.removeAttribute("src");
}

function remember(text) {
  const address = new URL(location.href);
  if (text) address.searchParams.set("q", text);
  else address.searchParams.delete("q");
  if (address.href !== location.href) history.pushState(null, "", address);
  keepInSwitch(text);
}

// Whoever changes the language goes on with the same search.
function keepInSwitch(text) {
  const address = new URL(other.href);
  if (text) address.searchParams.set("q", text);
  else address.searchParams.delete("q");
  other.href = address.href;
}

function findText(text) {
  showAsked(null);
  file.value = "";
  return find(`search?q=${encodeURIComponent(text)}`, {});
}

function findPicture(picture) {
  if (!picture || !picture.type.startsWith("image/")) {
    say(words.no_image);
    return;
  }
  query.value = "";
  remember("");
  showAsked(picture);
  find("search", { method: "POST", headers: { "Content-Type": picture.type }, body: picture });
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  const text = query.value.trim();
  if (!text) return query.focus();
  remember(text);
  findText(text);
});

file.addEventListener("change", () => {
  if (file.files.length) findPicture(file.files[0]);
});

document.addEventListener("paste", (event) => {
  const picture = [...event.clipboardData.files].find((one) => one.type.startsWith("image/"));
  if (picture) findPicture(picture);
});

document.addEventListener("dragover", (event) => {
  event.preventDefault();
  document.body.classList.add("over");
});
document.addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) document.body.classList.remove("over");
});
document.addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("over");
  findPicture(event.dataTransfer.files[0]);
});

function begin() {
  const text = new URL(location.href).searchParams.get("q") ?? "";
  query.value = text;
  keepInSwitch(text);
  if (text.trim()) findText(text.trim());
  else {
    running.abort();
    showAsked(null);
    hits.replaceChildren();
    say("");
  }
}

window.addEventListener("popstate", begin);
begin();
