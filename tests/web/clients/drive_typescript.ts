// Uses the types that openapi-typescript made, with openapi-fetch, against the server of the environment.

import assert from "node:assert/strict";
import createClient from "openapi-fetch";
import type { components, paths } from "./schema.js";

type Job = components["schemas"]["JobToRun"];

const { SERVER, TOKEN } = process.env;
const client = createClient<paths>({ baseUrl: SERVER!, headers: { Authorization: `Bearer ${TOKEN}` } });

async function accepted(body: Job): Promise<string> {
  const { data, error } = await client.POST("/pipeline/run", { body });
  assert(data, JSON.stringify(error));
  return data.job_id;
}

async function ended(body: Job): Promise<components["schemas"]["JobObject"]> {
  const path = { job_id: await accepted(body) };
  const { data } = await client.GET("/pipeline/job/{job_id}", { params: { path, header: { Prefer: "wait=30" } } });
  assert(data);
  return data;
}

// Typed metadata, and every optional member unset or null.
const storyboards: Job[] = [
  { content: "One. Two.", preset: "storyboard", metadata: { words_per_minute: 300 } },
  { content: "One. Two.", preset: "storyboard" },
  {
    content: "One. Two.",
    preset: "storyboard",
    metadata: null,
    priority: null,
    run_at: null,
    delay_seconds: null,
    max_attempts: null,
    timeout_seconds: null,
  },
  { content: "One. Two.", preset: "storyboard", run_at: null, delay_seconds: 0.01 },
];
for (const body of storyboards) {
  const done = await ended(body);
  assert.deepEqual([done.status, done.preset, done.error, done.priority], ["completed", "storyboard", null, 2]);
  assert.equal((done.result as { word_count: number }).word_count, 2);
}

// Another preset's metadata is that preset's, and the compiler refuses it elsewhere.
const speech: Job = {
  content: "hello",
  preset: "speech.v2",
  metadata: { format: "markdown", words_per_minute: 20, voices: [{ name: "Ada" }] },
};
const spoken = await ended(speech);
const voices = [{ name: "Ada", rate: 1 }];
assert.deepEqual(spoken.result, { format: "markdown", words_per_minute: 20, voices, title: null });
assert.deepEqual(spoken.metadata, speech.metadata);
const refused: Job[] = [
  // @ts-expect-error: the metadata of speech.v2
  { content: "x", preset: "storyboard", metadata: { voices: [] } },
  // @ts-expect-error: metadata are required
  { content: "x", preset: "speech.v2" },
  // @ts-expect-error: no such preset
  { content: "x", preset: "unknown" },
  // @ts-expect-error: null is no content
  { content: null, preset: "3d" },
];
assert.equal(refused.length, 4);

const free: Job = { content: "x", preset: "speech-v2", metadata: { any: [1, null] } };
const open = await ended(free);
assert.deepEqual(open.result, { content: "x", metadata: { any: [1, null] }, numbers: [1, 2.5, null, { deep: [true] }] });

const failed = await ended({ content: "x", preset: "3d" });
assert.equal(failed.status, "failed");
assert.deepEqual([failed.error?.type, failed.error?.message, failed.result], ["PermanentError", "no such luck", null]);
const again = await client.POST("/pipeline/job/{job_id}/retry", { params: { path: { job_id: failed.job_id } } });
assert.equal(again.data?.status, "pending");

// Later: cancelled, once for all.
const many = await client.POST("/pipeline/batch", { body: { jobs: [speech, free] } });
assert.equal(many.data?.job_ids.length, 2);
const path = { job_id: await accepted({ content: "x", preset: "speech-v2", delay_seconds: 3600 }) };
for (let call = 0; call < 2; call++) {
  const { data } = await client.POST("/pipeline/job/{job_id}/cancel", { params: { path } });
  assert.equal(data?.status, "cancelled");
}
const cancelled = await client.GET("/pipeline/jobs", { params: { query: { status: "cancelled", limit: 1 } } });
assert.deepEqual(cancelled.data?.jobs.map((each) => each.job_id), [path.job_id]);
const page = await client.GET("/pipeline/jobs", { params: { query: { limit: 2 } } });
const cursor = page.data?.next_cursor ?? undefined;
const more = await client.GET("/pipeline/jobs", { params: { query: { limit: 2, cursor } } });
assert.equal(new Set([...page.data!.jobs, ...more.data!.jobs].map((each) => each.job_id)).size, 4);

const trail = await client.GET("/pipeline/job/{job_id}/history", { params: { path } });
assert.deepEqual(trail.data?.history.map((each) => each.to_status), ["pending", "cancelled"]);
const why = await client.GET("/pipeline/job/{job_id}/explain", { params: { path } });
assert.match(why.data!.summary, /cancelled/);
const events = await client.GET("/pipeline/job/{job_id}/events", { params: { path }, parseAs: "text" });
assert.equal(String(events.data).split("event: status").length, 3);
const read = await client.GET("/pipeline/job/{job_id}", { params: { path } });
const header = { "If-None-Match": read.response.headers.get("ETag")! };
const unchanged = await client.GET("/pipeline/job/{job_id}", { params: { path, header } });
assert.deepEqual([unchanged.response.status, unchanged.data], [304, undefined]);
const known = await client.GET("/pipeline/presets");
assert.deepEqual(known.data?.presets.map((each) => each.preset), ["storyboard", "speech.v2", "speech-v2", "3d"]);
assert.equal((await client.GET("/readyz")).data?.status, "ok");

// Refusals are problems.
const wrong = await client.POST("/pipeline/run", { body: { content: "", preset: "speech-v2" } });
assert.deepEqual([wrong.error?.status, wrong.error?.errors?.map((each) => each.pointer)], [422, ["/content"]]);
const nobody = { job_id: crypto.randomUUID() };
const missing = await client.GET("/pipeline/job/{job_id}", { params: { path: nobody } });
assert.equal(missing.error?.status, 404);
const over = await client.POST("/pipeline/job/{job_id}/cancel", { params: { path: { job_id: open.job_id } } });
assert.equal(over.error?.status, 409);
const stranger = await createClient<paths>({ baseUrl: SERVER! }).GET("/pipeline/jobs");
assert.equal(stranger.error?.title, "Unauthorized");
