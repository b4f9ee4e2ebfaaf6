SET LOCAL lock_timeout = '5s';

ALTER TABLE jobs RENAME CONSTRAINT "user_id: not 1 to 255 characters" TO jobs_user_id_check;
ALTER TABLE jobs RENAME CONSTRAINT "preset: not [a-z0-9][a-z0-9_.-]{0,62}" TO jobs_preset_check;
ALTER TABLE jobs RENAME CONSTRAINT "content: not 1 to 262144 bytes as UTF-8" TO jobs_content_check;
ALTER TABLE jobs RENAME CONSTRAINT "priority: not 1 to 4" TO jobs_priority_check;
ALTER TABLE jobs RENAME CONSTRAINT "max_attempts: not 1 to 25" TO jobs_max_attempts_check;
ALTER TABLE jobs RENAME CONSTRAINT "timeout_seconds: not 1 to 86400" TO jobs_timeout_seconds_check;
ALTER TABLE jobs RENAME CONSTRAINT "run_at: not a time with a zone, up to the year 9999" TO jobs_run_at_check;

DROP TRIGGER same_throughput ON workers;
DROP FUNCTION outrider_same_throughput();
ALTER TABLE workers DROP COLUMN drained;
ALTER TABLE workers RENAME COLUMN throughput TO drained;

DROP VIEW relay_facts;
ALTER TABLE relay_status RENAME TO relay_facts;
ALTER TABLE relay_facts RENAME CONSTRAINT relay_status_pkey TO relay_facts_pkey;
ALTER TABLE relay_facts RENAME CONSTRAINT relay_status_topic_check TO relay_facts_topic_check;
ALTER TABLE relay_facts RENAME CONSTRAINT relay_status_state_check TO relay_facts_state_check;

CREATE OR REPLACE FUNCTION outrider_enqueue(
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
