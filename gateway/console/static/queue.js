// Keys and the clock of the queue. Everything here can be done without it.
"use strict";

const OFF = "licet-no-keys";

function requests() {
  return [...document.querySelectorAll(".request")];
}

function here() {
  return document.activeElement && document.activeElement.closest(".request");
}

function go(step) {
  const all = requests();
  const at = all.indexOf(here());
  const next = all[Math.min(Math.max(at + step, 0), all.length - 1)];
  if (next) {
    next.focus();
    next.scrollIntoView({ block: "start" });
  }
}

function focusIn(selector) {
  const request = here() || requests()[0];
  const found = request && request.querySelector(selector);
  if (found) {
    found.focus();
  }
  return found;
}

const KEYS = {
  j: () => go(1),
  k: () => go(-1),
  a: () => focusIn("button[value=approve]"),
  d: () => focusIn("button[value=deny]"),
  e: () => {
    const edit = (here() || document).querySelector("details.edit");
    if (edit) {
      edit.open = true;
      edit.querySelector("textarea").focus();
    }
  },
  "?": () => {
    const keys = document.querySelector("details.keys");
    if (keys) {
      keys.open = !keys.open;
    }
  },
};

document.addEventListener("keydown", (event) => {
  const typing = event.target.closest("input, textarea, select");
  if (typing || event.ctrlKey || event.metaKey || event.altKey || localStorage.getItem(OFF)) {
    return;
  }
  const act = KEYS[event.key.toLowerCase()];
  if (act) {
    event.preventDefault();
    act();
  }
});

const off = document.getElementById("keys-off");
if (off) {
  off.checked = Boolean(localStorage.getItem(OFF));
  off.addEventListener("change", () => (off.checked ? localStorage.setItem(OFF, "1") : localStorage.removeItem(OFF)));
}

function told(seconds) {
  if (seconds >= 7200) {
    return `${Math.floor(seconds / 3600)} h left`;
  }
  if (seconds >= 120) {
    return `${Math.floor(seconds / 60)} min left`;
  }
  return seconds > 0 ? `${seconds} s left` : "over";
}

setInterval(() => {
  for (const time of document.querySelectorAll("time.left")) {
    const seconds = Number(time.dataset.until) - Math.floor(Date.now() / 1000);
    time.textContent = told(seconds);
    time.classList.toggle("soon", seconds < 60);
  }
}, 1000);
