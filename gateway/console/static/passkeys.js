// Passkeys: a form with data-passkey is sent with what the browser's authenticator answers to its question.
"use strict";

function bytes(text) {
  const plain = atob(text.replaceAll("-", "+").replaceAll("_", "/"));
  return Uint8Array.from(plain, (one) => one.charCodeAt(0));
}

function text(buffer) {
  const plain = String.fromCharCode(...new Uint8Array(buffer));
  return btoa(plain).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
}

function known(list) {
  return (list || []).map((one) => ({ ...one, id: bytes(one.id) }));
}

async function made(asked) {
  const user = { ...asked.user, id: bytes(asked.user.id) };
  const publicKey = { ...asked, user, challenge: bytes(asked.challenge), excludeCredentials: known(asked.excludeCredentials) };
  const found = await navigator.credentials.create({ publicKey });
  return answer(found, { attestationObject: text(found.response.attestationObject) });
}

async function shown(asked) {
  const publicKey = { ...asked, challenge: bytes(asked.challenge), allowCredentials: known(asked.allowCredentials) };
  const found = await navigator.credentials.get({ publicKey });
  const { authenticatorData, signature } = found.response;
  return answer(found, { authenticatorData: text(authenticatorData), signature: text(signature) });
}

function answer(found, more) {
  const response = { clientDataJSON: text(found.response.clientDataJSON), ...more };
  return { id: found.id, rawId: text(found.rawId), type: found.type, response };
}

function say(form, problem) {
  const place = form.querySelector("[data-said]");
  if (place) {
    place.textContent = problem;
    place.hidden = !problem;
  }
}

document.addEventListener("submit", async (event) => {
  const form = event.target;
  const asked = form.dataset.passkey;
  const field = form.elements.passkey;
  const denies = event.submitter && event.submitter.value === "deny";
  if (!asked || !field || field.value || denies) {
    return;
  }
  event.preventDefault();
  try {
    say(form, "");
    const wanted = JSON.parse(asked);
    field.value = JSON.stringify(wanted.rp ? await made(wanted) : await shown(wanted));
    form.requestSubmit(event.submitter);
  } catch (bad) {
    say(form, `The passkey gave no answer (${bad.name}). Try again; nothing was sent.`);
  } finally {
    field.value = "";
  }
}, true);
