// The chat page: a conversation with one role, or with two side by side and a reward role's score under each answer.

import { RequestError, ask, stream, useKey } from "./server.js";
import { say, sayError, switchLanguage, translate } from "./words.js";
import { AnswerCard } from "./answer.js";

const NEAR_END = 80;  // pixels: a reader this close to the end follows what is added there
const at = (id) => document.getElementById(id);
const [role, beside, reward] = ["role", "beside", "reward"].map(at);
const [conversation, turns, message] = ["conversation", "turns", "message"].map(at);

let said = [];        // the turns: {text, cards, chosen, row}
let running = null;   // the AbortController of the answers being written
let problem = null;   // the error in the line above the message
let follows = true;   // whether the end of the conversation stays in sight

// ------------------------------------------------------------------------------------------------------------- roles

async function loadRoles() {
  let served;
  try {
    served = await ask("health");
  } catch (error) {
    return tell(error);
  }
  if (problem?.kind === "gone") tell(null);
  fill(role, served.policies, { first: served.policies.find((name) => name !== "base") });
  fill(beside, served.policies, { none: true });
  fill(reward, served.rewards, { none: true, first: served.rewards[0] });
  beside.parentElement.hidden = served.policies.length < 2;
  reward.parentElement.hidden = served.rewards.length === 0;
  showState();
}

/** Puts names into a selection and keeps what was chosen, if it is still there. */
function fill(select, names, { none = false, first = "" }) {
  const before = select.options.length ? select.value : first;
  const options = names.map((name) => new Option(name, name));
  if (none) options.unshift(new Option(say("nobody"), ""));
  if (none) options[0].dataset.text = "nobody";
  select.replaceChildren(...options);
  if (names.includes(before)) select.value = before;
}

// ------------------------------------------------------------------------------------------------------- a new message

async function send() {
  const text = message.value;
  if (running || !role.value || !text.trim()) return;
  const sampling = readSampling();
  if (!sampling) return;
  tell(null);
  const { system, ...options } = sampling;
  const messages = [...(system ? [{ role: "system", content: system }] : []), ...history(), { role: "user", content: text }];
  const turn = addTurn(text, beside.value ? [role.value, beside.value] : [role.value]);
  const controller = (running = new AbortController());
  message.value = "";
  grow();
  showState();
  await Promise.all(turn.cards.map((card) => answer(card, { model: card.model, messages, ...options }, controller.signal)));
  const written = turn.cards.filter((card) => card.text);
  if (running !== controller) return;  // a new conversation was started meanwhile
  if (turn.cards.every((card) => card.error && !card.text)) takeBack(turn);
  else if (reward.value && written.length && !controller.signal.aborted) await scoreAll(written, messages, controller.signal);
  if (running !== controller) return;
  running = null;
  followEnd();
  at("heard").textContent = turn.cards.map((card) => card.heard()).join("\n");
  showState();
}

async function answer(card, body, signal) {
  try {
    for await (const chunk of stream("v1/chat/completions", body, signal)) {
      card.take(chunk);
      followEnd();
    }
    card.end();
  } catch (error) {
    card.end(error);
  }
}

async function scoreAll(cards, messages, signal) {
  try {
    const scored = await ask("v1/score", { model: reward.value, messages, completions: cards.map((card) => card.text) }, signal);
    for (const item of scored.data) {
      const others = scored.data.filter((other) => other !== item);
      const better = others.length > 0 && others.every((other) => other.score < item.score);
      cards[item.index].showScore({ ...item, model: scored.model, better });
    }
  } catch (error) {
    tell(error);
  }
}

/** The conversation so far; after two answers it continues from the chosen one. */
function history() {
  return said.flatMap(({ text, cards, chosen }) => {
    const answered = [cards[chosen], ...cards].find((card) => card.text);
    return answered ? [{ role: "user", content: text }, { role: "assistant", content: answered.text }] : [];
  });
}

function addTurn(text, models) {
  const turn = { text, chosen: 0, cards: [], row: document.createElement("li") };
  const asked = document.createElement("p");
  asked.className = "asked";
  asked.dir = "auto";
  asked.textContent = text;
  const answers = document.createElement("div");
  answers.className = models.length > 1 ? "answers two" : "answers";
  turn.cards = models.map((model, number) => new AnswerCard(model, models.length > 1 ? () => choose(turn, number) : null));
  answers.append(...turn.cards.map((card) => card.element));
  turn.row.append(asked, answers);
  turns.append(turn.row);
  said.push(turn);
  choose(turn, 0);
  follows = true;
  followEnd();
  return turn;
}

function choose(turn, number) {
  turn.chosen = number;
  turn.cards.forEach((card, other) => card.showChosen(other === number));
}

/** A message that got no answer goes back to where it was typed, before what was typed meanwhile. */
function takeBack(turn) {
  const failed = turn.cards.find((card) => card.error && card.error.name !== "AbortError");
  if (failed) tell(failed.error);
  said = said.filter((other) => other !== turn);
  turn.row.remove();
  message.value = [turn.text, message.value].filter(Boolean).join("\n");
  grow();
}

function readSampling() {
  const form = at("sampling");
  if (!form.checkValidity()) {
    at("fold").open = true;  // the browser shows its remark beside the field
    form.reportValidity();
    return null;
  }
  const given = [...new FormData(form)].filter(([, value]) => value.trim() !== "");
  return Object.fromEntries(given.map(([name, value]) => [name, name === "system" ? value : Number(value)]));
}

// ---------------------------------------------------------------------------------------------------------- the page

/** Shows an error in one line, or clears the line; asks for a key where one is missing. */
function tell(error) {
  const line = error && sayError(error);
  problem = line ? error : null;
  at("problem").hidden = !line;
  at("problem").textContent = line ?? "";
  const asked = error instanceof RequestError && error.status === 401;
  if (asked) at("key").hidden = false;
  if (asked) at("key").elements.key.focus();
  if (error instanceof RequestError && error.status === 404) loadRoles();
}

function showState() {
  const none = !role.value;
  at("welcome").hidden = said.length > 0 || problem !== null;
  at("welcome").textContent = none ? say("noRole") : say(beside.value ? "welcomeTwo" : "welcome", { role: role.value, beside: beside.value });
  at("send").hidden = running !== null;
  at("stop").hidden = running === null;
  at("send").disabled = none || !message.value.trim();
  at("fresh").disabled = said.length === 0;
  document.body.classList.toggle("wide", Boolean(beside.value) || said.some((turn) => turn.cards.length > 1));
}

function showLanguage() {
  translate(document);
  const other = at("language");
  other.textContent = say("other");
  other.lang = document.documentElement.lang === "en" ? "zh-CN" : "en";
  for (const turn of said) for (const card of turn.cards) card.show();
  if (problem) at("problem").textContent = sayError(problem);
  showState();
}

function followEnd() {
  if (follows) conversation.scrollTop = conversation.scrollHeight;
}

function startAgain() {
  running?.abort();
  running = null;
  said = [];
  turns.replaceChildren();
  at("heard").textContent = "";
  tell(null);
  showState();
  message.focus();
}

function grow() {
  message.style.height = "auto";
  message.style.height = `${message.scrollHeight + message.offsetHeight - message.clientHeight}px`;
}

at("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  send();
});
message.addEventListener("input", () => {
  grow();
  showState();
});
message.addEventListener("keydown", (event) => {
  // While an input method composes, Enter takes its suggestion; Safari reports it a moment late, as key 229.
  if (event.key !== "Enter" || event.shiftKey || event.isComposing || event.keyCode === 229) return;
  event.preventDefault();
  send();
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !event.isComposing) running?.abort();
});
at("stop").addEventListener("click", () => {
  running?.abort();
  message.focus();
});
at("key").addEventListener("submit", (event) => {
  event.preventDefault();
  const form = event.target;
  useKey(form.elements.key.value);
  form.reset();
  form.hidden = true;
  tell(null);
  message.focus();
  loadRoles();
  send();  // what was refused without the key
});
at("fresh").addEventListener("click", startAgain);
at("language").addEventListener("click", () => {
  switchLanguage();
  showLanguage();
});
conversation.addEventListener("scroll", () => {
  follows = conversation.scrollHeight - conversation.scrollTop - conversation.clientHeight < NEAR_END;
});
new ResizeObserver(followEnd).observe(conversation);  // the sampling settings or a phone's keyboard took its place
at("choices").addEventListener("change", showState);
window.addEventListener("focus", loadRoles);  // roles may be loaded and unloaded while the server runs

showLanguage();
loadRoles();
