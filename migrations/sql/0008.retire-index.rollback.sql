CREATE INDEX CONCURRENTLY IF NOT EXISTS jobs_owner ON jobs (user_id, id);
