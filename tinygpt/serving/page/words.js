// What the page says, in each language, and who says it: elements with data-say (their text), data-say-label (their
// name for a screen reader) and data-say-hint (their placeholder), and everything that calls say().

const WORDS = {
  en: {
    mode: "Mode", text: "Text", chat: "Chat", language: "Language", theme: "Colors", auto: "Auto", light: "Light",
    dark: "Dark", work: "Writing", settings: "Settings", output: "Result", alternatives: "Alternatives",
    key: "API key", unlock: "Use this key", keyNote: "It is kept in memory until this page is closed.",
    prompt: "Prompt", message: "Message", write: "Write", send: "Send", stop: "Stop", continue: "Continue",
    back: "Undo", clear: "Clear", reset: "Reset",
    keysText: "Ctrl+Enter writes, Esc stops. In the result, arrow keys move between tokens and Enter opens one.",
    keysChat: "Enter sends, Shift+Enter starts a line, Esc stops. In an answer, arrow keys move between tokens.",
    certain: "certain", unlikely: "unlikely",
    legend: "Color is a token's probability under the model, before temperature and penalties. Select a token to see " +
      "its alternatives.",
    system: "System message", temperature: "Temperature", topP: "Top p", maxTokens: "Maximum tokens", seed: "Seed",
    stops: "Stop strings, one per line (\\n for a line break)", frequency: "Frequency penalty",
    presence: "Presence penalty", colors: "Color tokens by probability", automatic: "automatic", random: "random",
    you: "You", model: "Model", about: "{name}, {tokens} tokens of context",
    writing: "Writing.", done: "{tokens} tokens in {seconds} s ({speed} per second), seed {seed}. {reason}",
    omitted: " The oldest messages no longer fit into the model's context and were left out.",
    length: "The limit of tokens is reached.", ended: "The model ended the text.",
    stopped: "Stopped after {tokens} tokens, seed {seed}.", undone: "The text is as it was before.",
    cleared: "Cleared.", accepted: "The key is accepted.",
    token: "{token}, {share}", tokenHead: "{token}: {share}", partHead: "Part {part} of {parts}, {token}: {share}",
    rest: "All other tokens: {share}", go: "Continue with {token}, {share}",
    unreachable: "The server cannot be reached. Is it still running?",
    broken: "The connection ended before the text did. What has arrived is kept.",
    needsKey: "This server needs an API key.", wrongKey: "The server does not accept this key.",
    full: "The text fills the model's context of {block} tokens: shorten it.", noMessage: "Write a message first.",
    refused: "{message}",
  },
  zh: {
    mode: "模式", text: "续写", chat: "对话", language: "语言", theme: "颜色", auto: "自动", light: "浅色", dark: "深色",
    work: "写作", settings: "设置", output: "结果", alternatives: "其他候选",
    key: "API 密钥", unlock: "使用此密钥", keyNote: "密钥只保存在内存中，关闭页面即消失。",
    prompt: "提示词", message: "消息", write: "生成", send: "发送", stop: "停止", continue: "继续", back: "撤销",
    clear: "清空", reset: "恢复默认",
    keysText: "Ctrl+Enter 生成，Esc 停止。在结果中用方向键移动，按 Enter 查看候选。",
    keysChat: "Enter 发送，Shift+Enter 换行，Esc 停止。在回答中用方向键移动。",
    certain: "确定", unlikely: "意外",
    legend: "颜色表示模型给每个词元的概率（未计温度和惩罚）。选择一个词元可查看其他候选。",
    system: "系统消息", temperature: "温度", topP: "Top p", maxTokens: "最多词元数", seed: "随机种子",
    stops: "停止字符串，每行一个（\\n 表示换行）", frequency: "频率惩罚", presence: "存在惩罚",
    colors: "按概率为词元着色", automatic: "自动", random: "随机",
    you: "你", model: "模型", about: "{name}，上下文 {tokens} 个词元",
    writing: "正在生成。", done: "{tokens} 个词元，用时 {seconds} 秒（每秒 {speed} 个），种子 {seed}。{reason}",
    omitted: "最早的消息已超出模型的上下文，未发送。",
    length: "已达到词元数上限。", ended: "模型结束了文本。", stopped: "已停止，共 {tokens} 个词元，种子 {seed}。",
    undone: "已恢复到之前的文本。", cleared: "已清空。", accepted: "密钥有效。",
    token: "{token}，{share}", tokenHead: "{token}：{share}", partHead: "第 {part} 部分，共 {parts} 部分，{token}：{share}",
    rest: "其余词元：{share}", go: "换成 {token} 并继续，{share}",
    unreachable: "无法连接服务器。它还在运行吗？", broken: "连接在文本结束前中断，已收到的内容保留。",
    needsKey: "此服务器需要 API 密钥。", wrongKey: "服务器不接受此密钥。",
    full: "文本已占满模型的上下文（{block} 个词元），请缩短。", noMessage: "请先输入消息。",
    refused: "服务器拒绝了请求：{message}",
  },
};

const again = new Map();  // element -> what writes its text in the language of the moment
let language = "en";

export const current = () => language;

// The text of that name, with {these} filled in.
export function say(name, values = {}) {
  return WORDS[language][name].replace(/\{(\w+)\}/g, (_, key) => values[key]);
}

// Let an element say what write() returns, now and after each change of language.
export function keepSaying(element, write) {
  again.set(element, write);
  element.textContent = write();
}

export function speak(chosen) {
  language = chosen in WORDS ? chosen : "en";
  document.documentElement.lang = language === "zh" ? "zh-CN" : language;
  for (const e of document.querySelectorAll("[data-say]")) e.textContent = say(e.dataset.say);
  for (const e of document.querySelectorAll("[data-say-label]")) e.setAttribute("aria-label", say(e.dataset.sayLabel));
  for (const e of document.querySelectorAll("[data-say-hint]")) e.placeholder = say(e.dataset.sayHint);
  for (const [element, write] of again) {
    if (element.isConnected) element.textContent = write();
    else again.delete(element);
  }
}

export const percent = (share) => new Intl.NumberFormat(language, {
  style: "percent", ...(share > 0.001 ? { minimumFractionDigits: 1, maximumFractionDigits: 1 }
    : { maximumSignificantDigits: 2 }),
}).format(share);

export const number = (value) => new Intl.NumberFormat(language, { maximumSignificantDigits: 3 }).format(value);
