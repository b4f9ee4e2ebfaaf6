-- transactional: false
-- An owner's jobs, with their presets: a list that is filtered by preset reads no row that it leaves out. With the
-- preset in the key it would be an index beside jobs_owner, at 4 % of what a job costs; this one replaces that.
CREATE INDEX CONCURRENTLY IF NOT EXISTS jobs_owner_preset ON jobs (user_id, id) INCLUDE (preset);
