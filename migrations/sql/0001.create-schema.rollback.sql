SET LOCAL lock_timeout = '5s';
DROP FUNCTION outrider_enqueue(text, text, text, jsonb, integer, timestamptz);
DROP FUNCTION outrider_uuid7();
DROP VIEW job_status;
DROP TABLE idempotency_keys, job_progress, workers, job_state_records, job_results, outbox_events, outbox, jobs;
DROP TYPE outbox_status;
DROP TYPE job_state;
