-- What workers and relays say of themselves, for /autoscale and explain.
SET LOCAL lock_timeout = '5s';

-- Attempts ended a second, by preset, over about the last half minute. Workers of the older code leave it empty.
ALTER TABLE workers ADD COLUMN drained jsonb NOT NULL DEFAULT '{}';

-- One row for each topic of each relay, renewed every few seconds: what stands between a ready job and its message.
-- UNLOGGED: after a crash of the server every relay tells again.
CREATE UNLOGGED TABLE relay_facts (
    relay      text NOT NULL,
    topic      text NOT NULL CHECK (topic IN ('jobs', 'results', 'dead-letters')),
    state      text NOT NULL CHECK (state IN ('publishing', 'passing', 'misconfigured')),
    since      timestamptz NOT NULL,
    detail     text,
    updated_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (relay, topic)
)
WITH (fillfactor = 70);

-- The sampler counts them every few seconds, beside however many are pending.
CREATE INDEX outbox_events_quarantined ON outbox_events (topic, quarantined_at) WHERE quarantined_at IS NOT NULL;
