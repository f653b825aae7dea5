"use strict";
// The page of the service. All that it shows comes from the API of the same process, as text, never as HTML.

const byId = (id) => document.getElementById(id);

// `asked` is what the address says, with item ids as text; `items` holds what is known of an item by its id.
const state = { asked: null, facts: null, items: new Map(), note: "", lookup: 0, answer: 0, typing: 0 };

// A shop whose customers buy the same again says so in its facts.
function repeatsByDefault() {
  return state.facts?.exclude_seen === false;
}

// --- the address: reload, Back and a shared link ask the same again ---

function fromAddress() {
  const parts = new URLSearchParams(location.search);
  return {
    query: parts.get("q") ?? "",
    history: parts.getAll("item"),
    hidden: parts.getAll("hide"),
    category: parts.get("category") ?? "",
    brand: parts.get("brand") ?? "",
    k: parts.get("k") ?? "10",
    repeats: parts.get("repeats") ? parts.get("repeats") !== "no" : repeatsByDefault(),
  };
}

function address({ query, history, hidden, category, brand, k, repeats }) {
  const parts = new URLSearchParams();
  if (query) parts.set("q", query);
  for (const id of history) parts.append("item", id);
  for (const id of hidden) parts.append("hide", id);
  if (category) parts.set("category", category);
  if (brand) parts.set("brand", brand);
  if (k !== 10) parts.set("k", k);
  if (repeats !== repeatsByDefault()) parts.set("repeats", repeats ? "yes" : "no");
  return `${location.pathname}${parts.size ? "?" : ""}${parts}`;
}

const shown = () => address(state.asked) === location.pathname + location.search;

// --- talking to the service ---

async function ask(path, body) {
  const headers = body ? { "Content-Type": "application/json" } : {};
  const token = sessionStorage.getItem("token");
  if (token) headers.Authorization = `Bearer ${token}`;
  const response = await fetch(path, body ? { method: "POST", headers, body: JSON.stringify(body) } : { headers })
    .catch((error) => { throw new Error(`The service cannot be reached (${error.message}): check that it runs, then try again.`); });
  if (response.ok) return response.json();
  if (response.status === 401) {
    byId("token-form").hidden = false;
    byId("token").focus();
  }
  const { detail } = await response.json().catch(() => ({ detail: response.statusText }));
  throw Object.assign(new Error(sentence(response.status, detail)), { status: response.status });
}

function sentence(status, detail) {
  const refused = sessionStorage.getItem("token") ? "does not accept this token: enter another" : "needs a token: enter it";
  if (status === 401) return `The service ${refused} at the top of the page.`;
  if (status === 503) return "The service is busy: try again in a few seconds.";
  if (status === 504) return "The answer took too long: try again, or ask for fewer items.";
  if (!Array.isArray(detail)) return `The service cannot answer: ${detail}.`;
  const { loc, msg } = detail[0]; // the first mistake is enough to go on
  return `The service did not accept ${loc.slice(1).join(" ").replaceAll("_", " ") || "this"}: ${msg}.`;
}

// Learn what the service knows of these items; returns their ids in its own spelling, null where it has no such item.
function learn(ids) {
  return Promise.all(ids.map(async (id) => {
    if (state.items.has(id)) return id;
    try {
      return known(await ask(`/items/${encodeURIComponent(id)}`));
    } catch (error) {
      if (error.status === 404 || error.status === 422) return null;
      throw error;
    }
  }));
}

function known(item) {
  const id = String(item.item_id);
  state.items.set(id, item);
  return id;
}

// --- small pieces ---

function element(name, text, className) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
}

// The style sheet cuts long text; the pointer shows all of it.
function cut(made, text) {
  made.textContent = made.title = text;
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

const short = (text, length = 60) => (text.length > length ? `${text.slice(0, length - 1)}…` : text);

const name = (item) => item.title || `Item ${item.item_id}`;

function quoted(words, most = 5) {
  const rest = words.length > most ? ` and ${words.length - most} more` : "";
  return words.slice(0, most).map((word) => `“${short(word)}”`).join(", ") + rest;
}

const price = (amount) => amount.toLocaleString("en", { minimumFractionDigits: Number.isInteger(amount) ? 0 : 2 });

// --- what the user asks ---

// An action of the user: its address is a new page of the browser's history.
function change(changes) {
  Object.assign(state.asked, changes);
  if (!shown()) window.history.pushState(null, "", address(state.asked));
  showHistory();
  return answer();
}

// What the address says, without what is not in this catalogue.
async function restore() {
  const turn = ++state.answer, asked = fromAddress();
  asked.k = limited(asked.k);
  state.asked = asked;
  showFields();
  try {
    const ids = [...asked.history, ...asked.hidden], found = await learn(ids);
    if (turn !== state.answer) return; // the address has changed meanwhile
    const unknown = ids.filter((_, at) => found[at] === null);
    if (unknown.length) remark(`Left out, because the catalogue has no item with this ID: ${quoted(unknown)}.`);
    asked.history = found.slice(0, asked.history.length).filter((id) => id !== null);
    asked.hidden = found.slice(ids.length - asked.hidden.length).filter((id) => id !== null);
  } catch (error) {
    return say(error.message, true);
  }
  window.history.replaceState(null, "", address(asked));
  showHistory();
  await answer(location.search !== "");
}

function limited(text) {
  const most = state.facts.max_k;
  const k = Math.max(1, Math.min(most, Math.trunc(Number(text)) || 10));
  if (String(k) !== text) remark(`The number of items must be 1 to ${most}: ${short(text) || "nothing"} was changed to ${k}.`);
  return k;
}

async function answer(revealing = true) {
  const { query, history, hidden, category, brand, k, repeats } = state.asked;
  const one = (name) => (name ? [name] : []);
  const rules = { k, allowed_categories: one(category), allowed_brands: one(brand), blocked_items: hidden };
  byId("note").textContent = state.note;
  state.note = "";
  if (query) await show("/search", { ...rules, query }, `for “${query}”`, revealing);
  else if (state.facts.can_recommend) {
    const after = history.length ? `after a history of ${history.length}` : "to start with";
    await show("/recommend", { ...rules, item_ids: history, exclude_seen: !repeats }, after, revealing);
  } else {
    state.answer++;
    byId("cards").replaceChildren();
    say("");
  }
}

// --- what the answer shows ---

// Notes are shown above the next answer.
function remark(text) {
  state.note = `${state.note} ${text}`.trim();
}

function say(text, wrong = false) {
  byId("status").textContent = text;
  byId("status").classList.toggle("wrong", wrong);
}

const filtered = (question) =>
  [question.allowed_categories, question.allowed_brands, question.blocked_items].some((names) => names.length);

async function show(path, question, what, revealing) {
  const turn = ++state.answer;
  say("Asking …");
  try {
    const found = await ask(path, question);
    if (turn !== state.answer) return; // asked again meanwhile
    const best = Math.max(...found.items.map((item) => item.score));
    byId("cards").replaceChildren(...found.items.map((item) => card(item, best)));
    const n = found.items.length;
    say(n ? `${counted(n, "item")} ${what}` : `No item was found ${what}${filtered(question) ? " under these filters" : ""}.`);
    if (found.any_word_found === false) {
      const but = n ? ": the items below are the nearest by meaning and may not fit" : "";
      byId("note").append(` No item contains a word of this query${but}.`);
    }
  } catch (error) {
    if (turn !== state.answer) return;
    byId("cards").replaceChildren(); // they answered another question
    say(error.message, true);
    if (error.status === 401) return;
  }
  if (revealing) reveal();
}

// On a phone the results are below the controls: go there, and close the keyboard.
function reveal() {
  const { top } = byId("results-heading").getBoundingClientRect();
  if (top < window.innerHeight / 2) return;
  byId("results-heading").focus({ preventScroll: true });
  byId("results-heading").scrollIntoView();
}

function card(item, best) {
  const made = byId("card").content.cloneNode(true).firstElementChild;
  const part = (selector) => made.querySelector(selector);
  const id = known(item), title = name(item);
  cut(part("h3"), title);
  cut(part(".brand"), item.brand ?? "");
  part(".price").textContent = item.price === null ? "" : `Price ${price(item.price)}`;
  cut(part(".category"), item.categories.length ? item.categories[0].join(" › ") : "");
  part(".id").textContent = id;
  part(".codes").replaceWith(codes(item.semantic_id, item.why?.shared_codes || 1));
  part(".bar").style.width = `${Math.max(2, 100 * (best < 0 ? Math.exp(item.score - best) : item.score / (best || 1)))}%`;
  part(".score span").textContent = `score ${item.score.toFixed(2)}`;
  part(".copy").setAttribute("aria-label", `Copy the ID ${id}`);
  part(".copy").addEventListener("click", () => copy(part(".copy"), part(".id")));
  part(".add").hidden = !state.facts.can_recommend;
  part(".add").setAttribute("aria-label", `Add ${short(title)} to the history`);
  part(".add").addEventListener("click", () => addFromResults(id));
  part(".hide").setAttribute("aria-label", `Hide ${short(title)}`);
  part(".hide").addEventListener("click", () => hide([...state.asked.hidden, id]));
  const { query, history } = state.asked;
  part("details").addEventListener("toggle", (event) => explain(event.target, item, query, history), { once: true });
  return made;
}

// Browsers let a page copy over https and on loopback only; elsewhere the ID is selected for the user to copy.
async function copy(pressed, id) {
  window.getSelection().selectAllChildren(id);
  const copied = await navigator.clipboard?.writeText(id.textContent).then(() => true, () => false);
  pressed.textContent = copied ? "Copied" : "Selected: press Ctrl+C";
  pressed.setAttribute("aria-label", `${pressed.textContent}, ID ${id.textContent}`);
}

async function explain(details, item, query, history) {
  const why = details.querySelector(".why");
  why.append(element("p", reason(item, query, history)));
  try {
    const { prefixes } = await ask(`/items/${encodeURIComponent(item.item_id)}/neighbours?limit=4`);
    if (!prefixes.length) why.append(element("p", "No other item begins with its codes."));
    for (const { prefix, n_items, items } of prefixes) {
      const heading = element("h4", `${n_items} more under `);
      heading.append(codes(prefix, prefix.length));
      const list = element("ul");
      list.append(...items.map(neighbour));
      why.append(heading, list);
    }
  } catch (error) {
    why.append(element("p", error.message));
  }
}

function reason({ why, matched_words: words }, query, history) {
  if (query && words.length) return `Words of the query in its title, brand or categories: ${quoted(words, 20)}.`;
  if (query) return "No word of the query is in its title, brand or categories: the model finds it similar in meaning.";
  if (!history.length) return "Shoppers often start with it.";
  if (!why) return "It shares no prefix with the history: the model learned that shoppers move between these.";
  const n = why.shared_codes;
  return `Its semantic ID begins with the same ${n === 1 ? "code" : `${n} codes`} as “${short(name(why))}” of the history.`;
}

function neighbour(item) {
  const line = element("li"), id = known(item), title = name(item);
  line.append(cut(element("span"), title));
  if (state.facts.can_recommend) line.append(button("Add", `Add ${short(title)} to the history`, () => addFromResults(id)));
  return line;
}

// --- the history and the hidden items ---

function showHistory() {
  const { history, hidden } = state.asked;
  byId("history").replaceChildren(...history.map((id, at) => {
    const line = element("li"), title = name(state.items.get(id) ?? { item_id: id });
    line.append(cut(element("span"), title), button("Remove", `Remove ${short(title)}`, () => {
      change({ query: "", history: history.filter((_, other) => other !== at) });
      byId("title").focus();
    }));
    return line;
  }));
  byId("history-empty").hidden = history.length > 0;
  byId("clear").hidden = !history.length;
  byId("hidden-items").hidden = !hidden.length;
  const are = hidden.length === 1 ? "is" : "are";
  byId("hidden-items").querySelector("span").textContent = `${counted(hidden.length, "item")} ${are} hidden.`;
}

function add(id) {
  return change({ query: "", history: [...state.asked.history, id] });
}

// The button that was pressed goes with its card.
function addFromResults(id) {
  add(id);
  byId("results-heading").focus();
}

function hide(hidden) {
  change({ hidden });
  byId("results-heading").focus();
}

// Forget what was typed before: an answer to it that is still on its way is not shown.
function dropSuggestions() {
  clearTimeout(state.typing);
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
    byId("suggestions").replaceChildren(...items.map(suggestion));
    byId("found").textContent = items.length ? counted(items.length, "item") : "no title holds these words, and no item has this ID";
  } catch (error) {
    if (turn === state.lookup) byId("found").textContent = error.message;
  }
}

function suggestion(item) {
  const line = element("li"), choose = element("button"), id = known(item);
  choose.type = "button";
  choose.append(cut(element("span"), name(item)), " ", element("code", id));
  choose.addEventListener("click", () => {
    byId("title").value = "";
    dropSuggestions();
    byId("title").focus();
    add(id);
  });
  line.append(choose);
  return line;
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

// --- the fields ---

function option(value, text) {
  const made = element("option", text);
  made.value = made.title = value;
  return made;
}

function showFacts() {
  const { n_items, n_levels, can_search, can_recommend, categories, brands, n_brands, example_queries, max_k, source, version } = state.facts;
  const from = (version ? ` Version ${version.name}.` : "") + (source ? ` From ${source}.` : "");
  byId("facts").textContent = `${n_items.toLocaleString("en")} items, ${n_levels} codes each.${from}`;
  byId("token-form").hidden = true;
  byId("filters").hidden = false;
  byId("search-form").hidden = !can_search;
  byId("history-panel").hidden = byId("seen-label").hidden = !can_recommend;
  const examples = example_queries.map((query) => button(short(query), `Search for ${query}`, () => search(query)));
  byId("examples").replaceChildren(...(examples.length ? [element("span", "Try:", "hint"), ...examples] : []));
  byId("k").max = max_k;
  byId("k-help").textContent = `1 to ${max_k}`;
  byId("category-row").hidden = !categories.length;
  byId("brand-row").hidden = !brands.length;
  const some = `The list has the ${brands.length} largest of ${n_brands} brands; type any other.`;
  byId("brand-help").textContent = n_brands > brands.length ? some : "";
  const all = byId("category").options[0];
  byId("category").replaceChildren(all, ...categories.map((one) => option(one.name, `${short(one.name, 48)} (${one.n_items})`)));
  byId("brands").replaceChildren(...brands.map((one) => option(one.name)));
}

function showFields() {
  const { query, category, brand, k, repeats } = state.asked;
  byId("query").value = query;
  byId("category").value = category;
  if (byId("category").value !== category) { // not of this catalogue: the service says so
    byId("category").append(option(category, short(category, 48)));
    byId("category").value = category;
  }
  byId("brand").value = brand;
  byId("k").value = k;
  byId("exclude-seen").checked = !repeats;
}

function search(query) {
  byId("query").value = query;
  if (query) change({ query });
}

function filter() {
  const k = limited(byId("k").value);
  byId("k").value = k;
  change({ k, category: byId("category").value, brand: byId("brand").value.trim(), repeats: !byId("exclude-seen").checked });
}

async function start() {
  try {
    state.facts = await ask("/catalogue");
  } catch (error) {
    byId("facts").textContent = error.message;
    return;
  }
  state.asked = fromAddress();
  showFacts();
  window.addEventListener("popstate", back);
  await restore();
}

// The link that skips to the results is a step in the browser's history, too, but asks the same.
function back() {
  if (!shown()) restore();
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
byId("title").addEventListener("input", () => { dropSuggestions(); state.typing = setTimeout(suggest, 150); });
byId("history-panel").addEventListener("keydown", walkSuggestions);
byId("recommend").addEventListener("click", () => { change({ query: "" }); byId("results-heading").focus(); });
byId("clear").addEventListener("click", () => { change({ query: "", history: [] }); byId("title").focus(); });
byId("unhide").addEventListener("click", () => hide([]));
for (const id of ["category", "brand", "k", "exclude-seen"]) byId(id).addEventListener("change", filter);
start();
