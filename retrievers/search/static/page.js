"use strict";

const form = document.getElementById("form");
const drop = document.getElementById("drop");
const field = document.getElementById("picture");
const file = document.getElementById("file");
const preview = document.getElementById("preview");
const chosen = document.getElementById("chosen");
const empty = document.getElementById("empty");
const status = document.getElementById("status");
const submit = document.getElementById("submit");

function say(text, bad = false) {
  status.textContent = text;
  status.classList.toggle("bad", bad);
}

function show(name) {
  field.value = name;
  if (name) preview.src = "/picture/" + encodeURIComponent(name);
  else preview.removeAttribute("src");
  chosen.hidden = !name;
  empty.hidden = Boolean(name);
  file.value = "";
}

async function upload(picture) {
  const limit = Number(form.dataset.maxBytes);
  if (picture.type && !picture.type.startsWith("image/")) {
    say("That is no picture; choose a JPEG, PNG, WebP, GIF, BMP or TIFF file.", true);
    return;
  }
  if (picture.size > limit) {
    say(`The picture has ${(picture.size / 1048576).toFixed(1)} MiB; the most is ${limit / 1048576}.`, true);
    return;
  }
  say("Reading the picture …");
  try {
    const type = picture.type || "application/octet-stream";
    const reply = await fetch("/picture", { method: "POST", body: picture, headers: { "Content-Type": type } });
    const told = await reply.json();
    if (!reply.ok) {
      say(told.error, true);
      return;
    }
    show(told.picture);
    say("The picture is part of the query.");
    document.getElementById("remove").focus();
  } catch (error) {
    say("The picture did not arrive; is the server still running?", true);
  }
}

function pictureOf(transfer) {
  const files = Array.from(transfer ? transfer.files : []);
  return files.find((found) => found.type.startsWith("image/")) || files[0];
}

file.addEventListener("change", () => { if (file.files.length) upload(file.files[0]); });

for (const name of ["dragenter", "dragover"]) {
  document.addEventListener(name, (event) => {
    event.preventDefault();
    drop.classList.add("over");
  });
}
document.addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) drop.classList.remove("over");
});
document.addEventListener("drop", (event) => {
  event.preventDefault();
  drop.classList.remove("over");
  const picture = pictureOf(event.dataTransfer);
  if (picture) upload(picture);
  else say("There was no picture file in what you dropped.", true);
});
document.addEventListener("paste", (event) => {
  const picture = pictureOf(event.clipboardData);
  if (picture) {
    event.preventDefault();
    upload(picture);
  }
});

document.getElementById("remove").addEventListener("click", () => {
  show("");
  say("The picture was removed.");
  file.focus();
});

document.getElementById("q").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    form.requestSubmit();
  }
});

form.addEventListener("submit", (event) => {
  if (!field.value && !document.getElementById("q").value.trim() && !document.getElementById("like")) {
    event.preventDefault();
    say("Type a query or give a picture.", true);
    document.getElementById("q").focus();
    return;
  }
  submit.disabled = true;
  submit.textContent = "Searching …";
  form.setAttribute("aria-busy", "true");
});

// A page that the browser brings back from its cache is ready again.
window.addEventListener("pageshow", () => {
  submit.disabled = false;
  submit.textContent = "Search";
  form.removeAttribute("aria-busy");
});

// Masonry: a card takes as many rows of a fine grid as it is high, so that ranks still run across.
const ROW = 4;
const heights = new ResizeObserver((cards) => {
  for (const { target } of cards) {
    const space = parseFloat(getComputedStyle(target.parentElement).columnGap) || 0;
    target.style.gridRowEnd = `span ${Math.ceil((target.getBoundingClientRect().height + space) / ROW)}`;
  }
});
for (const list of document.querySelectorAll(".cards")) list.classList.add("masonry");
for (const card of document.querySelectorAll(".card")) heights.observe(card);
