import { explain, GateSocket, MEANINGS, REASONS } from "/sidegate.mjs";
import { claims, encoded, Tokens } from "/tokens.mjs";

const $ = (id) => document.getElementById(id);
const data = JSON.parse($("data").textContent);
const tokens = new Tokens(data.issuer);
const CHOICES = ["gate", "path", "carrier", "show"];
const COOKIE = "token=; Path=/; SameSite=Strict; Max-Age=0";
let socket;
let last; // what the last state was

// ---- telling ----

function element(name, text, className = "") {
  const made = document.createElement(name);
  made.textContent = text;
  made.className = className;
  return made;
}

function log(tone, what, more = "") {
  const line = document.createElement("li");
  const text = document.createElement("div");
  text.append(element("b", what, tone), element("span", more && ` ${more}`, "dim"));
  line.append(element("time", new Date().toTimeString().slice(0, 8)), text);
  $("log").prepend(line);
  while ($("log").children.length > 200) $("log").lastChild.remove();
}

const STATES = {
  connecting: ["connecting", ""],
  open: ["accepted", "the gate may still refuse it"],
  live: ["open", ""],
  waiting: ["waiting", ""],
  stopped: ["stopped", "trying again would not help"],
  closed: ["closed", ""],
};

const sentence = (text) => text && `${text[0].toUpperCase()}${text.slice(1)}.`;

function next({ state, pause, renew }) {
  if (state !== "waiting") return STATES[state][1];
  return `${renew ? "gets a new token, then " : ""}${pause < 300 ? "reconnects at once" : `tries again in ${(pause / 1000).toFixed(1)} s`}`;
}

function show(detail) {
  const { state } = detail;
  $("state").dataset.state = state;
  $("now").textContent = STATES[state][0];
  $("next").textContent = next(detail) && `– ${next(detail)}`;
  if (state === "waiting" || state === "stopped") end(detail);
}

/** It stays to be read while the socket comes back. */
function end({ code, label, meaning, remedy }) {
  $("end").hidden = false;
  $("code").textContent = code || "none";
  $("label").textContent = label || "none";
  $("meaning").textContent = meaning;
  $("remedy").textContent = remedy || "none that the gate has told";
}

function saw(said) {
  const { headers, ...line } = said;
  $("seen").textContent = JSON.stringify({ ...line, headers }, null, 2);
}

// ---- tokens ----

function clock() {
  const said = claims(tokens.access);
  const left = Math.ceil(said.exp - Date.now() / 1000);
  const who = said.preferred_username ?? said.sub ?? "nobody known";
  const lives = Number.isNaN(left) ? "without an end" : left > 0 ? `runs out in ${left > 90 ? `${Math.round(left / 60)} min` : `${left} s`}` : "has run out";
  $("holder").textContent = tokens.access ? `Token of ${who}, ${lives}.` : "No token yet.";
  $("holder").className = `holder ${!tokens.access ? "dim" : left <= 0 ? "bad" : "good"}`;
}

function held() {
  const said = claims(tokens.access);
  $("claims").hidden = !tokens.access;
  $("claims").querySelector("pre").textContent = JSON.stringify(said, null, 2);
  $("token").value = tokens.access;
  clock();
}

async function got(what, getting) {
  try {
    if ((await getting) === false) return false;
    log("", what, `of ${claims(tokens.access).preferred_username ?? claims(tokens.access).sub ?? "nobody known"}`);
  } catch (error) {
    log("bad", "No token:", error.message);
  }
  held();
  return true;
}

// ---- the socket ----

function gate() {
  const text = $("gate").value.trim();
  const url = URL.parse(text.includes("://") ? text : `ws://${text}`);
  if (!url) throw new Error(`${text} is no address of a gate, such as wss://chat.example.com`);
  url.protocol = url.protocol.replace("http", "ws");
  return url;
}

function isOwn() {
  try {
    return gate().host === location.host;
  } catch {
    return false;
  }
}

/** The 20th character of the signature, for the last one has bits that do not count. */
function changed(token) {
  const at = token.lastIndexOf(".") + 20;
  return token.slice(0, at) + (token[at] === "A" ? "B" : "A") + token.slice(at + 1);
}

const CARRIERS = {
  subprotocol: (url, token) => ["Bearer", token],
  kubernetes: (url, token) => ["demo", `base64url.bearer.authorization.k8s.io.${encoded(new TextEncoder().encode(token))}`],
  query(url, token) {
    url.searchParams.set("token", token);
    return [];
  },
  cookie(url, token) {
    document.cookie = `token=${token}; Path=/; SameSite=Strict`;
    return [];
  },
};

function carrier() {
  const what = $("show").value;
  if (what === "none") return () => [];
  if (what === "two") return (url, token) => [...CARRIERS.query(url, tokens.id || changed(token)), ...CARRIERS.subprotocol(url, token)];
  return CARRIERS[$("carrier").value];
}

async function shown({ renew }) {
  const what = $("show").value;
  if (what === "none") return "none";
  if (renew && what === "good") {
    const token = await tokens.renew();
    held();
    return token;
  }
  return { changed: changed(tokens.access), id: tokens.id }[what] ?? tokens.access;
}

function address() {
  return new URL($("path").value, gate());
}

function open() {
  socket?.close();
  for (const choice of CHOICES) localStorage.setItem(`sidegate-demo.${choice}`, $(choice).value);
  const url = address();
  const mine = (socket = new GateSocket(url, shown, { carrier: carrier() }));
  let first = true;
  $("end").hidden = true;
  mine.addEventListener("state", ({ detail }) => {
    if (mine !== socket) return;
    const { state, code, label, meaning, remedy } = detail;
    last = detail;
    if (state === "connecting") first = true;
    if (["live", "waiting", "stopped", "closed"].includes(state)) document.cookie = COOKIE;
    show(detail);
    buttons();
    if (state === "live") log("good", `Open: ${url.pathname}`, mine.protocol && `subprotocol ${mine.protocol}`);
    else if (state === "closed") log("", `Closed: ${url.pathname}`);
    else if (state === "waiting" || state === "stopped") {
      const tone = state === "stopped" ? "bad" : "wait";
      const does = state === "waiting" ? sentence(`the socket ${next(detail)}`) : "";
      log(tone, `${code || "No token"} ${label}`.trim(), [sentence(meaning), remedy && sentence(`remedy: ${remedy}`), does].join(" "));
      if (first && isOwn()) $("seen").textContent = "Nothing: it never heard of this handshake.";
    }
    setTimeout(sessions, 100);
  });
  mine.addEventListener("message", ({ data: text }) => {
    try {
      const said = JSON.parse(text);
      if (first && said.headers) {
        first = false;
        return saw(said);
      }
    } catch {
      // Not ours, or an echo.
    }
    first = false;
    log("", "Message:", String(text).slice(0, 200));
  });
}

/** Over plain HTTP a page can set a header. */
async function ask() {
  const answer = await fetch("/api/me", { headers: { Authorization: `Bearer ${await shown({ renew: false })}` } });
  const said = await answer.json();
  if (answer.ok) saw(said);
  log(answer.ok ? "good" : "bad", `GET /api/me: ${answer.status} ${said.reason ?? ""}`, said.detail ?? "");
}

// ---- trouble ----

/** The socket, once it is in use. */
function live() {
  if (last?.state === "live") return socket;
  open();
  const mine = socket;
  return new Promise((done, fail) => {
    mine.addEventListener("state", ({ detail: { state, label } }) => {
      if (state === "live") done(mine);
      if (state === "stopped") fail(new Error(`the socket itself was refused: ${label}`));
    });
  });
}

/** A socket without the helper: { made }, and { code, label } if it was refused. */
function bare(url, protocols) {
  return new Promise((done) => {
    const made = new WebSocket(url, protocols);
    made.onmessage = () => done({ made });
    made.onclose = ({ code, reason }) => done({ made, code, label: reason });
  });
}

function told(what, { code, label }) {
  const detail = explain(code, label);
  log("bad", `${what}: ${code} ${label}`.trim(), `${sentence(detail.meaning)} ${detail.remedy && sentence(`remedy: ${detail.remedy}`)}`);
  end(detail);
}

async function button(method, path, body) {
  const answer = await fetch(`/demo${path}`, { method, body: body && JSON.stringify(body), headers: body && { "Content-Type": "application/json" } });
  const said = await answer.json();
  if (!answer.ok) throw new Error(said.detail ?? answer.status);
  return said;
}

const trouble = {
  async expire() {
    if (tokens.held?.user) await got("Token for 3 s", tokens.login(tokens.held.user, 3));
    else log("", "The issuer says how long its tokens live:", $("holder").textContent);
    $("show").value = "good";
    open();
  },
  async revoke() {
    await live();
    const { jti, sid } = claims(tokens.access);
    await button("POST", "/revocations", jti ? { jti, ttl: "1h" } : { sid, ttl: "1h" });
  },
  async drain() {
    await live();
    log("", "Asks the gate to drain.");
    await button("POST", "/drain");
  },
  async flood() {
    const flooded = await live();
    for (let n = 0; n < 200; n++) flooded.send("too fast");
  },
  async crowd() {
    const crowd = [];
    let refused;
    while (!refused && crowd.length < 10) {
      const url = address();
      const one = await bare(url, CARRIERS.subprotocol(url, tokens.access));
      crowd.push(one.made);
      if (one.code) refused = one;
    }
    if (refused) told(`Socket ${crowd.length}`, refused);
    else log("", `${crowd.length} more sockets, and no limit in sight.`);
    await sessions();
    for (const one of crowd) one.close(1000);
  },
  async foreign() {
    const origin = elsewhere();
    const frame = Object.assign(document.createElement("iframe"), { src: `${origin}/frame`, hidden: true, title: "A page of another origin" });
    const heard = new Promise((done, fail) => {
      const listen = ({ data: message, source, origin: from }) => {
        if (source !== frame.contentWindow || from !== origin) return;
        const url = address();
        const protocols = CARRIERS.subprotocol(url, tokens.access);
        if (message.ready) return source.postMessage({ url: url.href, protocols }, origin);
        removeEventListener("message", listen);
        done(message);
      };
      addEventListener("message", listen);
      setTimeout(() => fail(new Error(`no page at ${origin}`)), 10000);
    });
    document.body.append(frame);
    try {
      const end = await heard;
      if (end.let) log("wait", `Let in from ${origin}:`, "this gate allows that origin");
      else told(`From ${origin}`, end);
    } finally {
      frame.remove();
    }
  },
};

/** This very page, by the other name of this machine: another origin to the browser and to the gate. */
function elsewhere() {
  return `http://${location.hostname === "localhost" ? "127.0.0.1" : "localhost"}:${location.port}`;
}

// ---- live sessions ----

async function sessions() {
  if (document.hidden) return;
  const list = $("sessions");
  let rows;
  try {
    ({ sessions: rows } = await button("GET", "/sessions"));
  } catch {
    return list.replaceChildren(element("li", "The gate does not answer.", "dim"));
  }
  if (!rows.length) return list.replaceChildren(element("li", "None.", "dim"));
  // A row that stays is left where it is, and its buttons keep the focus.
  for (const old of [...list.children]) if (!rows.some(({ id }) => id === old.dataset.id)) old.remove();
  for (const row of rows) {
    const known = [...list.children].find(({ dataset }) => dataset.id === row.id);
    if (known) known.firstChild.textContent = about(row);
    else list.append(line(row));
  }
}

function about({ username, sub, route, origin, received, sent }) {
  const from = origin === location.origin ? "this page" : (origin ?? "a program");
  return `${username ?? sub ?? "anonymous"} on ${route}, from ${from}; ${received.messages} in, ${sent.messages} out`;
}

function line(row) {
  const made = document.createElement("li");
  made.dataset.id = row.id;
  const close = Object.assign(element("button", "Close"), { type: "button", onclick: doing(() => button("DELETE", `/sessions?id=${row.id}`)) });
  const revoke = Object.assign(element("button", "Revoke"), { type: "button", onclick: doing(() => button("POST", "/revocations", { jti: row.jti, ttl: "1h" })) });
  for (const one of [close, revoke]) one.setAttribute("aria-label", `${one.textContent} session ${row.id}`);
  made.append(element("span", about(row)), close, ...(row.jti ? [revoke] : []));
  return made;
}

// ---- the page ----

const doing = (what) => async () => {
  try {
    await what();
  } catch (error) {
    log("bad", "That did not work:", error.message);
  }
  sessions();
};

function buttons() {
  const own = isOwn();
  const active = socket && ["connecting", "open", "live", "waiting"].includes(last?.state);
  $("close").disabled = !active;
  $("send").querySelector("button").disabled = last?.state !== "live";
  for (const id of ["revoke", "drain"]) $(id).disabled = !own;
  $("carrier").querySelector("[value=cookie]").disabled = !own;
  $("elsewhere").hidden = own;
}

function reasons() {
  for (const [label, [code, , remedy]] of Object.entries(REASONS)) {
    const row = document.createElement("div");
    const name = document.createElement("dt");
    name.append(element("code", label));
    row.append(name, element("dd", `${code ? `${code}, ${MEANINGS[code]}` : "told over HTTP alone"}. Remedy: ${remedy}.`));
    $("reasons").append(row);
  }
}

const submits = (id, act) => $(id).addEventListener("submit", (event) => {
  event.preventDefault();
  act();
});

async function begin() {
  for (const user of data.users) $("user").add(new Option(`${user.name}: of ${user.organization}, ${user.roles.join(" and ")}`, user.name));
  $(data.issuer ? "signin" : "login").hidden = false;
  $("issuer").textContent = data.issuer?.url ?? "";
  $("other").textContent = elsewhere();
  $("expire").closest("div").querySelector("dd").textContent = data.issuer
    ? "How long it lives says the issuer. The socket closes then, and comes back with a new one."
    : "One that lives for 3 s. The socket closes then, and comes back with a new one.";
  const first = { gate: location.origin.replace("http", "ws"), path: "/ws/chat/" };
  for (const choice of CHOICES) $(choice).value = localStorage.getItem(`sidegate-demo.${choice}`) ?? first[choice] ?? $(choice).value;
  reasons();
  held();
  buttons();

  submits("login", () => got("Token", tokens.login($("user").value, $("life").value)));
  submits("signin", () => got("Leaving", tokens.signIn().then(() => false)));
  submits("paste", () => {
    tokens.keep({ access: $("token").value.trim() });
    held();
    log("", "A token of your own.");
  });
  submits("open", doing(open));
  submits("send", () => socket.send($("text").value));
  $("forget").onclick = () => (tokens.keep(null), held());
  $("close").onclick = () => socket.close();
  $("ask").onclick = doing(ask);
  $("gate").oninput = buttons;
  for (const [id, act] of Object.entries(trouble)) $(id).onclick = doing(act);
  document.addEventListener("visibilitychange", sessions);
  setInterval(clock, 500);
  setInterval(sessions, 2000);

  if (await got("Signed in: token", tokens.arrive())) return;
  // The embedded issuer begins anew each time; what was pasted stays.
  const { user, refresh } = tokens.held ?? {};
  if (data.issuer && user) tokens.keep(null);
  else if (!data.issuer && (!tokens.held || user || refresh)) await got("Token", tokens.login(user ?? data.users[0].name, 300));
  held();
}

begin();
