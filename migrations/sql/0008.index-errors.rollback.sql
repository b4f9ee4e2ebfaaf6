DROP INDEX CONCURRENTLY IF EXISTS job_state_records_errors;
