-- The engine's tables. There are no foreign keys on the hot path: they cost 1.7 times the database CPU of a
-- whole job. `outrider doctor --invariants` and the tests check what they would have enforced.
-- No extension is used, and nothing newer than PostgreSQL 15.
SET LOCAL lock_timeout = '5s';

CREATE TYPE job_state AS ENUM ('PENDING', 'PROCESSING', 'COMPLETED', 'FAILED', 'CANCELLED');
CREATE TYPE outbox_status AS ENUM ('waiting', 'ready', 'published', 'leased');

-- What was asked. Insert-only.
CREATE TABLE jobs (
    id              uuid PRIMARY KEY,
    user_id         text NOT NULL CHECK (length(user_id) BETWEEN 1 AND 255),
    preset          text NOT NULL CHECK (preset ~ '^[a-z0-9][a-z0-9_.-]{0,62}$'),
    content         text NOT NULL CHECK (octet_length(content) BETWEEN 1 AND 262144),
    metadata        jsonb NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(metadata) = 'object'),
    priority        smallint NOT NULL DEFAULT 2 CHECK (priority BETWEEN 1 AND 4),
    max_attempts    smallint CHECK (max_attempts BETWEEN 1 AND 25),        -- NULL: the preset's own
    timeout_seconds integer CHECK (timeout_seconds BETWEEN 1 AND 86400),   -- NULL: the preset's own
    traceparent     text,
    run_at          timestamptz NOT NULL DEFAULT now()
                    CHECK (run_at BETWEEN '1970-01-01T00:00Z' AND '9999-01-01T00:00Z'),
    -- A time that Python cannot hold would fail the claim of every job beside this one.
    created_at      timestamptz NOT NULL DEFAULT clock_timestamp()
                    CHECK (created_at BETWEEN '1970-01-01T00:00Z' AND '9999-01-01T00:00Z')
);
CREATE INDEX jobs_owner ON jobs (user_id, id);

-- What the engine still owes: one narrow row for each unfinished job.
CREATE SEQUENCE outbox_position AS bigint CACHE 1;
CREATE TABLE outbox (
    job_id           uuid PRIMARY KEY,
    user_id          text NOT NULL,
    preset           text NOT NULL,
    priority         smallint NOT NULL,
    status           outbox_status NOT NULL,
    attempt          integer NOT NULL DEFAULT 0,     -- starts, never reset: with worker_id, the fence
    errors           smallint NOT NULL DEFAULT 0,    -- since the last redrive
    crashes          smallint NOT NULL DEFAULT 0,    -- since the last redrive
    version          integer NOT NULL DEFAULT 0,     -- seq of the latest audit row
    position         bigint NOT NULL DEFAULT nextval('outbox_position'),
    cancel_requested boolean NOT NULL DEFAULT false,
    worker_id        bigint,
    run_at           timestamptz NOT NULL
                     CHECK (run_at BETWEEN '1970-01-01T00:00Z' AND '9999-01-01T00:00Z'),
    ready_at         timestamptz,
    publish_until    timestamptz,
    published_at     timestamptz,
    claimed_at       timestamptz,
    CHECK ((status = 'leased') = (worker_id IS NOT NULL))
)
-- Every row is updated at least once and then deleted: leave room for the update, and vacuum by count rather
-- than by share of a table that is mostly dead, without the cost delay that lets the dead win.
WITH (fillfactor = 85, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 20000,
      autovacuum_vacuum_insert_scale_factor = 0, autovacuum_vacuum_insert_threshold = 20000,
      autovacuum_analyze_scale_factor = 0, autovacuum_analyze_threshold = 20000,
      autovacuum_vacuum_cost_delay = 0);
ALTER SEQUENCE outbox_position OWNED BY outbox.position;
CREATE INDEX outbox_ready ON outbox (preset, priority, position) WHERE status = 'ready';
CREATE INDEX outbox_waiting ON outbox (run_at) WHERE status = 'waiting';
CREATE INDEX outbox_published ON outbox (published_at) WHERE status = 'published';
CREATE INDEX outbox_leased ON outbox (worker_id) WHERE status = 'leased';
CREATE INDEX outbox_owner_leased ON outbox (user_id, job_id) WHERE status = 'leased';
CREATE INDEX outbox_owner_pending ON outbox (user_id, job_id) WHERE status <> 'leased';

-- Result and dead-letter messages that still have to be published; a row is deleted once it is.
CREATE TABLE outbox_events (
    id             bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    topic          text NOT NULL,
    payload        bytea NOT NULL,
    attributes     jsonb NOT NULL,
    created_at     timestamptz NOT NULL DEFAULT clock_timestamp(),
    publish_until  timestamptz,
    quarantined_at timestamptz,
    reason         text
)
WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 20000, autovacuum_vacuum_cost_delay = 0);
CREATE INDEX outbox_events_due ON outbox_events (topic, id) WHERE quarantined_at IS NULL;

-- What came of it. Insert-only, but for a redrive, which takes the row back.
CREATE TABLE job_results (
    job_id             uuid PRIMARY KEY,
    user_id            text NOT NULL,
    state              job_state NOT NULL CHECK (state IN ('COMPLETED', 'FAILED', 'CANCELLED')),
    output             json,      -- json, not jsonb: the pipeline's own order of members, and no re-encoding
    error              jsonb,     -- {"type", "message", "attempt"}
    error_fingerprint  text,      -- groups failures that look alike
    execution_metadata jsonb NOT NULL DEFAULT '{}',
    attempt            integer NOT NULL,
    errors             smallint NOT NULL,
    crashes            smallint NOT NULL,
    version            integer NOT NULL,
    run_at             timestamptz NOT NULL,
    started_at         timestamptz,
    finished_at        timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX job_results_owner ON job_results (user_id, state, job_id);
CREATE INDEX job_results_failed ON job_results (job_id) WHERE state = 'FAILED';

-- How it got there. Append-only; a row is written by the statement that makes the move.
CREATE TABLE job_state_records (
    job_id     uuid NOT NULL,
    seq        integer NOT NULL,
    from_state job_state,
    to_state   job_state NOT NULL,
    attempt    integer NOT NULL,
    timestamp  timestamptz NOT NULL DEFAULT clock_timestamp(),
    reason     text,
    metadata   jsonb,
    PRIMARY KEY (job_id, seq)
);

-- One row for each worker process: the lease of all its attempts.
CREATE TABLE workers (
    id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name       text NOT NULL,
    presets    text[] NOT NULL,
    slots      integer NOT NULL,
    started_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    expires_at timestamptz NOT NULL
);

-- The latest progress of a running attempt. UNLOGGED: a crash of the server may forget it.
CREATE UNLOGGED TABLE job_progress (
    job_id     uuid PRIMARY KEY,
    attempt    integer NOT NULL,
    n          integer NOT NULL,
    fraction   double precision NOT NULL,
    message    text NOT NULL,
    updated_at timestamptz NOT NULL DEFAULT clock_timestamp()
)
WITH (fillfactor = 70);

CREATE TABLE idempotency_keys (
    owner       text NOT NULL,
    route       text NOT NULL,
    key         text NOT NULL,
    fingerprint bytea NOT NULL,
    answer      json NOT NULL,
    expires_at  timestamptz NOT NULL,
    PRIMARY KEY (owner, route, key)
);
CREATE INDEX idempotency_keys_expiry ON idempotency_keys (expires_at);

-- The conventional picture of a job, for people and for GET. Outbox and results are read in one statement,
-- or a job that finishes in between would seem to be in neither. The latest audit row gives updated_at; the latest
-- one that carries an error gives the error that a waiting retry shows.
CREATE VIEW job_status AS
SELECT j.id AS job_id, j.user_id, j.preset, j.content, j.metadata, j.priority, j.max_attempts, j.timeout_seconds,
       j.traceparent, j.created_at,
       CASE WHEN r.job_id IS NOT NULL THEN r.state
            WHEN o.status = 'leased' THEN 'PROCESSING'::job_state
            ELSE 'PENDING'::job_state END AS state,
       coalesce(r.attempt, o.attempt) AS attempt,
       coalesce(r.version, o.version) AS version,
       coalesce(r.errors, o.errors) AS errors,
       coalesce(r.crashes, o.crashes) AS crashes,
       coalesce(r.run_at, o.run_at) AS run_at,
       CASE WHEN r.job_id IS NOT NULL THEN r.started_at ELSE o.claimed_at END AS started_at,
       latest.timestamp AS updated_at,
       r.finished_at AS completed_at,
       r.output,
       CASE WHEN r.state = 'COMPLETED' THEN NULL ELSE coalesce(r.error, failure.error) END AS error,
       coalesce(p.n, 0) AS progress_n, p.fraction, p.message,
       o.status AS outbox_status, o.ready_at, o.published_at, coalesce(o.cancel_requested, false) AS cancel_requested,
       o.worker_id
FROM jobs j
LEFT JOIN outbox o ON o.job_id = j.id
LEFT JOIN job_results r ON r.job_id = j.id
LEFT JOIN job_progress p ON p.job_id = j.id AND p.attempt = o.attempt AND o.status = 'leased'
LEFT JOIN LATERAL (
    SELECT a.timestamp FROM job_state_records a WHERE a.job_id = j.id ORDER BY a.seq DESC LIMIT 1
) latest ON true
LEFT JOIN LATERAL (
    SELECT a.metadata -> 'error' AS error FROM job_state_records a
    WHERE a.job_id = j.id AND a.metadata ? 'error' AND r.state IS DISTINCT FROM 'COMPLETED'
    ORDER BY a.seq DESC LIMIT 1
) failure ON true;

-- A job from any language, in the caller's own transaction: job, outbox row and first audit row.
CREATE FUNCTION outrider_uuid7() RETURNS uuid LANGUAGE sql VOLATILE PARALLEL SAFE AS $$
    -- A random v4 uuid with its first 48 bits replaced by the milliseconds since 1970 and its version made 7.
    SELECT encode(set_bit(set_bit(
        overlay(uuid_send(gen_random_uuid())
                PLACING substring(int8send(floor(extract(epoch FROM clock_timestamp()) * 1000)::bigint) FROM 3)
                FROM 1 FOR 6), 52, 1), 53, 1), 'hex')::uuid
$$;

CREATE FUNCTION outrider_enqueue(
    user_id text, preset text, content text, metadata jsonb DEFAULT '{}',
    priority integer DEFAULT 2, run_at timestamptz DEFAULT NULL
) RETURNS uuid LANGUAGE sql VOLATILE AS $$
    WITH job AS (
        INSERT INTO jobs (id, user_id, preset, content, metadata, priority, run_at)
        VALUES (outrider_uuid7(), outrider_enqueue.user_id, outrider_enqueue.preset, outrider_enqueue.content,
                outrider_enqueue.metadata, outrider_enqueue.priority,
                coalesce(outrider_enqueue.run_at, now()))
        RETURNING id, user_id, preset, priority, run_at
    ), entry AS (
        INSERT INTO outbox (job_id, user_id, preset, priority, status, run_at, ready_at)
        SELECT id, job.user_id, job.preset, job.priority,
               (CASE WHEN job.run_at > now() THEN 'waiting' ELSE 'ready' END)::outbox_status,
               job.run_at,
               CASE WHEN job.run_at > now() THEN NULL ELSE clock_timestamp() END
        FROM job
    )
    INSERT INTO job_state_records (job_id, seq, to_state, attempt, reason)
    SELECT id, 0, 'PENDING', 0, 'enqueued' FROM job
    RETURNING job_id
$$;
