// The ranking page: order by dragging, keys or buttons; sends once, however often it has to try.
"use strict";

const heard = document.querySelector("#heard");
const words = JSON.parse(heard.dataset.words);
const say = (key, values = {}) => words[key].replace(/\{(\w+)\}/g, (_, name) => values[name] ?? "");
const DRAFT = "onebase.ranking";
const FOLDED = 460; // pixels; a text that is higher is folded
const EDGE = 60; // pixels from the window's edge where dragging scrolls
const SCROLL = 10; // pixels a frame
const ONE = {};
let work = null;

/** One task on the page: its cards, the time in front of it, and whether it is being sent. */
class Work {
  constructor(main) {
    this.main = main;
    this.form = main.querySelector("#ranking");
    this.list = main.querySelector("#cards");
    this.problem = main.querySelector("#problem");
    this.seconds = 0;
    this.since = document.hidden ? null : performance.now();
    this.moved = false;
    this.warned = false;
    this.sending = false;
    this.wait = 1;
    if (!this.form) return;
    this.restore();
    this.fold();
    this.number();
    if (window.matchMedia("(max-width: 900px)").matches) main.querySelector("#rubric")?.removeAttribute("open");
  }

  get cards() { return [...this.list.children]; }
  field(name) { return this.form.elements[name]; }
  tie(card) { return card.querySelector("input[type=checkbox]"); }

  /** The places as they stand: 1, 2, 2, 4. */
  get places() {
    const places = [];
    this.cards.forEach((card, n) => places.push(n > 0 && this.tie(card).checked ? places[n - 1] : n + 1));
    return places;
  }

  number() {
    const places = this.places;
    this.cards.forEach((card, n) => {
      const tie = this.tie(card);
      if (n === 0) tie.checked = false;
      tie.disabled = n === 0;
      tie.closest("label").hidden = n === 0;
      const shared = places.filter((place) => place === places[n]).length > 1;
      card.classList.toggle("tied", n > 0 && tie.checked);
      card.querySelector(".place").textContent = say(shared ? "shared-place" : "place", { place: places[n], count: places.length });
      card.querySelector(".up").disabled = n === 0;
      card.querySelector(".down").disabled = n === places.length - 1;
    });
  }

  /** After a card was moved from an index: ties stay with the cards they were between. */
  placed(card, from) {
    const after = this.before[from + 1];
    // The one behind it was tied to it, not to what now stands above.
    if (after && !this.tie(card).checked) this.tie(after).checked = false;
    // Put between two that are equal, it is equal too.
    const next = card.nextElementSibling;
    this.tie(card).checked = next !== null && next !== after && this.tie(next).checked && card.previousElementSibling !== null;
    this.changed(card);
  }

  changed(card) {
    this.moved = true;
    this.number();
    this.keep();
    heard.textContent = say("now-at", { letter: card.dataset.letter, place: card.querySelector(".place").textContent });
  }

  move(card, to) {
    const cards = this.cards, from = cards.indexOf(card);
    to = Math.max(0, Math.min(cards.length - 1, to));
    this.moved = true; // saying where it stands is saying something
    if (to === from) { this.number(); this.changed(card); return; }
    this.before = cards;
    this.list.insertBefore(card, to > from ? cards[to].nextElementSibling : cards[to]);
    this.placed(card, from);
  }

  /** Drags a card by its handle: the others make room as the pointer passes their middle. */
  grab(card, event) {
    if (this.sending) return;
    const id = event.pointerId, from = this.cards.indexOf(card), stop = new AbortController();
    let y = event.clientY, frame = 0;
    event.preventDefault(); // no text is selected on the way
    card.focus({ preventScroll: true });
    this.before = this.cards;
    card.classList.add("held");
    const middle = (other) => { const box = other.getBoundingClientRect(); return box.top + box.height / 2; };
    const step = () => {
      if (y < EDGE) window.scrollBy(0, -SCROLL);
      else if (y > window.innerHeight - EDGE) window.scrollBy(0, SCROLL);
      // The others move, not the card: one that leaves the page for a moment loses its pointer.
      while (card.previousElementSibling && y < middle(card.previousElementSibling)) card.after(card.previousElementSibling);
      while (card.nextElementSibling && y > middle(card.nextElementSibling)) card.before(card.nextElementSibling);
      frame = requestAnimationFrame(step);
    };
    const end = (other) => {
      if (other.pointerId !== id) return;
      stop.abort();
      cancelAnimationFrame(frame);
      card.classList.remove("held");
      if (this.cards.indexOf(card) !== from) this.placed(card, from);
    };
    const options = { signal: stop.signal };
    window.addEventListener("pointermove", (other) => { if (other.pointerId === id) y = other.clientY; }, options);
    window.addEventListener("pointerup", end, options);
    window.addEventListener("pointercancel", end, options);
    frame = requestAnimationFrame(step);
  }

  toggle(card) {
    if (card === this.cards[0]) { heard.textContent = say("first-ties-with-none"); return; }
    this.tie(card).checked = !this.tie(card).checked;
    this.changed(card);
  }

  fold() {
    for (const card of this.cards) {
      const text = card.querySelector(".text"), button = card.querySelector(".fold");
      if (text.scrollHeight <= FOLDED) continue;
      text.classList.add("folded");
      button.hidden = false;
      button.addEventListener("click", () => {
        const open = text.classList.toggle("folded") === false;
        button.setAttribute("aria-expanded", String(open));
        button.textContent = say(open ? "show-less" : "show-all");
        if (!open) card.scrollIntoView({ block: "nearest" });
      });
    }
  }

  /** Time in front of the page while it can be seen. */
  get time() { return this.seconds + (this.since === null ? 0 : (performance.now() - this.since) / 1000); }
  seen() {
    if (document.hidden && this.since !== null) { this.seconds = this.time; this.since = null; }
    else if (!document.hidden && this.since === null) this.since = performance.now();
    this.keep();
  }

  // What was ordered and typed outlives a reload of the tab.
  keep() {
    if (!this.form) return;
    const state = {
      task: this.field("task").value, person: this.main.dataset.person, moved: this.moved, seconds: this.time, note: this.field("note").value,
      order: this.cards.map((card) => card.dataset.letter), tied: this.cards.filter((card) => this.tie(card).checked).map((card) => card.dataset.letter),
    };
    try { sessionStorage.setItem(DRAFT, JSON.stringify(state)); } catch { /* private windows may have no storage */ }
  }

  restore() {
    let state = null;
    try { state = JSON.parse(sessionStorage.getItem(DRAFT)); } catch { /* nothing kept */ }
    if (!state || state.task !== this.field("task").value || state.person !== this.main.dataset.person) return;
    const cards = new Map(this.cards.map((card) => [card.dataset.letter, card]));
    if (state.order.length !== cards.size || !state.order.every((letter) => cards.has(letter))) return;
    for (const letter of state.order) {
      this.list.append(cards.get(letter));
      this.tie(cards.get(letter)).checked = state.tied.includes(letter);
    }
    this.moved = state.moved;
    this.seconds = state.seconds;
    if (!this.field("note").value) this.field("note").value = state.note;
  }

  send(kind) {
    if (this.sending) return;
    if (kind === "ranked" && !this.moved && !this.warned) {
      this.warned = true;
      this.tell(say("untouched"));
      return;
    }
    if (kind === "skipped" && !this.form.querySelector("[name=reason]:checked")) {
      this.openSkip();
      this.tell(say("why-first"));
      return;
    }
    this.field("kind").value = kind;
    this.field("seconds").value = this.time.toFixed(1);
    this.keep();
    this.sending = true;
    this.form.inert = true; // what is on its way stays as it is
    this.form.classList.add("sending");
    heard.textContent = say("sending");
    htmx.trigger(this.form, "send");
  }

  again() {
    if (!this.sending) return;
    clearTimeout(this.timer);
    htmx.trigger(this.form, "send");
  }

  later(key, values = {}) {
    this.tell(say(key, { seconds: this.wait, name: this.main.dataset.name, ...values }));
    this.timer = setTimeout(() => this.again(), this.wait * 1000);
    this.wait = Math.min(30, this.wait * 2);
  }

  /** The server took it for someone else's, or nobody's: with a new login the same is sent with that login's token. */
  async renew() {
    try {
      const answer = await fetch("/token", { redirect: "manual" });
      if (answer.ok && answer.headers.get("X-Person") === this.main.dataset.person) {
        const token = await answer.text();
        for (const field of document.querySelectorAll("[name=csrf]")) field.value = token;
        this.later("sending");
      } else this.later(answer.ok ? "someone-else" : "logged-out");
    } catch { this.later("offline"); }
  }

  failed(status, text) {
    if (status === 401 || status === 403) this.renew();
    else if (status >= 500 || status === 0 || status === 429) this.later("offline");
    else { // it will not be taken however often it is sent
      this.sending = false;
      this.form.inert = false;
      this.form.classList.remove("sending");
      const said = new DOMParser().parseFromString(text, "text/html");
      this.tell(say("refused", { said: (said.querySelector("h1") ?? said.body).textContent.trim() }));
    }
  }

  tell(text) {
    this.problem.hidden = false;
    this.problem.textContent = text;
    this.problem.scrollIntoView({ block: "nearest" });
  }

  openSkip() {
    const skip = this.form.querySelector("#skip"), open = this.form.querySelector("#skip-open");
    skip.hidden = false;
    open.setAttribute("aria-expanded", "true");
    skip.querySelector("input").focus();
  }

  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing || this.sending) return false;
    const typing = event.target.closest("textarea, select, input:not([type=checkbox]):not([type=radio])");
    if (typing) return false;
    const card = event.target.closest(".card"), cards = this.form ? this.cards : [], at = cards.indexOf(card);
    if (event.key.toLowerCase() === "u") { document.querySelector("#undo").requestSubmit(); return true; }
    if (!this.form) return false;
    const inSkip = event.target.closest("#skip");
    if (inSkip && event.key === "Enter" && event.target.matches("input")) { this.send("skipped"); return true; }
    if (inSkip && event.key === "Escape") { this.closeSkip(); return true; }
    if (event.key === "Enter" && !event.target.closest("button, a, summary, label, #skip")) { this.send("ranked"); return true; }
    if (event.key.toLowerCase() === "b") { this.send("all_bad"); return true; }
    if (event.key.toLowerCase() === "s") { this.openSkip(); return true; }
    if (/^[1-9]$/.test(event.key) && Number(event.key) <= cards.length && !inSkip) {
      const place = Number(event.key) - 1;
      if (card) { this.move(card, place); card.focus(); } else cards[place].focus();
      return true;
    }
    if (event.key === "=" && card) { this.toggle(card); return true; }
    if ((event.key === "ArrowUp" || event.key === "ArrowDown") && !inSkip && (card || event.target === document.body)) {
      if (event.target.closest("pre")) return false; // code scrolls
      const step = event.key === "ArrowUp" ? -1 : 1;
      if (event.shiftKey && card) { this.move(card, at + step); card.focus(); }
      else if (!event.shiftKey && card) cards[Math.max(0, Math.min(cards.length - 1, at + step))].focus();
      else return false;
      return true;
    }
    return false;
  }

  closeSkip() {
    this.form.querySelector("#skip").hidden = true;
    const open = this.form.querySelector("#skip-open");
    open.setAttribute("aria-expanded", "false");
    open.focus();
  }
}

function begin(fresh) {
  htmx.process(document.querySelector("#main")); // what was just swapped in is sent by htmx from now, not in a moment
  work = new Work(document.querySelector("#main"));
  const notice = document.querySelector("#notice");
  if (fresh) {
    heard.textContent = [notice?.textContent, document.querySelector("#cards, #waiting h1") && (work.form ? "" : document.querySelector("#waiting h1").textContent)].filter(Boolean).join(" ");
    window.scrollTo({ top: 0 });
    (work.list?.firstElementChild ?? document.querySelector("#waiting h1")).focus({ preventScroll: true });
  }
  clearInterval(ONE.timer);
  // With nothing to rank, the next task comes by itself.
  if (!work.form) ONE.timer = setInterval(() => { if (!document.hidden) location.reload(); }, 15000);
}

document.addEventListener("keydown", (event) => { if (work.key(event)) event.preventDefault(); });
document.addEventListener("pointerdown", (event) => {
  const handle = event.target.closest(".grip, .bar h3");
  if (handle && event.button === 0 && work.form) work.grab(handle.closest(".card"), event);
});
document.addEventListener("visibilitychange", () => work.seen());
window.addEventListener("pagehide", () => work.keep());
window.addEventListener("online", () => work.again());
document.addEventListener("focusin", (event) => {
  // Chromium leaves a card that is taller than the window where it is.
  const card = event.target.closest?.(".card");
  if (card === event.target && card.getBoundingClientRect().top < 0) card.scrollIntoView({ block: "start" });
});
document.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (!button || !work.form || !work.form.contains(button)) return;
  const card = button.closest(".card");
  if (button.dataset.send) work.send(button.dataset.send);
  else if (button.id === "skip-open") button.getAttribute("aria-expanded") === "true" ? work.closeSkip() : work.openSkip();
  else if (button.matches(".up, .down")) {
    work.move(card, work.cards.indexOf(card) + (button.matches(".up") ? -1 : 1));
    (button.disabled ? card : button).focus();
  }
});
document.addEventListener("change", (event) => {
  const card = event.target.closest(".card");
  if (card && event.target.type === "checkbox") work.changed(card);
});
document.addEventListener("input", (event) => { if (event.target.id === "note") work.keep(); });
document.addEventListener("submit", (event) => { if (event.target.id === "ranking") event.preventDefault(); }, true);
document.addEventListener("htmx:beforeSwap", (event) => {
  // A login page is no task: the session ended, and the redirection was followed.
  if (event.detail.xhr.status === 200 && !event.detail.xhr.responseText.trimStart().startsWith("<main")) event.detail.shouldSwap = false;
});
document.addEventListener("htmx:afterSwap", () => begin(true));
for (const name of ["htmx:sendError", "htmx:timeout", "htmx:responseError"]) {
  document.addEventListener(name, (event) => {
    const { xhr, elt } = event.detail;
    if (elt.id === "undo") work.tell(say("refused", { said: xhr.responseText.slice(0, 200) || xhr.statusText || "…" }));
    else if (work.sending) work.failed(xhr.status, xhr.responseText);
  });
}
begin(false);
