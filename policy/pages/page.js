// The example page: a chat that streams, over PerishableClient and nothing else.

import { PerishableClient, PerishableError, events } from "./client.js";

const client = new PerishableClient({ proxyUrl: location.origin });
const part = (id) => document.getElementById(id);
const history = [];
let running = null; // the AbortController of the answer that is being written

async function begin() {
  try {
    const response = await client.makeRequest("/openai/models");
    if (!response.ok) throw await PerishableError.from(response);
    const models = (await response.json()).data.map((model) => model.id).filter((id) => !/embed/.test(id));
    part("model").replaceChildren(...models.map((id) => new Option(id)));
    part("model").disabled = part("send").disabled = models.length === 0;
    if (models.length === 0) show("theirs", "This session may not use any model.").classList.add("failed");
    limits(response);
  } catch (error) {
    show("theirs", explain(error)).classList.add("failed");
  }
  facts();
}

async function ask(text) {
  part("welcome")?.remove();
  show("mine", text);
  history.push({ role: "user", content: text });
  const message = show("theirs", "");
  const words = message.querySelector(".words");
  message.classList.add("writing");
  document.body.classList.add("busy");
  running = new AbortController();
  const began = performance.now();
  let answer = "";
  let usage = null;
  let note = "";
  try {
    const response = await client.makeRequest("/openai/chat/completions", {
      method: "POST",
      signal: running.signal,
      body: {
        model: part("model").value,
        messages: history,
        stream: true,
        stream_options: { include_usage: true },
      },
    });
    if (!response.ok) throw await PerishableError.from(response);
    limits(response);
    for await (const event of eventsOf(response)) {
      const chunk = JSON.parse(event.data);
      if (chunk.error) throw new PerishableError(chunk.error.message ?? "the answer broke off");
      usage = chunk.usage ?? usage;
      answer += chunk.choices?.[0]?.delta?.content ?? "";
      words.textContent = answer;
      scrollDown();
    }
    if (usage) limits(response, usage.total_tokens); // its headers were written before its tokens were known
    const seconds = (performance.now() - began) / 1000;
    note = `${usage ? `${usage.completion_tokens} tokens · ` : ""}${seconds.toFixed(1)} s`;
  } catch (error) {
    if (running.signal.aborted) {
      note = "stopped";
    } else {
      message.classList.add("failed");
      words.textContent = answer ? `${answer}\n\n${explain(error)}` : explain(error);
    }
  }
  if (answer) history.push({ role: "assistant", content: answer });
  else history.pop();
  message.classList.remove("writing");
  document.body.classList.remove("busy");
  if (!words.textContent) words.textContent = "…";
  if (note) message.append(element("p", "note", note));
  running = null;
  scrollDown();
  facts();
}

/** The events of a response, for browsers whose streams cannot be iterated yet. */
async function* eventsOf(response) {
  const reader = events(response).getReader();
  for (let next = await reader.read(); !next.done; next = await reader.read()) yield next.value;
}

function explain(error) {
  if (error instanceof PerishableError) {
    if (error.type === "budget_exceeded") return "This session has used up what it may spend.";
    if (error.status === 429) return `Too fast: ${error.message}. Try again in a moment.`;
    if (error.status === 403) return "The gateway does not let this page ask for that.";
    return `The gateway says: ${error.message}`;
  }
  if (error.name === "AbortError") return "No answer came in time.";
  return "The gateway cannot be reached from this page.";
}

function show(who, text) {
  const message = element("article", `message ${who}`);
  message.append(element("div", "words", text));
  part("chat").append(message);
  scrollDown();
  return message;
}

function element(name, classes, text = "") {
  const made = document.createElement(name);
  made.className = classes;
  made.textContent = text;
  return made;
}

function scrollDown() {
  part("chat").scrollTop = part("chat").scrollHeight;
}

function limits(response, used = 0) {
  const number = (name, less = 0) => {
    const value = response.headers.get(name);
    if (value === null || value === "unlimited") return "no limit";
    return Math.max(0, Number(value) - less).toLocaleString("en");
  };
  part("requests").textContent = number("x-ratelimit-remaining-requests");
  part("tokens").textContent = number("x-budget-tokens-remaining", used);
}

function facts() {
  const session = client.session;
  part("session").textContent = session ? `${session.sessionId.slice(0, 10)}…` : "none";
  part("session").title = session?.sessionId ?? "";
  const left = session ? Math.max(0, Math.round((session.expiresAt - Date.now()) / 1000)) : null;
  part("ends").textContent = left === null ? "–" : `${Math.floor(left / 60)}:${String(left % 60).padStart(2, "0")}`;
}

part("form").addEventListener("submit", (event) => {
  event.preventDefault();
  if (running) {
    running.abort();
    return;
  }
  const text = part("text").value.trim();
  if (!text || part("send").disabled) return;
  part("text").value = "";
  ask(text);
});

part("text").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    if (!running) part("form").requestSubmit();
  }
});

part("ideas").addEventListener("click", (event) => {
  const idea = event.target.closest("button");
  if (idea && !part("send").disabled && !running) ask(idea.textContent);
});

setInterval(facts, 1000);
begin();
