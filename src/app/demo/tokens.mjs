// Where tokens come from: the embedded issuer, a real one by authorization code with PKCE, or the visitor's clipboard.

const KEPT = "sidegate-demo.tokens";
const FLOW = "sidegate-demo.flow";
const EMBEDDED = "/realms/demo/protocol/openid-connect/token";

export const encoded = (bytes) => btoa(String.fromCharCode(...bytes)).replaceAll("+", "-").replaceAll("/", "_").replace(/=+$/, "");
const random = () => encoded(crypto.getRandomValues(new Uint8Array(32)));

/** What a token says, without a look at its signature; {} if it is none. */
export function claims(token) {
  try {
    const bytes = atob(token.split(".")[1].replaceAll("-", "+").replaceAll("_", "/"));
    return JSON.parse(new TextDecoder().decode(Uint8Array.from(bytes, (c) => c.charCodeAt())));
  } catch {
    return {};
  }
}

export class Tokens {
  /** `issuer`: { url, client } of a real one, or null. */
  constructor(issuer) {
    this.issuer = issuer;
    this.held = JSON.parse(localStorage.getItem(KEPT) ?? "null");
  }

  get access() {
    return this.held?.access ?? "";
  }

  get id() {
    return this.held?.id ?? "";
  }

  keep(held) {
    this.held = held;
    if (held) localStorage.setItem(KEPT, JSON.stringify(held));
    else localStorage.removeItem(KEPT);
  }

  /** At the embedded issuer, whose passwords are the names. */
  async login(user, seconds) {
    const said = await ask(EMBEDDED, { grant_type: "password", client_id: "chat", username: user, password: user, expires_in: seconds });
    this.keep({ access: said.access_token, id: said.id_token, user });
  }

  /** Leaves for the real issuer (RFC 6749 §4.1, RFC 7636). */
  async signIn() {
    const { authorization_endpoint } = await this.#discovery();
    const flow = { state: random(), verifier: random() };
    sessionStorage.setItem(FLOW, JSON.stringify(flow));
    const digest = await crypto.subtle.digest("SHA-256", new TextEncoder().encode(flow.verifier));
    const url = new URL(authorization_endpoint);
    const asked = {
      response_type: "code", client_id: this.issuer.client, redirect_uri: `${location.origin}/`, scope: "openid",
      state: flow.state, code_challenge: encoded(new Uint8Array(digest)), code_challenge_method: "S256",
    };
    for (const [name, value] of Object.entries(asked)) url.searchParams.set(name, value);
    location.assign(url);
  }

  /** Comes back from there; false if this is no such visit. */
  async arrive() {
    const told = new URLSearchParams(location.search);
    if (!told.has("state")) return false;
    history.replaceState(null, "", location.pathname);
    const flow = JSON.parse(sessionStorage.getItem(FLOW) ?? "{}");
    sessionStorage.removeItem(FLOW);
    if (!flow.state || told.get("state") !== flow.state) throw new Error("this tab has not asked for that: the state is another");
    if (told.has("iss") && told.get("iss") !== this.issuer?.url) throw new Error("the answer is of another issuer");
    if (told.has("error")) throw new Error(told.get("error_description") ?? told.get("error"));
    await this.#grant({ grant_type: "authorization_code", code: told.get("code"), redirect_uri: `${location.origin}/`, code_verifier: flow.verifier });
    return true;
  }

  /** A new access token in place of one that was refused; "" if there is no way to one. */
  async renew() {
    try {
      if (this.held?.user) await this.login(this.held.user, 300);
      else if (this.held?.refresh) await this.#grant({ grant_type: "refresh_token", refresh_token: this.held.refresh });
      else return "";
    } catch (error) {
      if (error.cause !== "invalid_grant") throw error;
      this.keep(null);
    }
    return this.access;
  }

  async #grant(form) {
    const { token_endpoint } = await this.#discovery();
    const said = await ask(token_endpoint, { client_id: this.issuer.client, ...form });
    this.keep({ access: said.access_token, id: said.id_token, refresh: said.refresh_token });
  }

  async #discovery() {
    const answer = await fetch(`${this.issuer.url}/.well-known/openid-configuration`);
    const said = await answer.json();
    if (said.issuer !== this.issuer.url) throw new Error(`it calls itself ${said.issuer}`);
    return said;
  }
}

async function ask(url, form) {
  const answer = await fetch(url, { method: "POST", body: new URLSearchParams(form) });
  const said = await answer.json();
  if (!answer.ok) throw new Error(`${answer.status} ${said.error_description ?? said.error ?? said.reason}`, { cause: said.error });
  return said;
}
