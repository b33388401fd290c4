// One answer on the page: its text as it comes, what it cost and scored, and what can be done with it.

import { say, sayError } from "./words.js";

export class AnswerCard {
  text = "";
  error = null;
  #finish = null;
  #tokens = null;
  #version = "";
  #score = null;
  #running = true;
  #copied = false;

  /** `choose` is called when the conversation should continue from this answer; null where there is only one. */
  constructor(model, choose) {
    this.model = model;
    this.element = made("article", { className: "answer" });
    this.element.setAttribute("aria-busy", "true");
    this.name = made("h2", { textContent: model });
    this.body = made("div", { className: "text", dir: "auto" });
    this.facts = made("p", { className: "facts" });
    this.scored = made("p", { className: "scored", hidden: true });
    this.copy = made("button", { type: "button", hidden: true });
    this.copy.addEventListener("click", () => this.#copy());
    this.chosen = made("button", { type: "button", hidden: true });
    this.chosen.addEventListener("click", choose);
    this.canBeChosen = choose !== null;
    const foot = made("div", { className: "foot" });
    const actions = made("span", {});
    actions.append(this.copy, this.chosen);
    foot.append(this.scored, this.facts, actions);
    this.element.append(this.name, this.body, foot);
    this.show();
  }

  /** Takes a chunk of the stream. */
  take(chunk) {
    this.#version = chunk.system_fingerprint ?? this.#version;
    this.#tokens = chunk.usage?.completion_tokens ?? this.#tokens;
    for (const choice of chunk.choices ?? []) {
      this.text += choice.delta?.content ?? "";
      this.#finish = choice.finish_reason ?? this.#finish;
    }
    showText(this.body, this.text);
    if (this.text) this.facts.textContent = "";
  }

  /** No more chunks come: it is complete, was stopped, or ended with an error. */
  end(error = null) {
    this.error = error;
    this.#running = false;
    this.element.removeAttribute("aria-busy");
    this.show();
  }

  /** `score`: {score, normalised, model, better}. */
  showScore(score) {
    this.#score = score;
    this.show();
  }

  showChosen(isChosen) {
    this.chosen.setAttribute("aria-pressed", String(isChosen));
  }

  /** What a screen reader says of the answer, once it is complete. */
  heard() {
    return [`${this.model}: ${this.text}`, this.facts.textContent, this.scored.textContent].filter(Boolean).join(" · ");
  }

  /** Writes everything beside the text, in the language of the page. */
  show() {
    const stopped = this.error?.name === "AbortError";
    const problem = this.error && !stopped ? sayError(this.error) : null;
    const tokens = this.#tokens === 1 ? say("token") : this.#tokens !== null && say("tokens", { count: this.#tokens });
    const cut = this.#finish === "length" && say("length");
    const empty = !this.error && !this.text && say("empty");
    const known = [problem, stopped && say("stopped"), empty, tokens, cut].filter(Boolean).join(" · ");
    this.facts.textContent = !this.#running ? known : this.text ? "" : say("waiting");
    this.facts.classList.toggle("problem", problem !== null);
    this.name.title = this.#version;
    this.copy.hidden = this.#running || !this.text;
    this.copy.textContent = say(this.#copied ? "copied" : "copy");
    this.chosen.hidden = !this.canBeChosen || this.#running || !this.text;
    this.chosen.textContent = say("continue");
    if (this.#score) this.#showScore(this.#score);
  }

  #showScore({ score, normalised, model, better }) {
    const figure = signed(normalised ?? score);
    this.scored.hidden = false;
    this.scored.textContent = say("score", { score: figure }) + (better ? ` · ${say("better")}` : "");
    this.scored.title = normalised === null ? say("scoreRaw", { model }) : say("scoreAbout", { model, raw: signed(score) });
    this.scored.classList.toggle("better", better);
  }

  async #copy() {
    try {
      await navigator.clipboard.writeText(this.text);
    } catch {  // pages over plain HTTP from another machine have no clipboard
      getSelection().selectAllChildren(this.body);
      document.execCommand("copy");
      getSelection().removeAllRanges();
    }
    this.#copied = true;
    this.show();
    setTimeout(() => {
      this.#copied = false;
      this.show();
    }, 1500);
  }
}

/** Shows an answer as text, what stands between ``` as code. Only what changed is written, so a selection survives. */
function showText(body, text) {
  text.split(/^```.*\n?/m).forEach((part, number) => {
    const tag = number % 2 ? "pre" : "p";
    const block = body.children[number] ?? body.appendChild(made(tag, {}));
    const shown = number % 2 ? part.replace(/\n$/, "") : part.replace(/^\n+|\n+$/g, "");
    if (block.textContent !== shown) block.textContent = shown;
    block.hidden = !shown.trim();
  });
}

function signed(number) {
  const digits = Math.abs(number).toFixed(2);
  return digits === "0.00" ? digits : `${number < 0 ? "−" : "+"}${digits}`;
}

function made(tag, properties) {
  return Object.assign(document.createElement(tag), properties);
}
