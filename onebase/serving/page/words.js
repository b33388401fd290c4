// The page's words, in English and Chinese. {name} takes a value.

const WORDS = {
  en: {
    other: "中文",
    choices: "Roles",
    role: "Role",
    beside: "Beside it",
    scoredBy: "Scored by",
    nobody: "nobody",
    fresh: "New conversation",
    conversation: "Conversation",
    welcome: "Say something to {role}.",
    welcomeTwo: "Say something to {role} and {beside}.",
    noRole: "The server has no role to talk to.",
    message: "Write a message",
    send: "Send",
    stop: "Stop",
    keys: "Enter sends · Shift+Enter breaks the line · Esc stops",
    sampling: "Sampling",
    temperature: "Temperature",
    topP: "Top-p",
    topK: "Top-k",
    longest: "Max tokens",
    seed: "Seed",
    system: "System prompt",
    asIs: "default",
    anySeed: "random",
    key: "API key",
    useKey: "Use this key",
    you: "You",
    waiting: "waiting …",
    tokens: "{count} tokens",
    token: "1 token",
    stopped: "stopped",
    empty: "an empty answer",
    length: "cut at the limit",
    score: "score {score}",
    scoreAbout: "{raw} raw; in standard deviations from the mean of {model}'s held-out scores",
    scoreRaw: "raw, by {model}",
    better: "higher",
    copy: "Copy",
    copied: "Copied",
    continue: "Continue from this",
    errors: {
      gone: "The server does not answer. Is it still running?",
      broken: "The connection broke off before the answer was complete.",
      401: "This server asks for an API key.",
      404: "This role is no longer there; choose another.",
      413: "This is more text than the server takes; shorten it.",
      429: "The server's queue is full; try again in a moment.",
      503: "The server is stopping or not ready; try again in a moment.",
      context: "This conversation no longer fits the model's context; start a new one, or shorten it.",
      other: "The server refused: {message}",
    },
  },
  zh: {
    other: "English",
    choices: "角色",
    role: "角色",
    beside: "对比",
    scoredBy: "评分",
    nobody: "无",
    fresh: "新对话",
    conversation: "对话",
    welcome: "和 {role} 聊点什么吧。",
    welcomeTwo: "给 {role} 和 {beside} 出个题吧。",
    noRole: "服务器上没有可以对话的角色。",
    message: "输入消息",
    send: "发送",
    stop: "停止",
    keys: "Enter 发送 · Shift+Enter 换行 · Esc 停止",
    sampling: "采样设置",
    temperature: "温度",
    topP: "Top-p",
    topK: "Top-k",
    longest: "最大 token 数",
    seed: "随机种子",
    system: "系统提示词",
    asIs: "默认",
    anySeed: "随机",
    key: "API 密钥",
    useKey: "使用此密钥",
    you: "你",
    waiting: "等待中……",
    tokens: "{count} 个 token",
    token: "1 个 token",
    stopped: "已停止",
    empty: "回答为空",
    length: "达到上限，已截断",
    score: "得分 {score}",
    scoreAbout: "原始分 {raw}；得分是与 {model} 留出集平均分的差，以标准差为单位",
    scoreRaw: "{model} 给出的原始分",
    better: "较高",
    copy: "复制",
    copied: "已复制",
    continue: "从这条继续",
    errors: {
      gone: "服务器没有响应，请确认它仍在运行。",
      broken: "回答还没结束，连接就断开了。",
      401: "此服务器需要 API 密钥。",
      404: "这个角色已经不在了，请另选一个。",
      413: "内容太长，服务器无法接收，请缩短后再发。",
      429: "服务器的队列已满，请稍后再试。",
      503: "服务器正在停止或尚未就绪，请稍后再试。",
      context: "对话已超出模型的上下文长度，请开始新对话，或缩短内容。",
      other: "服务器拒绝了请求：{message}",
    },
  },
};
const KEPT = "onebase.language";

let language = kept() ?? (navigator.language.toLowerCase().startsWith("zh") ? "zh" : "en");

function kept() {
  try {
    const name = localStorage.getItem(KEPT);
    return name in WORDS ? name : null;
  } catch {  // storage is switched off
    return null;
  }
}

/** Changes to the other language, and remembers it. */
export function switchLanguage() {
  language = language === "en" ? "zh" : "en";
  try {
    localStorage.setItem(KEPT, language);
  } catch {
    // it lasts until the page is loaded again
  }
}

/** Returns a phrase in the current language; the values of {names} are put in. */
export function say(name, values = {}) {
  return filled(WORDS[language][name], values);
}

/** Returns one line about what the server refused, or null if the user stopped it. */
export function sayError(error) {
  const { kind, status, message } = error;
  if (error.name === "AbortError") return null;
  const lines = WORDS[language].errors;
  return filled(lines[kind] ?? lines[status] ?? lines.other, { message: message || status });
}

/** Writes the words of every element below `root` that names them. */
export function translate(root) {
  document.documentElement.lang = language === "zh" ? "zh-CN" : "en";
  for (const element of root.querySelectorAll("[data-text]")) element.textContent = say(element.dataset.text);
  for (const element of root.querySelectorAll("[data-label]")) element.setAttribute("aria-label", say(element.dataset.label));
  for (const element of root.querySelectorAll("[data-placeholder]")) element.placeholder = say(element.dataset.placeholder);
}

function filled(phrase, values) {
  return phrase.replace(/\{(\w+)\}/g, (whole, name) => String(values[name] ?? whole));
}
