-- transactional: false
-- jobs_owner_preset has the same key.
DROP INDEX CONCURRENTLY IF EXISTS jobs_owner;
