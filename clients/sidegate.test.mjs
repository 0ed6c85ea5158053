// node --test clients/sidegate.test.mjs
import assert from "node:assert/strict";
import { test } from "node:test";
import { backOff, decide, explain, REASONS } from "./sidegate.mjs";

const after = (code, label, past) => decide({ code, label }, past).action;

test("a token that ran out is renewed at once, and only once in a row", () => {
  assert.deepEqual(decide({ code: 4001, label: "token_expired" }), { action: "renew", renew: true });
  assert.deepEqual(decide({ code: 4001, label: "token_expired" }, { renewed: true }), { action: "wait", renew: true });
});

test("what a new token cannot mend stops", () => {
  for (const label of ["token_revoked", "token_audience", "token_issuer", "token_type", "token_client", "token_signature"])
    assert.equal(after(4001, label), "stop", label);
  for (const [label, [code]] of Object.entries(REASONS)) if (code === 4003) assert.equal(after(code, label), "stop", label);
});

test("a gate that is full, drains or fails is waited for", () => {
  for (const [code, label] of [[4029, "user_sessions_exceeded"], [1012, "draining"], [1012, "operator_closed"], [1013, "upstream_lost"],
    [1006, ""], [1001, ""], [1005, ""], [1011, "internal"], [4001, "token_not_yet_valid"]])
    assert.equal(after(code, label), "wait", `${code} ${label}`);
});

test("a session that was too long or too silent comes back at once, unless it had just come", () => {
  assert.equal(after(4008, "session_too_long"), "again");
  assert.equal(after(4008, "pong_timeout", { settled: false }), "wait");
});

test("the label counts before a code that the gate's configuration has changed", () => {
  assert.equal(after(1008, "token_expired"), "renew");
  assert.equal(after(3001, "rule_denied"), "stop");
});

test("the backend's own codes: those of RFC 6455 by their meaning, others stop", () => {
  assert.equal(after(1000, ""), "stop");
  assert.equal(after(1008, "be gone"), "stop");
  assert.equal(after(4400, "kicked"), "stop");
  assert.equal(after(4001, "old backend"), "renew");
  assert.equal(after(4003, "constructor"), "stop");
});

test("the back-off doubles up to its bound, with full jitter", () => {
  const longest = (failures) => backOff(failures, { base: 1000, most: 30000, random: () => 1 });
  assert.deepEqual([0, 1, 4, 5, 60].map(longest), [1000, 2000, 16000, 30000, 30000]);
  assert.equal(backOff(9, { random: () => 0 }), 0);
  const drawn = new Set(Array.from({ length: 50 }, () => backOff(3)));
  assert.ok(drawn.size > 40 && [...drawn].every((pause) => pause >= 0 && pause <= 8000));
});

test("an end is told with label, meaning and remedy", () => {
  assert.deepEqual(explain(4001, "token_expired"), {
    code: 4001, label: "token_expired", meaning: "the token is not good, or no longer", remedy: "get a new token, then reconnect",
  });
  assert.equal(explain(4400, "kicked").meaning, "a code of the backend's own");
});
