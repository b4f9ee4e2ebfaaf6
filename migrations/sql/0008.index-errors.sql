-- transactional: false
-- The latest errors of a job are found here, however many transitions without an error its history has.
CREATE INDEX CONCURRENTLY IF NOT EXISTS job_state_records_errors ON job_state_records (job_id, seq)
WHERE metadata ? 'error';
