"use strict";
// The page of the service: everything it shows comes from the API of the same process, as text, never as HTML.

const byId = (id) => document.getElementById(id);
const state = { history: [], hidden: [], lookup: 0, answer: 0, lastSearch: null, facts: null };

// --- talking to the service ---

async function ask(path, body) {
  const headers = body ? { "Content-Type": "application/json" } : {};
  const token = sessionStorage.getItem("token");
  if (token) headers.Authorization = `Bearer ${token}`;
  const response = await fetch(path, body ? { method: "POST", headers, body: JSON.stringify(body) } : { headers });
  if (response.ok) return response.json();
  if (response.status === 401) {
    byId("token-form").hidden = false;
    byId("token").focus();
  }
  const { detail } = await response.json().catch(() => ({ detail: response.statusText }));
  throw new Error(Array.isArray(detail) ? detail.map((one) => one.msg).join("; ") : detail);
}

function say(text, wrong = false) {
  byId("status").textContent = text;
  byId("status").classList.toggle("wrong", wrong);
}

// --- small pieces ---

function element(name, text, className) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
}

function button(text, label, action) {
  const made = element("button", text, "quiet");
  made.type = "button";
  made.setAttribute("aria-label", label);
  made.addEventListener("click", action);
  return made;
}

// One colour for each first code; the codes that are shared with something are filled.
function codes(id, nShared) {
  const row = element("span", undefined, "codes");
  id.forEach((code, level) => {
    const chip = element("span", String(code), level < nShared ? "code prefix" : "code");
    chip.style.setProperty("--hue", String((id[0] * 137) % 360));
    row.append(chip);
  });
  return row;
}

const counted = (n, what) => (n === 1 ? `1 ${what}` : `${n} ${what}s`);

const leaf = (item) => (item.categories.length ? item.categories[0].join(" › ") : "");

// --- the history ---

function showHistory() {
  const lines = state.history.map((item, at) => {
    const line = element("li");
    line.append(element("span", item.title), button("Remove", `Remove ${item.title}`, () => {
      state.history.splice(at, 1);
      changed();
      byId("title").focus();
    }));
    return line;
  });
  byId("history").replaceChildren(...lines);
  byId("history-empty").hidden = byId("clear").hidden = true;
  (state.history.length ? byId("clear") : byId("history-empty")).hidden = false;
}

function changed() {
  showHistory();
  recommend();
}

function add(item) {
  state.history.push(item);
  changed();
}

// The button that was pressed goes with its card.
function addFromResults(item) {
  add(item);
  byId("results-heading").focus();
}

// Forget what was typed before: an answer to it that is still on its way is not shown.
let typing;
function dropSuggestions() {
  clearTimeout(typing);
  state.lookup++;
  byId("suggestions").replaceChildren();
  byId("found").textContent = "";
}

async function suggest() {
  const title = byId("title").value.trim(), turn = state.lookup;
  if (!title) return;
  try {
    const { items } = await ask(`/items?limit=8&title=${encodeURIComponent(title)}`);
    if (turn !== state.lookup) return; // typed on, chosen or given up meanwhile
    const lines = items.map((item) => {
      const choose = element("button", item.title);
      choose.type = "button";
      choose.addEventListener("click", () => {
        byId("title").value = "";
        dropSuggestions();
        byId("title").focus();
        add(item);
      });
      const line = element("li");
      line.append(choose);
      return line;
    });
    byId("suggestions").replaceChildren(...lines);
    byId("found").textContent = lines.length ? counted(lines.length, "title") : "no title holds these words";
  } catch (error) {
    if (turn === state.lookup) say(error.message, true);
  }
}

function walkSuggestions(event) {
  const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  const all = [byId("title"), ...byId("suggestions").querySelectorAll("button")];
  if (event.key === "Escape") {
    dropSuggestions();
    byId("title").focus();
  } else if (step && all.includes(document.activeElement)) {
    event.preventDefault();
    all[Math.max(0, Math.min(all.length - 1, all.indexOf(document.activeElement) + step))].focus();
  } else if (event.key === "Enter" && event.target === byId("title") && all.length > 1) {
    all[1].click();
  }
}

// --- results ---

function rules() {
  const k = Math.max(1, Math.min(state.facts.max_k, Math.trunc(Number(byId("k").value)) || 10));
  const category = byId("category").value;
  return { k, allowed_categories: category ? [category] : [], blocked_items: state.hidden };
}

async function show(path, question, what) {
  const turn = ++state.answer;
  say("Asking …");
  try {
    const { items } = await ask(path, question);
    if (turn !== state.answer) return; // asked again meanwhile
    const best = Math.max(...items.map((item) => item.score));
    byId("cards").replaceChildren(...items.map((item) => card(item, best)));
    say(items.length ? `${counted(items.length, "item")} ${what}` : "No item is left under these filters.");
  } catch (error) {
    if (turn !== state.answer) return;
    byId("cards").replaceChildren(); // they answered another question
    say(error.message, true);
  }
}

function recommend() {
  state.lastSearch = null;
  const question = { ...rules(), item_ids: state.history.map((item) => item.item_id), exclude_seen: byId("exclude-seen").checked };
  return show("/recommend", question, state.history.length ? `after a history of ${state.history.length}` : "to start with");
}

function search(query) {
  state.lastSearch = query;
  return show("/search", { ...rules(), query }, `for “${query}”`);
}

function again() {
  if (state.lastSearch !== null) search(state.lastSearch);
  else if (state.facts.can_recommend) recommend();
}

function card(item, best) {
  const made = byId("card").content.cloneNode(true).firstElementChild;
  const shared = item.why ? item.why.shared_codes : 0;
  made.querySelector("h3").textContent = item.title;
  made.querySelector(".brand").textContent = item.brand || "";
  made.querySelector(".category").textContent = leaf(item);
  made.querySelector(".codes").replaceWith(codes(item.semantic_id, shared || 1));
  made.querySelector(".bar").style.width = `${Math.max(2, 100 * (best < 0 ? Math.exp(item.score - best) : item.score / (best || 1)))}%`;
  made.querySelector(".score span").textContent = `score ${item.score.toFixed(2)}`;
  const adding = made.querySelector(".add");
  adding.hidden = !state.facts.can_recommend;
  adding.setAttribute("aria-label", `Add ${item.title} to the history`);
  adding.addEventListener("click", () => addFromResults(item));
  const hiding = made.querySelector(".hide");
  hiding.setAttribute("aria-label", `Hide ${item.title}`);
  hiding.addEventListener("click", () => { state.hidden.push(item.item_id); showHidden(); again(); byId("results-heading").focus(); });
  made.querySelector("details").addEventListener("toggle", (event) => explain(event.target, item), { once: true });
  return made;
}

async function explain(details, item) {
  const why = details.querySelector(".why");
  if (item.why) {
    const n = item.why.shared_codes;
    why.append(element("p", `Its semantic ID begins with the same ${n === 1 ? "code" : `${n} codes`} as “${item.why.title}” of the history.`));
  } else if (state.lastSearch === null && state.history.length) {
    why.append(element("p", "It shares no prefix with the history: the model learned that shoppers move between these."));
  }
  try {
    const { prefixes } = await ask(`/items/${item.item_id}/neighbours?limit=4`);
    if (!prefixes.length) why.append(element("p", "No other item begins with its codes."));
    for (const { prefix, n_items, items } of prefixes) {
      const heading = element("h4", `${n_items} more under `);
      heading.append(codes(prefix, prefix.length));
      const list = element("ul");
      list.append(...items.map((near) => {
        const line = element("li");
        line.append(element("span", near.title));
        if (state.facts.can_recommend) line.append(button("Add", `Add ${near.title} to the history`, () => addFromResults(near)));
        return line;
      }));
      why.append(heading, list);
    }
  } catch (error) {
    why.append(element("p", error.message));
  }
}

function showHidden() {
  const n = state.hidden.length;
  byId("hidden-items").hidden = !n;
  byId("hidden-items").querySelector("span").textContent = `${counted(n, "item")} ${n === 1 ? "is" : "are"} hidden.`;
}

// --- the beginning ---

async function start() {
  try {
    state.facts = await ask("/catalogue");
  } catch (error) {
    byId("facts").textContent = error.message;
    return;
  }
  const { n_items, n_levels, can_search, can_recommend, categories, max_k, source } = state.facts;
  const from = source ? ` From ${source}.` : "";
  byId("facts").textContent = `${n_items.toLocaleString("en")} items, ${n_levels} codes each.${from}`;
  byId("search-form").hidden = !can_search;
  byId("history-panel").hidden = byId("seen-label").hidden = !can_recommend;
  byId("token-form").hidden = true;
  byId("k").max = max_k;
  byId("category").replaceChildren(byId("category").options[0], ...categories.map(({ name, n_items: n }) => {
    const option = element("option", `${name} (${n})`);
    option.value = name;
    return option;
  }));
  showHistory();
  if (can_recommend) recommend();
}

byId("token-form").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem("token", byId("token").value);
  start();
});
byId("search-form").addEventListener("submit", (event) => {
  event.preventDefault();
  search(byId("query").value.trim());
});
byId("title").addEventListener("input", () => { dropSuggestions(); typing = setTimeout(suggest, 150); });
byId("history-panel").addEventListener("keydown", walkSuggestions);
byId("recommend").addEventListener("click", () => { recommend(); byId("results-heading").focus(); });
byId("clear").addEventListener("click", () => { state.history = []; changed(); byId("title").focus(); });
byId("unhide").addEventListener("click", () => { state.hidden = []; showHidden(); again(); byId("results-heading").focus(); });
for (const id of ["category", "k", "exclude-seen"]) byId(id).addEventListener("change", again);
start();
