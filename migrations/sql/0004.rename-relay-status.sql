-- The field's words: relay_facts becomes relay_status, workers.drained becomes workers.throughput, and the limits of a
-- job are named by what a value outside of them is.
-- Processes of the code before this run on it for the length of a deploy: they find their names in a view and in a
-- column that a trigger keeps equal. A later version removes both.
SET LOCAL lock_timeout = '5s';

ALTER TABLE relay_facts RENAME TO relay_status;
ALTER TABLE relay_status RENAME CONSTRAINT relay_facts_pkey TO relay_status_pkey;
ALTER TABLE relay_status RENAME CONSTRAINT relay_facts_topic_check TO relay_status_topic_check;
ALTER TABLE relay_status RENAME CONSTRAINT relay_facts_state_check TO relay_status_state_check;
CREATE VIEW relay_facts AS SELECT relay, topic, state, since, detail, updated_at FROM relay_status;

ALTER TABLE workers RENAME COLUMN drained TO throughput;
ALTER TABLE workers ADD COLUMN drained jsonb NOT NULL DEFAULT '{}';
CREATE FUNCTION outrider_same_throughput() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.throughput IS DISTINCT FROM OLD.throughput THEN
        NEW.drained := NEW.throughput;
    ELSE
        NEW.throughput := NEW.drained;
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER same_throughput BEFORE UPDATE ON workers
    FOR EACH ROW WHEN (NEW.throughput IS DISTINCT FROM OLD.throughput OR NEW.drained IS DISTINCT FROM OLD.drained)
    EXECUTE FUNCTION outrider_same_throughput();

ALTER TABLE jobs RENAME CONSTRAINT jobs_user_id_check TO "user_id: not 1 to 255 characters";
ALTER TABLE jobs RENAME CONSTRAINT jobs_preset_check TO "preset: not [a-z0-9][a-z0-9_.-]{0,62}";
ALTER TABLE jobs RENAME CONSTRAINT jobs_content_check TO "content: not 1 to 262144 bytes as UTF-8";
ALTER TABLE jobs RENAME CONSTRAINT jobs_priority_check TO "priority: not 1 to 4";
ALTER TABLE jobs RENAME CONSTRAINT jobs_max_attempts_check TO "max_attempts: not 1 to 25";
ALTER TABLE jobs RENAME CONSTRAINT jobs_timeout_seconds_check TO "timeout_seconds: not 1 to 86400";
ALTER TABLE jobs RENAME CONSTRAINT jobs_run_at_check TO "run_at: not a time with a zone, up to the year 9999";

-- A time that has passed means at once, however long ago it was.
CREATE OR REPLACE FUNCTION outrider_enqueue(
    user_id text, preset text, content text, metadata jsonb DEFAULT '{}',
    priority integer DEFAULT 2, run_at timestamptz DEFAULT NULL
) RETURNS uuid LANGUAGE sql VOLATILE AS $$
    WITH job AS (
        INSERT INTO jobs (id, user_id, preset, content, metadata, priority, run_at)
        VALUES (outrider_uuid7(), outrider_enqueue.user_id, outrider_enqueue.preset, outrider_enqueue.content,
                outrider_enqueue.metadata, outrider_enqueue.priority,
                greatest(coalesce(outrider_enqueue.run_at, now()), '1970-01-01T00:00Z'))
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
