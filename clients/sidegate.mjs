// A WebSocket through sidegate that reconnects by the reason it ended for. No dependencies; see README.md.

// label: [close code, what to do, remedy]. Code and remedy are the gate's own words (src/base/reject.rs).
export const REASONS = {
  "token_missing": [4001, "renew", "send an access token, as Authorization: Bearer or as a subprotocol"],
  "token_malformed": [4001, "stop", "send the access token exactly as the issuer gave it"],
  "token_algorithm": [4001, "stop", "send an access token signed with an algorithm that the gate allows"],
  "token_key_unknown": [4001, "renew", "get a new token: the issuer does not publish the key of this one"],
  "token_signature": [4001, "stop", "send the access token exactly as the issuer gave it"],
  "token_expired": [4001, "renew", "get a new token, then reconnect"],
  "token_not_yet_valid": [4001, "wait", "check the clocks of issuer and gate"],
  "token_issuer": [4001, "stop", "get a token from an issuer that the gate knows"],
  "token_audience": [4001, "stop", "get a token for this service's audience"],
  "token_type": [4001, "stop", "send the access token, not a refresh or ID token"],
  "token_client": [4001, "stop", "get the token through a client that the gate allows"],
  "token_claim_missing": [4001, "stop", "the token lacks a claim that the gate needs, such as exp"],
  "token_revoked": [4001, "stop", "sign in again, then reconnect"],
  "token_ambiguous": [4003, "stop", "send exactly one token, in one carrier"],
  "origin_denied": [4003, "stop", "open the socket from an allowed origin"],
  "address_denied": [4003, "stop", "connect from an allowed address"],
  "rule_denied": [4003, "stop", "the token is valid, but does not grant access to this path"],
  "user_revoked": [4003, "stop", "this user is blocked: ask the operator"],
  "route_unknown": [4003, "stop", "no route of the gate serves this path"],
  "upstream_refused": [4003, "stop", "the backend refused the WebSocket"],
  "attempts_exceeded": [4029, "wait", "too many refused requests from this address: wait, then mend the request"],
  "user_sessions_exceeded": [4029, "wait", "close another session of this user first"],
  "address_sessions_exceeded": [4029, "wait", "close another session from this address first"],
  "message_rate_exceeded": [4029, "wait", "send fewer messages per second"],
  "request_malformed": [0, "stop", "send a request that RFC 9110 and RFC 9112 allow, with a plain path"],
  "host_denied": [0, "stop", "use a host name that the gate serves"],
  "upgrade_malformed": [0, "stop", "send the upgrade as RFC 6455 section 4.1 has it"],
  "upgrade_version": [0, "stop", "use WebSocket version 13"],
  "request_too_large": [0, "stop", "send a shorter request head"],
  "header_timeout": [0, "wait", "send the request head sooner"],
  "frame_malformed": [1002, "wait", "send frames that RFC 6455 section 5 allows"],
  "message_too_big": [1009, "wait", "send smaller messages"],
  "pong_timeout": [4008, "again", "reconnect"],
  "idle_timeout": [4008, "again", "reconnect when there is something to say"],
  "session_too_long": [4008, "again", "reconnect"],
  "write_timeout": [4008, "again", "reconnect"],
  "draining": [1012, "wait", "reconnect: another replica will answer"],
  "operator_closed": [1012, "wait", "reconnect: an operator has closed this session"],
  "sessions_full": [1013, "wait", "try again later"],
  "keys_unavailable": [1013, "wait", "try again: the gate has no current keys of the issuer"],
  "blacklist_unavailable": [1013, "wait", "try again: the gate does not know what is revoked"],
  "upstream_unreachable": [1013, "wait", "try again: the backend does not accept connections"],
  "upstream_malformed": [1013, "wait", "the backend's answer is not one that HTTP or RFC 6455 allows"],
  "upstream_timeout": [1013, "wait", "try again: the backend did not answer in time"],
  "upstream_error": [1013, "wait", "try again: the backend failed"],
  "upstream_lost": [1013, "wait", "reconnect: the backend ended the connection without a Close"],
  "internal": [1011, "wait", "tell the operator of the gate"],
};

// What a close code says by itself.
export const MEANINGS = {
  1000: "closed as wished",
  1001: "the other side is leaving",
  1002: "a frame was not as RFC 6455 has it",
  1003: "such data is not taken",
  1005: "closed without a code",
  1006: "no Close arrived: the connection broke, or the handshake was refused over HTTP, which no page can read",
  1007: "a text was not UTF-8",
  1008: "against the rules of the other side",
  1009: "a message was too big",
  1011: "the other side failed",
  1012: "the gate lets go of this session: a restart, or an operator",
  1013: "not to be had right now",
  4001: "the token is not good, or no longer",
  4003: "not allowed; trying again does not help",
  4008: "silent, idle, slow or old for too long",
  4029: "too many attempts, sessions or messages",
};

/** renew = reconnect at once with a new token, again = reconnect at once, wait = back off, stop. */
function byCode(code) {
  if (code === 4001) return "renew";
  if (code === 4008) return "again";
  if (code === 4029) return "wait";
  return code >= 3000 || [1000, 1003, 1007, 1008, 1010].includes(code) ? "stop" : "wait";
}

/**
 * What to do about an end. `renewed`: the token was new already; `settled`: the socket was in use before.
 * The label counts before the code, for [refuse.codes] may have changed that.
 */
export function decide({ code, label }, { renewed = false, settled = true } = {}) {
  const wish = Object.hasOwn(REASONS, label) ? REASONS[label][1] : byCode(code);
  const inVain = (wish === "renew" && renewed) || (wish === "again" && !settled);
  return { action: inVain ? "wait" : wish, renew: wish === "renew" };
}

/** Milliseconds of exponential back-off with full jitter, after so many failures in a row. */
export function backOff(failures, { base = 1000, most = 30000, random = Math.random } = {}) {
  return random() * Math.min(most, base * 2 ** failures);
}

/** Code, label, meaning and remedy of an end, for people to read. */
export function explain(code, label = "") {
  const [, , remedy = ""] = Object.hasOwn(REASONS, label) ? REASONS[label] : [];
  return { code, label, meaning: MEANINGS[code] ?? (code ? "a code of the backend's own" : ""), remedy };
}

const JITTER = 250;

/**
 * Connects at once, and again until it is told to stop. Events: `message`, with `data`, and `state`, whose `detail` is
 * { state, code, label, meaning, remedy, pause, renew }. States: connecting · open, though the gate may still refuse by
 * a Close · live, for it has been used · waiting, for `pause` milliseconds, with `renew` for a new token · stopped, by a
 * reason that trying again does not help against · closed, by close().
 */
export class GateSocket extends EventTarget {
  #url;
  #token;
  #options;
  #turn; // the attempt in force; what comes late from an older one finds another here
  #socket;
  #timer;
  #renewed = false;
  #settled = false;
  #failures = 0;

  /**
   * `token({ renew })` gives a token, or a promise of one; with `renew` the last one was refused, so a kept one will
   * not do. Without a token, nobody being signed in, it stops. An error thrown is a reason to wait.
   * Options: `carrier` subprotocol | query, or a function of URL and token that may change the one and gives the
   * subprotocols for the other; `protocols`, your own; `parameter` of the query; `binaryType`; and in milliseconds `base`
   * and `most` of the back-off, and `settle`, how long a socket without messages must last to count.
   */
  constructor(url, token, options = {}) {
    super();
    this.#url = url;
    this.#token = token;
    this.#options = { carrier: "subprotocol", protocols: [], parameter: "token", binaryType: "blob", settle: 5000, ...options };
    this.open();
  }

  /** Again, after `stopped` or `closed`. */
  open() {
    this.#leave();
    this.#failures = 0;
    this.#connect(false);
  }

  close(code = 1000, reason = "") {
    this.#leave(code, reason);
    this.#tell("closed", explain(code, reason));
  }

  /** Whether it was handed over; nothing is kept for the next connection. */
  send(data) {
    const ready = this.#socket?.readyState === 1;
    if (ready) this.#socket.send(data);
    return ready;
  }

  /** The subprotocol that was selected. */
  get protocol() {
    return this.#socket?.protocol ?? "";
  }

  #leave(code, reason) {
    this.#turn = undefined;
    clearTimeout(this.#timer);
    this.#socket?.close(code, reason);
    this.#socket = undefined;
  }

  async #connect(renew) {
    const turn = (this.#turn = {});
    const mine = (handler) => (event) => turn === this.#turn && handler(event);
    this.#renewed = renew;
    this.#settled = false;
    await null; // whoever has just made it adds listeners first
    if (turn !== this.#turn) return;
    this.#tell("connecting");
    let token;
    try {
      token = await this.#token({ renew });
    } catch (error) {
      if (turn === this.#turn) this.#wait(renew, { code: 0, label: "", meaning: `no token could be had: ${error.message}`, remedy: "" });
      return;
    }
    if (turn !== this.#turn) return;
    if (!token) return this.#tell("stopped", { code: 0, label: "", meaning: "there is no token", remedy: "sign in" });
    let socket;
    try {
      socket = this.#socket = this.#dial(token);
    } catch (error) {
      return this.#tell("stopped", { code: 0, label: "", meaning: error.message, remedy: "" });
    }
    socket.onopen = mine(() => {
      this.#tell("open");
      this.#timer = setTimeout(() => this.#settle(), this.#options.settle);
    });
    socket.onmessage = mine(({ data }) => {
      this.#settle();
      this.dispatchEvent(new MessageEvent("message", { data }));
    });
    socket.onclose = mine(({ code, reason }) => this.#ended(code, reason));
  }

  #dial(token) {
    const { carrier, protocols, parameter, binaryType } = this.#options;
    const url = new URL(this.#url, globalThis.location?.href);
    url.protocol = url.protocol.replace("http", "ws");
    const carry = { subprotocol: () => ["Bearer", token], query: () => (url.searchParams.set(parameter, token), []) };
    const carried = (carry[carrier] ?? carrier)(url, token);
    const socket = new WebSocket(url, [...protocols, ...carried]);
    socket.binaryType = binaryType;
    return socket;
  }

  #settle() {
    if (this.#settled) return;
    clearTimeout(this.#timer);
    this.#settled = true;
    this.#tell("live");
  }

  #ended(code, label) {
    clearTimeout(this.#timer);
    this.#socket = undefined;
    const settled = this.#settled;
    const { action, renew } = decide({ code, label }, { renewed: this.#renewed && !settled, settled });
    const why = explain(code, label);
    // Two that close each other's session, the oldest, must not take turns ever faster.
    if (settled && (REASONS[label]?.[0] ?? code) !== 4029) this.#failures = 0;
    if (action === "stop") this.#tell("stopped", why);
    else if (action === "wait") this.#wait(renew, why);
    else this.#again(renew, why, action === "again" ? Math.random() * JITTER : 0);
  }

  #wait(renew, why) {
    this.#again(renew, why, backOff(this.#failures++, this.#options));
  }

  #again(renew, why, pause) {
    this.#tell("waiting", { ...why, pause, renew });
    this.#timer = setTimeout(() => this.#connect(renew), pause);
  }

  #tell(state, why = explain(0)) {
    this.dispatchEvent(new CustomEvent("state", { detail: { state, ...why } }));
  }
}
